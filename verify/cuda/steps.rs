//! Programs through the GPU's executor: the bits of the emulator's, in the order of the program, however they are started.

use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{Executor, Session, SimtExecutor};
use keel::ops;
use keel::program::{CompileOptions, Program};
use keel::tape::{Arena, Init, ParameterLayout, ParameterSpec, Tape, Target};
use keel::tensor::{DType, TensorType};

use super::{Children, executor, is_child};
use crate::harness::Random;

/// Runs of each program; inputs and parameters differ in each.
const RUNS: u64 = 4;

const ROWS: usize = 70;
const WIDTHS: [usize; 3] = [40, 72, 24];

pub fn layout() -> Arc<ParameterLayout> {
    let spec = |name: &str, shape: &[usize]| ParameterSpec {
        name: name.to_owned(),
        shape: shape.into(),
        init: Init::Constant(0.0),
        decays: shape.len() > 1,
    };
    let [a, b, c] = WIDTHS;
    Arc::new(ParameterLayout::new(&[
        spec("up.weight", &[b, a]),
        spec("up.bias", &[b]),
        spec("down.weight", &[c, b]),
    ]))
}

/// Two layers and the gradients of both, with memory shared among values.
pub fn program(layout: &Arc<ParameterLayout>, precision: DType) -> Arc<Program> {
    let mut tape = Tape::new(layout.clone(), |_| true).in_precision(precision);
    let mut record = || -> keel::error::Result<()> {
        let parameter = |tape: &mut Tape, name: &str| {
            let spec = layout.get(name).expect("just laid out").spec.clone();
            tape.parameter(spec)
        };
        let x = tape.input("x", TensorType::new(precision, [ROWS, WIDTHS[0]]));
        let weight = parameter(&mut tape, "up.weight")?;
        let bias = parameter(&mut tape, "up.bias")?;
        let hidden = ops::linear(&mut tape, x, weight, Some(bias))?;
        let weight = parameter(&mut tape, "down.weight")?;
        let y = ops::linear(&mut tape, hidden, weight, None)?;
        tape.output(y, "y");
        let dy = tape.input("dy", TensorType::new(precision, [ROWS, WIDTHS[2]]));
        tape.backward_from(&[(y, dy)])
    };
    record().expect("the shapes fit");
    let options = CompileOptions::new(Target::Cuda);
    Arc::new(Program::compile(tape, &options).expect("a small plan"))
}

pub fn write(session: &mut dyn Session, run: u64) {
    let mut random = Random::new(run);
    for (name, width) in [("x", WIDTHS[0]), ("dy", WIDTHS[2])] {
        let values = random.normals(ROWS * width, 1.0);
        session.write_f32(name, &values).expect("the input fits");
    }
}

pub fn parameters(layout: &ParameterLayout, run: u64) -> Vec<f32> {
    Random::new(100 + run).normals(layout.elements(), 0.1)
}

/// Everything a run leaves, as bits.
fn read(session: &dyn Session) -> Vec<u64> {
    let mut values = session.read_f64("y").expect("an output");
    values.extend(
        session
            .read_arena(Arena::Gradients)
            .unwrap()
            .iter()
            .map(|x| f64::from(*x)),
    );
    values.into_iter().map(f64::to_bits).collect()
}

/// All runs one after the other.
fn train(
    executor: &dyn Executor,
    layout: &ParameterLayout,
    program: Arc<Program>,
) -> Vec<Vec<u64>> {
    let mut session = executor.load(program).expect("a small program");
    (0..RUNS)
        .map(|run| {
            executor
                .write_parameters(0, &parameters(layout, run))
                .unwrap();
            write(&mut *session, run);
            session.run().expect("the kernels are clean");
            read(&*session)
        })
        .collect()
}

/// As [`train`], but the next inputs are written before the results are read: twice, and other ones first.
fn train_ahead(
    executor: &dyn Executor,
    layout: &ParameterLayout,
    program: Arc<Program>,
) -> Vec<Vec<u64>> {
    let mut session = executor.load(program).expect("a small program");
    write(&mut *session, 0);
    (0..RUNS)
        .map(|run| {
            executor
                .write_parameters(0, &parameters(layout, run))
                .unwrap();
            session.run().expect("the kernels are clean");
            write(&mut *session, run + 50);
            write(&mut *session, run + 1);
            read(&*session)
        })
        .collect()
}

#[test]
fn programs_give_the_bits_of_the_emulator_through_graphs_and_without() {
    if is_child() {
        let layout = layout();
        for precision in [DType::F32, DType::Bf16] {
            let program = program(&layout, precision);
            let simt = SimtExecutor::new(layout.elements(), Options::default());
            let want = train(
                &simt.expect("the driver has one too"),
                &layout,
                program.clone(),
            );
            assert!(
                want.iter().skip(1).all(|run| run != &want[0]),
                "every run has inputs of its own"
            );
            let cuda = executor(layout.elements(), precision).expect("the driver has a GPU");
            assert!(
                want == train(&cuda, &layout, program.clone()),
                "{precision}: in order"
            );
            assert!(
                want == train_ahead(&cuda, &layout, program.clone()),
                "{precision}: written ahead"
            );
            for warning in cuda.take_warnings() {
                eprintln!("{warning}");
            }
        }
        return;
    }
    let name = "cuda::steps::programs_give_the_bits_of_the_emulator_through_graphs_and_without";
    let Some(children) = Children::of(name) else {
        return;
    };
    // Two precisions, two trainings each.
    let graphs = 4 * RUNS as usize;
    let cannot = "cannot be captured as a graph (CUDA_ERROR_STREAM_CAPTURE_";
    for (settings, variables, replays, says) in [
        ("", [("KEEL_CUDA_SYNC", "0")], graphs, ""),
        ("late", [("KEEL_CUDA_SYNC", "0")], graphs, ""),
        ("late capability=80", [("KEEL_CUDA_SYNC", "")], graphs, ""),
        ("late", [("KEEL_CUDA_SYNC", "1")], 0, ""),
        (
            "fail=cuStreamBeginCapture_v2:1:900",
            [("KEEL_CUDA_SYNC", "0")],
            graphs - RUNS as usize,
            cannot,
        ),
        (
            "late fail=cuStreamEndCapture:2:901",
            [("KEEL_CUDA_SYNC", "0")],
            graphs - RUNS as usize,
            cannot,
        ),
        (
            "late fail=cuLaunchKernel:2:900",
            [("KEEL_CUDA_SYNC", "0")],
            graphs - RUNS as usize,
            cannot,
        ),
        (
            "late fail=cuGraphInstantiateWithFlags:4:901",
            [("KEEL_CUDA_SYNC", "0")],
            graphs - RUNS as usize,
            cannot,
        ),
    ] {
        let outcome = children.run(settings, &variables);
        let launched = outcome.log.matches("graph launch\n").count();
        assert_eq!(launched, replays, "{settings}: {}", outcome.log);
        assert!(
            outcome.noise.contains(says),
            "{settings}: {}",
            outcome.noise
        );
        assert_eq!(
            outcome.noise.is_empty(),
            says.is_empty(),
            "{settings}: {}",
            outcome.noise
        );
    }
}

/// The runs of one session, whose inputs nobody else has.
fn run_alone(session: &mut dyn Session, number: u64) -> Vec<Vec<u64>> {
    (0..RUNS)
        .map(|run| {
            write(session, 1000 * number + run);
            session.run().expect("the kernels are clean");
            read(session)
        })
        .collect()
}

#[test]
fn sessions_on_threads_of_their_own_give_the_bits_of_one_after_the_other() {
    if is_child() {
        let layout = layout();
        let cuda = executor(layout.elements(), DType::Bf16).expect("the driver has a GPU");
        cuda.write_parameters(0, &parameters(&layout, 0)).unwrap();
        let load = || {
            cuda.load(program(&layout, DType::Bf16))
                .expect("a small program")
        };
        let numbers = [0, 1, 2];
        let want = numbers.map(|number| run_alone(&mut *load(), number));
        let got = std::thread::scope(|scope| {
            let threads = numbers.map(|number| {
                let mut session = load();
                scope.spawn(move || run_alone(&mut *session, number))
            });
            threads.map(|thread| thread.join().expect("it does not panic"))
        });
        assert!(want == got);
        return;
    }
    let name = "cuda::steps::sessions_on_threads_of_their_own_give_the_bits_of_one_after_the_other";
    let Some(children) = Children::of(name) else {
        return;
    };
    for (settings, synchronous) in [("", "0"), ("late", "0"), ("late", "1")] {
        children.run(settings, &[("KEEL_CUDA_SYNC", synchronous)]);
    }
}

#[test]
fn a_graph_goes_before_the_images_of_its_kernels() {
    if is_child() {
        let layout = layout();
        let cuda = executor(layout.elements(), DType::F32).expect("the driver has a GPU");
        let mut session = cuda
            .load(program(&layout, DType::F32))
            .expect("a small program");
        // The executor, which also keeps the images, may be gone while its sessions run.
        drop(cuda);
        write(&mut *session, 0);
        session.run().expect("the kernels are clean");
        return;
    }
    let name = "cuda::steps::a_graph_goes_before_the_images_of_its_kernels";
    let Some(children) = Children::of(name) else {
        return;
    };
    let outcome = children.run("late", &[]);
    // That nothing is logged as misuse is held of every child.
    assert!(outcome.log.contains("graph launch\n"), "{}", outcome.log);
}

#[test]
fn the_peak_is_that_of_the_clock_that_was_seen_under_load() {
    if is_child() {
        let layout = layout();
        let cuda = executor(layout.elements(), DType::Bf16).expect("the driver has a GPU");
        let mut session = cuda
            .load(program(&layout, DType::Bf16))
            .expect("a small program");
        println!("peak: {:.0}", cuda.peak_flops());
        write(&mut *session, 0);
        session.run().expect("the kernels are clean");
        read(&*session);
        println!("peak: {:.0}", cuda.peak_flops());
        return;
    }
    let name = "cuda::steps::the_peak_is_that_of_the_clock_that_was_seen_under_load";
    let Some(children) = Children::of(name) else {
        return;
    };
    // Two multiprocessors of 4096 operations a cycle at 1 GHz.
    let highest = "8192000000000";
    for (settings, peaks) in [
        ("late", [highest, highest]),
        ("late sm_clock=1000", [highest, highest]),
        ("late sm_clock=750", [highest, "6144000000000"]),
        // Nothing is under way when it is waited for: that clock is not one of work.
        ("sm_clock=750", [highest, highest]),
        ("late clock=0", ["0", "0"]),
        ("late clock=0 sm_clock=500", ["0", "4096000000000"]),
    ] {
        let outcome = children.run(settings, &[]);
        let said: Vec<&str> = outcome
            .said
            .lines()
            .filter_map(|line| Some(line.split_once("peak: ")?.1))
            .collect();
        assert_eq!(said, peaks, "{settings}");
    }
}

#[test]
fn a_timed_run_gives_each_op_its_time_and_the_same_values() {
    if is_child() {
        let layout = layout();
        let program = program(&layout, DType::F32);
        let cuda = executor(layout.elements(), DType::F32).expect("the driver has a GPU");
        let want = train(&cuda, &layout, program.clone());
        let mut session = cuda.load(program.clone()).expect("a small program");
        let mut seconds = vec![0.0; program.ops().len()];
        let run = RUNS - 1;
        write(&mut *session, run);
        session
            .run_timed(&mut seconds)
            .expect("the kernels are clean");
        assert!(want[run as usize] == read(&*session));
        for (step, seconds) in program.ops().iter().zip(&seconds) {
            let has_work = !step.instruction.op.is_view();
            assert!(
                !has_work || *seconds > 0.0,
                "{}: {seconds} s",
                step.instruction.op.name()
            );
        }
        return;
    }
    let name = "cuda::steps::a_timed_run_gives_each_op_its_time_and_the_same_values";
    if let Some(children) = Children::of(name) {
        children.run("late", &[]);
    }
}
