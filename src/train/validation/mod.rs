//! Validation on held-out samples inside a stage: what it takes, what it measures, which of its results was the best, and when
//! there have been enough. Nothing here writes a parameter or the optimiser's state.

mod held_out;
mod history;
mod measures;
mod plan;
mod validator;

pub use held_out::{HeldOutInputs, HeldOutPairs};
pub use history::ValidationHistory;
pub use measures::{GeneratedAnswer, ValidationMeasures};
pub use plan::ValidationPlan;
pub(super) use validator::Validator;
