//! A step done twice: a processor or memory that computes wrongly now and then is found out by the bits.

use crate::checkpoint::OptimizerValues;
use crate::recipe::Stage;
use crate::run::Run;
use crate::stage::{LeftOut, MicroWeight, run_micro_batch, write_micro_batch};
use crate::step_program::OptimizerScalars;
use keel_base::error::{Error, Result};
use keel_data::batch::Batch;
use keel_engine::executor::Session;
use keel_model::BatchInputs;

/// What a step changes.
struct StepState {
    parameters: Vec<f32>,
    optimizer: OptimizerValues,
}

impl StepState {
    fn read(run: &Run, session: &dyn Session) -> Result<StepState> {
        Ok(StepState {
            parameters: run.parameters()?,
            optimizer: OptimizerValues::read(session)?,
        })
    }

    fn write(&self, run: &Run, session: &mut dyn Session) -> Result<()> {
        run.executor.write_parameters(0, &self.parameters)?;
        self.optimizer.write(session)
    }

    fn is_same(&self, other: &StepState) -> bool {
        // As bits: a NaN is not equal to itself as a number.
        let is_same = |one: &[f32], other: &[f32]| {
            bytemuck::cast_slice::<f32, u32>(one) == bytemuck::cast_slice::<f32, u32>(other)
        };
        let mut slots = self.optimizer.slots().zip(other.optimizer.slots());
        is_same(&self.parameters, &other.parameters)
            && slots.all(|((_, one), (_, other))| is_same(one, other))
    }
}

/// Everything that a step has to be done again with.
pub(crate) struct Recheck {
    before: StepState,
    batches: Vec<(Batch, MicroWeight, OptimizerScalars)>,
}

impl Recheck {
    /// Remembers how things stand before a step.
    ///
    /// # Errors
    /// Whatever executor and session report.
    pub fn before(run: &Run, session: &dyn Session) -> Result<Recheck> {
        Ok(Recheck {
            before: StepState::read(run, session)?,
            batches: Vec::new(),
        })
    }

    /// Remembers a micro-batch of the step, with its weight and the numbers of the update.
    pub fn keep(&mut self, batch: Batch, weight: MicroWeight, scalars: OptimizerScalars) {
        self.batches.push((batch, weight, scalars));
    }

    /// Puts back what was before the step, does it again and compares what both left.
    ///
    /// # Errors
    /// [`Error::Stopped`] where the bits differ; whatever executor and session report.
    pub fn compare(
        self,
        run: &Run,
        stage: &Stage,
        step: u64,
        inputs: &BatchInputs,
        session: &mut dyn Session,
    ) -> Result<()> {
        assert_eq!(self.batches.len(), stage.micro_batches(), "the whole step");
        let once = StepState::read(run, session)?;
        self.before.write(run, session)?;
        let left_out = LeftOut::new(&run.recipe, stage);
        for (index, (batch, weight, scalars)) in self.batches.iter().enumerate() {
            write_micro_batch(session, stage, (inputs, &left_out), batch, weight)?;
            run_micro_batch(session, index + 1 == self.batches.len(), scalars)?;
        }
        if once.is_same(&StepState::read(run, session)?) {
            return Ok(());
        }
        Err(Error::stopped(
            format!("stage {}, step {step}", stage.name),
            "the same step done twice left different bits: this machine does not compute reliably",
            "test its memory, take overclocking back, or go on from the newest checkpoint on another machine",
        ))
    }
}
