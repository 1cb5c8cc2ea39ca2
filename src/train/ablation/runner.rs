//! Runs what an ablation still lacks, unit by unit, and keeps each result as soon as it is there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::plan::AblationPlan;
use super::results::{AblationResults, UnitResult};
use super::schedule::{Unit, units};
use crate::checkpoint::write_durably;
use crate::observer::{Event, Observer, UnitBegins};
use crate::out_folder::refuse_foreign;
use crate::recipe::{Recipe, StageKind};
use crate::run::{InitialWeights, TrainOptions, held};
use crate::trainer::{Trainer, check_pairs};
use keel_base::error::{Error, Result};
use keel_data::pairs::PairSource;
use keel_engine::executor::SelectedDevice;
use keel_engine::tape::ParameterLayout;
use keel_eval::{Metric, comparable};
use keel_model::declare;
use keel_weights::Folder;

/// What is measured of each unit beside the evaluation that follows every stage.
const MEASURED: [Metric; 7] = [
    Metric::Retrieval,
    Metric::Neighbours,
    Metric::LinearProbe,
    Metric::TwoLayerProbe,
    Metric::AttentiveProbe,
    Metric::Distances,
    Metric::Space,
];

/// The short list of a quick ablation.
const MEASURED_QUICKLY: [Metric; 4] = [
    Metric::Neighbours,
    Metric::LinearProbe,
    Metric::TwoLayerProbe,
    Metric::Distances,
];

/// What an ablation's folder holds before anything is run.
const FOLDERS: [&str; 3] = ["results", "warm-starts", "units"];

/// How an ablation is run.
#[derive(Clone, Debug)]
pub struct AblationOptions {
    /// What computes.
    pub compute: SelectedDevice,
    /// The folder of runs and results.
    pub out: PathBuf,
    /// Whether the plan's quick form is run.
    pub quick: bool,
    /// Who hears what the ablation and its runs tell.
    pub observer: Arc<dyn Observer>,
}

/// An ablation under way. See the module's documentation.
pub struct Ablation {
    plan: AblationPlan,
    options: AblationOptions,
    pairs: Option<Arc<dyn PairSource>>,
    inputs: OnceLock<String>,
    units: Vec<Unit>,
}

impl Ablation {
    /// Sets everything up; nothing is run or written. `pairs` are those of the plan's `data`, where it has any.
    ///
    /// # Errors
    /// Whatever the arms' recipes report; [`Error::Setting`] when there are pairs that no stage draws from, or none for one
    /// that does.
    pub fn new(
        plan: AblationPlan,
        options: AblationOptions,
        pairs: Option<Arc<dyn PairSource>>,
    ) -> Result<Ablation> {
        let units = units(&plan, options.quick)?;
        let using = units
            .iter()
            .find(|unit| unit.recipe.stage_of_pairs().is_some());
        check_pairs(&using.unwrap_or(&units[0]).recipe, pairs.is_some())?;
        Ok(Ablation {
            plan,
            options,
            pairs,
            inputs: OnceLock::new(),
            units,
        })
    }

    /// The units in the order they are run.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// What is already there of this very ablation.
    ///
    /// # Errors
    /// [`Error::Content`] naming a result's file that is damaged.
    pub fn results(&self) -> Result<AblationResults> {
        let mut done = Vec::new();
        for unit in &self.units {
            done.extend(self.result_of(unit)?);
        }
        Ok(AblationResults::new(&self.plan, self.options.quick, done))
    }

    /// Runs every unit that has no result yet; after each, `keep` gets what is known so far.
    ///
    /// # Errors
    /// [`Error::Setting`] when the folder holds something else or another process runs an ablation in it; whatever a unit's training reports. Results that
    /// are there stay.
    pub fn run(
        &self,
        mut keep: impl FnMut(&AblationResults) -> Result<()>,
    ) -> Result<AblationResults> {
        let out = &self.options.out;
        // Whatever the user put beside the results of an ablation may stay there.
        if !FOLDERS.iter().all(|folder| out.join(folder).is_dir()) {
            refuse_foreign(out, |name| FOLDERS.contains(&name))?;
        }
        for folder in FOLDERS {
            let folder = out.join(folder);
            std::fs::create_dir_all(&folder)
                .map_err(|problem| Error::io(&folder, "create the folder", problem))?;
        }
        let _lock = held(&self.options.out, "ablation folder")?;
        let count = self.units.len();
        for (index, unit) in self.units.iter().enumerate() {
            let is_done = self.result_of(unit)?.is_some();
            self.options
                .observer
                .observe(&Event::UnitBegins(UnitBegins {
                    number: index + 1,
                    count,
                    unit,
                    is_done,
                }))?;
            if is_done {
                continue;
            }
            let result = self.run_unit(unit)?;
            let text = serde_json::to_string_pretty(&result).expect("a result is plain data");
            write_durably(&self.result_path(unit), text.as_bytes())?;
            keep(&self.results()?)?;
        }
        self.results()
    }

    /// A hash of everything that a unit's result depends on.
    fn key(&self, unit: &Unit) -> Result<String> {
        self.hash(&format!("{}\n{}", unit.images, unit.recipe.to_toml()))
    }

    fn hash(&self, text: &str) -> Result<String> {
        let all = format!("{}\n{text}", self.inputs()?);
        Ok(blake3::hash(all.as_bytes()).to_hex()[..16].to_owned())
    }

    /// What results depend on beside their recipes: this version, the weights, the data. The weights are read once, when a
    /// result is first asked for.
    fn inputs(&self) -> Result<&str> {
        if let Some(inputs) = self.inputs.get() {
            return Ok(inputs);
        }
        let mut inputs = env!("CARGO_PKG_VERSION").to_owned();
        let weights = &self.plan.weights;
        for folder in [&weights.vision, &weights.language].into_iter().flatten() {
            inputs += &format!("\n{}", Folder::open(folder)?.checksum());
        }
        if let Some(pairs) = &self.pairs {
            inputs += &format!("\n{}\n{}", self.plan.data.join("\n"), pairs.len());
        }
        Ok(self.inputs.get_or_init(|| inputs))
    }

    fn result_path(&self, unit: &Unit) -> PathBuf {
        let file = format!("{}-seed-{}.json", slug(&unit.arm), unit.seed);
        self.options.out.join("results").join(file)
    }

    fn result_of(&self, unit: &Unit) -> Result<Option<UnitResult>> {
        let path = self.result_path(unit);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|problem| Error::io(&path, "read the result", problem))?;
        let result: UnitResult = serde_json::from_str(&text).map_err(|problem| {
            let problem = format!("it is no result of an ablation: {problem}");
            Error::content(
                path.display(),
                problem,
                "remove it, and the unit is run again",
            )
        })?;
        // The result of another plan under the same name, or of another version, is replaced.
        Ok((result.key == self.key(unit)?).then_some(result))
    }

    fn run_unit(&self, unit: &Unit) -> Result<UnitResult> {
        let layout = declare(&unit.recipe.model, unit.recipe.contrastive_loss)?;
        let warm = self.warm_start(unit)?;
        let start = Instant::now();
        let key = self.key(unit)?;
        let folder = format!("{}-seed-{}-{key}", slug(&unit.arm), unit.seed);
        let folder = self.options.out.join("units").join(folder);
        let mut parameters = warm.clone();
        let target = unit.recipe.stages.len() - 1;
        if target > unit.warm {
            let mut recipe = unit.recipe.clone();
            recipe.stages.truncate(target);
            let initial = InitialWeights {
                stage: unit.warm,
                parameters,
            };
            let path = folder.join("refinement");
            let mut trainer = self.trainer(recipe, path, Some(initial), None)?;
            trainer.run()?;
            parameters = trainer.parameters()?;
        }
        // The target's language model is the one before refinement: only the tower tells arms apart.
        copy_module(&layout, "language", &warm, &mut parameters);
        let initial = InitialWeights {
            stage: target,
            parameters,
        };
        let path = folder.join("target");
        // Short, and without its evaluation of no use: one that was stopped is begun again.
        remove(&path)?;
        let recipe = unit.recipe.clone();
        let mut trainer = self.trainer(recipe, path, Some(initial), Some(unit.images))?;
        let evaluation = trainer.run()?.pop();
        let evaluation = evaluation.expect("a target stage is evaluated");
        let metrics = if self.options.quick {
            &MEASURED_QUICKLY[..]
        } else {
            &MEASURED
        };
        let measurements = trainer.measure(metrics, unit.images)?;
        drop(trainer);
        for part in ["refinement", "target"] {
            remove(&folder.join(part).join("checkpoints"))?;
        }
        let stages = unit.recipe.stages.iter();
        Ok(UnitResult {
            arm: unit.arm.clone(),
            seed: unit.seed,
            key,
            warm_flops: unit.warm_flops,
            refinement_flops: unit.refinement_flops,
            seconds: start.elapsed().as_secs_f64(),
            steps: stages
                .map(|stage| (stage.name.clone(), stage.steps.unwrap_or(0)))
                .collect(),
            metrics: comparable(&evaluation, &measurements),
            evaluation,
            measurements,
        })
    }

    /// All parameters after the warm start, which arms that agree on it share.
    fn warm_start(&self, unit: &Unit) -> Result<Vec<f32>> {
        let mut recipe = unit.recipe.clone();
        recipe.stages.truncate(unit.warm);
        debug_assert!(recipe.stages.iter().all(|s| s.kind == StageKind::WarmStart));
        if recipe.stages.is_empty() {
            let layout = declare(&recipe.model, recipe.contrastive_loss)?;
            return recipe.first_values(&layout);
        }
        let folder = format!("seed-{}-{}", unit.seed, self.hash(&recipe.to_toml())?);
        let path = self.options.out.join("warm-starts").join(folder);
        // A run that is at its end restores its parameters and trains nothing.
        let mut trainer = self.trainer(recipe, path, None, None)?;
        trainer.run()?;
        trainer.parameters()
    }

    /// A run in `path`, continued where there is one.
    fn trainer(
        &self,
        recipe: Recipe,
        path: PathBuf,
        initial: Option<InitialWeights>,
        images: Option<usize>,
    ) -> Result<Trainer> {
        let is_there = path.join("recipe.toml").exists();
        let options = TrainOptions {
            out: (!is_there).then(|| path.clone()),
            resume: is_there.then_some(path),
            evaluation_size: images.unwrap_or(0),
            evaluate: images.is_some(),
            observer: self.options.observer.clone(),
            ..TrainOptions::new(self.options.compute.clone())
        };
        let pairs = recipe.stage_of_pairs().and(self.pairs.clone());
        Trainer::begun_with(recipe, options, pairs, initial)
    }
}

fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    std::fs::remove_dir_all(folder).map_err(|problem| Error::io(folder, "remove", problem))
}

/// A name as part of a file's name.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.to_lowercase().chars() {
        match c {
            c if c.is_alphanumeric() => slug.push(c),
            _ if slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    slug.trim_matches('-').to_owned()
}

fn copy_module(layout: &ParameterLayout, module: &str, from: &[f32], to: &mut [f32]) {
    for entry in layout.entries() {
        if entry.spec.module() == module {
            let range = entry.offset..entry.offset + entry.reserved;
            to[range.clone()].copy_from_slice(&from[range]);
        }
    }
}

/// Writes the results of an ablation: `results.json` and `table.md` in its folder.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_results(folder: &Path, results: &AblationResults, table: &str) -> Result<()> {
    let text = serde_json::to_string_pretty(results).expect("results are plain data");
    write_durably(&folder.join("results.json"), text.as_bytes())?;
    write_durably(&folder.join("table.md"), table.as_bytes())
}
