//! The cases of every op, one file an op.

mod adamw;
mod attention;
mod basic;
mod cast;
mod collective;
mod contrast_over_ranks;
mod contrastive_loss;
mod ema;
mod embedding;
mod l2_normalize;
mod layer_scale;
mod linear;
mod linear_cross_entropy;
mod muon;
mod norm;
mod patch_embed;
mod pixel_unshuffle;
mod pooling;
mod position;
mod qk_norm;
mod rope;
mod sharded_update;
mod swiglu;
mod tree_accumulate;
mod tree_sum;
mod weighted_sum;
