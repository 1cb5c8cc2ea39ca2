//! Which parameters an executor holds in f32: all of them, or all but those of which each rank of a run has a part
//! ([`crate::program::Program::masters_in_shards`]). What is held lies side by side.

use std::ops::Range;
use std::sync::Arc;

use super::resolved::{ByteRange, ResolvedArgument, ResolvedStep, Space};
use crate::program::{Place, Program};
use crate::tape::Arena;
use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldMasters {
    /// Elements of all parameters.
    elements: usize,
    /// What is not held, rising.
    left_out: Vec<Range<usize>>,
}

impl HeldMasters {
    /// All of `elements` elements.
    pub fn all(elements: usize) -> HeldMasters {
        HeldMasters {
            elements,
            left_out: Vec::new(),
        }
    }

    /// All of as many elements but those of `left_out`.
    ///
    /// # Errors
    /// [`Error::Setting`] when the ranges do not rise or reach past the parameters.
    pub fn without(&self, left_out: &[Range<usize>]) -> Result<HeldMasters> {
        let mut end = 0;
        for range in left_out {
            if range.start < end || range.end < range.start || range.end > self.elements {
                return Err(Error::setting(
                    "parameters held in bf16 alone",
                    format!("rising ranges of the {} elements", self.elements),
                    format!("{range:?} after {end}"),
                ));
            }
            end = range.end;
        }
        Ok(HeldMasters {
            elements: self.elements,
            left_out: left_out.to_vec(),
        })
    }

    /// How many are held.
    pub fn count(&self) -> usize {
        let left_out: usize = self.left_out.iter().map(Range::len).sum();
        self.elements - left_out
    }

    /// Elements of all parameters.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The place of an element that is held among those that are.
    ///
    /// # Panics
    /// When it is not held: programs that read such a one are refused when they are loaded.
    pub fn place(&self, element: usize) -> usize {
        let mut before = 0;
        for range in &self.left_out {
            if range.start > element {
                break;
            }
            assert!(
                !range.contains(&element),
                "element {element} of the parameters is not held in f32"
            );
            before += range.len();
        }
        element - before
    }

    /// `range` in pieces that are held, each with its place, or are not.
    pub fn pieces(&self, range: Range<usize>) -> Vec<(Range<usize>, Option<usize>)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let mut held = |part: Range<usize>| {
            if !part.is_empty() {
                pieces.push((part.clone(), Some(self.place(part.start))));
            }
        };
        let mut left_out = Vec::new();
        for out in &self.left_out {
            let out = out.start.max(range.start)..out.end.min(range.end);
            if !out.is_empty() {
                held(at..out.start);
                at = out.end;
                left_out.push((out, None));
            }
        }
        held(at..range.end);
        pieces.extend(left_out);
        pieces
    }

    /// Refuses a program that reads or writes in f32 what is not held so.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the op.
    pub fn expect_held(&self, program: &Program) -> Result<()> {
        if self.left_out.is_empty() {
            return Ok(());
        }
        for op in program.ops() {
            let instruction = &op.instruction;
            for value in instruction.inputs.iter().chain(&instruction.outputs) {
                let Place::Fixed(Arena::Parameters, first) = program.place(*value) else {
                    continue;
                };
                let end = first + program.ty(*value).numel();
                let mut left_out = self.left_out.iter();
                if left_out.any(|out| first < out.end && out.start < end) {
                    return Err(Error::setting(
                        instruction.origin(),
                        "parameters that are held in f32",
                        format!("elements {first} to {end}, which are in shards"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// A range of any arena where it lies: of the parameters among what is held.
    pub fn placed(&self, range: ByteRange) -> ByteRange {
        match range.space {
            Space::Fixed(Arena::Parameters) if !self.left_out.is_empty() => {
                let size = DType::F32.size();
                let within = range.offset % size;
                ByteRange {
                    offset: self.place(range.offset / size) * size + within,
                    ..range
                }
            }
            _ => range,
        }
    }

    /// Launches with their arguments where they lie.
    pub fn place_arguments(&self, steps: &mut [ResolvedStep]) {
        let launches = steps.iter_mut().flat_map(|step| &mut step.launches);
        for argument in launches.flat_map(|launch| &mut launch.arguments) {
            match argument {
                ResolvedArgument::ByteRange(range) | ResolvedArgument::TensorMap(range, _) => {
                    *range = self.placed(*range);
                }
                _ => {}
            }
        }
    }
}

/// Refuses to move parameters that sessions share with their executor.
///
/// # Errors
/// [`Error::Setting`] when a session is loaded, whose program knows where they lie.
pub(super) fn expect_unshared<T>(parameters: &Arc<T>) -> Result<()> {
    if Arc::strong_count(parameters) == 1 {
        return Ok(());
    }
    Err(Error::setting(
        "parameters held in bf16 alone",
        "no loaded session, which knows where they lie",
        "one that is loaded",
    ))
}
