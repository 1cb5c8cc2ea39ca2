//! Connectors in whole folders: under InternVL's names and under those of transformers; those of other forms are left aside, and
//! it is said so.

use std::fs;
use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use keel::weights::{Folder, FolderConnector, SubModel};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

use super::starting::language_with_rows;
use super::{hub, values};
use crate::command::{keel, tiny_recipe};

/// A whole folder in transformers' form: the small InternViT and the small Qwen2 with 512 rows, and these further tensors.
fn whole(folder: &Path, further: &[(&str, Vec<usize>)]) -> PathBuf {
    let decoder = folder.join("decoder");
    language_with_rows("qwen2", &decoder, 512);
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |source: &Path, name_of: &dyn Fn(&str) -> String| {
        let bytes = fs::read(source.join("model.safetensors")).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
            tensors.push((name_of(name), view.dtype(), shape, data));
        }
    };
    add(&hub("internvl"), &|name| {
        format!("model.vision_tower.{name}")
    });
    add(&decoder, &|name| match name.strip_prefix("model.") {
        Some(name) => format!("model.language_model.{name}"),
        None => name.to_owned(),
    });
    for (index, (name, shape)) in further.iter().enumerate() {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> = (0..count)
            .map(|i| ((i + 7 * index) % 31) as f32 / 310.0 - 0.05)
            .collect();
        let data = cast_slice::<f32, u8>(&numbers).to_vec();
        tensors.push(((*name).to_owned(), Dtype::F32, shape.clone(), data));
    }
    let text =
        fs::read_to_string("verify/weights/published/internvl-in-transformers.json").unwrap();
    let mut config: Json = serde_json::from_str(&text).unwrap();
    let inner = |folder: &Path| -> Json {
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    config["vision_config"] = inner(&hub("internvl"));
    config["text_config"] = inner(&decoder);
    let out = folder.join("whole");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(out.join("model.safetensors"), bytes).unwrap();
    out
}

/// The projector of LLaVA 1.5 for it.
fn projector() -> Vec<(&'static str, Vec<usize>)> {
    let connector = connector().into_iter().skip(2);
    let mut tensors: Vec<_> = connector.collect();
    tensors[0].1 = vec![32, 32];
    tensors
}

/// A whole folder of LLaVA's form.
fn llava(folder: &Path, further: &[(&str, Vec<usize>)]) -> PathBuf {
    let whole = whole(folder, further);
    set(&whole, "model_type", json!("llava"));
    set(&whole, "vision_feature_layer", json!(-2));
    whole
}

fn set(folder: &Path, key: &str, value: Json) {
    let path = folder.join("config.json");
    let mut config: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

fn connector() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("model.multi_modal_projector.layer_norm.weight", vec![128]),
        ("model.multi_modal_projector.layer_norm.bias", vec![128]),
        ("model.multi_modal_projector.linear_1.weight", vec![32, 128]),
        ("model.multi_modal_projector.linear_1.bias", vec![32]),
        ("model.multi_modal_projector.linear_2.weight", vec![32, 32]),
        ("model.multi_modal_projector.linear_2.bias", vec![32]),
    ]
}

const TRAIN: &str = "train --device cpu --recipe my.toml --no-evaluation --max-steps 1 --vision whole --language whole --out run \
                     --set stage.warm-up.learning_rate=1e-30 --set stage.warm-up.weight_decay=0";

#[test]
fn a_connector_under_the_names_of_transformers_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = whole(path, &connector());
    let source = Folder::open(&whole).unwrap_or_else(|e| panic!("{e}"));
    let FolderConnector::Taken(taken) = SubModel::connector_or_why(&source).unwrap() else {
        panic!("the connector is there");
    };
    let (part, config) = *taken;
    assert_eq!(config.connector.unshuffle_factor, 2);
    let wanted = values(&source, &part);
    let said = keel(path, &["inspect", "whole"]).fine().stdout;
    for words in [
        "Connector (pixel unshuffle",
        "it comes along",
        "4 image tokens",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }

    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let args: Vec<&str> = TRAIN.split_whitespace().collect();
    keel(path, &args).fine();
    let checkpoint = keel::train::newest_checkpoint(&path.join("run")).unwrap();
    let bytes = fs::read(checkpoint.unwrap()).unwrap();
    let saved = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(part.layout().entries().len(), 6);
    for entry in part.layout().entries() {
        let ours = &wanted[entry.offset..entry.offset + entry.spec.shape.numel()];
        assert!(
            saved.tensor(&entry.spec.name).unwrap().data() == cast_slice::<f32, u8>(ours),
            "{}",
            entry.spec.name
        );
    }
}

/// From LLaVA's weights into a run, and out again under its names.
#[test]
fn the_connector_of_llava_comes_along_and_leaves_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = llava(path, &projector());
    let source = Folder::open(&whole).unwrap_or_else(|e| panic!("{e}"));
    let (part, config) = SubModel::connector(&source).unwrap().expect("it is there");
    let settings = &config.connector;
    assert_eq!((settings.unshuffle_factor, settings.select_layer), (1, -2));
    assert!(!settings.norm && part.layout().entries().len() == 4);
    let wanted = values(&source, &part);
    let said = keel(path, &["inspect", "whole"]).fine().stdout;
    for words in ["Connector (two products, LLaVA 1.5)", "16 image tokens"] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let args: Vec<&str> = TRAIN.split_whitespace().collect();
    let room = ["--set", "stage.warm-up.max_tokens=200"];
    keel(path, &[&args[..], &room].concat()).fine();
    let export = ["export", "run", "--out", "out", "--part"];
    keel(path, &[&export[..], &["model"]].concat()).refused(&["LLaVA's form", "--part vision"]);
    keel(
        path,
        &[&export[..], &["model", "--layout", "internvit"]].concat(),
    )
    .refused(&["model.connector.norm"]);
    keel(path, &[&export[..], &["connector"]].concat()).fine();
    let bytes = fs::read(path.join("out/model.safetensors")).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(written.len(), 4);
    for entry in part.layout().entries() {
        let name = entry
            .spec
            .name
            .replace("connector.fc", "multi_modal_projector.linear_");
        let ours = &wanted[entry.offset..entry.offset + entry.spec.shape.numel()];
        let found = written.tensor(&name).unwrap();
        assert!(found.data() == cast_slice::<f32, u8>(ours), "{name}");
    }
    let text = fs::read(path.join("out/config.json")).unwrap();
    let config: Json = serde_json::from_slice(&text).unwrap();
    assert_eq!(
        (&config["model_type"], &config["vision_feature_layer"]),
        (&json!("llava"), &json!(-2))
    );
    // Others name their tensors so, too.
    for (key, value, word) in [
        ("model_type", json!("llava_next"), "another form"),
        (
            "multimodal_projector_bias",
            json!(false),
            "multimodal_projector_bias",
        ),
        (
            "vision_feature_layer",
            json!([-2, -5]),
            "vision_feature_layer",
        ),
    ] {
        let other = tempfile::tempdir().unwrap();
        let whole = llava(other.path(), &projector());
        set(&whole, key, value);
        let found = SubModel::connector_or_why(&Folder::open(&whole).unwrap()).unwrap();
        assert!(
            matches!(&found, FolderConnector::Left(why) if why.contains(word)),
            "{found:?}"
        );
    }
}

#[test]
fn a_connector_that_keel_has_no_code_for_is_left_aside_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = whole(path, &connector());
    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let left = |words: &[&str]| {
        let source = Folder::open(&whole).unwrap_or_else(|e| panic!("{e}"));
        let FolderConnector::Left(why) = SubModel::connector_or_why(&source).unwrap() else {
            panic!("{words:?} is no reason to leave it");
        };
        for word in words {
            assert!(why.contains(word), "no {word:?} in: {why}");
        }
        why
    };
    set(&whole, "vision_feature_layer", json!(1));
    left(&["vision_feature_layer", "counted from the end"]);
    set(&whole, "vision_feature_layer", json!(-99));
    left(&["select_layer", "-99"]);
    set(&whole, "vision_feature_layer", json!(-1));
    set(&whole, "vision_feature_select_strategy", json!("full"));
    left(&["vision_feature_select_strategy", "full"]);
    set(&whole, "vision_feature_select_strategy", json!("default"));
    set(&whole, "projector_hidden_act", json!("relu"));
    let why = left(&["projector_hidden_act", "relu"]);
    // The words of the one are the words of the other.
    let said = keel(path, &["inspect", "whole"]).fine().stdout;
    assert!(
        said.contains("left aside, and training begins with a new one"),
        "{said}"
    );
    let args: Vec<&str> = TRAIN.split_whitespace().collect();
    let trained = keel(path, &args).fine().stdout;
    let named = why.split(": ").last().unwrap();
    assert!(
        said.contains(named) && trained.contains(named),
        "{said}{trained}"
    );
    assert!(
        trained.contains("the folder's connector is left aside"),
        "{trained}"
    );

    // The run's connector has no place in the folder, whose own would stand there untrained.
    let export = ["export", "run", "--out", "out", "--part"];
    keel(path, &[&export[..], &["model"]].concat()).refused(&[
        "whole",
        "another form than this run's",
        "--part vision",
    ]);
    keel(path, &[&export[..], &["connector"]].concat()).fine();

    let other = tempfile::tempdir().unwrap();
    let llava = [("model.multi_modal_projector.linear_1.weight", vec![32, 32])];
    let folder = Folder::open(&self::whole(other.path(), &llava)).unwrap();
    let found = SubModel::connector_or_why(&folder).unwrap();
    assert!(
        matches!(&found, FolderConnector::Left(why) if why.contains("multi_modal_projector.linear_1")),
        "{found:?}"
    );
    // Half a connector is a broken folder.
    let broken = tempfile::tempdir().unwrap();
    let half = Folder::open(&self::whole(broken.path(), &connector()[..5])).unwrap();
    let problem = SubModel::connector_or_why(&half).unwrap_err().to_string();
    assert!(problem.contains("linear_2.bias is missing"), "{problem}");
}
