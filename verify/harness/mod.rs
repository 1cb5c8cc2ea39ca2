//! What every verification shares: cases, the error budget, the gradient check and seeded random inputs.

mod budget;
mod case;
pub mod golden;
mod gradcheck;
mod random;

pub use budget::{Budget, derive_budget};
pub use case::{Case, Data, Returned, aux, check, out};
pub use random::Random;
