//! What a GPU took for the ops of the examples: the files that `tools/gpu-run.sh` leaves in `bench/results`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{CountedWork, SPEEDS, Work};
use keel_base::error::{Error, Result};

/// The rows that are read; other kinds are passed over.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Row {
    Machine {
        device: String,
        tiny: u8,
    },
    Op {
        example: String,
        shape: String,
        op: String,
        precision: String,
        median_ms: f64,
    },
    #[serde(other)]
    Other,
}

/// The times of one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// What the device calls itself.
    pub device: String,
    /// Median seconds by example, shape, op and precision.
    medians: BTreeMap<[String; 4], f64>,
}

impl Measured {
    /// Reads every file of `folder` that has times of ops at the large shapes; none where there is no such folder.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Content`] when a file cannot be read or has a line that is none of the script's.
    pub fn read_all(folder: &Path) -> Result<Vec<Measured>> {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(problem) => return Err(Error::io(folder, "read", problem)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io(folder, "read", e))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "jsonl")
            {
                paths.push(path);
            }
        }
        paths.sort();
        let mut all = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
            all.push(Measured::read(&path, &text)?);
        }
        all.retain(|measured| !measured.medians.is_empty());
        Ok(all)
    }

    fn read(path: &Path, text: &str) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut is_tiny = false;
        for (number, line) in text.lines().enumerate() {
            let row = serde_json::from_str(line).map_err(|problem| {
                let remedy = "remove the file, or write it anew with tools/gpu-run.sh";
                Error::content(
                    path.display(),
                    format!("line {}: {problem}", number + 1),
                    remedy,
                )
            })?;
            match row {
                Row::Machine { device, tiny } => (measured.device, is_tiny) = (device, tiny != 0),
                Row::Op {
                    example,
                    shape,
                    op,
                    precision,
                    median_ms,
                } if !is_tiny => {
                    let key = [example, shape, op, precision];
                    measured.medians.insert(key, median_ms / 1e3);
                }
                _ => {}
            }
        }
        Ok(measured)
    }

    /// The median of an op, seconds.
    pub fn seconds(&self, work: &Work) -> Option<f64> {
        let key = [work.example, &work.shape, work.op, work.precision.name()].map(str::to_owned);
        self.medians.get(&key).copied()
    }

    /// The same for a table, in microseconds, and how many times that is what was predicted for the chip; empty where it was
    /// not measured.
    pub(super) fn cell(&self, counted: &CountedWork) -> String {
        let Some(seconds) = self.seconds(&counted.work) else {
            return String::new();
        };
        let speed = SPEEDS.iter().find(|speed| self.device.contains(speed.name));
        match speed {
            Some(speed) => {
                let predicted = speed.predict(counted).seconds;
                format!("{:.1} ({:.2}×)", seconds * 1e6, seconds / predicted)
            }
            None => format!("{:.1}", seconds * 1e6),
        }
    }
}
