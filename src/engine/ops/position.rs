//! Learned positions, the class token before them, and its removal.
//!
//! add_position: y[b, t] = x[b, t − o] + p[t], with o = 1 and y[b, 0] = c + p[0] where there is a class token c [C].
//! ∂x = dy without the class token's rows, ∂p[t] = Σ_b dy[b, t], ∂c = ∂p[0].
//! drop_tokens: y[b, t] = x[b, t + first]; ∂x is dy with zeros before it. Neither saves anything; both are bound by
//! memory. A table longer than the sequence gives its first rows; the others get no gradient.

use rayon::prelude::*;

use super::shapes::expect_tokens;
use crate::launch::{Argument, Launch, index, kernels, move_blocks};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Records x + position. `x` [B, T, C]; `position` [P, C] of x's type, with P at least T (T + 1 with a class token);
/// `class_token` f32 `[C]`. Result [B, T, C], or [B, T + 1, C] with the class token first.
///
/// # Errors
/// [`Error::Shape`] when the shapes do not belong together.
pub fn add_position(
    tape: &mut Tape,
    x: Value,
    position: Value,
    class_token: Option<Value>,
) -> Result<Value> {
    let mut inputs = vec![x, position];
    inputs.extend(class_token);
    tape.record_one(
        AddPosition {
            class_token: class_token.is_some(),
        },
        &inputs,
    )
}

/// Records x without its first tokens. `x` f32 [B, T, C] → [B, T − first, C].
///
/// # Errors
/// [`Error::Shape`] when nothing would be left.
pub fn drop_tokens(tape: &mut Tape, x: Value, first: usize) -> Result<Value> {
    tape.record_one(DropTokens { first }, &[x])
}

/// The launch of `position_shift`: y [B, T, C] takes the tokens of x moved by `shift` places.
fn shift(x: TensorType, y: TensorType, shift: i32) -> Result<Vec<Launch>> {
    let kernel = kernels::POSITION_SHIFT.of(x.dtype)?;
    let arguments = vec![
        Argument::output(0),
        Argument::input(0),
        Argument::I64(y.shape.rows() as i64),
        index(kernel, "the number of tokens", y.shape.dims()[1])?,
        index(kernel, "the number of tokens", x.shape.dims()[1])?,
        Argument::I32(shift),
        index(kernel, "the number of columns", y.shape.columns())?,
    ];
    let blocks = move_blocks(kernel, y)?;
    Ok(vec![Launch::new(kernel, blocks, arguments)])
}

#[derive(Clone, Copy, Debug)]
struct AddPosition {
    class_token: bool,
}

impl AddPosition {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, t, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let position = args.inputs.of::<T>(1);
        let class_token = self.class_token.then(|| args.inputs.f32(2));
        let x = args.inputs.of_or_in_place::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        let tokens = t + usize::from(self.class_token);
        y.par_chunks_mut(tokens * c).enumerate().for_each(|(b, y)| {
            let (first, rest) = y.split_at_mut((tokens - t) * c);
            if let Some(class_token) = class_token {
                for ((y, content), position) in first.iter_mut().zip(class_token).zip(position) {
                    *y = T::rounded(content + position.widen());
                }
            }
            if let Some(x) = x {
                rest.copy_from_slice(&x[b * t * c..][..t * c]);
            }
            for (y, position) in rest.iter_mut().zip(&position[first.len()..]) {
                *y = T::rounded(y.widen() + position.widen());
            }
        });
    }
}

impl Op for AddPosition {
    fn name(&self) -> &'static str {
        "add_position"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        const OP: &str = "add_position";
        let [b, t, c] = expect_tokens(OP, "x", inputs[0])?;
        let tokens = t + usize::from(self.class_token);
        match *inputs[1].shape.dims() {
            [rows, width] if rows >= tokens && width == c && inputs[1].dtype == inputs[0].dtype => {
            }
            _ => {
                let want = format!("{} [P, {c}] with P at least {tokens}", inputs[0].dtype);
                return Err(Error::shape(OP, "position", want, inputs[1]));
            }
        }
        if self.class_token && inputs[2] != TensorType::f32([c]) {
            return Err(Error::shape(
                OP,
                "class_token",
                TensorType::f32([c]),
                inputs[2],
            ));
        }
        Ok(vec![TensorType::new(inputs[0].dtype, [b, tokens, c])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (x, position) = (args.inputs[0], args.inputs[1].float());
        let &[_, t, c] = x.shape.dims() else {
            unreachable!("inferred")
        };
        let extra = usize::from(self.class_token);
        let tokens = t + extra;
        for (row, y) in args.outputs[0].float_mut().chunks_mut(c).enumerate() {
            let (b, token) = (row / tokens, row % tokens);
            for (k, y) in y.iter_mut().enumerate() {
                let content = match token.checked_sub(extra) {
                    Some(patch) => x.float()[(b * t + patch) * c + k],
                    None => args.inputs[2].float()[k],
                };
                *y = content + position[token * c + k];
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
        let y = outputs[0];
        let kernel = kernels::POSITION_FORWARD.of(inputs[0].dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            if self.class_token {
                Argument::input(2)
            } else {
                Argument::Null
            },
            Argument::I64(y.shape.rows() as i64),
            index(kernel, "the number of tokens", y.shape.dims()[1])?,
            index(kernel, "the number of columns", y.shape.columns())?,
        ];
        let blocks = move_blocks(kernel, y)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        let mut gradients = vec![None; backward.inputs.len()];
        if backward.needs(0) {
            gradients[0] = Some(if self.class_token {
                drop_tokens(backward.tape, dy, 1)?
            } else {
                dy
            });
        }
        let position = backward.tape.shape(backward.inputs[1]).rows();
        if backward.needs(1) || (self.class_token && backward.needs(2)) {
            let op = BackwardPosition {
                rows: position,
                class_token: self.class_token,
            };
            let sums = backward.tape.record(op, &[dy])?;
            gradients[1] = Some(sums[0]);
            if self.class_token {
                gradients[2] = Some(sums[1]);
            }
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(outputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        // With a class token the output is longer, and the plan refuses by size.
        &[(0, 0)]
    }
}

/// Sums over the batch the tokens of dy [B, T, C] from `first` on: sums f32 [rows, C], with zeros where the tokens have ended.
pub(super) fn sum_over_batch<T: Element>(
    dy: &[T],
    [t, c]: [usize; 2],
    first: usize,
    sums: &mut [f32],
) {
    // A task has one token's row and goes through the batch in order: one writer, a fixed order of additions.
    sums.par_chunks_mut(c).enumerate().for_each(|(row, sum)| {
        sum.fill(0.0);
        let token = first + row;
        if token >= t {
            return;
        }
        for sample in dy.chunks(t * c) {
            for (sum, dy) in sum.iter_mut().zip(&sample[token * c..]) {
                *sum += dy.widen();
            }
        }
    });
}

/// Sums dy [B, T, C] over the batch: ∂p [rows, C], and a copy of its first row for the class token.
#[derive(Clone, Copy, Debug)]
struct BackwardPosition {
    rows: usize,
    class_token: bool,
}

impl BackwardPosition {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, t, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let dy = args.inputs.of::<T>(0);
        if self.class_token {
            let [position, class_token] = args.outputs.f32();
            sum_over_batch(dy, [t, c], 0, position);
            class_token.copy_from_slice(&position[..c]);
        } else {
            let [position] = args.outputs.f32();
            sum_over_batch(dy, [t, c], 0, position);
        }
    }
}

impl Op for BackwardPosition {
    fn name(&self) -> &'static str {
        "add_position_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [_, _, c] = expect_tokens(self.name(), "dy", inputs[0])?;
        let mut outputs = vec![TensorType::f32([self.rows, c])];
        if self.class_token {
            outputs.push(TensorType::f32([c]));
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let dy = args.inputs[0];
        let &[_, t, c] = dy.shape.dims() else {
            unreachable!("inferred")
        };
        for (i, value) in dy.float().iter().enumerate() {
            args.outputs[0].float_mut()[i % (t * c)] += value;
        }
        if self.class_token {
            let first = args.outputs[0].float()[..c].to_vec();
            args.outputs[1].float_mut().copy_from_slice(&first);
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
        let (dy, position) = (inputs[0], outputs[0]);
        let kernel = kernels::POSITION_BACKWARD.of(dy.dtype)?;
        let &[batch, tokens, columns] = dy.shape.dims() else {
            unreachable!("inferred")
        };
        let arguments = vec![
            Argument::output(0),
            if self.class_token {
                Argument::output(1)
            } else {
                Argument::Null
            },
            Argument::input(0),
            Argument::I64(position.shape.rows() as i64),
            index(kernel, "the batch", batch)?,
            index(kernel, "the number of tokens", tokens)?,
            index(kernel, "the number of columns", columns)?,
        ];
        // A thread takes as many columns as fit 16 bytes of dy.
        let threads = TensorType::new(dy.dtype, position.shape);
        let blocks = move_blocks(kernel, threads)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64, inputs, outputs)
    }
}

#[derive(Clone, Copy, Debug)]
struct DropTokens {
    first: usize,
}

impl DropTokens {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, from, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let x = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        y.par_chunks_mut((from - self.first) * c)
            .zip(x.par_chunks(from * c))
            .for_each(|(y, x)| y.copy_from_slice(&x[self.first * c..]));
    }
}

impl Op for DropTokens {
    fn name(&self) -> &'static str {
        "drop_tokens"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [b, t, c] = expect_tokens("drop_tokens", "x", inputs[0])?;
        if self.first >= t {
            let want = format!("more than {} tokens", self.first);
            return Err(Error::shape("drop_tokens", "x", want, inputs[0]));
        }
        let shape = [b, t - self.first, c];
        Ok(vec![TensorType::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        let (&[_, from, c], &[_, to, _]) = (x.shape.dims(), y.shape.dims()) else {
            unreachable!("inferred")
        };
        for (y, x) in y
            .float_mut()
            .chunks_mut(to * c)
            .zip(x.float().chunks(from * c))
        {
            y.copy_from_slice(&x[self.first * c..]);
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
        shift(inputs[0], outputs[0], self.first as i32)
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        Ok(vec![Some(
            backward
                .tape
                .record_one(PadTokens { first: self.first }, &[dy])?,
        )])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

/// The reverse of [`DropTokens`]: zeros before dy.
#[derive(Clone, Copy, Debug)]
struct PadTokens {
    first: usize,
}

impl PadTokens {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let &[_, from, c] = args.input_types[0].shape.dims() else {
            unreachable!("inferred")
        };
        let dy = args.inputs.of::<T>(0);
        let dx = args.outputs.in_order().next::<T>();
        dx.par_chunks_mut((from + self.first) * c)
            .zip(dy.par_chunks(from * c))
            .for_each(|(dx, dy)| {
                let (zeros, rest) = dx.split_at_mut(self.first * c);
                zeros.fill(T::default());
                rest.copy_from_slice(dy);
            });
    }
}

impl Op for PadTokens {
    fn name(&self) -> &'static str {
        "drop_tokens_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [b, t, c] = expect_tokens(self.name(), "dy", inputs[0])?;
        let shape = [b, t + self.first, c];
        Ok(vec![TensorType::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [dx]) = args.split();
        let (&[_, from, c], &[_, to, _]) = (dy.shape.dims(), dx.shape.dims()) else {
            unreachable!("inferred")
        };
        for (dx, dy) in dx
            .float_mut()
            .chunks_mut(to * c)
            .zip(dy.float().chunks(from * c))
        {
            dx[self.first * c..].copy_from_slice(dy);
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
        shift(inputs[0], outputs[0], -(self.first as i32))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}
