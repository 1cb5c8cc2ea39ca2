//! From samples to batches: which task gets which place, what is packed together, and how it becomes numbers.

pub mod assemble;
pub mod batch;
pub mod held_out;
pub mod identities;
pub mod image_slots;
pub mod mixture;
pub mod packing;
pub mod prefetch;
pub mod sample;
mod schedule;
pub mod source;
pub mod task;
pub mod user_samples;
