//! What a run leaves behind in its folder for people and for its report: log.txt, metrics.jsonl, an event file, the drawn
//! memory of each stage and what there is to look at after it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::event_file::EventFile;
use super::folder::{RunFolder, stage_label};
use crate::checkpoint::{Disk, OpenFile, uninterrupted, write_all};
use crate::observer::{Evaluated, Event, Observer, RunBegins, StageBegins, StepReport, Validated};
use keel_base::clock::Clock;
use keel_base::error::{Error, Result};
use keel_base::files::read_own;
use keel_engine::program::draw_memory;

/// The folder of a run with what there is to look at, a file a stage.
const QUALITATIVE: &str = "qualitative";
/// The folder of a run with the drawn memory of each stage.
const MEMORY: &str = "memory";
/// Every line that the run told people.
const LOG: &str = "log.txt";
/// A row of JSON for each thing that happened.
const METRICS: &str = "metrics.jsonl";

/// Writes every event of a run to its folder. A failure ends the run: numbers that nobody kept were computed for nothing.
#[derive(Debug)]
pub(crate) struct RunRecorder {
    folder: Arc<RunFolder>,
    files: Mutex<Files>,
}

/// The files that grow with the run.
#[derive(Debug)]
struct Files {
    metrics: Box<dyn OpenFile>,
    log: Box<dyn OpenFile>,
    events: EventFile,
}

impl RunRecorder {
    /// Opens the files of a run's folder to write on, and makes those that it lacks. Every process that works on the run
    /// adds an event file of its own, with the time of `clock`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn open(folder: Arc<RunFolder>, clock: Clock) -> Result<RunRecorder> {
        let disk = folder.disk().as_ref();
        let append = |name: &str| {
            let path = folder.path().join(name);
            let open = || -> std::io::Result<Box<dyn OpenFile>> {
                drop_partial_line(disk, &path)?;
                uninterrupted(|| disk.append(&path))
            };
            open().map_err(|problem| Error::io(&path, "open", problem))
        };
        let files = Files {
            metrics: append(METRICS)?,
            log: append(LOG)?,
            events: EventFile::create(disk, folder.path(), clock)?,
        };
        Ok(RunRecorder {
            files: Mutex::new(files),
            folder,
        })
    }

    /// Appends to one of the files; a whole line at once, so that another process sees no half of it.
    fn append(&self, file: &mut dyn OpenFile, name: &str, line: &str) -> Result<()> {
        write_all(file, format!("{line}\n").as_bytes())
            .map_err(|problem| Error::io(self.folder.path().join(name), "write", problem))
    }

    fn metric(&self, files: &mut Files, row: &Value) -> Result<()> {
        self.append(files.metrics.as_mut(), METRICS, &row.to_string())
    }

    fn begin_run(&self, files: &mut Files, begins: &RunBegins<'_>) -> Result<()> {
        let row = json!({
            "kind": "run",
            "version": env!("CARGO_PKG_VERSION"),
            "device": begins.device,
            "inputs": begins.inputs,
            "recipe": begins.recipe.name,
            "seed": begins.recipe.seed,
            "resumed_at": begins.resumed_at,
        });
        self.metric(files, &row)
    }

    fn begin_stage(&self, files: &mut Files, begins: &StageBegins<'_>) -> Result<()> {
        let (stage, memory) = (begins.stage, begins.memory);
        let mut row = json!({
            "kind": "stage",
            "stage": stage.name,
            "steps": begins.steps,
            "batch": stage.batch_size,
            "trains": stage.trains,
            "parameters_trained": begins.trained,
            "micro_batch": stage.micro_batch(),
            "flops": begins.flops(),
            "parameter_bytes": memory.parameters,
            "gradient_bytes": memory.gradients,
            "moment_bytes": memory.moments,
            "activation_bytes": memory.arena,
            "lower_bound_bytes": memory.lower_bound,
        });
        if begins.validation_bytes > 0 {
            row["validation_bytes"] = begins.validation_bytes.into();
        }
        self.metric(files, &row)?;
        let title = format!("Memory of one step of {}", stage.name);
        let drawing = draw_memory(begins.program, &title);
        let name = format!("{}.svg", stage_label(begins.number, &stage.name));
        self.folder.write_in(MEMORY, &name, drawing.as_bytes())
    }

    fn steps(&self, files: &mut Files, report: &StepReport<'_>) -> Result<()> {
        let StepReport { stage, step, .. } = *report;
        self.metric(files, &report.averages.row(stage, step))?;
        let scalars = report.averages.scalars().into_iter();
        let tagged: Vec<_> = scalars
            .map(|(tag, value)| (format!("{stage}/{tag}"), value))
            .collect();
        files.events.scalars(step, &tagged)
    }

    fn validated(&self, files: &mut Files, validated: &Validated<'_>) -> Result<()> {
        let measures = validated.measures;
        let mut row = json!({
            "kind": "validation",
            "stage": validated.stage,
            "step": validated.step,
            "samples": measures.samples,
            "left_out": measures.left_out,
        });
        for (metric, value) in &measures.values {
            row[metric.name()] = (*value).into();
        }
        if let Some(is_best) = validated.is_best {
            row["is_best"] = is_best.into();
        }
        if validated.ends_stage {
            row["ends_stage"] = true.into();
        }
        if !measures.generated.is_empty() {
            let generated = serde_json::to_value(&measures.generated);
            row["generated"] = generated.expect("answers are plain data");
        }
        self.metric(files, &row)?;
        files.events.scalars(validated.step, &validated.scalars())
    }

    fn evaluated(&self, files: &mut Files, evaluated: &Evaluated<'_>) -> Result<()> {
        let Evaluated {
            number,
            evaluation,
            qualitative,
            ..
        } = *evaluated;
        let mut row = serde_json::to_value(evaluation).expect("an evaluation is plain data");
        row["kind"] = "evaluation".into();
        self.metric(files, &row)?;
        files.events.scalars(number as u64, &evaluation.scalars())?;
        let text = serde_json::to_string(qualitative).expect("qualitative samples are plain data");
        let name = format!("{}.json", stage_label(number, &qualitative.stage));
        self.folder.write_in(QUALITATIVE, &name, text.as_bytes())
    }
}

impl Observer for RunRecorder {
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // The line first: where a row or a drawing cannot be written, the log still tells how far the run came.
        if let Some(text) = event.text() {
            self.append(files.log.as_mut(), LOG, &text)?;
        }
        match event {
            Event::RunBegins(begins) => self.begin_run(&mut files, begins),
            Event::StageBegins(begins) => self.begin_stage(&mut files, begins),
            Event::Metrics(report) => self.steps(&mut files, report),
            Event::Validated(validated) => self.validated(&mut files, validated),
            Event::Evaluated(evaluated) => self.evaluated(&mut files, evaluated),
            Event::Warning(text) => {
                let row = json!({"kind": "warning", "text": text.trim()});
                self.metric(&mut files, &row)
            }
            Event::StepsBegin(begins) => {
                let disk = self.folder.disk().as_ref();
                EventFile::cut_back(disk, self.folder.path(), begins.stage, begins.done)
            }
            Event::StepDone(_)
            | Event::Progress(_)
            | Event::StepsEnd
            | Event::UnitBegins(_)
            | Event::Note(_)
            | Event::Interrupted(_) => Ok(()),
        }
    }
}

/// Cuts a file back to its last complete line: a full disk may have cut the one that was being written.
fn drop_partial_line(disk: &dyn Disk, path: &Path) -> std::io::Result<()> {
    let text = read_own(path)?;
    let last_end = text.iter().rposition(|byte| *byte == b'\n');
    let complete = last_end.map_or(0, |end| end + 1);
    if complete < text.len() {
        uninterrupted(|| disk.shorten(path, complete as u64))?;
    }
    Ok(())
}
