//! What people read: a run's tables and pages, a sheet of images, what is known of the kernels.
#![deny(unsafe_code)]

mod ablation;
mod benchmark;
mod measurements;
mod page;
mod profile;
mod refinement;
mod sheet;
pub mod table;
mod validation;

pub use ablation::{ablation_table, power_table};
pub use benchmark::{benchmark_table, comparison_text};
pub use measurements::measurement_tables;
pub use page::{RunRecord, comparison_page, run_page};
pub use profile::{profile_drawing, profile_table, profile_trace};
pub use refinement::refinement_lines;
pub use sheet::contact_sheet;
pub use table::stage_table;
pub use validation::validation_table;
