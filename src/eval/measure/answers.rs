//! What the language model says of pictures: captions and questions.

use std::collections::BTreeMap;

use super::towers::{SETS, set_name};
use super::{BATCH, CaptionMeasure, Measurer, QuestionMeasure};
use crate::{Answerer, Generator, Sampling, answers_match};
use keel_base::error::Result;
use keel_data::batch::{Batch, IGNORED};
use keel_data::embedded::Artist;
use keel_data::eval_sets::{
    QuestionAnswer, batch_of, batches, captioned, guessers_questions, questions, text_only_baseline,
};
use keel_data::library::Split;
use keel_data::task::{QuestionKind, Sample};

impl Measurer<'_> {
    pub(super) fn captions(&self) -> Result<Vec<CaptionMeasure>> {
        let shape = self.batch_shape();
        let mut answerer = Answerer::new(self.place, self.step_shape())?;
        let mut measures = Vec::new();
        for set in SETS {
            let samples = captioned(&self.library, set.0, set.1, self.settings.pictures);
            let (mut sum, mut tokens) = (0.0, 0);
            for index in 0..batches(samples.len(), &shape) {
                let (mut batch, count) =
                    batch_of(&self.library, &samples, index, &shape, self.place.words)?;
                let supervised = keep_rows(&mut batch, count, shape.tokens);
                sum += answerer.check(&batch)?.1 * supervised as f64;
                tokens += supervised;
            }
            let loss = sum / tokens.max(1) as f64;
            measures.push(CaptionMeasure {
                set: set_name(set),
                tokens,
                loss,
                perplexity: loss.exp(),
            });
        }
        Ok(measures)
    }

    pub(super) fn questions(&self) -> Result<Vec<QuestionMeasure>> {
        let shape = self.batch_shape();
        let mut generator = Generator::new(self.place, self.step_shape(), Sampling::Greedy)?;
        let words = self.place.words;
        let mut measures = Vec::new();
        for artist in [Artist::Noto, Artist::Twemoji] {
            let per_kind = self.settings.questions_per_kind;
            let samples = questions(&self.library, artist, Split::Train, per_kind, &shape, words);
            let mut answers = Vec::with_capacity(samples.len());
            for index in 0..batches(samples.len(), &shape) {
                let (batch, count) =
                    batch_of(&self.library, &samples, index, &shape, self.place.words)?;
                let rows = &samples[index * BATCH..index * BATCH + count];
                let prompts: Vec<Vec<i32>> = rows
                    .iter()
                    .map(|sample| words.prompt(&sample.conversation(shape.image_tokens)))
                    .collect();
                let picture = batch.images.len() / BATCH;
                let images = &batch.images[..count * picture];
                for answer in generator.generate(images, &prompts)? {
                    answers.push(words.decode(&answer));
                }
            }
            let asked: Vec<QuestionAnswer> =
                samples.iter().filter_map(QuestionAnswer::of).collect();
            let guesser = text_only_baseline(guessers_questions(), &asked);
            let set = set_name((artist, Split::Train));
            measures.extend(by_kind(&samples, &answers, &guesser).into_iter().map(
                |(kind, score)| QuestionMeasure {
                    set: set.clone(),
                    kind,
                    count: score.count,
                    exact: score.exact / score.count as f64,
                    normalised: score.normalised / score.count as f64,
                    text_only: score.text_only / score.count as f64,
                },
            ));
        }
        Ok(measures)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Score {
    count: usize,
    exact: f64,
    normalised: f64,
    text_only: f64,
}

/// Scores by kind in alphabetical order, then over `all`.
fn by_kind(
    samples: &[Sample],
    answers: &[String],
    guesser: &BTreeMap<QuestionKind, f64>,
) -> Vec<(String, Score)> {
    let mut kinds: BTreeMap<&str, Score> = BTreeMap::new();
    let mut all = Score::default();
    for (sample, answer) in samples.iter().zip(answers) {
        let Some(kind) = sample.question_kind else {
            continue;
        };
        for score in [kinds.entry(kind.name()).or_default(), &mut all] {
            score.count += 1;
            score.exact += f64::from(*answer == sample.answer);
            score.normalised += f64::from(answers_match(answer, &sample.answer));
            score.text_only += guesser.get(&kind).copied().unwrap_or(0.0);
        }
    }
    let mut scores: Vec<(String, Score)> = kinds
        .into_iter()
        .map(|(kind, score)| (kind.to_owned(), score))
        .collect();
    if all.count > 0 {
        scores.push(("all".to_owned(), all));
    }
    scores
}

/// Leaves rows from `count` on out of the loss, which fill a batch up; returns how many tokens are supervised.
fn keep_rows(batch: &mut Batch, count: usize, tokens: usize) -> usize {
    batch.weights[count * tokens..].fill(0.0);
    batch.targets[count * tokens..].fill(IGNORED);
    batch
        .targets
        .iter()
        .filter(|target| **target != IGNORED)
        .count()
}
