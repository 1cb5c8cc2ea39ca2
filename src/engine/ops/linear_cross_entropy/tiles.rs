//! The output product in tiles: supervised rows packed together, words in runs.

use super::products::{Products, scratch};
use crate::tape::{CpuArgs, Element, Target};
use crate::tensor::{DType, TensorType};

/// Supervised rows of one tile.
pub(super) const TILE_ROWS: usize = 128;
/// Words of one tile.
pub(super) const TILE_WORDS: usize = 256;
/// Words whose weight gradient one worker owns, at the least: shorter products do not pay.
const LEAST_WORDS: usize = 64;
/// Parts that rows or words are divided into, to be worked on side by side, whatever the threads.
pub(super) const WORKERS: usize = 16;

pub(super) fn product_size(inputs: &[TensorType]) -> f64 {
    inputs[0].shape.rows() as f64 * inputs[1].numel() as f64
}

pub(super) fn workspace_bytes(inputs: &[TensorType], target: Target) -> usize {
    match target {
        Target::Cpu { .. } => {
            let (rows, d) = (inputs[0].shape.rows(), inputs[0].shape.columns());
            (rows + WORKERS * scratch(d, inputs[0].dtype)) * size_of::<f32>()
        }
        _ => 0,
    }
}

/// The output product's operands.
pub(super) struct Head<'a, T> {
    pub(super) h: &'a [T],
    pub(super) w: &'a [T],
    pub(super) targets: &'a [i32],
    pub(super) n: usize,
    pub(super) d: usize,
    pub(super) v: usize,
    pub(super) dtype: DType,
}

impl<'a, T: Element> Head<'a, T> {
    pub(super) fn of(args: &CpuArgs<'a>) -> Head<'a, T> {
        let types = args.input_types;
        Head {
            h: args.inputs.of(0),
            w: args.inputs.of(1),
            targets: if args.inputs.len() > 2 {
                args.inputs.i32(2)
            } else {
                &[]
            },
            n: types[0].shape.rows(),
            d: types[0].shape.columns(),
            v: types[1].shape.rows(),
            dtype: types[0].dtype,
        }
    }

    /// Floats of one worker.
    pub(super) fn scratch(&self) -> usize {
        scratch(self.d, self.dtype)
    }

    /// Rows that one worker owns.
    pub(super) fn worker_rows(&self) -> usize {
        self.n.div_ceil(WORKERS).next_multiple_of(16)
    }

    /// Words whose weight gradient one worker owns.
    pub(super) fn worker_words(&self) -> usize {
        self.v
            .div_ceil(WORKERS)
            .next_multiple_of(16)
            .max(LEAST_WORDS)
    }

    /// Packs the supervised rows of a range together, up to [`TILE_ROWS`] at a time, and calls `visit(rows, h, scratch)`.
    pub(super) fn supervised<P: Products<T>>(
        &self,
        range: std::ops::Range<usize>,
        scratch: &mut [f32],
        mut visit: impl FnMut(&[usize], &[P::Term], &mut [f32]),
    ) {
        assert!(range.end <= self.n, "rows {range:?} of {}", self.n);
        let size = TILE_ROWS * self.d * size_of::<P::Term>() / size_of::<f32>();
        let (packed, scratch) = scratch.split_at_mut(size);
        let packed: &mut [P::Term] = bytemuck::cast_slice_mut(packed);
        let mut rows = [0usize; TILE_ROWS];
        let mut count = 0;
        let last = range.end;
        for row in range {
            // Copied side by side first: in a conversation most rows are prompt or image, and a product over them would
            // be thrown away. Without targets, as for answers, every row counts.
            if self.targets.get(row).is_none_or(|target| *target >= 0) {
                let packed = &mut packed[count * self.d..][..self.d];
                P::pack(&self.h[row * self.d..][..self.d], packed);
                rows[count] = row;
                count += 1;
            }
            if count > 0 && (count == TILE_ROWS || row + 1 == last) {
                visit(&rows[..count], &packed[..count * self.d], scratch);
                count = 0;
            }
        }
    }

    /// Calls `visit(logits [rows, words], words, scratch)` for every run of the words in `range`, in rising order.
    pub(super) fn words<P: Products<T>>(
        &self,
        h: &[P::Term],
        rows: usize,
        range: std::ops::Range<usize>,
        scratch: &mut [f32],
        mut visit: impl FnMut(&mut [f32], std::ops::Range<usize>, &mut [f32]),
    ) {
        assert!(
            rows <= TILE_ROWS && range.end <= self.v,
            "{rows} rows by words {range:?} of {}",
            self.v
        );
        let (tile, scratch) = scratch.split_at_mut(TILE_ROWS * TILE_WORDS);
        for first in range.clone().step_by(TILE_WORDS) {
            let words = first..range.end.min(first + TILE_WORDS);
            let tile = &mut tile[..rows * words.len()];
            P::logits(h, self.of_words(&words), self.d, tile, scratch);
            visit(tile, words, scratch);
        }
    }

    /// The rows of W of some words.
    pub(super) fn of_words(&self, words: &std::ops::Range<usize>) -> &'a [T] {
        &self.w[words.start * self.d..words.end * self.d]
    }
}
