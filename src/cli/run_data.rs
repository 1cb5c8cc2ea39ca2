//! The user's samples, as runs take them.

use std::sync::Arc;

use super::options::{open_held_out, open_pairs};
use super::print_line;
use super::values::Validate;
use keel_base::error::{Error, Result};
use keel_data::pairs::PairSource;
use keel_data::split::{SplitPairs, percent as percent_of, split};
use keel_train::HeldOutPairs;

/// See the module's documentation.
pub(super) struct RunData {
    /// To train on.
    pub pairs: Option<Arc<dyn PairSource>>,
    /// To validate on.
    pub held_out: Option<HeldOutPairs>,
}

impl RunData {
    /// Opens the data of `specs` and what `validate` says, and says how many samples there are.
    ///
    /// # Errors
    /// As [`open_pairs`]; [`Error::Setting`] when a share is asked of no data.
    pub fn open(
        specs: &[String],
        max_bad_samples: f64,
        validate: Option<&Validate>,
    ) -> Result<RunData> {
        let pairs = open_pairs(specs, max_bad_samples)?;
        let (pairs, held_out, share) = match validate {
            None => {
                return Ok(RunData {
                    pairs,
                    held_out: None,
                });
            }
            Some(Validate::Data(spec)) => (pairs, open_held_out(spec, max_bad_samples)?, None),
            Some(Validate::Share(share)) => {
                let Some(pairs) = pairs else {
                    let want =
                        "data to hold a share of, given with --data, or held-out data of their own";
                    let found = format!("--validate {} alone", percent_of(*share));
                    return Err(Error::setting("--validate", want, found));
                };
                let whole = pairs.len();
                let SplitPairs { trained, held_out } = split(pairs, *share)?;
                print_line(format!(
                    "data: {} of {whole} samples held out by their keys",
                    held_out.len()
                ))?;
                (Some(trained), held_out, Some(*share))
            }
        };
        let held_out = HeldOutPairs {
            pairs: held_out,
            share,
        };
        Ok(RunData {
            pairs,
            held_out: Some(held_out),
        })
    }
}
