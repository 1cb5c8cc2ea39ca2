//! Every kernel of the product runs on the machine and leaves what it leaves on the emulator: the same bits where it executes
//! nothing that is fused or approximate, and values within the stated bound elsewhere.

use std::sync::{Arc, Mutex};

use keel::error::Result;
use keel::executor::Executor;
use keel::executor::kernel_table::KERNELS;
use keel::executor::simt::Emulator;
use keel::ops::{self, Contrastive};
use keel::program::Program;
use keel::ranks::Seat;
use keel::tensor::DType;
use keel_ptx::{CopyTiming, Options, PtxExecutor, Record};

use crate::harness::{on_ranks, ptx};
use crate::simt::coverage::{self, PROGRAMS};

/// Makes a program of what was recorded.
type Make = fn(coverage::Record, DType) -> Result<Program>;

/// Products with as many large tiles as the chip has multiprocessors, which is when kernels for large tiles are chosen, and
/// as little other work as there can be.
const LARGE: &[(&str, Make, coverage::Record)] = &[
    ("linear", coverage::program, |t| {
        let (x, w) = (t.frozen([1536, 16]), t.frozen([1408, 16]));
        ops::linear(t.tape(), x, w, None)
    }),
    (
        "linear of the Hopper tier",
        coverage::program_on_hopper,
        |t| {
            let (x, w) = (t.frozen([8450, 16]), t.frozen([8, 16]));
            ops::linear(t.tape(), x, w, None)
        },
    ),
    (
        "linear's input of the Hopper tier",
        coverage::gradients_on_hopper,
        |t| {
            let (x, w) = (t.x([8450, 8]), t.frozen([16, 8]));
            ops::linear(t.tape(), x, w, None)
        },
    ),
    (
        "linear's weight of the Hopper tier",
        coverage::gradients_on_hopper,
        |t| {
            let (x, w, b) = (t.frozen([512, 8]), t.x([4304, 8]), t.x([4304]));
            ops::linear(t.tape(), x, w, Some(b))
        },
    ),
    ("linear's input", coverage::gradients, |t| {
        let (x, w) = (t.x([1536, 1408]), t.frozen([16, 1408]));
        ops::linear(t.tape(), x, w, None)
    }),
    ("linear's weight", coverage::gradients, |t| {
        let (x, w) = (t.frozen([16, 1408]), t.x([1536, 1408]));
        ops::linear(t.tape(), x, w, None)
    }),
    ("patch_embed", coverage::program, |t| {
        let (images, w) = (t.constant([24, 3, 32, 32]), t.frozen([1408, 48]));
        ops::patch_embed(t.tape(), images, w, None, None, 4)
    }),
    ("patch_embed's images", coverage::gradients, |t| {
        let (images, w) = (t.x([24, 3, 168, 168]), t.frozen([16, 1323]));
        ops::patch_embed(t.tape(), images, w, None, None, 21)
    }),
    ("patch_embed's weight", coverage::gradients, |t| {
        let (images, w) = (t.constant([1, 3, 42, 42]), t.x([1536, 1323]));
        ops::patch_embed(t.tape(), images, w, None, None, 21)
    }),
    ("contrastive_loss", coverage::gradients, |t| {
        coverage::contrastive(t, [20, 16896], Contrastive::Sigmoid, false)
    }),
];

fn run(
    what: &str,
    program: Program,
    elements: usize,
    options: Options,
    record: &Arc<Mutex<Record>>,
    seat: &Seat,
) {
    let mut executor = PtxExecutor::new(elements, options, record.clone())
        .expect("there is PTX")
        .within_bound();
    if let Some(engine) = seat.engine() {
        executor.join(engine.clone()).expect("it takes an engine");
    }
    coverage::run_on(&executor, program).unwrap_or_else(|problem| panic!("{what}: {problem}"));
}

#[test]
fn every_kernel_agrees_with_the_emulator() {
    let Some(seen) = ptx::seen() else { return };
    if let Err(reason) = Emulator::new() {
        eprintln!("not run: {reason}");
        return;
    }
    let record: Arc<Mutex<Record>> = Arc::default();
    let (late, alone) = (Options::default(), Seat::default());
    let early = Options {
        copies: CopyTiming::Early,
        runs_backwards: true,
        ..late
    };
    for precision in [DType::F32, DType::Bf16] {
        for (what, program) in PROGRAMS {
            let what = &format!("{what} in {precision}");
            for options in [late, early] {
                let program = coverage::program(*program, precision).expect("it is recorded");
                run(what, program, 0, options, &record, &alone);
            }
        }
        for (what, make, program) in LARGE {
            let what = &format!("{what} in {precision}, large");
            let program = make(*program, precision).expect("it is recorded");
            run(what, program, 0, late, &record, &alone);
        }
    }
    for precision in [DType::F32, DType::Bf16] {
        for ranks in [1, 2] {
            on_ranks(ranks, |seat| {
                let what = &format!("an update in {precision}");
                let (program, elements) = coverage::update(seat.world(), precision);
                run(what, program, elements, late, &record, &seat);
            });
        }
    }
    let record = record.lock().expect("nothing panicked");
    let left_over: Vec<&str> = KERNELS
        .iter()
        .map(|kernel| kernel.name)
        .filter(|name| {
            record
                .kernels
                .get(*name)
                .is_none_or(|kernel| kernel.compared == 0)
        })
        .collect();
    assert!(left_over.is_empty(), "not run: {}", left_over.join(", "));
    for (name, kernel) in &record.kernels {
        assert!(kernel.same_bits >= kernel.exact, "{name}: {kernel:?}");
    }
    let is_exact = |kernel: &&keel_ptx::Agreement| kernel.exact == kernel.compared;
    // More than a third of the kernels compute nothing that two compilers may round differently.
    assert!(record.kernels.values().filter(is_exact).count() > KERNELS.len() / 3);
    seen.merge(&record);
}
