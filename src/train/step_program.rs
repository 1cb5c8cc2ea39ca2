//! One training step as a program: forward, losses, backward, gradient norm, update.

use std::sync::Arc;

use super::recipe::{Recipe, Stage};
use keel_base::error::Result;
use keel_data::tokenizer::IMAGE;
use keel_engine::ops::{self, StepSettings, UpdateOptions};
use keel_engine::program::{CompileOptions, Program, Step};
use keel_engine::tape::{Machine, ParameterLayout, Tape};
use keel_engine::tensor::{DType, TensorType};
use keel_model::{StepShape, record_objectives};

/// Largest log of the contrastive scale: e^this is 100 (Radford et al. 2021, §2.5).
const MOST_LOG_SCALE: f32 = 4.605_170_2;

/// The sizes of what a stage computes at once, spoken in the embedded tokeniser; `batch` overrides its micro-batch.
pub fn step_shape(stage: &Stage, batch: Option<usize>) -> StepShape {
    let batch = batch.unwrap_or(stage.micro_batch());
    StepShape {
        pack: stage.samples_per_sequence,
        tiles: stage.tiling(batch).slots,
        batch,
        tokens: stage.max_tokens,
        caption_tokens: stage.max_caption_tokens,
        image_id: i32::from(IMAGE),
    }
}

/// Records a whole training step of a stage. Where the stage gathers the gradients of several micro-batches, the loss is
/// weighted by the input `share` f32 `[1]`.
///
/// # Errors
/// Whatever recording reports.
pub fn record_step(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    shape: &StepShape,
    precision: DType,
) -> Result<Tape> {
    let trained = stage.clone();
    let mut tape = Tape::new(layout.clone(), move |parameter| trained.trains(parameter))
        .in_precision(precision);
    let is_divided = stage.micro_batches() > 1;
    if is_divided {
        tape = tape.adding_gradients();
    }
    let objectives = stage.objectives(recipe.contrastive_loss.into());
    let loss = record_objectives(&mut tape, &recipe.model, &objectives, shape)?;
    match is_divided {
        true => {
            let share = tape.input("share", TensorType::f32([1]));
            tape.backward_from(&[(loss, share)])?;
        }
        false => tape.backward(loss)?,
    }
    let clamps =
        ["contrastive.log_scale", "align.log_scale"].map(|name| (name, 0.0, MOST_LOG_SCALE));
    ops::record_update(
        &mut tape,
        layout,
        &UpdateOptions {
            clamps: clamps.to_vec(),
            random_rounding: recipe.stochastic_rounding.then_some(recipe.seed),
        },
    )?;
    Ok(tape)
}

/// Records and plans a whole training step of a stage.
///
/// # Errors
/// Whatever recording or planning reports.
pub fn compile_step(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    shape: &StepShape,
    machine: impl Into<Machine>,
    memory_budget: Option<u64>,
) -> Result<Program> {
    let machine = machine.into();
    let tape = record_step(recipe, stage, layout, shape, machine.precision)?;
    Program::compile(
        tape,
        &CompileOptions {
            memory_budget,
            ..CompileOptions::new(machine)
        },
    )
}

/// Floating-point operations of a whole step: every micro-batch, and one update.
pub fn whole_step_flops(program: &Program, stage: &Stage) -> f64 {
    let (gradients, update) = program.steps().split_at(program.gradient_steps());
    let flops = |steps: &[Step]| {
        steps
            .iter()
            .map(|s| program.step_cost(s).flops)
            .sum::<f64>()
    };
    stage.micro_batches() as f64 * flops(gradients) + flops(update)
}

/// The numbers of the input `hyper` for the optimiser step `step` (from 0), with the scale of what was gathered.
pub fn hyper(stage: &Stage, [step, steps]: [u64; 2], gradient_scale: f64) -> [f32; ops::HYPER] {
    let settings = StepSettings {
        learning_rate: stage.learning_rate_at(step, steps),
        betas: stage.betas,
        epsilon: stage.epsilon,
        weight_decay: stage.weight_decay,
        clip: stage.max_grad_norm,
        gradient_scale,
    };
    settings.hyper(step)
}
