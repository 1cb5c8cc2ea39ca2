//! Whole training steps of the tiny recipe on every executor: ten in a row in each stage, loss by loss and gradient by
//! gradient within a budget derived for that very step, frozen modules and repeated runs bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;

use keel::error::Result;
use keel::executor::simt::{CopyTiming, Options, Schedule};
use keel::executor::{
    CpuExecutor, CudaExecutor, Device, Executor, ReferenceExecutor, SelectedDevice, Session,
    SimtExecutor, usable_cores,
};
use keel::model::{ModelInput, initialise};
use keel::program::{CompileOptions, Program};
use keel::tape::{Add, CompileTarget, ParameterLayout, Tape, Target, Tier};
use keel::tensor::{DType, TensorType};
use keel::train::Stage;

use crate::harness::expected::{self, Expected, Values, expected};
use crate::harness::{Budget, Gpu, derive_budget, gpu};
use crate::program::Tiny;

/// Steps in a row.
const STEPS: u64 = 10;
const STEPS_IN_BF16: u64 = 6;
/// Of those, the first ones that are repeated under another schedule.
const STEPS_AGAIN: u64 = 3;

/// The readable numbers of each step: `loss` and `gradient.<parameter>`.
type Trace = Vec<BTreeMap<String, (TensorType, Vec<f64>)>>;

/// Trains some steps and returns what each left behind, and the parameters at the end.
fn train(
    tiny: &Tiny,
    stage: &Stage,
    compile_target: CompileTarget,
    executor: &dyn Executor,
    steps: u64,
) -> Result<(Trace, Vec<f32>)> {
    executor
        .write_parameters(0, &initialise(&tiny.layout, 1))
        .unwrap();
    let options = CompileOptions::new(compile_target);
    let program = tiny.compile_in(compile_target.precision, stage, &options)?;
    let mut session = executor.load(Arc::new(program))?;
    let mut trace = Vec::new();
    let parts = stage.micro_batches() as u64;
    for step in 0..steps {
        for part in 0..parts {
            tiny.write_inputs(&mut *session, stage, step * parts + part);
            match parts {
                1 => session.run()?,
                _ => session.run_gradients()?,
            }
        }
        let program = session.program();
        let mut numbers = BTreeMap::new();
        for name in program.output_names() {
            if name == "loss" || name.starts_with("gradient.") {
                let ty = program.ty(program.output(name)?);
                numbers.insert(name.to_owned(), (ty, session.read_f64(name)?));
            }
        }
        trace.push(numbers);
        if parts > 1 {
            // The update clears what was gathered: it comes with one more part, which weighs nothing.
            session.write_f32(ModelInput::LossWeight.name(), &[0.0])?;
            session.run()?;
        }
    }
    let mut parameters = vec![0.0; tiny.layout.elements()];
    executor.read_parameters(0, &mut parameters).unwrap();
    Ok((trace, parameters))
}

/// The reference's steps, and how far from each number another executor may be.
fn reference(
    tiny: &Tiny,
    stage: &Stage,
    precision: DType,
    steps: u64,
) -> (Trace, Vec<BTreeMap<String, Budget>>) {
    let compile_target = CompileTarget {
        tier: Tier::Portable,
        target: Target::Reference,
        precision,
    };
    let elements = tiny.layout.elements();
    let run = |executor: ReferenceExecutor| {
        train(tiny, stage, compile_target, &executor, steps)
            .unwrap_or_else(|problem| panic!("{}: {problem}", stage.name))
            .0
    };
    let truth = run(ReferenceExecutor::new(elements));
    let mut draws: Vec<Trace> = (0..DRAWS)
        .map(|seed| run(ReferenceExecutor::rounding(elements, seed)))
        .collect();
    let budgets = truth
        .iter()
        .enumerate()
        .map(|(step, truth)| {
            let mut draw = 0;
            derive_budget(truth, DRAWS as usize, || {
                draw += 1;
                std::mem::take(&mut draws[draw - 1][step])
            })
        })
        .collect();
    (truth, budgets)
}

/// Trainings with every result rounded at random, from which budgets are derived.
const DRAWS: u64 = 4;

fn compare(what: &str, truth: &Trace, budgets: &[BTreeMap<String, Budget>], found: &Trace) {
    for (step, (truth, found)) in truth.iter().zip(found).enumerate() {
        for (name, (ty, want)) in truth {
            if let Err(problem) = budgets[step][name].compare(ty.shape, want, &found[name].1) {
                panic!("{what}, step {step}, {name}: {problem}");
            }
        }
    }
}

/// Every frozen parameter keeps its bits, and some trained one does not.
fn check_frozen(tiny: &Tiny, stage: &Stage, what: &str, after: &[f32]) {
    let before = initialise(&tiny.layout, 1);
    let mut changed = 0;
    for entry in tiny.layout.entries() {
        let range = entry.offset..entry.offset + entry.spec.shape.numel();
        let same = before[range.clone()]
            .iter()
            .zip(&after[range])
            .all(|(a, b)| a.to_bits() == b.to_bits());
        let name = &entry.spec.name;
        assert!(
            same || stage.trains(name),
            "{what}: the frozen {name} was changed"
        );
        changed += usize::from(!same);
    }
    assert!(changed > 0, "{what}: nothing was trained");
}

fn follows(stage: &str, precision: DType) {
    let steps = match precision {
        DType::Bf16 => STEPS_IN_BF16,
        _ => STEPS,
    };
    follows_in(&Tiny::new(), stage, precision, steps);
}

/// The steps' numbers under one name each, for those that compare without the reference.
fn packed(truth: &Trace, budgets: &[BTreeMap<String, Budget>]) -> Values {
    let steps = truth.iter().zip(budgets).enumerate();
    let packed = steps.flat_map(|(step, (truth, budgets))| {
        truth.iter().map(move |(name, (_, values))| {
            (format!("{step} {name}"), (values.clone(), budgets[name]))
        })
    });
    packed.collect()
}

/// What [`packed`] packed; `ty` tells the type of a number of a step.
fn unpacked(
    values: Values,
    ty: impl Fn(&str) -> TensorType,
) -> (Trace, Vec<BTreeMap<String, Budget>>) {
    let (mut truth, mut budgets): (BTreeMap<u64, _>, BTreeMap<u64, _>) = Default::default();
    for (key, (values, budget)) in values {
        let (step, name) = key.split_once(' ').expect("it was packed here");
        let step = step.parse().expect("it was packed here");
        let numbers: &mut BTreeMap<_, _> = truth.entry(step).or_default();
        numbers.insert(name.to_owned(), (ty(name), values));
        let step: &mut BTreeMap<_, _> = budgets.entry(step).or_default();
        step.insert(name.to_owned(), budget);
    }
    (
        truth.into_values().collect(),
        budgets.into_values().collect(),
    )
}

fn follows_in(tiny: &Tiny, stage: &str, precision: DType, steps: u64) {
    let stage = tiny.recipe.stage(stage).expect("a stage of the recipe");
    let key = || {
        let parts = [
            format!("{steps} steps in {precision}"),
            format!("{:?}", tiny.recipe),
            format!("{stage:?}"),
        ];
        expected::key(parts.iter().map(|part| part.as_bytes()))
    };
    match expected() {
        Expected::Computed => {
            let (truth, budgets) = reference(tiny, stage, precision, steps);
            follows_on_cpu(tiny, stage, precision, &truth, &budgets);
            follows_on_simt(tiny, stage, precision, &truth, &budgets);
            if let Some(gpu) = gpu() {
                follows_on_gpu(gpu, tiny, stage, precision, &truth, &budgets);
            }
        }
        Expected::Written(file) => {
            let (truth, budgets) = reference(tiny, stage, precision, steps);
            expected::write(file, key(), &packed(&truth, &budgets));
        }
        Expected::Read(records) => {
            let gpu = gpu().expect("it says itself what is missing");
            let values = expected::find(records, key())
                .unwrap_or_else(|problem| panic!("{} in {precision}: {problem}", stage.name));
            let program = tiny
                .compile_in(precision, stage, &CompileOptions::new(Target::Reference))
                .expect("a step compiles");
            let ty = |name: &str| program.ty(program.output(name).expect("a number of a step"));
            let (truth, budgets) = unpacked(values, ty);
            follows_on_gpu(gpu, tiny, stage, precision, &truth, &budgets);
        }
    }
}

fn follows_on_cpu(
    tiny: &Tiny,
    stage: &Stage,
    precision: DType,
    truth: &Trace,
    budgets: &[BTreeMap<String, Budget>],
) {
    let executor = CpuExecutor::new(tiny.layout.elements(), 2).expect("threads can be had");
    let executor = executor.in_precision(precision);
    let steps = truth.len() as u64;
    let (found, parameters) =
        train(tiny, stage, executor.compile_target(), &executor, steps).expect("cpu runs");
    let what = format!("{} on cpu in {precision}", stage.name);
    compare(&what, truth, budgets, &found);
    check_frozen(tiny, stage, &what, &parameters);
}

/// The kernels on the GPU: within the budgets, frozen parameters untouched, and the same bits again.
fn follows_on_gpu(
    gpu: &Gpu,
    tiny: &Tiny,
    stage: &Stage,
    precision: DType,
    truth: &Trace,
    budgets: &[BTreeMap<String, Budget>],
) {
    let what = format!("{} on {} in {precision}", stage.name, gpu.found.name);
    let train = |steps| {
        let executor = gpu.executor(tiny.layout.elements()).in_precision(precision);
        train(tiny, stage, executor.compile_target(), &executor, steps)
            .unwrap_or_else(|problem| panic!("{what}: {problem}"))
    };
    let found = train(truth.len() as u64);
    let again = train(truth.len() as u64);
    // Bit for bit: parameters hold no NaN.
    let same = found == again;
    expected::row(&serde_json::json!({
        "kind": "steps",
        "stage": stage.name,
        "steps": truth.len(),
        "precision": precision.name(),
        "device": gpu.found.name,
        "stand_in": gpu.is_stand_in(),
        "loss": found.0.iter().map(|step| step["loss"].1[0]).collect::<Vec<_>>(),
        "expected_loss": truth.iter().map(|step| step["loss"].1[0]).collect::<Vec<_>>(),
        "same_bits_again": same,
    }));
    compare(&what, truth, budgets, &found.0);
    check_frozen(tiny, stage, &what, &found.1);
    assert!(same, "{what}: a second run gave other bits");
}

fn follows_on_simt(
    tiny: &Tiny,
    stage: &Stage,
    precision: DType,
    truth: &Trace,
    budgets: &[BTreeMap<String, Budget>],
) {
    let elements = tiny.layout.elements();
    let steps = truth.len() as u64;
    let schedules = [
        (Schedule::RunAhead, CopyTiming::Late),
        (Schedule::Priority, CopyTiming::Random),
    ];
    let mut first: Option<Trace> = None;
    for (schedule, copies) in schedules {
        let options = Options {
            schedule,
            copies,
            ..Options::default()
        };
        let Ok(executor) = SimtExecutor::new(elements, options) else {
            return;
        };
        let executor = executor.in_precision(precision);
        let what = format!("{} on simt in {precision}", stage.name);
        let steps = match &first {
            None => steps,
            Some(_) => steps.min(STEPS_AGAIN),
        };
        let found = train(tiny, stage, executor.compile_target(), &executor, steps)
            .unwrap_or_else(|problem| panic!("{what}: {problem}"));
        match &first {
            None => {
                compare(&what, truth, budgets, &found.0);
                check_frozen(tiny, stage, &what, &found.1);
                first = Some(found.0);
            }
            Some(first) => {
                let same = first[..steps as usize] == found.0[..];
                assert!(same, "{what}: a second run gave other bits");
            }
        }
    }
}

macro_rules! stages {
    ($($test:ident: $stage:literal in $precision:ident;)*) => {$(
        #[test]
        fn $test() {
            follows($stage, DType::$precision);
        }
    )*};
}

stages! {
    ten_steps_of_stage_one_are_the_same_on_every_executor: "warm-up" in F32;
    ten_steps_of_stage_two_are_the_same_on_every_executor: "fine-grained" in F32;
    ten_steps_of_stage_three_are_the_same_on_every_executor: "world-knowledge" in F32;
    steps_of_stage_one_in_bf16_follow_the_reference: "warm-up" in Bf16;
    steps_of_stage_two_in_bf16_follow_the_reference: "fine-grained" in Bf16;
    steps_of_stage_three_in_bf16_follow_the_reference: "world-knowledge" in Bf16;
}

#[test]
fn steps_in_micro_batches_are_the_same_on_every_executor() {
    let tiny = Tiny::with(&[
        "stage.fine-grained.batch_size=6",
        "stage.fine-grained.micro_batch_size=3",
    ]);
    follows_in(&tiny, "fine-grained", DType::F32, 2);
    follows_in(&tiny, "fine-grained", DType::Bf16, 1);
}

#[test]
fn steps_of_packed_sequences_are_the_same_on_every_executor() {
    let tiny = Tiny::with(&[
        "stage.fine-grained.batch_size=3",
        "stage.fine-grained.samples_per_sequence=3",
        "stage.fine-grained.max_tokens=96",
    ]);
    follows_in(&tiny, "fine-grained", DType::F32, 2);
    follows_in(&tiny, "fine-grained", DType::Bf16, 1);
}

/// All stages of the recipe but the first.
const LATER_STAGES: [&str; 5] = [
    "warm-start-language",
    "warm-up",
    "fine-grained",
    "world-knowledge",
    "target",
];

#[test]
fn random_rounding_is_drawn_by_the_seed_and_moves_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    if SimtExecutor::new(1, Options::default()).is_err() {
        return;
    }
    let train = |out: &str, further: &[&str]| {
        let mut args = "train --device simt --recipe tiny --max-steps 2 --no-evaluation"
            .split(' ')
            .collect::<Vec<_>>();
        // The second step reads what the first has rounded; one stage is enough.
        args.extend(["--out", out]);
        let later = LATER_STAGES.map(|stage| format!("stage.{stage}.steps=1"));
        args.extend(later.iter().flat_map(|set| ["--set", set]));
        args.extend(further);
        crate::command::keel(folder.path(), &args).fine();
        let stages = keel::train::stage_checkpoints(&folder.path().join(out)).unwrap();
        let bytes = std::fs::read(&stages[0].1).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<(String, Vec<u8>)> = tensors
            .iter()
            .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
            .collect();
        all.sort();
        all
    };
    let random = ["--set", "stochastic_rounding=true"];
    let (nearest, once) = (train("nearest", &[]), train("once", &random));
    assert!(
        once == train("again", &random),
        "the same seed rounds the same"
    );
    assert!(nearest != once, "rounding at random changes nothing");
}

#[test]
fn executors_are_shared_among_threads_and_sessions_move_between_them() {
    fn shared<T: Send + Sync + ?Sized>() {}
    fn movable<T: Send + ?Sized>() {}
    shared::<dyn Executor>();
    shared::<CudaExecutor>();
    movable::<dyn Session>();
    let executor = ReferenceExecutor::new(0);
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let x = tape.input("x", TensorType::f32([2]));
    let y = tape.record_one(Add, &[x, x]).expect("the shapes agree");
    tape.output(y, "y");
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference));
    let program = Arc::new(program.expect("it is small"));
    let mut session = executor.load(program).expect("it is small");
    let sums = std::thread::spawn(move || {
        session.write_f32("x", &[1.0, 2.0]).expect("an input");
        session.run().expect("it cannot fail");
        session.read_f64("y").expect("an output")
    });
    assert_eq!(sums.join().expect("it does not panic"), [2.0, 4.0]);
}

#[test]
fn more_threads_than_cores_become_one_a_core_and_the_device_line_says_so() {
    let cores = usable_cores();
    let selected = SelectedDevice::new(Device::Cpu, cores + 1000, None).unwrap();
    let line = selected.describe();
    let capped = format!(" ({} asked for, one a core at most), f32 ", cores + 1000);
    assert!(
        line.starts_with(&format!("cpu, {cores} thread")) && line.contains(&capped),
        "{line}"
    );
    // The memory plan, the pool and the line agree.
    let threads = Target::Cpu { threads: cores };
    assert_eq!(selected.compile_target().target, threads);
    assert_eq!(
        selected.open(0).unwrap().compile_target().target,
        threads,
        "of the executor"
    );
    let exact = SelectedDevice::new(Device::Cpu, cores, None).unwrap();
    assert!(!exact.describe().contains("asked for"), "{exact:?}");
}
