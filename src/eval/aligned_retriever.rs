//! Matches images and texts in one space, in the same way after every stage.
//!
//! Stages differ in which heads they train, and heads grow stale when what feeds them moves on. So pooled features of
//! both sides are brought together by a linear map that is fitted on trained pairs each time.

use super::context::{BATCH, EvalContext, load_forward};
use super::linear_map::LinearMap;
use keel_base::error::Result;
use keel_data::batch::{BatchShape, TextBatch};
use keel_data::batches::{batch_of, batches};
use keel_data::chat::ChatTokenizer;
use keel_data::eval_set::EvalSet;
use keel_data::sample::Sample;
use keel_engine::executor::Session;
use keel_model::{BatchInputs, ContrastivePair, ModelInput, record_contrastive_features, unfed};

/// Images that the map is fitted on for each image of a set.
const FITTED: usize = 16;

/// Penalty of the fitted map, relative to the features' variance.
const RIDGE: f64 = 0.03;

/// See the module's documentation.
pub(super) struct AlignedRetriever<'a> {
    tokenizer: &'a ChatTokenizer,
    shape: BatchShape,
    image_tower: Box<dyn Session>,
    text_tower: Box<dyn Session>,
    map: LinearMap,
}

impl<'a> AlignedRetriever<'a> {
    /// Loads the feature programs of `pair` and fits the map on the images of `fitted`: all of them, but for sets of few
    /// `images` at most [`FITTED`] for each.
    ///
    /// # Errors
    /// Whatever recording, loading or the data report.
    pub fn new(
        context: EvalContext<'a>,
        fitted: &dyn EvalSet,
        shape: BatchShape,
        pair: ContrastivePair,
        images: usize,
    ) -> Result<AlignedRetriever<'a>> {
        let mut image_tower = load(context, &shape, pair, true)?;
        let mut text_tower = load(context, &shape, pair, false)?;
        let samples = fitted.captioned(FITTED.saturating_mul(images));
        let count = samples.len();
        let captions: Vec<String> = samples
            .iter()
            .map(|sample| sample.caption.clone())
            .collect();
        let tokenizer = context.tokenizer;
        let shown = ShownImages {
            samples: &samples,
            change: None,
        };
        let x = image_features(image_tower.as_mut(), &shown, tokenizer, &shape, POOLED)?;
        let y = text_features(text_tower.as_mut(), &captions, tokenizer, &shape, POOLED)?;
        // Fitted on pooled features, before any head: a head that the stage did not train would say how stale it is,
        // not what the tower knows.
        let map = LinearMap::fit(&x, x.len() / count, &y, y.len() / count, RIDGE);
        Ok(AlignedRetriever {
            tokenizer,
            shape,
            image_tower,
            text_tower,
            map,
        })
    }

    /// Mapped features of images [N, width], of unit length.
    ///
    /// # Errors
    /// Whatever the data or the session report.
    pub fn images(&mut self, samples: &[Sample]) -> Result<Vec<f32>> {
        let x = self.pooled(samples, None)?;
        Ok(self.map.map(&x))
    }

    /// Pooled features of images [N, width] before the map, each image [3, S, S] changed by `change` first,
    /// where there is one.
    ///
    /// # Errors
    /// Whatever the data or the session report.
    pub fn pooled(&mut self, samples: &[Sample], change: Option<Change<'_>>) -> Result<Vec<f32>> {
        let shown = ShownImages { samples, change };
        let tower = self.image_tower.as_mut();
        image_features(tower, &shown, self.tokenizer, &self.shape, POOLED)
    }

    /// Pooled features [N, width] mapped, of unit length.
    pub fn map(&self, pooled: &[f32]) -> Vec<f32> {
        self.map.map(pooled)
    }

    /// Features of texts, the mean over each run of `each` texts, of unit length: [N / each, width].
    ///
    /// # Errors
    /// When a text is too long; whatever the session reports.
    pub fn texts(&mut self, texts: &[String], each: usize) -> Result<Vec<f32>> {
        let y = text_features(
            self.text_tower.as_mut(),
            texts,
            self.tokenizer,
            &self.shape,
            POOLED,
        )?;
        let width = y.len() / texts.len().max(1);
        let means: Vec<f32> = y
            .chunks(each * width)
            .flat_map(|run| {
                (0..width)
                    .map(|column| run.iter().skip(column).step_by(width).sum::<f32>() / each as f32)
            })
            .collect();
        Ok(self.map.centre(&means))
    }

    /// The program that turns images into features.
    pub fn image_session(&mut self) -> &mut dyn Session {
        self.image_tower.as_mut()
    }
}

fn load(
    context: EvalContext<'_>,
    shape: &BatchShape,
    pair: ContrastivePair,
    images: bool,
) -> Result<Box<dyn Session>> {
    load_forward(context, Vec::new(), |tape| {
        record_contrastive_features(tape, context.config, shape, pair, images)
    })
}

/// Changes an image [3, S, S] of numbers from −1 to 1.
pub type Change<'a> = &'a dyn Fn(&mut [f32]);

/// The kind of feature before any projection.
const POOLED: &str = "pooled";

/// Features of images and of their captions by the model's own projections, of unit length, both [N, E].
///
/// # Errors
/// Whatever recording, loading or the data report.
pub(super) fn projected_features(
    context: EvalContext<'_>,
    samples: &[Sample],
    shape: &BatchShape,
    pair: ContrastivePair,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let captions: Vec<String> = samples.iter().map(|s| s.caption.clone()).collect();
    let mut tower = load(context, shape, pair, true)?;
    let shown = ShownImages {
        samples,
        change: None,
    };
    let images = image_features(tower.as_mut(), &shown, context.tokenizer, shape, "feature")?;
    let mut tower = load(context, shape, pair, false)?;
    let texts = text_features(
        tower.as_mut(),
        &captions,
        context.tokenizer,
        shape,
        "feature",
    )?;
    Ok((images, texts))
}

/// Samples whose images are drawn, and perhaps changed then.
struct ShownImages<'a> {
    samples: &'a [Sample],
    change: Option<Change<'a>>,
}

/// Features of images [N, width].
fn image_features(
    session: &mut dyn Session,
    shown: &ShownImages<'_>,
    tokenizer: &ChatTokenizer,
    shape: &BatchShape,
    kind: &str,
) -> Result<Vec<f32>> {
    let inputs = BatchInputs::of(session.program(), &[])?;
    let mut features = Vec::new();
    for index in 0..batches(shown.samples.len(), shape) {
        let (mut batch, count) = batch_of(shown.samples, index, shape, tokenizer)?;
        if let Some(change) = shown.change {
            let image = 3 * shape.image_size * shape.image_size;
            for image in batch.images.chunks_exact_mut(image) {
                // Corruptions are defined on pixels, not on normalised values.
                shape.pixels.undo(image);
                change(image);
                shape.pixels.apply(image);
            }
        }
        inputs.write(session, &batch)?;
        session.run()?;
        let values = session.read_f32(&format!("image.{kind}"))?;
        features.extend(&values[..count * (values.len() / BATCH)]);
    }
    Ok(features)
}

/// Features of texts [N, width].
fn text_features(
    session: &mut dyn Session,
    texts: &[String],
    tokenizer: &ChatTokenizer,
    shape: &BatchShape,
    kind: &str,
) -> Result<Vec<f32>> {
    let inputs = ModelInput::of(session.program(), &[])?;
    let mut features = Vec::new();
    for part in texts.chunks(BATCH) {
        // Programs have a fixed batch; the last is filled up by repeating itself, and the repeats are cut off below.
        let filled: Vec<String> = part.iter().cycle().take(BATCH).cloned().collect();
        let batch = TextBatch::of(&filled, shape.caption_tokens, tokenizer)?;
        for input in &inputs {
            let name = input.name();
            match input {
                ModelInput::CaptionTokens => session.write_i32(name, &batch.tokens)?,
                // The text tower reads where a caption ends, the language model how much each token counts.
                ModelInput::CaptionEnd => session.write_i32(name, &batch.end)?,
                ModelInput::CaptionWeights => session.write_f32(name, &batch.weights)?,
                _ => return Err(unfed(name)),
            }
        }
        session.run()?;
        let values = session.read_f32(&format!("text.{kind}"))?;
        features.extend(&values[..part.len() * (values.len() / BATCH)]);
    }
    Ok(features)
}
