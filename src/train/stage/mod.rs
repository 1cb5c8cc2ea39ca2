//! One stage under way: its batches, its steps, and what happens between them.

mod feed;
mod rank_batch;
mod stage_loop;
mod validation;

pub(super) use rank_batch::MicroWeight;
pub(super) use stage_loop::{StageLoop, run_micro_batch, write_micro_batch};
