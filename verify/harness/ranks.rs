//! Ranks as threads of the test, and the executors that they compute with.

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::program::CompileOptions;
use keel::ranks::{Seat, local};
use keel::tape::{CompileTarget, Target};

/// Runs `of_rank` on a thread for each of `ranks` ranks; their results in order.
pub fn on_ranks<T: Send>(ranks: usize, of_rank: impl Fn(Seat) -> T + Sync) -> Vec<T> {
    let of_rank = &of_rank;
    std::thread::scope(|scope| {
        let threads: Vec<_> = local::seats(ranks)
            .into_iter()
            .map(|seat| scope.spawn(move || of_rank(seat)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank's assertion failed, above"))
            .collect()
    })
}

/// What a rank computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankOn {
    Reference,
    Cpu,
    Simt,
}

impl RankOn {
    /// Those that this machine has.
    pub fn all() -> Vec<RankOn> {
        let mut all = vec![RankOn::Reference, RankOn::Cpu];
        if SimtExecutor::new(0, Options::default()).is_ok() {
            all.push(RankOn::Simt);
        }
        all
    }

    /// An executor for `elements` parameters that has joined the seat's ranks.
    pub fn executor(self, elements: usize, seat: &Seat) -> Box<dyn Executor> {
        let mut executor: Box<dyn Executor> = match self {
            RankOn::Reference => Box::new(ReferenceExecutor::new(elements)),
            RankOn::Cpu => Box::new(CpuExecutor::new(elements, 1).expect("a thread can be had")),
            RankOn::Simt => {
                let executor = SimtExecutor::isolating(elements, Options::default());
                Box::new(executor.expect("the emulator is there"))
            }
        };
        if let Some(engine) = seat.engine() {
            executor.join(engine.clone()).expect("it takes an engine");
        }
        executor
    }

    /// How programs for it are compiled: on the emulator every value has an allocation of its own.
    pub fn options(self) -> CompileOptions {
        let target: CompileTarget = match self {
            RankOn::Reference => Target::Reference,
            RankOn::Cpu => Target::Cpu { threads: 1 },
            RankOn::Simt => Target::Cuda,
        }
        .into();
        CompileOptions {
            share_memory: self != RankOn::Simt,
            ..CompileOptions::new(target)
        }
    }
}
