//! One training step as a program: forward, losses, backward, gradient norm, update.

use std::sync::Arc;

use super::recipe::{Recipe, Stage};
use crate::data::tokenizer::IMAGE;
use crate::error::Result;
use crate::model::{StepShape, record_objectives};
use crate::ops::{self, StepSettings, UpdateOptions};
use crate::program::{CompileOptions, Program};
use crate::tape::{Machine, ParameterLayout, Tape};
use crate::tensor::DType;

/// Largest log of the contrastive scale: e^this is 100 (Radford et al. 2021, §2.5).
const MOST_LOG_SCALE: f32 = 4.605_170_2;

/// The sizes of a stage's batch, spoken in the embedded tokeniser; `batch` overrides the recipe's.
pub fn step_shape(stage: &Stage, batch: Option<usize>) -> StepShape {
    StepShape {
        batch: batch.unwrap_or(stage.batch),
        tokens: stage.tokens,
        caption_tokens: stage.caption_tokens,
        image_id: i32::from(IMAGE),
    }
}

/// Records a whole training step of a stage.
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
    let objectives = stage.objectives(recipe.contrastive_form.into());
    let loss = record_objectives(&mut tape, &recipe.model, &objectives, shape)?;
    tape.backward(loss)?;
    let clamps =
        ["contrastive.log_scale", "align.log_scale"].map(|name| (name, 0.0, MOST_LOG_SCALE));
    ops::record_update(
        &mut tape,
        layout,
        &UpdateOptions {
            clamps: clamps.to_vec(),
            random_rounding: recipe.random_rounding.then_some(recipe.seed),
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
            ..CompileOptions::new(machine.target)
        },
    )
}

/// The numbers of the input `hyper` f32 [11] for the optimiser step `step` (from 0).
pub fn hyper(stage: &Stage, step: u64, steps: u64) -> [f32; 11] {
    let settings = StepSettings {
        learning_rate: stage.learning_rate_at(step, steps),
        betas: stage.betas,
        epsilon: stage.epsilon,
        weight_decay: stage.weight_decay,
        clip: stage.clip,
    };
    settings.hyper(step)
}
