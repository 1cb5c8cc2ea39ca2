//! Products of few rows with a transposed matrix, at the speed of memory: one token of each answer that is generated.
//!
//! Such a product costs what reading the matrix costs, if nothing else is in the way. A whole panel of it would be: packed, it
//! takes more than the first-level cache holds, and nothing of the next one is asked for meanwhile. So a panel is packed in
//! pieces that stay there, each multiplied at once, while packing asks for the panel behind it ([`pack::panel`]). The sums
//! wait between the pieces, and go on in order: each element is one chain of multiply-adds over the whole reduction, as that
//! of [`super::tile::Tile`], so the bits are those of a product of many rows in the same way.
//! Tiles add up in an order of their own, and few rows go through them as many do.

use super::finish::{Finish, FinishTile};
use super::linear::FEW_TASKS;
use super::matrix::{Operand, Rows};
use super::tile::for_rows;
use super::{WIDEST, pack};
use crate::parallel::{Shared, for_each};
use crate::simd::{LANES, Simd, Task, dispatch, dispatch_pairs};
use crate::storage::Stored;

/// Most rows that are few.
pub(super) const FEW: usize = 14;

/// Rows of a panel that are packed at a time: 8 KiB with the widest tile.
const PIECE: usize = 64;

/// Rows that are multiplied side by side: with two vectors each, eight chains hide the latency of a multiply-add.
const TOGETHER: usize = 4;

/// The sums of one panel: rows of a tile's width, one after the other.
#[repr(align(64))]
pub(super) struct Sums(pub [f32; FEW * WIDEST]);

/// output = finish(a · b), in tasks on the current pool; with `PAIRS`, of cells. `workspace` holds all panels of b, whose rows
/// are stored. The caller has checked that `finish` has room for the result.
pub(super) fn few_rows<T: Stored, O: Stored, const PAIRS: bool>(
    a: Rows<'_>,
    b: Rows<'_, T>,
    finish: Finish<O>,
    workspace: &mut [f32],
) {
    let b = b.transposed();
    let panels = Shared::new(workspace);
    let products = Products::<T, O, PAIRS> {
        a,
        b,
        finish,
        panels,
    };
    match PAIRS {
        true => dispatch_pairs(products),
        false => dispatch(products),
    }
}

/// A product about to be cut into tasks on some path.
struct Products<'a, T, O, const PAIRS: bool> {
    a: Rows<'a>,
    b: Operand<'a, T>,
    finish: Finish<O>,
    panels: Shared<f32>,
}

impl<T: Stored, O: Stored, const PAIRS: bool> Task for Products<'_, T, O, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (_, columns) = self.b.shape();
        let count = columns.div_ceil(S::TILE_VECTORS * LANES);
        let tasks = FEW_TASKS.min(count);
        for_each(tasks, |task| {
            let panels = task * count / tasks..(task + 1) * count / tasks;
            simd.call(Block {
                products: &self,
                panels,
            });
        });
    }
}

/// All rows times a range of panels.
struct Block<'a, T, O, const PAIRS: bool> {
    products: &'a Products<'a, T, O, PAIRS>,
    panels: std::ops::Range<usize>,
}

impl<T: Stored, O: Stored, const PAIRS: bool> Task for Block<'_, T, O, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Products {
            a,
            b,
            finish,
            panels,
        } = self.products;
        let ((depth, columns), width) = (b.shape(), S::TILE_VECTORS * LANES);
        // SAFETY: the first panel's place belongs to this task alone.
        let piece = unsafe { panels.part(self.panels.start * depth * width, depth * width) };
        let mut sums = Sums([0.0; FEW * WIDEST]);
        for panel in self.panels {
            let column = panel * width;
            let count = width.min(columns - column);
            panel_sums::<S, T, PAIRS>(simd, *a, *b, (column, count), piece, &mut sums);
            simd.call(FinishTile {
                finish,
                products: sums.0.as_ptr(),
                products_stride: width,
                row: 0,
                rows: a.rows,
                column,
                columns: count,
            });
        }
    }
}

/// Σₖ a[i, k] · b[k, j] for `count` columns from `column` on, a tile's width at most. `piece` holds as many rows of a tile's
/// width as b has, or [`PIECE`].
#[inline(always)]
pub(super) fn panel_sums<S: Simd, T: Stored, const PAIRS: bool>(
    simd: S,
    a: Rows<'_>,
    b: Operand<'_, T>,
    (column, count): (usize, usize),
    piece: &mut [f32],
    sums: &mut Sums,
) {
    let ((depth, columns), width) = (b.shape(), S::TILE_VECTORS * LANES);
    assert!(a.rows <= FEW && a.width == depth && piece.len() >= depth.min(PIECE) * width);
    assert!(count <= width && column + count <= columns);
    let piece = piece.as_mut_ptr();
    sums.0 = [0.0; FEW * WIDEST];
    for first in (0..depth).step_by(PIECE) {
        let rows = PIECE.min(depth - first);
        // SAFETY: the columns lie inside B and the piece has room by the assertions.
        unsafe { pack::panel(simd, b, (first, rows), (column, count), piece, width) };
        for row in (0..a.rows).step_by(TOGETHER) {
            let group = Group {
                a: a.start.wrapping_add(row * a.stride + first),
                a_row: a.stride,
                depth: rows,
                panel: piece,
                sums: sums.0[row * width..].as_mut_ptr(),
            };
            match a.rows - row {
                1 => simd.call(Together::<1, PAIRS>(group)),
                2 => simd.call(Together::<2, PAIRS>(group)),
                3 => simd.call(Together::<3, PAIRS>(group)),
                _ => simd.call(Together::<TOGETHER, PAIRS>(group)),
            }
        }
    }
}

/// Some rows times a piece of a panel, added to their sums.
struct Group {
    a: *const f32,
    a_row: usize,
    depth: usize,
    panel: *const f32,
    sums: *mut f32,
}

/// So many rows of a group.
struct Together<const ROWS: usize, const PAIRS: bool>(Group);

impl<const ROWS: usize, const PAIRS: bool> Together<ROWS, PAIRS> {
    #[inline(always)]
    fn multiply<S: Simd, const VECTORS: usize>(self, simd: S) {
        let (group, width) = (self.0, VECTORS * LANES);
        let at = |row, index| group.sums.wrapping_add(row * width + index * LANES);
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        // SAFETY: `panel_sums` has `ROWS` rows of sums and of the left factor, and `depth` rows of the panel, all of `width`.
        unsafe {
            for_rows!(ROWS, ROW => {
                for (index, sum) in sums[ROW].iter_mut().enumerate() {
                    *sum = simd.load(at(ROW, index));
                }
            });
            let (mut a, mut b) = (group.a, group.panel);
            for _ in 0..group.depth {
                let mut x = [simd.splat(0.0); VECTORS];
                for (index, x) in x.iter_mut().enumerate() {
                    *x = simd.load(b.wrapping_add(index * LANES));
                }
                for_rows!(ROWS, ROW => {
                    let factor = simd.splat(*a.wrapping_add(ROW * group.a_row));
                    for (sum, x) in sums[ROW].iter_mut().zip(x) {
                        *sum = match PAIRS {
                            true => simd.dot_pairs(factor, x, *sum),
                            false => simd.mul_add(factor, x, *sum),
                        };
                    }
                });
                a = a.wrapping_add(1);
                b = b.wrapping_add(width);
            }
            for_rows!(ROWS, ROW => {
                for (index, sum) in sums[ROW].into_iter().enumerate() {
                    simd.store(at(ROW, index), sum);
                }
            });
        }
    }
}

impl<const ROWS: usize, const PAIRS: bool> Task for Together<ROWS, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match S::TILE_VECTORS {
            1 => self.multiply::<S, 1>(simd),
            _ => self.multiply::<S, 2>(simd),
        }
    }
}
