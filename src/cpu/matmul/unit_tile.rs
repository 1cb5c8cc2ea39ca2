//! Tiles of cells on a unit for tiles: up to 32 × 32 sums in four of its registers over the whole reduction.
//!
//! Sixteen cells of the reduction at a time, two registers of each factor are read and multiplied with each other, so that each is
//! used twice. Full blocks are read where they lie; others are filled up with zeros on the way, which change no sum. What a sum's
//! order and roundings are, [`crate::tile_unit::multiply_add`] says; a sum of K terms takes ⌈K/32⌉ additions after at most sixteen
//! multiply-adds and one addition, fewer roundings than the chain of K terms that f32 takes, so that its budget covers this one.

use super::tile::Tile;
use crate::simd::{LANES, Simd};
use crate::tile_unit::{CELLS, SIDE, TileUnit};

/// Most rows of a tile.
pub(super) const ROWS: usize = 2 * SIDE;
/// Most columns of a tile.
pub(super) const COLUMNS: usize = 2 * SIDE;

/// Blocks of 16 × 16 cells, in rows.
#[repr(align(64))]
struct Blocks<const COUNT: usize>([[f32; CELLS]; COUNT]);

/// A unit, and memory for what it cannot read or write in place.
pub(super) struct TileRegisters<U> {
    unit: U,
    /// A block of a left factor that was filled up or turned, and one that is on the way.
    left: Blocks<2>,
    /// Two blocks of a right factor that were filled up.
    right: Blocks<2>,
    /// The sums of a tile, 32 in a row.
    sums: Blocks<4>,
}

impl<U: TileUnit> TileRegisters<U> {
    /// With memory around a unit.
    pub fn new(unit: U) -> Self {
        Self {
            unit,
            left: Blocks([[0.0; CELLS]; 2]),
            right: Blocks([[0.0; CELLS]; 2]),
            sums: Blocks([[0.0; CELLS]; 4]),
        }
    }

    /// Computes a tile of cells.
    ///
    /// # Safety
    /// 1. As for [`Tile::compute_pairs`], with at most [`ROWS`] rows and [`COLUMNS`] columns.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(&mut self, simd: S, tile: Tile<'_>) {
        debug_assert!(tile.rows >= 1 && tile.rows <= ROWS);
        debug_assert!(tile.columns >= 1 && tile.columns <= COLUMNS);
        // SAFETY: the caller's contract.
        unsafe {
            match (tile.rows > SIDE, tile.columns > SIDE) {
                (true, true) => self.multiply::<S, true, true>(simd, &tile),
                (true, false) => self.multiply::<S, true, false>(simd, &tile),
                (false, true) => self.multiply::<S, false, true>(simd, &tile),
                (false, false) => self.multiply::<S, false, false>(simd, &tile),
            }
        }
    }

    /// The whole reduction of a tile of one or two registers of rows, `TALL`, and of columns, `WIDE`.
    ///
    /// # Safety
    /// 1. As for [`TileRegisters::compute`].
    #[inline(always)]
    unsafe fn multiply<S: Simd, const TALL: bool, const WIDE: bool>(
        &mut self,
        simd: S,
        tile: &Tile<'_>,
    ) {
        self.unit.zero::<0>();
        self.unit.zero::<1>();
        self.unit.zero::<2>();
        self.unit.zero::<3>();
        for first in (0..tile.depth).step_by(SIDE) {
            let count = SIDE.min(tile.depth - first);
            // SAFETY: the cells lie inside the factors, or in the memory that was just filled; a register is sixteen whole rows.
            unsafe {
                let (right, stride) = self.right(simd, tile, (first, count));
                self.unit.load::<6>(right, stride);
                if WIDE {
                    self.unit.load::<7>(right.wrapping_add(SIDE), stride);
                }
                let (left, stride) = self.left(simd, tile, 0, (first, count));
                self.unit.load::<4>(left, stride);
                self.unit.multiply::<S, 0, 4, 6>(simd);
                if WIDE {
                    self.unit.multiply::<S, 1, 4, 7>(simd);
                }
                if TALL {
                    let (left, stride) = self.left(simd, tile, SIDE, (first, count));
                    self.unit.load::<5>(left, stride);
                    self.unit.multiply::<S, 2, 5, 6>(simd);
                    if WIDE {
                        self.unit.multiply::<S, 3, 5, 7>(simd);
                    }
                }
            }
        }
        let is_full = tile.rows.is_multiple_of(SIDE) && tile.columns.is_multiple_of(SIDE);
        let is_plain = tile.alpha == 1.0 && tile.beta == 0.0 && tile.bias.is_none();
        let (sums, stride) = if is_full && is_plain {
            (tile.c, tile.c_row)
        } else {
            (self.sums.0.as_mut_ptr().cast::<f32>(), COLUMNS)
        };
        // SAFETY: the tile of C is as large as its registers, or the memory is.
        unsafe {
            self.unit.store::<0>(sums, stride);
            if WIDE {
                self.unit.store::<1>(sums.wrapping_add(SIDE), stride);
            }
            if TALL {
                let sums = sums.wrapping_add(SIDE * stride);
                self.unit.store::<2>(sums, stride);
                if WIDE {
                    self.unit.store::<3>(sums.wrapping_add(SIDE), stride);
                }
            }
        }
        if is_full && is_plain {
            return;
        }
        for row in 0..tile.rows {
            for column in (0..tile.columns).step_by(LANES) {
                let count = LANES.min(tile.columns - column);
                // SAFETY: the sums hold whole vectors; the caller vouches for `count` elements of C and of the bias.
                unsafe {
                    let sum = simd.load(sums.add(row * COLUMNS + column));
                    tile.finish(simd, row, column, count, sum);
                }
            }
        }
    }

    /// Where `count` rows of B from `first` on lie, sixteen of them, and how far apart.
    ///
    /// # Safety
    /// 1. As for [`TileRegisters::compute`], with the rows inside B.
    #[inline(always)]
    unsafe fn right<S: Simd>(
        &mut self,
        simd: S,
        tile: &Tile<'_>,
        (first, count): (usize, usize),
    ) -> (*const f32, usize) {
        let from = tile.b.wrapping_add(first * tile.b_depth);
        if count == SIDE {
            return (from, tile.b_depth);
        }
        let to = self.right.0.as_mut_ptr().cast::<f32>();
        for row in 0..SIDE {
            for column in (0..tile.columns).step_by(LANES) {
                // SAFETY: B's rows hold whole vectors, and the memory sixteen rows of two.
                unsafe {
                    let cells = if row < count {
                        simd.load(from.add(row * tile.b_depth + column))
                    } else {
                        simd.splat(0.0)
                    };
                    simd.store(to.add(row * COLUMNS + column), cells);
                }
            }
        }
        (to, COLUMNS)
    }

    /// Where `count` cells from `first` on of the rows of A from `row` on lie, sixteen in each of sixteen rows, and how far apart
    /// those are.
    ///
    /// # Safety
    /// 1. As for [`TileRegisters::compute`], with rows and cells inside A.
    #[inline(always)]
    unsafe fn left<S: Simd>(
        &mut self,
        simd: S,
        tile: &Tile<'_>,
        row: usize,
        (first, count): (usize, usize),
    ) -> (*const f32, usize) {
        let rows = SIDE.min(tile.rows - row);
        let from = tile.a.wrapping_add(row * tile.a_row + first * tile.a_depth);
        let is_full = rows == SIDE && count == SIDE;
        let (stride, lines, length) = if tile.a_depth == 1 {
            (tile.a_row, rows, count)
        } else {
            (tile.a_depth, count, rows)
        };
        if is_full && tile.a_depth == 1 {
            return (from, stride);
        }
        let [filled, turned] = self.left.0.each_mut().map(|block| block.as_mut_ptr());
        // SAFETY: `lines` lines of `length` cells lie inside A; each block holds sixteen of sixteen.
        unsafe {
            let (mut lying, mut distance) = (from, stride);
            if !is_full {
                for line in 0..SIDE {
                    let cells = if line < lines {
                        simd.load_first(from.add(line * stride), length)
                    } else {
                        simd.splat(0.0)
                    };
                    simd.store(filled.add(line * SIDE), cells);
                }
                (lying, distance) = (filled, SIDE);
            }
            if tile.a_depth == 1 {
                return (lying, distance);
            }
            simd.transpose(lying, distance, turned, SIDE);
        }
        (turned, SIDE)
    }
}
