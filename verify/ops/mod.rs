//! The cases of every op, one file an op.

mod attention;
mod basic;
mod layer_scale;
mod linear;
mod norm;
mod patch_embed;
mod position;
mod swiglu;
mod weighted_sum;
