//! y = patches · weightᵀ + bias + position.

use rayon::prelude::*;

use super::backward::{BackwardImage, PatchEmbedBackward};
use super::patches::Grid;
use crate::launch::{Argument, Launch, kernels};
use crate::ops::linear::tiles::{Tiling, size};
use crate::ops::linear::widened_rows;
use crate::ops::shapes::{expect_float, expect_type, expect_vector};
use crate::ops::special::dot;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, Value, with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_cpu::matmul::{self, Epilogue, Residual, Rows, RowsMut};

/// Inputs images, weight, then bias and position where present.
#[derive(Clone, Copy, Debug)]
pub(super) struct PatchEmbed {
    pub patch: usize,
    pub has_bias: bool,
    pub has_position: bool,
}

impl PatchEmbed {
    fn bias(&self) -> Option<usize> {
        self.has_bias.then_some(2)
    }

    fn position(&self) -> Option<usize> {
        self.has_position.then_some(2 + usize::from(self.has_bias))
    }

    fn grid(&self, images: TensorType) -> Grid {
        Grid::new(images.shape, self.patch).expect("infer admits only images with room for a patch")
    }
}

impl PatchEmbed {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let grid = self.grid(args.input_types[0]);
        let (rows, pixels) = (grid.rows(), grid.pixels());
        let width = args.output_types[0].shape.columns();
        let weight = Rows::new(args.inputs.of::<T>(1), width, pixels);
        let position = self.position().map(|index| args.inputs.of::<T>(index));
        let bias = self.bias().map(|index| args.inputs.f32(index));
        let images = args.inputs.f32(0);
        let y = args.outputs.in_order().next::<T>();
        if y.is_empty() {
            return;
        }
        let gathered = grid.gathered(args.input_types[1].dtype);
        let (patches, workspace) = args.workspace.split_at_mut(gathered);
        let patches: &mut [T] = &mut bytemuck::cast_slice_mut(patches)[..rows * pixels];
        grid.gather(images, patches);
        // Positions are put into y first and the product adds to them: the epilogue knows residuals of y's shape, not
        // of one image's.
        if let Some(position) = position {
            y.par_chunks_mut(position.len())
                .for_each(|y| y.copy_from_slice(position));
        }
        let epilogue = Epilogue {
            bias,
            residual: match position {
                Some(_) => Residual::InPlace,
                None => Residual::None,
            },
            ..Epilogue::default()
        };
        let patches = Rows::new(patches, rows, pixels);
        let y = RowsMut::new(y, rows, width);
        matmul::linear(patches, weight, y, epilogue, workspace);
    }
}

impl Op for PatchEmbed {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (images, weight) = (inputs[0], inputs[1]);
        expect_float(op, "images", 4, images)?;
        let want = TensorType::f32(images.shape);
        expect_type(op, "images", "as pixels are in every program", want, images)?;
        expect_float(op, "weight", 2, weight)?;
        let Some(grid) = Grid::new(images.shape, self.patch) else {
            let want = format!(
                "[B, 3, h, w] with sides of at least the patch, {}",
                self.patch
            );
            return Err(Error::shape(op, "images", want, images));
        };
        let width = weight.shape.dims().first().copied().unwrap_or(1);
        let want = TensorType::new(weight.dtype, [width, grid.pixels()]);
        expect_type(op, "weight", "[C, 3·P·P]", want, weight)?;
        if let Some(bias) = self.bias() {
            let vector = (DType::F32, width);
            expect_vector(op, "bias", "[C] with weight's C rows", vector, inputs[bias])?;
        }
        if let Some(position) = self.position() {
            let want = TensorType::new(weight.dtype, [grid.tokens(), width]);
            let rule = "[T, C] with a row for each patch";
            expect_type(op, "position", rule, want, inputs[position])?;
        }
        let shape = [grid.batch, grid.tokens(), width];
        Ok(vec![TensorType::new(weight.dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let images = args.inputs[0];
        let grid = Grid::new(images.shape, self.patch).expect("infer has made this grid");
        let (weight, pixels) = (args.inputs[1].float(), grid.pixels());
        let bias = self.bias().map(|index| args.inputs[index].float());
        let position = self.position().map(|index| args.inputs[index].float());
        let width = args.outputs[0].columns();
        for row in 0..grid.rows() {
            let patch: Vec<f64> = grid
                .runs(row)
                .flat_map(|start| &images.float()[start..][..grid.patch])
                .copied()
                .collect();
            for column in 0..width {
                let weight = &weight[column * pixels..][..pixels];
                let mut y = dot(&patch, weight);
                y += bias.map_or(0.0, |bias| bias[column]);
                y += position.map_or(0.0, |p| p[row % grid.tokens() * width + column]);
                args.outputs[0].float_mut()[row * width + column] = y;
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[1].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (grid, y) = (self.grid(inputs[0]), outputs[0]);
        if y.numel() == 0 {
            return Ok(Vec::new());
        }
        let width = y.shape.columns();
        let tiling = Tiling::whole([grid.rows(), width, grid.pixels()], y.dtype);
        let kernel = tiling.kernel(kernels::PATCH_EMBED_FORWARD_SIZES, y.dtype)?;
        let optional = |index: Option<usize>| index.map_or(Argument::Null, Argument::input);
        let mut arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            optional(self.bias()),
            optional(self.position()),
        ];
        arguments.extend(grid.arguments(kernel)?);
        arguments.push(size(kernel, "the width", width)?);
        let grid = tiling.grid(kernel)?;
        Ok(vec![Launch::on_grid(kernel, grid, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (images, weight) = (backward.inputs[0], backward.inputs[1]);
        let dy = backward.gradient(0);
        let mut gradients = vec![None; backward.inputs.len()];
        if backward.needs(0) {
            let op = BackwardImage {
                images: backward.tape.shape(images),
                patch: self.patch,
                accumulates: false,
            };
            gradients[0] = Some(backward.tape.record_one(op, &[dy, weight])?);
        }
        if (1..gradients.len()).any(|index| backward.needs(index)) {
            let op = PatchEmbedBackward {
                patch: self.patch,
                has_bias: self.has_bias,
                has_position: self.has_position,
                accumulates: false,
            };
            let outputs = backward.tape.record(op, &[dy, images])?;
            for (gradient, output) in gradients[1..].iter_mut().zip(outputs) {
                *gradient = Some(output);
            }
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * outputs[0].numel() as f64 * inputs[1].shape.columns() as f64;
        let added = usize::from(self.has_bias) + usize::from(self.has_position);
        Cost::streaming(
            product + (added * outputs[0].numel()) as f64,
            inputs,
            outputs,
        )
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let grid = self.grid(inputs[0]);
        let product = matmul::linear_workspace(grid.pixels(), outputs[0].shape.columns());
        match compile_target.target {
            Target::Cpu { threads } => {
                let dtype = inputs[1].dtype;
                let widened = widened_rows(dtype, grid.pixels(), threads);
                (grid.gathered(dtype) + product + widened) * size_of::<f32>()
            }
            Target::Reference | Target::Cuda => 0,
        }
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}
