//! Towers at another image size: positions scaled as transformers scales them, on every family that it scales; a run at
//! such a size, and its tower exported, are the same tower.

use std::fs;
use std::path::Path;

use keel::executor::{Executor, ReferenceExecutor};
use keel::model::vision_tower;
use keel::program::{CompileOptions, Program};
use keel::tape::{Tape, Target};
use keel::tensor::TensorType;
use keel::train::{ExportOptions, ExportPart, export};
use keel::weights::{Folder, SubModel, SubModelConfig};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use super::export::hold_values;
use super::{hub, values};
use crate::command::{keel, tiny_recipe};
use crate::harness::Golden;

/// What transformers computes in f64 with positions scaled in f32 and norms that round to f32, two blocks deep.
const TOLERANCE: f64 = 2e-5;

fn tower(family: &str, side: usize) -> (Folder, SubModel) {
    let folder = Folder::open(&hub(family)).unwrap_or_else(|e| panic!("{e}"));
    let part = SubModel::vision(&folder)
        .unwrap_or_else(|e| panic!("{e}"))
        .0;
    let part = part.at_size(side).unwrap_or_else(|e| panic!("{e}"));
    (folder, part)
}

/// The tower's last value for the images, with these parameters.
fn last(part: &SubModel, parameters: &[f32], golden: &Golden) -> Vec<f64> {
    let SubModelConfig::Vision(config) = part.config() else {
        panic!("a vision tower stays one");
    };
    let mut tape = Tape::new(part.layout().clone(), |_| false);
    let images = tape.input("images", TensorType::f32(golden.shape("input.images")));
    let y = vision_tower(&mut tape, config, images).expect("a tower records");
    tape.output(y, "last");
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference));
    let executor = ReferenceExecutor::new(part.layout().elements());
    executor.write_parameters(0, parameters).unwrap();
    let program = program.expect("a tiny model fits");
    let mut session = executor.load(program.into()).expect("a tiny model fits");
    let images = golden.floats("input.images");
    session.write_f64("images", images).expect("it fits");
    session.run().expect("the model runs");
    session.read_f64("last").expect("an output")
}

#[test]
fn positions_are_scaled_as_transformers_scales_them() {
    for family in [
        "clip",
        "siglip",
        "siglip2-naflex",
        "internvl",
        "dinov2",
        "dinov2-giant",
        "dinov2-registers",
        "dinov3",
        "deit",
        "metaclip2",
        "timm-vit",
        "timm-dinov2-registers",
        "timm-dinov3",
        "timm-siglip",
        "open-clip",
        "vit",
        "vit-mae",
        "ijepa",
    ] {
        let cases = Golden::open(&format!("hub/{family}/resized")).cases();
        assert_eq!(cases.len(), 3, "{family}");
        for case in cases {
            let side = case.name.rsplit('/').next().unwrap().parse().unwrap();
            let (folder, part) = tower(family, side);
            let parameters = values(&folder, &part);
            let want = case.floats("value.last");
            let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let worst = |got: &[f64]| {
                let differences = want.iter().zip(got).map(|(a, b)| (a - b).abs());
                differences.fold(0.0, f64::max) / largest
            };
            let got = last(&part, &parameters, &case);
            assert_eq!(got.len(), want.len());
            assert!(
                worst(&got) < TOLERANCE,
                "{family} at {side}: {}",
                worst(&got)
            );
            // Another way of scaling would be seen: rows moved by one are far off.
            let Some(entry) = part.layout().get("vision.position") else {
                continue;
            };
            let range = entry.offset..entry.offset + entry.spec.shape.numel();
            let mut moved = parameters.clone();
            moved[range].rotate_right(32);
            assert!(
                worst(&last(&part, &moved, &case)) > 1000.0 * TOLERANCE,
                "{family}"
            );
        }
    }
}

#[test]
fn a_tower_at_its_own_size_or_back_at_it_is_the_folders() {
    let (folder, part) = tower("clip", 32);
    let own = values(&folder, &part);
    let part = part.at_size(48).unwrap().at_size(32).unwrap();
    hold_values(&part, &own, &values(&folder, &part));
    let (_, part) = tower("clip", 32);
    let error = part.at_size(33).unwrap_err().to_string();
    assert!(
        error.contains("--image-size") && error.contains("multiple of the tower's patch, 8"),
        "{error}"
    );
}

#[test]
fn a_run_at_another_size_leaves_as_a_tower_of_that_size() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    for family in [
        "clip",
        "internvl",
        "siglip2-naflex",
        "sailvit",
        "dinov3",
        "deit",
        "timm-vit",
        "open-clip",
    ] {
        let source = hub(family).display().to_string();
        let args = "train --device cpu --recipe my.toml --no-evaluation --max-steps 1 --image-size 48 --vision";
        let mut args: Vec<&str> = args.split(' ').collect();
        args.extend([&source[..], "--out", family]);
        keel(folder.path(), &args).fine();
        let run = folder.path().join(family);
        let out = folder.path().join(format!("{family}-out"));
        let options = ExportOptions {
            part: ExportPart::Vision,
            layout: None,
            dtype: Some(safetensors::Dtype::F32),
            shard_bytes: u64::MAX,
            averages: false,
            lora: None,
        };
        export(&run, &out, &options).unwrap_or_else(|e| panic!("{family}: {e}"));
        // The connector alone was trained, so the tower is what the folder gives at that size.
        let (own, part) = tower(family, 48);
        let exported = Folder::open(&out).unwrap_or_else(|e| panic!("{e}"));
        let again = SubModel::vision(&exported)
            .unwrap_or_else(|e| panic!("{family}: {e}"))
            .0;
        assert_eq!(again.config(), part.config(), "{family}");
        hold_values(&part, &values(&own, &part), &values(&exported, &again));
        let text = fs::read(out.join("preprocessor_config.json")).unwrap();
        let processor: Json = serde_json::from_slice(&text).unwrap();
        assert_eq!(processor["crop_size"]["height"], 48, "{family}");
        let answer = keel(
            folder.path(),
            &[
                "train",
                "--device",
                "cpu",
                "--resume",
                family,
                "--max-steps",
                "1",
            ],
        );
        answer.fine();
    }
    let source = hub("clip").display().to_string();
    let args = [
        "train",
        "--recipe",
        "my.toml",
        "--vision",
        &source,
        "--image-size",
        "50",
    ];
    keel(folder.path(), &args).refused(&[
        "--image-size",
        "a multiple of the tower's patch, 8",
        "50",
    ]);
}

/// The small DINOv2 tower as its conversion lays published ones out: positions of a grid of 37, whose size is not that of its
/// processor. 296, 36 and 32 pixels in patches of 8 stand for 518, 256 and 224 in patches of 14.
fn dinov2_as_published(folder: &Path, crop: usize) {
    const ROWS: usize = 1 + 37 * 37;
    fs::create_dir(folder).unwrap();
    let text = fs::read(hub("dinov2").join("config.json")).unwrap();
    let mut config: Json = serde_json::from_slice(&text).unwrap();
    config["image_size"] = json!(296);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let processor = json!({
        "image_processor_type": "BitImageProcessor", "do_center_crop": true, "crop_size": {"height": crop, "width": crop},
        "do_resize": true, "size": {"shortest_edge": 36}, "resample": 3, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]
    });
    fs::write(
        folder.join("preprocessor_config.json"),
        processor.to_string(),
    )
    .unwrap();
    let bytes = fs::read(hub("dinov2").join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let name = "embeddings.position_embeddings";
    let table = all.tensor(name).unwrap();
    let (rows, width) = (table.shape()[1], table.shape()[2]);
    let row = table.data().len() / rows;
    let table_of_37: Vec<u8> = table
        .data()
        .iter()
        .cycle()
        .take(ROWS * row)
        .copied()
        .collect();
    let views = all.iter().map(|(other, view)| {
        if other != name {
            return (other, view);
        }
        let view = TensorView::new(view.dtype(), vec![1, ROWS, width], &table_of_37);
        (other, view.unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn a_dinov2_folder_as_published_is_trained_at_the_size_that_its_processor_makes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    dinov2_as_published(&path.join("tower"), 32);
    let said = keel(path, &["inspect", "tower"]).fine().stdout;
    for words in [
        "296 × 296 pixels in patches of 8: 1370 tokens",
        "shorter edge to 36 pixels, the middle 32 cut out, bicubic",
        "trained at those 32 pixels, its positions interpolated; --image-size 296 trains at their own",
        "grid of 4 × 4 patches: goes with model.connector.unshuffle_factor 1, 2, 4",
        "Keel can train it",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    let train = |more: &[&str]| {
        let train = [
            "train", "--device", "cpu", "--recipe", "my.toml", "--vision", "tower",
        ];
        keel(path, &[&train[..], more].concat())
    };
    let said = train(&["--dry-run"]).fine().stdout;
    for words in [
        "images are of 32 pixels, as preprocessor_config.json of tower prepares them",
        "image_size = 32",
        "crop_from = 36",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    // At other sizes as much is cut away.
    let said = train(&["--dry-run", "--image-size", "48"]).fine().stdout;
    assert!(said.contains("crop_from = 54"), "{said}");
    // The positions' own grid is odd: which factors and which sizes go is said, and both are taken.
    train(&["--dry-run", "--image-size", "296"]).refused(&[
        "model.connector.unshuffle_factor",
        "37 (1 or 37), or images of 288 or 304 pixels",
    ]);
    let room = ["--dry-run", "--set", "stage.warm-up.max_tokens=400"];
    train(&[&room[..], &["--image-size", "304"]].concat()).fine();
    let factor = "model.connector.unshuffle_factor=37";
    train(&[&room[..], &["--image-size", "296", "--set", factor]].concat()).fine();

    // A tower alone is measured at that size, and leaves a run as a tower of that size.
    let eval = [
        "eval",
        "tower",
        "--images",
        "4",
        "--metrics",
        "cka",
        "--device",
        "cpu",
    ];
    let said = keel(path, &eval).fine().stdout;
    assert!(said.contains("tower: tower, images of 32 pixels"), "{said}");
    train(&["--no-evaluation", "--max-steps", "1", "--out", "run"]).fine();
    // The folder's numbers are f16, and interpolated positions are not.
    keel(
        path,
        &["export", "run", "--out", "refined", "--dtype", "f32"],
    )
    .fine();
    let own = Folder::open(&path.join("tower")).unwrap();
    let part = SubModel::vision(&own).unwrap().0.at_size(32).unwrap();
    let exported = Folder::open(&path.join("refined")).unwrap();
    let again = SubModel::vision(&exported).unwrap().0;
    assert_eq!(again.config(), part.config());
    hold_values(&part, &values(&own, &part), &values(&exported, &again));
    let text = fs::read(path.join("refined/preprocessor_config.json")).unwrap();
    let processor: Json = serde_json::from_slice(&text).unwrap();
    assert_eq!(processor["size"]["shortest_edge"], 36);
    assert_eq!(processor["crop_size"]["height"], 32);

    // Images that no whole number of patches covers.
    dinov2_as_published(&path.join("uneven"), 30);
    keel(path, &["inspect", "uneven"]).refused(&[
        "preprocessor_config.json",
        "a multiple of the tower's patch, 8",
        "30 pixels",
    ]);
}
