//! Norm of the whole gradient and the factor that clips it (Pascanu et al. 2013), in two deterministic passes.
//!
//! n = s ‖g‖₂ with the gradient scale s; factor = s min(1, largest / (n + 10⁻⁶)), as PyTorch has it, where
//! the largest norm is above 0, else s; both numbers are among the optimiser's scalars. Sums of squares are kept in
//! f64, so that no gradient that is finite overflows. A gradient that is not finite makes the factor NaN, which the
//! update takes as its sign not to happen. 2 flops and 4 bytes an element: bound by memory.
//!
//! Over several ranks each sums the squares of what it owns, atom by atom ([`keel_ranks::order::ATOM`]); all ranks' sums are
//! gathered and added in the order of the atoms among all gradients, so that every rank has the same norm, and the same for
//! any number of ranks that sum the same gradients.

use rayon::prelude::*;

use super::adamw::{GRADIENT_SCALE, LARGEST_NORM, OPTIMIZER_SCALARS};
use super::collective::all_gather;
use super::shapes::expect_inputs;
use crate::launch::kernels::constants::grad_norm::{NORM_BLOCK_ELEMENTS, NORM_BLOCKS};
use crate::launch::{Argument, Launch, kernels};
use crate::tape::{CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Target, Value};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::order::{ATOM, Cut};

/// Elements whose squares are summed by one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Blocks of `cuda/grad_norm.cu`: from the size alone, so that every device gives the same sum.
fn blocks(elements: usize) -> usize {
    elements.div_ceil(NORM_BLOCK_ELEMENTS).clamp(1, NORM_BLOCKS)
}

/// Inputs: gradients [n], optimiser scalars [10]. Outputs: norm [1], factor [1].
#[derive(Clone, Copy, Debug)]
pub(super) struct GradNorm;

fn factor(norm: f64, largest: f64, scale: f64) -> f64 {
    if !norm.is_finite() {
        f64::NAN
    } else if largest > 0.0 {
        scale * (largest / (norm + 1e-6)).min(1.0)
    } else {
        scale
    }
}

/// Input: the gradients that this rank owns, [n] of whole atoms. Output: [n / ATOM, 2], the sum of squares of each atom in
/// f64, in the bytes of two floats; in the reference, where floats are f64, the first of the two.
#[derive(Clone, Copy, Debug)]
struct AtomSquares;

/// Inputs: what [`AtomSquares`] made on every rank, in the order of the ranks; optimiser scalars [10]. Outputs as
/// [`GradNorm`].
#[derive(Clone, Copy, Debug)]
struct NormOfAtoms {
    ranks: usize,
    /// How the gradients are cut.
    cut: Cut,
}

impl NormOfAtoms {
    /// Atoms of one rank's slice of a bucket.
    fn slice_atoms(&self) -> usize {
        self.cut.slice() / ATOM
    }

    /// Where the sums of all atoms lie, in the order of the atoms among all gradients.
    fn places(&self) -> impl Iterator<Item = usize> {
        let (ranks, buckets, atoms) = (self.ranks, self.cut.buckets(), self.slice_atoms());
        (0..buckets).flat_map(move |bucket| {
            let of_rank =
                move |rank| (0..atoms).map(move |atom| (rank * buckets + bucket) * atoms + atom);
            (0..ranks).flat_map(of_rank)
        })
    }
}

/// Records norm and factor of the gradients of which `own` are this rank's, [n] of whole atoms. The same bits for any number of
/// ranks.
pub(super) fn norm_of_atoms(
    tape: &mut Tape,
    own: Value,
    cut: &Cut,
    scalars: Value,
) -> Result<Vec<Value>> {
    let squares = tape.record_one(AtomSquares, &[own])?;
    let squares = all_gather(tape, squares)?;
    let ranks = tape.world().ranks;
    tape.record(NormOfAtoms { ranks, cut: *cut }, &[squares, scalars])
}

/// The sum of the squares, in sixteen sums side by side: one would wait for its own addition every time. Their number is
/// fixed, and with it the order.
fn sum_of_squares(g: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    for g in g.chunks(16) {
        for (lane, g) in lanes.iter_mut().zip(g) {
            *lane += f64::from(*g) * f64::from(*g);
        }
    }
    lanes.iter().sum()
}

/// The sum in f64 that two floats hold.
fn held(partial: &[f32]) -> f64 {
    bytemuck::pod_read_unaligned(bytemuck::cast_slice(partial))
}

/// Norm and factor from the sum of all squares, as the processor gives them. The factor comes from the norm as it was
/// rounded, so that what a log shows explains what was clipped.
fn norm_and_factor(sum: f64, scalars: &[f32]) -> [f32; 2] {
    let [largest, gradient_scale] =
        [LARGEST_NORM, GRADIENT_SCALE].map(|index| f64::from(scalars[index]));
    let norm = (gradient_scale * sum.sqrt()) as f32;
    [
        norm,
        factor(f64::from(norm), largest, gradient_scale) as f32,
    ]
}

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [_, scalars] = &expect_inputs("grad_norm", inputs)?;
        let want = TensorType::f32([OPTIMIZER_SCALARS]);
        if *scalars != want {
            return Err(Error::shape(
                "grad_norm",
                "optimizer_scalars",
                want,
                scalars,
            ));
        }
        Ok(vec![TensorType::f32([1]), TensorType::f32([1])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([g, scalars], [norm, scale]) = args.split();
        let sum: f64 = g.float().iter().map(|g| g * g).sum();
        let [largest, gradient_scale] =
            [LARGEST_NORM, GRADIENT_SCALE].map(|index| scalars.float()[index]);
        let length = gradient_scale * sum.sqrt();
        norm.float_mut()[0] = length;
        scale.float_mut()[0] = factor(length, largest, gradient_scale);
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (g, scalars) = (args.inputs.f32(0), args.inputs.f32(1));
        let [norm, scale] = args.outputs.f32();
        // The bytes of two floats hold one partial sum in f64.
        args.workspace
            .par_chunks_mut(2)
            .zip(g.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(partial, g)| {
                partial.copy_from_slice(bytemuck::cast_slice(&[sum_of_squares(g)]));
            });
        let sum: f64 = args.workspace.chunks(2).map(held).sum();
        [norm[0], scale[0]] = norm_and_factor(sum, scalars);
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let elements = inputs[0].numel();
        let blocks = blocks(elements);
        // Pairs of f32 that hold one f64 each.
        let partials = Argument::workspace(DType::F32);
        let squares = vec![partials, Argument::input(0), Argument::I64(elements as i64)];
        let factor = vec![
            Argument::output(0),
            Argument::output(1),
            partials,
            Argument::I32(blocks as i32),
            Argument::input(1),
        ];
        Ok(vec![
            Launch::new(kernels::GRAD_NORM_SQUARES_F32, blocks as u32, squares),
            Launch::new(kernels::GRAD_NORM_FACTOR_F32, 1, factor),
        ])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cpu { .. } => inputs[0].numel().div_ceil(ELEMENTS_PER_TASK) * size_of::<f64>(),
            Target::Cuda => blocks(inputs[0].numel()) * size_of::<f64>(),
            Target::Reference => 0,
        }
    }
}

impl Op for AtomSquares {
    fn name(&self) -> &'static str {
        "atom_squares"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [g] = &expect_inputs("atom_squares", inputs)?;
        let elements = g.numel();
        if *g != TensorType::f32([elements]) || !elements.is_multiple_of(ATOM) {
            let want = format!("f32 [n] with n a multiple of {ATOM}");
            return Err(Error::shape("atom_squares", "gradients", want, g));
        }
        Ok(vec![TensorType::f32([elements / ATOM, 2])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([g], [sums]) = args.split();
        let sums = sums.float_mut().chunks_mut(2);
        for (sum, g) in sums.zip(g.float().chunks(ATOM)) {
            sum[0] = g.iter().map(|g| g * g).sum();
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let g = args.inputs.f32(0);
        let [sums] = args.outputs.f32();
        sums.par_chunks_mut(2)
            .zip(g.par_chunks(ATOM))
            .for_each(|(sum, g)| {
                sum.copy_from_slice(bytemuck::cast_slice(&[sum_of_squares(g)]));
            });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let atoms = inputs[0].numel() / ATOM;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I32(ATOM as i32),
        ];
        let kernel = kernels::ATOM_SQUARES_F32;
        Ok(vec![Launch::new(kernel, atoms as u32, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs)
    }
}

impl Op for NormOfAtoms {
    fn name(&self) -> &'static str {
        "norm_of_atoms"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [sums, scalars] = &expect_inputs("norm_of_atoms", inputs)?;
        let atoms = self.cut.padded() / ATOM;
        for (name, ty, want) in [
            ("sums", sums, TensorType::f32([atoms, 2])),
            (
                "optimizer_scalars",
                scalars,
                TensorType::f32([OPTIMIZER_SCALARS]),
            ),
        ] {
            if *ty != want {
                return Err(Error::shape("norm_of_atoms", name, want, ty));
            }
        }
        Ok(vec![TensorType::f32([1]), TensorType::f32([1])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([sums, scalars], [norm, scale]) = args.split();
        let sum: f64 = self.places().map(|place| sums.float()[2 * place]).sum();
        let [largest, gradient_scale] =
            [LARGEST_NORM, GRADIENT_SCALE].map(|index| scalars.float()[index]);
        let length = gradient_scale * sum.sqrt();
        norm.float_mut()[0] = length;
        scale.float_mut()[0] = factor(length, largest, gradient_scale);
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (sums, scalars) = (args.inputs.f32(0), args.inputs.f32(1));
        let [norm, scale] = args.outputs.f32();
        let sum: f64 = self
            .places()
            .map(|place| held(&sums[2 * place..][..2]))
            .sum();
        [norm[0], scale[0]] = norm_and_factor(sum, scalars);
    }

    fn launches(
        &self,
        _: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let count = |count: usize| Argument::I32(count as i32);
        let arguments = vec![
            Argument::output(0),
            Argument::output(1),
            Argument::input(0),
            count(self.ranks),
            count(self.cut.buckets()),
            count(self.slice_atoms()),
            Argument::input(1),
        ];
        let kernel = kernels::NORM_OF_ATOMS_F32;
        Ok(vec![Launch::new(kernel, 1, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64 / 2.0, inputs, outputs)
    }
}
