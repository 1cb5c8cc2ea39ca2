//! What every verification shares: cases, the error budget, the gradient check and seeded random inputs.

mod budget;
mod case;
mod golden;
mod gradcheck;
mod random;

pub use budget::{Budget, DRAWS, derive_budget, moved};
pub use case::{Case, aux, check, check_golden, on_every_executor, out};
pub use golden::Golden;
pub use random::Random;
