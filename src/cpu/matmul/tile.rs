//! The register tile: up to 14 × 32 elements of C held in registers over the whole reduction.
//!
//! Each element is one chain of fused multiply-adds over the reduction index in order, from zero. So its bits depend
//! neither on where tile borders fall nor on the path's vector width.

use crate::simd::{LANES, Simd, Task};

/// One product of a tile: c[i, j] = alpha · Σₖ a[i, k] · b[k, j] (+ bias[j]) (+ beta · c[i, j]).
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Length of the reduction.
    pub depth: usize,
    /// a[0, 0].
    pub a: *const f32,
    /// Distance of rows of A; 1 where A is read transposed.
    pub a_row: usize,
    /// Distance of A's elements along the reduction; 1 where A is read as it lies.
    pub a_depth: usize,
    /// b[0, 0]; rows hold whole vectors.
    pub b: *const f32,
    /// Distance of rows of B.
    pub b_depth: usize,
    /// c[0, 0].
    pub c: *mut f32,
    /// Distance of rows of C.
    pub c_row: usize,
    /// Rows, at most the path's `TILE_ROWS`.
    pub rows: usize,
    /// Columns, at most the path's tile width.
    pub columns: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what C holds; at 0, C is not read.
    pub beta: f32,
    /// Added to each row.
    pub bias: Option<*const f32>,
}

impl Tile {
    /// Computes the tile.
    ///
    /// # Safety
    /// 1. A holds `rows` × `depth` elements at its distances, and `a_row` or `a_depth` is 1; 2. B holds `depth` rows of
    ///    `columns` rounded up to whole vectors; 3. C is writable for `rows` × `columns` and overlaps neither;
    ///    4. the bias holds `columns`; 5. `rows` and `columns` are at least 1 and at most the tile's.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(self, simd: S) {
        debug_assert!(self.rows >= 1 && self.rows <= S::TILE_ROWS);
        debug_assert!(self.columns >= 1 && self.columns <= S::TILE_VECTORS * LANES);
        debug_assert!(
            self.a_row == 1 || self.a_depth == 1,
            "A is read along its rows or its columns"
        );
        if self.columns > LANES {
            self.pick::<S, 2>(simd)
        } else {
            self.pick::<S, 1>(simd)
        }
    }

    #[inline(always)]
    fn pick<S: Simd, const VECTORS: usize>(self, simd: S) {
        /// Instances beyond a path's tile are never built.
        macro_rules! rows {
            ($($rows:literal)*) => {
                match self.rows {
                    $($rows if const { $rows <= S::TILE_ROWS && VECTORS <= S::TILE_VECTORS } => {
                        if self.a_row == 1 && self.a_depth != 1 {
                            simd.call(Instance::<$rows, VECTORS, true>(self))
                        } else {
                            simd.call(Instance::<$rows, VECTORS, false>(self))
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
struct Instance<const ROWS: usize, const VECTORS: usize, const ACROSS: bool>(Tile);

/// Repeats `$body` with the constant `$row` = 0, 1, … below `$rows`.
///
/// Written out, because sums stay in registers only where every index into them is a constant: a loop that the compiler
/// chose not to unroll made the 14-row tile three times slower.
macro_rules! for_rows {
    ($rows:expr, $row:ident => $body:block) => {
        for_rows!(@ $rows, $row => $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $rows:expr, $row:ident => $body:block; $($index:literal)*) => {
        $(
            if $index < $rows {
                const $row: usize = $index;
                $body
            }
        )*
    };
}

impl<const ROWS: usize, const VECTORS: usize, const ACROSS: bool> Task
    for Instance<ROWS, VECTORS, ACROSS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tile = self.0;
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.depth {
            // SAFETY: `Tile::compute` vouches for `depth` rows of B in whole vectors and for every row of A.
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
                    sums[ROW][0] = simd.mul_add(factor, first, sums[ROW][0]);
                    if VECTORS > 1 {
                        sums[ROW][1] = simd.mul_add(factor, second, sums[ROW][1]);
                    }
                });
                a = a.wrapping_add(if ACROSS { tile.a_depth } else { 1 });
                b = b.wrapping_add(tile.b_depth);
            }
        }
        let last = tile.columns - (VECTORS - 1) * LANES;
        for_rows!(ROWS, ROW => {
            // SAFETY: `Tile::compute` vouches for `rows` × `columns` of C and `columns` of the bias.
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

impl Tile {
    /// Stores `count` sums at a row and column of C.
    ///
    /// # Safety
    /// 1. As for [`Tile::compute`], with `row` and `column` inside the tile.
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        count: usize,
        sum: S::Vector,
    ) {
        let to = self.c.wrapping_add(row * self.c_row + column);
        let mut product = simd.mul(simd.splat(self.alpha), sum);
        // SAFETY: the caller vouches for `count` elements of C and of the bias.
        unsafe {
            if let Some(bias) = self.bias {
                product = simd.add(product, get(simd, bias.add(column), count));
            }
            if self.beta != 0.0 {
                product = simd.mul_add(simd.splat(self.beta), get(simd, to, count), product);
            }
            put(simd, to, count, product);
        }
    }
}

/// Reads `count` lanes, whole where possible.
///
/// # Safety
/// 1. `from..from + count` is readable; 2. `count <= 16`.
#[inline(always)]
pub(super) unsafe fn get<S: Simd>(simd: S, from: *const f32, count: usize) -> S::Vector {
    // SAFETY: the caller's contract.
    unsafe {
        if count == LANES {
            simd.load(from)
        } else {
            simd.load_first(from, count)
        }
    }
}

/// Writes `count` lanes, whole where possible.
///
/// # Safety
/// 1. `to..to + count` is writable; 2. `count <= 16`.
#[inline(always)]
pub(super) unsafe fn put<S: Simd>(simd: S, to: *mut f32, count: usize, x: S::Vector) {
    // SAFETY: the caller's contract.
    unsafe {
        if count == LANES {
            simd.store(to, x)
        } else {
            simd.store_first(to, count, x)
        }
    }
}
