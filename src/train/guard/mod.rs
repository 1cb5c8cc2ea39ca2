//! Watches losses and gradients: what is not finite, and losses far above those of late. After several bad steps in a row
//! the run goes back to where it was well and leaves the data of those steps out; where that does not help, it stops.
//!
//! The measure is robust: median and median absolute deviation of losses that were well (Hampel 1974), so that neither a
//! NaN nor the spike itself can move it, with a least rise in nats for losses near zero. Leaving data out is how PaLM got past its spikes (Chowdhery et al. 2022, section
//! 5.1). Everything it knows is part of a checkpoint's position: a resumed run judges as the first would have.

mod recheck;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

pub(super) use recheck::Recheck;

/// Bad steps in a row after which a run goes back, or stops.
pub const MOST_STRIKES: u32 = 5;
/// Times that a stage goes back, at most.
pub const MOST_RETURNS: u32 = 2;
/// Losses that are remembered.
const WINDOW: usize = 64;
/// Losses without which no spike is called.
const FEWEST: usize = 24;
/// Median absolute deviations to one standard deviation of normal noise.
const TO_DEVIATION: f64 = 1.4826;
/// A deviation counts as at least this share of the median: losses that hardly vary must not make noise a spike.
const LEAST_DEVIATION: f64 = 0.02;
/// Nats that a spike rises above the median, at least. A contrastive loss that has been learnt lies at a thousandth of what chance
/// gives, and batches differ by ten times that: a ratio of their noise would call each of them a spike, and end the run.
const LEAST_RISE: f64 = 0.1;

/// What a guard knows of one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guard {
    /// The latest losses that were well.
    losses: VecDeque<f64>,
    /// Bad steps in a row.
    strikes: u32,
    /// Bad steps so far, all.
    pub bad_steps: u64,
    /// Times the stage has gone back.
    returns: u32,
    /// Whether a step was well since the stage last went back.
    was_well: bool,
    /// Runs of batches that are left out: the first and how many, by rising first. Batches are counted as if none were.
    skipped: Vec<[u64; 2]>,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What to do about a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Well,
    /// Say so and go on.
    Bad(String),
    /// Say so, go back and leave out the data of the last [`MOST_STRIKES`] steps.
    GoBack(String),
    /// Say so and stop: going back has not helped.
    Stop(String),
}

impl Guard {
    /// Judges a step by its loss and gradient norm. `threshold` is in standard deviations above the median; 0 calls no
    /// spikes.
    pub fn judge(&mut self, loss: f64, gradient_norm: f64, threshold: f64) -> Verdict {
        let why = if !(loss.is_finite() && gradient_norm.is_finite()) {
            format!(
                "loss {loss} and gradient norm {gradient_norm} are not finite; the update was not applied"
            )
        } else if let Some(limit) = self.limit(threshold).filter(|limit| loss > *limit) {
            format!("loss {loss:.4} is a spike: those of late say at most {limit:.4}")
        } else {
            self.strikes = 0;
            self.was_well = true;
            if self.losses.len() == WINDOW {
                self.losses.pop_front();
            }
            self.losses.push_back(loss);
            return Verdict::Well;
        };
        self.bad_steps += 1;
        self.strikes += 1;
        if self.strikes < MOST_STRIKES {
            return Verdict::Bad(why);
        }
        // Bad from the first step on after going back: the data is not the cause.
        let is_hopeless = self.returns > 0 && !self.was_well;
        if self.returns < MOST_RETURNS && !is_hopeless {
            Verdict::GoBack(why)
        } else {
            Verdict::Stop(why)
        }
    }

    /// The largest loss that is no spike; nothing as long as too little is known.
    fn limit(&self, threshold: f64) -> Option<f64> {
        if threshold <= 0.0 {
            return None;
        }
        let middle = self.typical_loss()?;
        let mut off: Vec<f64> = self
            .losses
            .iter()
            .map(|loss| (loss - middle).abs())
            .collect();
        let deviation = (TO_DEVIATION * median(&mut off)).max(LEAST_DEVIATION * middle.abs());
        Some(middle + (threshold * deviation).max(LEAST_RISE))
    }

    /// The median of the losses of late; nothing as long as too little is known.
    pub fn typical_loss(&self) -> Option<f64> {
        let mut losses: Vec<f64> = self.losses.iter().copied().collect();
        (losses.len() >= FEWEST).then(|| median(&mut losses))
    }

    /// Whether the last step was well, so that what it left is worth keeping.
    pub fn is_well(&self) -> bool {
        self.strikes == 0
    }

    /// The batch of step `step`: what is left out is passed over.
    pub fn batch_of(&self, step: u64) -> u64 {
        let mut batch = step;
        for [first, count] in &self.skipped {
            if *first <= batch {
                batch += count;
            }
        }
        batch
    }

    /// The guard that goes on where `healthy`, the guard of an earlier step, was, with the batches of the bad steps, the last
    /// of which was `last`, left out. Returns their first batch too.
    pub fn go_back(&self, healthy: Guard, last: u64) -> (Guard, u64) {
        let strikes = u64::from(MOST_STRIKES);
        assert!(last + 1 >= strikes, "the bad steps are steps of the stage");
        let first = self.batch_of(last + 1 - strikes);
        let count = self.batch_of(last) + 1 - first;
        let mut guard = Guard {
            strikes: 0,
            bad_steps: self.bad_steps,
            returns: self.returns + 1,
            was_well: false,
            skipped: self.skipped.clone(),
            losses: healthy.losses,
        };
        // What was left out between them before is part of the new run of batches.
        guard
            .skipped
            .retain(|[old, _]| !(first..first + count).contains(old));
        guard.skipped.push([first, count]);
        guard.skipped.sort_unstable();
        (guard, first)
    }
}
