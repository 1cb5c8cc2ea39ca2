//! The weighted mix of tasks that a stage trains on. [`Mixture::batch`] is a pure function of (seed, stage, step): a run
//! resumes from the step number alone, and any number of threads may make batches in any order.
//!
//! Slots go to tasks in a fixed round of 1024 that follows the weights to within one slot. Each task walks its items in
//! a shuffled order, a new one every epoch, so every item comes once an epoch. A sample that does not fit the token
//! limits is made anew in a shorter form; after six forms, or at once for a user's pair, another item drawn for that very
//! place takes it. The same holds for an unreadable picture and for a repeat inside a contrastive batch. Each skip is
//! counted in the batch; after [`MOST_ATTEMPTS`] the batch is refused.

use std::collections::HashSet;
use std::sync::Arc;

use super::augment::Augmentation;
use super::batch::{Batch, BatchShape, Skipped, Weighting, assemble, fits};
use super::captions::{ReadingItem, dense, reading, reading_items, short};
use super::chat::ChatTokenizer;
use super::embedded::Artist;
use super::facts::fact;
use super::library::{Library, Pool, Split};
use super::pairs::PairSource;
use super::photo::{KeptPictures, KeptPlace, Photo};
use super::questions::{ask, ask_further};
use super::skips::Reason;
use super::task::{QuestionKind, Sample, TaskKind, View};
use keel_base::error::{Error, Result};
use keel_base::random::{Permutation, Purpose, Stream, scramble};

/// Slots in one round of the schedule.
const ROUND: usize = 1024;

/// Forms of one item that are tried before another item takes its place.
const FORMS: usize = 6;

/// Names the draw of a share of the concepts.
const SHARE: u64 = 0x7368_6172;

/// Attempts to fill one place of a batch before giving up.
pub const MOST_ATTEMPTS: usize = 64;

/// What a stage trains on.
#[derive(Clone, Debug)]
pub struct MixtureSettings {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the stage, so that stages do not repeat each other's draws.
    pub stage: u64,
    /// Tasks with their weights, in any scale.
    pub weights: Vec<(TaskKind, f64)>,
    /// Sizes of a batch.
    pub shape: BatchShape,
    /// Questions about one scene, at most; as many are asked as fit the sequence.
    pub turns: usize,
    /// How tokens share the loss.
    pub weighting: Weighting,
    /// How the look varies.
    pub augmentation: Augmentation,
    /// Pictures of one of the user's pairs, at most.
    pub pictures: usize,
    /// Whether a batch's pictures must be of distinct concepts and captions, as a contrastive loss needs.
    pub contrastive: bool,
}

/// A stage's endless, randomly addressable stream of batches.
pub struct Mixture {
    library: Arc<Library>,
    words: Arc<ChatTokenizer>,
    settings: MixtureSettings,
    pool: Pool,
    reading: Vec<ReadingItem>,
    pairs: Option<Arc<dyn PairSource>>,
    kept: Arc<KeptPictures>,
    schedule: Schedule,
    /// Seed and stage in one.
    seed: u64,
}

impl Mixture {
    /// A mixture over the library's training concepts in Noto's style, and over `pairs` where the weights ask for them.
    ///
    /// # Errors
    /// `Setting` when no weight is positive, a weight is negative or not a number, a task has no items, or no task of a
    /// contrastive mixture has pictures.
    pub fn new(
        library: Arc<Library>,
        pairs: Option<Arc<dyn PairSource>>,
        settings: MixtureSettings,
    ) -> Result<Mixture> {
        let pool = library.pool(Artist::Noto, Split::Train);
        let reading = reading_items(&library, &pool);
        let schedule = Schedule::new(&settings.weights)?;
        let mixture = Mixture {
            seed: scramble(settings.seed ^ scramble(settings.stage)),
            words: ChatTokenizer::embedded().clone(),
            library,
            pool,
            reading,
            pairs,
            kept: Arc::new(KeptPictures::new(0)),
            schedule,
            settings,
        };
        mixture.check_items()?;
        Ok(mixture)
    }

    /// Refuses tasks with nothing to draw from.
    fn check_items(&self) -> Result<()> {
        for &kind in &self.schedule.kinds {
            if self.items(kind) == 0 {
                let want = match kind {
                    TaskKind::Pairs => "a weight of 0, or pairs given with --data",
                    _ => "a weight of 0: the library has nothing for it",
                };
                return Err(Error::setting(
                    format!("data weight of {kind}"),
                    want,
                    "a positive weight",
                ));
            }
        }
        let has_images = self.schedule.kinds.iter().any(|kind| kind.has_image());
        if self.settings.contrastive && !has_images {
            return Err(Error::setting(
                "data weights",
                "a task with pictures in a stage with a contrastive objective",
                "text only",
            ));
        }
        Ok(())
    }

    /// The same mixture, laid out by another tokeniser than the embedded one.
    pub fn in_words(mut self, words: Arc<ChatTokenizer>) -> Mixture {
        self.words = words;
        self
    }

    /// The same mixture, with what is made of the pairs' pictures kept for their next draw. Batches are the same bits.
    pub fn keeping(mut self, kept: Arc<KeptPictures>) -> Mixture {
        self.kept = kept;
        self
    }

    /// The same mixture over a share of its concepts, above 0 and at most 1, chosen by the seed: every smaller share is
    /// part of every larger one.
    ///
    /// # Errors
    /// As [`Mixture::new`], for what is left.
    pub fn with_share(mut self, share: f64) -> Result<Mixture> {
        let all = &self.pool.all;
        let count = (all.len() as f64 * share).ceil() as u64;
        let order = Permutation::new(all.len() as u64, self.settings.seed, SHARE, 0);
        let mut kept: Vec<usize> = (0..count).map(|at| all[order.at(at) as usize]).collect();
        kept.sort_unstable();
        self.pool = self.library.pool_of(Artist::Noto, kept);
        self.reading = reading_items(&self.library, &self.pool);
        self.check_items()?;
        Ok(self)
    }

    /// Items in one epoch of a task.
    pub fn items(&self, kind: TaskKind) -> u64 {
        let items = match kind {
            TaskKind::Reading => self.reading.len(),
            TaskKind::Pairs => self.pairs.as_ref().map_or(0, |pairs| pairs.len()),
            _ => self.pool.all.len(),
        };
        items as u64
    }

    /// The sizes of a batch.
    pub fn shape(&self) -> &BatchShape {
        &self.settings.shape
    }

    /// Steps until every item of every task with a weight has been seen at least once.
    pub fn steps_per_epoch(&self) -> u64 {
        let steps = |kind: TaskKind| {
            let share = self.schedule.share(kind);
            (self.items(kind) as f64 / (share * self.settings.shape.batch as f64)).ceil() as u64
        };
        self.schedule
            .kinds
            .iter()
            .map(|&kind| steps(kind))
            .max()
            .unwrap_or(0)
    }

    /// The batch of `step`.
    ///
    /// # Errors
    /// `Stopped` when no usable sample was found for a place in [`MOST_ATTEMPTS`] attempts.
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let (samples, skipped) = self.samples(step)?;
        let mut batch = assemble(
            &self.library,
            &samples,
            &self.settings.shape,
            self.settings.weighting,
            &self.words,
        )?;
        batch.skipped = Skipped {
            without_room: batch.skipped.without_room,
            ..skipped
        };
        Ok(batch)
    }

    /// The samples of the batch of `step`, before they become numbers, and what was skipped for them.
    pub fn samples(&self, step: u64) -> Result<(Vec<Sample>, Skipped)> {
        let rows = self.settings.shape.batch;
        let mut samples: Vec<Sample> = Vec::with_capacity(rows);
        let mut skipped = Skipped::default();
        let mut taken: HashSet<String> = HashSet::new();
        for row in 0..rows as u64 {
            let (kind, turn) = self.schedule.at(step * rows as u64 + row);
            let sample = self.sample(step, kind, turn, &taken, &mut skipped)?;
            if self.settings.contrastive && sample.view.is_one() {
                taken.insert(sample.key.clone());
                taken.insert(sample.caption.clone());
            }
            samples.push(sample);
        }
        Ok((samples, skipped))
    }

    /// The sample of a task's `turn`-th slot.
    fn sample(
        &self,
        step: u64,
        kind: TaskKind,
        turn: u64,
        taken: &HashSet<String>,
        skipped: &mut Skipped,
    ) -> Result<Sample> {
        let items = self.items(kind);
        let (epoch, position) = (turn / items, turn % items);
        let task = kind as u64;
        let mut replace = Stream::new(self.seed, Purpose::Replace, epoch, (task << 56) | position);
        let mut item = Permutation::new(items, self.seed, task, epoch).at(position);
        let (mut form, mut last_problem) = (0, String::new());
        for attempt in 0..MOST_ATTEMPTS {
            let address = (task << 56) | (position << 8) | attempt as u64;
            let mut text = Stream::new(self.seed, Purpose::Text, epoch, address);
            let mut look = Stream::new(self.seed, Purpose::Augment, epoch, address);
            match self.make(kind, item as usize, form, &mut text, &mut look) {
                Err(error) => {
                    skipped.unreadable += 1;
                    last_problem = error.to_string();
                    self.count(kind, item, Some((Reason::of(&error), &last_problem)))?;
                    form = FORMS;
                }
                Ok(sample) if !fits(&sample, &self.settings.shape, &self.words) => {
                    skipped.too_long += 1;
                    last_problem = format!("{} is too long for the token limits", sample.key);
                    self.count(kind, item, Some((Reason::TooLong, &last_problem)))?;
                    form = if kind == TaskKind::Pairs {
                        FORMS
                    } else {
                        form + 1
                    };
                }
                Ok(sample)
                    if sample.view.is_one()
                        && (taken.contains(&sample.key) || taken.contains(&sample.caption)) =>
                {
                    skipped.repeated += 1;
                    last_problem = format!("{} is in the batch already", sample.key);
                    form = FORMS;
                }
                Ok(sample) => {
                    self.count(kind, item, None)?;
                    return Ok(sample);
                }
            }
            if form >= FORMS {
                (item, form) = (replace.below(items as usize) as u64, 0);
            }
        }
        Err(Error::stopped(
            format!("data of step {step}, task {kind}"),
            format!("no usable sample in {MOST_ATTEMPTS} attempts, the last: {last_problem}"),
            "raise the token limits, lower the batch, or give more or better pairs",
        ))
    }

    /// Tells the user's pairs what became of one of them.
    fn count(&self, kind: TaskKind, item: u64, left_out: Option<(Reason, &str)>) -> Result<()> {
        match (&self.pairs, kind) {
            (Some(pairs), TaskKind::Pairs) => pairs.count(item as usize, left_out),
            _ => Ok(()),
        }
    }

    fn make(
        &self,
        kind: TaskKind,
        item: usize,
        form: usize,
        text: &mut Stream,
        look: &mut Stream,
    ) -> Result<Sample> {
        let (library, pool) = (&*self.library, &self.pool);
        let augmentation = &self.settings.augmentation;
        let primary = pool.all.get(item).copied().unwrap_or_default();
        Ok(match kind {
            TaskKind::ShortCaptions => short(library, pool, primary, augmentation, text, look),
            TaskKind::DenseCaptions => {
                dense(library, pool, primary, form, augmentation, text, look)
            }
            TaskKind::Facts => fact(library, pool, primary, form, text, look),
            TaskKind::Scenes => {
                let kind = *text.pick(&QuestionKind::SCENES);
                let mut sample = ask(library, pool, primary, kind, augmentation, text, look);
                let most = self.settings.turns.saturating_sub(1);
                for turn in ask_further(library, pool, &sample, most, text, look) {
                    sample.further.push(turn);
                    if !fits(&sample, &self.settings.shape, &self.words) {
                        sample.further.pop();
                    }
                }
                sample
            }
            TaskKind::Reading => {
                let made = reading(library, pool, self.reading[item], augmentation, text, look);
                made.expect("reading items are readable")
            }
            TaskKind::Pairs => self.pair(item, look)?,
        })
    }

    fn pair(&self, item: usize, look: &mut Stream) -> Result<Sample> {
        let pairs = self
            .pairs
            .as_ref()
            .expect("a task without items is refused at the start");
        let place = KeptPlace {
            kept: self.kept.clone(),
            pairs: pairs.clone(),
            item: pairs.first_of(item),
        };
        let known = Photo::kept(&place);
        let pair = match known {
            Some(_) => pairs.words(item)?,
            None => pairs.get(item)?,
        };
        let caption = pair.caption.trim().to_owned();
        if caption.is_empty() {
            return Err(Error::content(
                pair.key,
                "its caption is empty",
                "write a caption or leave it out",
            ));
        }
        let pictures = pair.before.len() + 1;
        if pictures > self.settings.pictures {
            return Err(Error::content(
                pair.key,
                format!(
                    "it shows {pictures} pictures, where this stage takes {}",
                    self.settings.pictures
                ),
                "set the stage's pictures, or split the sample",
            ));
        }
        let view = match (known, pair.picture) {
            (Some(photo), _) => self.shown(photo, look),
            (None, None) => View::None,
            (None, Some(picture)) if pair.is_marked => {
                let photos = pair.before.into_iter().chain([picture]);
                View::Photos(photos.map(|one| Photo::whole(Arc::new(one))).collect())
            }
            (None, Some(picture)) => {
                let photo = Photo::whole(Arc::new(picture)).keeping(place);
                self.shown(photo, look)
            }
        };
        Ok(Sample {
            key: pair.key,
            kind: TaskKind::Pairs,
            question_kind: None,
            context: String::new(),
            question: pair.prompt.unwrap_or_default(),
            further: pair.further,
            system: pair.system,
            // One picture can be contrasted with a caption.
            caption: match view.is_one() {
                true => caption.clone(),
                false => String::new(),
            },
            view,
            answer: caption,
        })
    }

    fn shown(&self, photo: Photo, look: &mut Stream) -> View {
        let augmentation = &self.settings.augmentation;
        View::Photo(if augmentation.geometry > 0.0 {
            let tint = augmentation.tint(look);
            photo.varied(tint, look)
        } else {
            photo
        })
    }
}

/// Which task gets which slot: a round of [`ROUND`] slots that repeats.
struct Schedule {
    kinds: Vec<TaskKind>,
    /// Slots of each kind in a round.
    counts: Vec<u64>,
    /// For each slot of the round: its kind, and how many earlier slots of the round have that kind.
    slots: Vec<(usize, u64)>,
}

impl Schedule {
    fn new(weights: &[(TaskKind, f64)]) -> Result<Schedule> {
        let mut positive: Vec<(TaskKind, f64)> = Vec::new();
        for &(kind, weight) in weights {
            if !weight.is_finite() || weight < 0.0 {
                return Err(Error::setting(
                    format!("data weight of {kind}"),
                    "a number from 0 up",
                    weight,
                ));
            }
            if positive.iter().any(|&(earlier, _)| earlier == kind) {
                return Err(Error::setting(
                    format!("data weight of {kind}"),
                    "one weight",
                    "two",
                ));
            }
            if weight > 0.0 {
                positive.push((kind, weight));
            }
        }
        let total: f64 = positive.iter().map(|&(_, weight)| weight).sum();
        if positive.is_empty() || !total.is_finite() {
            return Err(Error::setting(
                "data weights",
                "at least one positive, finite weight",
                "none",
            ));
        }
        // Largest remainders, after one slot for each task so that a small weight is never lost.
        let free = (ROUND - positive.len()) as f64;
        let exact: Vec<f64> = positive
            .iter()
            .map(|&(_, weight)| weight / total * ROUND as f64)
            .collect();
        let above: Vec<f64> = exact.iter().map(|share| (share - 1.0).max(0.0)).collect();
        let scale = free / above.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let mut counts: Vec<u64> = above
            .iter()
            .map(|share| 1 + (share * scale).floor() as u64)
            .collect();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        let remainder = |k: usize| (above[k] * scale).fract();
        order.sort_by(|&x, &y| remainder(y).total_cmp(&remainder(x)).then(x.cmp(&y)));
        let missing = ROUND - counts.iter().sum::<u64>() as usize;
        for &k in order.iter().cycle().take(missing) {
            counts[k] += 1;
        }
        let mut given = vec![0u64; counts.len()];
        let slots = (1..=ROUND as u64)
            .map(|slot| {
                // The task furthest behind its due share; the earlier one on a tie.
                let behind =
                    |k: usize| (counts[k] * slot) as i64 - (given[k] * ROUND as u64) as i64;
                let next = (0..counts.len())
                    .rev()
                    .max_by_key(|&k| behind(k))
                    .unwrap_or(0);
                given[next] += 1;
                (next, given[next] - 1)
            })
            .collect();
        Ok(Schedule {
            kinds: positive.into_iter().map(|(kind, _)| kind).collect(),
            counts,
            slots,
        })
    }

    /// The task of a slot and which of the task's turns it is.
    fn at(&self, slot: u64) -> (TaskKind, u64) {
        let (round, within) = (slot / ROUND as u64, slot % ROUND as u64);
        let (kind, earlier) = self.slots[within as usize];
        (self.kinds[kind], round * self.counts[kind] + earlier)
    }

    fn share(&self, kind: TaskKind) -> f64 {
        let place = self.kinds.iter().position(|&other| other == kind);
        place.map_or(0.0, |place| self.counts[place] as f64 / ROUND as f64)
    }
}
