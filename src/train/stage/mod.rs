//! One stage under way: its batches, its steps, and what happens between them.

mod feed;
mod left_out;
mod rank_batch;
mod stage_loop;
mod validation;

pub use left_out::LeftOut;
pub(super) use left_out::is_left_out;
pub(super) use rank_batch::MicroWeight;
pub(super) use stage_loop::{StageLoop, run_micro_batch, write_micro_batch};
