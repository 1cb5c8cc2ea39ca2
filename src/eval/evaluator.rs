//! Runs the evaluation sets through a model as it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Principal;
use super::answers::Answerer;
use super::distances::{nearest_neighbour_distance, sliced_wasserstein};
use super::exhibits::{self, Exhibits, Seen, TokenClouds};
use super::matcher::Matcher;
use super::measure::SetName;
use super::place::{self, BATCH, Place, step_shape, text_embeddings};
use super::retrieval::{classify, normalise_rows, recall};
use super::{Evaluation, QuestionEvaluation, SetEvaluation};
use keel_base::error::Result;
use keel_data::batch::BatchShape;
use keel_data::embedded::Artist;
use keel_data::eval_sets::{
    QuestionAnswer, batch_of, batches, captioned, guessers_questions, questions, subcategories,
    text_only_baseline,
};
use keel_data::library::{Library, Split};
use keel_data::task::{QuestionKind, Sample};
use keel_engine::executor::Session;
use keel_model::{BatchInputs, ContrastivePair};

/// Visual tokens that the distances are taken over, at most.
const DISTANCE_TOKENS: usize = 1024;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationSettings {
    /// Pictures of each set.
    pub pictures: usize,
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
    place: Place<'a>,
    library: Arc<Library>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of the parameters that the place's executor holds.
    pub fn new(place: Place<'a>, library: Arc<Library>) -> Evaluator<'a> {
        Evaluator { place, library }
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
    ) -> Result<(Evaluation, Exhibits)> {
        let mut exhibits = Exhibits {
            stage: stage.to_owned(),
            side: self.place.config.vision.image_size,
            ..Exhibits::default()
        };
        let mut evaluation = Evaluation {
            stage: stage.to_owned(),
            ..Evaluation::default()
        };
        let shape = self.batch_shape(settings);
        let matcher =
            |pair| Matcher::new(self.place, &self.library, shape, pair, settings.pictures);
        // The text tower's space stays the same from stage to stage, the language model's knows the classes.
        let has_towers = self.place.config.text.is_some();
        let language = match settings.answers || !has_towers {
            true => Some(matcher(ContrastivePair::LanguageModel)?),
            false => None,
        };
        let towers = match has_towers {
            true => Some(matcher(ContrastivePair::TextTower)?),
            false => None,
        };
        let (mut retrieval, mut knowledge) = match (towers, language) {
            (Some(towers), language) => (towers, language),
            (None, Some(language)) => (language, None),
            (None, None) => unreachable!("without towers there is a language model"),
        };
        evaluation.sets =
            self.pictures(settings, &mut retrieval, knowledge.as_mut(), &mut exhibits)?;
        exhibits.attention = exhibits::attention(self.place, &self.library, &shape)?;
        if settings.answers {
            let language = knowledge.as_mut().unwrap_or(&mut retrieval);
            let images = language.image_session();
            exhibits.tokens = Some(self.distances(settings, images, &mut evaluation)?);
            drop((retrieval, knowledge));
            self.answers(settings, &mut evaluation)?;
        }
        Ok((evaluation, exhibits))
    }

    fn batch_shape(&self, settings: &EvaluationSettings) -> BatchShape {
        place::batch_shape(self.place, settings.tokens, settings.caption_tokens)
    }

    /// Retrieval and zero-shot classes of the four sets.
    fn pictures<'m>(
        &self,
        settings: &EvaluationSettings,
        retrieval: &mut Matcher<'m>,
        mut knowledge: Option<&mut Matcher<'m>>,
        exhibits: &mut Exhibits,
    ) -> Result<Vec<SetEvaluation>> {
        let mut sets = Vec::new();
        // The same for every set.
        let mut classes: Option<Vec<f32>> = None;
        for artist in [Artist::Noto, Artist::Twemoji] {
            for split in [Split::Train, Split::HeldOut] {
                let set = subcategories(&self.library, artist, split, settings.pictures);
                let captions: Vec<String> = set
                    .samples
                    .iter()
                    .map(|sample| sample.caption.clone())
                    .collect();
                let images = retrieval.images(&set.samples)?;
                let texts = retrieval.texts(&captions, 1)?;
                let matcher = match &mut knowledge {
                    Some(knowledge) => &mut **knowledge,
                    None => &mut *retrieval,
                };
                if classes.is_none() {
                    classes = Some(matcher.texts(&set.prompts, set.templates)?);
                }
                let classes = classes.as_deref().unwrap_or_default();
                let seen = matcher.images(&set.samples)?;
                let width = classes.len() / set.classes.len();
                // Concepts never trained on, in the style that was.
                if (artist, split) == (Artist::Noto, Split::HeldOut) {
                    let features = Seen {
                        images: &images,
                        texts: &texts,
                        seen: &seen,
                        classes,
                    };
                    let name = SetName {
                        vendor: artist.name().to_owned(),
                        split: split.name().to_owned(),
                    };
                    let shape = self.batch_shape(settings);
                    let (place, library) = (self.place, &self.library);
                    let found = exhibits::retrieval(place, library, &shape, &set, &features, name)?;
                    exhibits.retrieval = Some(found);
                }
                sets.push(SetEvaluation {
                    vendor: artist.name().to_owned(),
                    split: split.name().to_owned(),
                    count: set.samples.len(),
                    recall: Some(recall(&images, &texts, texts.len() / captions.len())),
                    zero_shot: Some(classify(&seen, classes, width, &set.labels)),
                    classes: set.classes.len(),
                    caption_loss: None,
                });
            }
        }
        Ok(sets)
    }

    /// Visual tokens of held-out pictures against the rows of the embedding table, special tokens left out. In the plane
    /// they are the tower's patches, as they are; in the language model's space the image tokens, where both are
    /// brought to unit length first: the decoder's first norm sees no other difference between a long and a short token.
    fn distances(
        &self,
        settings: &EvaluationSettings,
        images: &mut dyn Session,
        evaluation: &mut Evaluation,
    ) -> Result<TokenClouds> {
        let shape = self.batch_shape(settings);
        let samples = captioned(&self.library, Artist::Noto, Split::HeldOut, BATCH);
        let (batch, count) = batch_of(&self.library, &samples, 0, &shape, self.place.words)?;
        BatchInputs::of(images.program(), &[])?.write(images, &batch)?;
        images.run()?;
        let width = self.place.config.language.width;
        let mut tokens = images.read_f32("image.tokens")?;
        tokens.truncate((count * shape.image_tokens).min(DISTANCE_TOKENS) * width);
        normalise_rows(&mut tokens, width);
        let mut table = text_embeddings(self.place)?;
        let channels = self.place.config.vision.width;
        let mut patches = images.read_f32("image.patches")?;
        patches
            .truncate((count * self.place.config.vision.patches()).min(DISTANCE_TOKENS) * channels);
        let patches = Principal::plane(&patches, channels);
        let texts = Principal::plane(&table, width);
        evaluation.plane_nearest = Some(nearest_neighbour_distance(&patches, &texts, 2));
        normalise_rows(&mut table, width);
        evaluation.nearest_neighbour = Some(nearest_neighbour_distance(&tokens, &table, width));
        evaluation.sliced_wasserstein = Some(sliced_wasserstein(&tokens, &table, width, 0));
        Ok(TokenClouds::of(&tokens, &table, width))
    }

    fn answers(&self, settings: &EvaluationSettings, evaluation: &mut Evaluation) -> Result<()> {
        let shape = self.batch_shape(settings);
        let step_shape = step_shape(&shape, self.place.words);
        let mut answerer = Answerer::new(self.place, step_shape)?;
        let mut run = |samples: &[Sample]| -> Result<(Vec<bool>, f64)> {
            let (mut right, mut loss, mut rows) = (Vec::new(), 0.0, 0);
            for index in 0..batches(samples.len(), &shape) {
                let (batch, count) =
                    batch_of(&self.library, samples, index, &shape, self.place.words)?;
                let (exact, batch_loss) = answerer.check(&batch)?;
                right.extend(&exact[..count]);
                loss += batch_loss * count as f64;
                rows += count;
            }
            Ok((right, loss / rows.max(1) as f64))
        };
        let mut sets = evaluation.sets.iter_mut();
        for artist in [Artist::Noto, Artist::Twemoji] {
            for split in [Split::Train, Split::HeldOut] {
                let samples = captioned(&self.library, artist, split, settings.pictures);
                let set = sets.next().expect("one entry a set");
                set.caption_loss = Some(run(&samples)?.1);
            }
        }
        for artist in [Artist::Noto, Artist::Twemoji] {
            let samples = questions(
                &self.library,
                artist,
                Split::Train,
                settings.questions_per_kind,
                &shape,
                self.place.words,
            );
            let (right, loss) = run(&samples)?;
            let asked: Vec<QuestionAnswer> =
                samples.iter().filter_map(QuestionAnswer::of).collect();
            let baseline = text_only_baseline(guessers_questions(), &asked);
            evaluation.questions.push(QuestionEvaluation {
                answer_loss: Some(loss),
                ..summarise(artist, &samples, &right, &baseline)
            });
        }
        Ok(())
    }
}

fn summarise(
    artist: Artist,
    samples: &[Sample],
    right: &[bool],
    baseline: &BTreeMap<QuestionKind, f64>,
) -> QuestionEvaluation {
    let mut by_kind: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut text_only = 0.0;
    for (kind, guessed) in baseline {
        let of_kind: Vec<bool> = samples
            .iter()
            .zip(right)
            .filter(|(sample, _)| sample.question_kind == Some(*kind))
            .map(|(_, right)| *right)
            .collect();
        let hits = of_kind.iter().filter(|right| **right).count();
        let accuracy = hits as f64 / of_kind.len().max(1) as f64;
        by_kind.insert(kind.name().to_owned(), (accuracy, *guessed));
        text_only += guessed * of_kind.len() as f64;
    }
    let hits = right.iter().filter(|right| **right).count();
    QuestionEvaluation {
        vendor: artist.name().to_owned(),
        count: samples.len(),
        accuracy: hits as f64 / samples.len().max(1) as f64,
        text_only: text_only / samples.len().max(1) as f64,
        answer_loss: None,
        by_kind,
    }
}
