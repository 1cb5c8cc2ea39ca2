//! Settings from the command line (`--set`): they win over the file, and wrong ones are refused by name.

use super::{parse, refused_set, tiny};

#[test]
fn settings_from_the_command_line_win_and_the_rest_stays() {
    let recipe = parse(
        tiny(),
        &[
            "stage.warm-up.steps=11",
            "stage.warm-up.data.ocr=0.5",
            "model.vision.depth=3",
            "model.connector.unshuffle_factor=4",
            "name=mine",
            "stage.target.token_weighting=sample",
            "stage.target.steps=2",
            "stage.target.steps=3",
        ],
    )
    .unwrap();
    let mut expected = parse(tiny(), &[]).unwrap();
    expected.name = "mine".into();
    expected.model.vision.depth = 3;
    expected.model.connector.unshuffle_factor = 4;
    let index = |name: &str| expected.stages.iter().position(|s| s.name == name).unwrap();
    let (warm, target) = (index("warm-up"), index("target"));
    expected.stages[warm].steps = Some(11);
    expected.stages[warm].data.insert("ocr".into(), 0.5);
    expected.stages[target].token_weighting = keel::data::batch::TokenWeighting::Sample;
    expected.stages[target].steps = Some(3);
    assert_eq!(recipe, expected);
}

#[test]
fn bad_settings_from_the_command_line_are_refused_by_name() {
    refused_set(
        "stage.warm-up.steps",
        &["expected key=value, found no equals sign"],
    );
    refused_set("=3", &["an empty key"]);
    refused_set("model..depth=3", &["an empty key"]);
    refused_set(
        "stage.warmup.steps=3",
        &["stage.<one of", "warmup (did you mean warm-up?)"],
    );
    refused_set("stage.warm-up=3", &["stage.<one of", "found stage.warm-up"]);
    refused_set("stage=3", &["expected a list"]);
    refused_set("model.visoin.depth=3", &["visoin (did you mean vision?)"]);
    refused_set("model.vision.depht=3", &["depht (did you mean depth?)"]);
    refused_set(
        "model.vision.depth=0",
        &["model.vision.depth: expected at least 1, found 0"],
    );
    refused_set(
        "model.vision.depth.x=1",
        &["expected depth to be a table, found integer"],
    );
    refused_set(
        "stage.warm-up.batch_size=0",
        &["stage warm-up: batch_size: expected at least 1, found 0"],
    );
    refused_set(
        "stage.warm-up.batch_size=many",
        &["batch_size", "whole number", "many"],
    );
    refused_set(
        "stage.target.data.vqaa=1",
        &["data.vqaa", "did you mean vqa?"],
    );
    refused_set(
        "stage.warm-up.name=../up",
        &["letters, digits, - and _", "../up"],
    );
    refused_set("name=a/b", &["letters, digits, - and _", "a/b"]);
}

#[test]
fn numbers_that_would_make_every_value_nan_are_refused() {
    for (set, key, want) in [
        ("model.vision.norm_epsilon=0", "norm_epsilon", "above 0"),
        ("model.text.norm_epsilon=nan", "norm_epsilon", "above 0"),
        (
            "model.language.norm_epsilon=-1e-6",
            "norm_epsilon",
            "above 0",
        ),
        ("model.language.rope_theta=0", "rope_theta", "above 0"),
        ("model.vision.layer_scale=inf", "layer_scale", "finite"),
        (
            "pixels={ mean = [0.5, 0.5, 0.5], std = [0.5, 0.0, 0.5] }",
            "pixels.std",
            "above 0",
        ),
        (
            "pixels={ mean = [0.5, nan, 0.5], std = [0.5, 0.5, 0.5] }",
            "pixels.mean",
            "finite",
        ),
    ] {
        refused_set(set, &[key, want]);
    }
}
