//! The towers' own pooled outputs and the gradients of them, in the head and in the tower, against transformers.

use std::path::Path;
use std::sync::Arc;

use keel::eval::Measurements;
use keel::model::{VisionHead, vision_head, vision_tower};
use keel::tape::{ParameterLayout, Tape, Value};
use keel::tensor::TensorType;
use keel::weights::{Folder, SubModel, SubModelConfig};

use super::{Case, expected_values, hold, hub, only_part, values};
use crate::command::keel;
use crate::harness::Golden;

/// The tower and what pools it.
fn tower_and_head(folder: &Folder) -> (Vec<SubModel>, VisionHead) {
    let tower = only_part(folder);
    let (part, head) = tower
        .head(folder)
        .unwrap_or_else(|e| panic!("{e}"))
        .expect("the family pools");
    (vec![tower, part], head)
}

fn record(tape: &mut Tape, tower: &SubModel, head: VisionHead, golden: &Golden) -> Value {
    let SubModelConfig::Vision(config) = tower.config() else {
        panic!("{} is no vision tower", tower.title());
    };
    let images = tape.input("images", TensorType::f32(golden.shape("input.images")));
    let features = vision_tower(tape, config, images).expect("a tower records");
    let pooled = vision_head(tape, config, head, features).expect("a head records");
    tape.name(pooled, "pooled");
    pooled
}

fn check(family: &str, head: VisionHead, emulated: bool) {
    let folder = Folder::open(&hub(family)).unwrap_or_else(|e| panic!("{e}"));
    let (parts, found) = tower_and_head(&folder);
    assert_eq!(found, head);
    let specs: Vec<_> = parts
        .iter()
        .flat_map(|part| {
            part.layout()
                .entries()
                .iter()
                .map(|entry| entry.spec.clone())
        })
        .collect();
    let layout = Arc::new(ParameterLayout::new(&specs));
    let mut parameters = vec![0.0; layout.elements()];
    for part in &parts {
        let values = values(&folder, part);
        for entry in part.layout().entries() {
            let count = entry.spec.shape.numel();
            let place = layout.get(&entry.spec.name).expect("it is laid out").offset;
            parameters[place..place + count]
                .copy_from_slice(&values[entry.offset..entry.offset + count]);
        }
    }
    let golden = Golden::open(&format!("hub/{family}/pooled"));
    let gradients = hub(family).join("pooled");
    let case = Case {
        name: family,
        layout,
        parameters,
        wanted: expected_values(&golden, &gradients, &|folder| tower_and_head(folder).0),
        golden,
        record: &|tape, golden| record(tape, &parts[0], head, golden),
    };
    hold(&case, emulated);
}

#[test]
fn an_aimv2_folder_gives_the_pooled_output_of_transformers_and_its_gradients() {
    check("aimv2", VisionHead::Query, false);
}

#[test]
fn a_siglip_folder_gives_the_pooled_output_of_transformers_and_its_gradients() {
    check("siglip", VisionHead::Probe, true);
}

#[test]
fn a_siglip2_folder_gives_the_pooled_output_of_transformers_and_its_gradients() {
    check("siglip2-naflex", VisionHead::Probe, false);
}

#[test]
fn a_clip_folder_gives_the_pooled_output_of_transformers_and_its_gradients() {
    check("clip", VisionHead::ClassToken, false);
}

#[test]
fn a_dinov2_folder_gives_the_pooled_output_of_transformers_and_its_gradients() {
    check("dinov2", VisionHead::ClassToken, false);
}

#[test]
fn dinov3_and_dinov2_with_registers_give_the_class_token_before_their_registers() {
    check("dinov3", VisionHead::ClassToken, false);
    check("dinov2-registers", VisionHead::ClassToken, false);
}

#[test]
fn a_distilled_deit_folder_gives_its_class_token_and_its_gradients() {
    check("deit", VisionHead::ClassToken, false);
}

#[test]
fn a_vit_folder_gives_the_class_token_that_its_classifiers_read_and_its_gradients() {
    check("vit", VisionHead::ClassToken, false);
}

#[test]
fn folders_of_timm_and_open_clip_give_their_pooled_outputs_and_gradients() {
    check("timm-vit", VisionHead::ClassToken, false);
    check("timm-siglip", VisionHead::Probe, false);
    check("open-clip", VisionHead::ClassToken, false);
}

/// What a folder that holds only a part of its head is told.
#[test]
fn a_head_that_lacks_a_tensor_is_refused_by_the_name_of_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(hub("siglip").join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let lacking = "head.attention.in_proj_bias";
    let views = all.iter().filter(|(name, _)| *name != lacking);
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let config = hub("siglip").join("config.json");
    std::fs::copy(config, folder.path().join("config.json")).unwrap();
    let open = |path: &Path| Folder::open(path).unwrap_or_else(|e| panic!("{e}"));
    let folder = open(folder.path());
    let problem = only_part(&folder).head(&folder).unwrap_err().to_string();
    assert!(
        problem.contains("tensor head.attention.in_proj_bias is missing"),
        "{problem}"
    );
}

/// Probes on the pooled output stand beside those on the mean token, where the folder pools; `keel inspect` says so.
#[test]
fn a_tower_that_pools_is_measured_by_its_own_pooling_too() {
    let folder = tempfile::tempdir().unwrap();
    let probes = |family: &str| -> Vec<String> {
        let path = hub(family).display().to_string();
        let args = "--metrics neighbours,linear-probe --images 2 --device cpu --json".split(' ');
        let args: Vec<&str> = ["eval", &path].into_iter().chain(args).collect();
        let answer = keel(folder.path(), &args).fine();
        let all: Measurements = serde_json::from_str(&answer.stdout).unwrap();
        let mut names: Vec<String> = all.probes.into_iter().map(|probe| probe.probe).collect();
        names.dedup();
        names
    };
    let both = [
        "neighbours",
        "neighbours, own pooling",
        "linear-probe",
        "linear-probe, own pooling",
    ];
    for family in ["siglip", "clip"] {
        let names = probes(family);
        assert!(
            both.iter().all(|name| names.iter().any(|n| n == name)),
            "{family}: {names:?}"
        );
    }
    assert_eq!(probes("sailvit"), ["neighbours", "linear-probe"]);
    let path = hub("siglip").display().to_string();
    let answer = keel(folder.path(), &["inspect", &path]).fine();
    assert!(answer.stdout.contains("Pooled output"), "{answer:#?}");
}
