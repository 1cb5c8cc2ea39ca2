//! Reverse-mode differentiation on the tape: appends backward ops, accumulates, and binds parameter gradients to the
//! gradient arena.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Add, Arena, Backward, Copy, Fill, GradientEntry, Storage, Tape, Value};
use crate::error::{Error, Result};

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
        let forward = self.instructions.iter().position(|i| i.is_backward);
        let forward = forward.unwrap_or(self.instructions.len());
        let mut gradients: HashMap<Value, Value> = HashMap::new();
        for (value, cotangent) in seeds {
            self.accumulate(&mut gradients, *value, *cotangent)?;
        }
        for index in (0..forward).rev() {
            let instruction = self.instructions[index].clone();
            let outputs = &instruction.outputs;
            let output_gradients: Vec<Option<Value>> =
                outputs.iter().map(|v| gradients.get(v).copied()).collect();
            let owes = outputs.iter().any(|v| self.requires_gradient(*v));
            if !owes || output_gradients.iter().all(Option::is_none) {
                continue;
            }
            self.scope = instruction.scope.clone();
            let mut backward = Backward {
                tape: self,
                inputs: &instruction.inputs,
                outputs,
                gradients: &output_gradients,
            };
            let contributions = instruction.op.backward(&mut backward)?;
            for (input, contribution) in instruction.inputs.iter().zip(contributions) {
                if let Some(contribution) = contribution
                    && self.requires_gradient(*input)
                {
                    self.accumulate(&mut gradients, *input, contribution)?;
                }
            }
        }
        self.scope = "".into();
        self.bind(&gradients)
    }

    /// Adds `contribution` to the gradient of `value`. Where the op that made the contribution can add to another
    /// value itself, it does; otherwise a sum is recorded.
    fn accumulate(
        &mut self,
        gradients: &mut HashMap<Value, Value>,
        value: Value,
        contribution: Value,
    ) -> Result<()> {
        let (want, got) = (self.shape(value), self.shape(contribution));
        if want != got {
            return Err(Error::shape("backward", "a gradient", want, got));
        }
        let Some(&sum) = gradients.get(&value) else {
            gradients.insert(value, contribution);
            return Ok(());
        };
        let total = match self.fold_into_producer(contribution, sum) {
            Some(total) => total,
            None => self.record_one(Add, &[sum, contribution])?,
        };
        gradients.insert(value, total);
        Ok(())
    }

    /// Turns the op that made `contribution` into its accumulating form on `sum`, when nothing else uses the
    /// contribution and `sum` was there before it.
    fn fold_into_producer(&mut self, contribution: Value, sum: Value) -> Option<Value> {
        let producer = self
            .instructions
            .iter()
            .rposition(|i| i.outputs.first() == Some(&contribution))?;
        let used = self.instructions[producer..]
            .iter()
            .any(|i| i.inputs.contains(&contribution));
        let sum_is_there = match self
            .instructions
            .iter()
            .rposition(|i| i.outputs.contains(&sum))
        {
            Some(sum_producer) => sum_producer < producer,
            None => true,
        };
        if used || !sum_is_there || !self.instructions[producer].is_backward {
            return None;
        }
        let op: Arc<dyn super::Op> = self.instructions[producer].op.accumulating()?.into();
        let instruction = &mut self.instructions[producer];
        instruction.op = op;
        instruction.inputs.push(sum);
        Some(contribution)
    }

    /// Gives every trained parameter's gradient its place in the gradient arena, in parameter order, and names the
    /// gradients that were asked for.
    fn bind(&mut self, gradients: &HashMap<Value, Value>) -> Result<()> {
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
        trained.sort_by_key(|(index, ..)| *index);
        let mut bound: Vec<Value> = Vec::new();
        for (_, name, value, reserved) in trained {
            let mut gradient = gradients[&value];
            let root = self.root(gradient);
            let shared = bound.contains(&root)
                || self.values[root.index()].is_input
                || self.values[root.index()].requires_gradient;
            if shared {
                gradient = self.record_one(Copy, &[gradient])?;
            }
            let root = self.root(gradient);
            bound.push(root);
            let offset = self.gradient_elements;
            self.values[root.index()].storage = Storage::Fixed(Arena::Gradients, offset);
            self.output(gradient, format!("gradient.{name}"));
            self.gradient_entries.push(GradientEntry {
                parameter: name,
                offset,
                reserved,
            });
            self.gradient_elements += reserved;
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
