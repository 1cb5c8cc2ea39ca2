//! The patch embedding of a vision transformer: a convolution whose stride is its kernel size, as one product.
//!
//! Shapes: images [B, Ci, h, w] (Ci colours, three for images), weight [C, Ci·P·P] flattened as (colour, row, column),
//! bias [C], position [T, C], y [B, T, C] with T = ⌊h/P⌋·⌊w/P⌋ patches in row-major order. What is left over at the right
//! and at the bottom is ignored, as a valid convolution does.
//!
//! Images are f32 in every program, as are the gradients of weight, bias and position; y is of the weight's type.
//!
//! Forward: y[b, t] = weight · patch(b, t) + bias + position[t] (Dosovitskiy et al. 2021, eq. 1). Backward:
//! dweight = Σ over b, t of dy[b, t] ⊗ patch(b, t), dbias = Σ over b, t of dy, dposition = Σ over b of dy; the images'
//! gradient weightᵀ · dy[b, t] only where it is asked for. Saved: nothing but the images and the weight.
//!
//! Work: 2·B·T·C·Ci·P·P flops each for forward and weight gradient. Patches are laid out as rows [B·T, Ci·P·P] in the
//! workspace, next to the product that reads them.

mod backward;
mod forward;
mod patches;

use crate::tape::{Tape, Value};
use keel_base::error::Result;

use forward::PatchEmbed;

/// y [B, T, C] = patches of images [B, 3, h, w] times weight [C, 3·P·P], plus bias `[C]` and position [T, C].
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit or the images are smaller than a patch.
pub fn patch_embed(
    tape: &mut Tape,
    images: Value,
    weight: Value,
    bias: Option<Value>,
    position: Option<Value>,
    patch: usize,
) -> Result<Value> {
    let op = PatchEmbed {
        patch,
        has_bias: bias.is_some(),
        has_position: position.is_some(),
    };
    let inputs: Vec<Value> = [Some(images), Some(weight), bias, position]
        .into_iter()
        .flatten()
        .collect();
    tape.record_one(op, &inputs)
}
