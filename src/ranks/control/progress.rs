//! What a rank is doing, for the others to know when it does not go on.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What part of a run a rank is in. Each has its own patience.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Opens data, loads weights, plans.
    #[default]
    Load,
    /// Makes the samples of a step.
    Data,
    /// Computes a step.
    Step,
    /// Writes a checkpoint.
    Save,
    /// Evaluates.
    Evaluate,
}

impl Phase {
    const ALL: [Phase; 5] = [
        Phase::Load,
        Phase::Data,
        Phase::Step,
        Phase::Save,
        Phase::Evaluate,
    ];

    /// In words, after "while it".
    pub const fn doing(self) -> &'static str {
        match self {
            Phase::Load => "loads",
            Phase::Data => "makes samples",
            Phase::Step => "computes",
            Phase::Save => "saves",
            Phase::Evaluate => "evaluates",
        }
    }
}

/// What a rank waits for others in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wait {
    /// A collective of its engine, from 1.
    Collective(u64),
    /// A vote, from 1.
    Vote(u64),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Collective(number) => write!(f, "collective {number}"),
            Wait::Vote(number) => write!(f, "vote {number}"),
        }
    }
}

impl Wait {
    /// As one number above 0.
    fn packed(self) -> u64 {
        match self {
            Wait::Collective(number) => number << 1,
            Wait::Vote(number) => number << 1 | 1,
        }
    }

    fn unpacked(packed: u64) -> Option<Wait> {
        match (packed >> 1, packed & 1) {
            (0, _) => None,
            (number, 0) => Some(Wait::Collective(number)),
            (number, _) => Some(Wait::Vote(number)),
        }
    }
}

/// One look at a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doing {
    /// The part of the run.
    pub phase: Phase,
    /// The step of the run, from 0.
    pub step: u64,
    /// What it waits for others in, where it does.
    pub waits_in: Option<Wait>,
    /// Grows with everything that it does: where it stands still, the rank does.
    pub moves: u64,
    /// How long it has waited for others in all.
    pub waited: Duration,
}

/// Where a rank's threads write what they do. Writing is a few stores: it is done in every step.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU32,
    step: AtomicU64,
    waits_in: AtomicU64,
    moves: AtomicU64,
    waited_nanoseconds: AtomicU64,
}

impl Progress {
    /// Enters a part of the run, at the step that it was at where none is given.
    pub fn enter(&self, phase: Phase, step: Option<u64>) {
        self.phase.store(phase as u32, Ordering::Relaxed);
        if let Some(step) = step {
            self.step.store(step, Ordering::Relaxed);
        }
        self.moved();
    }

    /// Notes that something was done.
    pub fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the rank waits for the others in `place` while `wait` runs.
    pub fn waiting<T>(&self, place: Wait, wait: impl FnOnce() -> T) -> T {
        self.waits_in.store(place.packed(), Ordering::Relaxed);
        let began = Instant::now();
        let result = wait();
        let waited = began.elapsed().as_nanos() as u64;
        self.waited_nanoseconds.fetch_add(waited, Ordering::Relaxed);
        self.waits_in.store(0, Ordering::Relaxed);
        self.moved();
        result
    }

    /// What the rank does now.
    pub fn doing(&self) -> Doing {
        let phase = self.phase.load(Ordering::Relaxed) as usize;
        Doing {
            phase: Phase::ALL[phase],
            step: self.step.load(Ordering::Relaxed),
            waits_in: Wait::unpacked(self.waits_in.load(Ordering::Relaxed)),
            moves: self.moves.load(Ordering::Relaxed),
            waited: Duration::from_nanos(self.waited_nanoseconds.load(Ordering::Relaxed)),
        }
    }
}
