//! The scores on the processor, tile by tile.

use rayon::prelude::*;

use super::mask::Identities;
use crate::tape::{Target, with_element};
use crate::tensor::TensorType;
use keel_cpu::Stored;
use keel_cpu::matmul::{Rows, RowsMut, product, product_workspace};

/// Rows of one tile of scores.
const TILE_ROWS: usize = 64;
/// Columns of one tile of scores.
const TILE_COLUMNS: usize = 256;
/// Runs of rows that are worked on side by side, whatever the threads.
const LANES: usize = 16;

pub(super) fn workspace_bytes(inputs: &[TensorType], target: Target) -> usize {
    match target {
        Target::Cpu { .. } => {
            let (n, e) = (inputs[0].shape.rows(), inputs[0].shape.columns());
            let lane = with_element!(inputs[0].dtype, T => Sweep::scratch::<T>(e));
            // Besides, for the backward pass of features in bf16: one side's gradient before it is rounded.
            let gradient = with_element!(inputs[0].dtype, T => <T as Stored>::scratch(n * e));
            (2 * n + LANES * lane + gradient) * size_of::<f32>()
        }
        _ => 0,
    }
}

/// How many rows of each rank are pairs, the first of them.
#[derive(Clone, Copy)]
pub(super) struct Counts<'a> {
    /// One number a rank, and their sum.
    pub counts: &'a [i32],
    /// Rows of each rank.
    pub share: usize,
}

impl Counts<'_> {
    /// The rows of all ranks.
    pub fn rows(&self) -> usize {
        (self.counts.len() - 1) * self.share
    }

    /// The pairs of a rank.
    pub fn of(&self, rank: usize) -> usize {
        self.counts[rank].clamp(0, self.share as i32) as usize
    }

    /// The pairs of all ranks.
    pub fn all(&self) -> usize {
        self.counts.last().map_or(0, |all| (*all).max(0) as usize)
    }

    /// Whether a row of all ranks is a pair.
    pub fn takes_part(&self, row: usize) -> bool {
        row % self.share < self.of(row / self.share)
    }
}

/// The scores of n rows with others, tile by tile.
pub(super) struct Sweep<'a> {
    /// Rows of one side.
    pub n: usize,
    /// Rows of the other: as many, or those of all ranks.
    pub columns: usize,
    /// Where the rows stand among the columns.
    pub first: usize,
    /// The pairs that the loss is divided by.
    pub pairs: usize,
    /// Which of the columns are pairs, where not all are. The scores of others are −∞.
    pub counts: Option<Counts<'a>>,
    pub e: usize,
    pub scale: f32,
    pub bias: f32,
    /// Which rows are equal, where that is known. Their scores are −∞.
    pub identities: Option<Identities<'a>>,
}

impl Sweep<'_> {
    /// Floats of scratch memory of one lane: a tile, rows in f32 where they are stored in bf16, and the product's own, for
    /// the scores and the gradient.
    fn scratch<T: Stored>(e: usize) -> usize {
        let products = product_workspace(e, TILE_COLUMNS).max(product_workspace(TILE_COLUMNS, e));
        TILE_ROWS * TILE_COLUMNS + T::scratch(TILE_ROWS * e) + products
    }

    pub fn own<T: Stored>(&self, u: &[T], v: &[T], i: usize) -> f32 {
        let (u, v) = (&u[i * self.e..][..self.e], &v[i * self.e..][..self.e]);
        let dot: f64 = u
            .iter()
            .zip(v)
            .map(|(u, v)| f64::from(u.widen()) * f64::from(v.widen()))
            .sum();
        (f64::from(self.scale) * dot + f64::from(self.bias)) as f32
    }

    /// Rows that one lane owns.
    fn lane_rows(&self) -> usize {
        self.n.div_ceil(LANES).next_multiple_of(8).max(1)
    }

    /// Calls `visit(scores of one row with a run of columns, row, first column, the row's output)` for every row,
    /// columns in rising order; `out` has `width` numbers a row, zeroed first.
    pub fn rows<T: Stored>(
        &self,
        x: &[T],
        y: &[T],
        out: &mut [f32],
        width: usize,
        scratch: &mut [f32],
        visit: impl Fn(&[f32], usize, usize, &mut [f32]) + Sync,
    ) {
        self.tiles(
            x,
            y,
            out,
            width,
            scratch,
            |tile, columns, first_row, first, out, _| {
                for (offset, (tile, out)) in
                    tile.chunks(columns).zip(out.chunks_mut(width)).enumerate()
                {
                    visit(tile, first_row + offset, first, out);
                }
            },
        );
    }

    /// Calls `visit(tile [rows, columns], columns, first row, first column, outputs of these rows, scratch)`.
    pub fn tiles<T: Stored>(
        &self,
        x: &[T],
        y: &[T],
        out: &mut [f32],
        width: usize,
        scratch: &mut [f32],
        visit: impl Fn(&mut [f32], usize, usize, usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        let (all, e, lane_rows) = (self.columns, self.e, self.lane_rows());
        out.par_chunks_mut(lane_rows * width)
            .zip(scratch.par_chunks_mut(Self::scratch::<T>(e)))
            .enumerate()
            .for_each(|(lane, (out, scratch))| {
                out.fill(0.0);
                let (tile, scratch) = scratch.split_at_mut(TILE_ROWS * TILE_COLUMNS);
                let (widened, scratch) = scratch.split_at_mut(T::scratch(TILE_ROWS * e));
                for (block, out) in out.chunks_mut(TILE_ROWS * width).enumerate() {
                    let first_row = lane * lane_rows + block * TILE_ROWS;
                    let rows = out.len() / width;
                    let x = T::view(Rows::new(&x[first_row * e..], rows, e), widened);
                    for first in (0..all).step_by(TILE_COLUMNS) {
                        let columns = TILE_COLUMNS.min(all - first);
                        let tile = &mut tile[..rows * columns];
                        product(
                            self.scale,
                            x,
                            Rows::new(&y[first * e..], columns, e).transposed(),
                            0.0,
                            RowsMut::new(tile, rows, columns),
                            scratch,
                        );
                        if self.bias != 0.0 {
                            tile.iter_mut().for_each(|s| *s += self.bias);
                        }
                        if let Some(identities) = &self.identities {
                            identities.apply(tile, columns, [self.first + first_row, first]);
                        }
                        self.leave_out(tile, columns, first);
                        visit(tile, columns, first_row, first, out, scratch);
                    }
                }
            });
    }

    /// Sets the scores of columns from `first` on that are no pairs to −∞.
    fn leave_out(&self, tile: &mut [f32], columns: usize, first: usize) {
        let Some(counts) = &self.counts else { return };
        for column in (0..columns).filter(|column| !counts.takes_part(first + column)) {
            let scores = tile.iter_mut().skip(column).step_by(columns);
            scores.for_each(|score| *score = f32::NEG_INFINITY);
        }
    }

    /// out_i = log Σ_j e^(S_ij), by a running maximum and sum.
    pub fn log_sums<T: Stored>(&self, x: &[T], y: &[T], out: &mut [f32], workspace: &mut [f32]) {
        let (state, scratch) = workspace.split_at_mut(2 * self.n);
        self.rows(x, y, state, 2, scratch, |tile, _, first, state| {
            let most = tile.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            let before = if first == 0 {
                f32::NEG_INFINITY
            } else {
                state[0]
            };
            let top = most.max(before);
            // A masked score adds nothing, also where all scores so far are masked and the top is −∞ too: there the difference
            // would be no number. Each row has a score that is not masked, its own.
            let term = |s: f32| {
                if s == f32::NEG_INFINITY {
                    0.0
                } else {
                    (s - top).exp()
                }
            };
            let here: f32 = tile.iter().map(|s| term(*s)).sum();
            let kept = if first == 0 {
                0.0
            } else if before == top {
                state[1]
            } else {
                state[1] * (before - top).exp()
            };
            state[0] = top;
            state[1] = kept + here;
        });
        for (out, state) in out.iter_mut().zip(state.chunks(2)) {
            *out = state[0] + state[1].ln();
        }
    }
}
