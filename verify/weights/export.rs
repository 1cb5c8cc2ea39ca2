//! Weights leave as they came: names, types, shapes and bits; and a tower of any family reads back from every layout that can
//! say its settings.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use keel::tape::ParameterEntry;
use keel::train::{ExportOptions, ExportPart, export};
use keel::weights::{
    Folder, SubModel, VisionLayout, language_config, language_tensors, write_tensors,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

use super::starting::language_with_rows;
use super::{hub, values};
use crate::command::{keel, tiny_recipe};

const AS_IT_CAME: ExportOptions = ExportOptions {
    part: ExportPart::Vision,
    layout: None,
    dtype: None,
    shard_bytes: u64::MAX,
    averages: false,
    lora: None,
};

/// All tensors of a folder: type, shape, bytes.
fn tensors(folder: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.contains("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            assert!(
                all.insert(name.to_owned(), tensor).is_none(),
                "{name} twice"
            );
        }
    }
    all
}

fn config(folder: &Path) -> Json {
    let file = ["config.json", "open_clip_config.json"].map(|name| folder.join(name));
    let file = file.iter().find(|path| path.exists());
    serde_json::from_slice(&fs::read(file.expect("settings")).unwrap()).unwrap()
}

/// Tensors of one folder are those of the other, bit for bit.
fn hold_same(one: &Path, other: &Path) {
    let (one, other) = (tensors(one), tensors(other));
    assert!(one.keys().eq(other.keys()), "{:?}", other.keys());
    for (name, tensor) in &one {
        assert!(tensor == &other[name], "{name} is another");
    }
}

/// Parameters are the same numbers; what lies between them is nobody's.
pub(super) fn hold_values(part: &SubModel, one: &[f32], other: &[f32]) {
    for entry in part.layout().entries() {
        let range = entry.offset..entry.offset + entry.spec.shape.numel();
        assert!(one[range.clone()] == other[range], "{}", entry.spec.name);
    }
}

/// A run whose one step trains the connector alone.
fn run_from(folder: &Path, name: &str, further: &[&str]) -> PathBuf {
    fs::write(folder.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let mut args = "train --device cpu --recipe my.toml --no-evaluation --max-steps 1"
        .split(' ')
        .collect::<Vec<_>>();
    args.extend(["--out", name]);
    args.extend(further);
    keel(folder, &args).fine();
    folder.join(name)
}

#[test]
fn towers_of_every_family_leave_with_the_bits_they_came_with() {
    let folder = tempfile::tempdir().unwrap();
    for family in [
        "aimv2",
        "sailvit",
        "clip",
        "siglip",
        "siglip2-naflex",
        "internvit",
        "internvit-6b",
        "internvl",
        "internvl-6b",
        "dinov2",
        "dinov2-giant",
        "dinov2-registers",
        "dinov3",
        "dinov3-gated",
        "deit",
        "vit",
        "vit-mae",
        "ijepa",
        "metaclip2",
        "timm-vit",
        "timm-dinov2-registers",
        "timm-dinov3",
        "timm-clip",
        "timm-siglip",
        "open-clip",
    ] {
        let source = hub(family);
        let run = run_from(
            folder.path(),
            family,
            &["--vision", &source.to_string_lossy()],
        );
        let out = folder.path().join(format!("{family}-out"));
        export(&run, &out, &AS_IT_CAME).unwrap_or_else(|e| panic!("{family}: {e}"));
        hold_same(&source, &out);
        assert_eq!(config(&source), config(&out), "{family}");
        let processor: Json =
            serde_json::from_slice(&fs::read(out.join("preprocessor_config.json")).unwrap())
                .unwrap();
        assert_eq!(processor["crop_size"]["height"], 32);
    }
}

#[test]
fn images_are_prepared_as_the_towers_folder_says_and_the_export_says_so_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let tower = path.join("tower");
    fs::create_dir(&tower).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(hub("clip").join(name), tower.join(name)).unwrap();
    }
    let processor = |text: &str| fs::write(tower.join("preprocessor_config.json"), text).unwrap();
    let mean = "0.48145466, 0.4578275, 0.40821073";
    let deviation = "0.26862954, 0.26130258, 0.27577711";
    processor(&format!(
        "{{\"image_mean\": [{mean}], \"image_std\": [{deviation}]}}"
    ));
    let run = run_from(path, "run", &["--vision", "tower"]);
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(
        recipe.contains("0.4814546") && recipe.contains("0.2757771"),
        "{recipe}"
    );
    export(&run, &path.join("out"), &AS_IT_CAME).unwrap();
    let out = fs::read_to_string(path.join("out/preprocessor_config.json")).unwrap();
    let out: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(out["image_mean"][1].as_f64().unwrap() as f32, 0.4578275f32);
    assert_eq!(out["image_std"][2].as_f64().unwrap() as f32, 0.27577711f32);
    // The same run on other numbers: the first loss is another.
    fs::remove_file(tower.join("preprocessor_config.json")).unwrap();
    let other = run_from(path, "other", &["--vision", "tower"]);
    let loss = |run: &Path| {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let mut rows = text
            .lines()
            .map(|line| serde_json::from_str::<Json>(line).unwrap());
        rows.find_map(|row| row["loss"].as_f64()).unwrap()
    };
    assert_ne!(loss(&run), loss(&other));
    for (text, wanted) in [
        (
            "{\"image_mean\": [0.5, 0.5], \"image_std\": [1, 1, 1]}",
            "image_mean: expected three numbers",
        ),
        (
            "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 0, 1]}",
            "image_std: expected three numbers above 0",
        ),
        ("{\"rescale_factor\": 1}", "rescale_factor: expected 1/255"),
        ("[", "is not a JSON object"),
    ] {
        processor(text);
        let train = [
            "train", "--recipe", "tiny", "--device", "cpu", "--vision", "tower",
        ];
        keel(path, &train).refused(&["preprocessor_config.json", wanted]);
    }
}

#[test]
fn pixels_that_are_applied_and_undone_are_the_same() {
    let pixels = keel::data::pixels::Pixels {
        mean: [0.48, 0.45, 0.4],
        std: [0.27, 0.26, 0.28],
        ..Default::default()
    };
    let first: Vec<f32> = (0..12).map(|i| i as f32 / 5.5 - 1.0).collect();
    let mut image = first.clone();
    pixels.apply(&mut image);
    // Green, the first value: (v / 2 + 0.5 − 0.45) / 0.26.
    assert!((image[4] - (first[4] * 0.5 + 0.05) / 0.26).abs() < 1e-6);
    pixels.undo(&mut image);
    assert!(image.iter().zip(&first).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn language_models_leave_with_the_bits_they_came_with_and_their_tokeniser() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let options = ExportOptions {
        part: ExportPart::Language,
        ..AS_IT_CAME
    };
    // Tied, with the embedded tokeniser; untied, with one of its own and room for the tokens of images.
    for (family, rows) in [
        ("qwen2", 512),
        ("qwen3", 429),
        ("llama", 512),
        ("phi3", 512),
    ] {
        let source = path.join(family);
        language_with_rows(family, &source, rows);
        let tokenizer =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("verify/goldens/chat/tokenizer.json");
        if family == "qwen3" {
            fs::copy(tokenizer, source.join("tokenizer.json")).unwrap();
            fs::write(source.join("generation_config.json"), "{}").unwrap();
            let template = keel::data::chat::ChatTemplate::Qwen3.to_jinja();
            fs::write(source.join("chat_template.jinja"), template).unwrap();
        }
        let run = run_from(path, &format!("{family}-run"), &["--language", family]);
        let out = path.join(format!("{family}-out"));
        let written = export(&run, &out, &options).unwrap_or_else(|e| panic!("{family}: {e}"));
        assert_eq!(config(&source), config(&out), "{family}");
        assert_eq!(written.lacks_tokenizer, family != "qwen3");
        if family != "qwen3" {
            hold_same(&source, &out);
            continue;
        }
        // Rows of tokens that the file lacks were made anew; all others are as they came.
        let (ours, theirs) = (tensors(&out), tensors(&source));
        for (name, (dtype, shape, bytes)) in &theirs {
            let known = match name.as_str() {
                "model.embed_tokens.weight" | "lm_head.weight" => bytes.len() / 429 * 426,
                _ => bytes.len(),
            };
            assert_eq!((dtype, shape), (&ours[name].0, &ours[name].1));
            assert!(bytes[..known] == ours[name].2[..known], "{name}");
        }
        let text = fs::read_to_string(out.join("tokenizer.json")).unwrap();
        assert!(text.contains("<IMG_CONTEXT>") && out.join("generation_config.json").exists());
        // Room for images was there; where it is not, the tables grow and the settings say so.
        let short = path.join("short");
        language_with_rows(family, &short, 426);
        for name in ["tokenizer.json", "chat_template.jinja"] {
            fs::copy(source.join(name), short.join(name)).unwrap();
        }
        let run = run_from(path, "short-run", &["--language", "short"]);
        export(&run, &path.join("short-out"), &options).unwrap();
        assert_eq!(config(&path.join("short-out"))["vocab_size"], 429);
        let again = run_from(path, "again-run", &["--language", "short-out"]);
        export(&again, &path.join("again-out"), &options).unwrap();
        hold_same(&path.join("short-out"), &path.join("again-out"));
    }
}

#[test]
fn every_layout_that_can_say_a_towers_settings_reads_back_as_the_tower() {
    let mut held = BTreeMap::new();
    for family in [
        "aimv2",
        "clip",
        "siglip",
        "internvl",
        "internvl-6b",
        "internvit",
        "internvit-6b",
        "dinov2",
        "dinov2-giant",
        "dinov2-registers",
        "dinov3",
        "dinov3-gated",
        "deit",
        "vit",
        "vit-mae",
        "ijepa",
        "timm-vit",
        "timm-dinov3",
        "timm-clip",
        "timm-siglip",
        "open-clip",
    ] {
        let source = Folder::open(&hub(family)).unwrap();
        let (part, config) = SubModel::vision(&source).unwrap();
        let numbers = values(&source, &part);
        let value_of = |entry: &ParameterEntry| {
            &numbers[entry.offset..entry.offset + entry.spec.shape.numel()]
        };
        for layout in VisionLayout::all() {
            let name = layout.name();
            let Ok(json) = layout.config(&config) else {
                continue;
            };
            let folder = tempfile::tempdir().unwrap();
            fs::write(
                folder.path().join("config.json"),
                Json::Object(json).to_string(),
            )
            .unwrap();
            let written = layout.tensors(&config, part.layout(), "", Dtype::F32, &value_of);
            // Small files, so that there are several.
            let files =
                write_tensors(folder.path(), "model.safetensors", &written, 20_000).unwrap();
            assert!(files > 1);
            let again = Folder::open(folder.path()).unwrap();
            let (found, settings) =
                SubModel::vision(&again).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(settings, config, "{family} as {name}");
            hold_values(&found, &values(&again, &found), &numbers);
            held.entry(family).or_insert_with(Vec::new).push(name);
        }
    }
    let layouts = |family: &str| held[family].join(" ");
    assert_eq!(layouts("aimv2"), "aimv2 sailvit");
    assert_eq!(layouts("clip"), "clip");
    // Without a class token, one says the other.
    assert_eq!(layouts("siglip"), "siglip ijepa");
    assert_eq!(layouts("internvl"), "internvit");
    assert_eq!(layouts("internvit"), "internvit");
    assert_eq!(layouts("dinov2"), "dinov2 dinov2-registers internvit");
    assert_eq!(layouts("dinov2-giant"), "dinov2 dinov2-registers");
    assert_eq!(layouts("dinov2-registers"), "dinov2-registers");
    assert_eq!(layouts("dinov3"), "dinov3");
    assert_eq!(layouts("dinov3-gated"), "dinov3");
    assert_eq!(layouts("deit"), "deit");
    // Which is how a tower of timm or open_clip becomes one that transformers loads.
    assert_eq!(layouts("timm-vit"), "vit vit-mae");
    assert_eq!(layouts("timm-dinov3"), "dinov3");
    assert_eq!(layouts("timm-clip"), "clip");
    assert_eq!(layouts("timm-siglip"), "siglip ijepa");
    assert_eq!(layouts("open-clip"), "clip");
    assert_eq!(layouts("vit"), "vit vit-mae");
    assert_eq!(layouts("vit-mae"), "vit vit-mae");
    assert_eq!(layouts("ijepa"), "siglip ijepa");
}

/// transformers takes whole ratios alone since version 5; a tower between them has the layout of another family.
#[test]
fn the_feed_forward_ratio_of_the_dinov2_layout_is_a_whole_number() {
    let dinov2 = VisionLayout::all();
    let dinov2 = dinov2
        .iter()
        .find(|layout| layout.name() == "dinov2")
        .unwrap();
    for (family, ratio) in [("dinov2", 2), ("dinov2-giant", 2)] {
        let (_, config) = SubModel::vision(&Folder::open(&hub(family)).unwrap()).unwrap();
        let written = dinov2.config(&config).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(written["mlp_ratio"], Json::from(ratio), "{family}");
        let wider = keel::model::VisionConfig {
            mlp_width: config.mlp_width + 8,
            ..config
        };
        let problem = dinov2.config(&wider).unwrap_err().to_string();
        assert!(problem.contains("model.vision.mlp_width"), "{problem}");
    }
}

#[test]
fn decoders_read_back_from_their_own_layout() {
    for family in ["qwen2", "qwen3", "llama", "mistral"] {
        let source = Folder::open(&hub(family)).unwrap();
        let (part, config) = SubModel::language(&source).unwrap();
        let numbers = values(&source, &part);
        let value_of = |entry: &ParameterEntry| {
            &numbers[entry.offset..entry.offset + entry.spec.shape.numel()]
        };
        let folder = tempfile::tempdir().unwrap();
        let json = language_config(&config).unwrap();
        fs::write(
            folder.path().join("config.json"),
            Json::Object(json).to_string(),
        )
        .unwrap();
        let written = language_tensors(&config, part.layout(), "", Dtype::F32, &value_of);
        let written = written.unwrap_or_else(|e| panic!("{e}"));
        write_tensors(folder.path(), "model.safetensors", &written, u64::MAX).unwrap();
        let again = Folder::open(folder.path()).unwrap();
        let (found, settings) = SubModel::language(&again).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(settings, config);
        hold_values(&found, &values(&again, &found), &numbers);
    }
}

#[test]
fn a_whole_model_leaves_as_one_folder_and_comes_back_with_its_connector() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    language_with_rows("qwen2", &path.join("decoder"), 512);
    let vision = hub("aimv2").to_string_lossy().into_owned();
    let run = run_from(path, "run", &["--vision", &vision, "--language", "decoder"]);
    let export_whole = ["export", "run", "--out", "whole", "--part", "model"];
    let said = keel(path, &export_whole).fine().stdout;
    assert!(said.contains("whole: internvl_chat, "), "{said}");
    assert!(said.contains("embedded tokenizer"), "{said}");
    let source = Folder::open(&path.join("whole")).unwrap();
    assert_eq!(SubModel::all(&source).unwrap().len(), 2);
    let (part, settings) = SubModel::connector(&source)
        .unwrap()
        .expect("mlp1 is there");
    assert_eq!(settings.connector.unshuffle_factor, 2);
    assert!(
        keel(path, &["inspect", "whole"])
            .fine()
            .stdout
            .contains("Connector")
    );

    // The connector of the checkpoint is the one that the folder gives to the next run.
    let checkpoint = keel::train::newest_checkpoint(&run).unwrap().unwrap();
    let bytes = fs::read(checkpoint).unwrap();
    let saved = SafeTensors::deserialize(&bytes).unwrap();
    let connector = values(&source, &part);
    for entry in part.layout().entries() {
        let ours = &connector[entry.offset..entry.offset + entry.spec.shape.numel()];
        assert!(
            saved.tensor(&entry.spec.name).unwrap().data() == cast_slice::<f32, u8>(ours),
            "{}",
            entry.spec.name
        );
    }
    let next = run_from(
        path,
        "next",
        &[
            "--vision",
            "whole",
            "--language",
            "whole",
            "--set",
            "stage.warm-up.learning_rate=1e-30",
            "--set",
            "stage.warm-up.weight_decay=0",
        ],
    );
    let options = ExportOptions {
        part: ExportPart::Model,
        ..AS_IT_CAME
    };
    export(&next, &path.join("whole-again"), &options).unwrap();
    hold_same(&path.join("whole"), &path.join("whole-again"));
    assert_eq!(
        config(&path.join("whole")),
        config(&path.join("whole-again"))
    );
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    run_from(path, "run", &[]);
    let refused = |further: &[&str], texts: &[&str]| {
        let args = [&["export", "run", "--out", "out"], further].concat();
        keel(path, &args).refused(texts);
        assert!(!path.join("out").exists() && !path.join("out.part").exists());
    };
    refused(
        &["--layout", "clip"],
        &["the layout clip", "hidden_act", "found silu"],
    );
    refused(
        &["--layout", "dinov2"],
        &["model.vision.", "the layout dinov2 can say"],
    );
    fs::create_dir(path.join("there")).unwrap();
    fs::write(path.join("there/notes.txt"), "mine").unwrap();
    keel(path, &["export", "run", "--out", "there"]).refused(&["--out there", "notes.txt"]);
    keel(path, &["export", "none", "--out", "out"]).refused(&["run none", "nothing there"]);
    let answer = keel(path, &["export", "run", "--out", "out", "--layout", "swin"]).code_is(2);
    assert!(
        answer.stderr.contains("expected one of aimv2"),
        "{answer:#?}"
    );
    // A folder that an export left which was killed is no obstacle.
    fs::create_dir(path.join("out.part")).unwrap();
    for name in [".keel-export", "model.safetensors"] {
        fs::write(path.join("out.part").join(name), "half").unwrap();
    }
    let said = keel(path, &["export", "run", "--out", "out", "--dtype", "bf16"])
        .fine()
        .stdout;
    assert!(said.starts_with("out: aimv2_vision_model, "), "{said}");
    assert!(
        tensors(&path.join("out"))
            .values()
            .all(|(dtype, ..)| *dtype == Dtype::BF16)
    );
    assert_eq!(config(&path.join("out"))["torch_dtype"], "bfloat16");
    keel(path, &["inspect", "out"]).fine();
}
