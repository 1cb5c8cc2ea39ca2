//! Reports as pages: one HTML file that loads nothing, for one run or for several side by side.

mod chart;
mod comparison;
mod html;
mod layers;
mod qualitative;
mod record;
mod results;
mod run;
mod validation;

pub use comparison::comparison_page;
pub use record::RunRecord;
pub use run::run_page;
