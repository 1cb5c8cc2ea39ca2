//! What a run's bits depend on beside its recipe: the data that it reads, and what it computes with.

use serde::{Deserialize, Serialize};

use super::options::TrainOptions;
use crate::validation::{HeldOutInputs, HeldOutPairs};
use keel_base::error::Result;
use keel_data::digest::DataDigest;
use keel_data::pairs::PairSource;
use keel_engine::executor::SelectedDevice;

/// See the module's documentation. A checkpoint holds it, and so does every result of an ablation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInputs {
    /// The user's own data, a source after the other; empty where no stage draws from them.
    pub data: Vec<DataDigest>,
    /// The samples that stages are validated on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutInputs>,
    /// Whether every step of a stage trains on its first batch.
    pub overfit_one_batch: bool,
    /// The kind of device: `cpu`, `cuda` or `simt`. Empty where an older version wrote a checkpoint and nothing is known.
    pub device: String,
    /// The type of what is stored.
    pub precision: String,
    /// As [`SelectedDevice::instructions`].
    pub instructions: String,
    /// The ranks that train together.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
}

fn one() -> usize {
    1
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

/// In what two runs differ, a sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// What makes it another experiment: refused unless it is asked for.
    pub data: Vec<String>,
    /// What computes the same with other roundings.
    pub arithmetic: Vec<String>,
}

impl RunInputs {
    /// The inputs of a run that draws from `pairs`.
    ///
    /// # Errors
    /// Whatever reading the data reports.
    pub(crate) fn new(options: &TrainOptions, pairs: Option<&dyn PairSource>) -> Result<RunInputs> {
        let held_out = options.held_out.as_ref();
        Ok(RunInputs {
            held_out: held_out.map(HeldOutPairs::inputs).transpose()?,
            overfit_one_batch: options.overfit_one_batch,
            ranks: options.seat.world().ranks,
            ..RunInputs::of(&options.compute, pairs)?
        })
    }

    /// The inputs of whatever computes on `compute` and draws from `pairs`.
    ///
    /// # Errors
    /// As [`RunInputs::new`].
    pub(crate) fn of(
        compute: &SelectedDevice,
        pairs: Option<&dyn PairSource>,
    ) -> Result<RunInputs> {
        Ok(RunInputs {
            data: pairs.map_or(Ok(Vec::new()), PairSource::digests)?,
            held_out: None,
            overfit_one_batch: false,
            device: compute.device().name().to_owned(),
            precision: compute.compile_target().precision.name().to_owned(),
            instructions: compute.instructions(),
            ranks: 1,
        })
    }

    /// In what `after` differs from these; `ranks_keep_bits` says whether its bits are those of any number of ranks. Nothing where
    /// it is not known what these were.
    pub(crate) fn differences(&self, after: &RunInputs, ranks_keep_bits: bool) -> Differences {
        let mut found = Differences::default();
        if self.device.is_empty() {
            return found;
        }
        for index in 0..self.data.len().max(after.data.len()) {
            let text = |one: Option<&DataDigest>| one.map_or("left out".into(), DataDigest::text);
            let (was, is) = (self.data.get(index), after.data.get(index));
            let is_same = was.zip(is).is_some_and(|(was, is)| was.is_same(is));
            if let Some(named) = is.or(was).filter(|_| !is_same) {
                let (was, is) = (text(was), text(is));
                let line = format!("the data {} were {was}, are {is}", named.name);
                found.data.push(line);
            }
        }
        let (was, is) = (self.held_out.as_ref(), after.held_out.as_ref());
        let is_same = match (was, is) {
            (Some(was), Some(is)) => was.is_same(is),
            (was, is) => was.is_none() && is.is_none(),
        };
        if !is_same {
            let text = |one: Option<&HeldOutInputs>| one.map_or("none".into(), HeldOutInputs::text);
            let (was, is) = (text(was), text(is));
            let line = format!("the samples of --validate were {was}, are {is}");
            found.data.push(line);
        }
        if self.overfit_one_batch != after.overfit_one_batch {
            let word = |is_on| if is_on { "given" } else { "left out" };
            let (was, is) = (self.overfit_one_batch, after.overfit_one_batch);
            let line = format!("--overfit-one-batch was {}, is {}", word(was), word(is));
            found.data.push(line);
        }
        let mut changed = |what: &str, was: &str, is: &str, bits: &str| {
            if was != is {
                let line = format!("{what} was {was}, is {is}: {bits}");
                found.arithmetic.push(line);
            }
        };
        let other = "other bits from here on";
        changed("the device", &self.device, &after.device, other);
        changed("the precision", &self.precision, &after.precision, other);
        let (was, is) = (self.ranks.to_string(), after.ranks.to_string());
        let same = "the same bits";
        let bits = if ranks_keep_bits { same } else { other };
        changed("the number of ranks", &was, &is, bits);
        let (was, is) = (&self.instructions, &after.instructions);
        let bits = if fuses(was) && fuses(is) { same } else { other };
        changed("the instruction path", was, is, bits);
        found
    }
}

/// Whether these are instructions of a processor that multiply and add in one rounding, which all give the same bits.
fn fuses(instructions: &str) -> bool {
    ["avx2", "avx512"].contains(&instructions)
}
