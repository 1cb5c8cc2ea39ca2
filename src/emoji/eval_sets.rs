//! The evaluation sets of the emoji world: the same samples in every run, on any machine. Images are unaugmented, centred,
//! on the plain background, except in question sets, whose scenes come from seeds that training never uses.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::captions::{SHORT_TEMPLATES, plain_caption};
use super::embedded::Vendor;
use super::emoji_set::{EmojiSet, Pool, Split};
use super::names::with_article;
use super::ocr::{OcrItem, item_kind, ocr_items, ocr_question};
use super::question_kind::QuestionKind;
use super::questions::ask;
use super::scenes::{Arrangement, compose};
use super::tasks;
use keel_base::random::{Permutation, Purpose, Stream};
use keel_data::augment::Augmentation;
use keel_data::blind_baseline::QuestionAnswer;
use keel_data::eval_set::{Classes, EvalSet, EvalSuite, SetName};
use keel_data::sample::Sample;

/// Seed of all evaluation sets; with [`Purpose::Evaluation`] it reaches no stream of training.
const EVALUATION_SEED: u64 = 0x6b65_656c;

/// Training questions of each kind that blind baselines are fitted on.
const BLIND_QUESTIONS: usize = 2000;

/// The four sets: each style with trained and with held-out concepts. Maps and probes are fitted on trained concepts in the
/// trained style; concepts that were never trained on, in that style, are looked at.
pub fn eval_suite(emoji: &Arc<EmojiSet>) -> EvalSuite {
    let sets = [
        (Vendor::Noto, Split::Train),
        (Vendor::Noto, Split::HeldOut),
        (Vendor::Twemoji, Split::Train),
        (Vendor::Twemoji, Split::HeldOut),
    ];
    let sets = sets.map(|(vendor, split)| -> Arc<dyn EvalSet> {
        Arc::new(EmojiEvalSet::new(emoji, vendor, split))
    });
    EvalSuite::new(sets.into(), 0, 1).expect("the sets are part of the program and tested with it")
}

/// The concepts of one vendor and split: retrieval (caption i belongs to image i), captions, classification by
/// subcategory, and, of trained concepts, questions.
pub struct EmojiEvalSet {
    emoji: Arc<EmojiSet>,
    vendor: Vendor,
    split: Split,
    pool: OnceLock<Pool>,
}

impl EmojiEvalSet {
    /// The set of a vendor and split.
    pub fn new(emoji: &Arc<EmojiSet>, vendor: Vendor, split: Split) -> EmojiEvalSet {
        EmojiEvalSet {
            emoji: emoji.clone(),
            vendor,
            split,
            pool: OnceLock::new(),
        }
    }

    fn pool(&self) -> &Pool {
        let make = || self.emoji.pool(self.vendor, self.split);
        self.pool.get_or_init(make)
    }

    fn sample(&self, index: usize) -> Sample {
        let concept = self.emoji.concept(index);
        let mut look = Stream::new(EVALUATION_SEED, Purpose::Evaluation, 0, index as u64);
        let scene = compose(
            &self.emoji,
            self.pool(),
            Arrangement::Single,
            &[index],
            &Augmentation::NONE,
            &mut look,
        );
        Sample {
            key: concept.key.clone(),
            task: tasks::SHORT_CAPTIONS,
            question_kind: None,
            view: scene.view(&self.emoji),
            context: String::new(),
            question: String::new(),
            answer: plain_caption(concept),
            further: Vec::new(),
            unsupervised: Vec::new(),
            system: None,
            caption: plain_caption(concept),
        }
    }
}

impl EvalSet for EmojiEvalSet {
    fn name(&self) -> SetName {
        SetName {
            vendor: self.vendor.name().to_owned(),
            split: self.split.name().to_owned(),
        }
    }

    /// One sample a concept, in a fixed shuffled order.
    fn captioned(&self, most: usize) -> Vec<Sample> {
        let all = self.emoji.of_split(self.split);
        let order = Permutation::new(all.len() as u64, EVALUATION_SEED, 0, 0);
        (0..all.len().min(most) as u64)
            .map(|position| self.sample(all[order.at(position) as usize]))
            .collect()
    }

    fn wordings(&self, sample: &Sample) -> Vec<String> {
        let wording = |[before, after]: [&str; 2]| format!("{before}{}{after}", sample.caption);
        SHORT_TEMPLATES.map(wording).into()
    }

    /// The subcategories.
    fn classes(&self) -> Option<Classes> {
        let names = self.emoji.subcategories().to_vec();
        let phrases = names.iter().map(|class| with_article(class));
        let prompts = phrases.flat_map(|phrase| {
            SHORT_TEMPLATES.map(|[before, after]| format!("{before}{phrase}{after}"))
        });
        Some(Classes {
            templates: SHORT_TEMPLATES.len(),
            prompts: prompts.collect(),
            names,
        })
    }

    fn labels(&self, samples: &[Sample]) -> Vec<usize> {
        let concepts = self.emoji.concepts().iter();
        let by_key: HashMap<&str, usize> = concepts
            .map(|concept| (concept.key.as_str(), concept.subcategory))
            .collect();
        let samples = samples.iter();
        samples.map(|sample| by_key[sample.key.as_str()]).collect()
    }

    /// Questions about fresh scenes and texts, of each kind that the split has material for. Questions that do not fit are
    /// left out and made up for by further ones.
    fn questions(&self, per_kind: usize, fits: &dyn Fn(&Sample) -> bool) -> Option<Vec<Sample>> {
        if self.split == Split::HeldOut {
            return None;
        }
        let mut samples = Vec::new();
        let asker = Asker::new(
            &self.emoji,
            self.pool(),
            Purpose::Evaluation,
            EVALUATION_SEED,
        );
        for kind in QuestionKind::SCENES.into_iter().chain(QuestionKind::OCR) {
            // A kind without material yields nothing in ten times as many tries, and is left out.
            let found = (0..per_kind as u64 * 10)
                .filter_map(|number| asker.question(kind, number))
                .filter(|sample| QuestionKind::of(sample) == Some(kind) && fits(sample))
                .take(per_kind);
            samples.extend(found);
        }
        Some(samples)
    }

    /// Questions of training, whatever the set: made once a process.
    fn blind_questions(&self) -> &[QuestionAnswer] {
        static QUESTIONS: OnceLock<Vec<QuestionAnswer>> = OnceLock::new();
        QUESTIONS.get_or_init(|| training_questions(&EmojiSet::embedded(), BLIND_QUESTIONS, 0))
    }
}

/// Training questions as blind baselines are fitted on: `per_kind` of each kind, without drawing an image.
pub fn training_questions(
    emoji: &Arc<EmojiSet>,
    per_kind: usize,
    seed: u64,
) -> Vec<QuestionAnswer> {
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    let asker = Asker::new(emoji, &pool, Purpose::Text, seed);
    QuestionKind::SCENES
        .into_iter()
        .chain(QuestionKind::OCR)
        .flat_map(|kind| (0..per_kind as u64).map(move |number| (kind, number)))
        .filter_map(|(kind, number)| asker.question(kind, number))
        .filter_map(|sample| QuestionAnswer::of(&sample))
        .collect()
}

/// Makes questions of a chosen kind.
struct Asker<'a> {
    emoji: &'a Arc<EmojiSet>,
    pool: &'a Pool,
    readable: Vec<(QuestionKind, OcrItem)>,
    purpose: Purpose,
    seed: u64,
}

impl<'a> Asker<'a> {
    fn new(emoji: &'a Arc<EmojiSet>, pool: &'a Pool, purpose: Purpose, seed: u64) -> Asker<'a> {
        let readable = ocr_items(emoji, pool)
            .into_iter()
            .filter_map(|item| Some((item_kind(emoji, item)?, item)))
            .collect();
        Asker {
            emoji,
            pool,
            readable,
            purpose,
            seed,
        }
    }

    fn question(&self, kind: QuestionKind, number: u64) -> Option<Sample> {
        if self.pool.all.is_empty() {
            return None;
        }
        // By kind and number: a set of more questions begins with those of a smaller one.
        let address = ((kind as u64) << 48) | number;
        let mut text = Stream::new(self.seed, self.purpose, 1, address);
        let mut look = Stream::new(self.seed, self.purpose, 2, address);
        let augmentation = &Augmentation::TRAINING;
        if QuestionKind::SCENES.contains(&kind) {
            let primary = *text.pick(&self.pool.all);
            return Some(ask(
                self.emoji,
                self.pool,
                primary,
                kind,
                augmentation,
                &mut text,
                &mut look,
            ));
        }
        let of_kind: Vec<_> = self
            .readable
            .iter()
            .filter(|(of, _)| *of == kind)
            .map(|&(_, item)| item)
            .collect();
        if of_kind.is_empty() {
            return None;
        }
        let item = *text.pick(&of_kind);
        ocr_question(
            self.emoji,
            self.pool,
            item,
            augmentation,
            &mut text,
            &mut look,
        )
    }
}
