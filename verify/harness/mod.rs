//! What every verification shares: cases, the error budget, the gradient check and seeded random inputs.

mod budget;
mod case;
mod executors;
pub mod expected;
mod golden;
mod gpu;
mod gradcheck;
pub mod ptx;
mod random;
mod ranks;

use keel::error::Result;
use keel::launch::Launch;
use keel::tape::{Tape, Target};

pub use budget::{Budget, DRAWS, derive_budget, moved};
pub use case::{
    Case, aux, check, check_exact_on_gpu, check_golden, check_on_gpu, check_on_hopper, out,
};
pub use executors::on_every_executor;
pub use golden::{Golden, goldens};
pub use gpu::{Gpu, gpu, images};
pub use random::Random;
pub use ranks::{RankOn, on_ranks};

/// The launches of the op that was recorded last.
pub fn last_launches(tape: &Tape) -> Result<Vec<Launch>> {
    let step = tape.instructions().last().expect("an op was recorded");
    let [inputs, outputs] = step.types(tape.values());
    step.op.launches(&inputs, &outputs, Target::Cuda.into())
}
