//! Evaluation sets: the same samples in every run, on any machine. Pictures are unaugmented, centred, on the plain
//! background, except in question sets, whose scenes come from seeds that training never uses. Also what a model that
//! never sees a picture could score: the best text-only answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use super::augment::Augmentation;
use super::batch::{Batch, BatchShape, Weighting, assemble, fits};
use super::captions::{SHORT_TEMPLATES, plain_caption, reading, reading_items};
use super::chat::ChatTokenizer;
use super::embedded::Artist;
use super::library::{Library, Pool, Split};
use super::names::with_article;
use super::questions::ask;
use super::scenes::{Arrangement, compose};
use super::task::{QuestionKind, Sample, TaskKind, View};
use keel_base::error::Result;
use keel_base::random::{Permutation, Purpose, Stream};

/// Seed of all evaluation sets; with [`Purpose::Evaluation`] it reaches no stream of training.
const EVALUATION_SEED: u64 = 0x6b65_656c;

/// Pictures of concepts with their captions, one concept each, at most `most` of them in a fixed shuffled order: for
/// retrieval (caption i belongs to picture i) and for the caption loss.
pub fn captioned(library: &Library, artist: Artist, split: Split, most: usize) -> Vec<Sample> {
    let pool = library.pool(artist, split);
    let order = Permutation::new(pool.all.len() as u64, EVALUATION_SEED, 0, 0);
    (0..pool.all.len().min(most) as u64)
        .map(|position| {
            let index = pool.all[order.at(position) as usize];
            let concept = library.concept(index);
            let mut look = Stream::new(EVALUATION_SEED, Purpose::Evaluation, 0, index as u64);
            let scene = compose(
                library,
                &pool,
                Arrangement::Single,
                &[index],
                &Augmentation::NONE,
                &mut look,
            );
            Sample {
                key: concept.key.clone(),
                kind: TaskKind::ShortCaptions,
                question_kind: None,
                view: View::Scene(scene),
                context: String::new(),
                question: String::new(),
                answer: plain_caption(concept),
                further: Vec::new(),
                system: None,
                caption: plain_caption(concept),
            }
        })
        .collect()
}

/// Zero-shot classification by subcategory.
#[derive(Clone, Debug)]
pub struct ZeroShot {
    /// The classes: names of the subcategories.
    pub classes: Vec<String>,
    /// Prompts per class.
    pub templates: usize,
    /// All prompts, class by class: `prompts[class * templates + template]`.
    pub prompts: Vec<String>,
    /// Pictures, as [`captioned`].
    pub samples: Vec<Sample>,
    /// The class of each picture.
    pub labels: Vec<usize>,
}

/// The zero-shot set of a artist and split.
pub fn subcategories(library: &Library, artist: Artist, split: Split, most: usize) -> ZeroShot {
    let classes = library.subcategories().to_vec();
    let prompts = classes
        .iter()
        .map(|class| with_article(class))
        .flat_map(|phrase| {
            SHORT_TEMPLATES.map(|[before, after]| format!("{before}{phrase}{after}"))
        })
        .collect();
    let samples = captioned(library, artist, split, most);
    let by_key: HashMap<&str, usize> = library
        .concepts()
        .iter()
        .map(|concept| (concept.key.as_str(), concept.subcategory))
        .collect();
    ZeroShot {
        templates: SHORT_TEMPLATES.len(),
        labels: samples
            .iter()
            .map(|sample| by_key[sample.key.as_str()])
            .collect(),
        classes,
        prompts,
        samples,
    }
}

/// Questions about fresh scenes and readings, `per_kind` of each kind that the split has material for. Questions that do
/// not fit `shape` are left out and made up for by further ones.
pub fn questions(
    library: &Library,
    artist: Artist,
    split: Split,
    per_kind: usize,
    shape: &BatchShape,
    words: &ChatTokenizer,
) -> Vec<Sample> {
    let pool = library.pool(artist, split);
    let mut samples = Vec::new();
    for kind in QuestionKind::SCENES
        .into_iter()
        .chain(QuestionKind::READING)
    {
        let mut tries = Asker::new(library, &pool, Purpose::Evaluation, EVALUATION_SEED);
        // A kind without material yields nothing in ten times as many tries, and is left out.
        let found = (0..per_kind as u64 * 10)
            .filter_map(|number| tries.question(kind, number))
            .filter(|sample| sample.question_kind == Some(kind) && fits(sample, shape, words))
            .take(per_kind);
        samples.extend(found);
    }
    samples
}

/// Training questions as the text-only baselines are fitted on: `per_kind` of each kind, without drawing a picture.
pub fn training_questions(library: &Library, per_kind: usize, seed: u64) -> Vec<QuestionAnswer> {
    let pool = library.pool(Artist::Noto, Split::Train);
    let mut asker = Asker::new(library, &pool, Purpose::Text, seed);
    QuestionKind::SCENES
        .into_iter()
        .chain(QuestionKind::READING)
        .flat_map(|kind| (0..per_kind as u64).map(move |number| (kind, number)))
        .filter_map(|(kind, number)| asker.question(kind, number))
        .filter_map(|sample| QuestionAnswer::of(&sample))
        .collect()
}

/// What the guessers of evaluations are fitted on, made once a process: 2,000 questions of each kind.
pub fn guessers_questions() -> &'static [QuestionAnswer] {
    static QUESTIONS: OnceLock<Vec<QuestionAnswer>> = OnceLock::new();
    QUESTIONS.get_or_init(|| training_questions(&Library::embedded(), 2000, 0))
}

/// Makes questions of a chosen kind.
struct Asker<'a> {
    library: &'a Library,
    pool: &'a Pool,
    readable: Vec<(QuestionKind, super::captions::ReadingItem)>,
    purpose: Purpose,
    seed: u64,
}

impl<'a> Asker<'a> {
    fn new(library: &'a Library, pool: &'a Pool, purpose: Purpose, seed: u64) -> Asker<'a> {
        let readable = reading_items(library, pool)
            .into_iter()
            .filter_map(|item| Some((super::captions::item_kind(library, item)?, item)))
            .collect();
        Asker {
            library,
            pool,
            readable,
            purpose,
            seed,
        }
    }

    fn question(&mut self, kind: QuestionKind, number: u64) -> Option<Sample> {
        if self.pool.all.is_empty() {
            return None;
        }
        let address = ((kind as u64) << 48) | number;
        let mut text = Stream::new(self.seed, self.purpose, 1, address);
        let mut look = Stream::new(self.seed, self.purpose, 2, address);
        let augmentation = &Augmentation::TRAINING;
        if QuestionKind::SCENES.contains(&kind) {
            let primary = *text.pick(&self.pool.all);
            return Some(ask(
                self.library,
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
        reading(
            self.library,
            self.pool,
            item,
            augmentation,
            &mut text,
            &mut look,
        )
    }
}

/// The number of batches that hold `samples` samples.
pub fn batches(samples: usize, shape: &BatchShape) -> usize {
    samples.div_ceil(shape.batch.max(1))
}

/// The `index`-th batch of an evaluation set, and how many of its rows count: the last batch is filled up with its first
/// rows. Every supervised token weighs 1.
///
/// # Errors
/// `Content` when a sample does not fit the shape.
pub fn batch_of(
    library: &Library,
    samples: &[Sample],
    index: usize,
    shape: &BatchShape,
    words: &ChatTokenizer,
) -> Result<(Batch, usize)> {
    let from = (index * shape.batch).min(samples.len());
    let rows = &samples[from..(from + shape.batch).min(samples.len())];
    let filled: Vec<Sample> = rows.iter().cycle().take(shape.batch).cloned().collect();
    let batch = assemble(library, &filled, shape, Weighting::Token, words)?;
    Ok((batch, rows.len()))
}

/// A question with its kind and answer, all that a text-only guesser sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionAnswer {
    /// Kind of question.
    pub kind: QuestionKind,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
}

impl QuestionAnswer {
    /// That of a sample; nothing for samples without a question.
    pub fn of(sample: &Sample) -> Option<QuestionAnswer> {
        Some(QuestionAnswer {
            kind: sample.question_kind?,
            question: sample.question.clone(),
            answer: sample.answer.clone(),
        })
    }
}

/// For each kind in `test`, the share of questions that the best guesser without pictures answers rightly, 0..1. The
/// guessers, fitted on `train`: the commonest answer of the kind; and the commonest answer to exactly this question, or of
/// the kind where the question is new. Ties go to the answer that sorts first. The better of the two counts.
pub fn text_only_baseline(
    train: &[QuestionAnswer],
    test: &[QuestionAnswer],
) -> BTreeMap<QuestionKind, f64> {
    let mut of_kind: HashMap<QuestionKind, HashMap<&str, usize>> = HashMap::new();
    let mut of_question: HashMap<(QuestionKind, &str), HashMap<&str, usize>> = HashMap::new();
    for seen in train {
        *of_kind
            .entry(seen.kind)
            .or_default()
            .entry(&seen.answer)
            .or_default() += 1;
        let question = of_question
            .entry((seen.kind, seen.question.as_str()))
            .or_default();
        *question.entry(&seen.answer).or_default() += 1;
    }
    fn commonest<'a>(answers: Option<&HashMap<&'a str, usize>>) -> Option<&'a str> {
        let order =
            |(x, n): &(&&'a str, &usize), (y, m): &(&&'a str, &usize)| n.cmp(m).then(y.cmp(x));
        answers?.iter().max_by(order).map(|(&answer, _)| answer)
    }
    let mut scores: BTreeMap<QuestionKind, [usize; 3]> = BTreeMap::new();
    for asked in test {
        let by_kind = commonest(of_kind.get(&asked.kind));
        let by_question =
            commonest(of_question.get(&(asked.kind, asked.question.as_str()))).or(by_kind);
        let score = scores.entry(asked.kind).or_default();
        score[0] += 1;
        score[1] += usize::from(by_kind == Some(asked.answer.as_str()));
        score[2] += usize::from(by_question == Some(asked.answer.as_str()));
    }
    scores
        .into_iter()
        .map(|(kind, [all, kind_hits, question_hits])| {
            (kind, kind_hits.max(question_hits) as f64 / all as f64)
        })
        .collect()
}
