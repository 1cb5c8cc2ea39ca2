//! What one validation measured.

use serde::{Deserialize, Serialize};

use crate::recipe::ValidationMetric;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationMeasures {
    /// Samples that were used.
    pub samples: u64,
    /// Samples that could not be.
    pub left_out: u64,
    /// Numbers, in the order of [`ValidationMetric::ALL`].
    pub values: Vec<(ValidationMetric, f64)>,
    /// What the model says of some of the samples.
    pub generated: Vec<GeneratedAnswer>,
}

/// What a model says of a held-out image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedAnswer {
    /// The sample's name.
    pub key: String,
    /// What is asked; empty where nothing is.
    pub question: String,
    /// What the data say.
    pub expected: String,
    /// What the model says, greedily.
    pub answer: String,
}

impl ValidationMeasures {
    /// One of the numbers; nothing where it was not measured.
    pub fn get(&self, metric: ValidationMetric) -> Option<f64> {
        let mut values = self.values.iter();
        let found = values.find(|(known, _)| *known == metric)?;
        Some(found.1)
    }

    /// The numbers in a few words.
    pub fn text(&self) -> String {
        let word = |(metric, value): &(ValidationMetric, f64)| {
            let name = metric.name().strip_prefix("loss.");
            let name = name.unwrap_or(metric.name());
            if metric.is_share() {
                format!("{name} {:.1} %", 100.0 * value)
            } else {
                format!("{name} {value:.4}")
            }
        };
        let words: Vec<String> = self.values.iter().map(word).collect();
        words.join(", ")
    }
}
