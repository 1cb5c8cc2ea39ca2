//! `keel features`: what a tower makes of image files, as an array of numpy's form.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::command::{keel, shared_folder, tiny_recipe};
use crate::data_pairs::images;

/// A folder with the tower of a short run, and image files beside it.
fn place() -> &'static (PathBuf, Vec<String>) {
    static PLACE: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();
    PLACE.get_or_init(|| {
        let folder = shared_folder();
        fs::write(folder.join("one.toml"), tiny_recipe(&["world-knowledge"])).unwrap();
        let args = "train --device cpu --recipe one.toml --max-steps 1 --no-evaluation --out run";
        keel(&folder, &args.split(' ').collect::<Vec<_>>()).fine();
        keel(&folder, &["export", "run", "--out", "tower"]).fine();
        let write = |(number, (kind, bytes)): (usize, (&str, Vec<u8>))| {
            let name = format!("{number}.{kind}");
            fs::write(folder.join(&name), bytes).unwrap();
            name
        };
        let names = images().into_iter().enumerate().map(write).collect();
        (folder, names)
    })
}

/// The shape and the numbers of an array.
fn array(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"));
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!((10 + length).is_multiple_of(64));
    let head = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    let shape = head.strip_prefix("{'descr': '<f4', 'fortran_order': False, 'shape': (");
    let (shape, rest) = shape.unwrap().split_once("), }").unwrap();
    assert!(rest.ends_with('\n') && rest.trim().is_empty());
    let sizes = shape.split(", ").map(|size| size.parse().unwrap());
    let numbers = bytes[10 + length..].chunks_exact(4);
    let numbers = numbers.map(|number| f32::from_le_bytes(number.try_into().unwrap()));
    (sizes.collect(), numbers.collect())
}

/// What `keel features` writes of `files`.
fn features(out: &str, files: &[&str], more: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let (folder, _) = place();
    let args = ["features", "tower", "--device", "cpu", "--out", out];
    keel(folder, &[&args[..], files, more].concat()).fine();
    array(&folder.join(out))
}

#[test]
fn features_of_files_are_rows_in_their_order_and_the_mean_is_that_of_the_tokens() {
    let (folder, names) = place();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (shape, means) = features("means.npy", &names, &[]);
    let &[count, width] = &shape[..] else {
        panic!("{shape:?}")
    };
    assert_eq!((count, count * width), (names.len(), means.len()));
    let (shape, tokens) = features("tokens.npy", &names, &["--form", "tokens"]);
    let &[_, patches, _] = &shape[..] else {
        panic!("{shape:?}")
    };
    assert_eq!(shape, [count, patches, width]);
    for (image, mean) in tokens.chunks(patches * width).zip(means.chunks(width)) {
        for (channel, mean) in mean.iter().enumerate() {
            let values = image.iter().skip(channel).step_by(width);
            let sum: f64 = values.map(|x| f64::from(*x)).sum();
            assert_eq!((sum / patches as f64) as f32, *mean);
        }
    }
    // More than a batch, from a list, in another order.
    let turned: Vec<&str> = names.iter().rev().copied().cycle().take(40).collect();
    fs::write(folder.join("list.txt"), turned.join("\n")).unwrap();
    let (shape, rows) = features("turned.npy", &[], &["--list", "list.txt"]);
    assert_eq!(shape, [40, width]);
    for (name, row) in turned.iter().zip(rows.chunks(width)) {
        let at = names.iter().position(|known| known == name).unwrap();
        assert_eq!(row, &means[at * width..][..width], "{name}");
    }
}

#[test]
fn features_refuse_what_is_no_image_and_leave_no_half_array() {
    let (folder, names) = place();
    fs::write(folder.join("broken.png"), b"no image").unwrap();
    let run = |files: &[&str], more: &[&str]| {
        let args = ["features", "tower", "--device", "cpu", "--out", "new.npy"];
        let answer = keel(folder, &[&args[..], files, more].concat());
        assert!(!folder.join("new.npy").exists());
        answer
    };
    run(&[&names[0], "broken.png"], &[]).refused(&["broken.png"]);
    run(&[&names[0], "missing.png"], &[]).refused(&["missing.png"]);
    run(&[], &[]).refused(&["images", "at least one file"]);
    run(&[&names[0]], &["--form", "pooled"]).refused(&["features", "does not pool"]);
    run(&[&names[0]], &["--list", "missing.txt"]).refused(&["missing.txt"]);
    // A file that is there is kept.
    fs::write(folder.join("kept.npy"), b"kept").unwrap();
    let args = ["features", "tower", &names[0], "--out", "kept.npy"];
    keel(folder, &args).refused(&["--out", "kept.npy"]);
    assert_eq!(fs::read(folder.join("kept.npy")).unwrap(), b"kept");
}
