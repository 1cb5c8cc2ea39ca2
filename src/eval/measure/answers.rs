//! What the language model says of images: captions and questions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{BATCH, CaptionMeasure, Measurer, QuestionMeasure, TextQuestionMeasure};
use crate::{Answerer, ClosedSets, Generator, Sampling, answer_closed, answers_match};
use keel_base::error::{Error, Result};
use keel_data::assemble::fits;
use keel_data::batch::{Batch, BatchShape, IGNORED};
use keel_data::batches::{batch_of, batches};
use keel_data::blind_baseline::{QuestionAnswer, blind_baseline};
use keel_data::sample::Sample;

/// Questions of each kind about facts as text: a pass scores them all, so many cost a second.
const TEXT_QUESTIONS: usize = 128;

impl Measurer<'_> {
    pub(super) fn captions(&self) -> Result<Vec<CaptionMeasure>> {
        let shape = self.batch_shape();
        let mut answerer = Answerer::new(self.context, shape)?;
        let mut measures = Vec::new();
        for set in self.suite.sets() {
            let samples = set.captioned(self.settings.images);
            let (mut sum, mut tokens) = (0.0, 0);
            for index in 0..batches(samples.len(), &shape) {
                let (mut batch, count) = batch_of(&samples, index, &shape, self.context.tokenizer)?;
                // The batch is filled up by repeating samples; their tokens must not weigh in the mean.
                let supervised = keep_rows(&mut batch, count, shape.tokens);
                sum += answerer.check(&batch)?.1 * supervised as f64;
                tokens += supervised;
            }
            let loss = sum / tokens.max(1) as f64;
            measures.push(CaptionMeasure {
                set: set.name(),
                tokens,
                loss,
                perplexity: loss.exp(),
            });
        }
        Ok(measures)
    }

    pub(super) fn questions(&self) -> Result<Vec<QuestionMeasure>> {
        let shape = self.batch_shape();
        let mut generator = Generator::new(self.context, shape, Sampling::Greedy)?;
        let fits = |sample: &Sample| fits(sample, &shape, self.context.tokenizer);
        let mut measures = Vec::new();
        for set in self.suite.sets() {
            let Some(samples) = set.questions(self.settings.questions_per_kind, &fits) else {
                continue;
            };
            let answers = self.answers_to(&samples, &shape, &mut generator)?;
            let asked: Vec<QuestionAnswer> =
                samples.iter().filter_map(QuestionAnswer::of).collect();
            let baseline = blind_baseline(set.blind_questions(), &asked);
            let scores = by_kind(&samples, &answers, &baseline).into_iter();
            measures.extend(scores.map(|(kind, score)| QuestionMeasure {
                set: set.name(),
                kind,
                count: score.count,
                exact: score.exact / score.count as f64,
                normalised: score.normalised / score.count as f64,
                text_only: score.text_only / score.count as f64,
            }));
        }
        Ok(measures)
    }

    /// # Errors
    /// [`Error::Setting`] where the world gives no facts as text.
    pub(super) fn text_questions(&self) -> Result<Vec<TextQuestionMeasure>> {
        let Some(questions) = self.suite.text_questions() else {
            return Err(Error::setting(
                "metric text-questions",
                "a run on panels, whose facts can be given as text",
                "a run on other tasks",
            ));
        };
        let sets = ClosedSets::new(self.context, &(questions.closed_answers)());
        let mut samples = (questions.samples)(TEXT_QUESTIONS);
        samples.retain(|sample| sets.of(sample).is_some());
        let answers = answer_closed(self.context, &sets, &samples)?;
        let mut kinds: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (sample, answer) in samples.iter().zip(&answers) {
            let kind = sample.question_kind.as_deref().unwrap_or_default();
            let [right, asked] = kinds.entry(kind).or_default();
            *right += usize::from(answer.is_right);
            *asked += 1;
        }
        let measures = kinds
            .into_iter()
            .map(|(kind, [right, count])| TextQuestionMeasure {
                kind: kind.to_owned(),
                count,
                share: right as f64 / count as f64,
            });
        Ok(measures.collect())
    }

    /// What the model generates for each of `samples`.
    fn answers_to(
        &self,
        samples: &[Sample],
        shape: &BatchShape,
        generator: &mut Generator,
    ) -> Result<Vec<String>> {
        let tokenizer = self.context.tokenizer;
        let mut answers = Vec::with_capacity(samples.len());
        for index in 0..batches(samples.len(), shape) {
            let (batch, count) = batch_of(samples, index, shape, tokenizer)?;
            let rows = &samples[index * BATCH..index * BATCH + count];
            let prompts: Vec<Vec<i32>> = rows
                .iter()
                .map(|sample| tokenizer.prompt(&sample.conversation(shape.image_tokens)))
                .collect();
            let image = batch.images.len() / BATCH;
            let images = &batch.images[..count * image];
            for answer in generator.generate(images, &prompts)? {
                answers.push(tokenizer.decode(&answer));
            }
        }
        Ok(answers)
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
    baseline: &[(Cow<'static, str>, f64)],
) -> Vec<(String, Score)> {
    let mut kinds: BTreeMap<&str, Score> = BTreeMap::new();
    let mut all = Score::default();
    for (sample, answer) in samples.iter().zip(answers) {
        let Some(kind) = &sample.question_kind else {
            continue;
        };
        let guessed = baseline.iter().find(|(of, _)| of == kind);
        let guessed = guessed.map_or(0.0, |(_, share)| *share);
        // Each question counts for its kind and for all: the mean over all is over questions, not over kinds.
        for score in [kinds.entry(kind).or_default(), &mut all] {
            score.count += 1;
            score.exact += f64::from(*answer == sample.answer);
            score.normalised += f64::from(answers_match(answer, &sample.answer));
            score.text_only += guessed;
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
