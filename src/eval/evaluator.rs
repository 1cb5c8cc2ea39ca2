//! Runs the evaluation sets through a model as it stands.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::aligned_retriever::AlignedRetriever;
use super::answers::Answerer;
use super::closed_answers::{ClosedSets, answer_closed};
use super::context::{BATCH, EvalContext, text_embeddings};
use super::distances::{nearest_neighbour_distance, sliced_wasserstein};
use super::principal::Principal;
use super::qualitative::{self, QualitativeSamples, Seen, SeenClasses, TokenClouds};
use super::retrieval::{classify, normalise_rows, recall};
use super::{Evaluation, QuestionEvaluation, SetEvaluation};
use keel_base::error::Result;
use keel_data::assemble::fits;
use keel_data::batch::BatchShape;
use keel_data::batches::{batch_of, batches};
use keel_data::blind_baseline::{QuestionAnswer, blind_baseline};
use keel_data::eval_set::{Classes, EvalSet, EvalSuite, SetName};
use keel_data::sample::Sample;
use keel_engine::executor::Session;
use keel_model::{BatchInputs, ContrastivePair};

/// Questions with closed answers for each that has to be generated: they cost that little.
const CLOSED_QUESTIONS: usize = 8;

/// Visual tokens that the distances are taken over, at most.
const DISTANCE_TOKENS: usize = 1024;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationSettings {
    /// Images of each set.
    pub images: usize,
    /// Questions of each kind.
    pub questions_per_kind: usize,
    /// Whether captions, questions and distances are measured.
    pub answers: bool,
    /// Tokens T of a conversation.
    pub tokens: usize,
    /// Tokens Tc of a caption.
    pub caption_tokens: usize,
}

/// See the module's documentation.
pub struct Evaluator<'a> {
    context: EvalContext<'a>,
    suite: &'a EvalSuite,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of the parameters that the context's executor holds, on the sets of `suite`.
    pub fn new(context: EvalContext<'a>, suite: &'a EvalSuite) -> Evaluator<'a> {
        Evaluator { context, suite }
    }

    /// Measures everything that `settings` ask for.
    ///
    /// # Errors
    /// Whatever recording, loading or the data report.
    pub fn evaluate(&self, stage: &str, settings: &EvaluationSettings) -> Result<Evaluation> {
        Ok(self.show(stage, settings)?.0)
    }

    /// As [`Evaluator::evaluate`], with what there is to look at.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    pub fn show(
        &self,
        stage: &str,
        settings: &EvaluationSettings,
    ) -> Result<(Evaluation, QualitativeSamples)> {
        let mut qualitative = QualitativeSamples {
            stage: stage.to_owned(),
            side: self.context.config.vision.image_size,
            ..QualitativeSamples::default()
        };
        let mut evaluation = Evaluation {
            stage: stage.to_owned(),
            ..Evaluation::default()
        };
        let shape = self.batch_shape(settings);
        let retriever = |pair| {
            let fitted = self.suite.fitted();
            AlignedRetriever::new(self.context, fitted, shape, pair, settings.images)
        };
        // The text tower's space stays the same from stage to stage, the language model's knows the classes.
        let has_towers = self.context.config.text.is_some();
        let language = if settings.answers || !has_towers {
            Some(retriever(ContrastivePair::LanguageModel)?)
        } else {
            None
        };
        let towers = if has_towers {
            Some(retriever(ContrastivePair::TextTower)?)
        } else {
            None
        };
        let (mut retrieval, mut knowledge) = match (towers, language) {
            (Some(towers), language) => (towers, language),
            (None, Some(language)) => (language, None),
            (None, None) => unreachable!("without towers there is a language model"),
        };
        evaluation.sets = self.images(
            settings,
            &mut retrieval,
            knowledge.as_mut(),
            &mut qualitative,
        )?;
        qualitative.attention = qualitative::attention(self.context, self.suite.shown(), &shape)?;
        if settings.answers {
            let language = knowledge.as_mut().unwrap_or(&mut retrieval);
            let images = language.image_session();
            qualitative.tokens = Some(self.distances(settings, images, &mut evaluation)?);
            // Both hold loaded programs with their memory; answers load larger ones.
            drop((retrieval, knowledge));
            self.answers(settings, &mut evaluation)?;
        }
        Ok((evaluation, qualitative))
    }

    fn batch_shape(&self, settings: &EvaluationSettings) -> BatchShape {
        let EvaluationSettings {
            tokens,
            caption_tokens,
            ..
        } = *settings;
        self.context.batch_shape(BATCH, tokens, caption_tokens)
    }

    /// Retrieval and zero-shot classes of all sets. Captions are found in the space of `retrieval`, classes in that of
    /// `knowledge` where there is one.
    fn images<'m>(
        &self,
        settings: &EvaluationSettings,
        retrieval: &mut AlignedRetriever<'m>,
        mut knowledge: Option<&mut AlignedRetriever<'m>>,
        qualitative: &mut QualitativeSamples,
    ) -> Result<Vec<SetEvaluation>> {
        let shape = self.batch_shape(settings);
        let mut sets = Vec::new();
        // Sets mostly share their classes: those of the set before are kept.
        let mut known: Option<(Classes, Vec<f32>)> = None;
        for (index, set) in self.suite.sets().enumerate() {
            let samples = set.captioned(settings.images);
            let captions: Vec<String> = samples.iter().map(|s| s.caption.clone()).collect();
            let images = retrieval.images(&samples)?;
            let texts = retrieval.texts(&captions, 1)?;
            let of_classes = match set.classes() {
                Some(classes) => {
                    let retriever = knowledge.as_deref_mut().unwrap_or(&mut *retrieval);
                    let texts = match known.take() {
                        Some((before, texts)) if before == classes => texts,
                        _ => retriever.texts(&classes.prompts, classes.templates)?,
                    };
                    known = Some((classes, texts));
                    Some((set.labels(&samples), retriever.images(&samples)?))
                }
                None => None,
            };
            let seen_classes = known.as_ref().zip(of_classes.as_ref());
            let seen_classes =
                seen_classes.map(|((classes, texts), (labels, images))| SeenClasses {
                    classes,
                    labels,
                    images,
                    texts,
                });
            let SetName { vendor, split } = set.name();
            sets.push(SetEvaluation {
                vendor,
                split,
                count: samples.len(),
                recall: Some(recall(&images, &texts, texts.len() / captions.len())),
                zero_shot: seen_classes.as_ref().map(|seen| {
                    let width = seen.texts.len() / seen.classes.names.len();
                    classify(seen.images, seen.texts, width, seen.labels)
                }),
                classes: seen_classes.as_ref().map_or(0, |s| s.classes.names.len()),
                caption_loss: None,
            });
            if index == self.suite.shown_index() {
                let seen = Seen {
                    images: &images,
                    texts: &texts,
                    classes: seen_classes,
                };
                let found =
                    qualitative::retrieval(self.context, &shape, &samples, &seen, set.name())?;
                qualitative.retrieval = Some(found);
            }
        }
        Ok(sets)
    }

    /// Visual tokens of the shown set's images against the rows of the embedding table, special tokens left out. In the plane
    /// they are the tower's patches, as they are; in the language model's space the image tokens, where both are
    /// brought to unit length first: the decoder's first norm sees no other difference between a long and a short token.
    fn distances(
        &self,
        settings: &EvaluationSettings,
        images: &mut dyn Session,
        evaluation: &mut Evaluation,
    ) -> Result<TokenClouds> {
        let shape = self.batch_shape(settings);
        let samples = self.suite.shown().captioned(BATCH);
        let (batch, count) = batch_of(&samples, 0, &shape, self.context.tokenizer)?;
        BatchInputs::of(images.program(), &[])?.write(images, &batch)?;
        images.run()?;
        let width = self.context.config.language.width;
        let mut tokens = images.read_f32("image.tokens")?;
        tokens.truncate((count * shape.image_tokens).min(DISTANCE_TOKENS) * width);
        normalise_rows(&mut tokens, width);
        let mut table = text_embeddings(self.context)?;
        let channels = self.context.config.vision.width;
        // In the plane distances are taken between raw features, each cloud in its own principal plane; in the
        // language's space between rows of unit length.
        let mut patches = images.read_f32("image.patches")?;
        patches.truncate(
            (count * self.context.config.vision.patches()).min(DISTANCE_TOKENS) * channels,
        );
        let patches = Principal::plane(&patches, channels);
        let texts = Principal::plane(&table, width);
        evaluation.plane_nearest = Some(nearest_neighbour_distance(&patches, &texts, 2));
        normalise_rows(&mut table, width);
        evaluation.nearest_neighbour = Some(nearest_neighbour_distance(&tokens, &table, width));
        evaluation.sliced_wasserstein = Some(sliced_wasserstein(&tokens, &table, width, 0));
        Ok(TokenClouds::of(&tokens, &table, width))
    }

    /// The loss of captions on every set, and the questions of those that have some.
    fn answers(&self, settings: &EvaluationSettings, evaluation: &mut Evaluation) -> Result<()> {
        let shape = self.batch_shape(settings);
        let tokenizer = self.context.tokenizer;
        let mut answerer = Answerer::new(self.context, shape)?;
        let mut run = |samples: &[Sample]| -> Result<(Vec<bool>, f64)> {
            let (mut right, mut loss, mut rows) = (Vec::new(), 0.0, 0);
            for index in 0..batches(samples.len(), &shape) {
                let (batch, count) = batch_of(samples, index, &shape, tokenizer)?;
                let (exact, batch_loss) = answerer.check(&batch)?;
                right.extend(&exact[..count]);
                // The last batch is filled up by repeating samples, and its loss is the mean over all rows: weighted by
                // the rows that are its own.
                loss += batch_loss * count as f64;
                rows += count;
            }
            Ok((right, loss / rows.max(1) as f64))
        };
        for (set, measured) in self.suite.sets().zip(&mut evaluation.sets) {
            let samples = set.captioned(settings.images);
            measured.caption_loss = Some(run(&samples)?.1);
        }
        let fits = |sample: &Sample| fits(sample, &shape, tokenizer);
        for set in self.suite.sets() {
            let closed = ClosedSets::new(self.context, &set.closed_answers());
            let per_kind = match set.closed_answers().is_empty() {
                true => settings.questions_per_kind,
                false => settings.questions_per_kind * CLOSED_QUESTIONS,
            };
            let Some(samples) = set.questions(per_kind, &fits) else {
                continue;
            };
            let is_closed = samples.iter().all(|sample| closed.of(sample).is_some());
            let (right, loss) = if is_closed {
                let answers = answer_closed(self.context, &closed, &samples)?;
                let loss = answers.iter().map(|answer| answer.loss).sum::<f64>();
                let right = answers.iter().map(|answer| answer.is_right).collect();
                (right, loss / samples.len().max(1) as f64)
            } else {
                run(&samples)?
            };
            let asked: Vec<QuestionAnswer> =
                samples.iter().filter_map(QuestionAnswer::of).collect();
            let baseline = blind_baseline(set.blind_questions(), &asked);
            evaluation.questions.push(QuestionEvaluation {
                answer_loss: Some(loss),
                ..summarise(set, &samples, &right, &baseline)
            });
        }
        Ok(())
    }
}

/// The place of each sample's image among those of the set, in the order in which they come.
fn numbered(samples: &[Sample]) -> impl Iterator<Item = u32> {
    let mut places: BTreeMap<&str, u32> = BTreeMap::new();
    samples.iter().map(move |sample| {
        let next = places.len() as u32;
        *places.entry(&sample.key).or_insert(next)
    })
}

fn summarise(
    set: &dyn EvalSet,
    samples: &[Sample],
    right: &[bool],
    baseline: &[(Cow<'static, str>, f64)],
) -> QuestionEvaluation {
    let mut by_kind: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut text_only = 0.0;
    for (kind, guessed) in baseline {
        let of_kind: Vec<bool> = samples
            .iter()
            .zip(right)
            .filter(|(sample, _)| sample.question_kind.as_ref() == Some(kind))
            .map(|(_, right)| *right)
            .collect();
        let hits = of_kind.iter().filter(|right| **right).count();
        let accuracy = hits as f64 / of_kind.len().max(1) as f64;
        by_kind.insert(kind.to_string(), (accuracy, *guessed));
        text_only += guessed * of_kind.len() as f64;
    }
    let hits = right.iter().filter(|right| **right).count();
    QuestionEvaluation {
        vendor: set.name().vendor,
        split: set.name().split,
        count: samples.len(),
        accuracy: hits as f64 / samples.len().max(1) as f64,
        text_only: text_only / samples.len().max(1) as f64,
        answer_loss: None,
        by_kind,
        answers: numbered(samples).zip(right.iter().copied()).collect(),
    }
}
