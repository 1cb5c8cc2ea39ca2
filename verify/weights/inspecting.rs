//! `keel inspect` says what `keel train` would say: of values, images, chats and what pools, and what goes with other image sizes
//! and connectors.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::hub;
use super::starting::language_with_rows;
use crate::command::keel;

/// A copy of a golden folder, its tensor `name` full of `value`.
fn copy(family: &str, folder: &Path, spoilt: Option<(&str, f32)>) {
    fs::create_dir(folder).unwrap();
    fs::copy(hub(family).join("config.json"), folder.join("config.json")).unwrap();
    let bytes = fs::read(hub(family).join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let data = spoilt.map(|(name, value)| {
        let count = all.tensor(name).unwrap().data().len() / 4;
        value.to_le_bytes().repeat(count)
    });
    let views = all.iter().map(|(name, view)| match (&data, spoilt) {
        (Some(data), Some((other, _))) if name == other => {
            let view = TensorView::new(view.dtype(), view.shape().to_vec(), data);
            (name, view.unwrap())
        }
        _ => (name, view),
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn what_train_refuses_inspect_refuses_in_the_same_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let both = |name: &str, words: &[&str]| {
        keel(path, &["inspect", name]).refused(words);
        let train = [
            "train",
            "--device",
            "cpu",
            "--recipe",
            "tiny",
            "--vision",
            name,
            "--max-steps",
            "1",
        ];
        keel(path, &train).refused(words);
    };
    copy(
        "siglip",
        &path.join("nan"),
        Some(("post_layernorm.weight", f32::NAN)),
    );
    both("nan", &["post_layernorm.weight", "NaN"]);
    copy("siglip", &path.join("processor"), None);
    let processor = path.join("processor/preprocessor_config.json");
    fs::write(
        processor,
        json!({"size": {"height": 48, "width": 48}}).to_string(),
    )
    .unwrap();
    both(
        "processor",
        &["preprocessor_config.json: size", "the tower's 32"],
    );
}

#[test]
fn inspect_says_how_images_are_prepared_and_what_goes_with_other_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    copy("siglip", &path.join("tower"), None);
    let mean = [0.5, 0.25, 0.5];
    let processor = json!({"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": mean, "image_std": mean});
    fs::write(
        path.join("tower/preprocessor_config.json"),
        processor.to_string(),
    )
    .unwrap();
    let said = keel(path, &["inspect", "tower"]).fine().stdout;
    for words in [
        "images: both edges to 32 pixels, bilinear; mean [0.5, 0.25, 0.5]",
        "grid of 4 × 4 patches",
        "unshuffle_factor 1, 2, 4",
        "multiple of 8 times the factor",
        "Keel can train it",
        "Pooled output",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    assert!(!said.contains("needs --image-size"), "{said}");
    // An odd grid does not go with the recipes' connector; the sizes that do are named, and are taken.
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(hub("clip").join("config.json")).unwrap()).unwrap();
    config["image_size"] = json!(24);
    fs::create_dir(path.join("odd")).unwrap();
    fs::write(path.join("odd/config.json"), config.to_string()).unwrap();
    let bytes = fs::read(hub("clip").join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let name = all
        .names()
        .into_iter()
        .find(|name| name.ends_with("position_embedding.weight"));
    let name = name.unwrap().to_owned();
    let views = all.iter().map(|(other, view)| {
        if other != name {
            return (other, view);
        }
        // Nine patches and the class token of the seventeen rows.
        let row = view.data().len() / 17;
        let shape = vec![10, view.shape()[1]];
        (
            other,
            TensorView::new(view.dtype(), shape, &view.data()[..10 * row]).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(path.join("odd/model.safetensors"), bytes).unwrap();
    let said = keel(path, &["inspect", "odd"]).fine().stdout;
    assert!(
        said.contains("the recipes' factor of 2 needs --image-size 16 or 32"),
        "{said}"
    );
    let train = |more: &[&str]| {
        let train = [
            "train",
            "--device",
            "cpu",
            "--recipe",
            "tiny",
            "--vision",
            "odd",
            "--dry-run",
        ];
        keel(path, &[&train[..], more].concat())
    };
    train(&[]).refused(&["unshuffle_factor"]);
    train(&["--image-size", "32"]).fine();
    train(&["--set", "model.connector.unshuffle_factor=3"]).fine();
}

#[test]
fn inspect_says_what_becomes_of_chats_heads_and_parts_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let said = |name: &str| keel(path, &["inspect", name]).fine().stdout;
    language_with_rows("qwen2", &path.join("decoder"), 429);
    let golden = Path::new("verify/goldens/chat/tokenizer.json");
    fs::copy(golden, path.join("decoder/tokenizer.json")).unwrap();
    assert!(said("decoder").contains("chats: decoder: says no chat template"));
    let jinja = Path::new("verify/goldens/chat/templates/qwen2.5.jinja");
    fs::copy(jinja, path.join("decoder/chat_template.jinja")).unwrap();
    let words = "chats: 429 ids, and the template qwen2.5, as chat_template.jinja says";
    assert!(said("decoder").contains(words), "{}", said("decoder"));

    // A head that lacks a tensor is in the way of no training.
    copy("siglip", &path.join("headless"), None);
    let file = path.join("headless/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let views = all
        .iter()
        .filter(|(name, _)| *name != "head.attention.in_proj_bias");
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(&file, bytes).unwrap();
    let found = said("headless");
    assert!(found.contains("Keel can train it"), "{found}");
    assert!(
        found.contains("training does without it") && found.contains("in_proj_bias is missing"),
        "{found}"
    );

    // The tower of a model whose decoder Keel does not read.
    copy("clip", &path.join("llava"), None);
    let text = fs::read_to_string("verify/weights/published/llava-1-5-7b-hf.json").unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let inner = fs::read(hub("clip").join("config.json")).unwrap();
    config["vision_config"] = serde_json::from_slice(&inner).unwrap();
    config["text_config"]["model_type"] = "gemma".into();
    fs::write(path.join("llava/config.json"), config.to_string()).unwrap();
    let found = said("llava");
    assert!(
        found.contains("left aside: text_config of model_type gemma"),
        "{found}"
    );
    let train = [
        "train",
        "--device",
        "cpu",
        "--recipe",
        "tiny",
        "--language",
        "llava",
    ];
    keel(path, &train).refused(&[
        "llava: has no language model",
        "text_config of model_type gemma",
    ]);
}
