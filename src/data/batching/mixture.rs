//! The weighted mix of tasks that a stage trains on. [`Mixture::batch`] is a pure function of (seed, stage, step): a run
//! resumes from the step number alone, and any number of threads may make batches in any order.
//!
//! Slots go to tasks in a fixed round of 1024 that follows the weights to within one slot. Each task walks its items in
//! a shuffled order, a new one every epoch, so every item comes once an epoch. A sample that does not fit the token
//! limits is made anew in a shorter form, as far as its source has one; then another item drawn for that very place
//! takes it. The same holds for an unreadable image. Each skip is counted in the batch; after [`MOST_ATTEMPTS`] the batch is
//! refused. No sample of the user's is left out for a caption that is longer than a contrastive loss reads: it is cut there.
//!
//! What a stage minimises has no part in this: with a contrastive loss the same samples come in the same order. Those that
//! repeat an image or a caption inside a batch are marked there ([`super::identities`]), for the loss to leave out.

use std::sync::Arc;

use rayon::prelude::*;

use super::assemble::{assemble, caption_fits, fits};
use super::batch::{Batch, BatchShape, Skipped, TokenWeighting};
use super::sample::Sample;
use super::schedule::Schedule;
use super::source::{Draw, TaskSource};
use super::task::Task;
use crate::formats::remote::with_readers;
use crate::formats::skips::{Note, Reason};
use crate::images::image_view::ImageCache;
use crate::text::chat::ChatTokenizer;
use keel_base::error::{Error, Result};
use keel_base::random::{Permutation, Purpose, Stream, scramble};

/// Attempts to fill one place of a batch before giving up.
pub const MOST_ATTEMPTS: usize = 64;

/// What a stage trains on.
#[derive(Clone, Debug)]
pub struct MixtureSettings {
    /// Seed of the run.
    pub seed: u64,
    /// What stands for the stage, so that stages do not repeat each other's draws.
    pub stage: u64,
    /// Tasks with their weights, in any scale.
    pub weights: Vec<(Task, f64)>,
    /// Sizes of a batch.
    pub shape: BatchShape,
    /// How tokens share the loss.
    pub weighting: TokenWeighting,
    /// Whether there is a contrastive loss, which needs a task with images. It changes no sample.
    pub contrastive: bool,
}

/// A stage's endless, randomly addressable stream of batches.
pub struct Mixture {
    tokenizer: Arc<ChatTokenizer>,
    settings: MixtureSettings,
    /// The source of each of the schedule's tasks, in their order.
    sources: Vec<Arc<dyn TaskSource>>,
    kept: Arc<ImageCache>,
    schedule: Schedule,
    /// Seed and stage in one.
    seed: u64,
}

impl Mixture {
    /// A mixture of the tasks that `settings` give a weight, each drawn from the one of `sources` that is of it; sources of
    /// other tasks are left aside. It is laid out by the embedded tokeniser.
    ///
    /// # Errors
    /// `Setting` when no weight is positive, a weight is negative or not a number, a task has no source or no items, or no
    /// task of a contrastive mixture has images.
    pub fn new(sources: Vec<Arc<dyn TaskSource>>, settings: MixtureSettings) -> Result<Mixture> {
        let schedule = Schedule::new(&settings.weights)?;
        let of_task = |task: &Task| {
            let mut sources = sources.iter();
            let source = sources.find(|source| source.task() == *task && !source.is_empty());
            source.cloned().ok_or_else(|| nothing_to_draw(*task))
        };
        let chosen = schedule.tasks().iter().map(of_task);
        let chosen = chosen.collect::<Result<Vec<_>>>()?;
        let has_images = schedule.tasks().iter().any(|task| task.has_images);
        if settings.contrastive && !has_images {
            return Err(Error::setting(
                "data weights",
                "a task with images in a stage with a contrastive loss",
                "text only",
            ));
        }
        Ok(Mixture {
            seed: scramble(settings.seed ^ scramble(settings.stage)),
            tokenizer: ChatTokenizer::embedded().clone(),
            sources: chosen,
            kept: Arc::new(ImageCache::new(0)),
            schedule,
            settings,
        })
    }

    /// The same mixture, laid out by another tokeniser than the embedded one.
    pub fn with_tokenizer(mut self, tokenizer: Arc<ChatTokenizer>) -> Mixture {
        self.tokenizer = tokenizer;
        self
    }

    /// The same mixture, with what is made of its samples' images kept for their next draw. Batches are the same bits.
    pub fn keeping(mut self, kept: Arc<ImageCache>) -> Mixture {
        self.kept = kept;
        self
    }

    /// Items in one epoch of a task; 0 of a task without a weight.
    pub fn items(&self, task: Task) -> u64 {
        let tasks = self.schedule.tasks().iter().zip(&self.sources);
        let mut items = tasks.filter(|(of, _)| **of == task);
        items.next().map_or(0, |(_, source)| source.len() as u64)
    }

    /// The sizes of a batch.
    pub fn shape(&self) -> &BatchShape {
        &self.settings.shape
    }

    /// Steps until every item of every task with a weight has been seen at least once.
    pub fn steps_per_epoch(&self) -> u64 {
        let steps = |(place, source): (usize, &Arc<dyn TaskSource>)| {
            let share = self.schedule.share(place);
            (source.len() as f64 / (share * self.settings.shape.batch as f64)).ceil() as u64
        };
        let sources = self.sources.iter().enumerate();
        sources.map(steps).max().unwrap_or(0)
    }

    /// The batch of `step`.
    ///
    /// # Errors
    /// `Stopped` when no usable sample was found for a place in [`MOST_ATTEMPTS`] attempts.
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let (samples, skipped) = self.samples(step)?;
        let MixtureSettings {
            shape, weighting, ..
        } = &self.settings;
        let mut batch = assemble(&samples, shape, *weighting, &self.tokenizer)?;
        batch.skipped = Skipped {
            without_room: batch.skipped.without_room,
            ..skipped
        };
        Ok(batch)
    }

    /// The samples of the batch of `step`, before they become numbers, and what was skipped for them.
    pub fn samples(&self, step: u64) -> Result<(Vec<Sample>, Skipped)> {
        let rows = self.settings.shape.batch as u64;
        let one = |row: u64| {
            let (place, turn) = self.schedule.at(step * rows + row);
            let mut skipped = Skipped::default();
            let sample = self.sample(step, self.sources[place].as_ref(), turn, &mut skipped)?;
            Ok((sample, skipped))
        };
        // Samples have nothing to do with each other, so those that wait for a network wait together.
        let made: Vec<(Sample, Skipped)> = if self.sources.iter().any(|source| source.is_remote()) {
            let all = || (0..rows).into_par_iter().map(one).collect::<Vec<_>>();
            let made = with_readers(true, all)?.into_iter();
            made.collect::<Result<_>>()?
        } else {
            (0..rows).map(one).collect::<Result<_>>()?
        };
        let mut all = Skipped::default();
        for (_, skipped) in &made {
            all.unreadable += skipped.unreadable;
            all.too_long += skipped.too_long;
        }
        Ok((made.into_iter().map(|(sample, _)| sample).collect(), all))
    }

    /// The sample of a task's `turn`-th slot.
    ///
    /// All randomness is addressed: the order of an epoch by its number, a sample's words and look by its place in the
    /// epoch and the attempt. An attempt that fails therefore leaves the draws of all other places as they are.
    fn sample(
        &self,
        step: u64,
        source: &dyn TaskSource,
        turn: u64,
        skipped: &mut Skipped,
    ) -> Result<Sample> {
        let (task, forms) = (source.task(), source.forms());
        let (items, number) = (source.len() as u64, u64::from(task.number));
        let (epoch, position) = (turn / items, turn % items);
        let mut replace = Stream::new(
            self.seed,
            Purpose::Replace,
            epoch,
            (number << 56) | position,
        );
        let mut item = Permutation::new(items, self.seed, number, epoch).at(position) as usize;
        let (shape, tokenizer) = (&self.settings.shape, &self.tokenizer);
        let is_users = task == Task::SAMPLES;
        let has_whole_caption = |sample: &Sample| caption_fits(sample, shape, tokenizer);
        let fits = |sample: &Sample| {
            fits(sample, shape, tokenizer) && (is_users || has_whole_caption(sample))
        };
        let (mut form, mut last_problem) = (0, String::new());
        for attempt in 0..MOST_ATTEMPTS {
            let address = (number << 56) | (position << 8) | attempt as u64;
            let made = source.sample(
                item,
                &mut Draw {
                    form,
                    text: &mut Stream::new(self.seed, Purpose::Text, epoch, address),
                    look: &mut Stream::new(self.seed, Purpose::Augment, epoch, address),
                    fits: &fits,
                    kept: &self.kept,
                },
            );
            match made {
                // What cannot be reached is not left out: which samples come must not depend on a network.
                Err(error @ Error::Stopped { .. }) => return Err(error),
                Err(error) => {
                    skipped.unreadable += 1;
                    last_problem = error.to_string();
                    source.count(item, Some((Reason::of(&error), &last_problem)))?;
                    // No other form of an item that cannot be read can be.
                    form = forms;
                }
                Ok(sample) if !fits(&sample) => {
                    skipped.too_long += 1;
                    last_problem = format!("{} is too long for the token limits", sample.key);
                    source.count(item, Some((Reason::TooLong, &last_problem)))?;
                    form += 1;
                }
                Ok(sample) => {
                    source.count(item, None)?;
                    if self.settings.contrastive && is_users && !has_whole_caption(&sample) {
                        source.note(item, Note::CutCaption, &sample.key);
                    }
                    return Ok(sample);
                }
            }
            if form >= forms {
                (item, form) = (replace.below(items as usize), 0);
            }
        }
        Err(Error::stopped(
            format!("data of step {step}, task {task}"),
            format!("no usable sample in {MOST_ATTEMPTS} attempts, the last: {last_problem}"),
            "raise the token limits, or give more or better pairs",
        ))
    }
}

/// Refuses a task with nothing to draw from.
fn nothing_to_draw(task: Task) -> Error {
    let want = if task == Task::SAMPLES {
        "a weight of 0, or pairs given with --data"
    } else {
        "a weight of 0: the library has nothing for it"
    };
    Error::setting(format!("data weight of {task}"), want, "a positive weight")
}
