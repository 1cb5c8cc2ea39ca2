//! Moving what is sent forward: the ops of [`EXCHANGE`] and [`REDUCE`] are recorded behind the backward part, and each moves up to
//! where what it sends is complete, so that it travels while the rest is computed.
//!
//! It is a pass of its own behind fusing, which decides which op completes a gradient. Their order stays as it was recorded:
//! it has to be the same on all ranks.

use std::collections::HashMap;
use std::ops::Range;

use super::{Arena, EXCHANGE, Instruction, REDUCE, Storage, Tape, UPDATE, Value, root};

impl Tape {
    /// Moves the ops of [`EXCHANGE`] and [`REDUCE`] up, each to right behind the last op that makes what it reads or writes it in
    /// the gradient arena, and behind the one of them before it.
    pub(crate) fn hoist(&mut self) {
        let is_early =
            |instruction: &Instruction| [EXCHANGE, REDUCE].contains(&&*instruction.scope);
        let old = std::mem::take(&mut self.instructions);
        let (early, others): (Vec<_>, Vec<_>) = old.into_iter().partition(is_early);
        // What the update writes there comes after all that is sent.
        let backward = others.iter().position(|other| &*other.scope == UPDATE);
        let backward = &others[..backward.unwrap_or(others.len())];
        let written = backward.iter().map(|other| self.gradients(&other.outputs));
        let written: Vec<Vec<Range<usize>>> = written.collect();
        let made = backward.iter().enumerate().flat_map(|(index, other)| {
            let outputs = other.outputs.iter().filter(|_| !other.op.is_view());
            outputs.map(move |output| (*output, index))
        });
        let made: HashMap<Value, usize> = made.collect();
        // For each op of the exchange, how many of the others stand before it.
        let mut place = 0;
        let mut places = Vec::with_capacity(early.len());
        for instruction in &early {
            let reads = self.gradients(&instruction.inputs);
            let meets = |w: &Range<usize>| reads.iter().any(|r| w.start < r.end && r.start < w.end);
            let last = written
                .iter()
                .rposition(|written| written.iter().any(meets));
            let inputs = instruction.inputs.iter();
            let makers = inputs.filter_map(|input| made.get(&root(&self.values, *input)).copied());
            let last = last.max(makers.max());
            place = place.max(last.map_or(0, |last| last + 1));
            places.push(place);
        }
        let mut early = early.into_iter().zip(places).peekable();
        for (index, instruction) in others.into_iter().enumerate() {
            while let Some((sends, _)) = early.next_if(|(_, place)| *place <= index) {
                self.instructions.push(sends);
            }
            self.instructions.push(instruction);
        }
        self.instructions.extend(early.map(|(sends, _)| sends));
    }

    /// The elements of the gradient arena that `values` lie in.
    fn gradients(&self, values: &[Value]) -> Vec<Range<usize>> {
        let in_arena = |value: &Value| {
            let storage = self.values[root(&self.values, *value).index()].storage;
            match storage {
                Storage::Fixed(Arena::Gradients, first) => {
                    Some(first..first + self.ty(*value).numel())
                }
                _ => None,
            }
        };
        values.iter().filter_map(in_arena).collect()
    }
}
