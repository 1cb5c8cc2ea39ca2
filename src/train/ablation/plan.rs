//! What an ablation compares: arms that refine one recipe in different ways. Every key is checked before anything runs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::from_weights::{Beginning, PublishedWeights};
use crate::recipe::ValidationMetric;
use crate::recipe::locate::{KeyFinder, named_text};
use crate::recipe::{RENAMED_PLAN_KEYS, Recipe, Stage, StageKind, refuse_old_names};
use keel_base::error::{Error, Result, with_near_miss};
use keel_eval::{COMPARED, Compared, Wording};

/// The built-in plans: name and text.
pub const BUILT_IN_PLANS: &[(&str, &str)] = &[
    (
        "strategies",
        include_str!("../../../recipes/ablations/strategies.toml"),
    ),
    (
        "sizes",
        include_str!("../../../recipes/ablations/sizes.toml"),
    ),
    (
        "architectures",
        include_str!("../../../recipes/ablations/architectures.toml"),
    ),
    (
        "data-scales",
        include_str!("../../../recipes/ablations/data-scales.toml"),
    ),
    (
        "panels",
        include_str!("../../../recipes/ablations/panels.toml"),
    ),
];

/// An ablation: arms by seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationPlan {
    /// A short name. The folder of the results starts with it.
    ///
    /// - Range: letters, digits, `-` and `_`
    pub name: String,
    /// What the plan asks, in a sentence. It heads the report.
    pub question: String,
    /// The recipe that every arm changes: the name of a built-in one or the path of a file. Its last stage, and no other, is of
    /// kind `target`, and all its stages give `steps`.
    pub recipe: String,
    /// Settings of every arm, each as `keel train --set` takes it.
    #[serde(default)]
    pub set: Vec<String>,
    /// Published weights that every arm starts from, in place of the warm starts that stand in for them.
    #[serde(default, skip_serializing_if = "PublishedWeights::is_empty")]
    pub weights: PublishedWeights,
    /// The user's own samples, for the task `samples` of the recipe's stages, each as `keel train --data` takes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Held-out samples, as `keel train --validate` takes them: what the target stage is validated on at its end. With them, or with a
    /// `benchmark`, arms are compared by these numbers and not by those of the embedded sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate: Option<String>,
    /// A benchmark in VLMEvalKit's layout (.tsv), as `keel eval --bench` takes it, answered after every target stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<PathBuf>,
    /// How its questions are put: `plain` or `vlmevalkit`. Without it, as `keel eval --bench` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wording: Option<Wording>,
    /// The seeds. Every arm runs once with each.
    ///
    /// - Range: at least one, each once
    pub seeds: Vec<u64>,
    /// Most images of an evaluation set.
    ///
    /// - Unit: images
    /// - Range: 1 to 65,536
    #[serde(default = "max_images")]
    pub max_images: usize,
    /// The tests that the plan is decided by, fixed before anything is run. Holm's correction is over all of them; everything
    /// else in the tables is description.
    #[serde(default, rename = "test", skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<PrimaryTest>,
    /// The standard deviation, between seeds, of the differences that the tests are about, as far as it is known before the
    /// run: from a pilot whose seeds are not the plan's. `--power` says what it allows to see.
    ///
    /// - Range: above 0
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_sd: Option<f64>,
    /// The smallest difference that would matter.
    ///
    /// - Range: above 0
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest_effect: Option<f64>,
    /// What `keel ablate --quick` changes.
    #[serde(default)]
    pub quick: Quick,
    /// The forms of the target training that towers go through, each from the same tower. Without any there is one, the
    /// recipe's.
    #[serde(default, rename = "target", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetForm>,
    /// The arms, which are compared.
    ///
    /// - Range: at least one, each with a name of its own
    #[serde(rename = "arm")]
    pub arms: Vec<Arm>,
}

/// The most images of an evaluation set, which are in memory together.
const MOST_IMAGES: usize = 1 << 16;

fn max_images() -> usize {
    200
}

/// The short form of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quick {
    /// Fraction of the recipe's steps that the warm starts take.
    ///
    /// - Range: above 0, at most 1
    pub warm_start_ratio: f64,
    /// Fraction of the recipe's steps that the stages of refinement take.
    ///
    /// - Range: above 0, at most 1
    pub refinement_ratio: f64,
    /// Fraction of the recipe's steps that the target stage takes.
    ///
    /// - Range: above 0, at most 1
    pub target_ratio: f64,
    /// Most images of an evaluation set.
    ///
    /// - Unit: images
    /// - Range: 1 to 65,536
    pub max_images: usize,
    /// The seeds, in place of the plan's.
    ///
    /// - Range: at least one, each once
    pub seeds: Vec<u64>,
    /// The arms that run, by name. Empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<String>,
    /// The forms of the target that run, by name. Empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// Most draws of a target form.
    ///
    /// - Range: 1 to 64
    pub draws: usize,
}

impl Default for Quick {
    fn default() -> Quick {
        Quick {
            warm_start_ratio: 0.2,
            refinement_ratio: 0.06,
            target_ratio: 0.2,
            max_images: 100,
            seeds: vec![1, 2, 3],
            arms: vec![],
            targets: vec![],
            draws: 64,
        }
    }
}

/// What the compute of an arm is spent on, so that arms compare at equal compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spend {
    /// The arm's stages of refinement are made longer or shorter until they cost what the recipe's stages of refinement
    /// cost together.
    #[default]
    Refinement,
    /// The warm start of the vision tower goes on for as long as refinement would have cost: from published weights, where
    /// they stand in its place.
    WarmStart,
    /// The target training is made longer by what refinement would have cost, in every form that the arm goes through.
    Target,
    /// Steps stay as they are, and the arm costs what it costs.
    AsIs,
}

/// A form of the target training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetForm {
    /// Its name in tables.
    ///
    /// - Range: another name for each form
    pub name: String,
    /// Its settings, each as `keel train --set` takes it. Only the target stage's count.
    #[serde(default)]
    pub set: Vec<String>,
    /// How often it runs from a tower, each time with other first values of what it reinitialises and other batches. An arm has
    /// the mean of them: what is not the tower's averages out. All arms of a seed have the same draws.
    ///
    /// - Range: 1 to 64
    #[serde(default = "one_draw")]
    pub draws: usize,
    /// The arms that go through it, by name. Empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<String>,
}

/// Most draws of a target form.
const MOST_DRAWS: usize = 64;

fn one_draw() -> usize {
    1
}

/// A test that a plan is decided by: whether two arms differ in a number, over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrimaryTest {
    /// The arm.
    pub arm: String,
    /// The arm that it is compared with.
    pub against: String,
    /// The number, by its name in `results.json`.
    pub metric: String,
}

/// One way to refine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name in tables and reports.
    ///
    /// - Range: another name for each arm
    pub name: String,
    /// The recipe's stages of refinement that it runs, by name. They run in the recipe's order. Empty for an arm without
    /// refinement, which needs a `spend` of `warm_start`, `target` or `as_is`.
    pub stages: Vec<String>,
    /// Further settings of this arm, each as `keel train --set` takes it.
    #[serde(default)]
    pub set: Vec<String>,
    /// What its compute is spent on.
    #[serde(default)]
    pub spend: Spend,
    /// The name of the arm that it is compared with, seed by seed. Without it the arm is a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// The name of an arm whose towers it cannot differ from, nor its numbers: a control of the comparison itself. An ablation
    /// whose control differs ends in an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
}

impl AblationPlan {
    /// Reads a built-in plan by name or a file by path, lets `change` have its say, and checks everything, the arms' recipes
    /// included.
    ///
    /// # Errors
    /// [`Error::Setting`] with file, line and key; [`Error::Io`] when the file cannot be read; [`Error::Content`] or
    /// [`Error::Io`] naming a folder of weights.
    pub fn load(
        name_or_path: &str,
        change: impl FnOnce(&mut AblationPlan),
    ) -> Result<AblationPlan> {
        let words = ("plan", "plan", "read the plan");
        let (origin, text) = named_text(BUILT_IN_PLANS, name_or_path, words)?;
        let finder = KeyFinder::new(&origin, &text, &[])?;
        let table = finder.table()?;
        refuse_old_names(RENAMED_PLAN_KEYS, &table, &finder)?;
        let mut plan: AblationPlan = finder.typed(table)?;
        change(&mut plan);
        plan.check().map_err(|problem| finder.place(problem))?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        if !is_plain(&self.name) {
            let want = "letters, digits, - and _";
            return Err(Error::setting("name", want, format!("{:?}", self.name)));
        }
        for (key, seeds) in [("seeds", &self.seeds), ("quick.seeds", &self.quick.seeds)] {
            let distinct: BTreeSet<u64> = seeds.iter().copied().collect();
            if seeds.is_empty() || distinct.len() != seeds.len() {
                let want = "at least one seed, each once";
                return Err(Error::setting(key, want, format!("{seeds:?}")));
            }
        }
        for (key, share) in [
            ("quick.warm_start_ratio", self.quick.warm_start_ratio),
            ("quick.refinement_ratio", self.quick.refinement_ratio),
            ("quick.target_ratio", self.quick.target_ratio),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(Error::setting(key, "above 0 and at most 1", share));
            }
        }
        for (key, count) in [
            ("max_images", self.max_images),
            ("quick.max_images", self.quick.max_images),
        ] {
            if !(1..=MOST_IMAGES).contains(&count) {
                return Err(Error::setting(key, format!("1 to {MOST_IMAGES}"), count));
            }
        }
        let weights = &self.weights;
        if weights.image_size.is_some() && weights.vision.is_none() {
            let want = "weights.vision beside it";
            return Err(Error::setting("weights.image_size", want, "none"));
        }
        if weights.chat.is_some() && weights.language.is_none() {
            let want = "weights.language beside it";
            return Err(Error::setting("weights.chat", want, "none"));
        }
        if self.wording.is_some() && self.benchmark.is_none() {
            return Err(Error::setting("wording", "a benchmark beside it", "none"));
        }
        self.check_tests()?;
        self.check_targets()?;
        if self.arms.is_empty() {
            return Err(Error::setting("arm", "at least one", "none"));
        }
        let names: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        for (index, arm) in self.arms.iter().enumerate() {
            let key = |name: &str| format!("arm.{index}.{name}");
            if names[..index].contains(&names[index]) || arm.name.trim().is_empty() {
                let want = "another name for each arm";
                return Err(Error::setting(key("name"), want, format!("{:?}", arm.name)));
            }
            let mut others = names.clone();
            others.retain(|name| *name != arm.name);
            for (name, other) in [("against", &arm.against), ("equals", &arm.equals)] {
                if let Some(other) = other {
                    one_of(&key(name), "another arm, one of", other, &others)?;
                }
            }
            let recipe = self.recipe_of(arm)?;
            check_stages(&recipe, arm, &key("stages"))?;
            for form in self.forms_of(arm, false) {
                self.recipe_in_form(arm, &form)?;
            }
            if arm.spend == Spend::WarmStart {
                self.warm_start_of_vision(arm)?.ok_or_else(|| {
                    let want =
                        "another, or a recipe with a warm start that trains the vision tower";
                    Error::setting(key("spend"), want, "warm_start")
                })?;
            }
        }
        Ok(())
    }

    fn check_tests(&self) -> Result<()> {
        let arms: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        for (index, test) in self.tests.iter().enumerate() {
            let key = |name: &str| format!("test.{index}.{name}");
            one_of(&key("arm"), "one of", &test.arm, &arms)?;
            one_of(&key("against"), "one of", &test.against, &arms)?;
            let (form, metric) = form_and_metric(&test.metric);
            self.check_metric(&key("metric"), metric)?;
            // The first form's numbers have no name before them.
            let forms: Vec<&str> = self
                .targets
                .iter()
                .skip(1)
                .map(|f| f.name.as_str())
                .collect();
            if let Some(form) = form {
                one_of(&key("metric"), "a form of the target, one of", form, &forms)?;
            }
        }
        for (key, value) in [
            ("expected_sd", self.expected_sd),
            ("smallest_effect", self.smallest_effect),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                return Err(Error::setting(key, "above 0", value));
            }
        }
        let quick = self.quick.arms.iter().enumerate();
        for (index, name) in quick {
            one_of(&format!("quick.arms.{index}"), "one of", name, &arms)?;
        }
        Ok(())
    }

    /// Refuses a number that this plan's arms do not have.
    fn check_metric(&self, key: &str, metric: &str) -> Result<()> {
        if self.is_of_own_data() {
            let target = self.recipe_of(&self.arms[0])?.stages.pop();
            let is_measured = |metric: &ValidationMetric| {
                target.as_ref().is_some_and(|stage| metric.is_of(stage))
            };
            let held_out = self.validate.iter().flat_map(|_| ValidationMetric::ALL);
            let held_out = held_out.filter(is_measured);
            let known = held_out.map(|metric| Compared::of_held_out(metric.name()));
            let mut known: Vec<String> = known.collect();
            if self.benchmark.is_some() {
                // Its categories are known when it is read.
                let category = metric.starts_with("benchmark.").then(|| metric.to_owned());
                known.extend(std::iter::once("benchmark".to_owned()).chain(category));
            }
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            return one_of(key, "one of", metric, &known);
        }
        let known: Vec<&str> = COMPARED.iter().map(|compared| &*compared.name).collect();
        one_of(key, "one of", metric, &known)
    }

    /// Whether arms are compared by data of the plan's own, and not by the embedded sets.
    pub fn is_of_own_data(&self) -> bool {
        self.validate.is_some() || self.benchmark.is_some()
    }

    fn check_targets(&self) -> Result<()> {
        let arms: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        let names: Vec<&str> = self.targets.iter().map(|form| form.name.as_str()).collect();
        let draws = |key: &str, draws: usize| match draws {
            1..=MOST_DRAWS => Ok(()),
            other => Err(Error::setting(key, format!("1 to {MOST_DRAWS}"), other)),
        };
        for (index, form) in self.targets.iter().enumerate() {
            let key = |name: &str| format!("target.{index}.{name}");
            if names[..index].contains(&names[index]) || !is_plain(&form.name) {
                let want = "letters, digits, - and _, another name for each form";
                return Err(Error::setting(
                    key("name"),
                    want,
                    format!("{:?}", form.name),
                ));
            }
            draws(&key("draws"), form.draws)?;
            for arm in &form.arms {
                one_of(&key("arms"), "one of", arm, &arms)?;
            }
        }
        for form in &self.quick.targets {
            one_of("quick.targets", "one of", form, &names)?;
        }
        draws("quick.draws", self.quick.draws)?;
        for (index, arm) in self.arms.iter().enumerate() {
            for quick in [false, true] {
                if !self.runs(arm, quick) || !self.forms_of(arm, quick).is_empty() {
                    continue;
                }
                let want = "an arm that goes through a form of the target, or another quick.arms";
                return Err(Error::setting(format!("arm.{index}.name"), want, &arm.name));
            }
        }
        Ok(())
    }

    /// Whether an arm runs.
    pub fn runs(&self, arm: &Arm, quick: bool) -> bool {
        !quick || self.quick.arms.is_empty() || self.quick.arms.contains(&arm.name)
    }

    /// The forms of the target that an arm goes through, in the plan's order. Without forms in the plan, one without a name.
    pub(super) fn forms_of(&self, arm: &Arm, quick: bool) -> Vec<TargetForm> {
        if self.targets.is_empty() {
            return vec![TargetForm {
                name: String::new(),
                set: Vec::new(),
                draws: 1,
                arms: Vec::new(),
            }];
        }
        let chosen = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        let forms = self.targets.iter().filter(|form| {
            let runs = !quick || chosen(&self.quick.targets, &form.name);
            runs && chosen(&form.arms, &arm.name)
        });
        let most = if quick { self.quick.draws } else { MOST_DRAWS };
        forms
            .map(|form| TargetForm {
                draws: form.draws.min(most),
                ..form.clone()
            })
            .collect()
    }

    /// The recipe of an arm in a form of its target.
    ///
    /// # Errors
    /// As [`AblationPlan::recipe_of`].
    pub(super) fn recipe_in_form(&self, arm: &Arm, form: &TargetForm) -> Result<Recipe> {
        let mut sets = self.sets(arm, |_| true);
        sets.extend(form.set.iter().cloned());
        Ok(self.recipe_from(arm, &sets, &self.weights)?.0)
    }

    /// The warm start of the vision tower, also where published weights stand in its place.
    ///
    /// # Errors
    /// As [`AblationPlan::recipe_of`].
    pub(super) fn warm_start_of_vision(&self, arm: &Arm) -> Result<Option<Stage>> {
        let recipe = self.recipe_without_weights(arm, &self.sets(arm, |_| true))?;
        Ok(recipe.stages.into_iter().find(is_warm_start_of_vision))
    }

    /// The recipe of an arm, with all its stages.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the arm.
    pub fn recipe_of(&self, arm: &Arm) -> Result<Recipe> {
        self.recipe_with(arm, |_| true)
    }

    /// As [`AblationPlan::recipe_of`], with those of the arm's own settings alone that concern the model.
    ///
    /// # Errors
    /// As [`AblationPlan::recipe_of`].
    pub(super) fn recipe_of_model(&self, arm: &Arm) -> Result<Recipe> {
        self.recipe_with(arm, |set| set.trim_start().starts_with("model."))
    }

    fn recipe_with(&self, arm: &Arm, keep: impl Fn(&str) -> bool) -> Result<Recipe> {
        let sets = self.sets(arm, keep);
        Ok(self.recipe_from(arm, &sets, &self.weights)?.0)
    }

    /// What is worth saying of the weights that every arm begins from, a sentence each.
    ///
    /// # Errors
    /// As [`AblationPlan::recipe_of`].
    pub fn weight_notes(&self) -> Result<Vec<String>> {
        let Some(arm) = self.arms.first().filter(|_| !self.weights.is_empty()) else {
            return Ok(Vec::new());
        };
        let sets = self.sets(arm, |_| true);
        Ok(self.recipe_from(arm, &sets, &self.weights)?.1.notes)
    }

    fn recipe_without_weights(&self, arm: &Arm, sets: &[String]) -> Result<Recipe> {
        Ok(self.recipe_from(arm, sets, &PublishedWeights::default())?.0)
    }

    fn recipe_from(
        &self,
        arm: &Arm,
        sets: &[String],
        weights: &PublishedWeights,
    ) -> Result<(Recipe, Beginning)> {
        let begun = Recipe::load_from(&self.recipe, sets, weights);
        let begun = begun.map(|(mut recipe, beginning)| {
            recipe.leave_out_controls();
            (recipe, beginning)
        });
        begun.map_err(|problem| match problem {
            Error::Setting { what, want, found } if what == "--recipe" => {
                Error::setting("recipe", want, found)
            }
            problem => of_arm(arm, problem),
        })
    }

    fn sets(&self, arm: &Arm, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let own = arm.set.iter().filter(|set| keep(set));
        self.set.iter().chain(own).cloned().collect()
    }
}

/// Whether a name can be part of a file's name.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.chars().all(is_plain)
}

/// A number's form of the target, where it is not of the first, and its name: `co-trained/questions.seen_style`.
pub fn form_and_metric(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((form, metric)) => (Some(form), metric),
        None => (None, name),
    }
}

/// Refuses a name that is none of `among`.
fn one_of(key: &str, want: &str, name: &str, among: &[&str]) -> Result<()> {
    if among.contains(&name) {
        return Ok(());
    }
    let want = format!("{want} {}", among.join(", "));
    Err(Error::setting(key, want, with_near_miss(name, among)))
}

fn of_arm(arm: &Arm, problem: Error) -> Error {
    match problem {
        Error::Setting { what, want, found } => {
            Error::setting(format!("arm {}, {what}", arm.name), want, found)
        }
        other => other,
    }
}

/// Whether a stage is a warm start of the vision tower.
pub(super) fn is_warm_start_of_vision(stage: &Stage) -> bool {
    stage.kind == StageKind::WarmStart && stage.trains("vision")
}

/// Refuses stages that the recipe does not refine in, and recipes whose stages cannot be stretched.
fn check_stages(recipe: &Recipe, arm: &Arm, key: &str) -> Result<()> {
    let of_kind = |kind| -> Vec<&str> {
        let stages = recipe.stages.iter().filter(|stage| stage.kind == kind);
        stages.map(|stage| stage.name.as_str()).collect()
    };
    let refining = of_kind(StageKind::Refine);
    for name in &arm.stages {
        if !refining.contains(&name.as_str()) {
            let want = format!("stages of refinement out of {}", refining.join(", "));
            return Err(Error::setting(key, want, with_near_miss(name, &refining)));
        }
    }
    if arm.stages.is_empty() && arm.spend == Spend::Refinement {
        let want = "at least one stage, or spend = \"as_is\", \"warm_start\" or \"target\"";
        return Err(Error::setting(key, want, "none"));
    }
    if let Some(stage) = recipe.stages.iter().find(|stage| !stage.restore.is_empty()) {
        let want = "none in an ablation, whose arms leave stages out";
        let key = format!("stage {}: restore", stage.name);
        return Err(Error::setting(key, want, "modules of other stages"));
    }
    let want = "a recipe with a stage of kind target at its end";
    if of_kind(StageKind::Target).len() != 1
        || recipe
            .stages
            .last()
            .is_none_or(|stage| stage.kind != StageKind::Target)
    {
        return Err(Error::setting("recipe", want, "none"));
    }
    if let Some(stage) = recipe.stages.iter().find(|stage| stage.steps.is_none()) {
        let found = format!("epochs in stage {}", stage.name);
        return Err(Error::setting(
            "recipe",
            "a recipe whose stages give steps",
            found,
        ));
    }
    Ok(())
}
