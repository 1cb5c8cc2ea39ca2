//! Where every value lies before the first step: lifetimes in, offsets out, with the proof of how good they are.
//!
//! Works on abstract buffers; what a tape's values are and how long they live is decided by the caller.

mod bound;
mod buffer;
mod check;
mod greedy;
mod place;
mod sections;

pub use bound::{Bound, lower_bound};
pub use buffer::{Buffer, Placement, read_table, validate, write_table};
pub use check::check_placement;
pub use place::{Packing, place};
