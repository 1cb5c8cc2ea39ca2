//! The inputs of a loaded program that nobody has written yet.

use crate::program::Program;
use crate::tape::Value;
use keel_base::error::{Error, Result};

/// An input that some op reads.
#[derive(Debug)]
struct Unwritten {
    value: Value,
    name: String,
    /// Whether an op before the update reads it.
    is_early: bool,
}

/// What a session still waits for. Once every input has been written the list is empty, and asking costs nothing.
#[derive(Debug)]
pub(super) struct UnwrittenInputs(Vec<Unwritten>);

impl UnwrittenInputs {
    /// All inputs of `program` that an op reads: what nobody reads may stay unwritten.
    pub fn of(program: &Program) -> UnwrittenInputs {
        let first_read = |value: Value| {
            let reads = |op: &crate::program::PlannedOp| op.instruction.inputs.contains(&value);
            program.ops().iter().position(reads)
        };
        let mut all: Vec<Unwritten> = program
            .inputs()
            .filter_map(|(name, value)| {
                Some(Unwritten {
                    value,
                    name: name.to_owned(),
                    is_early: first_read(value)? < program.gradient_ops(),
                })
            })
            .collect();
        // By name: a map of inputs has no order, and an error that lists them should read the same every time.
        all.sort_by(|one, other| one.name.cmp(&other.name));
        UnwrittenInputs(all)
    }

    /// Notes that an input has been written.
    pub fn written(&mut self, value: Value) {
        self.0.retain(|input| input.value != value);
    }

    /// # Errors
    /// [`Error::Setting`] naming every input that a whole run would read.
    pub fn expect_none(&self) -> Result<()> {
        self.expect(|_| true)
    }

    /// # Errors
    /// [`Error::Setting`] naming every input that a run up to the update would read.
    pub fn expect_none_before_update(&self) -> Result<()> {
        self.expect(|input| input.is_early)
    }

    fn expect(&self, is_needed: impl Fn(&Unwritten) -> bool) -> Result<()> {
        let missing: Vec<&str> = self
            .0
            .iter()
            .filter(|input| is_needed(input))
            .map(|input| input.name.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::setting(
            format!("program input {}", missing.join(", ")),
            "values, written before the first run that reads them",
            "none: nobody has written it",
        ))
    }
}
