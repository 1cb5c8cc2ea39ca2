//! Features of the vision tower: tokens and their means, after every block.

use super::{BATCH, Measurer};
use crate::context::{EvalContext, load_forward};
use crate::{linear_cka, normalise_rows};
use keel_base::error::Result;
use keel_data::batches::{batch_of, batches};
use keel_data::sample::Sample;
use keel_engine::executor::Session;
use keel_engine::tensor::TensorType;
use keel_model::{ModelInput, Regularisation, VisionHead, connector, vision_head, vision_layers};

/// What a pass over images is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The patch tokens of the tower's output.
    pub tokens: bool,
    /// The tower's own pooled output, where it has one.
    pub pooled: bool,
    /// The mean token after every block.
    pub layers: bool,
    /// The tokens after the connector.
    pub connected: bool,
}

/// Features of N images.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    /// Mean patch token of the tower's output [N, C].
    pub means: Vec<f32>,
    /// The tower's own pooled output [N, C], where it was asked for and there is one.
    pub pooled: Vec<f32>,
    /// Patch tokens of the tower's output [N, T, C].
    pub tokens: Vec<f32>,
    /// Mean patch token after each block, [L][N, C].
    pub layers: Vec<Vec<f32>>,
    /// Tokens after the connector [N, Ti, D].
    pub connected: Vec<f32>,
}

/// Mean tokens after every block, of the same images for any checkpoint.
#[derive(Clone, Debug)]
pub struct LayerFeatures {
    /// Images N.
    pub images: usize,
    width: usize,
    /// [L][N, C]
    layers: Vec<Vec<f32>>,
}

impl LayerFeatures {
    /// Linear CKA of every layer with every layer of `other`.
    pub fn against(&self, other: &LayerFeatures) -> Vec<Vec<f64>> {
        let of = |x: &Vec<f32>, y: &Vec<f32>| linear_cka(x, self.width, y, other.width);
        self.layers
            .iter()
            .map(|x| other.layers.iter().map(|y| of(x, y)).collect())
            .collect()
    }

    /// Linear CKA of every layer with the same layer of `other`.
    pub fn layer_by_layer(&self, other: &LayerFeatures) -> Vec<f64> {
        self.layers
            .iter()
            .zip(&other.layers)
            .map(|(x, y)| linear_cka(x, self.width, y, other.width))
            .collect()
    }
}

/// The mean of the patch tokens of each image of `tokens` [N, T, C], less `skip` tokens at the front of each.
pub(super) fn means(tokens: &[f32], count: usize, width: usize, skip: usize) -> Vec<f32> {
    let one = tokens.len() / count;
    let patches = (one / width - skip) as f64;
    tokens
        .chunks_exact(one)
        .flat_map(|image| {
            (0..width).map(move |channel| {
                let values = image[skip * width..].iter().skip(channel).step_by(width);
                (values.map(|x| f64::from(*x)).sum::<f64>() / patches) as f32
            })
        })
        .collect()
}

/// Loads the program that makes features of `batch` images.
pub(super) fn feature_session(
    context: EvalContext<'_>,
    wanted: Wanted,
    batch: usize,
) -> Result<Box<dyn Session>> {
    let config = context.config;
    let side = config.vision.image_size;
    let blocks = 0..if wanted.layers {
        config.vision.depth
    } else {
        0
    };
    let keep = blocks.map(|layer| format!("vision.blocks.{layer}"));
    load_forward(context, keep.collect(), |tape| {
        let images = tape.input(ModelInput::Images, TensorType::f32([batch, 3, side, side]));
        let nothing = Regularisation::default();
        let layers = vision_layers(tape, &config.vision, images, &nothing)?;
        let features = layers.output;
        tape.output(features, "tower");
        if let Some(head) = context.head.filter(|_| wanted.pooled) {
            let pooled = vision_head(tape, &config.vision, head, features)?;
            tape.output(pooled, "pooled");
        }
        if wanted.connected {
            let selected = layers.selected(config.connector.select_layer);
            let tokens = connector(tape, config, selected)?;
            tape.output(tokens, "connected");
        }
        Ok(())
    })
}

impl Measurer<'_> {
    /// Features of `samples`' images.
    pub(super) fn features(&self, samples: &[Sample], wanted: Wanted) -> Result<Features> {
        let config = self.context.config;
        let shape = self.batch_shape();
        let mut session = feature_session(self.context, wanted, BATCH)?;
        let head = self.context.head.filter(|_| wanted.pooled);
        if head == Some(VisionHead::ClassToken) {
            session.write_i32(ModelInput::ClassToken.name(), &[0; BATCH])?;
        }
        let width = config.vision.width;
        let skip = config.vision.prefix_tokens();
        let mut all = Features {
            layers: vec![
                Vec::new();
                if wanted.layers {
                    config.vision.depth
                } else {
                    0
                }
            ],
            ..Features::default()
        };
        for index in 0..batches(samples.len(), &shape) {
            let (batch, count) = batch_of(samples, index, &shape, self.context.tokenizer)?;
            session.write_f32(ModelInput::Images.name(), &batch.images)?;
            session.run()?;
            // Rows beyond `count` repeat samples to fill the batch.
            let first = |values: Vec<f32>| -> Vec<f32> {
                let one = values.len() / BATCH;
                values[..count * one].to_vec()
            };
            let tower = first(session.read_f32("tower")?);
            all.means.extend(means(&tower, count, width, skip));
            if head.is_some() {
                all.pooled.extend(first(session.read_f32("pooled")?));
            }
            if wanted.tokens {
                let one = tower.len() / count;
                for image in tower.chunks_exact(one) {
                    all.tokens.extend_from_slice(&image[skip * width..]);
                }
            }
            for (layer, means_of) in all.layers.iter_mut().enumerate() {
                let tokens = first(session.read_f32(&format!("vision.blocks.{layer}"))?);
                means_of.extend(means(&tokens, count, width, skip));
            }
            if wanted.connected {
                all.connected.extend(first(session.read_f32("connected")?));
            }
        }
        Ok(all)
    }

    /// Patch tokens after each block [L][N, T, C] of a few images, at most a batch of them.
    pub(super) fn layer_tokens(&self, samples: &[Sample]) -> Result<Vec<Vec<f32>>> {
        let config = &self.context.config.vision;
        let shape = self.batch_shape();
        let wanted = Wanted {
            layers: true,
            ..Wanted::default()
        };
        let mut session = feature_session(self.context, wanted, BATCH)?;
        let (batch, count) = batch_of(samples, 0, &shape, self.context.tokenizer)?;
        session.write_f32(ModelInput::Images.name(), &batch.images)?;
        session.run()?;
        let skip = config.prefix_tokens() * config.width;
        let mut layers = Vec::with_capacity(config.depth);
        for layer in 0..config.depth {
            let tokens = session.read_f32(&format!("vision.blocks.{layer}"))?;
            let images = tokens.chunks_exact(tokens.len() / BATCH).take(count);
            layers.push(images.flat_map(|image| &image[skip..]).copied().collect());
        }
        Ok(layers)
    }

    /// Mean tokens of every layer for the images that layers are compared on.
    ///
    /// # Errors
    /// Whatever recording, loading or the data report.
    pub fn layer_features(&self) -> Result<LayerFeatures> {
        let samples = self.suite.shown().captioned(self.settings.images);
        let wanted = Wanted {
            layers: true,
            ..Wanted::default()
        };
        Ok(LayerFeatures {
            images: samples.len(),
            width: self.context.config.vision.width,
            layers: self.features(&samples, wanted)?.layers,
        })
    }
}

/// `rows` of unit length.
pub(super) fn unit(mut rows: Vec<f32>, width: usize) -> Vec<f32> {
    normalise_rows(&mut rows, width);
    rows
}
