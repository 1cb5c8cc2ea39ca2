//! dx = dy·W, and on request ⊙ f′(z) or + a gradient that is there already.

use std::any::Any;

use rayon::prelude::*;

use super::Activation;
use super::activation::ActivationBackward;
use super::hopper::{HopperProduct, OnHopper};
use super::tiles::{Tiling, size};
use super::widened_rows;
use crate::launch::{Argument, Launch, Mapped, kernels};
use crate::ops::shapes::{expect_float, expect_type, with_columns};
use crate::tape::{
    CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, Tier, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::Result;
use keel_cpu::matmul::{self, Rows, RowsMut, Slope};

/// Elements that one task copies.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Inputs dy [.., N], weight [N, K], then z [.., K] for the activation or the gradient [.., K] to add to; output dx [.., K].
/// Never both of the last two: (dy·W + sum) ⊙ f′(z) is left to two ops.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinearBackwardInput {
    pub activation: Option<Activation>,
    pub accumulates: bool,
}

impl LinearBackwardInput {
    /// The launch on Hopper's own instructions. Where nothing stands beside, the kernel does not look at its map, which is dx's.
    fn launch_on_hopper(&self, product: HopperProduct, has_other: bool) -> Result<Launch> {
        let kernel = kernels::LINEAR_BACKWARD_INPUT_HOPPER_BF16;
        let other = match has_other {
            true => Mapped::Input(2),
            false => Mapped::Output(0),
        };
        let arguments = vec![
            Argument::TensorMap(product.result(kernel, Mapped::Output(0))?),
            Argument::TensorMap(product.left(kernel, Mapped::Input(0))?),
            Argument::TensorMap(product.weight_as_it_is(kernel, Mapped::Input(1))?),
            Argument::TensorMap(product.result(kernel, other)?),
            size(kernel, "the number of rows", product.rows)?,
            size(kernel, "the inner length", product.inner)?,
            size(kernel, "the number of columns", product.columns)?,
            Activation::argument(self.activation),
            Argument::I32(i32::from(has_other)),
        ];
        Ok(Launch::new(kernel, product.blocks(), arguments))
    }

    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (rows, columns) = (
            args.input_types[0].shape.rows(),
            args.input_types[0].shape.columns(),
        );
        let inner = args.output_types[0].shape.columns();
        let dy = Rows::new(args.inputs.of::<T>(0), rows, columns);
        let weight = Rows::new(args.inputs.of::<T>(1), columns, inner);
        let slope = self.activation.map(|activation| Slope {
            activation: activation.curve(),
            pre_activation: Rows::new(args.inputs.of::<T>(2), rows, inner),
        });
        // Three cases: nothing to add; the sum lies in dx already; or it is elsewhere and is copied there first, so
        // that the product has one way of accumulating.
        let sum = self.accumulates.then(|| args.inputs.of_or_in_place::<T>(2));
        let dx = args.outputs.in_order().next::<T>();
        if let Some(Some(sum)) = sum {
            copy(sum, dx);
        }
        let dx = RowsMut::new(dx, rows, inner);
        matmul::linear_backward_input(dy, weight, dx, self.accumulates, slope, args.workspace);
    }
}

impl Op for LinearBackwardInput {
    fn name(&self) -> &'static str {
        "linear_backward_input"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (dy, weight) = (inputs[0], inputs[1]);
        expect_float(op, "dy", 1, dy)?;
        let want = TensorType::new(dy.dtype, [dy.shape.columns(), weight.shape.columns()]);
        expect_type(op, "weight", "[N, K] with dy's N columns", want, weight)?;
        let dx = TensorType::new(dy.dtype, with_columns(dy.shape, weight.shape.columns()));
        if let Some(other) = inputs.get(2) {
            expect_type(op, "the third input", "like the result", dx, *other)?;
        }
        Ok(vec![dx])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (dy, weight) = (args.inputs[0].float(), args.inputs[1].float());
        let (columns, inner) = (args.inputs[0].columns(), args.inputs[1].columns());
        let beside = args.inputs.get(2).map(|input| input.float());
        let dx = args.outputs[0].float_mut();
        dx.fill(0.0);
        // Down the weight's rows, so that its elements are read in their order.
        for (row, dx) in dx.chunks_exact_mut(inner.max(1)).enumerate() {
            for n in 0..columns {
                let dy = dy[row * columns + n];
                for (dx, weight) in dx.iter_mut().zip(&weight[n * inner..]) {
                    *dx += dy * weight;
                }
            }
            let beside = beside.map(|beside| &beside[row * inner..]);
            for (k, dx) in dx.iter_mut().enumerate() {
                match (self.activation, beside) {
                    (Some(f), Some(before)) => *dx *= f.derivative(before[k]),
                    (None, Some(sum)) if self.accumulates => *dx += sum[k],
                    _ => {}
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
        outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (dy, dx) = (inputs[0], outputs[0]);
        if dx.numel() == 0 {
            return Ok(Vec::new());
        }
        let (rows, columns, inner) = (dx.shape.rows(), dx.shape.columns(), dy.shape.columns());
        let product = HopperProduct::of(dy, dx);
        if product.is_chosen(dy.dtype, compile_target) {
            return Ok(vec![self.launch_on_hopper(product, inputs.len() > 2)?]);
        }
        let tiling = Tiling::whole([rows, columns, inner], dy.dtype);
        let kernel = tiling.kernel(kernels::LINEAR_BACKWARD_INPUT_SIZES, dy.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            inputs.get(2).map_or(Argument::Null, |_| Argument::input(2)),
            size(kernel, "the number of rows", rows)?,
            size(kernel, "the inner length", inner)?,
            size(kernel, "the number of columns", columns)?,
            Activation::argument(self.activation),
        ];
        let grid = tiling.grid(kernel)?;
        Ok(vec![Launch::on_grid(kernel, grid, arguments)])
    }

    fn keeps_portable(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        tier: Tier,
    ) -> Option<String> {
        HopperProduct::of(inputs[0], outputs[0]).keeps_portable(inputs[0].dtype, tier)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * inputs[0].numel() as f64 * inputs[1].shape.columns() as f64;
        let activation = self.activation.map_or(0.0, Activation::derivative_flops);
        let extra = activation + f64::from(u8::from(self.accumulates));
        Cost::streaming(product + extra * outputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 2)] } else { &[] }
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cpu { threads } => {
                let (inner, columns) = (outputs[0].shape.columns(), inputs[0].shape.columns());
                let packed = matmul::linear_backward_input_workspace(inner, columns);
                (packed + widened_rows(inputs[0].dtype, columns, threads)) * size_of::<f32>()
            }
            Target::Reference | Target::Cuda => 0,
        }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        // The slope of the activation would multiply the sum as well, which is another formula.
        (self.activation.is_none() && !self.accumulates).then(|| {
            Box::new(LinearBackwardInput {
                accumulates: true,
                ..*self
            }) as Box<dyn Op>
        })
    }

    fn fused_with(&self, next: &dyn Op) -> Option<Box<dyn Op>> {
        let next: &dyn Any = next;
        let ActivationBackward { activation } = next.downcast_ref()?;
        (self.activation.is_none() && !self.accumulates).then(|| {
            Box::new(LinearBackwardInput {
                activation: Some(*activation),
                ..*self
            }) as Box<dyn Op>
        })
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}

/// to = from, on all threads.
pub(super) fn copy<T: Element>(from: &[T], to: &mut [T]) {
    to.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(from.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(to, from)| to.copy_from_slice(from));
}
