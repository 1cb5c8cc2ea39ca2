//! The learning rate over the steps of a stage.

use serde::{Deserialize, Serialize};

use super::Stage;

/// What the learning rate does after its linear warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays at `learning_rate`.
    Constant,
    /// It falls along half a cosine, to `min_learning_rate_ratio` of the peak (Loshchilov and Hutter 2017, eq. 5, without
    /// restarts).
    Cosine,
    /// It stays at `learning_rate`, and falls over the last `decay_ratio` of the steps in the form of `decay_shape`, to
    /// `min_learning_rate_ratio` of the peak (WSD: Hu et al. 2024, MiniCPM, §4).
    WarmupStableDecay,
}

/// The form in which the learning rate falls at the end of `warmup_stable_decay`, with s the fraction of the fall that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayShape {
    /// 1 − s.
    Linear,
    /// 1 − √s, which Hägele et al. 2024 (arXiv 2405.18392, §3) find best.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// The fraction of the steps that the fall takes where `decay_ratio` is left out.
pub(super) const DECAY_RATIO: f64 = 0.1;

impl Stage {
    /// The learning rate of step `step` (from 0) of `steps`, of parameters without a rate of their own.
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        let rise = (self.warmup_ratio * steps as f64).round();
        let done = step as f64 + 1.0;
        if done <= rise {
            return self.learning_rate * done / rise;
        }
        let (step, steps) = (step as f64, steps as f64);
        let height = match self.schedule {
            Schedule::Constant => return self.learning_rate,
            Schedule::Cosine => {
                let part = (step - rise) / (steps - rise).max(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * part).cos())
            }
            Schedule::WarmupStableDecay => {
                let fall = (self.decay_ratio.unwrap_or(DECAY_RATIO) * steps).round();
                let begin = steps - fall;
                if step < begin {
                    1.0
                } else {
                    let part = (step - begin) / fall;
                    match self.decay_shape.unwrap_or(DecayShape::Linear) {
                        DecayShape::Linear => 1.0 - part,
                        DecayShape::OneMinusSqrt => 1.0 - part.sqrt(),
                    }
                }
            }
        };
        let least = self.min_learning_rate_ratio;
        self.learning_rate * (least + (1.0 - least) * height)
    }
}
