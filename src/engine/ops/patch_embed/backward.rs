//! The gradients of weight, bias and position, and that of the images.

use rayon::prelude::*;

use super::patches::Grid;
use crate::launch::kernels::constants::patch_embed::PATCH_THREADS;
use crate::launch::{Argument, Launch, blocks, kernels, vector};
use crate::ops::linear::backward_weight::BackwardWeight;
use crate::ops::linear::tiles::{Tiling, size};
use crate::ops::shapes::{expect_float, expect_type};
use crate::tape::{CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, with_element};
use crate::tensor::{Shape, TensorType};
use keel_base::error::{Error, Result};
use keel_cpu::Stored;
use keel_cpu::matmul::{self, Rows, RowsMut};

/// Elements of a band of the positions that one task sums over the batch.
const ELEMENTS_PER_TASK: usize = 1024;

/// Inputs dy [B, T, C], images [B, Ci, h, w], then the gradient [C, Ci·P·P] to add to; outputs dweight [C, Ci·P·P], then
/// dbias [C] and dposition [T, C] where there are such: all f32, as gradients of parameters are.
#[derive(Clone, Copy, Debug)]
pub(super) struct PatchEmbedBackward {
    pub patch: usize,
    pub has_bias: bool,
    pub has_position: bool,
    pub accumulates: bool,
}

impl PatchEmbedBackward {
    /// The weight's gradient as a product.
    fn product(&self, dy: TensorType, images: TensorType) -> BackwardWeight {
        let grid = self.grid(images.shape);
        BackwardWeight {
            rows: grid.rows(),
            columns: dy.shape.columns(),
            inner: grid.pixels(),
            dtype: dy.dtype,
            accumulates: self.accumulates,
            has_bias: self.has_bias,
        }
    }

    fn grid(&self, images: Shape) -> Grid {
        Grid::new(images, self.patch).expect("the forward op has made this grid")
    }
}

impl PatchEmbedBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let grid = self.grid(args.input_types[1].shape);
        let (dy, images) = (args.inputs.of::<T>(0), args.inputs.f32(1));
        let sum = self.accumulates.then(|| args.inputs.f32_or_in_place(2));
        let (rows, pixels) = (grid.rows(), grid.pixels());
        let width = args.input_types[0].shape.columns();
        let mut outputs = args.outputs.in_order();
        let dweight = outputs.next::<f32>();
        let mut dbias = self.has_bias.then(|| outputs.next::<f32>());
        if let Some(dbias) = &mut dbias {
            // The product adds to both where it accumulates; only dweight has something to be added to.
            dbias.fill(0.0);
        }
        if self.has_position {
            sum_batch(dy, outputs.next::<f32>());
        }
        if let Some(Some(sum)) = sum {
            dweight.copy_from_slice(sum);
        }
        // Patches as rows make the gradient a product like any other; they are laid out again, since keeping them from
        // forward would hold as many bytes as the images for the whole step.
        let gathered = grid.gathered(args.input_types[0].dtype);
        let (patches, workspace) = args.workspace.split_at_mut(gathered);
        let patches: &mut [T] = &mut bytemuck::cast_slice_mut(patches)[..rows * pixels];
        grid.gather(images, patches);
        matmul::linear_backward_weight(
            Rows::new(dy, rows, width),
            Rows::new(patches, rows, pixels),
            RowsMut::new(dweight, width, pixels),
            dbias,
            self.accumulates,
            workspace,
        );
    }
}

impl Op for PatchEmbedBackward {
    fn name(&self) -> &'static str {
        "patch_embed_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (dy, images) = (inputs[0], inputs[1]);
        expect_float(op, "dy", 3, dy)?;
        let Some(grid) = Grid::new(images.shape, self.patch) else {
            return Err(Error::shape(op, "images", "[B, 3, h, w]", images));
        };
        let width = dy.shape.columns();
        let want = TensorType::new(dy.dtype, [grid.batch, grid.tokens(), width]);
        expect_type(op, "dy", "[B, T, C]", want, dy)?;
        let dweight = TensorType::f32([width, grid.pixels()]);
        if let Some(sum) = inputs.get(2) {
            expect_type(
                op,
                "the gradient to add to",
                "like the weight",
                dweight,
                *sum,
            )?;
        }
        let mut outputs = vec![dweight];
        if self.has_bias {
            outputs.push(TensorType::f32([width]));
        }
        if self.has_position {
            outputs.push(TensorType::f32([grid.tokens(), width]));
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (dy, images) = (args.inputs[0], args.inputs[1]);
        let grid = self.grid(images.shape);
        let (width, pixels) = (dy.columns(), grid.pixels());
        if self.accumulates {
            let sum = args.inputs[2].float();
            args.outputs[0].float_mut().copy_from_slice(sum);
        }
        for row in 0..grid.rows() {
            let dy = &dy.float()[row * width..][..width];
            let patch: Vec<f64> = grid
                .runs(row)
                .flat_map(|start| &images.float()[start..][..grid.patch])
                .copied()
                .collect();
            for (column, dy) in dy.iter().enumerate() {
                let dweight = &mut args.outputs[0].float_mut()[column * pixels..][..pixels];
                for (dweight, x) in dweight.iter_mut().zip(&patch) {
                    *dweight += dy * x;
                }
                if self.has_bias {
                    args.outputs[1].float_mut()[column] += dy;
                }
                if self.has_position {
                    let position = &mut args.outputs[1 + usize::from(self.has_bias)];
                    position.float_mut()[row % grid.tokens() * width + column] += dy;
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
        let (dy, images) = (inputs[0], inputs[1]);
        let (grid, product) = (self.grid(images.shape), self.product(dy, images));
        let kernel = product
            .tiling()
            .kernel(kernels::PATCH_EMBED_BACKWARD_SIZES, dy.dtype)?;
        let mut operands = vec![Argument::input(0), Argument::input(1)];
        operands.extend(grid.arguments(kernel)?);
        operands.push(size(kernel, "the width", product.columns)?);
        let mut launches = product.launches(kernel, operands)?;
        if self.has_position {
            let kernel = kernels::PATCH_EMBED_BACKWARD_POSITION.of(dy.dtype)?;
            let count = grid.tokens() * product.columns;
            let blocks = blocks(kernel, count, PATCH_THREADS * vector(dy))?;
            let arguments = vec![
                Argument::output(1 + usize::from(self.has_bias)),
                Argument::input(0),
                size(kernel, "the batch", grid.batch)?,
                Argument::I64(count as i64),
            ];
            launches.push(Launch::new(kernel, blocks, arguments));
        }
        Ok(launches)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * inputs[0].numel() as f64 * outputs[0].shape.columns() as f64;
        let sums = usize::from(self.has_bias || self.has_position) * inputs[0].numel();
        Cost::streaming(product + sums as f64, inputs, outputs)
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
        let (grid, width) = (self.grid(inputs[1].shape), outputs[0].shape.rows());
        let (rows, pixels) = (grid.rows(), grid.pixels());
        let product = matmul::linear_backward_weight_workspace(rows, pixels, width);
        match compile_target.target {
            Target::Cpu { .. } => (grid.gathered(inputs[0].dtype) + product) * size_of::<f32>(),
            Target::Cuda => self.product(inputs[0], inputs[1]).workspace(),
            Target::Reference => 0,
        }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            Box::new(PatchEmbedBackward {
                accumulates: true,
                ..*self
            }) as Box<dyn Op>
        })
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}

/// Inputs dy [B, T, C], weight [C, Ci·P·P], then the gradient [B, Ci, h, w] to add to; output the images' gradient.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardImage {
    pub images: Shape,
    pub patch: usize,
    pub accumulates: bool,
}

impl BackwardImage {
    fn grid(&self) -> Grid {
        Grid::new(self.images, self.patch).expect("the forward op has made this grid")
    }
}

impl BackwardImage {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let grid = self.grid();
        let (rows, pixels) = (grid.rows(), grid.pixels());
        let width = args.input_types[0].shape.columns();
        let dy = Rows::new(args.inputs.of::<T>(0), rows, width);
        let weight = Rows::new(args.inputs.of::<T>(1), width, pixels);
        let sum = self.accumulates.then(|| args.inputs.f32_or_in_place(2));
        let [images] = args.outputs.f32();
        if images.is_empty() {
            return;
        }
        match sum {
            Some(Some(sum)) => images.copy_from_slice(sum),
            Some(None) => {}
            None => images.fill(0.0),
        }
        let (patches, workspace) = args.workspace.split_at_mut(rows * pixels);
        let target = RowsMut::new(patches, rows, pixels);
        // The gradient of images is f32 in every program, so its product is one of f32: of widened factors, which only
        // those pay who ask for this gradient.
        let (widened, workspace) = workspace.split_at_mut(T::scratch(rows * width));
        let dy = T::view(dy, widened);
        let (widened, workspace) = workspace.split_at_mut(T::scratch(width * pixels));
        let weight = T::view(weight, widened);
        matmul::linear_backward_input(dy, weight, target, false, None, workspace);
        grid.scatter(patches, images);
    }
}

impl Op for BackwardImage {
    fn name(&self) -> &'static str {
        "patch_embed_backward_image"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (grid, dy) = (self.grid(), inputs[0]);
        expect_float(op, "dy", 3, dy)?;
        let width = dy.shape.columns();
        let want = TensorType::new(dy.dtype, [grid.batch, grid.tokens(), width]);
        expect_type(op, "dy", "[B, T, C]", want, dy)?;
        let want = TensorType::new(dy.dtype, [width, grid.pixels()]);
        expect_type(op, "weight", "[C, 3·P·P]", want, inputs[1])?;
        let images = TensorType::f32(self.images);
        if let Some(sum) = inputs.get(2) {
            expect_type(
                op,
                "the gradient to add to",
                "like the images",
                images,
                *sum,
            )?;
        }
        Ok(vec![images])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let grid = self.grid();
        let (dy, weight) = (args.inputs[0], args.inputs[1].float());
        let (width, pixels) = (dy.columns(), grid.pixels());
        let images = args.outputs[0].float_mut();
        if self.accumulates {
            images.copy_from_slice(args.inputs[2].float());
        }
        for row in 0..grid.rows() {
            let dy = &dy.float()[row * width..][..width];
            for (run, start) in grid.runs(row).enumerate() {
                for offset in 0..grid.patch {
                    let pixel = run * grid.patch + offset;
                    let column = weight.iter().skip(pixel).step_by(pixels);
                    images[start + offset] +=
                        dy.iter().zip(column).map(|(a, b)| a * b).sum::<f64>();
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
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (grid, dy) = (self.grid(), inputs[0]);
        if outputs[0].numel() == 0 {
            return Ok(Vec::new());
        }
        let width = dy.shape.columns();
        let tiling = Tiling::whole([grid.rows(), grid.pixels(), width], dy.dtype);
        let kernel = tiling.kernel(kernels::PATCH_EMBED_BACKWARD_IMAGE_SIZES, dy.dtype)?;
        let addend = if self.accumulates {
            Argument::input(2)
        } else {
            Argument::Null
        };
        let mut arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            addend,
        ];
        arguments.extend(grid.arguments(kernel)?);
        arguments.push(size(kernel, "the width", width)?);
        let tiles = tiling.grid(kernel)?;
        let mut launches = vec![Launch::on_grid(kernel, tiles, arguments)];
        // Pixels right of and below the last whole patch belong to none. The product writes only pixels of patches, so
        // those get their zero, or the addend, from a kernel of their own.
        let covered = |side: usize| side / grid.patch * grid.patch;
        if covered(grid.height) < grid.height || covered(grid.width) < grid.width {
            let kernel = kernels::PATCH_EMBED_BACKWARD_IMAGE_REST_F32;
            let count = outputs[0].numel();
            let arguments = vec![
                Argument::output(0),
                addend,
                Argument::I64(count as i64),
                size(kernel, "the images' height", grid.height)?,
                size(kernel, "the images' width", grid.width)?,
                size(kernel, "the covered height", covered(grid.height))?,
                size(kernel, "the covered width", covered(grid.width))?,
            ];
            launches.push(Launch::new(
                kernel,
                blocks(kernel, count, PATCH_THREADS)?,
                arguments,
            ));
        }
        Ok(launches)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * inputs[0].numel() as f64 * inputs[1].shape.columns() as f64;
        Cost::streaming(product, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 2)] } else { &[] }
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let (grid, width) = (self.grid(), inputs[0].shape.columns());
        let (rows, pixels) = (grid.rows(), grid.pixels());
        let product = matmul::linear_backward_input_workspace(pixels, width);
        let factors = (rows + pixels) * width;
        let widened = with_element!(inputs[0].dtype, T => <T as Stored>::scratch(factors));
        match compile_target.target {
            Target::Cpu { .. } => (rows * pixels + widened + product) * size_of::<f32>(),
            Target::Reference | Target::Cuda => 0,
        }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            Box::new(BackwardImage {
                accumulates: true,
                ..*self
            }) as Box<dyn Op>
        })
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}

/// Sums the blocks of `dy` [B, sum's elements]: each task takes a band of every block, in order.
fn sum_batch<T: Element>(dy: &[T], sum: &mut [f32]) {
    let block = sum.len();
    sum.par_chunks_mut(ELEMENTS_PER_TASK)
        .enumerate()
        .for_each(|(task, sum)| {
            sum.fill(0.0);
            for dy in dy.chunks_exact(block) {
                for (sum, dy) in sum.iter_mut().zip(&dy[task * ELEMENTS_PER_TASK..]) {
                    *sum += dy.widen();
                }
            }
        });
}
