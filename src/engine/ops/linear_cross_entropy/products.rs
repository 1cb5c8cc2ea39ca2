//! What is computed of one tile of logits on the processor: in f32, or in pairs of bf16 numbers.
//!
//! In pairs, hidden states and the matrix are multiplied as they are stored, and the gradient of the logits is rounded to bf16 before
//! the products that read it, as the CUDA kernels do; logits, log-sums and all sums are f32. What is in f32 keeps the exponentials
//! that it always had, number by number, whose bits the results of this repository have.

use half::bf16;

use super::tiles::{TILE_ROWS, TILE_WORDS};
use crate::tape::{CpuArgs, Element};
use crate::tensor::DType;
use keel_cpu::matmul::{
    Cells, Extent, Panels, Rows, RowsMut, panels_workspace, product, product_of_pairs,
    product_workspace,
};
use keel_cpu::simd::{LANES, Simd, Task, dispatch, dispatch_pairs};
use keel_cpu::vector_math::rows::{exp_in_place, largest_of, scale_in_place};
use keel_cpu::vector_math::{load, store};
use keel_cpu::{Bf16Products, bf16_products, round, widen};

/// Floats of scratch memory of one worker, for `dtype` of width `d`: rows of h, a gradient of as many, a tile of logits, and what
/// products take.
pub(super) fn scratch(d: usize, dtype: DType) -> usize {
    let own = product_workspace(d, TILE_WORDS)
        .max(product_workspace(TILE_WORDS, d))
        .max(product_workspace(TILE_ROWS, d));
    let widened = 2 * TILE_ROWS * d + TILE_ROWS * TILE_WORDS + own;
    if dtype != DType::Bf16 {
        return widened;
    }
    let own = panels_workspace(d, TILE_WORDS).max(ROUNDED + panels_workspace(TILE_WORDS, d));
    let in_pairs = TILE_ROWS * d / 2 + TILE_ROWS * d + TILE_ROWS * TILE_WORDS + own;
    widened.max(in_pairs)
}

/// Floats of the gradient of a tile of logits in bf16.
const ROUNDED: usize = TILE_ROWS * TILE_WORDS / 2;

/// Whether an op's products are computed in pairs: rows have to be whole pairs.
pub(super) fn are_in_pairs(args: &CpuArgs<'_>) -> bool {
    let hidden = args.input_types[0];
    hidden.dtype == DType::Bf16
        && hidden.shape.columns().is_multiple_of(2)
        && bf16_products() != Bf16Products::Widened
}

/// Evaluates `$body` with `$T` for the type that values are stored in, and `$P` for the products of it.
macro_rules! with_products {
    ($args:expr, $T:ident, $P:ident => $body:expr) => {
        if $crate::ops::linear_cross_entropy::products::are_in_pairs(&$args) {
            type $T = half::bf16;
            type $P = $crate::ops::linear_cross_entropy::products::InPairs;
            $body
        } else {
            $crate::tape::with_element!($args.input_types[0].dtype, $T => {
                type $P = $crate::ops::linear_cross_entropy::products::Widened;
                $body
            })
        }
    };
}
pub(super) use with_products;

/// What is known of a tile's rows so far, by the online log-sum-exp: no row ever has all its logits, so maximum and sum grow tile by
/// tile.
pub(super) struct Online {
    pub top: [f32; TILE_ROWS],
    pub sum: [f32; TILE_ROWS],
}

impl Online {
    pub fn new() -> Online {
        Online {
            top: [f32::NEG_INFINITY; TILE_ROWS],
            sum: [0.0; TILE_ROWS],
        }
    }

    /// Row `slot` has come to the maximum `most`, with a sum of exponentials `here` among the new words.
    fn grow(&mut self, slot: usize, most: f32, here: f32) {
        // There is nothing to bring along from before the first tile.
        let kept = match self.sum[slot] {
            0.0 => 0.0,
            sum => sum * (self.top[slot] - most).exp(),
        };
        (self.top[slot], self.sum[slot]) = (most, kept + here);
    }
}

/// What turns the logits z of a row into their gradient factor · (e^(z − lse) − onehot).
#[derive(Clone, Copy)]
pub(super) struct RowGradient {
    pub lse: f32,
    pub factor: f32,
    /// The target among the words at hand.
    pub target: Option<usize>,
}

/// The products of tiles of values stored as `T`, and what is in between.
pub(super) trait Products<T: Element> {
    /// What supervised rows of h are packed in.
    type Term: bytemuck::Pod;

    /// Packs a row.
    fn pack(from: &[T], to: &mut [Self::Term]);

    /// z [rows, words] = h · wᵀ for h [rows, D], w [words, D].
    fn logits(h: &[Self::Term], w: &[T], d: usize, z: &mut [f32], scratch: &mut [f32]);

    /// Adds the exponentials of rows of `words` logits, which may be overwritten.
    fn add_exponentials(online: &mut Online, z: &mut [f32], words: usize);

    /// dh [rows, D] = dz · w, added to where `accumulates`, with dz made of z [rows, words].
    fn hidden_gradient(
        z: &mut [f32],
        rows: &[RowGradient],
        w: &[T],
        accumulates: bool,
        dh: &mut [f32],
        scratch: &mut [f32],
    );

    /// dw [words, D] += dzᵀ · h, with dz made of z [rows, words].
    fn weight_gradient(
        z: &mut [f32],
        rows: &[RowGradient],
        h: &[Self::Term],
        dw: &mut [f32],
        scratch: &mut [f32],
    );
}

/// Products in f32, of numbers that are widened where they are stored in bf16.
pub(super) struct Widened;

impl Widened {
    /// Turns logits [rows, words] into their gradient.
    fn differentiate(z: &mut [f32], rows: &[RowGradient]) {
        let words = z.len() / rows.len();
        for (z, row) in z.chunks_mut(words).zip(rows) {
            for z in z.iter_mut() {
                *z = row.factor * (*z - row.lse).exp();
            }
            if let Some(target) = row.target {
                z[target] -= row.factor;
            }
        }
    }
}

impl<T: Element> Products<T> for Widened {
    type Term = f32;

    fn pack(from: &[T], to: &mut [f32]) {
        widen(from, to);
    }

    fn logits(h: &[f32], w: &[T], d: usize, z: &mut [f32], scratch: &mut [f32]) {
        let (rows, words) = (h.len() / d, w.len() / d);
        product(
            1.0,
            Rows::new(h, rows, d),
            Rows::new(w, words, d).transposed(),
            0.0,
            RowsMut::new(z, rows, words),
            scratch,
        );
    }

    fn add_exponentials(online: &mut Online, z: &mut [f32], words: usize) {
        for (slot, z) in z.chunks(words).enumerate() {
            let most = z.iter().fold(online.top[slot], |m, z| m.max(*z));
            let here = z.iter().map(|z| (z - most).exp()).sum();
            online.grow(slot, most, here);
        }
    }

    fn hidden_gradient(
        z: &mut [f32],
        rows: &[RowGradient],
        w: &[T],
        accumulates: bool,
        dh: &mut [f32],
        scratch: &mut [f32],
    ) {
        Widened::differentiate(z, rows);
        let (count, words, d) = (rows.len(), z.len() / rows.len(), dh.len() / rows.len());
        product(
            1.0,
            Rows::new(z, count, words),
            Rows::new(w, words, d),
            if accumulates { 1.0 } else { 0.0 },
            RowsMut::new(dh, count, d),
            scratch,
        );
    }

    fn weight_gradient(
        z: &mut [f32],
        rows: &[RowGradient],
        h: &[f32],
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        Widened::differentiate(z, rows);
        let (count, words, d) = (rows.len(), z.len() / rows.len(), h.len() / rows.len());
        product(
            1.0,
            Rows::new(z, count, words).transposed(),
            Rows::new(h, count, d),
            1.0,
            RowsMut::new(dw, words, d),
            scratch,
        );
    }
}

/// Products in pairs of bf16 numbers, or tiles of them.
pub(super) struct InPairs;

/// The exponentials of rows of logits, as far as the online log-sum-exp has come.
struct AddExponentials<'a>(&'a mut Online, &'a mut [f32], usize);

impl Task for AddExponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AddExponentials(online, z, words) = self;
        for (slot, z) in z.chunks_mut(words).enumerate() {
            let most = largest_of(simd, z).max(online.top[slot]);
            let here = exp_in_place(simd, z, 1.0, most);
            online.grow(slot, most, here);
        }
    }
}

/// Turns logits [rows, words] into their gradient.
struct Differentiate<'a>(&'a mut [f32], &'a [RowGradient]);

impl Task for Differentiate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let words = self.0.len() / self.1.len();
        for (z, row) in self.0.chunks_mut(words).zip(self.1) {
            exp_in_place(simd, z, 1.0, row.lse);
            scale_in_place(simd, z, row.factor);
            if let Some(target) = row.target {
                z[target] -= row.factor;
            }
        }
    }
}

/// Rounds rows of numbers and puts two rows side by side in the cells of one; the partner of the last of an odd number is zero.
struct PairRows<'a> {
    from: &'a [f32],
    width: usize,
    to: &'a mut [f32],
}

impl Task for PairRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pairs = self.from.chunks(2 * self.width);
        for (pair, to) in pairs.zip(self.to.chunks_exact_mut(self.width)) {
            let (even, odd) = pair.split_at(self.width);
            for at in (0..self.width).step_by(LANES) {
                let second = if odd.is_empty() {
                    simd.splat(0.0)
                } else {
                    load(simd, odd, at)
                };
                store(simd, to, at, simd.pair(load(simd, even, at), second));
            }
        }
    }
}

impl Products<bf16> for InPairs {
    type Term = bf16;

    fn pack(from: &[bf16], to: &mut [bf16]) {
        to.copy_from_slice(from);
    }

    fn logits(h: &[bf16], w: &[bf16], d: usize, z: &mut [f32], scratch: &mut [f32]) {
        let (rows, words) = (h.len() / d, w.len() / d);
        let w = Panels::pack(Rows::new(w, words, d).transposed(), scratch);
        let (h, z) = (
            Cells::of_rows(Rows::new(h, rows, d)),
            RowsMut::new(z, rows, words),
        );
        product_of_pairs(Extent::Whole, 1.0, h, w, 0.0, z);
    }

    fn add_exponentials(online: &mut Online, z: &mut [f32], words: usize) {
        dispatch(AddExponentials(online, z, words));
    }

    fn hidden_gradient(
        z: &mut [f32],
        rows: &[RowGradient],
        w: &[bf16],
        accumulates: bool,
        dh: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (count, words, d) = (rows.len(), z.len() / rows.len(), dh.len() / rows.len());
        dispatch(Differentiate(z, rows));
        let (rounded, scratch) = scratch.split_at_mut(ROUNDED);
        let terms: &mut [bf16] = bytemuck::cast_slice_mut(rounded);
        let width = words.next_multiple_of(2);
        let terms = &mut terms[..count * width];
        for (terms, z) in terms.chunks_exact_mut(width).zip(z.chunks_exact(words)) {
            round(z, &mut terms[..words]);
            terms[words..].fill(bf16::ZERO);
        }
        let dz = Cells::of_rows(Rows::new(terms, count, width));
        let w = Panels::pack(Rows::new(w, words, d), scratch);
        let beta = if accumulates { 1.0 } else { 0.0 };
        product_of_pairs(Extent::Whole, 1.0, dz, w, beta, RowsMut::new(dh, count, d));
    }

    fn weight_gradient(
        z: &mut [f32],
        rows: &[RowGradient],
        h: &[bf16],
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (count, words, d) = (rows.len(), z.len() / rows.len(), h.len() / rows.len());
        dispatch(Differentiate(z, rows));
        let (cells, scratch) = scratch.split_at_mut(ROUNDED);
        let cells = &mut cells[..count.div_ceil(2) * words];
        dispatch_pairs(PairRows {
            from: z,
            width: words,
            to: cells,
        });
        let dz = Cells::across(Rows::new(cells, count.div_ceil(2), words));
        let h = Panels::pack(Rows::new(h, count, d), scratch);
        product_of_pairs(Extent::Whole, 1.0, dz, h, 1.0, RowsMut::new(dw, words, d));
    }
}
