//! The user's own pairs: folders, lists and shards are read alike, at random and by any thread.

use std::fs;
use std::path::Path;

use keel::data::pairs::{Pair, PairLimits, PairSource, Pairs};
use rayon::prelude::*;
use tempfile::TempDir;

use crate::data_image::{decode, files};
use crate::data_webdataset::{END, file, tar};

/// An encoded image of every readable kind, and its usual ending.
pub fn images() -> Vec<(&'static str, Vec<u8>)> {
    let kinds = [
        ("png_rgba", "png"),
        ("jpeg", "jpg"),
        ("webp_lossy_rgb", "webp"),
    ];
    let all = files();
    let find = |kind: &str| all.iter().find(|(name, _)| name == kind).unwrap().1.clone();
    kinds.map(|(kind, ending)| (ending, find(kind))).to_vec()
}

pub fn open(path: impl AsRef<Path>) -> keel::error::Result<Pairs> {
    Pairs::open(path.as_ref().to_str().unwrap(), PairLimits::default())
}

/// A folder with these files in it.
pub fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn captions(pairs: &Pairs) -> Vec<(String, String)> {
    let get = |index| {
        let pair = pairs.get(index).unwrap();
        let words = pairs.words(index).unwrap();
        assert_eq!(words.image, None);
        let image = pair.image.clone().expect("every pair here has one");
        assert_eq!(
            Pair {
                image: pair.image.clone(),
                ..words
            },
            pair,
            "the same but for its image"
        );
        assert_eq!((image.width, image.height), (37, 26));
        (pair.key, pair.caption)
    };
    (0..pairs.len()).map(get).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, caption)| ((*key).to_owned(), (*caption).to_owned()))
        .collect()
}

#[test]
fn a_folder_gives_captions_from_files_beside_or_from_its_sub_folders() {
    let images = images();
    let root = folder(&[
        ("b.png", &images[0].1),
        ("b.txt", b"\xef\xbb\xbf  a wave of colour \n"),
        ("golden_retriever/one.JPG", &images[1].1),
        ("golden_retriever/two.webp", &images[2].1),
        ("golden_retriever/two.txt", b"sleeping"),
        ("notes.md", b"not an image"),
    ]);
    let pairs = open(root.path()).unwrap();
    let wanted = [
        ("b.png", "a wave of colour"),
        ("golden_retriever/one.JPG", "golden retriever"),
        ("golden_retriever/two.webp", "sleeping"),
    ];
    assert_eq!(captions(&pairs), owned(&wanted));
    assert_eq!(pairs.opening_skips().skipped(), 0);
}

#[test]
fn a_folder_with_a_list_of_captions_gives_one_pair_a_line() {
    let images = images();
    let list = b"image,caption\nx/a.png, waves, in colour\n\nx/a.png\tan opaque, disc\n";
    let root = folder(&[("x/a.png", &images[0].1), ("captions.txt", list)]);
    let wanted = [
        ("x/a.png", "waves, in colour"),
        ("x/a.png", "an opaque, disc"),
    ];
    assert_eq!(captions(&open(root.path()).unwrap()), owned(&wanted));
}

#[test]
fn lists_of_json_lines_give_captions_texts_and_single_exchanges() {
    let images = images();
    let list = concat!(
        "{\"image\": \"p/a.png\", \"caption\": \"one\"}\n",
        "\n",
        "{\"file_name\": \"./p/b.jpg\", \"text\": \"two\"}\r\n",
        "{\"id\": 7, \"image\": \"p/a.png\", \"conversations\": [",
        "{\"from\": \"human\", \"value\": \"<image>\\nWhat is it?\"}, {\"from\": \"gpt\", \"value\": \"waves\"}]}",
    );
    let root = folder(&[
        ("p/a.png", &images[0].1),
        ("p/b.jpg", &images[1].1),
        ("pairs.jsonl", list.as_bytes()),
        ("metadata.jsonl", list.as_bytes()),
    ]);
    for data in [root.path().join("pairs.jsonl"), root.path().to_owned()] {
        let pairs = open(data).unwrap();
        let wanted = [
            ("p/a.png", "one"),
            ("./p/b.jpg", "two"),
            ("p/a.png", "waves"),
        ];
        assert_eq!(captions(&pairs), owned(&wanted));
        assert_eq!(pairs.get(2).unwrap().prompt.as_deref(), Some("What is it?"));
        assert_eq!(pairs.get(0).unwrap().prompt, None);
    }
}

#[test]
fn shards_give_the_same_pairs_to_every_thread_in_any_order() {
    let images = images();
    let root = tempfile::tempdir().unwrap();
    for shard in 0..3 {
        let mut bytes = Vec::new();
        for (number, (ending, image)) in images.iter().enumerate() {
            let key = format!("{shard}{number}");
            bytes.extend(file(&format!("{key}.{ending}"), image));
            if number == 1 {
                bytes.extend(file(
                    &format!("{key}.json"),
                    format!("{{\"caption\": \"j {key}\"}}").as_bytes(),
                ));
            } else {
                bytes.extend(file(&format!("{key}.json"), b"{\"caption\": \"not this\"}"));
                bytes.extend(file(&format!("{key}.txt"), format!("t {key}").as_bytes()));
            }
        }
        bytes.extend(END);
        fs::write(root.path().join(format!("s-{shard:03}.tar")), bytes).unwrap();
    }
    let pairs = open(root.path().join("s-{000..002}.tar")).unwrap();
    let one_by_one = captions(&pairs);
    assert_eq!(one_by_one.len(), 9);
    assert_eq!(
        one_by_one[3..6],
        owned(&[("10", "t 10"), ("11", "j 11"), ("12", "t 12")])
    );
    for (number, (_, bytes)) in images.iter().enumerate() {
        assert_eq!(
            pairs.get(number).unwrap().image,
            Some(decode(bytes).unwrap())
        );
    }
    (0..200_usize).into_par_iter().for_each(|turn| {
        let index = turn * 5 % 9;
        let pair = pairs.get(index).unwrap();
        assert_eq!(
            (&pair.key, &pair.caption),
            (&one_by_one[index].0, &one_by_one[index].1)
        );
    });
    let text = pairs.get(9).unwrap_err().to_string();
    assert_eq!(text, "pair index: expected less than 9, found 9");
}

#[test]
fn folders_linked_in_a_circle_are_walked_once() {
    let root = folder(&[("cat/a.png", &images()[0].1)]);
    std::os::unix::fs::symlink(root.path(), root.path().join("cat/again")).unwrap();
    assert_eq!(open(root.path()).unwrap().len(), 1);
}

#[test]
fn more_shards_than_a_process_may_open_are_read() {
    let png = &images()[0].1;
    let root = tempfile::tempdir().unwrap();
    for n in 0..300 {
        fs::write(
            root.path().join(format!("{n}.tar")),
            tar(&[("a.png", png), ("a.txt", b"x")]),
        )
        .unwrap();
    }
    let open_files = || fs::read_dir("/proc/self/fd").unwrap().count();
    let pairs = open(root.path().join("{0..299}.tar")).unwrap();
    assert!(open_files() < 256, "{}", open_files());
    assert_eq!(pairs.get(299).unwrap().caption, "x");
}
