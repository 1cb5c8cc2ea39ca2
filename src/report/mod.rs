//! What a run leaves for people to read.

mod table;

pub use table::stage_table;
