//! Every op that a step spends time in, forward and backward, at the lead steps' shapes.
//!
//!     cargo bench --bench kernels [-- FILTER]
//!
//! Criterion's elements a second are floating-point operations a second, from the ops' own costs.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use keel::error::Result;
use keel::executor::{CpuExecutor, Executor, Session};
use keel::program::{CompileOptions, Program};
use keel::tape::Target;
use keel::tensor::DType;
use keel_kernel_report::{Direction, Example, Size, examples, fill};

/// The example's program: the op alone, or with its backward under a made-up cotangent.
fn load(
    example: &Example,
    executor: &CpuExecutor,
    direction: Direction,
) -> Result<Box<dyn Session>> {
    let tape = example.record(DType::F32, direction)?;
    let target = Target::Cpu {
        threads: executor.threads(),
    };
    let program = Program::compile(tape, &CompileOptions::new(target))?;
    let mut session = executor.load(Arc::new(program))?;
    fill(session.as_mut(), Size::Small.vocabulary())?;
    Ok(session)
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let executor = CpuExecutor::new(0, threads).expect("threads can be had");
    println!(
        "peak: {:.0} GFLOP/s on {threads} threads",
        executor.peak_flops() / 1e9
    );
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for example in examples(Size::Small) {
        let mut group = criterion.benchmark_group(example.op);
        for (name, direction) in [
            ("forward", Direction::Forward),
            ("forward and backward", Direction::Both),
        ] {
            let mut session = load(&example, &executor, direction).expect("examples are valid");
            group.throughput(Throughput::Elements(session.program().cost().flops as u64));
            group.bench_function(BenchmarkId::new(name, &example.shape), |bencher| {
                bencher.iter(|| session.run().expect("the processor cannot fail"));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
