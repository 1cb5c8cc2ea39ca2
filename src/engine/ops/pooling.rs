//! One row out of the tokens of each batch row: their mean, a weighted sum, or one of them.
//!
//! Forward: y[b] = Σ_t w[b,t] x[b,t] with w = 1/T or given; or y[b] = x[b, index[b]].
//! Backward: dx[b,t] = w[b,t] dy[b]; or dy[b] at the index and zeros elsewhere. Both can add to a gradient that is there.
//!
//! Shapes: x [B, T, C], w f32 [B, T], index i32 [B], y [B, C]. Saved: the weights or the index. 2·B·T·C flops.

use rayon::prelude::*;

use crate::launch::kernels::constants::kernel::WARP_LANES;
use crate::launch::{Argument, Launch, blocks, index, kernels, move_blocks, vector};
use crate::ops::rows::add_scaled;
use crate::tape::{
    Array, Backward, CompileTarget, Cost, CpuArgs, Element, Inputs, Op, ReferenceArgs, Tape, Value,
    with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};
use keel_cpu::round;

/// The mean of the tokens, or their sum with given weights.
///
/// Shapes: `x` [B, T, C]; `weights` f32 [B, T], used as they are (divide them by their sum for a weighted mean) and
/// owed no gradient; the result is [B, C].
///
/// # Errors
/// [`Error::Shape`] when a shape differs or the weights require a gradient.
pub fn mean_pool(tape: &mut Tape, x: Value, weights: Option<Value>) -> Result<Value> {
    let Some(weights) = weights else {
        return tape.record_one(Pool::Mean, &[x]);
    };
    if tape.requires_gradient(weights) {
        let got = "a value that requires one";
        return Err(Error::shape(NAME, "weights", "without a gradient", got));
    }
    tape.record_one(Pool::Weighted, &[x, weights])
}

/// One token of each batch row: a class token, or the last token of a text.
///
/// Shapes: `x` [B, T, C], `index` i32 `[B]`; the result is [B, C]. An index outside 0..T gives a row of zeros and no
/// gradient.
///
/// # Errors
/// [`Error::Shape`] when a shape differs.
pub fn select_token(tape: &mut Tape, x: Value, index: Value) -> Result<Value> {
    tape.record_one(Pool::Token, &[x, index])
}

const NAME: &str = "pooling";

/// Columns of a row that are summed at a time, in f32.
const BAND: usize = 256;

/// Inputs: x, then the weights or the index. Output: y.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pool {
    Mean,
    Weighted,
    Token,
}

/// Inputs: dy, then the weights or the index, then the sum to add to where `accumulates`. Output: dx.
#[derive(Clone, Copy, Debug)]
struct PoolBackward {
    pool: Pool,
    /// T.
    tokens: usize,
    accumulates: bool,
}

/// The factors of the tokens, whatever they come from.
#[derive(Clone, Copy)]
enum Factors<'a> {
    Equal(f64),
    Given(&'a [f32]),
    GivenExactly(&'a [f64]),
    One(&'a [i32]),
}

impl Factors<'_> {
    /// The factor of token `token` of `tokens` in batch row `batch`.
    fn of(self, batch: usize, token: usize, tokens: usize) -> f64 {
        match self {
            Factors::Equal(factor) => factor,
            Factors::Given(weights) => f64::from(weights[batch * tokens + token]),
            Factors::GivenExactly(weights) => weights[batch * tokens + token],
            Factors::One(index) if usize::try_from(index[batch]) == Ok(token) => 1.0,
            Factors::One(_) => 0.0,
        }
    }
}

impl Pool {
    /// The number of inputs beside the tokens.
    fn factor_inputs(self) -> usize {
        match self {
            Pool::Mean => 0,
            Pool::Weighted | Pool::Token => 1,
        }
    }

    fn exact<'a>(self, inputs: &'a [&'a Array], tokens: usize) -> Factors<'a> {
        match self {
            Pool::Mean => Factors::Equal(1.0 / tokens as f64),
            Pool::Weighted => Factors::GivenExactly(inputs[1].float()),
            Pool::Token => Factors::One(inputs[1].int()),
        }
    }

    fn fast<'a>(self, inputs: &Inputs<'a>, tokens: usize) -> Factors<'a> {
        match self {
            Pool::Mean => Factors::Equal(1.0 / tokens as f64),
            Pool::Weighted => Factors::Given(inputs.f32(1)),
            Pool::Token => Factors::One(inputs.i32(1)),
        }
    }

    /// The weights or null, the index or null, and the factor where it is the same for all, as the kernels take them.
    fn arguments(self, tokens: usize) -> (Argument, Argument, Argument) {
        let equal = Argument::F32(1.0 / tokens as f32);
        match self {
            Pool::Mean => (Argument::Null, Argument::Null, equal),
            Pool::Weighted => (Argument::input(1), Argument::Null, equal),
            Pool::Token => (Argument::Null, Argument::input(1), equal),
        }
    }

    /// Checks the weights or the index for `batch` rows of `tokens` tokens.
    fn check(self, inputs: &[TensorType], batch: usize, tokens: usize) -> Result<()> {
        let (tensor, want) = match self {
            Pool::Mean => return Ok(()),
            Pool::Weighted => ("weights", TensorType::f32([batch, tokens])),
            Pool::Token => ("index", TensorType::i32([batch])),
        };
        if inputs[1] == want {
            Ok(())
        } else {
            Err(Error::shape(NAME, tensor, want, inputs[1]))
        }
    }
}

impl Pool {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let x = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        let shape = args.input_types[0].shape;
        let (columns, tokens) = (shape.columns(), shape.dims()[1]);
        let factors = self.fast(&args.inputs, tokens);
        y.par_chunks_mut(columns)
            .zip(x.par_chunks(tokens * columns))
            .enumerate()
            .for_each(|(batch, (y, x))| {
                for (band, y) in y.chunks_mut(BAND).enumerate() {
                    let mut sums = [0.0; BAND];
                    let sums = &mut sums[..y.len()];
                    for (token, x) in x.chunks_exact(columns).enumerate() {
                        let factor = factors.of(batch, token, tokens);
                        // A token that does not count is not read: 0 · ∞ would not be 0.
                        if factor != 0.0 {
                            add_scaled(sums, factor as f32, &x[band * BAND..][..sums.len()]);
                        }
                    }
                    round(sums, y);
                }
            });
    }
}

impl Op for Pool {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let x = inputs[0];
        match *x.shape.dims() {
            [batch, tokens, columns] if tokens > 0 && columns > 0 && x.dtype.is_float() => {
                self.check(inputs, batch, tokens)?;
                Ok(vec![TensorType::new(x.dtype, [batch, columns])])
            }
            _ => Err(Error::shape(NAME, "x", "floats [B, T, C]", x)),
        }
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let x = args.inputs[0];
        let (columns, tokens) = (x.columns(), x.shape.dims()[1]);
        let factors = self.exact(args.inputs, tokens);
        let y = args.outputs[0].float_mut();
        for (row, x) in x.float().chunks_exact(columns).enumerate() {
            let (batch, token) = (row / tokens, row % tokens);
            let factor = factors.of(batch, token, tokens);
            for (y, x) in y[batch * columns..].iter_mut().zip(x) {
                *y += factor * x;
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
        let (x, y) = (inputs[0], outputs[0]);
        let (columns, tokens) = (x.shape.columns(), x.shape.dims()[1]);
        let kernel = kernels::POOLING_FORWARD.of(x.dtype)?;
        let (weights, one, equal) = self.arguments(tokens);
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            weights,
            one,
            equal,
            index(kernel, "the number of tokens", tokens)?,
            index(kernel, "the number of columns", columns)?,
        ];
        let grid = [
            blocks(kernel, y.shape.rows(), 1)?,
            blocks(kernel, columns, WARP_LANES * vector(x))?,
            1,
        ];
        Ok(vec![Launch::on_grid(kernel, grid, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let op = PoolBackward {
            pool: *self,
            tokens: backward.tape.shape(backward.inputs[0]).dims()[1],
            accumulates: false,
        };
        let mut inputs = vec![backward.gradient(0)];
        inputs.extend(&backward.inputs[1..]);
        let dx = backward.tape.record_one(op, &inputs)?;
        Ok([Some(dx), None][..backward.inputs.len()].to_vec())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        match self {
            // One token of each batch row is read, however many there are.
            Pool::Token => Cost::streaming(0.0, &[outputs[0], inputs[1]], outputs),
            _ => Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs),
        }
    }
}

impl PoolBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let dy = args.inputs.of::<T>(0);
        let sum = if self.accumulates {
            args.inputs
                .of_or_in_place::<T>(1 + self.pool.factor_inputs())
        } else {
            None
        };
        let dx = args.outputs.in_order().next::<T>();
        let (columns, tokens) = (args.input_types[0].shape.columns(), self.tokens);
        let factors = self.pool.fast(&args.inputs, tokens);
        dx.par_chunks_mut(tokens * columns)
            .zip(dy.par_chunks(columns))
            .enumerate()
            .for_each(|(batch, (dx, dy))| {
                match sum {
                    Some(sum) => dx.copy_from_slice(&sum[batch * tokens * columns..][..dx.len()]),
                    None if self.accumulates => {}
                    None => dx.fill(T::default()),
                }
                for (token, dx) in dx.chunks_exact_mut(columns).enumerate() {
                    let factor = factors.of(batch, token, tokens);
                    if factor != 0.0 {
                        add_scaled(dx, factor as f32, dy);
                    }
                }
            });
    }
}

impl Op for PoolBackward {
    fn name(&self) -> &'static str {
        "pooling_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [batch, columns] = *inputs[0].shape.dims() else {
            return Err(Error::shape(self.name(), "dy", "floats [B, C]", inputs[0]));
        };
        self.pool.check(inputs, batch, self.tokens)?;
        let shape = [batch, self.tokens, columns];
        Ok(vec![TensorType::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let dy = args.inputs[0];
        let (columns, tokens) = (dy.columns(), self.tokens);
        let factors = self.pool.exact(args.inputs, tokens);
        let dx = args.outputs[0].float_mut();
        if self.accumulates {
            dx.copy_from_slice(args.inputs[1 + self.pool.factor_inputs()].float());
        }
        for (row, dx) in dx.chunks_exact_mut(columns).enumerate() {
            let (batch, token) = (row / tokens, row % tokens);
            let factor = factors.of(batch, token, tokens);
            for (dx, dy) in dx.iter_mut().zip(&dy.float()[batch * columns..]) {
                *dx += factor * dy;
            }
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
        let kernel = kernels::POOLING_BACKWARD.of(dx.dtype)?;
        let (weights, one, equal) = self.pool.arguments(self.tokens);
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            weights,
            one,
            if self.accumulates {
                Argument::input(1 + self.pool.factor_inputs())
            } else {
                Argument::Null
            },
            equal,
            Argument::I64(dx.shape.rows() as i64),
            index(kernel, "the number of tokens", self.tokens)?,
            index(kernel, "the number of columns", dx.shape.columns())?,
        ];
        let blocks = move_blocks(kernel, dx)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * outputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        match (self.accumulates, self.pool) {
            (false, _) => &[],
            (true, Pool::Mean) => &[(0, 1)],
            (true, Pool::Weighted | Pool::Token) => &[(0, 2)],
        }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            let op: Box<dyn Op> = Box::new(PoolBackward {
                accumulates: true,
                ..*self
            });
            op
        })
    }
}
