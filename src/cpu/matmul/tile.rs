//! The register tile: up to 14 × 32 elements of C held in registers over the whole reduction.
//!
//! Each element is one chain of fused multiply-adds over the reduction index in order, from zero. So its bits depend
//! neither on where tile borders fall nor on the path's vector width.
//!
//! A step of the 14 × 32 tile is 28 multiply-adds: 14 cycles on two units. What else it issues must fit beside them, and on
//! a core shared with another thread an Intel processor issues about three instructions a cycle, 42 in those 14. Counted in
//! the disassembly of the loop, instructions a multiply-add:
//!
//! | tile | this one | by the compiler alone |
//! |---|---|---|
//! | AVX-512, 14 × 32, y and dx | 165/112 = 1.47 | 60/28 = 2.14 |
//! | AVX-512, 14 × 32, dW | 164/112 = 1.46 | 48/28 = 1.71 |
//! | AVX2, 6 × 16, y and dx | 91/48 = 1.90 | 28/12 = 2.33 |
//! | AVX2, 6 × 16, dW | 95/48 = 1.98 | 24/12 = 2.00 |

use crate::simd::{LANES, Simd, Task};
use crate::storage::Stored;

/// Cache lines that a tile asks for while it computes, one in every four steps of its reduction: where it reads A across,
/// which is where it is short.
///
/// Asked for all at once they would fill the processor's line buffers (16 on Intel) and hold up every load behind them.
pub(super) struct Ahead {
    lines: [*const f32; Ahead::MOST],
    count: usize,
}

impl Ahead {
    /// Lines of one tile.
    const MOST: usize = 64;

    /// None yet.
    pub fn new() -> Self {
        /// What is asked for where there is nothing else: it is always in cache.
        static NOWHERE: [f32; LANES] = [0.0; LANES];
        Self {
            lines: [NOWHERE.as_ptr(); Ahead::MOST],
            count: 0,
        }
    }

    /// Begins the list of the next tile. What the last one asked for stays behind the new entries: it is in cache by now.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds the line of `address`; at once where the list of a reduction of `depth` is full.
    #[inline(always)]
    pub fn add<S: Simd>(&mut self, simd: S, address: *const f32, depth: usize) {
        if self.count < (depth / 4).min(Ahead::MOST) {
            self.lines[self.count] = address;
            self.count += 1;
        } else {
            simd.prefetch(address);
        }
    }
}

/// One product of a tile: c[i, j] = alpha · Σₖ a[i, k] · b[k, j] (+ bias[j]) (+ beta · c[i, j]).
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
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
    /// What to ask for meanwhile.
    pub ahead: &'a Ahead,
}

impl Tile<'_> {
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
struct Instance<'a, const ROWS: usize, const VECTORS: usize, const ACROSS: bool>(Tile<'a>);

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

pub(super) use for_rows;

impl<const ROWS: usize, const VECTORS: usize, const ACROSS: bool> Task
    for Instance<'_, ROWS, VECTORS, ACROSS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tile = self.0;
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        let mut b = tile.b;
        // Rows of A in pairs: one has a pointer, and the other lies a stride behind it, which costs its load nothing. With a
        // pointer for each row the integer registers run out; with one for all, every row costs an addition. Across,
        // neighbours in memory need one pointer and constants.
        let (stride, row) = match ACROSS {
            true => (0, 0),
            false => (size_of::<f32>() * tile.a_row, tile.a_row),
        };
        let pair = |index: usize| tile.a.wrapping_add(2 * index * row);
        let (mut a0, mut a1, mut a2, mut a3) = (pair(0), pair(1), pair(2), pair(3));
        let (mut a4, mut a5, mut a6) = (pair(4), pair(5), pair(6));
        /// One step of the reduction, `$step` elements after the pointers.
        macro_rules! step {
            ($step:literal) => {
                // SAFETY: `Tile::compute` vouches for `depth` rows of B in whole vectors and for every row of A.
                unsafe {
                    let mut x = [simd.splat(0.0); VECTORS];
                    for (index, x) in x.iter_mut().enumerate() {
                        *x = simd.load(b.wrapping_add(index * LANES));
                    }
                    for_rows!(ROWS, ROW => {
                        let a = match ROW / 2 {
                            _ if ACROSS => a0,
                            0 => a0,
                            1 => a1,
                            2 => a2,
                            3 => a3,
                            4 => a4,
                            5 => a5,
                            _ => a6,
                        };
                        let sum = sums[ROW];
                        sums[ROW] = match (ROW % 2, ACROSS) {
                            (0, true) => simd.mul_add_row::<ROW, VECTORS>(a, x, sum),
                            (_, true) => simd.mul_add_row_after::<ROW, VECTORS>(a, stride, x, sum),
                            (0, false) => simd.mul_add_row::<$step, VECTORS>(a, x, sum),
                            (_, false) => simd.mul_add_row_after::<$step, VECTORS>(a, stride, x, sum),
                        };
                    });
                    b = b.wrapping_add(tile.b_depth);
                    if ACROSS {
                        a0 = a0.wrapping_add(tile.a_depth);
                    }
                }
            };
        }
        macro_rules! advance {
            ($steps:literal: $($pointer:ident)*) => {
                if !ACROSS {
                    $($pointer = $pointer.wrapping_add($steps);)*
                }
            };
        }
        // Four steps at a time, whose pointers move once.
        for four in 0..tile.depth / 4 {
            if ACROSS {
                simd.prefetch(tile.ahead.lines[four % Ahead::MOST]);
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            advance!(4: a0 a1 a2 a3 a4 a5 a6);
        }
        for _ in 0..tile.depth % 4 {
            step!(0);
            advance!(1: a0 a1 a2 a3 a4 a5 a6);
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

impl Tile<'_> {
    /// Stores `count` sums at a row and column of C.
    ///
    /// # Safety
    /// 1. As for [`Tile::compute`], with `row` and `column` inside the tile.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(
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
pub(super) unsafe fn get<S: Simd, T: Stored>(simd: S, from: *const T, count: usize) -> S::Vector {
    // SAFETY: the caller's contract.
    unsafe {
        if count == LANES {
            T::load(simd, from)
        } else {
            T::load_first(simd, from, count)
        }
    }
}

/// Writes `count` lanes, whole where possible.
///
/// # Safety
/// 1. `to..to + count` is writable; 2. `count <= 16`.
#[inline(always)]
pub(super) unsafe fn put<S: Simd, T: Stored>(simd: S, to: *mut T, count: usize, x: S::Vector) {
    // SAFETY: the caller's contract.
    unsafe {
        if count == LANES {
            T::store(simd, to, x)
        } else {
            T::store_first(simd, to, count, x)
        }
    }
}
