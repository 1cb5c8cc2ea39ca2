//! The vision tower: patches, positions, blocks. SAILViT/AIMv2 and the classic form differ only in switches.
//!
//! Sources: AIMv2 (Fini et al. 2024), ViT (Dosovitskiy et al. 2021), CLIP (Radford et al. 2021).

use super::block::{norm, vision_block};
use super::regularisation::{keep_tokens, kept_input, scales};
use super::{OUTPUT_LAYER, Regularisation, Scope, VisionConfig};
use keel_base::error::Result;
use keel_engine::ops;
use keel_engine::tape::{Init, Tape, Value};

/// Records the tower. `images` f32 [B, 3, S, S] → features [B, T, C], the class token first where there is one.
///
/// Named values: `vision.patches`, `vision.blocks.<l>` and, where there is a final norm, `vision.features`.
///
/// # Errors
/// Whatever recording reports.
pub fn vision_tower(tape: &mut Tape, config: &VisionConfig, images: Value) -> Result<Value> {
    Ok(vision_layers(tape, config, images, &Regularisation::default())?.output)
}

/// What a tower makes of images, layer by layer.
#[derive(Clone, Debug)]
pub struct TowerFeatures {
    /// The tower's output [B, T, C], through its final norm where it has one.
    pub output: Value,
    /// The output of each block [B, T, C].
    pub layers: Vec<Value>,
}

impl TowerFeatures {
    /// The features of a layer as [`ConnectorConfig::select_layer`](super::ConnectorConfig) counts them: −1 for the output, −2 for the block
    /// before the last.
    ///
    /// # Panics
    /// When the tower has no such layer, which the settings' check refuses.
    pub fn selected(&self, layer: i64) -> Value {
        if layer == OUTPUT_LAYER {
            return self.output;
        }
        let place = self.layers.len() as i64 + layer;
        self.layers[usize::try_from(place).expect("the settings were checked")]
    }
}

/// As [`vision_tower`], with the features of every block, and with what a step leaves out at random. Patch dropout leaves
/// features [B, K, C] of K tokens, the class token first where there is one.
///
/// Inputs: [`ModelInput::KeptPatches`](super::ModelInput::KeptPatches) and [`Regularisation::scale_input`], as far as anything
/// is left out.
///
/// # Errors
/// Whatever recording reports.
pub fn vision_layers(
    tape: &mut Tape,
    config: &VisionConfig,
    images: Value,
    regularisation: &Regularisation,
) -> Result<TowerFeatures> {
    let count = tape.shape(images).dims()[0];
    let scope = Scope::module("vision");
    let (width, patch) = (config.width, config.patch_size);
    let mut x = tape.scoped("vision.patch_embed", |tape| {
        let part = scope.child("patch_embed");
        let kernel = [width, 3 * patch * patch];
        let weight = part.matrix(tape, "weight", kernel, Init::XavierUniform)?;
        let bias = if config.patch_bias {
            Some(part.plain(tape, "bias", [width], Init::Constant(0.0))?)
        } else {
            None
        };
        let tokens = config.patches() + usize::from(config.class_token);
        let position = scope.plain(tape, "position", [tokens, width], Init::Normal(0.02))?;
        // Nothing stands between patches and positions: the product adds them on its way out, which saves a pass over
        // all tokens.
        if !config.patch_norm && !config.class_token {
            return ops::patch_embed(tape, images, weight, bias, Some(position), patch);
        }
        let mut x = ops::patch_embed(tape, images, weight, bias, None, patch)?;
        if config.patch_norm {
            x = norm(
                tape,
                &scope,
                "patch_norm",
                x,
                config.norm,
                config.norm_epsilon,
            )?;
        }
        let class_token = if config.class_token {
            Some(scope.plain(tape, "class_token", [width], Init::Normal(0.02))?)
        } else {
            None
        };
        ops::add_position(tape, x, position, class_token)
    })?;
    tape.name(x, "vision.patches");
    // After positions were added: a patch that stays knows where it was.
    if regularisation.patch_dropout > 0.0 {
        let class = usize::from(config.class_token);
        let kept = class + regularisation.kept_patches(config.patches());
        let kept = kept_input(tape, count, kept);
        x = keep_tokens(tape, x, kept)?;
    }
    if config.pre_norm {
        x = norm(
            tape,
            &scope,
            "pre_norm",
            x,
            config.norm,
            config.norm_epsilon,
        )?;
    }
    let settings = config.block();
    let mut layers = Vec::with_capacity(config.depth);
    for layer in 0..config.depth {
        let part = scope.child("blocks").child(layer);
        let dropped = scales(tape, count, layer, config.depth, regularisation);
        x = vision_block(tape, &part, x, &settings, dropped)?;
        tape.name(x, part.path());
        layers.push(x);
    }
    if config.final_norm {
        x = norm(
            tape,
            &scope,
            "final_norm",
            x,
            config.norm,
            config.norm_epsilon,
        )?;
        tape.name(x, "vision.features");
    }
    Ok(TowerFeatures { output: x, layers })
}

/// The patch tokens [B, Tp, C] of a tower's output [B, T, C]: all but the class token.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn patch_tokens(
    tape: &mut Tape,
    config: &VisionConfig,
    features: Value,
) -> Result<Value> {
    if config.class_token {
        ops::drop_tokens(tape, features, 1)
    } else {
        Ok(features)
    }
}
