//! Tiles of bf16 numbers in pairs: two terms of the reduction in each 32-bit cell, multiplied and added by one instruction.
//!
//! Factors are matrices of cells, and a [`Tile`] of cells is that of f32 with half the depth: cell (i, k) of A holds
//! a[i, 2k] and a[i, 2k + 1], cell (k, j) of B b[2k, j] and b[2k + 1, j]. An element is one chain of fused multiply-adds
//! over the cells in order, in each the odd term before the even one ([`Simd::dot_pairs`]); where the depth is odd, the last
//! cell ends in a zero.

use half::bf16;

use super::matrix::Operand;
use super::pack;
use super::tile::{Tile, for_rows};
use crate::simd::{LANES, Simd, Task};

/// Cells that hold `depth` terms.
pub(super) fn cells(depth: usize) -> usize {
    depth.div_ceil(2)
}

impl Tile<'_> {
    /// Computes a tile of cells: `depth` and the distances of both factors count cells.
    ///
    /// # Safety
    /// 1. As for [`Tile::compute`].
    #[inline(always)]
    pub unsafe fn compute_pairs<S: Simd>(self, simd: S) {
        debug_assert!(self.rows >= 1 && self.rows <= S::TILE_ROWS);
        debug_assert!(self.columns >= 1 && self.columns <= S::TILE_VECTORS * LANES);
        if self.columns > LANES {
            self.pick_pairs::<S, 2>(simd)
        } else {
            self.pick_pairs::<S, 1>(simd)
        }
    }

    #[inline(always)]
    fn pick_pairs<S: Simd, const VECTORS: usize>(self, simd: S) {
        macro_rules! rows {
            ($($rows:literal)*) => {
                match self.rows {
                    $($rows if const { $rows <= S::TILE_ROWS && VECTORS <= S::TILE_VECTORS } => {
                        if self.a_row == 1 && self.a_depth != 1 {
                            simd.call(PairInstance::<$rows, VECTORS, true>(self))
                        } else {
                            simd.call(PairInstance::<$rows, VECTORS, false>(self))
                        }
                    })*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

/// One size of tile; `ACROSS` where neighbouring rows of A are neighbours in memory.
struct PairInstance<'a, const ROWS: usize, const VECTORS: usize, const ACROSS: bool>(Tile<'a>);

impl<const ROWS: usize, const VECTORS: usize, const ACROSS: bool> Task
    for PairInstance<'_, ROWS, VECTORS, ACROSS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tile = self.0;
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.depth {
            // SAFETY: `Tile::compute_pairs` vouches for `depth` rows of B in whole vectors and for every row of A.
            unsafe {
                let first = simd.load(b);
                let second = if VECTORS > 1 {
                    simd.load(b.add(LANES))
                } else {
                    first
                };
                for_rows!(ROWS, ROW => {
                    let offset = if ACROSS { ROW } else { ROW * tile.a_row };
                    let factor = simd.splat(*a.add(offset));
                    sums[ROW][0] = simd.dot_pairs(factor, first, sums[ROW][0]);
                    if VECTORS > 1 {
                        sums[ROW][1] = simd.dot_pairs(factor, second, sums[ROW][1]);
                    }
                });
                a = a.wrapping_add(if ACROSS { tile.a_depth } else { 1 });
                b = b.wrapping_add(tile.b_depth);
            }
        }
        let last = tile.columns - (VECTORS - 1) * LANES;
        for_rows!(ROWS, ROW => {
            // SAFETY: `Tile::compute_pairs` vouches for `rows` × `columns` of C and `columns` of the bias.
            unsafe {
                if VECTORS > 1 {
                    tile.finish(simd, ROW, 0, LANES, sums[ROW][0]);
                    tile.finish(simd, ROW, LANES, last, sums[ROW][1]);
                } else {
                    tile.finish(simd, ROW, 0, last, sums[ROW][0]);
                }
            }
        });
    }
}

/// As [`pack::panel`], in cells: the panel has a row for two rows of `b`.
///
/// # Safety
/// 1. As for [`pack::panel`], with `panel` writable for `cells(depth)` · `width`; 2. where `b` is transposed, its stored rows
///    are cells, and `row` is even.
#[inline(always)]
pub(super) unsafe fn panel<S: Simd>(
    simd: S,
    b: Operand<'_, bf16>,
    (row, depth): (usize, usize),
    (column, count): (usize, usize),
    panel: *mut f32,
    width: usize,
) {
    if b.transposed {
        // Two terms that follow one another in a stored row are a cell already: cells are moved as f32 numbers are.
        let cells_of_rows = b.rows.as_cells();
        // SAFETY: the caller's contract, in cells.
        unsafe {
            let (at, b) = ((row / 2, cells(depth)), cells_of_rows.transposed());
            pack::panel(simd, b, at, (column, count), panel, width);
        }
        return;
    }
    let from = b.rows.start.wrapping_add(row * b.rows.stride + column);
    // SAFETY: `count` numbers from `column` lie inside each of the rows, and the panel holds their cells.
    unsafe { panel_of_rows(simd, (from, b.rows.stride), depth, count, (panel, width)) }
}

/// Packs `depth` rows of `count` numbers as half as many rows of `width` cells, zeros where there are no numbers.
///
/// # Safety
/// 1. `depth` rows of `count` numbers, `stride` apart, are readable; 2. `count <= width`, a multiple of 16; 3. `panel` is
///    writable for `cells(depth)` · `width`.
#[inline(always)]
pub(super) unsafe fn panel_of_rows<S: Simd>(
    simd: S,
    (from, stride): (*const bf16, usize),
    depth: usize,
    count: usize,
    (panel, width): (*mut f32, usize),
) {
    for first in (0..width).step_by(LANES) {
        let present = count.saturating_sub(first).min(LANES);
        let (from, to) = (from.wrapping_add(first), panel.wrapping_add(first));
        // SAFETY: the caller's contract.
        unsafe { interleave(simd, (from, stride), depth, present, (to, width)) };
    }
}

/// Writes `depth` rows of `count` numbers, at most sixteen, as half as many rows of sixteen cells.
///
/// # Safety
/// 1. `depth` rows of `count` numbers, `stride` apart, are readable; 2. `cells(depth)` rows of sixteen cells, `to_stride`
///    apart, are writable.
#[inline(always)]
pub(super) unsafe fn interleave<S: Simd>(
    simd: S,
    (from, stride): (*const bf16, usize),
    depth: usize,
    count: usize,
    (to, to_stride): (*mut f32, usize),
) {
    for cell in 0..cells(depth) {
        let even = from.wrapping_add(2 * cell * stride);
        let odd = if 2 * cell + 1 < depth {
            even.wrapping_add(stride)
        } else {
            std::ptr::null()
        };
        // SAFETY: the caller's contract.
        unsafe {
            let x = simd.load_pairs(even, odd, count);
            simd.store(to.wrapping_add(cell * to_stride), x);
        }
    }
}
