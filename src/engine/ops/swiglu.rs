//! The gated activation of decoders: y = silu(gate) ⊙ up (Shazeer 2020, SwiGLU).
//!
//! Shapes: gate_up [.., 2F] with the gate in the first F columns, y [.., F].
//!
//! Forward: silu(a) = a·σ(a). Backward with s = σ(gate): dgate = dy ⊙ up ⊙ s(1 + gate(1 − s)), dup = dy ⊙ gate·s.
//! Saved: gate_up; its gradient may take its place. About 16 flops an element forward and 24 backward, an exponential
//! counted as ten; moves 12 bytes an element of y forward and 20 backward.

use rayon::prelude::*;

use crate::launch::{Argument, Family, Launch, blocks, index, kernels};
use crate::ops::rows::rows_per_block;
use crate::ops::shapes::{expect_float, expect_inputs, expect_type, with_columns};
use crate::ops::special::sigmoid;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};
use keel_cpu::vector_math;

/// Elements of y that one task works on, in whole rows.
const ELEMENTS_PER_TASK: usize = 8 * 1024;

/// y [.., F] = silu(gate) ⊙ up for gate_up [.., 2F], the gate first.
///
/// # Errors
/// [`Error::Shape`] when the number of columns is odd or the values are not floats.
pub fn swiglu(tape: &mut Tape, gate_up: Value) -> Result<Value> {
    tape.record_one(Swiglu, &[gate_up])
}

/// The launch of a kernel of `cuda/swiglu.cu` for y [N, F]: its tensors, N, F, rows a block.
fn launch(family: Family, y: TensorType, tensors: &[Argument]) -> Result<Vec<Launch>> {
    let kernel = family.of(y.dtype)?;
    let (rows, width) = (y.shape.rows(), y.shape.columns());
    let each = rows_per_block(width, y.dtype);
    let blocks = blocks(kernel, rows, each)?;
    let mut arguments = tensors.to_vec();
    arguments.extend([
        Argument::I64(rows as i64),
        index(kernel, "F", width)?,
        index(kernel, "the rows of a block", each)?,
    ]);
    Ok(vec![Launch::new(kernel, blocks, arguments)])
}

#[derive(Clone, Copy, Debug)]
struct Swiglu;

impl Swiglu {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let width = args.output_types[0].shape.columns();
        let gate_up = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        if y.is_empty() {
            return;
        }
        let rows = (ELEMENTS_PER_TASK / width).max(1);
        y.par_chunks_mut(rows * width)
            .zip(gate_up.par_chunks(rows * 2 * width))
            .for_each(|(y, gate_up)| {
                let rows = y
                    .chunks_exact_mut(width)
                    .zip(gate_up.chunks_exact(2 * width));
                for (y, gate_up) in rows {
                    let (gate, up) = gate_up.split_at(width);
                    vector_math::swiglu(gate, up, y);
                }
            });
    }
}

impl Op for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [gate_up] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "gate_up", 1, gate_up)?;
        let columns = gate_up.shape.columns();
        if !columns.is_multiple_of(2) {
            let want = "[.., 2F]: a gate and a value of equal width";
            return Err(Error::shape(self.name(), "gate_up", want, gate_up));
        }
        let shape = with_columns(gate_up.shape, columns / 2);
        Ok(vec![TensorType::new(gate_up.dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([gate_up], [y]) = args.split();
        let width = y.columns();
        for (index, y) in y.float_mut().iter_mut().enumerate() {
            let gate = index / width * 2 * width + index % width;
            let (gate, up) = (gate_up.float()[gate], gate_up.float()[gate + width]);
            *y = gate * sigmoid(gate) * up;
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
        let tensors = [Argument::output(0), Argument::input(0)];
        launch(kernels::SWIGLU_FORWARD, outputs[0], &tensors)
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let inputs = [backward.gradient(0), backward.inputs[0]];
        Ok(vec![Some(
            backward.tape.record_one(SwigluBackward, &inputs)?,
        )])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(16.0 * outputs[0].numel() as f64, inputs, outputs)
    }
}

/// Inputs dy [.., F], gate_up [.., 2F]; output its gradient, which may take its place.
#[derive(Clone, Copy, Debug)]
struct SwigluBackward;

impl SwigluBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let width = args.input_types[0].shape.columns();
        let dy = args.inputs.of::<T>(0);
        let gate_up = args.inputs.of_or_in_place::<T>(1);
        let gradient = args.outputs.in_order().next::<T>();
        if dy.is_empty() {
            return;
        }
        let rows = (ELEMENTS_PER_TASK / width).max(1);
        let chunk = rows * 2 * width;
        gradient
            .par_chunks_mut(chunk)
            .zip(dy.par_chunks(rows * width))
            .enumerate()
            .for_each(|(task, (gradient, dy))| {
                let rows = gradient
                    .chunks_exact_mut(2 * width)
                    .zip(dy.chunks_exact(width));
                for (row, (gradient, dy)) in rows.enumerate() {
                    // Row by row into the gradient's own memory, where both halves are overwritten at once: one loop
                    // whether or not gate_up lies there already.
                    if let Some(gate_up) = gate_up {
                        let at = task * chunk + row * 2 * width;
                        gradient.copy_from_slice(&gate_up[at..][..2 * width]);
                    }
                    let (gate, up) = gradient.split_at_mut(width);
                    vector_math::swiglu_backward(dy, gate, up);
                }
            });
    }
}

impl Op for SwigluBackward {
    fn name(&self) -> &'static str {
        "swiglu_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [dy, gate_up] = expect_inputs(self.name(), inputs)?;
        let shape = with_columns(dy.shape, 2 * dy.shape.columns());
        let want = TensorType::new(dy.dtype, shape);
        expect_type(self.name(), "gate_up", "twice as wide as dy", want, gate_up)?;
        Ok(vec![gate_up])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy, gate_up], [gradient]) = args.split();
        let width = dy.columns();
        let gradient = gradient.float_mut();
        for (index, dy) in dy.float().iter().enumerate() {
            let at = index / width * 2 * width + index % width;
            let (gate, up) = (gate_up.float()[at], gate_up.float()[at + width]);
            let s = sigmoid(gate);
            gradient[at] = dy * up * s * (1.0 + gate * (1.0 - s));
            gradient[at + width] = dy * gate * s;
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
        let tensors = [Argument::output(0), Argument::input(0), Argument::input(1)];
        launch(kernels::SWIGLU_BACKWARD, inputs[0], &tensors)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(24.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1)]
    }
}
