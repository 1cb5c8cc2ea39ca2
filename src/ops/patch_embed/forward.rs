//! y = patches · weightᵀ + bias + position.

use rayon::prelude::*;

use super::gradient::{ImageGradient, PatchEmbedGradient};
use super::patches::Grid;
use crate::error::{Error, Result};
use crate::executor::cpu::product::{Operand, product};
use crate::ops::shapes::{expect_float, expect_type, expect_vector};
use crate::tape::{Backward, Cost, CpuArgs, Op, ReferenceArgs, Target, Value};
use crate::tensor::TensorType;

/// Patches that one task lays out and multiplies.
const ROWS_PER_TASK: usize = 64;

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

impl Op for PatchEmbed {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (images, weight) = (inputs[0], inputs[1]);
        expect_float(op, "images", 4, images)?;
        let Some(grid) = Grid::new(images.shape, self.patch) else {
            let want = format!(
                "[B, 3, h, w] with sides of at least the patch, {}",
                self.patch
            );
            return Err(Error::shape(op, "images", want, images));
        };
        let width = weight.shape.dims().first().copied().unwrap_or(1);
        let want = TensorType::new(images.dtype, [width, grid.pixels()]);
        expect_type(op, "weight", "[C, 3·P·P]", want, weight)?;
        if let Some(bias) = self.bias() {
            let vector = (images.dtype, width);
            expect_vector(op, "bias", "[C] with weight's C rows", vector, inputs[bias])?;
        }
        if let Some(position) = self.position() {
            let want = TensorType::new(images.dtype, [grid.tokens(), width]);
            let rule = "[T, C] with a row for each patch";
            expect_type(op, "position", rule, want, inputs[position])?;
        }
        let shape = [grid.batch, grid.tokens(), width];
        Ok(vec![TensorType::new(images.dtype, shape)])
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
                let mut y: f64 = patch.iter().zip(weight).map(|(x, w)| x * w).sum();
                y += bias.map_or(0.0, |bias| bias[column]);
                y += position.map_or(0.0, |p| p[row % grid.tokens() * width + column]);
                args.outputs[0].float_mut()[row * width + column] = y;
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let grid = self.grid(args.input_types[0]);
        let images = args.inputs.f32(0);
        let weight = args.inputs.f32(1);
        let bias = self.bias().map(|index| args.inputs.f32(index));
        let position = self.position().map(|index| args.inputs.f32(index));
        let width = args.output_types[0].shape.columns();
        let [y] = args.outputs.f32();
        if y.is_empty() {
            return;
        }
        let pixels = grid.pixels();
        let weight = Operand::new(weight, width, pixels).transposed();
        let patches = &mut args.workspace[..grid.rows() * pixels];
        (
            y.par_chunks_mut(ROWS_PER_TASK * width),
            patches.par_chunks_mut(ROWS_PER_TASK * pixels),
        )
            .into_par_iter()
            .enumerate()
            .for_each(|(task, (y, patches))| {
                let first = task * ROWS_PER_TASK;
                grid.gather(images, first, patches);
                for (row, y) in y.chunks_exact_mut(width).enumerate() {
                    match position {
                        Some(position) => {
                            let token = (first + row) % grid.tokens();
                            y.copy_from_slice(&position[token * width..][..width]);
                        }
                        None => y.fill(0.0),
                    }
                    for (y, bias) in y.iter_mut().zip(bias.unwrap_or_default()) {
                        *y += bias;
                    }
                }
                let patches = Operand::new(patches, patches.len() / pixels, pixels);
                product(patches, weight, y, true);
            });
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (images, weight) = (backward.inputs[0], backward.inputs[1]);
        let dy = backward.gradient(0);
        let mut gradients = vec![None; backward.inputs.len()];
        if backward.needs(0) {
            let op = ImageGradient {
                images: backward.tape.shape(images),
                patch: self.patch,
                accumulates: false,
            };
            gradients[0] = Some(backward.tape.record_one(op, &[dy, weight])?);
        }
        if (1..gradients.len()).any(|index| backward.needs(index)) {
            let op = PatchEmbedGradient {
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

    fn workspace(&self, inputs: &[TensorType], _outputs: &[TensorType], _target: Target) -> usize {
        let grid = self.grid(inputs[0]);
        grid.rows() * grid.pixels() * size_of::<f32>()
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}
