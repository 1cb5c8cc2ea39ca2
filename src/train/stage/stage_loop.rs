//! The steps of one stage: batches in, steps, reports, checkpoints between; and what happens on bad numbers and on
//! signals.

use std::sync::Arc;

use super::feed::{Feed, FeedPlan};
use super::left_out::LeftOut;
use super::rank_batch::MicroWeight;
use super::validation::StageValidation;
use crate::checkpoint::{
    Averages, Checkpointer, OptimizerValues, after_stage, begin_stage, load, newest_well, restore,
    without_optimizer,
};
use crate::gradient_accumulator::GradientAccumulator;
use crate::guard::{Guard, MOST_STRIKES, Recheck, Verdict};
use crate::masters::make_whole;
use crate::observer::{Event, StageBegins, StepReport, StepsBegin};
use crate::recipe::{Stage, StageKind};
use crate::run::{Asked, ProgressLog, Run, RunState, StepNumbers, StepSize};
use crate::step_program::{
    OptimizerScalars, batch_inputs, optimizer_scalars, weighs_losses_apart, whole_step_flops,
};
use crate::validation::{ValidationHistory, ValidationPlan};
use keel_base::clock::Stopwatch;
use keel_base::error::{Error, Result};
use keel_data::batch::Batch;
use keel_data::identities::MaskedShare;
use keel_data::mixture::Mixture;
use keel_data::packing::PackingStats;
use keel_engine::executor::Session;
use keel_engine::ops::{EMA_STATE, MASTER_STATE, MICRO_BATCH_INDEX, ParameterGroups};
use keel_engine::program::{MemoryReport, Program};
use keel_model::{BatchInputs, ModelInput};

/// The share of masked scores above which a run says so: below it, rows are equal now and then by chance.
const MASKED_SHARE_TO_SAY: f64 = 0.01;

/// A stage that is loaded and ready to step. It changes parameters and the optimiser's state, which the executor and the session hold,
/// and the run's state; what it has trained is saved after it, by its caller.
pub(crate) struct StageLoop<'a> {
    run: &'a Run,
    state: &'a mut RunState,
    checkpoints: &'a mut Checkpointer,
    /// The stage's index in the recipe.
    index: usize,
    /// This rank's share of it.
    stage: &'a Stage,
    mixture: Arc<Mixture>,
    /// All steps of the stage.
    steps: u64,
    /// Which parameters learn at what rate.
    groups: ParameterGroups,
    session: Box<dyn Session>,
    /// What its program reads of a batch.
    inputs: Arc<BatchInputs>,
    memory: MemoryReport,
    validation: Option<StageValidation>,
    /// What the contrastive loss has left out of its batches so far.
    masked: MaskedShare,
}

/// What one step came to.
struct Stepped {
    numbers: StepNumbers,
    /// Names of its samples.
    keys: Vec<String>,
}

impl<'a> StageLoop<'a> {
    /// Loads stage `index`, with the optimiser's state of the step it goes on from where it has any.
    ///
    /// # Errors
    /// Whatever data, device and observers report.
    ///
    /// # Panics
    /// When the stage was not planned.
    pub fn load(
        run: &'a Run,
        state: &'a mut RunState,
        checkpoints: &'a mut Checkpointer,
        index: usize,
        optimizer: Option<OptimizerValues>,
    ) -> Result<StageLoop<'a>> {
        let (whole, stage) = (&run.recipe.stages[index], &run.share.stages[index]);
        let program = run.programs[index].clone();
        let program = program.expect("every stage to be run is planned");
        let mixture = Arc::new(run.mixture(index)?);
        let steps = run.steps(whole, &mixture);
        let memory = MemoryReport::new(&program, &run.layout);
        let begun = begin(run, &program, stage, optimizer)?;
        let validation = StageValidation::load(run, index)?;
        let planned = run.validations[index].as_ref();
        run.tell(&Event::StageBegins(StageBegins {
            number: index + 1,
            stage: whole,
            steps,
            trained: run.trained(stage),
            program: &program,
            memory: &memory,
            validation_bytes: planned.map_or(0, ValidationPlan::bytes),
        }))?;
        let mut session = run.executor.load(program)?;
        let inputs = Arc::new(batch_inputs(session.program())?);
        // A session's state is zero when it is loaded.
        if let Some(state) = begun {
            state.write(session.as_mut())?;
        }
        run.tell_device_warnings()?;
        Ok(StageLoop {
            run,
            state,
            checkpoints,
            index,
            stage,
            mixture,
            steps,
            groups: stage.parameter_groups(&run.layout)?,
            session,
            inputs,
            memory,
            validation,
            masked: MaskedShare::default(),
        })
    }

    /// Runs the steps from `first` (from 0) to the end of the stage, as often going back as the guard allows, and leaves all
    /// parameters with the executor. No checkpoint is on its way any more when it returns. Returns the averages that the stage has kept, with the
    /// program that says where they lie; nothing where it keeps none.
    ///
    /// # Errors
    /// [`Error::Stopped`] when losses stay bad, [`Error::Interrupted`] when the user ends the run; whatever data, disk,
    /// device and observers report.
    pub fn train(mut self, first: u64) -> Result<Option<Averages>> {
        let under_way = self.run.options.clock.start();
        let mut step = first;
        loop {
            self.run.tell(&Event::StepsBegin(StepsBegin {
                stage: &self.stage.name,
                done: step,
                steps: self.steps,
                memory: self.memory.total(),
            }))?;
            let outcome = self.steps_from(step, &under_way);
            let told = self.run.tell(&Event::StepsEnd);
            // What ended the steps matters more than that it could not be told.
            let last_bad = outcome?;
            told?;
            match last_bad {
                Some(last_bad) => (self, step) = self.go_back(last_bad)?,
                None => return self.end(),
            }
        }
    }

    /// Takes out of the session what outlives it.
    fn end(self) -> Result<Option<Averages>> {
        let read = |name| OptimizerValues::read_named(self.session.as_ref(), name);
        let (averages, masters) = (read(EMA_STATE)?, read(MASTER_STATE)?);
        let program = self.run.programs[self.index].clone();
        let program = program.expect("every stage to be run is planned");
        drop((self.session, self.validation));
        if let Some(masters) = masters {
            make_whole(self.run, &program, &masters)?;
        }
        Ok(averages.map(|averages| (averages, program)))
    }

    /// Runs steps from `first` on, in a stage that `under_way` measures; returns the last of several bad steps after which the run has to go back.
    fn steps_from(&mut self, first: u64, under_way: &Stopwatch) -> Result<Option<u64>> {
        let plan = FeedPlan {
            first,
            steps: self.steps,
            one_batch: self.run.options.overfit_one_batch,
            // As it is now: going back leaves out more, and makes a feed anew.
            guard: self.state.guard.clone(),
            cores_are_free: self.session.takes_inputs_early(),
            dealing: self.run.recipe.dealing(),
            in_tree: self.session.program().tree().is_some(),
        };
        let votes = self.run.options.seat.votes();
        let (mixture, inputs) = (self.mixture.clone(), self.inputs.clone());
        let left_out = LeftOut::new(&self.run.recipe, self.stage);
        let mut feed = Feed::new(self.stage, mixture, (inputs, left_out), votes, plan);
        let rates = self.stage.peak_rates(&self.run.layout)?.into_iter();
        let over_own = |rate: f64| rate / self.stage.learning_rate;
        let factors = rates.map(|(module, ends)| (module.to_owned(), ends.map(over_own)));
        let clock = &self.run.options.clock;
        let mut log = ProgressLog::new(self.step_size(), factors.collect(), clock);
        let mut packing = PackingStats::default();
        self.masked = MaskedShare::default();
        // One that goes on after some steps was validated when these were done.
        if first == 0 {
            self.validate(0)?;
        }
        let mut done = first;
        while done < self.steps {
            let step = done;
            let stepped = self.step(step, &mut feed, &mut packing)?;
            match self.judge(step, &stepped)? {
                Verdict::Well => log.add(stepped.numbers),
                // Its update was not applied, or is too odd to be averaged with others.
                Verdict::Bad(_) => {}
                Verdict::GoBack(_) => return Ok(Some(step)),
                Verdict::Stop(_) => return Err(self.hopeless(step)?),
            }
            done = step + 1;
            self.report(done, &mut log)?;
            if self.validate(done)? {
                self.tell_due(done, true, &mut log)?;
                break;
            }
            // The checkpoint after the stage takes the place of one after its last step.
            if done < self.steps {
                self.save_where_due(done)?;
            }
        }
        self.checkpoints.finish(self.run, self.state, self.index)?;
        self.sum_up(under_way, &packing)?;
        if let Some(validation) = &self.validation {
            validation.sum_up((self.run, self.state), self.index, [done, self.steps])?;
        }
        Ok(None)
    }

    /// Validates the stage after `done` steps, where that is due; returns whether it ends here.
    fn validate(&mut self, done: u64) -> Result<bool> {
        let Some(validation) = &self.validation else {
            return Ok(false);
        };
        let run = (self.run, &mut *self.state);
        validation.run_where_due(run, self.checkpoints, self.index, [done, self.steps])
    }

    /// One optimiser step: its micro-batches, and the update with the last of them.
    fn step(
        &mut self,
        step: u64,
        feed: &mut Feed<'_>,
        packing: &mut PackingStats,
    ) -> Result<Stepped> {
        let under_way = self.run.options.clock.start();
        let session = self.session.as_mut();
        let every = self.run.options.recheck_every;
        let mut recheck = if every > 0 && step.is_multiple_of(every) {
            Some(Recheck::before(self.run, session)?)
        } else {
            None
        };
        let count = self.stage.micro_batches();
        let in_tree = session.program().tree().is_some();
        let mut accumulated = GradientAccumulator::new(in_tree, self.run.recipe.dealing());
        for micro in 0..count {
            let (mut batch, weight) = feed.next(session)?;
            if let Some(news) = self.run.pairs.as_ref().and_then(|pairs| pairs.news()) {
                self.run.warn(&format!("data: {news}"))?;
            }
            self.state.skipped += weight.left_out;
            let without_room = batch.skipped.without_room;
            packing.add(&batch.segments, batch.samples.len(), without_room);
            if self.stage.contrastive_weight > 0.0 {
                self.masked.add(&batch);
            }
            accumulated.take(&weight, std::mem::take(&mut batch.samples));
            let is_last = micro + 1 == count;
            // The scale counts the micro-batches so far, and only the last one's, which counts all, is used.
            let scale = accumulated.gradient_scale();
            let scalars = optimizer_scalars(self.stage, &self.groups, [step, self.steps], scale);
            run_micro_batch(session, is_last, &scalars)?;
            // The next is on its way while this one computes. Not into a step that is about to be done again: that hands over
            // the same inputs once more, and the next step's would be lost.
            let goes_on = !is_last || (step + 1 < self.steps && recheck.is_none());
            if session.takes_inputs_early() && goes_on {
                feed.go_ahead(session);
            }
            accumulated.read(session, self.stage, &weight)?;
            if let Some(recheck) = &mut recheck {
                recheck.keep(batch, weight, scalars);
            }
        }
        accumulated.add_ranks(self.run.options.seat.votes())?;
        let numbers = accumulated.numbers(session, self.stage, [step, self.steps], &under_way)?;
        if let Some(recheck) = recheck {
            recheck.compare(self.run, self.stage, step, &self.inputs, session)?;
        }
        Ok(Stepped {
            numbers,
            keys: accumulated.keys,
        })
    }

    /// Judges a step; of a bad one it says what was wrong and on what samples that happened.
    fn judge(&mut self, step: u64, stepped: &Stepped) -> Result<Verdict> {
        let threshold = self.run.options.spike_threshold;
        let StepNumbers {
            loss,
            gradient_norm,
            ..
        } = stepped.numbers;
        let verdict = self.state.guard.judge(loss, gradient_norm, threshold);
        if let Verdict::Bad(why) | Verdict::GoBack(why) | Verdict::Stop(why) = &verdict {
            self.run.warn(&format!(
                "stage {}, step {step}: {why}; samples: {}",
                self.stage.name,
                stepped.keys.join(", ")
            ))?;
        }
        Ok(verdict)
    }

    /// What a run ends with that going back has not helped.
    fn hopeless(&mut self, step: u64) -> Result<Error> {
        self.checkpoints.finish(self.run, self.state, self.index)?;
        Ok(Error::stopped(
            format!("stage {}, step {step}", self.stage.name),
            format!(
                "{MOST_STRIKES} bad steps in a row, and going back and leaving their data out has not helped"
            ),
            "lower the learning rate; log.txt names the samples; the newest checkpoint is from before",
        ))
    }

    /// Tells how things stand after `done` steps.
    fn report(&self, done: u64, log: &mut ProgressLog) -> Result<()> {
        self.run.tell(&Event::StepDone(done))?;
        self.tell_due(done, done == self.steps, log)
    }

    /// Tells what is due of the averages after `done` steps; all of them after the last.
    fn tell_due(&self, done: u64, is_last: bool, log: &mut ProgressLog) -> Result<()> {
        log.set_peak(self.run.executor.peak_flops());
        let due = log.due(done, is_last);
        let report = |averages| StepReport {
            stage: &self.stage.name,
            step: done,
            steps: self.steps,
            averages,
            skipped: self.state.skipped,
        };
        if let Some(averages) = &due.row {
            self.run.tell(&Event::Metrics(report(averages)))?;
        }
        if let Some(averages) = &due.line {
            self.run.tell(&Event::Progress(report(averages)))?;
        }
        Ok(())
    }

    /// Saves after `done` steps where that is due or asked for, and ends the run where that is asked for.
    fn save_where_due(&mut self, done: u64) -> Result<()> {
        self.checkpoints.look(self.run)?;
        let every = self.run.options.save_every;
        // While losses are bad, what there is to go back to is worth more than what was just trained.
        let is_due = every > 0 && done.is_multiple_of(every) && self.state.guard.is_well();
        let Asked {
            save: is_asked,
            stop,
        } = self.run.asked()?;
        let (run, index, session) = (self.run, self.index, self.session.as_ref());
        if is_asked || stop.is_some() {
            let path = self
                .checkpoints
                .save_step(run, self.state, index, done, session)?;
            if is_asked {
                run.note(&format!("saved as asked: {}", path.display()))?;
            }
            run.stop_if_asked(&format!("stage {}, step {done}", self.stage.name))
        } else if is_due {
            self.checkpoints
                .begin_step(run, self.state, index, done, session)
        } else {
            Ok(())
        }
    }

    /// Tells what is only known at the end of the steps, whose time is `under_way`'s.
    fn sum_up(&mut self, under_way: &Stopwatch, packing: &PackingStats) -> Result<()> {
        let name = &self.stage.name;
        if self.stage.samples_per_sequence > 1 {
            let world = self.run.options.seat.world();
            let of = match world.ranks {
                1 => String::new(),
                ranks => format!(", rank 0 of {ranks}"),
            };
            self.run.note(&format!("stage {name}{of}: {packing}"))?;
        }
        if self.masked.share() > MASKED_SHARE_TO_SAY {
            self.run.note(&format!("stage {name}: {}", self.masked))?;
        }
        let (count, waited) = self.checkpoints.take_waited();
        if count > 0 {
            // None where the clock stood still.
            let share = match under_way.seconds() {
                0.0 => String::new(),
                seconds => format!(", {:.2} % of its time", 100.0 * waited / seconds),
            };
            self.run.note(&format!(
                "{count} checkpoints inside stage {name}; training waited {waited:.2} s for them{share}"
            ))?;
        }
        Ok(())
    }

    fn step_size(&self) -> StepSize {
        let (run, stage) = (self.run, &self.run.recipe.stages[self.index]);
        let has_images = stage.kind != StageKind::WarmStart || stage.contrastive_weight > 0.0;
        let image_tokens = if has_images {
            run.recipe.model.image_tokens()
        } else {
            0
        };
        let tokens = if stage.next_token_weight > 0.0 {
            let all = stage.batch_size / stage.samples_per_sequence * stage.max_tokens;
            all.saturating_sub(stage.batch_size * image_tokens)
        } else {
            stage.batch_size * stage.max_caption_tokens
        };
        StepSize {
            images: if has_images { stage.batch_size } else { 0 },
            tokens,
            flops: whole_step_flops(self.session.program(), stage),
            peak: run.ranks() as f64 * run.executor.peak_flops(),
        }
    }

    /// Puts the run back to the newest step of the stage at which it was well, with the data of the bad steps, the last of
    /// which was `last`, left out. Returns the step.
    fn go_back(mut self, last: u64) -> Result<(StageLoop<'a>, u64)> {
        let run = self.run;
        self.checkpoints.finish(run, self.state, self.index)?;
        let newest = run.told_by_first(|| newest_well(run, self.index))?;
        let (step, healthy, from) = match newest {
            Some((position, path)) => {
                let state = restore(run, &path, &position)?;
                let state = state.ok_or_else(|| without_optimizer(&path))?;
                state.write(self.session.as_mut())?;
                self.state.skipped = position.skipped;
                self.state.validations = position.validations;
                (position.step, position.guard, path.display().to_string())
            }
            None => {
                self = self.restart()?;
                (0, Guard::default(), "the beginning of the stage".to_owned())
            }
        };
        let end = self.state.guard.batch_of(last);
        let (guard, first) = self.state.guard.go_back(healthy, last);
        self.state.guard = guard;
        run.warn(&format!(
            "stage {}: {MOST_STRIKES} bad steps in a row; going back to step {step} ({from}) and leaving out the batches {first} to {end}",
            self.stage.name,
        ))?;
        Ok((self, step))
    }

    /// Puts back the parameters, the optimiser's state and the count of skipped samples that the stage began with.
    fn restart(self) -> Result<StageLoop<'a>> {
        let (run, index, stage) = (self.run, self.index, self.stage);
        let program = run.programs[index].clone();
        let program = program.expect("every stage to be run is planned");
        // Where f32 values are in shards, what is put back has to be whole once more.
        drop((self.session, self.validation));
        run.executor.hold_in_bf16(&[])?;
        self.state.validations = ValidationHistory::default();
        self.state.skipped = if index == 0 || run.begins_given(index) {
            run.write_initial(index)?;
            0
        } else {
            let sink = &mut |offset, values: &[f32]| run.executor.write_parameters(offset, values);
            let before = load(&after_stage(run, index - 1), &run.layout, None, sink)?;
            before.position.skipped
        };
        begin_stage(run, index)?;
        let begun = begin(run, &program, stage, None)?;
        let validation = StageValidation::load(run, index)?;
        let mut session = run.executor.load(program)?;
        if let Some(state) = begun {
            state.write(session.as_mut())?;
        }
        Ok(StageLoop {
            session,
            validation,
            ..self
        })
    }
}

/// The optimiser's state that a stage of `program` goes on with, or begins with where that is not all zero. From here on the
/// executor holds no f32 values of what the program keeps in shards.
fn begin(
    run: &Run,
    program: &Program,
    stage: &Stage,
    optimizer: Option<OptimizerValues>,
) -> Result<Option<OptimizerValues>> {
    let in_shards = program.masters_in_shards();
    let begun = match optimizer {
        None if stage.ema_decay.is_some() || !in_shards.is_empty() => {
            let (layout, executor) = (&run.layout, run.executor.as_ref());
            Some(OptimizerValues::at_start(program, layout, executor)?)
        }
        optimizer => optimizer,
    };
    run.executor.hold_in_bf16(in_shards)?;
    Ok(begun)
}

/// Hands a micro-batch to the session with what its step leaves out, and its weight where the step has several.
pub(crate) fn write_micro_batch(
    session: &mut dyn Session,
    stage: &Stage,
    (inputs, left_out): (&BatchInputs, &LeftOut),
    batch: &Batch,
    weight: &MicroWeight,
) -> Result<()> {
    inputs.write(session, batch)?;
    left_out.write(session, weight.number)?;
    let (world, tree) = (session.program().world(), session.program().tree());
    let has_own = weighs_losses_apart(world, tree.is_some());
    if !has_own && stage.micro_batches() > 1 || has_own && stage.next_token_weight > 0.0 {
        session.write_f32(ModelInput::LossWeight.name(), &[weight.own])?;
    }
    if has_own && (stage.contrastive_weight > 0.0 || stage.distillation_weight > 0.0) {
        session.write_f32(ModelInput::ContrastiveWeight.name(), &[weight.contrastive])?;
    }
    if tree.is_some_and(|count| count > 1) {
        session.write_i32(MICRO_BATCH_INDEX, &[weight.place])?;
    }
    Ok(())
}

/// Runs what was handed over; after the last micro-batch of a step, the update too.
pub(crate) fn run_micro_batch(
    session: &mut dyn Session,
    is_last: bool,
    scalars: &OptimizerScalars,
) -> Result<()> {
    if !is_last {
        return session.run_gradients();
    }
    scalars.write(session)?;
    session.run()
}
