//! What the units of an ablation are measured by where the plan brings data of its own: held-out samples, a benchmark, or both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::evaluate::EvalRun;
use crate::observer::{Event, Observer};
use crate::recipe::Stage;
use crate::validation::ValidationMeasures;
use keel_base::error::{Error, Result};
use keel_engine::executor::SelectedDevice;
use keel_eval::{Compared, Wording, of_benchmark};

/// What tells one benchmark from another, however its file is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchmarkInputs {
    /// The file.
    pub file: PathBuf,
    /// BLAKE3 of its bytes.
    pub checksum: String,
    /// How its questions are put, where that is said.
    pub wording: Option<Wording>,
}

impl BenchmarkInputs {
    /// Those of a file.
    ///
    /// # Errors
    /// [`Error::Io`] naming a file that cannot be read.
    pub(super) fn of(file: &Path, wording: Option<Wording>) -> Result<BenchmarkInputs> {
        let io = |problem| Error::io(file, "read the benchmark", problem);
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(std::fs::File::open(file).map_err(io)?)
            .map_err(io)?;
        Ok(BenchmarkInputs {
            file: file.to_owned(),
            checksum: hasher.finalize().to_hex()[..16].to_owned(),
            wording,
        })
    }

    /// Whether answers to both are answers to the same.
    pub(super) fn is_same(&self, other: &BenchmarkInputs) -> bool {
        self.checksum == other.checksum && self.wording == other.wording
    }

    /// In a few words.
    pub(super) fn text(&self) -> String {
        let wording = self.wording.map_or("by default", Wording::name);
        format!("{} {wording}", self.checksum)
    }
}

/// Keeps what the last validation of a run measured, and hands everything on.
#[derive(Debug)]
pub(super) struct LastValidation {
    observer: Arc<dyn Observer>,
    measures: Mutex<Option<ValidationMeasures>>,
}

impl LastValidation {
    /// Before `observer`.
    pub fn before(observer: Arc<dyn Observer>) -> LastValidation {
        LastValidation {
            observer,
            measures: Mutex::new(None),
        }
    }

    /// Its numbers under the names that arms are compared by.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
        let values = measures.iter().flat_map(|measures| &measures.values);
        values
            .map(|(metric, value)| (Compared::of_held_out(metric.name()), *value))
            .collect()
    }
}

impl Observer for LastValidation {
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        if let Event::Validated(validated) = event {
            let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
            *measures = Some(validated.measures.clone());
        }
        self.observer.observe(event)
    }
}

/// Lets a target stage be validated at its ends alone, on as many samples as its recipe says.
pub(super) fn validated_at_ends(stage: &mut Stage) {
    let mut settings = stage.validation.clone().unwrap_or_default();
    // The run goes on from its last step, which is what arms are compared at.
    (settings.every, settings.best_by, settings.patience) = (Some(0), None, None);
    stage.validation = Some(settings);
}

/// The numbers of a benchmark that the run in `folder` answers as its last stage left it.
///
/// # Errors
/// Whatever opening the run, the benchmark's file and the device report.
pub(super) fn answered(
    folder: &Path,
    (benchmark, wording): (&Path, Option<Wording>),
    (compute, observer): (&SelectedDevice, &dyn Observer),
) -> Result<BTreeMap<String, f64>> {
    let run = EvalRun::open(folder, compute)?;
    let wording = wording.unwrap_or(run.default_wording());
    let answered = run.answer_benchmark(benchmark, wording)?;
    for warning in run.take_warnings() {
        observer.observe(&Event::Warning(&warning))?;
    }
    Ok(of_benchmark(&answered.score()))
}
