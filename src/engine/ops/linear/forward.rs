//! y = f(x·Wᵀ + b) or residual + γ ⊙ (x·Wᵀ + b), with or without its parts.

use super::Activation;
use super::activation::ActivationBackward;
use super::backward_input::LinearBackwardInput;
use super::backward_weight::{ColumnSum, LinearBackwardWeight};
use super::hopper::{HopperProduct, OnHopper};
use super::tiles::{Tiling, size};
use super::widened_rows;
use crate::launch::{Argument, Launch, Mapped, kernels};
use crate::ops::layer_scale::layer_scale_backward;
use crate::ops::shapes::{expect_float, expect_type, expect_vector, with_columns};
use crate::ops::special::dot;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, Tier, Value,
    with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;
use keel_cpu::matmul::{self, Epilogue, Residual, Rows, RowsMut};

/// Inputs x, weight, then bias, residual and scale γ where present; outputs y, then z where saved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Linear {
    pub has_bias: bool,
    pub has_residual: bool,
    pub has_scale: bool,
    pub activation: Option<Activation>,
    pub saves_pre_activation: bool,
}

impl Linear {
    fn bias(&self) -> Option<usize> {
        self.has_bias.then_some(2)
    }

    fn residual(&self) -> Option<usize> {
        self.has_residual.then_some(2 + usize::from(self.has_bias))
    }

    fn scale(&self) -> Option<usize> {
        let before = usize::from(self.has_bias) + usize::from(self.has_residual);
        self.has_scale.then_some(2 + before)
    }
}

impl Linear {
    /// The launch on Hopper's own instructions. A map that the kernel does not look at is y's.
    fn launch_on_hopper(&self, product: HopperProduct) -> Result<Launch> {
        let kernel = kernels::LINEAR_FORWARD_HOPPER_BF16;
        let optional = |index: Option<usize>| index.map_or(Argument::Null, Argument::input);
        let z = usize::from(self.saves_pre_activation);
        let residual = self.residual().map_or(Mapped::Output(0), Mapped::Input);
        let arguments = vec![
            Argument::TensorMap(product.result(kernel, Mapped::Output(0))?),
            Argument::TensorMap(product.result(kernel, Mapped::Output(z))?),
            Argument::TensorMap(product.left(kernel, Mapped::Input(0))?),
            Argument::TensorMap(product.weight(kernel, Mapped::Input(1))?),
            Argument::TensorMap(product.result(kernel, residual)?),
            optional(self.bias()),
            optional(self.scale()),
            size(kernel, "the number of rows", product.rows)?,
            size(kernel, "the number of columns", product.columns)?,
            size(kernel, "the inner length", product.inner)?,
            Activation::argument(self.activation),
            Argument::I32(i32::from(self.saves_pre_activation)),
            Argument::I32(i32::from(self.has_residual)),
        ];
        Ok(Launch::new(kernel, product.blocks(), arguments))
    }

    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (rows, inner) = (
            args.input_types[0].shape.rows(),
            args.input_types[0].shape.columns(),
        );
        let columns = args.output_types[0].shape.columns();
        let x = Rows::new(args.inputs.of::<T>(0), rows, inner);
        let weight = Rows::new(args.inputs.of::<T>(1), columns, inner);
        let residual = self
            .residual()
            .map(|index| args.inputs.of_or_in_place::<T>(index));
        let mut epilogue = Epilogue {
            bias: self.bias().map(|index| args.inputs.f32(index)),
            activation: self.activation.map(Activation::curve),
            scale: self.scale().map(|index| args.inputs.f32(index)),
            residual: match residual {
                None => Residual::None,
                Some(None) => Residual::InPlace,
                Some(Some(residual)) => Residual::From(Rows::new(residual, rows, columns)),
            },
            ..Epilogue::default()
        };
        let mut outputs = args.outputs.in_order();
        let y = RowsMut::new(outputs.next::<T>(), rows, columns);
        if self.saves_pre_activation {
            epilogue.pre_activation = Some(RowsMut::new(outputs.next::<T>(), rows, columns));
        }
        matmul::linear(x, weight, y, epilogue, args.workspace);
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (x, weight) = (inputs[0], inputs[1]);
        expect_float(op, "x", 1, x)?;
        let columns = weight.shape.dims().first().copied().unwrap_or(1);
        let want = TensorType::new(x.dtype, [columns, x.shape.columns()]);
        expect_type(op, "weight", "[N, K] with x's K columns", want, weight)?;
        if let Some(bias) = self.bias() {
            let want = (DType::F32, columns);
            expect_vector(op, "bias", "[N] with weight's N rows", want, inputs[bias])?;
        }
        if let Some(scale) = self.scale() {
            let want = (DType::F32, columns);
            expect_vector(op, "gamma", "[N] with weight's N rows", want, inputs[scale])?;
        }
        let y = TensorType::new(x.dtype, with_columns(x.shape, columns));
        if let Some(residual) = self.residual() {
            expect_type(op, "residual", "like the result", y, inputs[residual])?;
        }
        Ok(vec![y; 1 + usize::from(self.saves_pre_activation)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (x, weight) = (args.inputs[0], args.inputs[1]);
        let bias = self.bias().map(|index| args.inputs[index].float());
        let residual = self.residual().map(|index| args.inputs[index].float());
        let scale = self.scale().map(|index| args.inputs[index].float());
        let (inner, columns) = (x.columns(), weight.shape.dims()[0]);
        for row in 0..x.shape.rows() {
            let x = &x.float()[row * inner..][..inner];
            for column in 0..columns {
                let weight = &weight.float()[column * inner..][..inner];
                let mut z = dot(x, weight);
                z += bias.map_or(0.0, |bias| bias[column]);
                let index = row * columns + column;
                let y =
                    self.activation.map_or(z, |f| f.value(z)) * scale.map_or(1.0, |s| s[column]);
                args.outputs[0].float_mut()[index] = y + residual.map_or(0.0, |r| r[index]);
                if self.saves_pre_activation {
                    args.outputs[1].float_mut()[index] = z;
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
        let (x, y) = (inputs[0], outputs[0]);
        if y.numel() == 0 {
            return Ok(Vec::new());
        }
        let (rows, columns, inner) = (y.shape.rows(), y.shape.columns(), x.shape.columns());
        let product = HopperProduct::of(x, y);
        if product.is_chosen(x.dtype, compile_target) {
            return Ok(vec![self.launch_on_hopper(product)?]);
        }
        let tiling = Tiling::whole([rows, columns, inner], x.dtype);
        let kernel = tiling.kernel(kernels::LINEAR_FORWARD_SIZES, x.dtype)?;
        let optional = |index: Option<usize>| index.map_or(Argument::Null, Argument::input);
        let arguments = vec![
            Argument::output(0),
            if self.saves_pre_activation {
                Argument::output(1)
            } else {
                Argument::Null
            },
            Argument::input(0),
            Argument::input(1),
            optional(self.bias()),
            optional(self.residual()),
            optional(self.scale()),
            size(kernel, "the number of rows", rows)?,
            size(kernel, "the number of columns", columns)?,
            size(kernel, "the inner length", inner)?,
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

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (x, weight) = (backward.inputs[0], backward.inputs[1]);
        let dy = backward.gradient(0);
        let mut gradients = vec![None; backward.inputs.len()];
        let needs_scale = self.scale().is_some_and(|scale| backward.needs(scale));
        // The residual takes dy as it is: where nothing else is trained, the slope or the scale need not be computed.
        let owes_product = (0..2 + usize::from(self.has_bias)).any(|i| backward.needs(i));
        // dz once for all three products. Fusing may later merge the activation into the product that made dy; here it
        // is an op of its own, because that product may have other readers.
        let dz = match (self.activation, self.scale()) {
            (Some(activation), _) if owes_product => {
                let z = backward.outputs[1];
                backward
                    .tape
                    .record_one(ActivationBackward { activation }, &[dy, z])?
            }
            (None, Some(scale)) if owes_product || needs_scale => {
                let z = backward.outputs[1];
                let inputs = [z, backward.inputs[scale], dy];
                let [dz, dgamma] = layer_scale_backward(backward.tape, inputs)?;
                gradients[scale] = needs_scale.then_some(dgamma);
                dz
            }
            _ => dy,
        };
        if backward.needs(0) {
            let op = LinearBackwardInput::default();
            gradients[0] = Some(backward.tape.record_one(op, &[dz, weight])?);
        }
        let needs_bias = self.bias().is_some_and(|bias| backward.needs(bias));
        // The product for dW sums dy over its rows anyway, so db comes with it; alone, it is a sum of columns.
        if backward.needs(1) {
            let op = LinearBackwardWeight {
                has_bias: needs_bias,
                accumulates: false,
            };
            let outputs = backward.tape.record(op, &[dz, x])?;
            gradients[1] = Some(outputs[0]);
            if needs_bias {
                gradients[2] = Some(outputs[1]);
            }
        } else if needs_bias {
            gradients[2] = Some(backward.tape.record_one(ColumnSum, &[dz])?);
        }
        if let Some(residual) = self.residual() {
            gradients[residual] = backward.needs(residual).then_some(dy);
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * inputs[0].numel() as f64 * inputs[1].shape.dims()[0] as f64;
        let added = usize::from(self.has_bias)
            + usize::from(self.has_residual)
            + usize::from(self.has_scale);
        let activation = self.activation.map_or(0.0, Activation::flops);
        let elementwise = (added as f64 + activation) * outputs[0].numel() as f64;
        Cost::streaming(product + elementwise, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        match self.residual() {
            Some(2) => &[(0, 2)],
            Some(_) => &[(0, 3)],
            None => &[],
        }
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cpu { threads } => {
                let (inner, columns) = (inputs[0].shape.columns(), outputs[0].shape.columns());
                let packed = matmul::linear_workspace(inner, columns);
                (packed + widened_rows(inputs[0].dtype, inner, threads)) * size_of::<f32>()
            }
            Target::Reference | Target::Cuda => 0,
        }
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}
