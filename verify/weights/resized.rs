//! Towers at another image size: positions scaled as transformers scales them, on every family that it scales; a run at
//! such a size, and its tower exported, are the same tower.

use std::fs;

use keel::executor::{Executor, ReferenceExecutor};
use keel::model::vision_tower;
use keel::program::{CompileOptions, Program};
use keel::tape::{Tape, Target};
use keel::tensor::TensorType;
use keel::train::{ExportOptions, ExportPart, export};
use keel::weights::{Folder, SubModel, SubModelConfig};
use serde_json::Value as Json;

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
            let entry = part.layout().get("vision.position").unwrap();
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
    for family in ["clip", "internvl", "siglip2-naflex", "sailvit"] {
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
