//! Fusing: merges an op of the backward part into the op that made what it works on, where that op can do both at once.
//!
//! Two merges exist. A sum whose second operand an op has just made becomes that op's accumulating form
//! ([`super::Op::accumulating`]), and an op on a gradient becomes part of the product that made the gradient
//! ([`super::Op::fused_with`]). Both save one pass over memory, and neither changes what is computed.
//!
//! It is a pass of its own, over all that was recorded, because only then is every reader of a value known: the op that
//! made it may compute something else if, and only if, the merged op was the value's one reader.

use std::any::Any;
use std::sync::Arc;

use super::{Add, Op, Storage, Tape, Value};

/// What fusing knows of a value.
#[derive(Clone, Copy, Default)]
struct Use {
    /// Operands that are the value, and readings by the host.
    readers: usize,
    /// The instruction that makes it.
    made_at: Option<usize>,
    /// Whether it is that instruction's first output, the one that merges work on.
    is_first: bool,
}

/// An op to be merged: what it reads of its producer, and what else.
struct Merge {
    producer: usize,
    op: Arc<dyn Op>,
    others: Vec<Value>,
}

impl Tape {
    /// Merges what can be merged, in the order of recording. A second call finds nothing left to do.
    pub(crate) fn fuse(&mut self) {
        let mut uses = self.uses();
        let mut renamed: Vec<Value> = (0..self.values.len() as u32).map(Value).collect();
        let mut is_merged = vec![false; self.instructions.len()];
        for index in 0..self.instructions.len() {
            // Renaming on the way and not at the end: whether an op can merge depends on who made its inputs, and that
            // may have changed one op ago.
            for input in &mut self.instructions[index].inputs {
                *input = renamed[input.index()];
            }
            let Some(merge) = self.merge_of(index, &uses) else {
                continue;
            };
            let made = self.instructions[merge.producer].outputs[0];
            let result = self.instructions[index].outputs[0];
            let producer = &mut self.instructions[merge.producer];
            producer.op = merge.op;
            producer.inputs.extend(merge.others);
            // The producer's value stays, and not the merged op's, so that values keep the order in which they are made:
            // the planner breaks ties by it.
            renamed[result.index()] = made;
            // The producer's one reader is gone; those of the result read it now.
            uses[made.index()].readers = uses[result.index()].readers;
            self.values[made.index()].storage = self.values[result.index()].storage;
            if let Some(name) = self.values[result.index()].name.take() {
                self.values[made.index()].name.get_or_insert(name);
            }
            is_merged[index] = true;
        }
        let mut is_merged = is_merged.into_iter();
        self.instructions
            .retain(|_| !is_merged.next().expect("one flag an instruction"));
        for info in &mut self.values {
            if let Storage::SameAs(root) = &mut info.storage {
                *root = renamed[root.index()];
            }
        }
        for (_, output) in &mut self.outputs {
            *output = renamed[output.index()];
        }
    }

    fn uses(&self) -> Vec<Use> {
        let mut uses = vec![Use::default(); self.values.len()];
        for (index, instruction) in self.instructions.iter().enumerate() {
            for input in &instruction.inputs {
                uses[input.index()].readers += 1;
            }
            for (position, output) in instruction.outputs.iter().enumerate() {
                uses[output.index()].made_at = Some(index);
                uses[output.index()].is_first = position == 0;
            }
        }
        for (_, output) in &self.outputs {
            uses[output.index()].readers += 1;
        }
        uses
    }

    /// How instruction `index` can be merged into the one that made its gradient.
    fn merge_of(&self, index: usize, uses: &[Use]) -> Option<Merge> {
        let instruction = &self.instructions[index];
        if !instruction.is_backward || instruction.outputs.len() != 1 {
            return None;
        }
        let op: &dyn Any = &*instruction.op;
        let is_sum = op.is::<Add>();
        // A sum is recorded as what there was, plus the contribution that was made last.
        let (gradient, others) = match &instruction.inputs[..] {
            [so_far, contribution] if is_sum => (*contribution, vec![*so_far]),
            [gradient, others @ ..] => (*gradient, others.to_vec()),
            [] => return None,
        };
        // One reader, or another op would see the merged value in place of what it asked for. First output, because
        // `accumulating` and `fused_with` change that one.
        let Use {
            readers: 1,
            made_at: Some(producer),
            is_first: true,
        } = uses[gradient.index()]
        else {
            return None;
        };
        // The producer runs earlier than the merged op did: what it reads besides must exist by then.
        let is_there = |value: &Value| uses[value.index()].made_at.is_none_or(|at| at < producer);
        if !self.instructions[producer].is_backward || !others.iter().all(is_there) {
            return None;
        }
        let made_by = &self.instructions[producer].op;
        let op = if is_sum {
            made_by.accumulating()?
        } else {
            made_by.fused_with(&*instruction.op)?
        };
        Some(Merge {
            producer,
            op: op.into(),
            others,
        })
    }
}
