//! Ops: one file or folder each, with shape rule, meaning, kernels, derivative and cost.
//!
//! A model calls the record functions; the ops behind them stay private. What several ops share lies in `shapes` (the
//! questions of the shape rules), `special` (functions in double precision) and `rows` (work row by row on the
//! processor).

mod adamw;
mod add_columns;
mod attention;
mod cast;
mod collective;
mod contrastive_loss;
mod ema;
mod embedding;
mod grad_norm;
mod gram;
mod insert_tokens;
mod l2_normalize;
mod layer_scale;
mod linear;
mod linear_cross_entropy;
mod muon;
mod norm;
mod parameter_groups;
mod patch_embed;
mod pixel_unshuffle;
mod pooling;
mod position;
mod qk_norm;
mod rope;
mod rows;
mod shapes;
mod sharded_gradients;
mod sharded_masters;
mod sharded_update;
mod special;
mod splice;
mod squared_error;
mod swiglu;
mod tree_accumulate;
mod tree_sum;
mod weighted_sum;

pub use adamw::{
    ADAMW_STATE, MASTER_STATE, OPTIMIZER_SCALARS, OPTIMIZER_STATE, OptimizerInput, StepSettings,
    UpdateOptions, record_update,
};
pub use add_columns::add_columns;
pub use attention::{Heads, Mask, attention, cross_attention, next_attention};
pub use cast::cast;
pub use collective::{all_gather, exchange};
pub use contrastive_loss::{
    Contrastive, ContrastiveMask, RankPairs, contrastive_loss, contrastive_loss_in_row_blocks,
    contrastive_loss_over_ranks,
};
pub use ema::EMA_STATE;
pub use embedding::embedding;
pub use gram::gram;
pub use insert_tokens::insert_tokens;
pub use l2_normalize::l2_normalize;
pub use linear::{
    Activation, activation, linear, linear_activation, linear_layer_scale, linear_residual,
};
pub use linear_cross_entropy::{linear_argmax, linear_cross_entropy};
pub use muon::orthogonalize;
pub use norm::{layer_norm, layer_norm_residual, rms_norm, rms_norm_residual};
pub use parameter_groups::{Optimizer, ParameterGroup, ParameterGroups};
pub use patch_embed::patch_embed;
pub use pixel_unshuffle::pixel_unshuffle;
pub use pooling::{mean_pool, select_token};
pub use position::{add_position, drop_tokens};
pub use qk_norm::qk_norm;
pub use rope::{Positions, rope};
pub use sharded_masters::record_whole_masters;
pub use special::dot;
pub use splice::{splice, splice_into_cache};
pub use squared_error::squared_error;
pub use swiglu::swiglu;
pub use tree_accumulate::{MICRO_BATCH_INDEX, tree_accumulate};
pub use tree_sum::tree_sum;
pub use weighted_sum::weighted_sum;
