//! What an executor takes for each op of the examples: the median over runs of the time between the op's beginning and
//! end, which a GPU's executor takes from events on the device.
//!
//! An example's backward runs between two runs of its forward, so at the large shapes nothing is left in the caches of a
//! GPU when an op begins: each touches more than they hold.

use std::sync::Arc;

use super::roofline::{Recorded, record_all, works_of};
use super::{Size, Work};
use keel_base::error::{Error, Result, with_near_miss};
use keel_engine::executor::{SelectedDevice, Session};
use keel_engine::ops::{OptimizerInput, ParameterGroups, StepSettings};
use keel_engine::program::{CompileOptions, Program};
use keel_engine::tape::Tape;
use keel_engine::tensor::DType;

/// Runs before any is counted.
const WARM_UP: usize = 2;

/// An op and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// The op.
    pub work: Work,
    /// Seconds of each run, ascending.
    pub seconds: Vec<f64>,
}

/// What came of an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// One of its ops ran.
    Timed(Timed),
    /// The device has no kernels for it, or not enough memory.
    Refused {
        /// The example's op.
        example: &'static str,
        /// Its shape.
        shape: String,
        /// What the executor said.
        reason: String,
    },
}

impl Timed {
    /// The middle run's seconds.
    pub fn median_seconds(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }
}

/// Which examples are run, and which of their ops are reported.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// How large they are.
    pub size: Size,
    /// Only the examples of this op, `update` for the update. A fault of a GPU ends every later use of it in the process, so
    /// whoever wants the others all the same runs each in one of its own.
    pub example: Option<&'a str>,
    /// Only ops with this in their names, or in one of their kernels'.
    pub name: &'a str,
}

/// Runs the chosen examples `repeats` times each on the device and reports their ops. An example that the device refuses is
/// reported too, and the others still run.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] for an example that there is none of; whatever recording, planning or `report`
/// reports.
pub fn time(
    selected: &SelectedDevice,
    choice: Choice<'_>,
    repeats: usize,
    report: &mut dyn FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let compile_target = selected.compile_target();
    let Choice {
        size,
        example,
        name,
    } = choice;
    let mut all = record_all(size, compile_target.precision)?;
    if let Some(example) = example {
        let known: Vec<&str> = all.iter().map(|recorded| recorded.example).collect();
        if !known.contains(&example) {
            let want = format!("one of {}", known.join(", "));
            return Err(Error::setting(
                "--example",
                want,
                with_near_miss(example, &known),
            ));
        }
        all.retain(|recorded| recorded.example == example);
    }
    for mut recorded in all {
        let tape = std::mem::replace(&mut recorded.tape, Tape::declaring());
        let program = Program::compile(tape, &CompileOptions::new(compile_target))?;
        let works = works_of(&recorded, &program);
        let is_wanted =
            |work: &Work| work.op.contains(name) || work.kernels.iter().any(|k| k.contains(name));
        if !works.iter().flatten().any(is_wanted) {
            continue;
        }
        let seconds = match run(selected, &recorded, program, size, repeats) {
            Ok(seconds) => seconds,
            Err(problem) => {
                report(Outcome::Refused {
                    example: recorded.example,
                    shape: recorded.shape,
                    reason: problem.to_string(),
                })?;
                continue;
            }
        };
        for (work, mut seconds) in works.into_iter().zip(seconds) {
            let Some(work) = work.filter(is_wanted) else {
                continue;
            };
            seconds.sort_by(f64::total_cmp);
            report(Outcome::Timed(Timed { work, seconds }))?;
        }
    }
    Ok(())
}

/// Seconds of each op of the program, run by run.
fn run(
    selected: &SelectedDevice,
    recorded: &Recorded,
    program: Program,
    size: Size,
    repeats: usize,
) -> Result<Vec<Vec<f64>>> {
    let steps = program.ops().len();
    let executor = selected.open(recorded.elements)?;
    let mut session = executor.load(Arc::new(program))?;
    fill(session.as_mut(), size.vocabulary())?;
    let mut all = vec![Vec::with_capacity(repeats); steps];
    // Rounds of the whole example and not of each op: between two runs of an op all the others run, so none finds its
    // operands in cache.
    for round in 0..WARM_UP + repeats {
        let mut seconds = vec![0.0; steps];
        session.run_timed(&mut seconds)?;
        if round >= WARM_UP {
            for (all, seconds) in all.iter_mut().zip(seconds) {
                all.push(seconds);
            }
        }
    }
    Ok(all)
}

/// Writes numbers that look like data into every input: floats in −1..1, ids below `vocabulary`. What the numbers are
/// changes how fast a GPU's clocks run, so they are the same everywhere.
///
/// # Errors
/// Whatever the session reports.
pub fn fill(session: &mut dyn Session, vocabulary: usize) -> Result<()> {
    let names: Vec<String> = session.program().input_names().map(str::to_owned).collect();
    for name in names {
        let ty = session.program().ty(session.program().input(&name)?);
        // Multiplicative hashing (Knuth 6.4): values without a pattern that compression or branch prediction could use,
        // the same every time.
        let scattered = |index: usize| (index * 2_654_435_761 % 4_294_967_296) >> 8;
        if ty.dtype == DType::I32 {
            let id = |index| (scattered(index) % vocabulary) as i32;
            let values: Vec<i32> = (0..ty.numel()).map(id).collect();
            session.write_i32(&name, &values)?;
        } else if name == OptimizerInput::Scalars.name() {
            let settings = StepSettings {
                betas: [0.9, 0.95],
                epsilon: 1e-8,
                clip: 1.0,
                gradient_scale: 1.0,
            };
            session.write_f32(&name, &settings.scalars(0))?;
        } else if name == OptimizerInput::GroupScalars.name() {
            session.write_f32(&name, &ParameterGroups::decaying(0.1).scalars(1e-3))?;
        } else {
            let value = |index| scattered(index) as f32 / 8_388_608.0 - 1.0;
            let values: Vec<f32> = (0..ty.numel()).map(value).collect();
            session.write_f32(&name, &values)?;
        }
    }
    Ok(())
}
