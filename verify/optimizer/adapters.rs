//! Runs that train low-rank adapters: the towers keep their bits and have neither gradients nor moments, a resume goes on bit for
//! bit, ranks make the step of one rank, and what is exported is what was trained.

use keel::model::declare;
use keel::program::{CompileOptions, MemoryReport};
use keel::tape::Target;
use keel::train::{
    ExportOptions, ExportPart, LoraExport, PublishedWeights, Recipe, TrainOptions, export,
};

use crate::command::{checkpoint, keel, tensors};
use crate::program::Tiny;
use crate::rank_runs::{assert_same_step, cut, options, train};

const STAGE: &str = "world-knowledge";

/// A stage that trains adapters and the connector, in micro-batches of packed sequences.
fn recipe() -> Recipe {
    let sets = [
        "model.language.lora.rank=2",
        "model.language.lora.alpha=4",
        "model.language.lora.targets=[\"language.blocks\"]",
        "model.vision.lora.rank=3",
        "model.vision.lora.alpha=3",
        "model.vision.lora.targets=[\"vision.blocks.1-1\"]",
        "model.vision.lora.fused=[\"vision.blocks.*.attention.qkv\"]",
        "stage.world-knowledge.trains=[\"lora\", \"connector\"]",
        "stage.world-knowledge.contrastive_weight=0",
        "stage.world-knowledge.steps=4",
        "stage.world-knowledge.micro_batch_size=4",
        "stage.world-knowledge.samples_per_sequence=2",
        "stage.world-knowledge.max_tokens=160",
        "stage.world-knowledge.learning_rates={ lora = 5e-3 }",
        "stage.world-knowledge.freeze=[\"lora.language.blocks.0\"]",
    ];
    let mut recipe = Recipe::load("tiny", &sets.map(str::to_owned)).unwrap();
    recipe.stages.retain(|known| known.name == STAGE);
    recipe.stages[0].reinitialize.clear();
    recipe
}

#[test]
fn adapters_learn_beside_frozen_towers_resume_bit_for_bit_and_leave_as_they_were_trained() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, whole) = (recipe(), folder.path().join("whole"));
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(1, &recipe, &to_the_end);
    let [first, middle, end] = [
        "1-world-knowledge.step-1",
        "1-world-knowledge.step-2",
        "1-world-knowledge",
    ]
    .map(|label| tensors(&checkpoint(&whole, label)));
    let mut learned = 0;
    for (name, values) in &end {
        let learns = name.starts_with("connector.")
            || name.starts_with("lora.") && !name.starts_with("lora.language.blocks.0.");
        assert_eq!(first[name] != *values, learns, "{name}");
        let has_moment = middle.contains_key(&format!("first_moment.{name}"));
        assert_eq!(has_moment, learns, "{name}");
        learned += usize::from(learns && name.starts_with("lora."));
    }
    // One block of the tower: qkv, out, gate_up in two parts and down; one of the decoder with queries, keys and values apart.
    assert_eq!(learned, 2 * (5 + 7));
    let again = cut(&whole, &folder.path().join("again"), 2);
    let resumed = TrainOptions {
        out: None,
        resume: Some(again.clone()),
        ..to_the_end
    };
    train(1, &recipe, &resumed);
    let again = tensors(&checkpoint(&again, "1-world-knowledge"));
    assert!(again == end, "other bits");
    leave_and_come_back(&whole, &recipe);
}

/// Adapters of the decoder go out in PEFT's form, and a new run begins with them.
fn leave_and_come_back(run: &std::path::Path, recipe: &Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let export_as = |name: &str, lora| {
        let options = ExportOptions {
            part: ExportPart::Language,
            layout: None,
            dtype: None,
            shard_bytes: u64::MAX,
            averages: false,
            lora,
        };
        export(run, &out(name), &options)
    };
    let refused = export_as("nothing", None).unwrap_err().to_string();
    assert!(
        refused.contains("--lora") && refused.contains("merged"),
        "{refused}"
    );
    for (name, lora) in [
        ("adapter", LoraExport::Adapter),
        ("merged", LoraExport::Merged),
        ("base", LoraExport::Base),
    ] {
        export_as(name, Some(lora)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let [merged, base] =
        ["merged", "base"].map(|name| std::fs::read(out(name).join("model.safetensors")).unwrap());
    assert!(merged != base && merged.len() == base.len());
    let mut anew = recipe.clone();
    anew.model.language.lora = None;
    anew.begin_from(&PublishedWeights {
        language_adapter: Some(out("adapter")),
        ..PublishedWeights::default()
    })
    .unwrap();
    let (lora, trained) = (&anew.model.language.lora, &recipe.model.language.lora);
    let (lora, trained) = (lora.as_ref().unwrap(), trained.as_ref().unwrap());
    assert_eq!((lora.rank, lora.alpha), (trained.rank, trained.alpha));
    let second = out("second");
    train(1, &anew, &options(&second, 1));
    let [before, after] = [
        tensors(&checkpoint(run, "1-world-knowledge")),
        tensors(&checkpoint(&second, "1-world-knowledge.step-1")),
    ];
    // What the second run freezes is what it began with.
    let frozen: Vec<&String> = after
        .keys()
        .filter(|name| name.starts_with("lora.language.blocks.0."))
        .collect();
    assert_eq!(frozen.len(), 14);
    for name in frozen {
        assert!(before[name] == after[name], "{name}");
    }
}

#[test]
fn ranks_make_the_step_of_one_rank_with_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let (mut recipe, alone) = (recipe(), folder.path().join("alone"));
    recipe.stages[0].micro_batch_size = None;
    // B begins with zeros, and so do A's gradients: with the sign of roundings.
    recipe.stages[0].freeze = vec!["lora.*.a".to_owned()];
    train(1, &recipe, &options(&alone, 1));
    let run = folder.path().join("two");
    train(2, &recipe, &options(&run, 1));
    assert_same_step("two ranks", [&alone, &run], STAGE);
}

#[test]
fn adapters_take_the_gradients_and_moments_of_themselves_alone() {
    let (tiny, recipe) = (Tiny::new(), recipe());
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let with_adapters = Tiny { recipe, layout };
    let stage = &with_adapters.recipe.stages[0];
    let on_cpu = CompileOptions::new(Target::Cpu { threads: 2 });
    let whole = tiny.compile(tiny.recipe.stage(STAGE).unwrap(), &on_cpu);
    let whole = whole.expect("a step compiles");
    let adapted = with_adapters.compile(stage, &on_cpu);
    let adapted = adapted.expect("a step compiles");
    let layout = &with_adapters.layout;
    let [before, after] = [(&whole, &tiny.layout), (&adapted, layout)]
        .map(|(program, layout)| MemoryReport::new(program, layout));
    let trained: usize = layout
        .entries()
        .iter()
        .filter(|entry| stage.trains(&entry.spec.name))
        .map(|entry| entry.reserved * size_of::<f32>())
        .sum();
    assert_eq!(after.gradients, trained as u64);
    assert_eq!(after.moments, 2 * trained as u64);
    assert!(2 * after.gradients < before.gradients);
}

#[test]
fn adapters_of_nothing_and_stages_without_any_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lora = [
        "--set",
        "model.language.lora.rank=2",
        "--set",
        "model.language.lora.alpha=2",
    ];
    let plan = |targets: &str, more: &[&str]| {
        let targets = format!("model.language.lora.targets=[\"{targets}\"]");
        let all = [
            &["plan", "--recipe", "tiny"][..],
            &lora,
            &["--set", &targets],
            more,
        ]
        .concat();
        keel(folder.path(), &all)
    };
    plan("language.blocks", &[]).fine();
    plan("language.blocks.0-9", &[])
        .refused(&["model.language.lora.targets", "language.blocks has 0 to 1"]);
    plan("language.embedding", &[]).refused(&["model.language.lora.targets", "which takes none"]);
    let fused = [
        "--set",
        "model.language.lora.fused=[\"language.blocks.*.attention.out\"]",
    ];
    plan("language.blocks", &fused).refused(&["model.language.lora.fused", "which takes none"]);
    let trains = "stage.world-knowledge.trains=[\"lora\"]";
    let without = ["plan", "--recipe", "tiny", "--set", trains];
    keel(folder.path(), &without).refused(&["trains", "has no adapters", "lora"]);
}
