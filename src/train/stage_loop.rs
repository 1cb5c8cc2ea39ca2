//! The steps of one stage: batches in, steps, lines, checkpoints between; and what happens on bad numbers and on
//! signals.

use std::sync::Arc;
use std::time::Instant;

use super::gathered::{Gathered, weight};
use super::guard::{MOST_STRIKES, Verdict};
use super::meter::{Meter, StepSize};
use super::recipe::{Stage, StageKind};
use super::stage_data::stage_mixture;
use super::step_program::{hyper, whole_step_flops};
use super::trainer::Trainer;
use keel_data::batch::Batch;
use keel_eval::feed::write_batch;
use keel_data::mixture::Mixture;
use keel_data::packing::Filling;
use keel_data::prefetch::Prefetcher;
use keel_data::task::TaskKind;
use keel_base::error::{Error, Result};
use keel_engine::executor::Session;
use keel_engine::ops::HYPER;
use keel_engine::program::MemoryReport;
use keel_engine::tape::Arena;

impl Trainer {
    pub(super) fn mixture(&self, index: usize) -> Result<Mixture> {
        let pairs = self.pairs.as_ref();
        let mixture = stage_mixture(&self.recipe, &self.library, pairs, &self.words, index)?;
        Ok(mixture.keeping(self.kept.clone()))
    }

    /// The steps of a stage: as given, or its epochs over the task with the most items for its share.
    pub(super) fn steps(&self, stage: &Stage, mixture: &Mixture) -> u64 {
        let steps = stage.steps.unwrap_or_else(|| {
            let total: f64 = stage.data.values().sum();
            let longest = TaskKind::ALL
                .into_iter()
                .filter_map(|kind| {
                    let share = stage.data.get(kind.name())? / total;
                    Some(mixture.items(kind) as f64 / share)
                })
                .fold(0.0, f64::max);
            let samples = longest * stage.epochs.unwrap_or(1.0);
            (samples / stage.batch as f64).ceil().max(1.0) as u64
        });
        self.options.max_steps.map_or(steps, |most| steps.min(most))
    }

    /// Runs the steps of a stage, `[from, to]`; returns the last of several bad steps after which the run has to go back.
    pub(super) fn train(
        &mut self,
        index: usize,
        stage: &Stage,
        [first_step, steps]: [u64; 2],
        mixture: Arc<Mixture>,
        session: &mut dyn Session,
    ) -> Result<Option<u64>> {
        let began = Instant::now();
        let size = self.step_size(stage, session);
        let one_batch = self.options.overfit_one_batch;
        let guard = self.guard.clone();
        let count = stage.micro_batches() as u64;
        // A device leaves the processor's cores to the data; otherwise they compute.
        let workers = match session.takes_inputs_early() {
            true => std::thread::available_parallelism().map_or(1, usize::from),
            false => 1,
        };
        let mut batches = Prefetcher::new(
            Arc::new(move |index| match (index / count, index % count) {
                (step, micro) if step < steps && one_batch => mixture.batch(micro),
                (step, micro) if step < steps => {
                    mixture.batch(guard.batch_of(step) * count + micro)
                }
                // Made ahead and never asked for.
                (step, _) => Err(Error::setting("step", format!("below {steps}"), step)),
            }),
            first_step * count,
            workers,
            BATCHES_AHEAD.max(workers),
        );
        let mut meter = Meter::new(&stage.name, size, steps, first_step);
        let mut feed = |session: &mut dyn Session| -> Result<(Batch, f32)> {
            let (_, batch) = batches.next_batch()?;
            let weight = weight(stage, &batch);
            write_micro_batch(session, stage, &batch, weight)?;
            Ok((batch, weight))
        };
        let mut filling = Filling::default();
        let mut fed = None;
        for step in first_step..steps {
            let start = Instant::now();
            let every = self.options.recheck_every;
            let is_rechecked = every > 0 && step % every == 0;
            let before = match is_rechecked {
                true => Some(self.state(session)?),
                false => None,
            };
            let (mut gathered, mut kept) = (Gathered::default(), Vec::new());
            for micro in 0..count {
                let (mut batch, weight) = match fed.take() {
                    Some(fed) => fed,
                    None => feed(session),
                }?;
                self.count_skips(&batch);
                let without_room = batch.skipped.without_room;
                filling.add(&batch.segments, batch.samples.len(), without_room);
                gathered.take(weight, std::mem::take(&mut batch.samples));
                let is_last = micro + 1 == count;
                let hyper = hyper(stage, [step, steps], gathered.gradient_scale());
                run_micro_batch(session, is_last, &hyper)?;
                // The next is on its way while this one computes; what is wrong with it is its own step's business.
                let goes_on = !is_last || (step + 1 < steps && !is_rechecked);
                if session.takes_inputs_early() && goes_on {
                    fed = Some(feed(session));
                }
                gathered.read(session, stage, weight)?;
                if is_rechecked {
                    kept.push((batch, weight, hyper));
                }
            }
            let numbers = gathered.numbers(session, stage, [step, steps], start)?;
            if let Some(before) = before {
                self.recheck(stage, step, &before, &kept, session)?;
            }
            let threshold = self.options.spike_threshold;
            let verdict = self
                .guard
                .judge(numbers.loss, numbers.gradient_norm, threshold);
            if let Verdict::Bad(why) | Verdict::GoBack(why) | Verdict::Stop(why) = &verdict {
                self.report_bad_step(stage, step, &gathered.keys, why)?;
            }
            match verdict {
                Verdict::Well => meter.add(numbers),
                Verdict::Bad(_) => {}
                Verdict::GoBack(_) => return Ok(Some(step)),
                Verdict::Stop(_) => {
                    self.finish_saving(index)?;
                    return Err(Error::stopped(
                        format!("stage {}, step {step}", stage.name),
                        format!(
                            "{MOST_STRIKES} bad steps in a row, and going back and leaving their data out has not helped"
                        ),
                        "lower the learning rate; log.txt names the samples; the newest checkpoint is from before",
                    ));
                }
            }
            let due = meter.due(step + 1, step + 1 == steps, self.skipped);
            if let Some(interval) = due.line {
                let line = interval.line(&stage.name, step + 1, steps);
                meter.say(&line);
                self.folder.log(&line)?;
            }
            if let Some(interval) = due.row {
                self.record_steps(stage, step + 1, &interval)?;
            }
            if step + 1 == steps {
                break;
            }
            let every = self.options.save_every;
            let due = every > 0 && (step + 1) % every == 0 && self.guard.is_well();
            let asked = self.options.signals.take_save();
            let label = format!("{}-{}.step-{}", index + 1, stage.name, step + 1);
            if asked || self.options.signals.stop().is_some() {
                self.save(index, step + 1, &label, Some(&*session))?;
                if asked {
                    let path = self.folder.checkpoint(&label);
                    let line = format!("saved as asked: {}", path.display());
                    meter.say(&line);
                    self.folder.log(&line)?;
                }
                self.stop_if_asked(&format!("stage {}, step {}", stage.name, step + 1))?;
            } else if due {
                self.begin_saving(index, step + 1, &label, &*session)?;
            }
        }
        self.finish_saving(index)?;
        if stage.pack > 1 {
            self.say(&format!("stage {}: {filling}", stage.name))?;
        }
        let (count, waited) = self.saver.tell();
        if count > 0 {
            let seconds = began.elapsed().as_secs_f64();
            let share = 100.0 * waited / seconds;
            self.say(&format!(
                "{count} checkpoints inside stage {}; training waited {waited:.2} s for them, {share:.2} % of its time",
                stage.name
            ))?;
        }
        Ok(None)
    }

    fn step_size(&self, stage: &Stage, session: &dyn Session) -> StepSize {
        let has_images = stage.kind != StageKind::WarmStart || stage.contrastive > 0.0;
        let image_tokens = match has_images {
            true => self.recipe.model.image_tokens(),
            false => 0,
        };
        let text = match stage.next_token > 0.0 {
            true => {
                (stage.batch / stage.pack * stage.tokens).saturating_sub(stage.batch * image_tokens)
            }
            false => stage.batch * stage.caption_tokens,
        };
        StepSize {
            images: if has_images { stage.batch } else { 0 },
            tokens: text,
            flops: whole_step_flops(session.program(), stage),
            peak: self.executor.peak_flops(),
            memory: MemoryReport::new(session.program(), &self.layout).total(),
        }
    }

    /// What a step changes: parameters and moments.
    fn state(&self, session: &dyn Session) -> Result<[Vec<f32>; 3]> {
        let [first, second] = MOMENTS;
        Ok([
            self.parameters()?,
            session.read_arena(first)?,
            session.read_arena(second)?,
        ])
    }

    /// Puts back what was `before` a step, does it again and compares what both left, bit by bit: a processor or memory that
    /// computes wrongly now and then is found out.
    fn recheck(
        &self,
        stage: &Stage,
        step: u64,
        before: &[Vec<f32>; 3],
        batches: &[(Batch, f32, [f32; HYPER])],
        session: &mut dyn Session,
    ) -> Result<()> {
        let once = self.state(session)?;
        self.executor.write_parameters(0, &before[0])?;
        for (arena, values) in MOMENTS.into_iter().zip(&before[1..]) {
            session.write_arena(arena, values)?;
        }
        for (index, (batch, weight, hyper)) in batches.iter().enumerate() {
            write_micro_batch(session, stage, batch, *weight)?;
            run_micro_batch(session, index + 1 == batches.len(), hyper)?;
        }
        let again = self.state(session)?;
        // As bits: a NaN is not equal to itself as a number.
        let is_same = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            bytemuck::cast_slice::<f32, u32>(a) == bytemuck::cast_slice::<f32, u32>(b)
        };
        match once.iter().zip(&again).all(is_same) {
            true => Ok(()),
            false => Err(Error::stopped(
                format!("stage {}, step {step}", stage.name),
                "the same step done twice left different bits: this machine does not compute reliably",
                "test its memory, take overclocking back, or go on from the newest checkpoint on another machine",
            )),
        }
    }

    fn count_skips(&mut self, batch: &Batch) {
        let skipped = &batch.skipped;
        self.skipped += u64::from(skipped.unreadable + skipped.too_long + skipped.without_room);
    }

    /// Says what was wrong with a step and on what samples it happened.
    fn report_bad_step(
        &mut self,
        stage: &Stage,
        step: u64,
        keys: &[String],
        why: &str,
    ) -> Result<()> {
        let line = format!(
            "stage {}, step {step}: {why}; samples: {}",
            stage.name,
            keys.join(", ")
        );
        self.warn(&line)
    }
}

/// Batches that are made before they are wanted, at least.
const BATCHES_AHEAD: usize = 4;

const MOMENTS: [Arena; 2] = [Arena::FirstMoments, Arena::SecondMoments];

/// Hands a micro-batch to the session, and its weight where the step has several.
fn write_micro_batch(
    session: &mut dyn Session,
    stage: &Stage,
    batch: &Batch,
    weight: f32,
) -> Result<()> {
    write_batch(session, batch)?;
    match stage.micro_batches() > 1 {
        true => session.write_f32("share", &[weight]),
        false => Ok(()),
    }
}

/// Runs what was handed over; after the last micro-batch of a step, the update too.
fn run_micro_batch(session: &mut dyn Session, is_last: bool, hyper: &[f32; HYPER]) -> Result<()> {
    match is_last {
        true => {
            session.write_f32("hyper", hyper)?;
            session.run()
        }
        false => session.run_gradients(),
    }
}
