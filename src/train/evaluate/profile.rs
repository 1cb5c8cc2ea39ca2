//! One training step of a stage, op by op: where its time goes, on a batch of its own data.

use std::sync::Arc;

use crate::recipe::{Recipe, Stage};
use crate::stage::LeftOut;
use crate::stage_data::stage_mixture;
use crate::step_program::{batch_inputs, compile_step, optimizer_scalars};
use keel_base::error::Result;
use keel_emoji::emoji_set::EmojiSet;
use keel_engine::executor::{Executor, SelectedDevice, Session};
use keel_engine::ops::MICRO_BATCH_INDEX;
use keel_engine::tape::Cost;
use keel_model::{ModelInput, declare};

/// Runs before the first one that counts.
const WARM_UP: usize = 2;

/// A step taken apart.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The stage.
    pub stage: String,
    /// What computed.
    pub device: String,
    /// Samples of the batch.
    pub batch: usize,
    /// Runs that were timed.
    pub runs: usize,
    /// Floating-point operations a second that the device reaches at most; 0 when unknown.
    pub peak_flops: f64,
    /// Bytes a second that its memory gives at most; 0 when unknown.
    pub peak_bandwidth: f64,
    /// The ops in the order in which they run.
    pub ops: Vec<ProfiledOp>,
    /// What the device had to say, such as that it computes slower than it could.
    pub warnings: Vec<String>,
}

/// One op of a step.
#[derive(Clone, Debug, Default)]
pub struct ProfiledOp {
    /// Its name, such as `linear`.
    pub name: String,
    /// The part of the model that recorded it, such as `vision.blocks.3`.
    pub scope: String,
    /// Whether it belongs to the backward or update part.
    pub is_backward: bool,
    /// Median over the runs.
    pub seconds: f64,
    /// Work and traffic by the op's own account.
    pub cost: Cost,
}

impl ProfiledOp {
    /// The least seconds that work and traffic take on a device with these peaks; a peak of 0 bounds nothing.
    pub fn bound(&self, peak_flops: f64, peak_bandwidth: f64) -> f64 {
        let over = |amount: f64, rate: f64| if rate > 0.0 { amount / rate } else { 0.0 };
        let bytes = self.cost.bytes_read + self.cost.bytes_written;
        over(self.cost.flops, peak_flops).max(over(bytes, peak_bandwidth))
    }
}

impl Profile {
    /// Times `runs` steps of stage `index` of `recipe` on a batch of its data, from first values.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] for a stage that draws from the user's pairs; whatever data, planning and device
    /// report.
    pub fn measure(
        recipe: &Recipe,
        index: usize,
        compute: &SelectedDevice,
        runs: usize,
        memory_budget: Option<u64>,
    ) -> Result<Profile> {
        let stage: &Stage = &recipe.stages[index];
        let tokenizer = recipe.chat_tokenizer(None)?;
        let layout = declare(&recipe.model, recipe.contrastive_loss)?;
        let mixture = stage_mixture(recipe, &EmojiSet::embedded(), None, &tokenizer, index)?;
        let shape = recipe.batch_shape(stage, tokenizer.image());
        let compile_target = compute.compile_target();
        let program = compile_step(
            recipe,
            stage,
            &layout,
            &shape,
            compile_target,
            memory_budget,
        )?;
        let executor = compute.open(layout.elements())?;
        recipe.write_first_values(&layout, executor.as_ref(), Vec::new())?;
        let mut session = executor.load(Arc::new(program))?;
        batch_inputs(session.program())?.write(session.as_mut(), &mixture.batch(0)?)?;
        LeftOut::new(recipe, stage).write(session.as_mut(), 0)?;
        let steps = (WARM_UP + runs) as u64;
        let groups = stage.parameter_groups(&layout)?;
        optimizer_scalars(stage, &groups, [0, steps], 1.0).write(session.as_mut())?;
        let weights = [ModelInput::LossWeight, ModelInput::ContrastiveWeight];
        for weight in weights.map(ModelInput::name) {
            if session.program().input(weight).is_ok() {
                session.write_f32(weight, &[1.0])?;
            }
        }
        if session.program().input(MICRO_BATCH_INDEX).is_ok() {
            // That of the last, with which the step updates.
            session.write_i32(MICRO_BATCH_INDEX, &[stage.micro_batches() as i32 - 1])?;
        }
        Profile::of_session(session.as_mut(), executor.as_ref(), stage, runs)
    }

    /// Times `runs` runs of a training step of `stage` whose inputs have been written.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn of_session(
        session: &mut dyn Session,
        executor: &dyn Executor,
        stage: &Stage,
        runs: usize,
    ) -> Result<Profile> {
        for _ in 0..WARM_UP {
            session.run()?;
        }
        let count = session.program().ops().len();
        let mut seconds = vec![Vec::with_capacity(runs); count];
        for _ in 0..runs {
            let mut of_run = vec![0.0; count];
            session.run_timed(&mut of_run)?;
            for (all, one) in seconds.iter_mut().zip(of_run) {
                all.push(one);
            }
        }
        let program = session.program();
        let ops = program.ops().iter().zip(&mut seconds);
        let ops = ops.map(|(step, seconds)| {
            seconds.sort_by(f64::total_cmp);
            let instruction = &step.instruction;
            ProfiledOp {
                name: instruction.op.name().to_owned(),
                scope: instruction.scope.to_string(),
                is_backward: instruction.is_backward,
                seconds: seconds.get(seconds.len() / 2).copied().unwrap_or(0.0),
                cost: program.op_cost(step),
            }
        });
        Ok(Profile {
            stage: stage.name.clone(),
            batch: stage.micro_batch(),
            runs,
            ops: ops.collect(),
            warnings: executor.take_warnings(),
            device: executor.describe(),
            peak_flops: executor.peak_flops(),
            peak_bandwidth: executor.peak_bandwidth(),
        })
    }

    /// Seconds of all ops.
    pub fn seconds(&self) -> f64 {
        self.ops.iter().map(|op| op.seconds).sum()
    }
}
