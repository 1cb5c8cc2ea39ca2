//! The vision tower: patches, positions, blocks. SAILViT/AIMv2 and the classic form differ only in switches.
//!
//! Sources: AIMv2 (Fini et al. 2024), ViT (Dosovitskiy et al. 2021), CLIP (Radford et al. 2021).

use super::block::{norm, vision_block};
use super::regularisation::{keep_tokens, kept_input, scales};
use super::{LearnedPositions, OUTPUT_LAYER, Regularisation, Scope, VisionConfig};
use keel_base::error::Result;
use keel_engine::ops::{self, Positions};
use keel_engine::tape::{Init, Tape, Value};

/// Records the tower. `images` f32 [B, 3, S, S] → features [B, T, C], the class token first where there is one,
/// then the registers.
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
    tower_layers(tape, (config, "vision"), images, regularisation)
}

/// As [`vision_layers`], of a tower whose parameters and values are named after `module`.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn tower_layers(
    tape: &mut Tape,
    (config, module): (&VisionConfig, &str),
    images: Value,
    regularisation: &Regularisation,
) -> Result<TowerFeatures> {
    let count = tape.shape(images).dims()[0];
    let scope = Scope::module(module);
    let mut x = tape.scoped(&scope.full("patch_embed"), |tape| {
        embedded(tape, &scope, config, images)
    })?;
    tape.name(x, scope.full("patches"));
    // After positions were added: a patch that stays knows where it was.
    if regularisation.patch_dropout > 0.0 {
        let kept = config.prefix_tokens() + regularisation.kept_patches(config.patches());
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
    let positions = Positions::CentredGrid {
        before: config.prefix_tokens(),
        height: config.grid(),
        width: config.grid(),
    };
    let mut layers = Vec::with_capacity(config.depth);
    for layer in 0..config.depth {
        let part = scope.child("blocks").child(layer);
        let dropped = scales(tape, count, layer, config.depth, regularisation);
        x = vision_block(tape, &part, x, &settings, positions, dropped)?;
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
        tape.name(x, scope.full("features"));
    }
    Ok(TowerFeatures { output: x, layers })
}

/// The tokens of the images [B, T, C] before the first block: patches, class token and registers, with the learned positions.
///
/// # Errors
/// Whatever recording reports.
fn embedded(tape: &mut Tape, scope: &Scope, config: &VisionConfig, images: Value) -> Result<Value> {
    let (width, patch) = (config.width, config.patch_size);
    let part = scope.child("patch_embed");
    let kernel = [width, 3 * patch * patch];
    let weight = part.matrix(tape, "weight", kernel, Init::XavierUniform)?;
    let bias = if config.patch_bias {
        Some(part.plain(tape, "bias", [width], Init::Constant(0.0))?)
    } else {
        None
    };
    let table = |tape: &mut Tape, name: &str, rows: usize| {
        let init = Init::Normal(0.02);
        let found = (rows > 0).then(|| scope.plain(tape, name, [rows, width], init));
        found.transpose()
    };
    let position = table(tape, "position", config.positions())?;
    // Nothing stands between patches and positions: the product adds them on its way out, which saves a pass over
    // all tokens.
    let is_direct = !config.patch_norm && config.positions() == config.patches();
    let direct = position.filter(|_| is_direct);
    let mut x = ops::patch_embed(tape, images, weight, bias, direct, patch)?;
    if config.patch_norm {
        let (kind, epsilon) = (config.norm, config.norm_epsilon);
        x = norm(tape, scope, "patch_norm", x, kind, epsilon)?;
    }
    let class_token = if config.class_token {
        Some(scope.plain(tape, "class_token", [width], Init::Normal(0.02))?)
    } else {
        None
    };
    let registers = table(tape, "registers", config.registers)?;
    let places = config.learned_positions;
    if let Some(registers) = registers.filter(|_| places == LearnedPositions::AllTokens) {
        x = ops::insert_tokens(tape, x, registers, 0)?;
    }
    // A class token without a position of its own comes last, before all others.
    let is_placed = matches!(
        places,
        LearnedPositions::AllTokens | LearnedPositions::ClassTokenAndPatches
    );
    if let Some(position) = position.filter(|_| !is_direct) {
        let placed = class_token.filter(|_| is_placed);
        x = ops::add_position(tape, x, position, placed)?;
    }
    if let Some(registers) = registers.filter(|_| places != LearnedPositions::AllTokens) {
        let before = usize::from(config.class_token && is_placed);
        x = ops::insert_tokens(tape, x, registers, before)?;
    }
    if let Some(class_token) = class_token.filter(|_| !is_placed) {
        let row = tape.reshape(class_token, [1, width])?;
        let row = ops::cast(tape, row, tape.ty(x).dtype)?;
        x = ops::insert_tokens(tape, x, row, 0)?;
    }
    Ok(x)
}

/// The patch tokens [B, Tp, C] of a tower's output [B, T, C]: all but those before
/// them.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn patch_tokens(
    tape: &mut Tape,
    config: &VisionConfig,
    features: Value,
) -> Result<Value> {
    match config.prefix_tokens() {
        0 => Ok(features),
        before => ops::drop_tokens(tape, features, before),
    }
}
