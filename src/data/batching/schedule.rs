//! Which task gets which slot of a mixture.

use super::task::Task;
use keel_base::error::{Error, Result};

/// Slots in one round of the schedule.
const ROUND: usize = 1024;

/// Which task gets which slot: a round of [`ROUND`] slots that repeats.
pub(super) struct Schedule {
    tasks: Vec<Task>,
    /// Slots of each task in a round.
    counts: Vec<u64>,
    /// For each slot of the round: its task, and how many earlier slots of the round have that task.
    slots: Vec<(usize, u64)>,
}

impl Schedule {
    pub fn new(weights: &[(Task, f64)]) -> Result<Schedule> {
        let mut positive: Vec<(Task, f64)> = Vec::new();
        for &(task, weight) in weights {
            if !weight.is_finite() || weight < 0.0 {
                return Err(Error::setting(
                    format!("data weight of {task}"),
                    "a number from 0 up",
                    weight,
                ));
            }
            if positive.iter().any(|&(earlier, _)| earlier == task) {
                return Err(Error::setting(
                    format!("data weight of {task}"),
                    "one weight",
                    "two",
                ));
            }
            if weight > 0.0 {
                positive.push((task, weight));
            }
        }
        let total: f64 = positive.iter().map(|&(_, weight)| weight).sum();
        if positive.is_empty() || !total.is_finite() {
            return Err(Error::setting(
                "data weights",
                "at least one positive, finite weight",
                "none",
            ));
        }
        // Largest remainders, after one slot for each task so that a small weight is never lost.
        let free = (ROUND - positive.len()) as f64;
        let exact: Vec<f64> = positive
            .iter()
            .map(|&(_, weight)| weight / total * ROUND as f64)
            .collect();
        let above: Vec<f64> = exact.iter().map(|share| (share - 1.0).max(0.0)).collect();
        let scale = free / above.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let mut counts: Vec<u64> = above
            .iter()
            .map(|share| 1 + (share * scale).floor() as u64)
            .collect();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        let remainder = |k: usize| (above[k] * scale).fract();
        order.sort_by(|&x, &y| remainder(y).total_cmp(&remainder(x)).then(x.cmp(&y)));
        let missing = ROUND - counts.iter().sum::<u64>() as usize;
        for &k in order.iter().cycle().take(missing) {
            counts[k] += 1;
        }
        let mut given = vec![0u64; counts.len()];
        let slots = (1..=ROUND as u64)
            .map(|slot| {
                // The task furthest behind its due share; the earlier one on a tie.
                let behind =
                    |k: usize| (counts[k] * slot) as i64 - (given[k] * ROUND as u64) as i64;
                let next = (0..counts.len())
                    .rev()
                    .max_by_key(|&k| behind(k))
                    .unwrap_or(0);
                given[next] += 1;
                (next, given[next] - 1)
            })
            .collect();
        Ok(Schedule {
            tasks: positive.into_iter().map(|(task, _)| task).collect(),
            counts,
            slots,
        })
    }

    /// The task of a slot, as its place among [`Schedule::tasks`], and which of the task's turns it is.
    pub fn at(&self, slot: u64) -> (usize, u64) {
        let (round, within) = (slot / ROUND as u64, slot % ROUND as u64);
        let (task, earlier) = self.slots[within as usize];
        (task, round * self.counts[task] + earlier)
    }

    /// The tasks of a positive weight, in the order of the weights.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The share of slots of the task at this place.
    pub fn share(&self, task: usize) -> f64 {
        self.counts[task] as f64 / ROUND as f64
    }
}
