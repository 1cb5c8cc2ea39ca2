//! The card of an exported folder: what was trained on what, what was measured, licences, how to load it; and nothing in the folder
//! that a hub would not take.

use std::fs;
use std::path::Path;

use super::hub;
use crate::command::{keel, tiny_recipe};

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A copy of the small CLIP tower with a card and licences beside it.
fn tower(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(hub("clip").join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("LICENSE"), "Do as you like.\n").unwrap();
    fs::write(
        folder.join("README.md"),
        "---\nlicense: mit\n---\n# Tower\n",
    )
    .unwrap();
    // No licence, and not followed.
    std::os::unix::fs::symlink("/etc/hostname", folder.join("NOTICE")).unwrap();
}

#[test]
fn an_export_has_a_card_that_says_what_it_was_made_of_and_how_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(
        path.join("my.toml"),
        tiny_recipe(&["warm-up", "fine-grained"]),
    )
    .unwrap();
    tower(&path.join("clip-tower"));
    let pictures = path.join("pictures");
    fs::create_dir(&pictures).unwrap();
    for name in ["a", "b"] {
        fs::copy(
            "verify/goldens/chat/fox.png",
            pictures.join(format!("{name}.png")),
        )
        .unwrap();
        fs::write(pictures.join(format!("{name}.txt")), format!("fox {name}")).unwrap();
    }
    let train = "train --device cpu --recipe my.toml --max-steps 1 --vision clip-tower --data pictures --out run \
                 --set stage.warm-up.data.samples=1 --evaluation-images 4";
    keel(path, &train.split_whitespace().collect::<Vec<_>>()).fine();
    let export = |more: &[&str], out: &str| {
        let args = ["export", "run", "--out", out];
        keel(path, &[&args[..], more].concat()).fine();
        fs::read_to_string(path.join(out).join("README.md")).unwrap()
    };
    let card = export(&[], "refined");
    let wanted = [
        "LICENSE",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ];
    assert_eq!(files(&path.join("refined")), wanted);
    for words in [
        "---\npipeline_tag: image-feature-extraction\nlibrary_name: transformers\nlicense: mit\ntags:\n- keel\n---\n\n# refined\n",
        "A vision tower of 2 blocks of width 32 for images of 32 pixels in patches of 8",
        "the checkpoint `2-fine-grained` of a run of the recipe `tiny`",
        "It began from `clip-tower` (seed 1).",
        "| warm-up | connector, align | 1 of 8 | 2e-3 | ocr 0.3, samples 1, short_captions 0.7 |",
        "| fine-grained | vision, connector, align | 1 of 8 |",
        "`samples` are 2 usable samples of `pictures`.",
        "Computed on `cpu` in f32.",
        "After stage `fine-grained`",
        "| noto, held-out | 4 |",
        "- `clip-tower`: its card says `mit`.",
        "- The data `pictures`: Keel does not know their licence",
        "Noto Emoji under Apache-2.0",
        "Copied from where they came from: `LICENSE`.",
        "model = CLIPVisionModel.from_pretrained(\"FOLDER\")",
    ] {
        assert!(card.contains(words), "no {words:?} in: {card}");
    }

    // Of the whole model nothing is known by transformers, and its decoder began from nothing.
    let card = export(&["--part", "model"], "whole");
    assert!(card.contains("pipeline_tag: image-text-to-text"), "{card}");
    assert!(!card.contains("library_name"), "{card}");
    assert!(card.contains("The folder has InternVL's form"), "{card}");
    let card = export(&["--part", "language"], "words");
    assert!(
        card.contains("It began from random values (seed 1)."),
        "{card}"
    );
    assert!(card.contains("AutoTokenizer"), "{card}");

    // A checkpoint away from its run has no numbers beside it; a name says no more than a name.
    let checkpoint = path.join("run/checkpoints/1-warm-up.safetensors");
    fs::copy(checkpoint, path.join("alone.safetensors")).unwrap();
    let args = ["export", "alone.safetensors", "--out", "a`b|<c>"];
    keel(path, &args).fine();
    let card = fs::read_to_string(path.join("a`b|<c>/README.md")).unwrap();
    assert!(card.contains("\n# abc\n"), "{card}");
    assert!(
        card.contains("Nothing was kept beside the checkpoint."),
        "{card}"
    );
    assert!(!card.contains("| fine-grained"), "{card}");
}
