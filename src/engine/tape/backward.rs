//! Reverse-mode differentiation on the tape: appends backward ops, accumulates, and binds parameter gradients to the
//! gradient arena. Every op and every sum is recorded as itself; what can be done at once is merged later, by
//! [`super::fuse`].

use std::collections::HashMap;

use super::{
    Add, Arena, Backward, Copy, Fill, GradientEntry, ParameterLayout, Storage, Tape, Value,
    ValueInfo, root,
};
use keel_base::error::{Error, Result};

impl Tape {
    /// Records the gradients of the scalar `loss` with respect to everything that requires one.
    ///
    /// Gradients of trained parameters are placed in the gradient arena and can be read as `gradient.<parameter>`;
    /// those of [`Tape::input_with_gradient`] are outputs of the program.
    ///
    /// # Errors
    /// [`Error::Shape`] when `loss` is not a single number, [`Error::Setting`] when nothing it depends on is trained.
    pub fn backward(&mut self, loss: Value) -> Result<()> {
        let ty = self.ty(loss);
        if ty.numel() != 1 {
            return Err(Error::shape("backward", "loss", "a single number", ty));
        }
        self.in_backward = true;
        let seed = self.record_one(Fill { ty, value: 1.0 }, &[])?;
        self.backward_from(&[(loss, seed)])
    }

    /// Records the gradients of Σ ⟨value, cotangent⟩ over the given pairs. See [`Tape::backward`].
    ///
    /// # Errors
    /// [`Error::Setting`] when nothing the values depend on requires a gradient.
    pub fn backward_from(&mut self, seeds: &[(Value, Value)]) -> Result<()> {
        if !seeds
            .iter()
            .any(|(value, _)| self.requires_gradient(*value))
        {
            return Err(Error::setting(
                "backward",
                "a loss that depends on a trained parameter",
                "one that depends on none: every module is frozen",
            ));
        }
        self.in_backward = true;
        // Backward ops are appended to the list that is walked: the forward part ends where the first of them stands.
        let forward = self.instructions.iter().position(|i| i.is_backward);
        let forward = forward.unwrap_or(self.instructions.len());
        self.pending.clear();
        for (value, cotangent) in seeds {
            self.accumulate(*value, *cotangent)?;
        }
        for index in (0..forward).rev() {
            let instruction = self.instructions[index].clone();
            let outputs = &instruction.outputs;
            let output_gradients: Vec<Option<Value>> =
                // Every reader of an output stands later on the tape and has been walked: its gradient is complete, and
                // out it goes.
                outputs.iter().map(|v| self.pending.remove(v)).collect();
            let owes = outputs.iter().any(|v| self.requires_gradient(*v));
            if !owes || output_gradients.iter().all(Option::is_none) {
                continue;
            }
            // Backward ops belong to the module of their forward op: recomputing and profiles go by that.
            self.scope = instruction.scope.clone();
            let mut backward = Backward {
                tape: self,
                inputs: &instruction.inputs,
                outputs,
                gradients: &output_gradients,
            };
            let contributions = instruction.op.backward(&mut backward)?;
            for (input, contribution) in instruction.inputs.iter().zip(&contributions) {
                if let Some(contribution) = contribution
                    && self.requires_gradient(*input)
                {
                    self.accumulate(*input, *contribution)?;
                }
            }
        }
        self.scope = "".into();
        let gradients = std::mem::take(&mut self.pending);
        self.bind_gradients(&gradients)
    }

    /// Adds `contribution` to the gradient of `value`.
    fn accumulate(&mut self, value: Value, contribution: Value) -> Result<()> {
        let (want, got) = (self.shape(value), self.shape(contribution));
        if want != got {
            return Err(Error::shape("backward", "a gradient", want, got));
        }
        let total = match self.pending.get(&value) {
            // What there was first, what is new second: fusing looks for the contribution there.
            Some(&sum) => self.record_one(Add, &[sum, contribution])?,
            None => contribution,
        };
        self.pending.insert(value, total);
        Ok(())
    }

    /// Adds a parameter's gradient to what the gradient arena holds from `offset` on; returns the sum, which is to lie there.
    fn add_to_arena(&mut self, gradient: Value, offset: usize) -> Result<Value> {
        let ty = self.ty(gradient);
        let so_far = self.push(ValueInfo::fixed(ty, Arena::Gradients, offset));
        self.record_one(Add, &[so_far, gradient])
    }

    /// The number of the instruction that makes each value.
    fn made_at(&self) -> HashMap<Value, usize> {
        let instructions = self.instructions.iter().enumerate();
        instructions
            .flat_map(|(index, made)| made.outputs.iter().map(move |output| (*output, index)))
            .collect()
    }

    /// Gives every trained parameter's gradient its place in the gradient arena, in parameter order, and names the
    /// gradients that were asked for.
    fn bind_gradients(&mut self, gradients: &HashMap<Value, Value>) -> Result<()> {
        let layout = self.layout.clone();
        let mut trained: Vec<(usize, String, Value, usize)> = Vec::new();
        for (spec, value) in &self.parameters {
            if gradients.contains_key(value) {
                let layout = layout
                    .as_ref()
                    .expect("only a laid-out tape trains parameters");
                let index = layout
                    .index(&spec.name)
                    .expect("declared parameters are laid out");
                let reserved = layout.entries()[index].reserved;
                trained.push((index, spec.name.clone(), *value, reserved));
            }
        }
        // In the order of the layout, whatever the order of use: neighbours among the parameters are neighbours among
        // the gradients, and an update covers them in one pass.
        trained.sort_by_key(|(index, ..)| *index);
        let made_at = self.made_at();
        let mut bound: Vec<Value> = Vec::new();
        for (_, name, value, reserved) in trained {
            let offset = self.gradient_elements;
            assert!(
                offset.is_multiple_of(ParameterLayout::ALIGNMENT),
                "the gradient of {name} starts at element {offset}, and kernels read whole vectors"
            );
            let mut gradient = gradients[&value];
            let source = root(&self.values, gradient);
            let ready = made_at.get(&source).copied().unwrap_or_default();
            self.gradient_entries.push(GradientEntry {
                parameter: name.clone(),
                offset,
                reserved,
                ready,
            });
            self.gradient_elements += reserved;
            // They leave as they are complete, and have no place to be read from.
            if self.shards_gradients() {
                self.gradient_values.push(gradient);
                continue;
            }
            // Only a value of its own can be placed in the arena: a gradient that two parameters share (an addition
            // hands dy on to both), one that the host feeds and one that is itself a forward value are copied.
            if self.adds_to_arena() {
                gradient = self.add_to_arena(gradient, offset)?;
            } else if bound.contains(&source)
                || self.values[source.index()].is_input
                || self.values[source.index()].requires_gradient
            {
                gradient = self.record_one(Copy, &[gradient])?;
            }
            let placed = root(&self.values, gradient);
            bound.push(placed);
            self.values[placed.index()].storage = Storage::Fixed(Arena::Gradients, offset);
            self.output(gradient, format!("gradient.{name}"));
        }
        let inputs: Vec<(String, Value)> = self
            .values
            .iter()
            .enumerate()
            .filter(|(_, info)| info.is_input && info.requires_gradient)
            .filter_map(|(index, info)| Some((info.name.clone()?, Value(index as u32))))
            .collect();
        for (name, value) in inputs {
            if let Some(gradient) = gradients.get(&value) {
                self.output(*gradient, format!("gradient.{name}"));
            }
        }
        Ok(())
    }
}
