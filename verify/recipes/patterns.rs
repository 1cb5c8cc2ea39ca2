//! Patterns of parameter names in a recipe: what they take, and what is refused with what there is.

use super::{parse, refused_set, tiny};

/// The parameters of the tiny recipe's model that world-knowledge trains with these patterns frozen.
fn trained(freeze: &str) -> Vec<String> {
    let set = format!("stage.world-knowledge.freeze={freeze}");
    let recipe = parse(tiny(), &[&set]).unwrap();
    let layout = keel::model::declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let stage = recipe.stage("world-knowledge").unwrap();
    let names = layout.entries().iter().map(|entry| &entry.spec.name);
    names.filter(|name| stage.trains(name)).cloned().collect()
}

#[test]
fn a_pattern_takes_a_name_all_below_it_ranges_of_layers_and_stars() {
    let all = trained("[]");
    let frozen = |freeze: &str| -> Vec<String> {
        let left = trained(freeze);
        let all = all.iter();
        all.filter(|name| !left.contains(name)).cloned().collect()
    };
    let of = |takes: &dyn Fn(&str) -> bool| -> Vec<String> {
        let all = all.iter();
        all.filter(|name| takes(name)).cloned().collect()
    };
    let begins = |name: &str, part: &str| name.starts_with(&format!("{part}."));
    let blocks = of(&|name| begins(name, "vision.blocks"));
    assert!(blocks.len() > 10);
    assert_eq!(frozen("[\"vision.blocks.0-1\"]"), blocks);
    assert_eq!(frozen("[\"vision.blocks\"]"), blocks);
    assert_eq!(frozen("[\"vision.bl*s.0\", \"vision.*.1-1\"]"), blocks);
    let second = of(&|name| begins(name, "vision.blocks.1"));
    assert_eq!(frozen("[\"vision.blocks.1\"]"), second);
    let norms = of(&|name| name.contains(".blocks.") && name.contains(".norm"));
    assert_eq!(frozen("[\"*.blocks.*.norm*\"]"), norms);
    let biases = of(&|name| name.ends_with(".bias"));
    assert_eq!(frozen("[\"*.bias\"]"), biases);
    assert_eq!(frozen("[\"vision.position\"]"), ["vision.position"]);
}

#[test]
fn numbers_by_pattern_are_read_from_dotted_keys_as_from_quoted_ones() {
    let quoted = "stage.target.learning_rates={ connector = 1e-4, \"language.blocks.0-1\" = 2e-4 }";
    let dotted = [
        "stage.target.learning_rates.connector=1e-4",
        "stage.target.learning_rates.language.blocks.0-1=2e-4",
    ];
    let read = [
        parse(tiny(), &[quoted]).unwrap(),
        parse(tiny(), &dotted).unwrap(),
    ];
    assert_eq!(read[0], read[1]);
    let rates = &read[0].stage("target").unwrap().learning_rates;
    assert_eq!(rates["language.blocks.0-1"], 2e-4);
    let written = read[0].to_toml();
    assert_eq!(parse(&written, &[]).unwrap(), read[0]);
}

#[test]
fn patterns_that_take_nothing_are_refused_with_what_there_is() {
    for (set, parts) in [
        (
            "freeze=[\"vision.block.0-1\"]",
            &[
                "freeze",
                "vision has blocks, final_norm, patch_embed",
                "vision.block.0-1, which takes none",
            ][..],
        ),
        (
            "freeze=[\"vision.blocks.0-5\"]",
            &[
                "vision.blocks has 0 to 1",
                "vision.blocks.5, which takes none",
            ],
        ),
        (
            "freeze=[\"vision.blocks.1-0\"]",
            &["vision.blocks has 0 to 1", "which takes none"],
        ),
        ("freeze=[\"tower\"]", &["the model has align, connector"]),
        (
            "freeze=[\"\"]",
            &["the model has align, connector", "which takes none"],
        ),
        (
            "learning_rates.visoin=1e-4",
            &["learning_rates.visoin", "the model has align, connector"],
        ),
        (
            "weight_decays.vision.blocks.7=0.1",
            &["weight_decays.vision.blocks.7", "0 to 1"],
        ),
    ] {
        refused_set(&format!("stage.world-knowledge.{set}"), parts);
    }
}

#[test]
fn two_patterns_that_take_one_parameter_are_refused_by_its_name() {
    for key in ["learning_rates", "weight_decays"] {
        refused_set(
            &format!("stage.world-knowledge.{key}={{ vision = 1e-4, \"vision.blocks.0\" = 1e-5 }}"),
            &[
                key,
                "vision.blocks.0.",
                "which vision takes too",
                "parameters of its own",
            ],
        );
    }
}

#[test]
fn rates_and_freezing_of_what_is_frozen_are_refused() {
    for (set, parts) in [
        (
            "warm-up.learning_rates.vision=1e-5",
            &[
                "learning_rates.vision",
                "connector + align",
                "frozen ones alone",
            ][..],
        ),
        (
            "warm-up.weight_decays.vision.blocks.0=0.1",
            &["weight_decays.vision.blocks.0", "frozen ones alone"],
        ),
        (
            "warm-up.freeze=[\"vision.blocks.0\"]",
            &["modules in trains (connector, align)", "frozen without it"],
        ),
        (
            "warm-up.layer_decay.vision=0.5",
            &[
                "layer_decay.vision",
                "connector + align",
                "blocks are frozen",
            ],
        ),
        (
            "world-knowledge.layer_decay.connector=0.5",
            &["vision, text, language", "connector"],
        ),
        (
            "world-knowledge.layer_decay.text=0.5",
            &["layer_decay.text", "blocks are frozen"],
        ),
        (
            "warm-up.patch_embed_factor=0.2",
            &["1 in a stage that does not train vision.patch_embed"],
        ),
        (
            "world-knowledge.freeze=[\"vision\"]",
            &["something of vision left to train", "all of it frozen"],
        ),
        (
            "world-knowledge.freeze=[\"vision.*\"]",
            &["something of vision left to train"],
        ),
    ] {
        refused_set(&format!("stage.{set}"), parts);
    }
    // Frozen by a pattern of the stage's own.
    let sets = [
        "stage.target.freeze=[\"language.blocks.0\"]",
        "stage.target.learning_rates.language.blocks.0=1e-4",
    ];
    let problem = parse(tiny(), &sets).unwrap_err();
    assert!(
        problem.contains("language (but language.blocks.0)"),
        "{problem}"
    );
}

#[test]
fn numbers_of_rates_and_schedules_out_of_range_are_refused() {
    for (set, parts) in [
        (
            "learning_rates.vision=0",
            &["learning_rates.vision", "between 0 and 1"][..],
        ),
        (
            "learning_rates.vision=fast",
            &["learning_rates", "a number"],
        ),
        (
            "weight_decays.vision=1",
            &["weight_decays.vision", "from 0 to below 1"],
        ),
        (
            "layer_decay.vision=1.5",
            &["layer_decay.vision", "above 0 and at most 1"],
        ),
        (
            "patch_embed_factor=0",
            &["patch_embed_factor", "above 0 and at most 1"],
        ),
        (
            "min_learning_rate_ratio=2",
            &["min_learning_rate_ratio", "between 0 and 1"],
        ),
        (
            "decay_ratio=0.2",
            &["decay_ratio", "left out without schedule"],
        ),
        (
            "decay_shape=linear",
            &["decay_shape", "left out without schedule"],
        ),
        ("schedule=cosin", &["schedule", "did you mean cosine?"]),
        (
            "muon=[\"vision.position\"]",
            &[
                "parts with matrices that the stage trains",
                "vision.position, which has none",
            ],
        ),
        (
            "muon=[\"text.blocks\"]",
            &["muon", "text.blocks, which has none"],
        ),
        ("muon_momentum=0.9", &["left out in a stage without muon"]),
        ("ema_decay=1", &["ema_decay", "above 0 and below 1"]),
    ] {
        refused_set(&format!("stage.world-knowledge.{set}"), parts);
    }
    let refused = |sets: &[&str], want: &str| {
        let sets: Vec<String> = sets
            .iter()
            .map(|set| format!("stage.target.{set}"))
            .collect();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let problem = parse(tiny(), &sets).unwrap_err();
        assert!(problem.contains(want), "{problem}");
    };
    refused(
        &["schedule=constant", "min_learning_rate_ratio=0.1"],
        "0 with a constant schedule",
    );
    refused(
        &[
            "schedule=warmup_stable_decay",
            "warmup_ratio=0.5",
            "decay_ratio=0.6",
        ],
        "at most 0.5, which the warmup leaves",
    );
    refused(
        &["muon=[\"language.blocks\"]", "muon_momentum=1"],
        "from 0 to below 1",
    );
    refused(
        &["schedule=warmup_stable_decay", "decay_shape=square"],
        "decay_shape",
    );
    for (setting, unfit) in [
        (
            "stochastic_rounding=true",
            "no Muon with stochastic_rounding",
        ),
        ("zero_stage=2", "no Muon with zero_stage = 2"),
    ] {
        let muon = "stage.target.muon=[\"language.blocks\"]";
        let problem = parse(tiny(), &[setting, muon]).unwrap_err();
        assert!(problem.contains(unfit), "{problem}");
    }
}
