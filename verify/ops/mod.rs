//! The cases of every op, one file an op.

mod adamw;
mod attention;
mod basic;
mod cast;
mod contrastive_loss;
mod embedding;
mod l2_normalize;
mod layer_scale;
mod linear;
mod linear_cross_entropy;
mod norm;
mod patch_embed;
mod pixel_unshuffle;
mod pooling;
mod position;
mod qk_norm;
mod rope;
mod swiglu;
mod weighted_sum;
