//! The gradients of the hidden states and of the output product, from logits made again.

use rayon::prelude::*;

use super::launches::Sizes;
use super::products::{Products, RowGradient, with_products};
use super::tiles::{Head, TILE_ROWS, product_size, workspace_bytes};
use super::{Element, infer_loss, logits};
use crate::launch::Launch;
use crate::tape::{CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Target};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};
use keel_cpu::round;

/// What both gradients are given: h, W, targets, weights, lse, Σ w, dL.
struct Softmax<'a> {
    weights: &'a [f32],
    lse: &'a [f32],
    factor: f32,
}

impl<'a> Softmax<'a> {
    fn of(args: &CpuArgs<'a>) -> Softmax<'a> {
        let total = args.inputs.f32(5)[0];
        let dloss = args.inputs.f32(6)[0];
        Softmax {
            weights: args.inputs.f32(3),
            lse: args.inputs.f32(4),
            factor: if total == 0.0 { 0.0 } else { dloss / total },
        }
    }

    /// What the gradient of the logits of `rows` takes, of the words at hand.
    fn rows(
        &self,
        rows: &[usize],
        words: &std::ops::Range<usize>,
        targets: &[i32],
    ) -> [RowGradient; TILE_ROWS] {
        let nothing = RowGradient {
            lse: 0.0,
            factor: 0.0,
            target: None,
        };
        let mut all = [nothing; TILE_ROWS];
        for (of_row, row) in all.iter_mut().zip(rows) {
            let target = targets[*row] as usize;
            *of_row = RowGradient {
                lse: self.lse[*row],
                factor: self.factor * self.weights[*row],
                target: words.contains(&target).then(|| target - words.start),
            };
        }
        all
    }
}

fn infer_gradient(inputs: &[TensorType]) -> Result<()> {
    let n = infer_loss(inputs)?;
    const OP: &str = "linear_cross_entropy_backward";
    let scalars = [
        TensorType::f32([n]),
        TensorType::f32([1]),
        TensorType::f32([1]),
    ];
    for (index, want) in scalars.iter().enumerate() {
        if inputs.get(4 + index) != Some(want) {
            return Err(Error::shape(OP, "saved values", want, "another"));
        }
    }
    Ok(())
}

/// ∂z of one row in f64, for the references.
fn reference_gradient(inputs: &[&crate::tape::Array], row: usize) -> Option<Vec<f64>> {
    let target = inputs[2].int()[row];
    let total = inputs[5].float()[0];
    if target < 0 || total == 0.0 {
        return None;
    }
    let factor = inputs[6].float()[0] * inputs[3].float()[row] / total;
    let lse = inputs[4].float()[row];
    let mut z = logits(
        inputs[0].float(),
        inputs[1].float(),
        row,
        inputs[0].columns(),
    );
    for z in &mut z {
        *z = factor * (*z - lse).exp();
    }
    if let Some(own) = z.get_mut(target as usize) {
        *own -= factor;
    }
    Some(z)
}

/// ∂h on the processor, for values stored as `T`.
fn hidden_gradient<T: Element, P: Products<T>>(
    head: &Head<'_, T>,
    softmax: &Softmax<'_>,
    dh: &mut [T],
    scratch: &mut [f32],
) {
    let (worker_rows, d) = (head.worker_rows(), head.d);
    dh.par_chunks_mut(worker_rows * d)
        .zip(scratch.par_chunks_mut(head.scratch()))
        .enumerate()
        .for_each(|(worker, (dh, scratch))| {
            // Rows that are not supervised get no gradient, and nothing below visits them.
            dh.fill(T::default());
            let first = worker * worker_rows;
            head.supervised::<P>(first..first + dh.len() / d, scratch, |rows, h, scratch| {
                let (gradient, scratch) = scratch.split_at_mut(TILE_ROWS * d);
                let gradient = &mut gradient[..rows.len() * d];
                head.words::<P>(h, rows.len(), 0..head.v, scratch, |z, words, scratch| {
                    let of_rows = softmax.rows(rows, &words, head.targets);
                    // Summed over the tiles of words in rising order; the first overwrites.
                    let accumulates = words.start > 0;
                    let (of_rows, w) = (&of_rows[..rows.len()], head.of_words(&words));
                    P::hidden_gradient(z, of_rows, w, accumulates, gradient, scratch);
                });
                // The tile's rows were packed together; here they go back to where they came from.
                for (row, gradient) in rows.iter().zip(gradient.chunks(d)) {
                    round(gradient, &mut dh[(row - first) * d..][..d]);
                }
            });
        });
}

/// ∂W on the processor, for values stored as `T`.
fn weight_gradient<T: Element, P: Products<T>>(
    head: &Head<'_, T>,
    softmax: &Softmax<'_>,
    before: Before<'_>,
    dw: &mut [f32],
    scratch: &mut [f32],
) {
    let (worker_words, d) = (head.worker_words(), head.d);
    dw.par_chunks_mut(worker_words * d)
        .zip(scratch.par_chunks_mut(head.scratch()))
        .enumerate()
        .for_each(|(worker, (dw, scratch))| {
            let first = worker * worker_words;
            match before {
                Before::Nothing => dw.fill(0.0),
                Before::Elsewhere(sum) => dw.copy_from_slice(&sum[first * d..][..dw.len()]),
                Before::InPlace => {}
            }
            // Here workers own words and visit all rows, as above they own rows and visit all words: each gradient
            // has one writer, and its sums run in order. Logits are made once for either, which is the price.
            let own = first..first + dw.len() / d;
            head.supervised::<P>(0..head.n, scratch, |rows, h, scratch| {
                head.words::<P>(h, rows.len(), own.clone(), scratch, |z, words, scratch| {
                    let of_rows = softmax.rows(rows, &words, head.targets);
                    let place = (words.start - first) * d..(words.end - first) * d;
                    let of_rows = &of_rows[..rows.len()];
                    P::weight_gradient(z, of_rows, h, &mut dw[place], scratch);
                });
            });
        });
}

/// What a weight gradient is added to.
#[derive(Clone, Copy)]
enum Before<'a> {
    Nothing,
    InPlace,
    Elsewhere(&'a [f32]),
}

impl<'a> Before<'a> {
    /// Input 7 where there is one.
    fn of(args: &CpuArgs<'a>, accumulates: bool) -> Before<'a> {
        match accumulates.then(|| args.inputs.f32_or_in_place(7)) {
            None => Before::Nothing,
            Some(None) => Before::InPlace,
            Some(Some(sum)) => Before::Elsewhere(sum),
        }
    }
}

/// ∂h += ∂z·W of one row, in f64.
fn add_hidden(dz: &[f64], w: &[f64], dh: &mut [f64]) {
    for (dz, w) in dz.iter().zip(w.chunks(dh.len())) {
        for (dh, w) in dh.iter_mut().zip(w) {
            *dh += dz * w;
        }
    }
}

/// ∂W += ∂zᵀ·h of one row, in f64.
fn add_weight(dz: &[f64], h: &[f64], dw: &mut [f64]) {
    for (dz, dw) in dz.iter().zip(dw.chunks_mut(h.len())) {
        for (dw, h) in dw.iter_mut().zip(h) {
            *dw += dz * h;
        }
    }
}

/// Scratch memory of any of the gradients.
fn workspace(inputs: &[TensorType], compile_target: CompileTarget) -> usize {
    match compile_target.target {
        Target::Cuda => Sizes::of(inputs).gradient_workspace(),
        _ => workspace_bytes(inputs, compile_target.target),
    }
}

/// ∂h alone, where the output matrix is frozen.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardHidden;

impl Op for BackwardHidden {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_backward_hidden"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_gradient(inputs)?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let d = args.inputs[0].columns();
        let w = args.inputs[1].float();
        for (row, dh) in args.outputs[0].float_mut().chunks_mut(d).enumerate() {
            if let Some(dz) = reference_gradient(args.inputs, row) {
                add_hidden(&dz, w, dh);
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_products!(args, T, P => {
            let (head, softmax) = (Head::<T>::of(&args), Softmax::of(&args));
            let dh = args.outputs.in_order().next::<T>();
            hidden_gradient::<T, P>(&head, &softmax, dh, args.workspace);
        });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Sizes::of(inputs).hidden_gradient()
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        workspace(inputs, compile_target)
    }
}

/// ∂W alone, where nothing below the output product is trained.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardWeight {
    pub(super) accumulates: bool,
}

impl Op for BackwardWeight {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_backward_weight"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_gradient(inputs)?;
        Ok(vec![TensorType::f32(inputs[1].shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (h, d) = (args.inputs[0].float(), args.inputs[0].columns());
        let dw = args.outputs[0].float_mut();
        if self.accumulates {
            dw.copy_from_slice(args.inputs[7].float());
        }
        for (row, h) in h.chunks(d).enumerate() {
            if let Some(dz) = reference_gradient(args.inputs, row) {
                add_weight(&dz, h, dw);
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_products!(args, T, P => {
            let (head, softmax) = (Head::<T>::of(&args), Softmax::of(&args));
            let before = Before::of(&args, self.accumulates);
            let [dw] = args.outputs.f32();
            weight_gradient::<T, P>(&head, &softmax, before, dw, args.workspace);
        });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Sizes::of(inputs).weight_gradient(self.accumulates)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        workspace(inputs, compile_target)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 7)]
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| Box::new(BackwardWeight { accumulates: true }) as Box<dyn Op>)
    }
}

/// Outputs ∂W and ∂h. On a GPU a block of rows of ∂z goes into both, so that it is made once; the processor makes its logits for
/// each of them. ∂W comes first, because it is what gradients made elsewhere are added to.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardBoth {
    pub(super) accumulates: bool,
}

impl Op for BackwardBoth {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_gradient(inputs)?;
        Ok(vec![TensorType::f32(inputs[1].shape), inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (h, w) = (args.inputs[0].float(), args.inputs[1].float());
        let d = args.inputs[0].columns();
        let [dw, dh] = args.outputs else {
            unreachable!("inferred")
        };
        let dw = dw.float_mut();
        if self.accumulates {
            dw.copy_from_slice(args.inputs[7].float());
        }
        let rows = h.chunks(d).zip(dh.float_mut().chunks_mut(d));
        for (row, (h, dh)) in rows.enumerate() {
            if let Some(dz) = reference_gradient(args.inputs, row) {
                add_weight(&dz, h, dw);
                add_hidden(&dz, w, dh);
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_products!(args, T, P => {
            let (head, softmax) = (Head::<T>::of(&args), Softmax::of(&args));
            let before = Before::of(&args, self.accumulates);
            let mut outputs = args.outputs.in_order();
            let (dw, dh) = (outputs.next::<f32>(), outputs.next::<T>());
            weight_gradient::<T, P>(&head, &softmax, before, dw, args.workspace);
            hidden_gradient::<T, P>(&head, &softmax, dh, args.workspace);
        });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Sizes::of(inputs).both_gradients(self.accumulates)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(8.0 * product_size(inputs), inputs, outputs)
    }

    fn cost_on(&self, inputs: &[TensorType], outputs: &[TensorType], target: Target) -> Cost {
        match target {
            // Logits are made once for both.
            Target::Cuda => Cost::streaming(6.0 * product_size(inputs), inputs, outputs),
            _ => self.cost(inputs, outputs),
        }
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        workspace(inputs, compile_target)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 7)]
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| Box::new(BackwardBoth { accumulates: true }) as Box<dyn Op>)
    }
}
