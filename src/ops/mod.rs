//! Ops: one file or folder each, with shape rule, meaning, kernels, derivative and cost.
//!
//! A model calls the record functions; the ops behind them stay private. What several ops share lies in `shapes` (the
//! questions of the shape rules) and `special` (functions in double precision).

mod attention;
mod layer_scale;
mod linear;
mod norm;
mod patch_embed;
mod position;
mod shapes;
mod special;
mod swiglu;
mod weighted_sum;

pub use attention::{Heads, Mask, attention, cross_attention};
pub use layer_scale::layer_scale;
pub use linear::{Activation, linear, linear_activation, linear_residual};
pub use norm::{layer_norm, layer_norm_residual, rms_norm, rms_norm_residual};
pub use patch_embed::patch_embed;
pub use position::{add_position, drop_tokens};
pub use swiglu::swiglu;
pub use weighted_sum::weighted_sum;
