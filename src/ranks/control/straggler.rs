//! Who makes the others wait.
//!
//! How long a rank's own computing takes says nothing: collectives make all steps equally long. How long it waits does: the
//! slowest rank waits least. Waits are durations, so the hosts' clocks need not agree.

use std::time::Duration;

/// A rank that all others wait for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Straggler {
    /// The rank.
    pub rank: usize,
    /// How long the middle one of the others waits for it in that time.
    pub by: Duration,
}

/// Looks for a rank that is the slowest again and again.
#[derive(Clone, Debug, Default)]
pub struct Stragglers {
    /// The slowest of the last time, and how often in a row it has been.
    slowest: Option<(usize, u32)>,
}

/// So many times in a row, and it is no accident.
const TIMES: u32 = 10;

/// Less than this share of the time is not worth a word.
const SHARE: f64 = 0.1;

impl Stragglers {
    /// Takes how long each rank waited in some time. Names a rank once it has been the slowest ten times in a row by a tenth
    /// of the time, and again every ten times.
    pub fn note(&mut self, waited: &[Duration], time: Duration) -> Option<Straggler> {
        let found = slowest(waited).filter(|one| one.by.as_secs_f64() > SHARE * time.as_secs_f64());
        let Some(one) = found else {
            self.slowest = None;
            return None;
        };
        let times = match self.slowest {
            Some((rank, times)) if rank == one.rank => times + 1,
            _ => 1,
        };
        self.slowest = Some((one.rank, times));
        times.is_multiple_of(TIMES).then_some(one)
    }
}

/// The rank that waits least, and by how much less than the middle one of the others; `None` for fewer than two ranks.
pub fn slowest(waited: &[Duration]) -> Option<Straggler> {
    let (rank, least) = waited
        .iter()
        .enumerate()
        .min_by_key(|(_, waited)| **waited)?;
    let mut others: Vec<Duration> = waited.to_vec();
    others.remove(rank);
    others.sort_unstable();
    let middle = others.get((others.len().max(1) - 1) / 2)?;
    Some(Straggler {
        rank,
        by: *middle - *least,
    })
}
