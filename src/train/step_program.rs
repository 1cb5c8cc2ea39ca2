//! One training step as a program: forward, losses, backward, gradient norm, update.

use std::sync::Arc;

use super::recipe::{Recipe, Stage};
use super::stage::is_left_out;
use keel_base::error::{Error, Result};
use keel_data::batch::BatchShape;
use keel_engine::executor::Session;
use keel_engine::ops::{self, OptimizerInput, ParameterGroups, StepSettings, UpdateOptions};
use keel_engine::program::{CompileOptions, PlannedOp, Program};
use keel_engine::tape::{CompileTarget, ParameterLayout, Tape, Value};
use keel_engine::tensor::{DType, TensorType};
use keel_model::{BatchInputs, ModelInput, Objectives, record_losses, record_objectives};
use keel_ranks::World;
use keel_ranks::order::BUCKET;

/// Largest log of the contrastive scale: e^this is 100 (Radford et al. 2021, §2.5).
const MOST_LOG_SCALE: f32 = 4.605_170_2;

/// Records a whole training step of a stage. Where the stage accumulates the gradients of several micro-batches, the loss is
/// weighted by [`ModelInput::LossWeight`].
///
/// # Errors
/// Whatever recording reports.
pub fn record_step(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    shape: &BatchShape,
    precision: DType,
) -> Result<Tape> {
    record_rank_step(recipe, stage, layout, shape, precision, World::ALONE)
}

/// As [`record_step`], for one of several ranks: `recipe` and `stage` are its share ([`Recipe::of_rank`]). Gradients are summed
/// over all ranks, and so have to be losses: the next-token loss is weighted by [`ModelInput::LossWeight`], and this rank's
/// part of the contrastive loss over all ranks' pairs by [`ModelInput::ContrastiveWeight`].
///
/// # Errors
/// Whatever recording reports.
pub fn record_rank_step(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    shape: &BatchShape,
    precision: DType,
    world: World,
) -> Result<Tape> {
    let trained = stage.clone();
    let mut tape = Tape::new(layout.clone(), move |parameter| trained.trains(parameter))
        .in_precision(precision);
    let is_divided = stage.micro_batches() > 1;
    if recipe.reproducible_across_ranks {
        tape = tape.adding_in_tree(stage.micro_batches());
    } else if is_divided {
        tape = tape.accumulating_gradients();
    }
    let objectives = stage.objectives(recipe.contrastive_loss);
    if world.ranks > 1 {
        tape = tape.over_ranks(world, BUCKET);
        if recipe.zero_stage == 2 {
            tape = tape.sharding_gradients();
        }
    }
    if weighs_losses_apart(world, recipe.reproducible_across_ranks) {
        record_weighted_losses(&mut tape, recipe, &objectives, shape)?;
    } else {
        let loss = record_objectives(&mut tape, &recipe.model, &objectives, shape)?;
        if is_divided {
            let weight = tape.input(ModelInput::LossWeight, TensorType::f32([1]));
            tape.backward_from(&[(loss, weight)])?;
        } else {
            tape.backward(loss)?;
        }
    }
    let clamps =
        ["contrastive.log_scale", "align.log_scale"].map(|name| (name, 0.0, MOST_LOG_SCALE));
    ops::record_update(
        &mut tape,
        layout,
        &stage.parameter_groups(layout)?,
        &UpdateOptions {
            clamps: clamps.to_vec(),
            random_rounding: recipe.stochastic_rounding.then_some(recipe.seed),
            ema_decay: stage.ema_decay,
            // The best checkpoint is saved by the first rank alone, with whole values.
            shards_masters: !stage.keeps_best(),
        },
    )?;
    Ok(tape)
}

/// Whether each loss of a step has a weight of its own: over several ranks, and where one rank is to leave their bits.
pub(crate) fn weighs_losses_apart(world: World, in_tree: bool) -> bool {
    world.ranks > 1 || in_tree
}

/// The equal parts that the loss of distillation has over ranks. It is a mean over the rank's own images, of which all ranks have
/// equally many: an equal part of the mean over all of them, which weighs as the contrastive loss over all of them does. In a tree
/// both are of one micro-batch.
pub(crate) fn parts_of_distillation(world: World, in_tree: bool) -> f32 {
    match in_tree {
        true => 1.0,
        false => world.ranks as f32,
    }
}

/// Records the losses of a rank among several and their gradients, each with a weight of its own.
fn record_weighted_losses(
    tape: &mut Tape,
    recipe: &Recipe,
    objectives: &Objectives,
    shape: &BatchShape,
) -> Result<()> {
    let losses = record_losses(tape, &recipe.model, objectives, shape)?;
    let parts = parts_of_distillation(tape.world(), tape.tree().is_some());
    let distillation = losses.distillation;
    let distillation = distillation.map(|(loss, factor)| (loss, factor / parts));
    let next_token: Vec<(Value, f32)> = losses.next_token.into_iter().collect();
    let of_all = losses.contrastive.into_iter().chain(distillation).collect();
    let mut seeds = Vec::new();
    for (terms, input) in [
        (next_token, ModelInput::LossWeight),
        (of_all, ModelInput::ContrastiveWeight),
    ] {
        if !terms.is_empty() {
            let loss = ops::weighted_sum(tape, &terms)?;
            seeds.push((loss, tape.input(input, TensorType::f32([1]))));
        }
    }
    tape.backward_from(&seeds)
}

/// Records and plans a whole training step of a stage.
///
/// # Errors
/// Whatever recording or planning reports.
pub fn compile_step(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    shape: &BatchShape,
    compile_target: impl Into<CompileTarget>,
    memory_budget: Option<u64>,
) -> Result<Program> {
    let world = World::ALONE;
    compile_rank_step(
        recipe,
        stage,
        layout,
        shape,
        compile_target,
        memory_budget,
        world,
    )
}

/// As [`compile_step`], for one of several ranks: `recipe` and `stage` are its share ([`Recipe::of_rank`]).
///
/// # Errors
/// Whatever recording or planning reports.
pub fn compile_rank_step(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    shape: &BatchShape,
    compile_target: impl Into<CompileTarget>,
    memory_budget: Option<u64>,
    world: World,
) -> Result<Program> {
    let compile_target = compile_target.into();
    let precision = compile_target.precision;
    let tape = record_rank_step(recipe, stage, layout, shape, precision, world)?;
    Program::compile(
        tape,
        &CompileOptions {
            memory_budget,
            ..CompileOptions::new(compile_target)
        },
    )
    .map_err(|problem| match problem {
        // A budget that is enough for most stages is too small for one: which one only this caller knows.
        Error::Setting { what, want, found } => Error::Setting {
            what,
            want: format!("{want}, in stage {}", stage.name),
            found,
        },
        other => other,
    })
}

/// Floating-point operations of a whole step: every micro-batch, of all ranks where the program is of one among several, and
/// one update.
pub fn whole_step_flops(program: &Program, stage: &Stage) -> f64 {
    let (gradients, update) = program.ops().split_at(program.gradient_ops());
    let flops = |ops: &[PlannedOp]| ops.iter().map(|op| program.op_cost(op).flops).sum::<f64>();
    let runs = match stage.micro_batch_size {
        Some(_) => stage.micro_batches(),
        None => program.world().ranks,
    };
    runs as f64 * flops(gradients) + flops(update)
}

/// What one optimiser step is told by its host.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerScalars {
    /// For [`OptimizerInput::Scalars`].
    pub shared: [f32; ops::OPTIMIZER_SCALARS],
    /// For [`OptimizerInput::GroupScalars`].
    pub groups: Vec<f32>,
}

impl OptimizerScalars {
    /// What one of the inputs takes.
    pub fn of(&self, input: OptimizerInput) -> &[f32] {
        match input {
            OptimizerInput::Scalars => &self.shared,
            OptimizerInput::GroupScalars => &self.groups,
        }
    }

    /// Writes both inputs.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn write(&self, session: &mut dyn Session) -> Result<()> {
        for input in OptimizerInput::ALL {
            session.write_f32(input.name(), self.of(input))?;
        }
        Ok(())
    }
}

/// What the optimiser is told in step `step` of `steps` (from 0), with the scale of what was accumulated. `groups` are those of
/// the stage, [`Stage::parameter_groups`].
pub fn optimizer_scalars(
    stage: &Stage,
    groups: &ParameterGroups,
    [step, steps]: [u64; 2],
    gradient_scale: f64,
) -> OptimizerScalars {
    let settings = StepSettings {
        betas: stage.betas,
        epsilon: stage.epsilon,
        clip: stage.max_grad_norm,
        gradient_scale,
    };
    let rate = stage.learning_rate_at(step, steps);
    OptimizerScalars {
        shared: settings.scalars(step),
        groups: groups.scalars(rate),
    }
}

/// What the step of a stage reads of a batch. The rest is its loop's to write: the loss's weight, what is left out at random, and
/// the optimiser's numbers.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] naming an input that nobody would write.
pub fn batch_inputs(program: &Program) -> Result<BatchInputs> {
    let mut by_the_loop = vec![
        ModelInput::LossWeight.name(),
        ModelInput::ContrastiveWeight.name(),
        ops::MICRO_BATCH_INDEX,
    ];
    by_the_loop.extend(OptimizerInput::ALL.map(OptimizerInput::name));
    by_the_loop.extend(program.input_names().filter(|name| is_left_out(name)));
    BatchInputs::of(program, &by_the_loop)
}
