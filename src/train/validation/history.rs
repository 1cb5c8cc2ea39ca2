//! What is known of a stage's validations: the best one, and for how long there was none better.

use serde::{Deserialize, Serialize};

use crate::recipe::{ValidationMetric, ValidationSettings};

/// See the module's documentation. A checkpoint holds it, so that a resumed run decides as the first would have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidationHistory {
    /// The best validation so far.
    pub best: Option<BestValidation>,
    /// Validations since then.
    pub since: u64,
}

/// The best of a stage's validations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestValidation {
    /// Steps that were done.
    pub step: u64,
    /// The metric that the stage is judged by.
    pub value: f64,
}

impl ValidationHistory {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == ValidationHistory::default()
    }

    /// Takes in a validation after `step` steps; returns whether it is the best. What is no number never is.
    pub fn take(&mut self, metric: ValidationMetric, step: u64, value: f64) -> bool {
        let is_best = !value.is_nan()
            && self
                .best
                .is_none_or(|best| metric.is_better(value, best.value));
        if is_best {
            self.best = Some(BestValidation { step, value });
            self.since = 0;
        } else {
            self.since += 1;
        }
        is_best
    }

    /// Whether a stage with these settings has been without a better validation for long enough.
    pub fn is_over(&self, settings: &ValidationSettings) -> bool {
        settings.patience.is_some_and(|most| self.since >= most)
    }
}
