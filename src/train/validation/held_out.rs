//! The samples that a run is validated on, and what tells them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use keel_base::error::Result;
use keel_data::digest::DataDigest;
use keel_data::pairs::PairSource;
use keel_data::split::percent;

/// Samples that are held out of training.
#[derive(Clone)]
pub struct HeldOutPairs {
    /// The samples.
    pub pairs: Arc<dyn PairSource>,
    /// The share of the run's own data that they are; nothing where they are a list of their own.
    pub share: Option<f64>,
}

impl fmt::Debug for HeldOutPairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldOutPairs({} samples)", self.pairs.len())
    }
}

impl HeldOutPairs {
    /// What they are told by.
    ///
    /// # Errors
    /// Whatever reading the data reports.
    pub fn inputs(&self) -> Result<HeldOutInputs> {
        Ok(match self.share {
            Some(share) => HeldOutInputs::Share(percent(share)),
            None => HeldOutInputs::Data(self.pairs.digests()?),
        })
    }
}

/// What held-out samples are told by: part of what a run's bits depend on, since other data would be trained on, or another
/// checkpoint be the best.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOutInputs {
    /// A share of the run's own data.
    Share(String),
    /// Data of their own.
    Data(Vec<DataDigest>),
}

impl HeldOutInputs {
    /// Whether both say the same samples, wherever they lie.
    pub fn is_same(&self, other: &HeldOutInputs) -> bool {
        match (self, other) {
            (HeldOutInputs::Share(one), HeldOutInputs::Share(other)) => one == other,
            (HeldOutInputs::Data(one), HeldOutInputs::Data(other)) => {
                let pairs = || one.iter().zip(other);
                one.len() == other.len() && pairs().all(|(one, other)| one.is_same(other))
            }
            _ => false,
        }
    }

    /// What the samples hold, wherever they lie: part of what results are told by.
    pub(crate) fn content(&self) -> String {
        match self {
            HeldOutInputs::Share(share) => share.clone(),
            HeldOutInputs::Data(data) => {
                let data = data
                    .iter()
                    .map(|data| format!("{} {} {}", data.samples, data.drawn, data.digest));
                data.collect::<Vec<String>>().join(" ")
            }
        }
    }

    /// In a few words.
    pub fn text(&self) -> String {
        match self {
            HeldOutInputs::Share(share) => format!("{share} of --data"),
            HeldOutInputs::Data(data) => {
                let data: Vec<String> = data.iter().map(DataDigest::text).collect();
                data.join(" and ")
            }
        }
    }
}
