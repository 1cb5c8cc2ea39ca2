//! Runs what an ablation still lacks, unit by unit, and keeps each result as soon as it is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::own_data::{BenchmarkInputs, LastValidation, answered, validated_at_ends};
use super::plan::AblationPlan;
use super::results::{AblationResults, UnitResult};
use super::schedule::{Unit, UnitTarget, units};
use crate::checkpoint::{LocalDisk, create_folders, create_inside, write_durably};
use crate::evaluate::{text_ceilings, tower_change};
use crate::observer::{Event, Observer, UnitBegins};
use crate::out_folder::refuse_foreign;
use crate::recipe::{Recipe, StageKind};
use crate::run::{InitialWeights, RunInputs, TrainOptions, held};
use crate::trainer::{Trainer, check_pairs};
use crate::validation::HeldOutPairs;
use crate::worlds::is_of_panels;
use keel_base::clock::Clock;
use keel_base::error::{Error, Result};
use keel_base::random::scramble;
use keel_data::pairs::PairSource;
use keel_engine::executor::SelectedDevice;
use keel_engine::tape::ParameterLayout;
use keel_eval::{Evaluation, Measurements, Metric, answerable, comparable};
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

/// How long each unit took.
const TIMES: &str = "times.json";

/// What is measured of towers that were trained on panels, which have no classes.
const MEASURED_OF_PANELS: [Metric; 2] = [Metric::LinearProbe, Metric::Distances];

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
    /// Whether units are run again whose results are of other data, weights or another device than there are now; otherwise
    /// they are refused.
    pub accept_changes: bool,
    /// Who hears what the ablation and its runs tell.
    pub observer: Arc<dyn Observer>,
}

/// An ablation under way. See the module's documentation.
pub struct Ablation {
    plan: AblationPlan,
    options: AblationOptions,
    pairs: Option<Arc<dyn PairSource>>,
    held_out: Option<HeldOutPairs>,
    inputs: OnceLock<Inputs>,
    units: Vec<Unit>,
    /// What an arm is called in names of files.
    names: BTreeMap<String, String>,
}

/// What results depend on beside their recipes.
struct Inputs {
    /// The data, and what computes.
    run: RunInputs,
    /// The folders of weights and their checksums.
    weights: Vec<(String, String)>,
    /// The benchmark that is answered after every target stage.
    benchmark: Option<BenchmarkInputs>,
    /// All of it and the version in one text.
    text: String,
}

impl Ablation {
    /// Sets everything up; nothing is run or written. `pairs` are those of the plan's `data`, where it has any, and `held_out` those of
    /// its `validate`.
    ///
    /// # Errors
    /// Whatever the arms' recipes report; [`Error::Setting`] when there are pairs that no stage draws from, or none for one
    /// that does.
    pub fn new(
        plan: AblationPlan,
        options: AblationOptions,
        pairs: Option<Arc<dyn PairSource>>,
        held_out: Option<HeldOutPairs>,
    ) -> Result<Ablation> {
        let units = units(&plan, options.quick)?;
        let using = units
            .iter()
            .find(|unit| unit.recipe.stage_of_pairs().is_some());
        check_pairs(&using.unwrap_or(&units[0]).recipe, pairs.is_some())?;
        Ok(Ablation {
            names: file_names(plan.arms.iter().map(|arm| arm.name.as_str())),
            plan,
            options,
            pairs,
            held_out,
            inputs: OnceLock::new(),
            units,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &AblationPlan {
        &self.plan
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
        create_folders(&LocalDisk, out)?;
        for folder in FOLDERS {
            create_inside(&LocalDisk, out, folder)?;
        }
        let _lock = held(&self.options.out, "ablation folder")?;
        if !self.options.accept_changes {
            self.refuse_changes()?;
        }
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
            let under_way = Clock::default().start();
            let result = self.run_unit(unit)?;
            self.keep_time(unit, under_way.seconds())?;
            let text = serde_json::to_string_pretty(&result).expect("a result is plain data");
            write_durably(&self.result_path(unit), text.as_bytes())?;
            keep(&self.results()?)?;
        }
        self.results()
    }

    /// A hash of everything that a unit's result depends on.
    fn key(&self, unit: &Unit) -> Result<String> {
        self.hash(&settings_of(unit))
    }

    fn hash(&self, text: &str) -> Result<String> {
        Ok(short_hash(&format!("{}\n{text}", self.inputs()?.text)))
    }

    /// What results depend on beside their recipes: this version, the weights, the data, the device. Weights and data are read
    /// once, when a result is first asked for.
    fn inputs(&self) -> Result<&Inputs> {
        if let Some(inputs) = self.inputs.get() {
            return Ok(inputs);
        }
        let mut weights = Vec::new();
        let given = &self.plan.weights;
        for folder in [&given.vision, &given.language].into_iter().flatten() {
            let checksum = Folder::open(folder)?.checksum().to_string();
            weights.push((folder.display().to_string(), checksum));
        }
        let mut run = RunInputs::of(&self.options.compute, self.pairs.as_deref())?;
        let held_out = self.held_out.as_ref();
        run.held_out = held_out.map(HeldOutPairs::inputs).transpose()?;
        let benchmark = self.plan.benchmark.as_ref();
        let benchmark = benchmark.map(|file| BenchmarkInputs::of(file, self.plan.wording));
        let benchmark = benchmark.transpose()?;
        let mut text = env!("CARGO_PKG_VERSION").to_owned();
        // Not where they lie: the same data and weights elsewhere give the same numbers.
        for (_, checksum) in &weights {
            text += &format!("\n{checksum}");
        }
        for data in &run.data {
            text += &format!("\n{} {} {}", data.samples, data.drawn, data.digest);
        }
        text += &format!("\n{} {} {}", run.device, run.precision, run.instructions);
        if let Some(held_out) = &run.held_out {
            text += &format!("\nheld out {}", held_out.content());
        }
        if let Some(benchmark) = &benchmark {
            text += &format!("\nbenchmark {}", benchmark.text());
        }
        Ok(self.inputs.get_or_init(|| Inputs {
            run,
            weights,
            benchmark,
            text,
        }))
    }

    /// What the unit's files are called, without an ending.
    fn stem(&self, unit: &Unit) -> String {
        format!("{}-seed-{}", self.names[&unit.arm], unit.seed)
    }

    fn result_path(&self, unit: &Unit) -> PathBuf {
        let file = format!("{}.json", self.stem(unit));
        self.options.out.join("results").join(file)
    }

    /// Refuses results that are of these very units, but of other data or weights, or computed on something else: tables of old
    /// and new ones together would compare nothing.
    fn refuse_changes(&self) -> Result<()> {
        for unit in &self.units {
            let Some(result) = self.read_result(unit)? else {
                continue;
            };
            if result.settings != short_hash(&settings_of(unit)) || result.key == self.key(unit)? {
                continue;
            }
            let now = self.inputs()?;
            let found = result.inputs.differences(&now.run, false);
            let mut found = [found.data, found.arithmetic].concat();
            let changed = result.weights.iter().zip(&now.weights);
            let changed = changed.filter(|((_, was), (_, is))| was != is);
            found.extend(
                changed.map(|(_, (folder, _))| format!("the weights of {folder} are others")),
            );
            if let (Some(was), Some(is)) = (&result.benchmark, &now.benchmark)
                && !was.is_same(is)
            {
                found.push(format!("the benchmark {} is another", is.file.display()));
            }
            if !found.is_empty() {
                return Err(Error::setting(
                    format!("--out {}", self.options.out.display()),
                    "results of the data, weights and device that are given now, or --accept-changes to run those units again",
                    format!("{}, seed {}: {}", unit.arm, unit.seed, found.join("; ")),
                ));
            }
        }
        Ok(())
    }

    /// The result of a unit that is there and was computed from what is given now.
    fn result_of(&self, unit: &Unit) -> Result<Option<UnitResult>> {
        let Some(result) = self.read_result(unit)? else {
            return Ok(None);
        };
        // The result of another plan under the same name, or of another version, is replaced.
        Ok((result.key == self.key(unit)?).then_some(result))
    }

    fn read_result(&self, unit: &Unit) -> Result<Option<UnitResult>> {
        let path = self.result_path(unit);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|problem| Error::io(&path, "read the result", problem))?;
        let result = serde_json::from_str(&text).map_err(|problem| {
            let problem = format!("it is no result of an ablation: {problem}");
            Error::content(
                path.display(),
                problem,
                "remove it, and the unit is run again",
            )
        })?;
        Ok(Some(result))
    }

    fn run_unit(&self, unit: &Unit) -> Result<UnitResult> {
        let layout = declare(&unit.recipe.model, unit.recipe.contrastive_loss)?;
        let warm = self.warm_start(unit)?;
        let key = self.key(unit)?;
        let folder = format!("units/{}-{key}", self.stem(unit));
        let mut parameters = warm.clone();
        let target = unit.recipe.stages.len() - 1;
        if target > unit.warm {
            let mut recipe = unit.recipe.clone();
            recipe.stages.truncate(target);
            let initial = InitialWeights {
                stage: unit.warm,
                parameters,
            };
            let path = self.place(&format!("{folder}/refinement"))?;
            let mut trainer = self.trainer(recipe, path, Some(initial), None, None)?;
            trainer.run()?;
            parameters = trainer.parameters()?;
        }
        // The target's language model is the one before refinement: only the tower tells arms apart.
        copy_module(&layout, "language", &warm, &mut parameters);
        let compute = &self.options.compute;
        let mut metrics = BTreeMap::new();
        let mut ceilings = BTreeMap::new();
        if is_of_panels(&unit.recipe) && !self.plan.is_of_own_data() {
            ceilings = text_ceilings(&unit.recipe, compute, &warm)?;
            let of_kinds = ceilings.iter();
            metrics.extend(of_kinds.map(|(kind, share)| (format!("ceiling.{kind}"), *share)));
            let mean = ceilings.values().sum::<f64>() / ceilings.len().max(1) as f64;
            metrics.insert("ceiling".to_owned(), mean);
            let [drift, cka] =
                tower_change(&unit.recipe, compute, [&warm, &parameters], unit.images)?;
            metrics.extend([
                ("drift.vision".to_owned(), drift),
                ("cka.vision".to_owned(), cka),
            ]);
        }
        let mut first = None;
        for of_form in &unit.targets {
            let mut draws = Vec::new();
            for draw in 0..of_form.draws {
                let place = match of_form.name.as_str() {
                    "" => format!("{folder}/target"),
                    name => format!("{folder}/target-{}-{draw}", slug(name)),
                };
                let is_first = first.is_none();
                let recipe = target_recipe(unit, of_form, draw);
                if self.plan.is_of_own_data() {
                    draws.push(self.run_target_on_own_data(recipe, &parameters, &place)?);
                    first.get_or_insert_default();
                    continue;
                }
                let (evaluation, measurements) =
                    self.run_target(unit, recipe, &parameters, (&place, is_first))?;
                let mut numbers = comparable(&evaluation, &measurements);
                numbers.extend(answerable(&evaluation, &ceilings));
                draws.push(numbers);
                first.get_or_insert((evaluation, measurements));
            }
            for (name, value) in means(&draws) {
                let is_first = self
                    .plan
                    .targets
                    .first()
                    .is_none_or(|form| form.name == of_form.name);
                let name = match is_first {
                    true => name,
                    false => format!("{}/{name}", of_form.name),
                };
                metrics.insert(name, value);
            }
        }
        let (evaluation, measurements) =
            first.expect("every arm goes through a form of the target");
        remove(
            &self
                .options
                .out
                .join(&folder)
                .join("refinement/checkpoints"),
        )?;
        let stages = unit.recipe.stages.iter();
        Ok(UnitResult {
            arm: unit.arm.clone(),
            seed: unit.seed,
            key,
            warm_flops: unit.warm_flops,
            refinement_flops: unit.refinement_flops,
            target_flops: unit
                .targets
                .iter()
                .map(|form| (form.name.clone(), form.flops))
                .collect(),
            settings: short_hash(&settings_of(unit)),
            inputs: self.inputs()?.run.clone(),
            weights: self.inputs()?.weights.clone(),
            benchmark: self.inputs()?.benchmark.clone(),
            steps: stages
                .map(|stage| (stage.name.clone(), stage.steps.unwrap_or(0)))
                .collect(),
            metrics,
            evaluation,
            measurements,
        })
    }

    /// Trains the last stage of `recipe`, the target, from `parameters` and evaluates it; the first of a unit is measured too.
    fn run_target(
        &self,
        unit: &Unit,
        recipe: Recipe,
        parameters: &[f32],
        (place, is_first): (&str, bool),
    ) -> Result<(Evaluation, Measurements)> {
        let (initial, path) = self.target_begins(&recipe, parameters, place)?;
        let measured = match is_of_panels(&recipe) {
            true => &MEASURED_OF_PANELS[..],
            false if self.options.quick => &MEASURED_QUICKLY,
            false => &MEASURED,
        };
        let mut trainer =
            self.trainer(recipe, path.clone(), Some(initial), Some(unit.images), None)?;
        let evaluation = trainer.run()?.pop();
        let evaluation = evaluation.expect("a target stage is evaluated");
        let measured = if is_first { measured } else { &[] };
        let measurements = trainer.measure(measured, unit.images)?;
        drop(trainer);
        remove(&path.join("checkpoints"))?;
        Ok((evaluation, measurements))
    }

    /// Trains the target as [`Ablation::run_target`] does and measures it by the plan's own data.
    fn run_target_on_own_data(
        &self,
        mut recipe: Recipe,
        parameters: &[f32],
        place: &str,
    ) -> Result<BTreeMap<String, f64>> {
        let (initial, path) = self.target_begins(&recipe, parameters, place)?;
        let heard = Arc::new(LastValidation::before(self.options.observer.clone()));
        if self.held_out.is_some() {
            validated_at_ends(&mut recipe.stages[initial.stage]);
        }
        let watched = (self.held_out.clone(), heard.clone() as Arc<dyn Observer>);
        let mut trainer = self.trainer(recipe, path.clone(), Some(initial), None, Some(watched))?;
        trainer.run()?;
        // Its parameters are in the checkpoint, and a second executor takes as much memory.
        drop(trainer);
        let mut numbers = heard.numbers();
        if let Some(benchmark) = &self.plan.benchmark {
            let watched = (&self.options.compute, self.options.observer.as_ref());
            numbers.extend(answered(&path, (benchmark, self.plan.wording), watched)?);
        }
        remove(&path.join("checkpoints"))?;
        Ok(numbers)
    }

    /// What the last stage of `recipe` begins from, and an empty folder for it.
    fn target_begins(
        &self,
        recipe: &Recipe,
        parameters: &[f32],
        place: &str,
    ) -> Result<(InitialWeights, PathBuf)> {
        let initial = InitialWeights {
            stage: recipe.stages.len() - 1,
            parameters: parameters.to_vec(),
        };
        let path = self.place(place)?;
        // Short, and without its evaluation of no use: one that was stopped is begun again.
        remove(&path)?;
        Ok((initial, path))
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
        let key = self.hash(&recipe.to_toml())?;
        let path = self.place(&format!("warm-starts/seed-{}-{key}", unit.seed))?;
        // A run that is at its end restores its parameters and trains nothing.
        let mut trainer = self.trainer(recipe, path, None, None, None)?;
        trainer.run()?;
        trainer.parameters()
    }

    /// A folder of the ablation, made where there is none; it lies where it seems to lie.
    fn place(&self, inside: &str) -> Result<PathBuf> {
        create_inside(&LocalDisk, &self.options.out, inside)
    }

    /// Keeps the seconds that a unit took, warm start included where it was not there. They stand apart from the results, which
    /// are the same bytes whenever and wherever they are computed.
    fn keep_time(&self, unit: &Unit, seconds: f64) -> Result<()> {
        let path = self.options.out.join(TIMES);
        // A file that cannot be read is begun again: nothing depends on it.
        let known = std::fs::read(&path).ok();
        let known = known.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut times: BTreeMap<String, f64> = known.unwrap_or_default();
        times.insert(self.stem(unit), seconds);
        let text = serde_json::to_string_pretty(&times).expect("times are plain data");
        write_durably(&path, text.as_bytes())
    }

    /// A run in `path`, continued where there is one: evaluated on so many images, or validated on held-out samples before another
    /// observer.
    fn trainer(
        &self,
        recipe: Recipe,
        path: PathBuf,
        initial: Option<InitialWeights>,
        images: Option<usize>,
        watched: Option<(Option<HeldOutPairs>, Arc<dyn Observer>)>,
    ) -> Result<Trainer> {
        let is_there = path.join("recipe.toml").exists();
        let (held_out, observer) = watched.unwrap_or_else(|| (None, self.options.observer.clone()));
        let options = TrainOptions {
            out: (!is_there).then(|| path.clone()),
            resume: is_there.then_some(path),
            evaluation_size: images.unwrap_or(0),
            evaluate: images.is_some(),
            held_out,
            observer,
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

/// A unit's own settings in one text.
fn settings_of(unit: &Unit) -> String {
    let mut text = format!("{}\n{}", unit.images, unit.recipe.to_toml());
    // Where the plan has no forms of the target, the recipe says it all.
    for form in unit.targets.iter().filter(|form| !form.name.is_empty()) {
        let mut recipe = unit.recipe.clone();
        recipe.stages = vec![form.stage.clone()];
        text += &format!("\n{} {}\n{}", form.name, form.draws, recipe.to_toml());
    }
    text
}

/// The recipe of one draw of a form of the target.
fn target_recipe(unit: &Unit, form: &UnitTarget, draw: usize) -> Recipe {
    let mut recipe = unit.recipe.clone();
    let target = recipe.stages.len() - 1;
    recipe.stages[target] = form.stage.clone();
    recipe.seed = seed_of_draw(unit.seed, draw);
    recipe
}

/// The seed of a draw of the target: the unit's own for the first. All arms of a seed have the same ones.
fn seed_of_draw(seed: u64, draw: usize) -> u64 {
    match draw {
        0 => seed,
        // Within what a recipe's seed can be.
        draw => scramble(seed ^ ((draw as u64) << 48)) >> 1,
    }
}

/// The mean of each number over the draws that have it.
fn means(draws: &[BTreeMap<String, f64>]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for (name, value) in draws.iter().flatten() {
        let sum = sums.entry(name.clone()).or_default();
        *sum = (sum.0 + value, sum.1 + 1);
    }
    let of = |(name, (sum, count)): (String, (f64, usize))| (name, sum / count as f64);
    sums.into_iter().map(of).collect()
}

fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}

/// What each arm is called in names of files. Names that differ in punctuation or case only, or have nothing else, get a piece
/// of their hash: no two arms share a file.
fn file_names<'a>(arms: impl Iterator<Item = &'a str> + Clone) -> BTreeMap<String, String> {
    let name = |arm: &str| {
        let plain = slug(arm);
        let is_alone = !plain.is_empty() && arms.clone().filter(|a| slug(a) == plain).count() == 1;
        if is_alone {
            plain
        } else {
            format!("{plain}-{}", &short_hash(arm)[..8])
        }
    };
    arms.clone()
        .map(|arm| (arm.to_owned(), name(arm)))
        .collect()
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
