//! Runs with rates by pattern, layers and frozen blocks: what is frozen keeps its bits and has no moments, a resume goes on
//! bit for bit, and ranks make the step of one rank.

use keel::model::declare;
use keel::program::{CompileOptions, MemoryReport};
use keel::tape::Target;
use keel::train::{Recipe, Stage, TrainOptions};

use crate::command::{checkpoint, tensors};
use crate::program::Tiny;
use crate::rank_runs::{assert_same_step, cut, one_stage, options, train};

/// What the stage of these runs freezes.
const FROZEN: [&str; 3] = ["vision.blocks.0", "language.blocks.1.mlp", "connector.norm"];

/// What Muon updates the matrices of.
const MUON: [&str; 2] = ["vision.blocks", "language.blocks"];

/// A stage with everything that a stage can say about rates, in micro-batches of packed sequences.
fn recipe() -> Recipe {
    one_stage(
        "world-knowledge",
        &[
            "steps=6",
            "micro_batch_size=4",
            "samples_per_sequence=2",
            "max_tokens=160",
            "freeze=[\"vision.blocks.0\", \"language.blocks.1-1.mlp\", \"connector.norm\"]",
            "learning_rates={ vision = 1e-4, \"language.blocks\" = 5e-4 }",
            "layer_decay={ vision = 0.75, language = 0.9 }",
            "patch_embed_factor=0.2",
            "muon=[\"vision.blocks\", \"language.blocks\"]",
            "muon_momentum=0.9",
            "weight_decays={ vision = 0.1, \"language.embedding\" = 0.01 }",
            "schedule=warmup_stable_decay",
            "decay_ratio=0.5",
            "decay_shape=1-sqrt",
            "min_learning_rate_ratio=0.1",
        ],
    )
}

#[test]
fn frozen_blocks_keep_their_bits_and_a_resume_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, whole) = (recipe(), folder.path().join("whole"));
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(1, &recipe, &to_the_end);
    let [first, middle, end] = [
        "1-world-knowledge.step-1",
        "1-world-knowledge.step-3",
        "1-world-knowledge",
    ]
    .map(|label| tensors(&checkpoint(&whole, label)));
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    for (name, values) in &end {
        let is_frozen = FROZEN.iter().any(|part| name.starts_with(&format!("{part}.")))
            // Nothing in this stage reads it.
            || name.starts_with("text.") || name.starts_with("contrastive.");
        assert_eq!(first[name] == *values, is_frozen, "{name}");
        // Of the matrices that Muon updates there is no second moment.
        let is_matrix = layout.get(name).unwrap().spec.shape.rank() == 2;
        let is_muons = is_matrix && MUON.iter().any(|part| name.starts_with(part));
        let has = |slot: &str| middle.contains_key(&format!("{slot}.{name}"));
        assert_eq!(has("first_moment"), !is_frozen, "{name}");
        assert_eq!(has("second_moment"), !is_frozen && !is_muons, "{name}");
    }
    let again = cut(&whole, &folder.path().join("again"), 3);
    let resumed = TrainOptions {
        out: None,
        resume: Some(again.clone()),
        ..to_the_end
    };
    train(1, &recipe, &resumed);
    assert!(
        tensors(&checkpoint(&again, "1-world-knowledge")) == end,
        "other bits"
    );
}

#[test]
fn ranks_make_the_step_of_one_rank_with_rates_of_their_own_and_frozen_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let (mut recipe, alone) = (recipe(), folder.path().join("alone"));
    // The pairs of a step are compared together, whatever computes them, where the recipe leaves the micro-batch open.
    recipe.stages[0].micro_batch_size = None;
    train(1, &recipe, &options(&alone, 1));
    let run = folder.path().join("two");
    train(2, &recipe, &options(&run, 1));
    assert_same_step("two ranks", [&alone, &run], "world-knowledge");
}

/// The tiny recipe's stage of that name with these parts frozen.
fn freezing(tiny: &Tiny, stage: &str, patterns: &[&str]) -> Stage {
    Stage {
        freeze: patterns.iter().map(|text| (*text).to_owned()).collect(),
        ..tiny.recipe.stage(stage).unwrap().clone()
    }
}

#[test]
fn frozen_blocks_take_neither_gradients_nor_moments_nor_a_backward_pass() {
    let tiny = Tiny::new();
    let on_cpu = CompileOptions::new(Target::Cpu { threads: 2 });
    let below = ["vision.patch_*", "vision.position", "vision.blocks.0-0"];
    let [whole, less] = [&[][..], &below].map(|patterns| {
        let stage = freezing(&tiny, "fine-grained", patterns);
        tiny.compile(&stage, &on_cpu).expect("a step compiles")
    });
    let report = |program| MemoryReport::new(program, &tiny.layout);
    let entries = tiny.layout.entries().iter();
    let is_below = |name: &str| {
        let parts = ["vision.patch_", "vision.position", "vision.blocks.0."];
        parts.iter().any(|part| name.starts_with(part))
    };
    let saved: usize = entries
        .filter(|entry| is_below(&entry.spec.name))
        .map(|entry| entry.reserved * size_of::<f32>())
        .sum();
    let ([before, after], saved) = ([report(&whole), report(&less)], saved as u64);
    assert!(saved > 0);
    assert_eq!(before.gradients - after.gradients, saved);
    assert_eq!(before.moments - after.moments, 2 * saved);
    for step in less.ops() {
        let scope = &*step.instruction.scope;
        let is_walked = step.instruction.is_backward
            && (scope == "vision.blocks.0" || scope == "vision.patch_embed");
        assert!(!is_walked, "{}", step.instruction.label());
    }
}

#[test]
fn whatever_is_frozen_the_gradients_of_the_rest_stay_what_they_are() {
    let tiny = Tiny::new();
    let on_cpu = CompileOptions::new(Target::Cpu { threads: 2 });
    let gradients = |patterns: &[&str]| {
        let stage = freezing(&tiny, "world-knowledge", patterns);
        let program = tiny.compile(&stage, &on_cpu).expect("a step compiles");
        let entries = program.gradient_entries().iter();
        let names: Vec<String> = entries.map(|entry| entry.parameter.clone()).collect();
        for (spec, _) in program.parameters() {
            assert_eq!(
                names.contains(&spec.name),
                stage.trains(&spec.name),
                "{}",
                spec.name
            );
        }
        let (_executor, mut session) = tiny.load(program, 2);
        tiny.write_inputs(&mut *session, &stage, 0);
        session.run().expect("a step runs");
        let read = |name: String| {
            let values = session.read_f64(&format!("gradient.{name}"));
            (name, values.expect("a gradient is readable"))
        };
        names.into_iter().map(read).collect::<Vec<_>>()
    };
    let all = gradients(&[]);
    for patterns in [
        &["*.bias"][..],
        &["*.weight"],
        &["*.norm1.weight", "*.norm2", "*.position"],
        &["language.embedding", "*.qkv.bias"],
        &["vision.blocks.0-0", "language.blocks.*.mlp"],
    ] {
        let rest = gradients(patterns);
        assert!(!rest.is_empty() && rest.len() < all.len());
        for (name, found) in rest {
            let (_, want) = all.iter().find(|(known, _)| *known == name).unwrap();
            let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for (want, found) in want.iter().zip(found) {
                // Sums of some hundred terms that other ops may take in another order, each rounded to 2⁻²⁴ of the largest.
                let allowed = 256.0 * f64::from(f32::EPSILON) * scale;
                assert!(
                    (want - found).abs() <= allowed,
                    "{name} without {patterns:?}"
                );
            }
        }
    }
}
