//! The activations that follow a product, and y = f(z) and dz = dy ⊙ f′(z) where no product can do that on the way.

use rayon::prelude::*;

use crate::launch::kernels::constants::linear::ELEMENTWISE_THREADS;
use crate::launch::{Argument, Launch, blocks, kernels, vector};
use crate::ops::shapes::{expect_float, expect_inputs, expect_type};
use crate::ops::special::{erfc, sigmoid};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::Result;
use keel_cpu::vector_math;

/// Elements one task works on.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// √(2/π), of the tanh form of GELU.
const TANH_SCALE: f64 = 0.797_884_560_802_865_4;

/// The cubic coefficient of the tanh form of GELU.
const TANH_CUBE: f64 = 0.044_715;

/// The factor of the quick form of GELU.
const QUICK_SCALE: f64 = 1.702;

/// A Gaussian error linear unit (Hendrycks and Gimpel 2016) in one of its three forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x·Φ(x), the exact form.
    GeluErf,
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))), the form of SigLIP and GPT-2.
    GeluTanh,
    /// x·σ(1.702x), the form of CLIP.
    GeluQuick,
}

impl Activation {
    /// f(x).
    pub(super) fn value(self, x: f64) -> f64 {
        match self {
            Activation::GeluErf => x * normal_distribution(x),
            Activation::GeluTanh => x * sigmoid(2.0 * TANH_SCALE * (x + TANH_CUBE * x * x * x)),
            Activation::GeluQuick => x * sigmoid(QUICK_SCALE * x),
        }
    }

    /// f′(x).
    pub(super) fn derivative(self, x: f64) -> f64 {
        match self {
            Activation::GeluErf => {
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                normal_distribution(x) + x * density
            }
            Activation::GeluTanh => {
                let s = sigmoid(2.0 * TANH_SCALE * (x + TANH_CUBE * x * x * x));
                let slope = 2.0 * TANH_SCALE * (1.0 + 3.0 * TANH_CUBE * x * x);
                s + x * s * (1.0 - s) * slope
            }
            Activation::GeluQuick => {
                let s = sigmoid(QUICK_SCALE * x);
                s * (1.0 + QUICK_SCALE * x * (1.0 - s))
            }
        }
    }

    /// The same activation among the processor's kernels.
    pub(super) fn curve(self) -> vector_math::Activation {
        match self {
            Activation::GeluErf => vector_math::Activation::Gelu,
            Activation::GeluTanh => vector_math::Activation::GeluTanh,
            Activation::GeluQuick => vector_math::Activation::QuickGelu,
        }
    }

    /// The same activation among the kernels' numbers, `enum Activation` in `cuda/activation.cuh`; none is 0.
    pub(in crate::ops) fn argument(activation: Option<Activation>) -> Argument {
        Argument::I32(match activation {
            None => 0,
            Some(Activation::GeluErf) => 1,
            Some(Activation::GeluTanh) => 2,
            Some(Activation::GeluQuick) => 3,
        })
    }

    /// Operations of one value, an exponential counted as ten.
    pub(super) fn flops(self) -> f64 {
        match self {
            Activation::GeluErf => 28.0,
            Activation::GeluTanh => 19.0,
            Activation::GeluQuick => 14.0,
        }
    }

    /// Operations of one derivative and the multiplication with it.
    pub(super) fn derivative_flops(self) -> f64 {
        self.flops() + 8.0
    }
}

/// Φ(x), the distribution function of the normal distribution.
fn normal_distribution(x: f64) -> f64 {
    0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// Records y = f(z), elementwise, for z that no single product makes: where one does, `linear_activation` computes both.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when z is not of floats.
pub fn activation(tape: &mut Tape, z: Value, activation: Activation) -> Result<Value> {
    tape.record_one(ActivationForward { activation }, &[z])
}

/// y = f(z). Input z, output y; z is kept for the backward pass.
#[derive(Clone, Copy, Debug)]
struct ActivationForward {
    activation: Activation,
}

impl ActivationForward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        /// Elements that are widened at once.
        const PIECE: usize = 256;
        let z = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        y.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(z.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(y, z)| {
                let (mut wide, mut result) = ([0.0; PIECE], [0.0; PIECE]);
                for (y, z) in y.chunks_mut(PIECE).zip(z.chunks(PIECE)) {
                    let (wide, result) = (&mut wide[..z.len()], &mut result[..z.len()]);
                    for (wide, z) in wide.iter_mut().zip(z) {
                        *wide = z.widen();
                    }
                    vector_math::activate(self.activation.curve(), wide, result);
                    for (y, result) in y.iter_mut().zip(result) {
                        *y = T::rounded(*result);
                    }
                }
            });
    }
}

impl Op for ActivationForward {
    fn name(&self) -> &'static str {
        "linear_forward_activation"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [z] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "z", 0, z)?;
        Ok(vec![z])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([z], [y]) = args.split();
        for (y, z) in y.float_mut().iter_mut().zip(z.float()) {
            *y = self.activation.value(*z);
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
        let ty = inputs[0];
        let kernel = kernels::LINEAR_FORWARD_ACTIVATION.of(ty.dtype)?;
        let blocks = blocks(kernel, ty.numel(), ELEMENTWISE_THREADS * vector(ty))?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(ty.numel() as i64),
            Activation::argument(Some(self.activation)),
        ];
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (dy, z) = (backward.gradient(0), backward.inputs[0]);
        let activation = self.activation;
        let op = ActivationBackward { activation };
        Ok(vec![Some(backward.tape.record_one(op, &[dy, z])?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = self.activation.flops() * outputs[0].numel() as f64;
        Cost::streaming(flops, inputs, outputs)
    }
}

/// dz = dy ⊙ f′(z). Inputs dy, z of one shape; dz may take dy's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActivationBackward {
    pub activation: Activation,
}

impl ActivationBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let dy = args.inputs.of_or_in_place::<T>(0);
        let z = args.inputs.of::<T>(1);
        let dz = args.outputs.in_order().next::<T>();
        dz.par_chunks_mut(ELEMENTS_PER_TASK)
            .enumerate()
            .for_each(|(task, dz)| {
                let first = task * ELEMENTS_PER_TASK;
                if let Some(dy) = dy {
                    dz.copy_from_slice(&dy[first..][..dz.len()]);
                }
                let z = &z[first..][..dz.len()];
                vector_math::activation_backward(self.activation.curve(), z, dz);
            });
    }
}

impl Op for ActivationBackward {
    fn name(&self) -> &'static str {
        "linear_backward_activation"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [dy, z] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "dy", 0, dy)?;
        expect_type(self.name(), "z", "like dy", dy, z)?;
        Ok(vec![dy])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy, z], [dz]) = args.split();
        for ((dz, dy), z) in dz.float_mut().iter_mut().zip(dy.float()).zip(z.float()) {
            *dz = dy * self.activation.derivative(*z);
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
        let ty = inputs[0];
        let kernel = kernels::LINEAR_BACKWARD_ACTIVATION.of(ty.dtype)?;
        let blocks = blocks(kernel, ty.numel(), ELEMENTWISE_THREADS * vector(ty))?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::I64(ty.numel() as i64),
            Activation::argument(Some(self.activation)),
        ];
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = self.activation.derivative_flops() * outputs[0].numel() as f64;
        Cost::streaming(flops, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
