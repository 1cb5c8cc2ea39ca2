//! Learned tokens among those of every batch row: registers, class and distillation tokens that no patch gives.
//!
//! y[b, t] = x[b, t] for t < at, tokens[t − at] for at ≤ t < at + R, x[b, t − R] behind; B batch rows, T tokens, R inserted ones.
//! ∂x is dy without the inserted rows, ∂tokens[r] = Σ_b dy[b, at + r]. Nothing is saved; bound by memory.

use rayon::prelude::*;

use super::position::sum_over_batch;
use super::shapes::expect_tokens;
use crate::launch::{Argument, Launch, index, kernels, move_blocks};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Records `tokens` among those of every batch row, from place `at` on. `x` [B, T, C]; `tokens` [R, C] of x's type;
/// result [B, T + R, C].
///
/// # Errors
/// [`Error::Shape`] when the widths differ or a row has no place `at`.
pub fn insert_tokens(tape: &mut Tape, x: Value, tokens: Value, at: usize) -> Result<Value> {
    tape.record_one(InsertTokens { at }, &[x, tokens])
}

/// Inputs: x, tokens. Output: y.
#[derive(Clone, Copy, Debug)]
struct InsertTokens {
    at: usize,
}

impl InsertTokens {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, t, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let x = args.inputs.of::<T>(0);
        let tokens = args.inputs.of::<T>(1);
        let y = args.outputs.in_order().next::<T>();
        y.par_chunks_mut(t * c + tokens.len())
            .zip(x.par_chunks(t * c))
            .for_each(|(y, x)| {
                let (before, rest) = y.split_at_mut(self.at * c);
                let (inserted, behind) = rest.split_at_mut(tokens.len());
                before.copy_from_slice(&x[..self.at * c]);
                inserted.copy_from_slice(tokens);
                behind.copy_from_slice(&x[self.at * c..]);
            });
    }
}

impl Op for InsertTokens {
    fn name(&self) -> &'static str {
        "insert_tokens"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [b, t, c] = expect_tokens(self.name(), "x", inputs[0])?;
        if self.at > t {
            let want = format!("at least {} tokens", self.at);
            return Err(Error::shape(self.name(), "x", want, inputs[0]));
        }
        match *inputs[1].shape.dims() {
            [count, width] if width == c && inputs[1].dtype == inputs[0].dtype => {
                let shape = [b, t + count, c];
                Ok(vec![TensorType::new(inputs[0].dtype, shape)])
            }
            _ => {
                let want = format!("{} [R, {c}]", inputs[0].dtype);
                Err(Error::shape(self.name(), "tokens", want, inputs[1]))
            }
        }
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x, tokens], [y]) = args.split();
        let (&[_, t, c], &[_, to, _]) = (x.shape.dims(), y.shape.dims()) else {
            unreachable!("inferred")
        };
        let count = to - t;
        for (row, y) in y.float_mut().chunks_mut(c).enumerate() {
            let (b, token) = (row / to, row % to);
            let from = match token {
                _ if token < self.at => &x.float()[(b * t + token) * c..],
                _ if token < self.at + count => &tokens.float()[(token - self.at) * c..],
                _ => &x.float()[(b * t + token - count) * c..],
            };
            y.copy_from_slice(&from[..c]);
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let y = outputs[0];
        let kernel = kernels::INSERT_TOKENS_FORWARD.of(y.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::I64(y.shape.rows() as i64),
            index(kernel, "the number of tokens", y.shape.dims()[1])?,
            index(kernel, "the place", self.at)?,
            index(kernel, "the inserted tokens", inputs[1].shape.rows())?,
            index(kernel, "the number of columns", y.shape.columns())?,
        ];
        let blocks = move_blocks(kernel, y)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        let count = backward.tape.shape(backward.inputs[1]).rows();
        let mut gradients = vec![None, None];
        if backward.needs(0) {
            let op = RemoveTokens { at: self.at, count };
            gradients[0] = Some(backward.tape.record_one(op, &[dy])?);
        }
        if backward.needs(1) {
            let op = SumTokens { at: self.at, count };
            gradients[1] = Some(backward.tape.record_one(op, &[dy])?);
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

/// dy [B, T + R, C] without the R tokens from `at` on: dx [B, T, C].
#[derive(Clone, Copy, Debug)]
struct RemoveTokens {
    at: usize,
    count: usize,
}

impl RemoveTokens {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, from, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let dy = args.inputs.of::<T>(0);
        let dx = args.outputs.in_order().next::<T>();
        dx.par_chunks_mut((from - self.count) * c)
            .zip(dy.par_chunks(from * c))
            .for_each(|(dx, dy)| {
                let (before, behind) = dx.split_at_mut(self.at * c);
                before.copy_from_slice(&dy[..self.at * c]);
                behind.copy_from_slice(&dy[(self.at + self.count) * c..]);
            });
    }
}

impl Op for RemoveTokens {
    fn name(&self) -> &'static str {
        "insert_tokens_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [b, t, c] = expect_tokens(self.name(), "dy", inputs[0])?;
        let shape = [b, t - self.count, c];
        Ok(vec![TensorType::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [dx]) = args.split();
        let (&[_, from, c], &[_, to, _]) = (dy.shape.dims(), dx.shape.dims()) else {
            unreachable!("inferred")
        };
        for (row, dx) in dx.float_mut().chunks_mut(c).enumerate() {
            let (b, token) = (row / to, row % to);
            let behind = if token < self.at { 0 } else { self.count };
            dx.copy_from_slice(&dy.float()[(b * from + token + behind) * c..][..c]);
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        _inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let dx = outputs[0];
        let kernel = kernels::INSERT_TOKENS_BACKWARD.of(dx.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(dx.shape.rows() as i64),
            index(kernel, "the number of tokens", dx.shape.dims()[1])?,
            index(kernel, "the place", self.at)?,
            index(kernel, "the inserted tokens", self.count)?,
            index(kernel, "the number of columns", dx.shape.columns())?,
        ];
        let blocks = move_blocks(kernel, dx)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

/// The sum over the batch of the R tokens of dy [B, T + R, C] from `at` on: f32 [R, C].
#[derive(Clone, Copy, Debug)]
struct SumTokens {
    at: usize,
    count: usize,
}

impl SumTokens {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, t, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let dy = args.inputs.of::<T>(0);
        let [tokens] = args.outputs.f32();
        sum_over_batch(dy, [t, c], self.at, tokens);
    }
}

impl Op for SumTokens {
    fn name(&self) -> &'static str {
        "insert_tokens_backward_tokens"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [_, _, c] = expect_tokens(self.name(), "dy", inputs[0])?;
        Ok(vec![TensorType::f32([self.count, c])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [tokens]) = args.split();
        let &[_, t, c] = dy.shape.dims() else {
            unreachable!("inferred")
        };
        for sample in dy.float().chunks(t * c) {
            let inserted = &sample[self.at * c..][..self.count * c];
            for (sum, dy) in tokens.float_mut().iter_mut().zip(inserted) {
                *sum += dy;
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (dy, tokens) = (inputs[0], outputs[0]);
        let kernel = kernels::INSERT_TOKENS_BACKWARD_TOKENS.of(dy.dtype)?;
        let &[batch, all, columns] = dy.shape.dims() else {
            unreachable!("inferred")
        };
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(tokens.shape.rows() as i64),
            index(kernel, "the batch", batch)?,
            index(kernel, "the number of tokens", all)?,
            index(kernel, "the place", self.at)?,
            index(kernel, "the number of columns", columns)?,
        ];
        // A thread takes as many columns as fit 16 bytes of dy.
        let threads = TensorType::new(dy.dtype, tokens.shape);
        let blocks = move_blocks(kernel, threads)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(outputs[0].numel() as f64, inputs, outputs)
    }
}
