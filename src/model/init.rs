//! The parameters of a model before training: which there are, and their first values.

use std::sync::Arc;

use super::vlm_losses::{ContrastivePair, Objectives, record_objectives};
use super::{Distillation, ModelConfig, Regularisation};
use keel_base::error::Result;
use keel_base::random::Stream;
use keel_data::batch::BatchShape;
use keel_data::pixels::Pixels;
use keel_data::tiles::Tiling;
use keel_engine::ops::Contrastive;
use keel_engine::tape::{Init, ParameterLayout, ParameterSpec, Tape};

/// Declares every parameter of the model and lays them out. Nothing is allocated.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] when the settings are impossible.
pub fn declare(config: &ModelConfig, kind: Contrastive) -> Result<Arc<ParameterLayout>> {
    config.validate()?;
    let mut tape = Tape::declaring();
    // Parameters do not depend on batch or lengths: the smallest shapes do, except for the text tower, whose table of
    // positions has its context length.
    let caption_tokens = config.text.as_ref().map_or(8, |text| text.context_length);
    let shape = BatchShape {
        batch: 1,
        image_size: config.vision.image_size,
        image_tokens: config.image_tokens(),
        tokens: config.image_tokens(),
        pack: 1,
        tiling: Tiling::NONE,
        caption_tokens,
        image_id: 0,
        pixels: Pixels::default(),
    };
    let mut objectives = Objectives {
        next_token: 1.0,
        splices_images: true,
        contrastive: 1.0,
        kind,
        pair: ContrastivePair::LanguageModel,
        holds_text_alone: false,
        regularisation: Regularisation::default(),
        distillation: Distillation {
            weight: if config.teacher.is_some() { 1.0 } else { 0.0 },
            ..Distillation::default()
        },
    };
    // Recorded as a step would be, on a tape that only declares: parameters are listed nowhere else, so the list cannot
    // disagree.
    record_objectives(&mut tape, config, &objectives, &shape)?;
    if config.text.is_some() {
        let mut towers = Tape::declaring();
        objectives.distillation = Distillation::default();
        objectives.next_token = 0.0;
        objectives.splices_images = false;
        objectives.pair = ContrastivePair::TextTower;
        record_objectives(&mut towers, config, &objectives, &shape)?;
        let known = tape.specs();
        let mut specs = towers.specs();
        specs.retain(|spec| known.iter().all(|k| k.name != spec.name));
        return Ok(Arc::new(ParameterLayout::new(&[known, specs].concat())));
    }
    Ok(Arc::new(ParameterLayout::new(&tape.specs())))
}

/// First values of all parameters in arena order, from a seed. Each parameter has its own stream, named by its name, so
/// that adding one leaves the others as they are.
pub fn initialise(layout: &ParameterLayout, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; layout.elements()];
    for entry in layout.entries() {
        let count = entry.spec.shape.numel();
        let place = &mut values[entry.offset..entry.offset + count];
        initialise_one(&entry.spec, seed, place);
    }
    values
}

/// First values of one parameter. See [`initialise`].
pub fn initialise_one(spec: &ParameterSpec, seed: u64, place: &mut [f32]) {
    // A stream for each parameter, keyed by its name: a layer added elsewhere moves no other's first values.
    let mut key = [0u8; 32];
    key.copy_from_slice(blake3::hash(format!("{seed}/{}", spec.name).as_bytes()).as_bytes());
    let mut stream = Stream::of_key(key);
    match spec.init {
        Init::Constant(value) => place.fill(value),
        Init::Normal(std) => {
            for value in place {
                *value = (stream.normal() * f64::from(std)) as f32;
            }
        }
        Init::XavierUniform => {
            let (rows, columns) = (spec.shape.rows() as f64, spec.shape.columns() as f64);
            let limit = (6.0 / (rows + columns)).sqrt();
            for value in place {
                *value = ((2.0 * stream.uniform() - 1.0) * limit) as f32;
            }
        }
    }
}
