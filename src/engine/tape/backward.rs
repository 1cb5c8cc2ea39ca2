//! Reverse-mode differentiation on the tape: appends backward ops, accumulates, and binds parameter gradients to the
//! gradient arena.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Add, Arena, Backward, Copy, Fill, GradientEntry, Storage, Tape, Value, ValueInfo};
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
        let forward = self.instructions.iter().position(|i| i.is_backward);
        let forward = forward.unwrap_or(self.instructions.len());
        self.pending.clear();
        for (value, cotangent) in seeds {
            self.accumulate(*value, *cotangent, true)?;
        }
        for index in (0..forward).rev() {
            let instruction = self.instructions[index].clone();
            let outputs = &instruction.outputs;
            let output_gradients: Vec<Option<Value>> =
                outputs.iter().map(|v| self.pending.remove(v)).collect();
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
            for (input, contribution) in instruction.inputs.iter().zip(&contributions) {
                if let Some(contribution) = contribution
                    && self.requires_gradient(*input)
                {
                    let is_shared = contributions
                        .iter()
                        .filter(|c| c.as_ref() == Some(contribution))
                        .count()
                        > 1;
                    self.accumulate(*input, *contribution, is_shared)?;
                }
            }
        }
        self.scope = "".into();
        let gradients = std::mem::take(&mut self.pending);
        self.bind_gradients(&gradients)
    }

    /// Records `op`, whose first input is a gradient, in the backward part. Where the op that made that gradient can do
    /// the work itself ([`super::Op::fused_with`]) and nothing else refers to the gradient, it does and nothing is
    /// recorded: the same value then holds the result.
    ///
    /// # Errors
    /// [`Error::Shape`] when the op refuses its inputs.
    pub fn record_fused(
        &mut self,
        op: impl super::Op + 'static,
        inputs: &[Value],
    ) -> Result<Value> {
        let (gradient, others) = (inputs[0], &inputs[1..]);
        if let Some(producer) = self.sole_producer(gradient)
            && others.iter().all(|v| self.is_made_before(*v, producer))
            && let Some(fused) = self.instructions[producer].op.fused_with(&op)
        {
            let instruction = &mut self.instructions[producer];
            instruction.op = fused.into();
            instruction.inputs.extend(others);
            return Ok(gradient);
        }
        self.record_one(op, inputs)
    }

    /// Adds `contribution` to the gradient of `value`. Where the op that made the contribution can add to another
    /// value itself, it does; otherwise a sum is recorded. A contribution that `is_shared` stays as it is.
    fn accumulate(&mut self, value: Value, contribution: Value, is_shared: bool) -> Result<()> {
        let (want, got) = (self.shape(value), self.shape(contribution));
        if want != got {
            return Err(Error::shape("backward", "a gradient", want, got));
        }
        let Some(&sum) = self.pending.get(&value) else {
            self.pending.insert(value, contribution);
            return Ok(());
        };
        let folded = match is_shared {
            true => None,
            false => self.fold_into_producer(contribution, sum),
        };
        let total = match folded {
            Some(total) => total,
            None => self.record_one(Add, &[sum, contribution])?,
        };
        self.pending.insert(value, total);
        Ok(())
    }

    /// Adds a parameter's gradient to what the gradient arena holds from `offset` on; returns the sum, which is to lie there.
    fn add_to_arena(&mut self, gradient: Value, offset: usize, is_shared: bool) -> Result<Value> {
        let so_far = self.push(ValueInfo {
            ty: self.ty(gradient),
            name: None,
            storage: Storage::Fixed(Arena::Gradients, offset),
            requires_gradient: false,
            is_input: false,
        });
        let folded = match is_shared {
            true => None,
            false => self.fold_into_producer(gradient, so_far),
        };
        match folded {
            Some(sum) => Ok(sum),
            None => self.record_one(Add, &[so_far, gradient]),
        }
    }

    /// Turns the op that made `contribution` into its accumulating form on `sum`, when nothing else refers to the
    /// contribution and `sum` was there before it.
    fn fold_into_producer(&mut self, contribution: Value, sum: Value) -> Option<Value> {
        let producer = self.sole_producer(contribution)?;
        if !self.is_made_before(sum, producer) {
            return None;
        }
        let op: Arc<dyn super::Op> = self.instructions[producer].op.accumulating()?.into();
        let instruction = &mut self.instructions[producer];
        instruction.op = op;
        instruction.inputs.push(sum);
        Some(contribution)
    }

    /// The backward op whose first output is `value`, when neither an op nor a gradient that still waits for its
    /// turn refers to the value: only then may that op be made to compute something else.
    fn sole_producer(&self, value: Value) -> Option<usize> {
        let producer = self
            .instructions
            .iter()
            .rposition(|i| i.outputs.first() == Some(&value))?;
        let is_used = self.instructions[producer..]
            .iter()
            .any(|i| i.inputs.contains(&value));
        let is_pending = self.pending.values().any(|v| *v == value);
        (self.instructions[producer].is_backward && !is_used && !is_pending).then_some(producer)
    }

    /// Whether `value` is there when instruction `index` runs.
    fn is_made_before(&self, value: Value, index: usize) -> bool {
        self.instructions[index..]
            .iter()
            .all(|i| !i.outputs.contains(&value))
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
        trained.sort_by_key(|(index, ..)| *index);
        let mut bound: Vec<Value> = Vec::new();
        for (_, name, value, reserved) in trained {
            let mut gradient = gradients[&value];
            let root = self.root(gradient);
            let offset = self.gradient_elements;
            if self.adds_gradients {
                let users = gradients.values().filter(|g| self.root(**g) == root);
                let is_shared = users.count() > 1;
                gradient = self.add_to_arena(gradient, offset, is_shared)?;
            } else if bound.contains(&root)
                || self.values[root.index()].is_input
                || self.values[root.index()].requires_gradient
            {
                gradient = self.record_one(Copy, &[gradient])?;
            }
            let root = self.root(gradient);
            bound.push(root);
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
