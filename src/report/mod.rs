//! What a run leaves for people to read.

mod sheet;
mod table;

pub use sheet::contact_sheet;
pub use table::stage_table;
