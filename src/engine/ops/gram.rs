//! Gram matrices of the tokens of each image: how alike its patches are, two by two.
//!
//! Forward: G = x·xᵀ for each batch row. Backward: dx = (dG + dGᵀ)·x, as two products of which the second adds to the first.
//!
//! Shapes: x f32 [B, T, C]; G f32 [B, T, T]. Saved: x. 2·B·T²·C flops forward, twice as many backward. Products are those of
//! linear layers in f32, one for each image: on a GPU a launch for each, so that what is compared is never rounded to bf16.

use super::linear::Activation;
use super::linear::tiles::{Tiling, size};
use super::shapes::{expect_inputs, expect_tokens, expect_type};
use crate::launch::{Argument, Launch, index, kernels};
use crate::tape::{Backward, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Target, Value};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;
use keel_cpu::matmul::{self, Epilogue, Rows, RowsMut};

/// Records G [B, T, T] of x f32 [B, T, C].
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when x is no such tensor.
pub fn gram(tape: &mut Tape, x: Value) -> Result<Value> {
    tape.record_one(Gram, &[x])
}

/// B, T and C of x f32 [B, T, C].
fn sizes(op: &'static str, x: TensorType) -> Result<[usize; 3]> {
    expect_type(op, "x", "in f32", TensorType::f32(x.shape), x)?;
    expect_tokens(op, "x", x)
}

/// Of x, which its op has inferred.
fn known(x: TensorType) -> [usize; 3] {
    let [b, t, c] = *x.shape.dims() else {
        unreachable!("inferred");
    };
    [b, t, c]
}

/// A launch's argument at matrix `image` of matrices of `elements` elements.
fn at(argument: Argument, image: usize, elements: usize) -> Argument {
    let by = image * elements * DType::F32.size();
    match argument {
        Argument::Input { index, .. } => Argument::Input { index, offset: by },
        Argument::Output { index, .. } => Argument::Output { index, offset: by },
        other => other,
    }
}

/// Input: x. Output: G.
#[derive(Clone, Copy, Debug)]
struct Gram;

impl Op for Gram {
    fn name(&self) -> &'static str {
        "gram"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        let [b, t, _] = sizes(self.name(), x)?;
        Ok(vec![TensorType::f32([b, t, t])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [gram]) = args.split();
        let (t, c) = (gram.columns(), x.columns());
        let (x, gram) = (x.float(), gram.float_mut());
        for (row, gram) in gram.chunks_exact_mut(t.max(1)).enumerate() {
            let first = row / t * t;
            let own = &x[row * c..][..c];
            for (other, gram) in gram.iter_mut().enumerate() {
                let other = &x[(first + other) * c..][..c];
                *gram = own.iter().zip(other).map(|(a, b)| a * b).sum();
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let [b, t, c] = known(args.input_types[0]);
        let x = args.inputs.f32(0);
        let [gram] = args.outputs.f32();
        for image in 0..b {
            let x = Rows::new(&x[image * t * c..][..t * c], t, c);
            let gram = RowsMut::new(&mut gram[image * t * t..][..t * t], t, t);
            matmul::linear(x, x, gram, Epilogue::default(), args.workspace);
        }
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let [b, t, c] = known(inputs[0]);
        if t == 0 {
            return Ok(Vec::new());
        }
        let tiling = Tiling::whole([t, t, c], DType::F32);
        let kernel = tiling.kernel(kernels::LINEAR_FORWARD_SIZES, DType::F32)?;
        let of_image = |image| {
            let x = at(Argument::input(0), image, t * c);
            let arguments = vec![
                at(Argument::output(0), image, t * t),
                Argument::Null,
                x,
                x,
                Argument::Null,
                Argument::Null,
                Argument::Null,
                size(kernel, "the number of rows", t)?,
                size(kernel, "the number of columns", t)?,
                size(kernel, "the inner length", c)?,
                Activation::argument(None),
            ];
            Ok(Launch::on_grid(kernel, tiling.grid(kernel)?, arguments))
        };
        (0..b).map(of_image).collect()
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let inputs = [backward.gradient(0), backward.inputs[0]];
        Ok(vec![Some(backward.tape.record_one(GramBackward, &inputs)?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = 2.0 * outputs[0].numel() as f64 * inputs[0].shape.columns() as f64;
        Cost::streaming(flops, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let [_, t, c] = known(inputs[0]);
        match compile_target.target {
            Target::Cpu { .. } => matmul::linear_workspace(c, t) * size_of::<f32>(),
            Target::Cuda | Target::Reference => 0,
        }
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}

/// Inputs: dG, x. Output: dx.
#[derive(Clone, Copy, Debug)]
struct GramBackward;

impl Op for GramBackward {
    fn name(&self) -> &'static str {
        "gram_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [dgram, x] = expect_inputs(self.name(), inputs)?;
        let [b, t, _] = sizes(self.name(), x)?;
        let want = TensorType::f32([b, t, t]);
        expect_type(self.name(), "dgram", "of x's tokens", want, dgram)?;
        Ok(vec![x])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dgram, x], [dx]) = args.split();
        let (t, c) = (dgram.columns(), x.columns());
        let (dgram, x, dx) = (dgram.float(), x.float(), dx.float_mut());
        dx.fill(0.0);
        for (row, dx) in dx.chunks_exact_mut(c.max(1)).enumerate() {
            let (first, token) = (row / t * t, row % t);
            for other in 0..t {
                let both = dgram[row * t + other] + dgram[(first + other) * t + token];
                let x = &x[(first + other) * c..][..c];
                dx.iter_mut().zip(x).for_each(|(dx, x)| *dx += both * x);
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let [b, t, c] = known(args.input_types[1]);
        let (dgram, x) = (args.inputs.f32(0), args.inputs.f32(1));
        let [dx] = args.outputs.f32();
        for image in 0..b {
            let dgram = Rows::new(&dgram[image * t * t..][..t * t], t, t);
            let x = Rows::new(&x[image * t * c..][..t * c], t, c);
            let dx = &mut dx[image * t * c..][..t * c];
            let first = RowsMut::new(&mut *dx, t, c);
            matmul::linear_backward_input(dgram, x, first, false, None, args.workspace);
            let second = RowsMut::new(dx, t, c);
            matmul::linear_backward_weight(dgram, x, second, None, true, args.workspace);
        }
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let [b, t, c] = known(inputs[1]);
        if t * c == 0 {
            return Ok(Vec::new());
        }
        let tiling = Tiling::whole([t, c, t], DType::F32);
        let straight = tiling.kernel(kernels::LINEAR_BACKWARD_INPUT_SIZES, DType::F32)?;
        let across = tiling.kernel(kernels::LINEAR_BACKWARD_WEIGHT_SIZES, DType::F32)?;
        let mut launches = Vec::new();
        for image in 0..b {
            let dgram = at(Argument::input(0), image, t * t);
            let x = at(Argument::input(1), image, t * c);
            let dx = at(Argument::output(0), image, t * c);
            let arguments = vec![
                dx,
                dgram,
                x,
                Argument::Null,
                size(straight, "the number of rows", t)?,
                size(straight, "the inner length", t)?,
                size(straight, "the number of columns", c)?,
                Activation::argument(None),
            ];
            let grid = tiling.grid(straight)?;
            launches.push(Launch::on_grid(straight, grid, arguments));
            let arguments = vec![
                dx,
                Argument::Null,
                dx,
                dgram,
                x,
                size(across, "the number of rows", t)?,
                size(across, "the number of columns", t)?,
                size(across, "the inner length", c)?,
                index(across, "the number of steps", tiling.steps)?,
            ];
            let grid = tiling.grid(across)?;
            launches.push(Launch::on_grid(across, grid, arguments));
        }
        Ok(launches)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = 4.0 * inputs[0].numel() as f64 * inputs[1].shape.columns() as f64;
        Cost::streaming(flops, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let [_, t, c] = known(inputs[1]);
        match compile_target.target {
            Target::Cpu { .. } => {
                let straight = matmul::linear_backward_input_workspace(c, t);
                let across = matmul::linear_backward_weight_workspace(t, c, t);
                straight.max(across) * size_of::<f32>()
            }
            Target::Cuda | Target::Reference => 0,
        }
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}
