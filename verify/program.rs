//! What a compiled training step promises beyond the results of its ops: memory that is planned, shared and never
//! allocated while it runs, and the same bits whatever the plan, the budget and the threads.

mod fusing;
mod inputs;
mod training;

use keel::data::chat::ChatTokenizer;
use keel::model::{ContrastivePair, declare};
use keel::ops::Contrastive;
use keel::program::{CompileOptions, MemoryReport, Place, Program, SPARE_WORK};
use keel::tape::{Arena, Target};
use keel::tensor::{DType, TensorType};
use keel::train::{BUILT_IN, Recipe, compile_step, record_step};

use crate::allocations::{count_in_all_threads, measure};
pub use training::{Tiny, shape_of};

fn on_cpu(threads: usize) -> CompileOptions {
    CompileOptions::new(Target::Cpu { threads })
}

/// Set for the child process in which nothing but the counting test runs.
const COUNTING: &str = "KEEL_VERIFY_COUNTS_ALLOCATIONS";

/// The counter is the whole process's, compute threads included, so the test runs alone in a process of its own.
#[test]
fn a_training_step_allocates_nothing_on_any_thread() {
    if std::env::var_os(COUNTING).is_none() {
        let this = std::env::current_exe().expect("a test is a program");
        let child = std::process::Command::new(this)
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("program::a_training_step_allocates_nothing_on_any_thread")
            .env(COUNTING, "1")
            .output()
            .expect("a test can be started again");
        let said = String::from_utf8_lossy(&child.stdout);
        let failed = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}\n{failed}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let tiny = Tiny::new();
    // Threads that end allocate too, and a pool does not wait for them: every executor stays until all is counted.
    let mut executors = Vec::new();
    for stage in &tiny.recipe.stages {
        let program = tiny.compile(stage, &on_cpu(3)).expect("a step compiles");
        let (executor, mut session) = tiny.load(program, 3);
        executors.push(executor);
        tiny.write_inputs(&mut *session, stage, 0);
        session.run().expect("a step runs");
        let (outcome, count) = count_in_all_threads(|| (0..3).try_for_each(|_| session.run()));
        outcome.expect("a step runs");
        assert_eq!(count, 0, "{}: allocations in three steps", stage.name);
    }
    let (_, count) = count_in_all_threads(|| {
        std::thread::scope(|scope| drop(scope.spawn(|| vec![1_u8; 100]).join()))
    });
    assert!(count > 0, "the counter sees other threads");
}

#[test]
fn sharing_memory_never_changes_a_bit_of_a_step() {
    let tiny = Tiny::new();
    for stage in &tiny.recipe.stages {
        let shared = on_cpu(2);
        let apart = CompileOptions {
            share_memory: false,
            ..on_cpu(2)
        };
        let small = tiny.compile(stage, &shared).expect("a step compiles");
        let large = tiny.compile(stage, &apart).expect("a step compiles");
        assert!(
            small.arena_bytes() * 2 < large.arena_bytes(),
            "{}: {} bytes shared, {} apart",
            stage.name,
            small.arena_bytes(),
            large.arena_bytes()
        );
        let shared = tiny.train_with(stage, small, shared.compile_target.target);
        let apart = tiny.train_with(stage, large, apart.compile_target.target);
        assert!(shared == apart, "{}: the plan changed bits", stage.name);
    }
}

#[test]
fn threads_and_repetition_never_change_a_bit_of_a_step() {
    let tiny = Tiny::new();
    for stage in &tiny.recipe.stages {
        let first = tiny.train(stage, &on_cpu(1));
        for threads in [1, 2, 3] {
            let again = tiny.train(stage, &on_cpu(threads));
            assert!(
                first == again,
                "{}: {threads} threads, or a second run, gave other bits",
                stage.name
            );
        }
    }
}

#[test]
fn a_memory_budget_is_kept_and_never_changes_a_bit_of_a_step() {
    // Deep enough that whole blocks, matrix products included, are worth computing again.
    let tiny = Tiny::with(&["model.vision.depth=6", "model.language.depth=6"]);
    for stage in &tiny.recipe.stages {
        let keeping = CompileOptions {
            spare_work: 0.0,
            ..on_cpu(2)
        };
        let whole = tiny.compile(stage, &keeping).expect("a step compiles");
        let most = whole.arena_bytes() as u64;
        let steps = whole.ops().len();
        let plain = tiny.train_with(stage, whole, Target::Cpu { threads: 2 });
        let mut tried: Vec<u64> = Vec::new();
        for percent in [90, 80, 70, 60, 50, 40, 30] {
            let budget = most * percent / 100;
            let options = CompileOptions {
                memory_budget: Some(budget),
                ..on_cpu(2)
            };
            let Ok(program) = tiny.compile(stage, &options) else {
                break;
            };
            tried.push(percent);
            assert!(
                program.arena_bytes() as u64 <= budget,
                "{}: {} bytes under a budget of {budget}",
                stage.name,
                program.arena_bytes()
            );
            assert!(
                program.ops().len() > steps,
                "{}: nothing is computed again",
                stage.name
            );
            let budgeted = tiny.train_with(stage, program, options.compile_target.target);
            assert!(
                plain == budgeted,
                "{}: a budget of {percent} % changed bits",
                stage.name
            );
        }
        println!(
            "{}: arena {most} bytes, budgets of {tried:?} % of it are met",
            stage.name
        );
        // Where a vision tower or a decoder is trained there is something to compute again.
        let trains_a_tower = stage.trains("vision.x") || stage.trains("language.x");
        assert!(
            !tried.is_empty() || !trains_a_tower,
            "{}: no budget is met",
            stage.name
        );
    }
}

#[test]
fn spare_work_buys_memory_and_never_changes_a_bit_of_a_step() {
    let tiny = Tiny::new();
    for stage in &tiny.recipe.stages {
        let compile = |spare_work| {
            let options = CompileOptions {
                spare_work,
                ..on_cpu(2)
            };
            tiny.compile(stage, &options).expect("a step compiles")
        };
        // In a tiny step a hundredth of the work buys little; a tenth shows every kind of op that is cheap.
        let (keeping, spending) = (compile(0.0), compile(0.1));
        let (work, more) = (keeping.cost().flops, spending.cost().flops);
        assert!(
            (work..=1.1 * work).contains(&more),
            "{}: {work} became {more}",
            stage.name
        );
        let trains_a_tower = stage.trains("vision.x") || stage.trains("language.x");
        if trains_a_tower {
            assert!(
                spending.lower_bound() < keeping.lower_bound(),
                "{}: nothing is saved",
                stage.name
            );
            assert!(spending.ops().len() > keeping.ops().len());
        }
        assert!(spending.lower_bound() <= keeping.lower_bound());
        let target = Target::Cpu { threads: 2 };
        let keeping = tiny.train_with(stage, keeping, target);
        let spending = tiny.train_with(stage, spending, target);
        assert!(keeping == spending, "{}: spending changed bits", stage.name);
    }
}

/// The benchmark's steps, planned for two threads: what is computed again without being asked costs next to nothing.
#[test]
fn a_hundredth_of_a_benchmark_step_buys_a_tenth_of_its_memory() {
    let text = include_str!("../bench/lead.toml");
    let recipe = Recipe::parse("bench/lead.toml", text, &[]).expect("the benchmark's recipe");
    let layout = declare(&recipe.model, recipe.contrastive_loss).expect("a model");
    for stage in &recipe.stages {
        let compile = |spare_work| {
            let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
            let tape = record_step(&recipe, stage, &layout, &shape, DType::F32).expect("a step");
            let options = CompileOptions {
                spare_work,
                ..on_cpu(2)
            };
            Program::compile(tape, &options).expect("a step compiles")
        };
        let (keeping, spending) = (compile(0.0), compile(SPARE_WORK));
        let saved = 1.0 - spending.arena_bytes() as f64 / keeping.arena_bytes() as f64;
        let added = spending.cost().flops / keeping.cost().flops - 1.0;
        println!(
            "{}: {:.1} % less memory, {:.2} % more work",
            stage.name,
            100.0 * saved,
            100.0 * added
        );
        assert!(
            saved > 0.1 && added < SPARE_WORK,
            "{}: {saved}, {added}",
            stage.name
        );
    }
}

#[test]
fn an_impossible_budget_is_refused_with_the_smallest_possible_one() {
    let tiny = Tiny::new();
    let stage = tiny.recipe.stage("world-knowledge").expect("a stage");
    let options = CompileOptions {
        memory_budget: Some(1 << 10),
        ..on_cpu(2)
    };
    let problem = tiny.compile(stage, &options).unwrap_err().to_string();
    for part in [
        "--memory-budget",
        "at least",
        "MiB",
        "a smaller batch",
        "keeping everything",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
}

/// Nothing is allocated for these steps, whatever their size.
#[test]
fn the_arena_of_every_built_in_stage_is_within_a_percent_of_its_lower_bound() {
    for (name, _) in BUILT_IN {
        let recipe = Recipe::load(name, &[]).expect("a built-in recipe");
        let layout = declare(&recipe.model, recipe.contrastive_loss).expect("a model");
        for stage in &recipe.stages {
            let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
            let target = Target::Cpu { threads: 2 };
            let program = compile_step(&recipe, stage, &layout, &shape, target, None)
                .unwrap_or_else(|problem| panic!("{name} {}: {problem}", stage.name));
            let report = MemoryReport::new(&program, &layout);
            println!(
                "{name:14} {:20} arena {:>12} bytes, ratio {:.5}",
                stage.name,
                report.arena,
                report.ratio()
            );
            assert!(
                report.arena >= report.lower_bound && report.ratio() <= 1.01,
                "{name} {}: {} bytes, bound {}",
                stage.name,
                report.arena,
                report.lower_bound
            );
        }
    }
}

#[test]
fn a_published_size_meets_half_of_its_memory_by_computing_again() {
    let recipe = Recipe::load("sailvit-large", &[]).expect("a built-in recipe");
    let layout = declare(&recipe.model, recipe.contrastive_loss).expect("a model");
    let stage = recipe.stage("world-knowledge").expect("a stage");
    let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
    let target = Target::Cpu { threads: 2 };
    let compile = |budget| compile_step(&recipe, stage, &layout, &shape, target, budget);
    let whole = compile(None).expect("a built-in stage compiles");
    let budget = whole.arena_bytes() as u64 / 2;
    let half = compile(Some(budget)).expect("half is enough");
    let (kept, repeated) = (whole.cost().flops, half.cost().flops);
    println!(
        "arena {} bytes, {} under a budget of {budget}, {:.2} % more work",
        whole.arena_bytes(),
        half.arena_bytes(),
        (repeated / kept - 1.0) * 100.0
    );
    assert!(half.arena_bytes() as u64 <= budget);
    // A forward pass is a third of a step: computing all of it again is a third more work.
    assert!(kept < repeated && repeated < kept * 4.0 / 3.0);
}

#[test]
fn frozen_modules_get_no_gradients_and_record_no_work_for_them() {
    let tiny = Tiny::new();
    for stage in &tiny.recipe.stages {
        let program = tiny.compile(stage, &on_cpu(2)).expect("a step compiles");
        let trained = |name: &str| stage.trains(name);
        let entries = program.gradient_entries();
        assert!(entries.iter().all(|entry| trained(&entry.parameter)));
        for (spec, _) in program.parameters() {
            let has_entry = entries.iter().any(|entry| entry.parameter == spec.name);
            assert_eq!(
                has_entry,
                trained(&spec.name),
                "{}: {}",
                stage.name,
                spec.name
            );
            let is_readable = program.output(&format!("gradient.{}", spec.name)).is_ok();
            assert_eq!(is_readable, has_entry, "{}: {}", stage.name, spec.name);
        }
        for module in ["vision", "connector", "language", "text"] {
            let is_frozen = !stage.trains(&format!("{module}.x"));
            // Only a product for a weight's gradient reads no weight and makes one's shape; its place tells it.
            let work = program.ops().iter().filter(|step| {
                let instruction = &step.instruction;
                let is_here = instruction.scope.split('.').next() == Some(module);
                let op = instruction.op.name();
                let is_for_a_weight =
                    op.contains("weight_gradient") || op.contains("bias_gradient");
                let into_gradients = instruction.outputs.iter().any(|output| {
                    matches!(program.place(*output), Place::Fixed(Arena::Gradients, _))
                });
                is_here && instruction.is_backward && (is_for_a_weight || into_gradients)
            });
            let work = work.count();
            assert_eq!(
                work == 0,
                is_frozen || !uses(&program, module),
                "{} {module}",
                stage.name
            );
        }
        // Nothing before the vision tower is trained, so a frozen one is not walked backwards at all.
        if !stage.trains("vision.x") {
            let walked = program.ops().iter().any(|step| {
                step.instruction.is_backward && step.instruction.scope.starts_with("vision")
            });
            assert!(
                !walked,
                "{}: the frozen tower is walked backwards",
                stage.name
            );
        }
    }
}

/// Whether the program uses a parameter of the module.
fn uses(program: &Program, module: &str) -> bool {
    program
        .parameters()
        .iter()
        .any(|(spec, _)| spec.module() == module)
}

#[test]
fn named_values_can_be_kept_and_keeping_them_never_changes_a_bit() {
    let tiny = Tiny::new();
    let stage = tiny.recipe.stage("fine-grained").expect("a stage");
    let names = [
        "vision.patches",
        "vision.blocks.0",
        "vision.blocks.1",
        "vision.features",
        "connector.output",
        "language.inputs",
        "language.blocks.0",
        "language.blocks.1",
        "language.hidden",
        "caption.inputs",
        "caption.blocks.0",
        "caption.hidden",
        "align.image_feature",
        "align.text_feature",
    ];
    let keeping = CompileOptions {
        keep: names.map(str::to_owned).to_vec(),
        ..on_cpu(2)
    };
    let program = tiny.compile(stage, &keeping).expect("the names are known");
    assert_eq!(
        stage.objectives(Contrastive::InfoNce).pair,
        ContrastivePair::LanguageModel
    );
    let (_executor, mut session) = tiny.load(program, 2);
    tiny.write_inputs(&mut *session, stage, 0);
    session.run().expect("a step runs");
    for name in names {
        let values = session.read_f64(name).expect("a kept value is readable");
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let spread = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        assert!(
            spread.is_finite() && spread > 0.0,
            "{name}: every element is {mean}"
        );
    }
    // Two layers' outputs lie in different places, so keeping them is not reading one place twice.
    assert_ne!(
        session.read_f64("vision.blocks.0").unwrap(),
        session.read_f64("vision.blocks.1").unwrap()
    );
    let (plain, kept) = (tiny.train(stage, &on_cpu(2)), tiny.train(stage, &keeping));
    assert!(plain == kept, "keeping values changed bits");
}

#[test]
fn an_unknown_name_to_keep_is_refused_with_a_near_miss() {
    let tiny = Tiny::new();
    let stage = tiny.recipe.stage("fine-grained").expect("a stage");
    let options = CompileOptions {
        keep: vec!["vision.block.1".into()],
        ..on_cpu(1)
    };
    let problem = tiny.compile(stage, &options).unwrap_err().to_string();
    assert!(problem.contains("vision.block.1"), "{problem}");
    assert!(problem.contains("such as vision.blocks.1"), "{problem}");
}

#[test]
fn loading_a_step_allocates_what_the_plan_says() {
    let tiny = Tiny::new();
    for stage in &tiny.recipe.stages {
        let program = tiny.compile(stage, &on_cpu(2)).expect("a step compiles");
        let report = MemoryReport::new(&program, &tiny.layout);
        let planned = (report.total() - report.parameters) as i64;
        let (gradients, moments) = (report.gradients as usize, report.moments as usize);
        // What the executor notes of each op: two lists of types and their headers.
        let noted: usize = program
            .ops()
            .iter()
            .map(|step| {
                let arguments = step.instruction.inputs.len() + step.instruction.outputs.len();
                2 * size_of::<Vec<TensorType>>() + arguments * size_of::<TensorType>()
            })
            .sum();
        let program = std::sync::Arc::new(program);
        let executor = keel::executor::CpuExecutor::new(tiny.layout.elements(), 2)
            .expect("threads can be had");
        let (session, allocated) = measure(|| {
            use keel::executor::Executor;
            executor
                .load(program.clone())
                .expect("a tiny step fits in memory")
        });
        let beyond = allocated.peak_bytes - planned;
        assert!(
            (0..=2 * noted as i64 + 4096).contains(&beyond),
            "{}: {} bytes for {planned} planned and {noted} of notes",
            stage.name,
            allocated.peak_bytes
        );
        let bytes = |arena| size_of_val(session.read_arena(arena).unwrap().as_slice());
        assert_eq!(bytes(Arena::Gradients), gradients);
        let state = program.optimizer_state().iter();
        assert_eq!(
            state.map(|state| bytes(state.arena)).sum::<usize>(),
            moments
        );
        assert_eq!(gradients * 2, moments);
    }
}
