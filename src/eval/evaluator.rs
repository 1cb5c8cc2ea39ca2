//! Runs the evaluation sets through a model as it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::answers::Answerer;
use super::distances::{nearest_neighbour_distance, sliced_wasserstein};
use super::linear_map::LinearMap;
use super::retrieval::{classify, normalise_rows, recall};
use super::{Evaluation, QuestionEvaluation, SetEvaluation};
use crate::data::batch::{BatchShape, TextBatch};
use crate::data::embedded::Artist;
use crate::data::eval_sets::{
    QuestionAnswer, batch_of, batches, captioned, questions, subcategories, text_only_baseline,
    training_questions,
};
use crate::data::feed::write_batch;
use crate::data::library::{Library, Split};
use crate::data::task::{QuestionKind, Sample};
use crate::data::tokenizer::{FIRST_BYTE, IMAGE, Tokenizer};
use crate::error::Result;
use crate::executor::{Executor, Session};
use crate::model::{ContrastivePair, ModelConfig, StepShape, record_contrastive_features};
use crate::program::{CompileOptions, Program};
use crate::tape::{ParameterLayout, Tape, Target};

/// Rows of one evaluation batch.
const BATCH: usize = 64;

/// Visual tokens that the distances are taken over, at most.
const DISTANCE_TOKENS: usize = 1024;

/// Penalty of the fitted map, relative to the features' variance.
const RIDGE: f64 = 0.1;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationSettings {
    /// Pictures of each set.
    pub pictures: usize,
    /// Questions of each kind.
    pub questions_per_kind: usize,
    /// Which heads or towers the features come from.
    pub pair: ContrastivePair,
    /// Whether features go through a map fitted on training pairs, instead of the trained heads.
    pub fits_map: bool,
    /// Whether captions, questions and distances are measured.
    pub answers: bool,
    /// Tokens T of a conversation.
    pub tokens: usize,
    /// Tokens Tc of a caption.
    pub caption_tokens: usize,
}

/// See the module's documentation.
pub struct Evaluator<'a> {
    config: &'a ModelConfig,
    layout: &'a Arc<ParameterLayout>,
    executor: &'a dyn Executor,
    target: Target,
    library: Arc<Library>,
}

/// Features of a set: images and captions, both [N, width].
struct Features {
    images: Vec<f32>,
    texts: Vec<f32>,
    image_width: usize,
    text_width: usize,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of the parameters that `executor` holds.
    pub fn new(
        config: &'a ModelConfig,
        layout: &'a Arc<ParameterLayout>,
        executor: &'a dyn Executor,
        target: Target,
        library: Arc<Library>,
    ) -> Evaluator<'a> {
        Evaluator {
            config,
            layout,
            executor,
            target,
            library,
        }
    }

    /// Measures everything that `settings` ask for.
    ///
    /// # Errors
    /// Whatever recording, loading or the data report.
    pub fn evaluate(&self, stage: &str, settings: &EvaluationSettings) -> Result<Evaluation> {
        let mut evaluation = Evaluation {
            stage: stage.to_owned(),
            matching: if settings.fits_map {
                "fitted map"
            } else {
                "trained heads"
            }
            .into(),
            ..Evaluation::default()
        };
        let mut images = self.feature_session(settings, true)?;
        let mut texts = self.feature_session(settings, false)?;
        let map = match settings.fits_map {
            true => {
                let most = self.library.training().len();
                let samples = captioned(&self.library, Artist::Noto, Split::Train, most);
                let features = self.features(settings, &samples, &mut *images, &mut *texts)?;
                let Features {
                    images,
                    texts,
                    image_width,
                    text_width,
                } = features;
                Some(LinearMap::fit(
                    &images,
                    image_width,
                    &texts,
                    text_width,
                    RIDGE,
                ))
            }
            false => None,
        };
        for artist in [Artist::Noto, Artist::Twemoji] {
            for split in [Split::Train, Split::HeldOut] {
                let set = self.pictures(
                    settings,
                    artist,
                    split,
                    map.as_ref(),
                    &mut *images,
                    &mut *texts,
                )?;
                evaluation.sets.push(set);
            }
        }
        if settings.answers {
            self.distances(settings, &mut *images, &mut evaluation)?;
            drop((images, texts));
            self.answers(settings, &mut evaluation)?;
        }
        Ok(evaluation)
    }

    fn batch_shape(&self, settings: &EvaluationSettings) -> BatchShape {
        BatchShape {
            batch: BATCH,
            image_size: self.config.vision.image_size,
            image_tokens: self.config.image_tokens(),
            tokens: settings.tokens,
            caption_tokens: settings.caption_tokens,
        }
    }

    fn step_shape(&self, settings: &EvaluationSettings) -> StepShape {
        StepShape {
            batch: BATCH,
            tokens: settings.tokens,
            caption_tokens: settings.caption_tokens,
            image_id: i32::from(IMAGE),
        }
    }

    fn feature_session(
        &self,
        settings: &EvaluationSettings,
        images: bool,
    ) -> Result<Box<dyn Session>> {
        let mut tape = Tape::new(self.layout.clone(), |_| false);
        let shape = self.step_shape(settings);
        record_contrastive_features(&mut tape, self.config, &shape, settings.pair, images)?;
        let program = Program::compile(tape, &CompileOptions::new(self.target))?;
        self.executor.load(Arc::new(program))
    }

    /// Features of pictures and their captions.
    fn features(
        &self,
        settings: &EvaluationSettings,
        samples: &[Sample],
        images: &mut dyn Session,
        texts: &mut dyn Session,
    ) -> Result<Features> {
        let shape = self.batch_shape(settings);
        let output = if settings.fits_map {
            "pooled"
        } else {
            "feature"
        };
        let mut features = Features {
            images: vec![],
            texts: vec![],
            image_width: 0,
            text_width: 0,
        };
        for index in 0..batches(samples.len(), &shape) {
            let (batch, count) = batch_of(&self.library, samples, index, &shape)?;
            write_batch(images, &batch)?;
            images.run()?;
            let values = images.read_f32(&format!("image.{output}"))?;
            features.image_width = values.len() / BATCH;
            features
                .images
                .extend(&values[..count * features.image_width]);
        }
        let captions: Vec<String> = samples
            .iter()
            .map(|sample| sample.caption.clone())
            .collect();
        (features.texts, features.text_width) = self.text_features(settings, &captions, texts)?;
        Ok(features)
    }

    /// Features of texts [N, width], and the width.
    fn text_features(
        &self,
        settings: &EvaluationSettings,
        texts: &[String],
        session: &mut dyn Session,
    ) -> Result<(Vec<f32>, usize)> {
        let output = if settings.fits_map {
            "text.pooled"
        } else {
            "text.feature"
        };
        let (mut features, mut width) = (Vec::new(), 0);
        for part in texts.chunks(BATCH) {
            let filled: Vec<String> = part.iter().cycle().take(BATCH).cloned().collect();
            let batch = TextBatch::of(&filled, settings.caption_tokens, Tokenizer::embedded())?;
            session.write_i32("caption_tokens", &batch.tokens)?;
            if session.program().input("caption_end").is_ok() {
                session.write_i32("caption_end", &batch.end)?;
            }
            if session.program().input("caption_weights").is_ok() {
                session.write_f32("caption_weights", &batch.weights)?;
            }
            session.run()?;
            let values = session.read_f32(output)?;
            width = values.len() / BATCH;
            features.extend(&values[..part.len() * width]);
        }
        Ok((features, width))
    }

    fn pictures(
        &self,
        settings: &EvaluationSettings,
        artist: Artist,
        split: Split,
        map: Option<&LinearMap>,
        images: &mut dyn Session,
        texts: &mut dyn Session,
    ) -> Result<SetEvaluation> {
        let set = subcategories(&self.library, artist, split, settings.pictures);
        let features = self.features(settings, &set.samples, images, texts)?;
        let (prompts, width) = self.text_features(settings, &set.prompts, texts)?;
        let mut classes: Vec<f32> = prompts
            .chunks(set.templates * width)
            .flat_map(|prompts| {
                (0..width).map(|column| {
                    prompts.iter().skip(column).step_by(width).sum::<f32>() / set.templates as f32
                })
            })
            .collect();
        let (images, texts) = match map {
            Some(map) => {
                classes = map.centre(&classes);
                (map.map(&features.images), map.centre(&features.texts))
            }
            None => {
                normalise_rows(&mut classes, width);
                (features.images, features.texts)
            }
        };
        Ok(SetEvaluation {
            vendor: artist.name().to_owned(),
            split: split.name().to_owned(),
            count: set.samples.len(),
            recall: Some(recall(&images, &texts, width)),
            zero_shot: Some(classify(&images, &classes, width, &set.labels)),
            classes: set.classes.len(),
            caption_loss: None,
        })
    }

    /// Visual tokens of held-out pictures against the rows of the embedding table, special tokens left out. Both are
    /// brought to unit length first: the decoder's first norm sees no other difference between a long and a short token.
    fn distances(
        &self,
        settings: &EvaluationSettings,
        images: &mut dyn Session,
        evaluation: &mut Evaluation,
    ) -> Result<()> {
        let shape = self.batch_shape(settings);
        let samples = captioned(&self.library, Artist::Noto, Split::HeldOut, BATCH);
        let (batch, count) = batch_of(&self.library, &samples, 0, &shape)?;
        write_batch(images, &batch)?;
        images.run()?;
        let width = self.config.language.width;
        let mut tokens = images.read_f32("image.tokens")?;
        tokens.truncate((count * shape.image_tokens).min(DISTANCE_TOKENS) * width);
        normalise_rows(&mut tokens, width);
        let entry = self
            .layout
            .get("language.embedding")
            .expect("every language model has one");
        let mut table = vec![0.0; entry.spec.shape.numel()];
        self.executor.read_parameters(entry.offset, &mut table);
        let table = &mut table[usize::from(FIRST_BYTE) * width..];
        normalise_rows(table, width);
        evaluation.nearest_neighbour = Some(nearest_neighbour_distance(&tokens, table, width));
        evaluation.sliced_wasserstein = Some(sliced_wasserstein(&tokens, table, width, 0));
        Ok(())
    }

    fn answers(&self, settings: &EvaluationSettings, evaluation: &mut Evaluation) -> Result<()> {
        let shape = self.batch_shape(settings);
        let step_shape = self.step_shape(settings);
        let mut answerer = Answerer::new(
            self.config,
            self.layout,
            self.executor,
            self.target,
            step_shape,
        )?;
        let mut run = |samples: &[Sample]| -> Result<(Vec<bool>, f64)> {
            let (mut right, mut loss, mut rows) = (Vec::new(), 0.0, 0);
            for index in 0..batches(samples.len(), &shape) {
                let (batch, count) = batch_of(&self.library, samples, index, &shape)?;
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
        let train = training_questions(&self.library, 2000, 0);
        for artist in [Artist::Noto, Artist::Twemoji] {
            let samples = questions(
                &self.library,
                artist,
                Split::Train,
                settings.questions_per_kind,
                &shape,
            );
            let (right, _) = run(&samples)?;
            let asked: Vec<QuestionAnswer> =
                samples.iter().filter_map(QuestionAnswer::of).collect();
            let baseline = text_only_baseline(&train, &asked);
            evaluation
                .questions
                .push(summarise(artist, &samples, &right, &baseline));
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
        by_kind,
    }
}
