//! Measures a checkpoint metric by metric, against the other stages of its run where a metric asks for them.

use std::path::{Path, PathBuf};

use super::eval_run::EvalRun;
use super::settings::evaluation_settings;
use crate::checkpoint::{parameters, write_durably};
use crate::recipe::{Recipe, Stage, StageKind};
use crate::run::{evaluations_folder, run_of, stage_checkpoints};
use crate::worlds::eval_suite;
use keel_base::error::{Error, Result};
use keel_engine::executor::SelectedDevice;
use keel_eval::{
    EvalContext, MeasureSettings, Measurements, Measurer, Metric, StageDrift, weight_drift,
};

/// The sizes to measure with after a stage; nothing after one that sees no images.
pub(super) fn settings_after(
    stage: &Stage,
    images: usize,
    is_connected: bool,
) -> Option<MeasureSettings> {
    let settings = evaluation_settings(stage, images)?;
    Some(MeasureSettings {
        images,
        questions_per_kind: settings.questions_per_kind,
        tokens: settings.tokens,
        caption_tokens: settings.caption_tokens,
        is_connected,
    })
}

/// Measures a model of `recipe` as `stage` left it.
///
/// # Errors
/// Whatever recording, loading or the data report.
pub(crate) fn measure_after(
    recipe: &Recipe,
    stage: &Stage,
    model: EvalContext<'_>,
    compute: &SelectedDevice,
    metrics: &[Metric],
    images: usize,
) -> Result<Measurements> {
    let mut all = Measurements {
        stage: stage.name.clone(),
        ..Measurements::default()
    };
    let is_connected = stage.kind != StageKind::WarmStart;
    if let Some(settings) = settings_after(stage, images, is_connected) {
        let suite = eval_suite(recipe);
        let measurer = Measurer::new(model, compute, &suite, settings);
        for metric in metrics {
            measurer.measure(*metric, &mut all)?;
        }
    }
    Ok(all)
}

/// What a checkpoint gave, and why it did not give the rest.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The numbers.
    pub measurements: Measurements,
    /// Metrics that this checkpoint cannot give, each with a sentence.
    pub left_out: Vec<(Metric, String)>,
}

/// Measures one metric after the other into `all`. One that is refused ends that, or is left out where `lenient`.
pub(crate) fn measure_each(
    metrics: &[Metric],
    all: Measurements,
    lenient: bool,
    mut measure: impl FnMut(Metric, &mut Measurements) -> Result<()>,
) -> Result<Measured> {
    let mut measured = Measured {
        measurements: all,
        left_out: Vec::new(),
    };
    for metric in metrics {
        match measure(*metric, &mut measured.measurements) {
            Err(problem @ Error::Setting { .. }) if lenient => {
                measured.left_out.push((*metric, problem.to_string()));
            }
            outcome => outcome?,
        }
    }
    Ok(measured)
}

impl EvalRun {
    /// Measures `metrics` on sets of at most `images` images. A metric that this checkpoint cannot give is an error, or
    /// left out where `lenient`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the metric; whatever recording, loading or the data report.
    pub fn measure(&self, metrics: &[Metric], images: usize, lenient: bool) -> Result<Measured> {
        let stage = &self.stored.recipe.stages[self.stage()];
        let mut settings = settings_after(stage, images, self.is_connected());
        if metrics.iter().all(|metric| metric.needs_text_alone()) {
            // A stage that has seen no images is no obstacle to asking about text; questions bring their own sizes.
            settings = settings.or(Some(MeasureSettings {
                images,
                questions_per_kind: 0,
                tokens: stage.max_tokens,
                caption_tokens: stage.max_caption_tokens,
                is_connected: false,
            }));
        }
        let settings = settings.ok_or_else(|| {
            Error::setting(
                format!("checkpoint {}", self.stored.path.display()),
                "one after a stage that has seen images",
                format!("stage {}, which trained on text alone", stage.name),
            )
        })?;
        let suite = eval_suite(&self.stored.recipe);
        let measurer = Measurer::new(self.eval_context(), &self.compute, &suite, settings);
        let all = Measurements {
            stage: stage.name.clone(),
            ..Measurements::default()
        };
        measure_each(metrics, all, lenient, |metric, all| {
            self.refuse(metric).and_then(|()| match metric {
                Metric::Drift => self.drift(all),
                Metric::Cka => self.cka(&measurer, all),
                metric => measurer.measure(metric, all),
            })
        })
    }

    /// Whether a stage has brought images to the language model.
    fn is_connected(&self) -> bool {
        let stages = &self.stored.recipe.stages[..=self.stage()];
        stages
            .iter()
            .any(|stage| stage.kind != StageKind::WarmStart)
    }

    /// Refuses a metric of the parameters where averages are measured, and one that looks through a language model that has not seen images.
    fn refuse(&self, metric: Metric) -> Result<()> {
        if metric == Metric::Drift && self.is_averaged {
            return Err(Error::setting(
                "metric drift",
                "the parameters of checkpoints, which training went through",
                "averages of them, with --ema",
            ));
        }
        if !metric.needs_language() || self.is_connected() {
            return Ok(());
        }
        Err(Error::setting(
            format!("metric {}", metric.name()),
            "a checkpoint whose connector has been trained",
            format!("one after {}", self.stored.recipe.stages[self.stage()].name),
        ))
    }

    /// The run's checkpoints after each stage; this one's alone where it lies outside a run.
    fn checkpoints(&self) -> Result<Vec<(String, PathBuf)>> {
        run_of(&self.stored.path).map_or(Ok(Vec::new()), stage_checkpoints)
    }

    fn parameters_of(&self, path: &Path) -> Result<Vec<f32>> {
        parameters(path, &self.stored.layout)
    }

    fn drift(&self, all: &mut Measurements) -> Result<()> {
        let checkpoints = self.checkpoints()?;
        if checkpoints.len() < 2 {
            return Err(Error::setting(
                "metric drift",
                "a run with checkpoints after at least two stages",
                checkpoints.len(),
            ));
        }
        let first = self.parameters_of(&checkpoints[0].1)?;
        let mut before = first.clone();
        all.drift.clear();
        for (stage, path) in &checkpoints[1..] {
            let after = self.parameters_of(path)?;
            all.drift.push(StageDrift {
                stage: stage.clone(),
                from_before: weight_drift(&self.stored.layout, &before, &after),
                from_first: weight_drift(&self.stored.layout, &first, &after),
            });
            before = after;
        }
        Ok(())
    }

    /// Layers against each other, and against the same layers after each other stage of the run.
    fn cka(&self, measurer: &Measurer<'_>, all: &mut Measurements) -> Result<()> {
        measurer.measure(Metric::Cka, all)?;
        let own = measurer.layer_features()?;
        let mut parameters = vec![0.0; self.stored.layout.elements()];
        self.executor.read_parameters(0, &mut parameters)?;
        let mut stages = Vec::new();
        for (stage, path) in self.checkpoints()? {
            if path == self.stored.path {
                continue;
            }
            self.executor
                .write_parameters(0, &self.parameters_of(&path)?)?;
            let then = measurer.layer_features();
            self.executor.write_parameters(0, &parameters)?;
            stages.push((stage, own.layer_by_layer(&then?)));
        }
        if let Some(cka) = &mut all.cka {
            cka.stages = stages;
        }
        Ok(())
    }
}

/// Writes what was measured of `checkpoint` into its run, as `evaluations/<checkpoint>.json`; beside the checkpoint where
/// that lies outside a run. What a file there has of other metrics stays. Returns the path.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_measurements(checkpoint: &Path, new: &Measurements) -> Result<PathBuf> {
    let folder = evaluations_folder(checkpoint)?;
    let stem = checkpoint.file_stem().unwrap_or_default();
    let path = folder.join(format!("{}.json", stem.to_string_lossy()));
    // A file of another version is replaced.
    let old: Option<Measurements> = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut all = old.unwrap_or_default();
    all.update(new);
    let text = serde_json::to_string_pretty(&all).expect("measurements are plain data");
    write_durably(&path, text.as_bytes())?;
    Ok(path)
}
