//! The tasks' samples: each drawn from the training concepts in Noto's style, and from no others.

use std::sync::{Arc, OnceLock};

use super::captions::{dense, short};
use super::embedded::Vendor;
use super::emoji_set::{EmojiSet, Pool, Split};
use super::facts::fact;
use super::ocr::{OcrItem, ocr_items, ocr_question};
use super::question_kind::QuestionKind;
use super::questions::{ask, ask_further};
use super::tasks::{self, EMOJI_TASKS};
use keel_base::error::Result;
use keel_base::random::Permutation;
use keel_data::pairs::PairSource;
use keel_data::sample::Sample;
use keel_data::source::{Draw, SampleSettings, TaskSource};
use keel_data::task::Task;
use keel_data::user_samples::UserSamples;

/// Forms of one item that are tried before another item takes its place.
const FORMS: usize = 6;

/// Names the draw of a share of the concepts.
const SHARE: u64 = 0x7368_6172;

/// A source for each task that a recipe can name: those of this world, and the user's samples where there are `pairs`. Which
/// concepts a smaller share holds is chosen by the run's `seed`: every smaller share is part of every larger one.
pub fn task_sources(
    emoji: &Arc<EmojiSet>,
    pairs: Option<Arc<dyn PairSource>>,
    seed: u64,
    settings: &SampleSettings,
) -> Vec<Arc<dyn TaskSource>> {
    let material = Arc::new(Material {
        emoji: emoji.clone(),
        seed,
        settings: *settings,
        pool: OnceLock::new(),
        ocr: OnceLock::new(),
    });
    let of_emoji = EMOJI_TASKS.map(|task| -> Arc<dyn TaskSource> {
        let material = material.clone();
        Arc::new(EmojiTask { task, material })
    });
    let of_user = pairs.map(|pairs| -> Arc<dyn TaskSource> {
        let samples = UserSamples::new(pairs, settings);
        Arc::new(samples)
    });
    of_emoji.into_iter().chain(of_user).collect()
}

/// What the tasks draw from. It is made when the first of them is asked for it: a run on a user's own samples never asks.
struct Material {
    emoji: Arc<EmojiSet>,
    seed: u64,
    settings: SampleSettings,
    pool: OnceLock<Pool>,
    ocr: OnceLock<Vec<OcrItem>>,
}

impl Material {
    fn pool(&self) -> &Pool {
        self.pool.get_or_init(|| {
            let all = self.emoji.training();
            if self.settings.share >= 1.0 {
                return self.emoji.pool(Vendor::Noto, Split::Train);
            }
            let count = (all.len() as f64 * self.settings.share).ceil() as u64;
            let order = Permutation::new(all.len() as u64, self.seed, SHARE, 0);
            let mut kept: Vec<usize> = (0..count).map(|at| all[order.at(at) as usize]).collect();
            kept.sort_unstable();
            self.emoji.pool_of(Vendor::Noto, kept)
        })
    }

    fn ocr(&self) -> &[OcrItem] {
        self.ocr.get_or_init(|| ocr_items(&self.emoji, self.pool()))
    }
}

/// One task of this world.
struct EmojiTask {
    task: Task,
    material: Arc<Material>,
}

impl TaskSource for EmojiTask {
    fn task(&self) -> Task {
        self.task
    }

    fn len(&self) -> usize {
        match self.task {
            tasks::OCR => self.material.ocr().len(),
            _ => self.material.pool().all.len(),
        }
    }

    fn forms(&self) -> usize {
        FORMS
    }

    fn sample(&self, item: usize, draw: &mut Draw<'_>) -> Result<Sample> {
        let material = &*self.material;
        let (emoji, pool) = (&material.emoji, material.pool());
        let augmentation = &material.settings.augmentation;
        let (text, look) = (&mut *draw.text, &mut *draw.look);
        if self.task == tasks::OCR {
            let item = material.ocr()[item];
            let made = ocr_question(emoji, pool, item, augmentation, text, look);
            return Ok(made.expect("only what can be read is an item"));
        }
        let primary = pool.all[item];
        Ok(match self.task {
            tasks::SHORT_CAPTIONS => short(emoji, pool, primary, augmentation, text, look),
            tasks::DENSE_CAPTIONS => {
                dense(emoji, pool, primary, draw.form, augmentation, text, look)
            }
            tasks::FACTS => fact(emoji, pool, primary, draw.form, text, look),
            _ => self.scene(primary, draw),
        })
    }
}

impl EmojiTask {
    /// A scene with as many questions as are wanted and fit.
    fn scene(&self, primary: usize, draw: &mut Draw<'_>) -> Sample {
        let Material {
            emoji, settings, ..
        } = &*self.material;
        let pool = self.material.pool();
        let (text, look) = (&mut *draw.text, &mut *draw.look);
        let kind = *text.pick(&QuestionKind::SCENES);
        let augmentation = &settings.augmentation;
        let mut sample = ask(emoji, pool, primary, kind, augmentation, text, look);
        let most = settings.turns.saturating_sub(1);
        for turn in ask_further(emoji, pool, &sample, most, text, look) {
            sample.further.push(turn);
            // A shorter question may still fit where a longer one did not.
            if !(draw.fits)(&sample) {
                sample.further.pop();
            }
        }
        sample
    }
}
