//! RMSNorm of every query and key head of packed rows, before they turn by their positions.
//!
//! Forward, for each query head with its weight w (and each key head with its own): r = (mean x² + ε)^−½, y = x·r·w.
//! Backward, g = dy·w: dx = r (g − x r² mean(g·x)), dw = Σ dy·x·r over rows and heads. Values are copied.
//!
//! Shapes: qkv and y [B, T, (H+2Hk)·D], weights f32 [D], and so are their gradients. Saved: qkv; r is computed again, which
//! costs less than reading it.
//! 4·D flops a head and row forward, 9·D backward; every byte once. Partial sums of dw are made for fixed blocks of
//! rows and added in order.
//! Source: Zhang and Sennrich 2019, eq. 4; on heads: Qwen3, and Dehghani et al. 2023, section 2.

use rayon::prelude::*;

use super::attention::{Heads, check_heads, rows};
use crate::launch::kernels::constants::kernel::WARP_LANES;
use crate::launch::kernels::constants::partials::PARTIAL_COLUMNS;
use crate::launch::kernels::constants::qk_norm::{QK_BLOCKS, QK_THREADS};
use crate::launch::{Argument, KernelEntry, Launch, blocks, index, kernels};
use crate::ops::rows::{add_scaled, dot, rows_per_task};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
    with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// Normalises the query and key heads of packed rows.
///
/// Shapes: `qkv` and the result [B, T, (H+2Hk)·D]; `query_weight` and `key_weight` `[D]`, one for all heads.
///
/// # Errors
/// [`Error::Shape`] when a shape differs or `epsilon` is not a positive number.
pub fn qk_norm(
    tape: &mut Tape,
    qkv: Value,
    query_weight: Value,
    key_weight: Value,
    heads: Heads,
    epsilon: f32,
) -> Result<Value> {
    tape.record_one(QkNorm { heads, epsilon }, &[qkv, query_weight, key_weight])
}

/// Inputs: qkv, query weight, key weight. Output: y.
#[derive(Clone, Copy, Debug)]
struct QkNorm {
    heads: Heads,
    epsilon: f32,
}

/// Inputs: qkv, query weight, key weight, dy. Outputs: dqkv, and both dw where they are owed.
#[derive(Clone, Copy, Debug)]
struct QkNormBackward {
    norm: QkNorm,
    owes_weights: bool,
}

impl QkNorm {
    /// The number of heads that are normalised: the query heads, then the key heads.
    fn normed(&self) -> usize {
        self.heads.query + self.heads.key_value
    }

    /// 0 for a query head, 1 for a key head.
    fn kind(&self, head: usize) -> usize {
        usize::from(head >= self.heads.query)
    }

    fn scale<T: Element>(&self, x: &[T]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.epsilon).sqrt()
    }

    fn exact_scale(&self, x: &[f64]) -> f64 {
        let squares: f64 = x.iter().map(|x| x * x).sum();
        (squares / x.len() as f64 + f64::from(self.epsilon)).powf(-0.5)
    }

    /// Rows that one partial sum of dw stands for: few enough that the sums stay short.
    fn block(&self, rows: usize) -> usize {
        rows.div_ceil(64).max(16)
    }

    /// Lanes that hold a head with 16 bytes each in `cuda/qk_norm.cu`.
    fn lanes(&self, qkv: TensorType) -> Result<usize> {
        let lanes = (self.heads.dim * qkv.dtype.size())
            .div_ceil(16)
            .next_power_of_two();
        if lanes > WARP_LANES {
            return Err(Error::kernel(format!(
                "kernels of cuda/qk_norm.cu: a head has at most 512 bytes, but {} columns of {} are wanted; use more heads, or --device cpu where a tower normalises all heads at once",
                self.heads.dim, qkv.dtype
            )));
        }
        Ok(lanes)
    }

    /// The launch of a kernel of `cuda/qk_norm.cu`: its tensors, ε, heads, lanes and the heads of all rows. `most_blocks`
    /// take heads in turn.
    fn launch(
        &self,
        kernel: &'static KernelEntry,
        qkv: TensorType,
        tensors: &[Argument],
        most_blocks: usize,
    ) -> Result<Launch> {
        let total = self.heads.query + 2 * self.heads.key_value;
        let lanes = self.lanes(qkv)?;
        let items = qkv.shape.rows() * total;
        let blocks = blocks(kernel, items, QK_THREADS / lanes)?.min(most_blocks as u32);
        let mut arguments = tensors.to_vec();
        arguments.extend([
            Argument::F32(self.epsilon),
            Argument::I32(self.heads.query as i32),
            Argument::I32(self.normed() as i32),
            Argument::I32(total as i32),
            Argument::I32(self.heads.dim as i32),
            Argument::I32(lanes as i32),
            // With room for the last step beyond the end.
            index(
                kernel,
                "the number of heads of all rows",
                items + QK_BLOCKS * QK_THREADS,
            )
            .map(|_| Argument::I32(items as i32))?,
        ]);
        Ok(Launch::new(kernel, blocks, arguments))
    }

    fn check(&self, name: &'static str, inputs: &[TensorType]) -> Result<()> {
        check_heads(name, self.heads)?;
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            let want = "a positive number";
            return Err(Error::shape(name, "epsilon", want, self.epsilon));
        }
        rows(name, "qkv", inputs[0], self.heads.packed_width())?;
        let want = TensorType::f32([self.heads.dim]);
        for (tensor, got) in [("query_weight", inputs[1]), ("key_weight", inputs[2])] {
            if got != want {
                return Err(Error::shape(name, tensor, want, got));
            }
        }
        Ok(())
    }
}

impl QkNormBackward {
    /// Blocks of the kernel: at least eight heads for each group of lanes, from the shape alone.
    fn blocks(&self, qkv: TensorType) -> usize {
        let heads = qkv.shape.rows() * (self.norm.heads.query + 2 * self.norm.heads.key_value);
        let lanes = self.norm.lanes(qkv).unwrap_or(WARP_LANES);
        heads.div_ceil(8 * (QK_THREADS / lanes)).clamp(1, QK_BLOCKS)
    }
}

impl QkNorm {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let qkv = args.inputs.of_or_in_place::<T>(0);
        let weights = [args.inputs.f32(1), args.inputs.f32(2)];
        let y = args.outputs.in_order().next::<T>();
        let (width, dim) = (self.heads.packed_width(), self.heads.dim);
        let block = rows_per_task(width);
        y.par_chunks_mut(block * width)
            .enumerate()
            .for_each(|(task, y)| {
                if let Some(qkv) = qkv {
                    y.copy_from_slice(&qkv[task * block * width..][..y.len()]);
                }
                for y in y.chunks_exact_mut(width) {
                    for (head, y) in y.chunks_exact_mut(dim).take(self.normed()).enumerate() {
                        let scale = self.scale(y);
                        for (y, weight) in y.iter_mut().zip(weights[self.kind(head)]) {
                            *y = T::rounded(y.widen() * (scale * weight));
                        }
                    }
                }
            });
    }
}

impl Op for QkNorm {
    fn name(&self) -> &'static str {
        "qk_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        self.check(self.name(), inputs)?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([qkv, query, key], [y]) = args.split();
        let (width, dim) = (self.heads.packed_width(), self.heads.dim);
        let weights = [query.float(), key.float()];
        y.float_mut().copy_from_slice(qkv.float());
        for y in y.float_mut().chunks_exact_mut(width) {
            for (head, y) in y.chunks_exact_mut(dim).take(self.normed()).enumerate() {
                let scale = self.exact_scale(y);
                for (y, weight) in y.iter_mut().zip(weights[self.kind(head)]) {
                    *y *= scale * weight;
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let kernel = kernels::QK_NORM_FORWARD.of(inputs[0].dtype)?;
        let tensors = [
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
        ];
        let launch = self.launch(kernel, inputs[0], &tensors, usize::MAX)?;
        Ok(vec![launch])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let op = QkNormBackward {
            norm: *self,
            owes_weights: backward.needs(1) || backward.needs(2),
        };
        let mut inputs = backward.inputs.to_vec();
        inputs.push(backward.gradient(0));
        let gradients = backward.tape.record(op, &inputs)?;
        Ok((0..3)
            .map(|input| {
                let gradient = gradients.get(input).copied();
                gradient.filter(|_| backward.needs(input))
            })
            .collect())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let normed = inputs[0].shape.rows() * self.normed() * self.heads.dim;
        Cost::streaming(4.0 * normed as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

impl QkNormBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let qkv = args.inputs.of::<T>(0);
        let weights = [args.inputs.f32(1), args.inputs.f32(2)];
        let dy = args.inputs.of_or_in_place::<T>(3);
        let heads = self.norm.heads;
        let (width, dim) = (heads.packed_width(), heads.dim);
        let block = self.norm.block(args.input_types[0].shape.rows());
        // dx of one row, which holds dy; adds to the partial sums [2, D] of the weights' gradients.
        let one = |x: &[T], dx: &mut [T], partial: &mut [f32]| {
            let x_heads = x.chunks_exact(dim).take(self.norm.normed());
            for (head, (x, dx)) in x_heads.zip(dx.chunks_exact_mut(dim)).enumerate() {
                let kind = self.norm.kind(head);
                let scale = self.norm.scale(x);
                // The weights' gradients before dx: it overwrites dy in its place.
                if self.owes_weights {
                    let sums = partial[kind * dim..][..dim].iter_mut();
                    for ((sum, x), dy) in sums.zip(x).zip(&*dx) {
                        *sum += dy.widen() * x.widen() * scale;
                    }
                }
                let along = weighted_dot(dx, weights[kind], x) / dim as f32 * scale * scale;
                for ((dx, x), weight) in dx.iter_mut().zip(x).zip(weights[kind]) {
                    let g = dx.widen() * weight;
                    *dx = T::rounded(scale * (g - x.widen() * along));
                }
            }
        };
        let rows_of = |(task, dx): (usize, &mut [T]), partial: &mut [f32]| {
            let first = task * block * width;
            if let Some(dy) = dy {
                dx.copy_from_slice(&dy[first..][..dx.len()]);
            }
            partial.fill(0.0);
            let x = qkv[first..].chunks_exact(width);
            for (x, dx) in x.zip(dx.chunks_exact_mut(width)) {
                one(x, dx, partial);
            }
        };
        if !self.owes_weights {
            let dx = args.outputs.in_order().next::<T>();
            dx.par_chunks_mut(block * width)
                .enumerate()
                .for_each(|chunk| rows_of(chunk, &mut []));
            return;
        }
        let mut outputs = args.outputs.in_order();
        let dx = outputs.next::<T>();
        let (d_query, d_key) = (outputs.next::<f32>(), outputs.next::<f32>());
        let partials = &mut *args.workspace;
        dx.par_chunks_mut(block * width)
            .enumerate()
            .zip(partials.par_chunks_mut(2 * dim))
            .for_each(|(chunk, partial)| rows_of(chunk, partial));
        d_query.fill(0.0);
        d_key.fill(0.0);
        let blocks = (qkv.len() / width).div_ceil(block);
        for partial in partials.chunks_exact(2 * dim).take(blocks) {
            add_scaled(d_query, 1.0, &partial[..dim]);
            add_scaled(d_key, 1.0, &partial[dim..]);
        }
    }
}

impl Op for QkNormBackward {
    fn name(&self) -> &'static str {
        "qk_norm_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        self.norm.check(self.name(), inputs)?;
        if inputs[3] != inputs[0] {
            return Err(Error::shape(self.name(), "dy", inputs[0], inputs[3]));
        }
        let owed = if self.owes_weights { 3 } else { 1 };
        Ok(inputs[..owed].to_vec())
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let [qkv, query, key, dy] = [0, 1, 2, 3].map(|input| args.inputs[input].float());
        let heads = self.norm.heads;
        let (width, dim) = (heads.packed_width(), heads.dim);
        let weights = [query, key];
        args.outputs[0].float_mut().copy_from_slice(dy);
        for row in 0..qkv.len() / width {
            for head in 0..self.norm.normed() {
                let range = row * width + head * dim..row * width + (head + 1) * dim;
                let (x, dy) = (&qkv[range.clone()], &dy[range.clone()]);
                let kind = self.norm.kind(head);
                let scale = self.norm.exact_scale(x);
                let mean = (0..dim)
                    .map(|d| dy[d] * weights[kind][d] * x[d])
                    .sum::<f64>()
                    / dim as f64;
                for d in 0..dim {
                    let g = dy[d] * weights[kind][d];
                    args.outputs[0].float_mut()[range.start + d] =
                        scale * (g - x[d] * scale * scale * mean);
                    if self.owes_weights {
                        args.outputs[1 + kind].float_mut()[d] += dy[d] * x[d] * scale;
                    }
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let partials = if self.owes_weights {
            Argument::workspace(DType::F32)
        } else {
            Argument::Null
        };
        let tensors = [
            Argument::output(0),
            partials,
            Argument::input(0),
            Argument::input(3),
            Argument::input(1),
            Argument::input(2),
        ];
        let kernel = kernels::QK_NORM_BACKWARD.of(inputs[0].dtype)?;
        let blocks_of_heads = self.blocks(inputs[0]);
        let launch = self
            .norm
            .launch(kernel, inputs[0], &tensors, blocks_of_heads)?;
        let mut launches = vec![launch];
        if self.owes_weights {
            let (name, dim) = (kernels::QK_NORM_BACKWARD_WEIGHTS_F32, self.norm.heads.dim);
            let arguments = vec![
                Argument::output(1),
                Argument::output(2),
                partials,
                Argument::I32(blocks_of_heads as i32),
                Argument::I32(dim as i32),
            ];
            let mut launch = Launch::new(name, blocks(name, dim, PARTIAL_COLUMNS)?, arguments);
            launch.grid[1] = 2;
            launches.push(launch);
        }
        Ok(launches)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let normed = inputs[0].shape.rows() * self.norm.normed() * self.norm.heads.dim;
        Cost::streaming(9.0 * normed as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 3)]
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        if !self.owes_weights {
            return 0;
        }
        let rows = inputs[0].shape.rows();
        let partial = 2 * self.norm.heads.dim * size_of::<f32>();
        match compile_target.target {
            Target::Cpu { .. } => rows.div_ceil(self.norm.block(rows)) * partial,
            Target::Cuda => self.blocks(inputs[0]) * partial,
            Target::Reference => 0,
        }
    }
}

/// Σ dy·w·x in the order of [`dot`]: g = dy·w is not stored between, where it would be rounded.
fn weighted_dot<T: Element>(dy: &[T], weight: &[f32], x: &[T]) -> f32 {
    let (dy_whole, dy_rest) = dy.as_chunks::<8>();
    let (weight_whole, weight_rest) = weight.as_chunks::<8>();
    let (x_whole, x_rest) = x.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for ((dy, weight), x) in dy_whole.iter().zip(weight_whole).zip(x_whole) {
        for lane in 0..8 {
            sums[lane] += dy[lane].widen() * weight[lane] * x[lane].widen();
        }
    }
    let rest = dy_rest.iter().zip(weight_rest).zip(x_rest);
    let rest: f32 = rest
        .map(|((dy, weight), x)| dy.widen() * weight * x.widen())
        .sum();
    sums.iter().sum::<f32>() + rest
}
