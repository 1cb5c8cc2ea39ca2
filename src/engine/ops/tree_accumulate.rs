//! The sum of gradients that come one after the other, in the balanced binary tree of [`super::tree_sum`].
//!
//! Of `count` parts one comes a run; its index tells its place. Sums of complete subtrees wait by their depth, as the digits
//! of a binary counter: the part is added to those that its index has as trailing ones, and waits in the first free place. With
//! the last part all that waits is added, the rightmost first. So the order of the sum depends on the number of parts alone,
//! as if all had been there at once, and ⌈log₂ count⌉ sums are kept instead of `count` parts. One addition an element and run
//! on average; 4 to 4 (levels + 2) bytes of it are moved: bound by memory.
//!
//! The index is an input and not part of the op, so that one program, and one graph on a GPU, serves all parts.

use std::ops::Range;

use rayon::prelude::*;

use super::shapes::expect_inputs;
use crate::launch::kernels::constants::tree_accumulate::{
    TREE_ACCUMULATE_ELEMENTS, TREE_ACCUMULATE_THREADS,
};
use crate::launch::{Argument, Launch, blocks, index, kernels};
use crate::tape::{Arena, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Value};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};
use keel_ranks::order::partial_sums;

/// The input i32 `[1]` that says which part of its step a run adds, from 0.
pub const MICRO_BATCH_INDEX: &str = "micro_batch_index";

/// Elements of one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Records the addition of a part f32 `[n]` to what waits, f32 `[levels · n]` with levels = [`partial_sums`] of `count`, as part
/// `index`, i32 `[1]`. Returns the sum so far of the subtree that the part has completed, which with the last part is the sum
/// of all, and what waits then.
///
/// # Errors
/// [`Error::Shape`] for other types.
pub fn tree_accumulate(tape: &mut Tape, inputs: [Value; 3], count: usize) -> Result<[Value; 2]> {
    let outputs = tape.record(TreeAccumulate { count }, &inputs)?;
    Ok([outputs[0], outputs[1]])
}

/// The recording of a tree over the micro-batches of a rank ([`Tape::adding_in_tree`]); of one micro-batch, and on a tape without
/// a tree, nothing.
pub(super) struct Tree {
    count: usize,
    index: Option<Value>,
    /// Elements of [`Arena::PartialSums`] so far.
    elements: usize,
}

impl Tree {
    /// A tree as `tape` has it.
    pub fn begin(tape: &mut Tape) -> Tree {
        let count = tape.tree().unwrap_or(1);
        let index = TensorType::i32([1]);
        Tree {
            count,
            index: (count > 1).then(|| tape.input(MICRO_BATCH_INDEX, index)),
            elements: 0,
        }
    }

    /// Records the addition of what a micro-batch has left in a range of `arena`, where the sum then lies.
    pub fn add(&mut self, tape: &mut Tape, arena: Arena, range: Range<usize>) -> Result<()> {
        let Some(index) = self.index else {
            return Ok(());
        };
        let levels = partial_sums(self.count);
        let part = tape.arena_range(arena, range.start, range.len());
        let waiting = tape.arena_range(Arena::PartialSums, self.elements, levels * range.len());
        self.elements += levels * range.len();
        let op = TreeAccumulate { count: self.count };
        tape.record_update(op, &[part, waiting, index])?;
        Ok(())
    }
}

/// Inputs: part [n], what waits [levels · n], index [1]. Outputs: sum [n], what waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct TreeAccumulate {
    /// Parts of a sum.
    pub count: usize,
}

/// What becomes of a part that has come as far as one level of the tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// It is added to what waits there, and goes on.
    Adds,
    /// It waits.
    Waits,
    /// It goes on: nothing waits there, and nothing will come.
    Passes,
}

impl TreeAccumulate {
    fn levels(&self) -> usize {
        partial_sums(self.count)
    }

    /// What becomes of part `index` on the levels that it comes to.
    fn arrivals(&self, index: usize) -> impl Iterator<Item = Arrival> {
        assert!(
            index < self.count,
            "part {index} of {} is told to a program",
            self.count
        );
        let is_last = index + 1 == self.count;
        let mut has_come = true;
        (0..self.levels()).map_while(move |level| {
            let arrival = match (index >> level & 1 == 1, is_last) {
                (true, _) => Arrival::Adds,
                (false, true) => Arrival::Passes,
                (false, false) => Arrival::Waits,
            };
            let comes = has_come;
            has_come &= arrival != Arrival::Waits;
            comes.then_some(arrival)
        })
    }
}

impl Op for TreeAccumulate {
    fn name(&self) -> &'static str {
        "tree_accumulate"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [part, waiting, index] = expect_inputs("tree_accumulate", inputs)?;
        let elements = part.numel();
        for (name, ty, want) in [
            ("part", part, TensorType::f32([elements])),
            (
                "what waits",
                waiting,
                TensorType::f32([self.levels() * elements]),
            ),
            ("index", index, TensorType::i32([1])),
        ] {
            if ty != want {
                return Err(Error::shape("tree_accumulate", name, want, ty));
            }
        }
        Ok(vec![part, waiting])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([part, before, index], [sum, waiting]) = args.split();
        let (sum, waiting) = (sum.float_mut(), waiting.float_mut());
        sum.copy_from_slice(part.float());
        waiting.copy_from_slice(before.float());
        let n = sum.len();
        for (level, arrival) in self.arrivals(index.int()[0] as usize).enumerate() {
            let waiting = &mut waiting[level * n..][..n];
            match arrival {
                Arrival::Adds => {
                    for (sum, waiting) in sum.iter_mut().zip(waiting) {
                        *sum += *waiting;
                    }
                }
                Arrival::Waits => waiting.copy_from_slice(sum),
                Arrival::Passes => {}
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let index = args.inputs.i32(2)[0] as usize;
        let [part, before] = [0, 1].map(|input| args.inputs.f32_or_in_place(input));
        let [sum, waiting] = args.outputs.f32();
        let n = sum.len();
        if let Some(part) = part {
            sum.copy_from_slice(part);
        }
        if let Some(before) = before {
            waiting.copy_from_slice(before);
        }
        for (level, arrival) in self.arrivals(index).enumerate() {
            let waiting = &mut waiting[level * n..][..n];
            let tasks = sum.par_chunks_mut(ELEMENTS_PER_TASK);
            let tasks = tasks.zip(waiting.par_chunks_mut(ELEMENTS_PER_TASK));
            match arrival {
                Arrival::Adds => tasks.for_each(|(sum, waiting)| {
                    for (sum, waiting) in sum.iter_mut().zip(waiting) {
                        *sum += *waiting;
                    }
                }),
                Arrival::Waits => tasks.for_each(|(sum, waiting)| waiting.copy_from_slice(sum)),
                Arrival::Passes => {}
            }
        }
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (kernel, n) = (kernels::TREE_ACCUMULATE_F32, inputs[0].numel());
        let arguments = vec![
            Argument::output(0),
            Argument::output(1),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            index(kernel, "count", self.count)?,
            index(kernel, "levels", self.levels())?,
            Argument::I64(n as i64),
        ];
        let blocks = blocks(
            kernel,
            n,
            TREE_ACCUMULATE_THREADS * TREE_ACCUMULATE_ELEMENTS,
        )?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Cost {
        // Of a part in the middle: it is read, added to one sum on average, and written to its place and to where it waits.
        let one = [inputs[0]];
        Cost::streaming(one[0].numel() as f64, &[one[0]; 2], &[one[0]; 2])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1)]
    }
}
