//! What a model is evaluated on, whoever's samples they are.

pub mod batches;
pub mod blind_baseline;
pub mod eval_set;
