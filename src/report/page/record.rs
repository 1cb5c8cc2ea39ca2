//! What a run's folder tells: settings, rows of metrics.jsonl, what there is to look at. A run that was cut off anywhere
//! tells what it has.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use keel_base::error::{Error, Result};
use keel_base::files::open_regular;
use keel_eval::{Evaluation, Measurements, QualitativeSamples};
use keel_train::{Recipe, recipe_in};

/// The record of a run.
#[derive(Debug)]
pub struct RunRecord {
    /// The folder.
    pub path: PathBuf,
    /// The run's settings.
    pub recipe: Recipe,
    /// Every process that worked on it: versions, devices, where it went on.
    pub starts: Vec<Value>,
    /// Rows of stages, the last of each name.
    pub stages: BTreeMap<String, Value>,
    /// Numbers of steps by stage and step.
    pub steps: BTreeMap<String, BTreeMap<u64, Value>>,
    /// Numbers of validations by stage and step.
    pub validations: BTreeMap<String, BTreeMap<u64, Value>>,
    /// Evaluations in the order of stages.
    pub evaluations: Vec<Evaluation>,
    /// QualitativeSamples in the order of stages.
    pub qualitative: Vec<QualitativeSamples>,
    /// Drawn memory, by stage in order: name and SVG.
    pub memory: Vec<(String, Vec<u8>)>,
    /// Profiled steps, by stage in order: name, SVG and tables.
    pub profiles: Vec<(String, Vec<u8>, String)>,
    /// Everything that was measured later, by checkpoint.
    pub measurements: Vec<(String, Measurements)>,
    /// What was said to be wrong.
    pub warnings: Vec<String>,
    /// Rows that could not be read.
    pub unreadable: usize,
}

impl RunRecord {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// [`Error::Setting`] when the folder holds no run; [`Error::Io`] and what is wrong with the recipe.
    pub fn open(path: &Path) -> Result<RunRecord> {
        let recipe = recipe_in(path, &[])?;
        let mut record = RunRecord {
            path: path.to_owned(),
            recipe,
            starts: Vec::new(),
            stages: BTreeMap::new(),
            steps: BTreeMap::new(),
            validations: BTreeMap::new(),
            evaluations: Vec::new(),
            qualitative: Vec::new(),
            memory: Vec::new(),
            profiles: Vec::new(),
            measurements: Vec::new(),
            warnings: Vec::new(),
            unreadable: 0,
        };
        let metrics = path.join("metrics.jsonl");
        match read(&metrics) {
            Ok(bytes) => record.read_rows(&String::from_utf8_lossy(&bytes)),
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => {}
            Err(problem) => return Err(Error::io(&metrics, "read", problem)),
        }
        let order: Vec<String> = record
            .recipe
            .stages
            .iter()
            .map(|s| s.name.clone())
            .collect();
        let place = |name: &String| order.iter().position(|stage| stage == name);
        record.evaluations.sort_by_key(|e| place(&e.stage));
        for (index, stage) in order.iter().enumerate() {
            let label = format!("{}-{stage}", index + 1);
            // Files of another version, or cut off, are as good as none.
            if let Ok(bytes) = read(&path.join(format!("qualitative/{label}.json"))) {
                record
                    .qualitative
                    .extend(serde_json::from_slice(&bytes).ok());
            }
            if let Ok(bytes) = read(&path.join(format!("memory/{label}.svg"))) {
                record.memory.push((stage.clone(), bytes));
            }
            let profile = path.join(format!("profile/{label}"));
            if let (Ok(svg), Ok(tables)) = (
                read(&profile.with_extension("svg")),
                read(&profile.with_extension("txt")),
            ) {
                let tables = String::from_utf8_lossy(&tables).into_owned();
                record.profiles.push((stage.clone(), svg, tables));
            }
            if let Ok(bytes) = read(&path.join(format!("evaluations/{label}.json"))) {
                let measured = serde_json::from_slice(&bytes).ok();
                record
                    .measurements
                    .extend(measured.map(|measured| (label, measured)));
            }
        }
        Ok(record)
    }

    /// Steps that were done twice, because a run went on from an older checkpoint, count as the later time left them.
    fn read_rows(&mut self, text: &str) {
        for line in text.lines() {
            let Ok(row) = serde_json::from_str::<Value>(line) else {
                self.unreadable += 1;
                continue;
            };
            let stage = row["stage"].as_str().unwrap_or_default().to_owned();
            match row["kind"].as_str() {
                Some("run") => self.starts.push(row),
                Some("stage") => {
                    self.stages.insert(stage, row);
                }
                Some("step") => {
                    let step = row["step"].as_u64().unwrap_or(0);
                    let steps = self.steps.entry(stage).or_default();
                    steps.split_off(&step);
                    steps.insert(step, row);
                }
                Some("validation") => {
                    let step = row["step"].as_u64().unwrap_or(0);
                    let validations = self.validations.entry(stage).or_default();
                    validations.split_off(&step);
                    validations.insert(step, row);
                }
                Some("evaluation") => {
                    if let Ok(evaluation) = serde_json::from_value::<Evaluation>(row) {
                        self.evaluations.retain(|old| old.stage != evaluation.stage);
                        self.evaluations.push(evaluation);
                    }
                }
                Some("warning") => {
                    let text = row["text"].as_str().unwrap_or_default();
                    self.warnings.push(text.to_owned());
                }
                _ => self.unreadable += 1,
            }
        }
    }

    /// The run's name: that of its folder.
    pub fn name(&self) -> String {
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Steps of a stage by the plan of the run; nothing before it has begun.
    pub(super) fn planned(&self, stage: &str) -> Option<u64> {
        self.stages.get(stage)?["steps"].as_u64()
    }

    /// The step at which a stage ended early by its validations.
    pub(super) fn ended_early(&self, stage: &str) -> Option<u64> {
        let (step, row) = self.validations.get(stage)?.last_key_value()?;
        (row["ends_stage"] == true).then_some(*step)
    }

    /// The last step of a stage that was reported, and its numbers.
    pub(super) fn last_step(&self, stage: &str) -> Option<(u64, &Value)> {
        let (step, row) = self.steps.get(stage)?.last_key_value()?;
        Some((*step, row))
    }

    /// Each stage with its first and last place along all steps of the run.
    pub(super) fn bands(&self) -> Vec<(String, [f64; 2])> {
        let mut from = 0.0;
        let mut bands = Vec::new();
        for stage in &self.recipe.stages {
            let done = self.last_step(&stage.name).map_or(0, |(step, _)| step);
            let steps = self.planned(&stage.name).unwrap_or(done).max(done) as f64;
            if steps > 0.0 {
                bands.push((stage.name.clone(), [from, from + steps]));
                from += steps;
            }
        }
        bands
    }

    /// A number of every step that has it, a piece a stage, along all steps.
    pub(super) fn pieces(&self, key: &str, factor: f64) -> Vec<Vec<[f64; 2]>> {
        self.pieces_of(&self.steps, key, factor)
    }

    /// As [`RunRecord::pieces`], of validations.
    pub(super) fn validation_pieces(&self, key: &str, factor: f64) -> Vec<Vec<[f64; 2]>> {
        self.pieces_of(&self.validations, key, factor)
    }

    fn pieces_of(
        &self,
        rows: &BTreeMap<String, BTreeMap<u64, Value>>,
        key: &str,
        factor: f64,
    ) -> Vec<Vec<[f64; 2]>> {
        let bands = self.bands();
        let pieces = bands.iter().filter_map(|(stage, [from, _])| {
            let steps = rows.get(stage)?.iter();
            let points = steps.filter_map(|(step, row)| {
                let value = row.get(key)?;
                // A number that is not finite is written as null.
                let value = value.as_f64().unwrap_or(f64::NAN);
                Some([from + *step as f64, factor * value])
            });
            Some(points.collect::<Vec<_>>())
        });
        pieces.filter(|piece| !piece.is_empty()).collect()
    }
}

/// Reads a file of a folder that may be a stranger's: a pipe in its place would never end.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
