//! What training leaves out of a vision tower at random: residual branches of an image (drop path) and patches of all images.
//! Which, the host draws and writes; a program that does not train leaves out nothing.
//!
//! Both are recorded with ops that are there. A branch is scaled image by image by a weighted sum over one token as long as the
//! image; patches are rows of a table, looked up by their numbers.

use super::ModelInput;
use keel_base::error::Result;
use keel_engine::ops;
use keel_engine::tape::{Add, Tape, Value};
use keel_engine::tensor::{DType, TensorType};

/// What a step leaves out of the vision tower.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regularisation {
    /// The share of images for which the branches of the last block are dropped; 0 drops none. It rises linearly from 0 in the
    /// first block (stochastic depth: Huang et al. 2016, §3; as in timm, DINOv2 and InternViT).
    pub drop_path_rate: f64,
    /// The share of patches that is left out of every image (Li et al. 2023, FLIP); 0 leaves out none.
    pub patch_dropout: f64,
}

impl Regularisation {
    /// The share of images for which branches of block `layer` of `depth` are dropped.
    pub fn drop_path_of(&self, layer: usize, depth: usize) -> f64 {
        if depth < 2 {
            return self.drop_path_rate;
        }
        self.drop_path_rate * layer as f64 / (depth - 1) as f64
    }

    /// The blocks, of `depth`, that drop branches: each has two.
    pub fn dropping(&self, depth: usize) -> Vec<usize> {
        let all = 0..depth;
        all.filter(|layer| self.drop_path_of(*layer, depth) > 0.0)
            .collect()
    }

    /// How many of `patches` patches stay; at least one.
    pub fn kept_patches(&self, patches: usize) -> usize {
        // Rounded down, as open_clip does; shares such as 0.3 are not binary, and must not lose a patch to that.
        let kept = (patches as f64 * (1.0 - self.patch_dropout) + 1e-9).floor() as usize;
        kept.clamp(1, patches)
    }

    /// The input that scales a branch of block `layer`, f32 [images, 1]: 0 where it is dropped, 1 / (1 − rate) where not.
    pub fn scale_input(layer: usize, branch: usize) -> String {
        format!("{DROP_PATH}{layer}.{branch}")
    }
}

/// How the names of these inputs begin.
pub const DROP_PATH: &str = "drop_path.";

/// The scales of both branches of a block, where it drops any.
pub(super) fn scales(
    tape: &mut Tape,
    images: usize,
    layer: usize,
    depth: usize,
    regularisation: &Regularisation,
) -> Option<[Value; 2]> {
    (regularisation.drop_path_of(layer, depth) > 0.0).then(|| {
        [0, 1].map(|branch| {
            let name = Regularisation::scale_input(layer, branch);
            tape.input(name, TensorType::f32([images, 1]))
        })
    })
}

/// residual + scale ⊙ branch, image by image. `residual` and `branch` [B, T, C], `scale` f32 [B, 1].
///
/// # Errors
/// Whatever recording reports.
pub fn drop_path(tape: &mut Tape, residual: Value, branch: Value, scale: Value) -> Result<Value> {
    let shape = tape.shape(branch);
    let images = tape.shape(scale).dims()[0];
    let whole = tape.reshape(branch, [images, 1, shape.numel() / images])?;
    let scaled = ops::mean_pool(tape, whole, Some(scale))?;
    let scaled = tape.reshape(scaled, shape)?;
    tape.record_one(Add, &[residual, scaled])
}

/// Some of the tokens of each image: those whose numbers among all tokens of the batch `kept` i32 [B, K] says. `x` [B, T, C] → [B, K, C].
///
/// # Errors
/// Whatever recording reports.
pub fn keep_tokens(tape: &mut Tape, x: Value, kept: Value) -> Result<Value> {
    let (ty, shape) = (tape.ty(x), tape.shape(x));
    // A table's gradient is f32, and so has to be the table.
    let x = match ty.dtype {
        DType::F32 => x,
        _ => ops::cast(tape, x, DType::F32)?,
    };
    let table = tape.reshape(x, [shape.rows(), shape.columns()])?;
    let rows = ops::embedding(tape, table, kept)?;
    match ty.dtype {
        DType::F32 => Ok(rows),
        dtype => ops::cast(tape, rows, dtype),
    }
}

/// The input [`keep_tokens`] reads in a step of `images` images of a tower with `tokens` of them each, `kept` of which stay.
pub(super) fn kept_input(tape: &mut Tape, images: usize, kept: usize) -> Value {
    tape.input(ModelInput::KeptPatches, TensorType::i32([images, kept]))
}
