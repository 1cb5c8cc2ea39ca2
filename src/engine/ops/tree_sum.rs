//! The sum of several parts, in a balanced binary tree: ((0 + 1) + (2 + 3)) + …
//!
//! y = Σ over parts of x, with x [parts·n, …] and y [n, …]; dx = dy for each part. The tree's shape depends on the number of
//! parts alone, so that what ranks exchanged adds to the same bits whatever brought it, and in it ranks that are a power of
//! two add their own subtrees. parts − 1 flops and 4 (parts + 1) bytes an element: bound by memory.

use rayon::prelude::*;

use super::shapes::expect_inputs;
use crate::launch::kernels::constants::tree_sum::TREE_SUM_THREADS;
use crate::launch::{Argument, Launch, blocks, index, kernels, vector};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::{Shape, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::order;

/// Elements that one task adds up; what a level of the tree keeps of them lies on the stack.
const ELEMENTS_PER_TASK: usize = 1024;

/// Records the sum of the `parts` equal parts of x along its first dimension: f32 or bf16 [parts·n, …] becomes [n, …] of the
/// same type; sums are f32.
///
/// # Errors
/// [`Error::Shape`] when x is no float, or its first dimension no multiple of `parts`.
pub fn tree_sum(tape: &mut Tape, x: Value, parts: usize) -> Result<Value> {
    tape.record_one(TreeSum { parts }, &[x])
}

/// Input: x. Output: y.
#[derive(Clone, Copy, Debug)]
pub(super) struct TreeSum {
    pub parts: usize,
}

/// out = the tree sum of the parts `first..first + count`, of which `part(index)` is one. In f32, whatever parts are stored as.
fn add<'a, T: Element>(
    out: &mut [f32],
    part: &impl Fn(usize) -> &'a [T],
    [first, count]: [usize; 2],
) {
    if count == 1 {
        for (out, x) in out.iter_mut().zip(part(first)) {
            *out = x.widen();
        }
        return;
    }
    // The left subtree is the largest complete one.
    let left = count.next_power_of_two() / 2;
    add(out, part, [first, left]);
    if left + 1 == count {
        for (out, x) in out.iter_mut().zip(part(first + left)) {
            *out += x.widen();
        }
        return;
    }
    let mut right = [0.0f32; ELEMENTS_PER_TASK];
    let right = &mut right[..out.len()];
    add(right, part, [first + left, count - left]);
    for (out, x) in out.iter_mut().zip(right) {
        *out += *x;
    }
}

impl TreeSum {
    /// The processor's kernel for values stored as `T`, rounded once at the end.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let x = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        let n = y.len();
        y.par_chunks_mut(ELEMENTS_PER_TASK)
            .enumerate()
            .for_each(|(task, y)| {
                let (first, count) = (task * ELEMENTS_PER_TASK, y.len());
                let part = |part: usize| &x[part * n + first..][..count];
                let mut sums = [0.0f32; ELEMENTS_PER_TASK];
                let sums = &mut sums[..count];
                add::<T>(sums, &part, [0, self.parts]);
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = T::rounded(*sum);
                }
            });
    }
}

impl Op for TreeSum {
    fn name(&self) -> &'static str {
        "tree_sum"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = &expect_inputs("tree_sum", inputs)?;
        let rows = x.shape.dims().first().copied().unwrap_or(0);
        let is_known = (1..=order::MOST_RANKS).contains(&self.parts);
        let is_cut = x.shape.rank() > 0 && is_known && rows.is_multiple_of(self.parts);
        if !x.dtype.is_float() || !is_cut {
            let most = order::MOST_RANKS;
            let want = format!(
                "floats in a multiple of {} rows, for 1 to {most} parts",
                self.parts
            );
            return Err(Error::shape("tree_sum", "x", want, x));
        }
        let mut dims = x.shape.dims().to_vec();
        dims[0] = rows / self.parts;
        Ok(vec![TensorType::new(x.dtype, Shape::from(&dims[..]))])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        let (x, y) = (x.float(), y.float_mut());
        let n = y.len();
        for (i, y) in y.iter_mut().enumerate() {
            let parts = (0..self.parts).map(|part| x[part * n + i]);
            *y = order::tree_sum(parts).expect("at least one part");
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        _: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let [y] = outputs else {
            unreachable!("inferred")
        };
        let kernel = kernels::TREE_SUM.of(y.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            index(kernel, "parts", self.parts)?,
            Argument::I64(y.numel() as i64),
        ];
        let blocks = blocks(kernel, y.numel(), TREE_SUM_THREADS * vector(*y))?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        let op = TreeSumBackward { parts: self.parts };
        Ok(vec![Some(backward.tape.record_one(op, &[dy])?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let additions = (self.parts - 1) * outputs[0].numel();
        Cost::streaming(additions as f64, inputs, outputs)
    }
}

/// Input: dy [n, …]. Output: dx [parts·n, …], every part of it dy.
#[derive(Clone, Copy, Debug)]
struct TreeSumBackward {
    parts: usize,
}

impl Op for TreeSumBackward {
    fn name(&self) -> &'static str {
        "tree_sum_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut dims = inputs[0].shape.dims().to_vec();
        dims[0] *= self.parts;
        let shape = Shape::from(&dims[..]);
        Ok(vec![TensorType::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [dx]) = args.split();
        let dy = dy.float();
        for dx in dx.float_mut().chunks_mut(dy.len().max(1)) {
            dx.copy_from_slice(dy);
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        fn copy<T: Element>(args: CpuArgs<'_>) {
            let dy = args.inputs.of::<T>(0);
            let dx = args.outputs.in_order().next::<T>();
            dx.par_chunks_mut(dy.len().max(1))
                .for_each(|dx| dx.copy_from_slice(dy));
        }
        with_element!(args.input_types[0].dtype, T => copy::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (kernel, n) = (
            kernels::TREE_SUM_BACKWARD.of(inputs[0].dtype)?,
            inputs[0].numel(),
        );
        let grid = [blocks(kernel, n, TREE_SUM_THREADS)?, self.parts as u32, 1];
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(n as i64),
        ];
        Ok(vec![Launch::on_grid(kernel, grid, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}
