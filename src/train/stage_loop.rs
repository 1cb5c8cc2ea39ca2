//! The steps of one stage: batches in, steps, lines, checkpoints between; and what happens on numbers that are not finite
//! and on signals.

use std::sync::Arc;
use std::time::Instant;

use super::meter::{Meter, StepNumbers, StepSize};
use super::recipe::{Stage, StageKind};
use super::stage_data::stage_mixture;
use super::step_program::hyper;
use super::trainer::Trainer;
use crate::data::batch::Batch;
use crate::data::feed::write_batch;
use crate::data::mixture::Mixture;
use crate::data::prefetch::Prefetcher;
use crate::data::task::TaskKind;
use crate::error::{Error, Result};
use crate::executor::Session;

/// Steps in a row with a non-finite loss or gradient after which a run stops.
const MOST_BAD_STEPS: u32 = 5;

impl Trainer {
    pub(super) fn mixture(&self, index: usize) -> Result<Mixture> {
        let pairs = self.pairs.as_ref();
        stage_mixture(&self.recipe, &self.library, pairs, &self.words, index)
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

    /// Runs the steps of a stage from `first_step` on.
    pub(super) fn train(
        &mut self,
        index: usize,
        stage: &Stage,
        first_step: u64,
        steps: u64,
        mixture: Arc<Mixture>,
        session: &mut dyn Session,
    ) -> Result<()> {
        let has_images = stage.kind != StageKind::WarmStart || stage.contrastive > 0.0;
        let text = match stage.next_token > 0.0 {
            true => {
                stage.tokens
                    - if has_images {
                        self.recipe.model.image_tokens()
                    } else {
                        0
                    }
            }
            false => stage.caption_tokens,
        };
        let size = StepSize {
            images: if has_images { stage.batch } else { 0 },
            tokens: text * stage.batch,
            flops: session.program().cost().flops,
            peak: self.executor.peak_flops(),
        };
        let one_batch = self.options.overfit_one_batch;
        let source = mixture.clone();
        let mut batches = Prefetcher::new(
            Arc::new(move |step| match step < steps {
                true => source.batch(if one_batch { 0 } else { step }),
                // Made ahead and never asked for.
                false => Err(Error::setting("step", format!("below {steps}"), step)),
            }),
            first_step,
            1,
            4,
        );
        let mut meter = Meter::new(&stage.name, size, steps, first_step);
        let mut bad_steps = 0;
        let mut feed = |session: &mut dyn Session, step: u64| -> Result<Batch> {
            let (_, batch) = batches.next_batch()?;
            write_batch(session, &batch)?;
            session.write_f32("hyper", &hyper(stage, step, steps))?;
            Ok(batch)
        };
        let mut fed = None;
        for step in first_step..steps {
            let start = Instant::now();
            let batch = match fed.take() {
                Some(batch) => batch,
                None => feed(session, step),
            }?;
            self.count_skips(&batch);
            session.run()?;
            // The next batch is on its way while this step computes; what is wrong with it is its own step's business.
            if session.takes_inputs_early() && step + 1 < steps {
                fed = Some(feed(session, step + 1));
            }
            let numbers = StepNumbers::read(session, stage, step, steps, start)?;
            if !(numbers.loss.is_finite() && numbers.gradient_norm.is_finite()) {
                bad_steps += 1;
                self.report_bad_step(stage, step, &batch, &numbers)?;
                if bad_steps >= MOST_BAD_STEPS {
                    return Err(Error::stopped(
                        format!("stage {}, step {step}", stage.name),
                        format!("loss or gradient was not finite in {bad_steps} steps in a row"),
                        "lower the learning rate; log.txt names the samples; the newest checkpoint is from before",
                    ));
                }
            } else {
                bad_steps = 0;
                meter.add(numbers);
            }
            let due = meter.due(step + 1, step + 1 == steps);
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
            let due = every > 0 && (step + 1) % every == 0;
            let asked = self.options.signals.take_save();
            if due || asked || self.options.signals.stop().is_some() {
                let label = format!("{}-{}.step-{}", index + 1, stage.name, step + 1);
                self.save(index, step + 1, &label, Some(&*session))?;
                if asked {
                    let path = self.folder.checkpoint(&label);
                    let line = format!("saved as asked: {}", path.display());
                    meter.say(&line);
                    self.folder.log(&line)?;
                }
                self.stop_if_asked(&format!("stage {}, step {}", stage.name, step + 1))?;
            }
        }
        Ok(())
    }

    fn count_skips(&mut self, batch: &Batch) {
        self.skipped += u64::from(batch.skipped.unreadable) + u64::from(batch.skipped.too_long);
    }

    /// The update was not applied (the optimiser saw the norm); says on what batch it happened.
    fn report_bad_step(
        &mut self,
        stage: &Stage,
        step: u64,
        batch: &Batch,
        numbers: &StepNumbers,
    ) -> Result<()> {
        let keys: Vec<&str> = batch.samples.iter().map(|s| s.key.as_str()).collect();
        let line = format!(
            "stage {}, step {step}: loss {} and gradient norm {} are not finite; the update was not applied; samples: {}",
            stage.name,
            numbers.loss,
            numbers.gradient_norm,
            keys.join(", ")
        );
        self.warn(&line)
    }
}
