//! From an arm and a seed to the recipe that is run: stages chosen, steps stretched to equal compute.

use std::sync::Arc;

use super::plan::{AblationPlan, Arm, Spend, is_warm_start_of_vision};
use crate::recipe::{Recipe, Stage, StageKind};
use crate::step_program::record_step;
use keel_base::error::Result;
use keel_data::chat::ChatTokenizer;
use keel_engine::tape::ParameterLayout;
use keel_engine::tensor::DType;
use keel_model::declare;

/// One arm under one seed, ready to run.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The arm's name.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// The stages of warm start, then of refinement, then the target.
    pub recipe: Recipe,
    /// How many stages of the recipe are warm start.
    pub warm: usize,
    /// Floating-point operations of the warm start.
    pub warm_flops: f64,
    /// Floating-point operations of the refinement.
    pub refinement_flops: f64,
    /// Floating-point operations that refinement costs at equal compute.
    pub budget: f64,
    /// Images of each evaluation set, at most.
    pub images: usize,
    /// What the tower goes through after that.
    pub targets: Vec<UnitTarget>,
}

/// A form of the target training of a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitTarget {
    /// The form's name; empty where the plan has no forms.
    pub name: String,
    /// The stage.
    pub stage: Stage,
    /// How often it is run.
    pub draws: usize,
    /// Floating-point operations of one run.
    pub flops: f64,
}

/// Floating-point operations of one training step, from the costs of its ops.
///
/// # Errors
/// Whatever recording reports.
pub fn step_flops(recipe: &Recipe, stage: &Stage, layout: &Arc<ParameterLayout>) -> Result<f64> {
    let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
    let tape = record_step(recipe, stage, layout, &shape, DType::F32)?;
    let costs = tape
        .instructions()
        .iter()
        .map(|instruction| instruction.cost(tape.values()));
    let flops = costs.map(|cost| cost.flops);
    Ok(stage.micro_batches() as f64 * flops.sum::<f64>())
}

fn flops(recipe: &Recipe, stages: &[Stage]) -> Result<f64> {
    let layout = declare(&recipe.model, recipe.contrastive_loss)?;
    let mut all = 0.0;
    for stage in stages {
        all += step_flops(recipe, stage, &layout)? * stage.steps.unwrap_or(0) as f64;
    }
    Ok(all)
}

fn stretch(stage: &mut Stage, factor: f64) {
    stage.steps = stage
        .steps
        .map(|steps| ((steps as f64 * factor).round() as u64).max(1));
}

/// The units of a plan: seed by seed, so that every arm has some results before the first has all.
///
/// # Errors
/// Whatever the arms' recipes report.
pub fn units(plan: &AblationPlan, quick: bool) -> Result<Vec<Unit>> {
    let (seeds, images) = if quick {
        (&plan.quick.seeds, plan.quick.max_images)
    } else {
        (&plan.seeds, plan.max_images)
    };
    let arms = plan.arms.iter().filter(|arm| plan.runs(arm, quick));
    let arms = arms
        .map(|arm| unit_of(plan, arm, quick))
        .collect::<Result<Vec<Unit>>>()?;
    let mut units = Vec::new();
    for seed in seeds {
        for arm in &arms {
            let mut unit = arm.clone();
            (unit.seed, unit.recipe.seed, unit.images) = (*seed, *seed, images);
            units.push(unit);
        }
    }
    Ok(units)
}

fn unit_of(plan: &AblationPlan, arm: &Arm, quick: bool) -> Result<Unit> {
    let shorten = |recipe: &mut Recipe| {
        if quick {
            for stage in &mut recipe.stages {
                let factor = match stage.kind {
                    StageKind::WarmStart => plan.quick.warm_start_ratio,
                    StageKind::Refine => plan.quick.refinement_ratio,
                    StageKind::Target | StageKind::Control => plan.quick.target_ratio,
                };
                stretch(stage, factor);
            }
        }
    };
    let mut whole = plan.recipe_of_model(arm)?;
    shorten(&mut whole);
    whole.stages.retain(|stage| stage.kind == StageKind::Refine);
    let budget = flops(&whole, &whole.stages)?;

    let mut recipe = plan.recipe_of(arm)?;
    shorten(&mut recipe);
    recipe.stages.retain(|stage| match stage.kind {
        StageKind::Refine => arm.stages.contains(&stage.name),
        _ => true,
    });
    if arm.spend == Spend::WarmStart && !recipe.stages.iter().any(is_warm_start_of_vision) {
        // Published weights stand in its place: it goes on from them, when the language model is warm.
        let stage = plan.warm_start_of_vision(arm)?;
        let stage = stage.expect("the plan was checked");
        recipe.stages.push(Stage {
            steps: Some(0),
            ..stage
        });
    }
    // Warm start, refinement, target: whatever order the recipe has them in.
    recipe.stages.sort_by_key(|stage| match stage.kind {
        StageKind::WarmStart => 0,
        StageKind::Refine => 1,
        StageKind::Target | StageKind::Control => 2,
    });
    let is_warm = |stage: &&Stage| stage.kind == StageKind::WarmStart;
    let warm = recipe.stages.iter().filter(is_warm).count();
    let last = recipe.stages.len() - 1;
    let mut targets = Vec::new();
    for form in plan.forms_of(arm, quick) {
        let mut of_form = plan.recipe_in_form(arm, &form)?;
        shorten(&mut of_form);
        let mut stage = of_form.stages.pop().expect("the plan was checked");
        let layout = declare(&of_form.model, of_form.contrastive_loss)?;
        let of_step = step_flops(&of_form, &stage, &layout)?;
        if arm.spend == Spend::Target {
            let further = (budget / of_step).round() as u64;
            stage.steps = stage.steps.map(|steps| steps + further);
        }
        targets.push(UnitTarget {
            name: form.name,
            draws: form.draws,
            flops: of_step * stage.steps.unwrap_or(0) as f64,
            stage,
        });
    }
    match arm.spend {
        // What the target takes is in its forms.
        Spend::AsIs | Spend::Target => {}
        Spend::Refinement => {
            let factor = budget / flops(&recipe, &recipe.stages[warm..last])?;
            for stage in &mut recipe.stages[warm..last] {
                stretch(stage, factor);
            }
        }
        Spend::WarmStart => {
            let layout = declare(&recipe.model, recipe.contrastive_loss)?;
            if let Some(at) = recipe.stages.iter().position(is_warm_start_of_vision) {
                let of_step = step_flops(&recipe, &recipe.stages[at], &layout)?;
                let further = (budget / of_step).round() as u64;
                let stage = &mut recipe.stages[at];
                stage.steps = stage.steps.map(|steps| steps + further);
            }
        }
    }
    Ok(Unit {
        arm: arm.name.clone(),
        seed: 0,
        warm,
        warm_flops: flops(&recipe, &recipe.stages[..warm])?,
        refinement_flops: flops(&recipe, &recipe.stages[warm..last])?,
        budget,
        recipe,
        images: 0,
        targets,
    })
}
