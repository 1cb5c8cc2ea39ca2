//! Every executor that this machine has.

use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, Session, SimtExecutor};
use keel::program::{CompileOptions, Program};
use keel::tape::{Tape, Target};

use super::gpu::gpu;

/// The tape's program, loaded on every executor present.
pub fn on_every_executor(record: impl Fn() -> Tape) -> Vec<Box<dyn Session>> {
    let load = |executor: &dyn Executor, target| {
        let program = Program::compile(record(), &CompileOptions::new(target))
            .unwrap_or_else(|problem| panic!("planning failed: {problem}"));
        executor
            .load(Arc::new(program))
            .expect("a small program fits in memory")
    };
    let cpu = CpuExecutor::new(0, 2).expect("threads can be had");
    let mut sessions = vec![
        load(&ReferenceExecutor::new(0), Target::Reference),
        load(&cpu, Target::Cpu { threads: 2 }),
    ];
    if let Ok(simt) = SimtExecutor::new(0, Options::default()) {
        sessions.push(load(&simt, Target::Cuda));
    }
    if let Some(gpu) = gpu() {
        sessions.push(load(&gpu.executor, Target::Cuda));
    }
    sessions
}
