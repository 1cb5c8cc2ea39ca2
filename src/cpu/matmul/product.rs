//! One strided product in one task: attention heads, tiles of a contrastive loss.

use super::WIDEST;
use super::few_rows::{FEW, Sums, panel_sums};
use super::matrix::{Operand, RowsMut};
use super::pack;
use super::tile::{Ahead, Tile, get, put};
use crate::simd::{LANES, Simd, Task, dispatch};
use crate::storage::Stored;

/// The corner of a matrix that a causal mask leaves: row i has elements in the columns below max(`floor`, i + `shift`).
#[derive(Clone, Copy, Debug)]
pub struct Stairs {
    /// Columns that every row has.
    pub floor: usize,
    /// How far row 0 reaches; it may lie outside.
    pub shift: isize,
}

impl Stairs {
    /// The columns, of `width`, that row `row` has.
    #[inline(always)]
    pub fn end(self, row: usize, width: usize) -> usize {
        let reached = (row as isize + self.shift).max(0) as usize;
        reached.max(self.floor).min(width)
    }

    /// The first row that has column `column`.
    #[inline(always)]
    pub(super) fn first_row(self, column: usize) -> usize {
        if column < self.floor {
            return 0;
        }
        (column as isize + 1 - self.shift).max(0) as usize
    }
}

/// Columns beyond the stairs that a product may read of a row of A: other rows of the same tile reach them, and of a product
/// in pairs, the other half of the last pair.
pub const READ_BEYOND: usize = 16;

/// What of a product has to be computed.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Of C, what lies below the stairs, each row up to whole vectors. What else of C is written says nothing.
    Result(Stairs),
    /// What is below the stairs of A. Beyond them A is zero: as far as [`READ_BEYOND`] columns, and no further is it read.
    Left(Stairs),
    /// As [`Extent::Left`], of the stored rows whose transpose is A.
    LeftTransposed(Stairs),
}

/// Floats of workspace for [`product`] with a reduction of `depth` and `columns` of output.
pub fn product_workspace(depth: usize, columns: usize) -> usize {
    depth * columns.next_multiple_of(WIDEST)
}

/// C = alpha · A · B + beta · C on the calling thread; at beta 0, C is not read.
///
/// Shapes: A [M, K], B [K, N], C [M, N]; either factor may be the transpose of stored rows. B is read where it lies in
/// whole vectors of a stored row of f32, and packed in f32 where it is transposed or bf16. Panics where shapes do not fit or the workspace is
/// smaller than [`product_workspace`].
pub fn product<'a, T: Stored>(
    alpha: f32,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a, T>>,
    beta: f32,
    c: RowsMut<'_>,
    workspace: &mut [f32],
) {
    product_within(Extent::Whole, alpha, a, b, beta, c, workspace);
}

/// As [`product`], as far as `extent` says: the same bits there, for the work of a part.
pub fn product_within<'a, T: Stored>(
    extent: Extent,
    alpha: f32,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a, T>>,
    beta: f32,
    c: RowsMut<'_>,
    workspace: &mut [f32],
) {
    let (a, b) = (a.into(), b.into());
    let ((m, k), (depth, n)) = (a.shape(), b.shape());
    assert_eq!(
        (depth, c.rows, c.width),
        (k, m, n),
        "rows of B and the shape of C"
    );
    let need = product_workspace(k, n);
    assert!(
        workspace.len() >= need,
        "workspace of {}, needs {need}",
        workspace.len()
    );
    dispatch(Product {
        alpha,
        a,
        b,
        beta,
        c,
        extent,
        workspace,
    });
}

struct Product<'a, 'c, T> {
    alpha: f32,
    a: Operand<'a>,
    b: Operand<'a, T>,
    beta: f32,
    c: RowsMut<'c>,
    extent: Extent,
    workspace: &'c mut [f32],
}

impl<T: Stored> Product<'_, '_, T> {
    /// Whether the product has few rows and a matrix that is packed for them alone: see [`super::few_rows`].
    fn has_few_rows(&self) -> bool {
        let is_whole = matches!(self.extent, Extent::Whole);
        is_whole && self.b.transposed && !self.a.transposed && self.c.rows <= FEW
    }

    #[inline(always)]
    fn run_few_rows<S: Simd>(self, simd: S) {
        let ((rows, _), (_, columns)) = (self.a.shape(), self.b.shape());
        let width = S::TILE_VECTORS * LANES;
        let mut sums = Sums([0.0; FEW * WIDEST]);
        let (alpha, beta) = (simd.splat(self.alpha), simd.splat(self.beta));
        for column in (0..columns).step_by(width) {
            let count = width.min(columns - column);
            let (a, b, columns) = (self.a.rows, self.b, (column, count));
            panel_sums::<S, T, false>(simd, a, b, columns, self.workspace, &mut sums);
            for row in 0..rows {
                for first in (0..count).step_by(LANES) {
                    let present = LANES.min(count - first);
                    // SAFETY: the row and the columns lie inside C, and the sums hold whole vectors.
                    unsafe {
                        let to = self.c.start.add(row * self.c.stride + column + first);
                        let sum = simd.load(sums.0[row * width + first..].as_ptr());
                        let mut product = simd.mul(alpha, sum);
                        if self.beta != 0.0 {
                            product = simd.mul_add(beta, get(simd, to, present), product);
                        }
                        put(simd, to, present, product);
                    }
                }
            }
        }
    }
}

impl<T: Stored> Task for Product<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.has_few_rows() {
            return self.run_few_rows(simd);
        }
        let Self {
            alpha,
            a,
            b,
            beta,
            c,
            extent,
            workspace,
        } = self;
        let ((m, depth), n) = (a.shape(), b.shape().1);
        let (a_row, a_depth) = if a.transposed {
            (1, a.rows.stride)
        } else {
            (a.rows.stride, 1)
        };
        let width = S::TILE_VECTORS * LANES;
        let ahead = Ahead::new();
        // Equal tiles rather than full ones and a small rest.
        let tiles = m.div_ceil(S::TILE_ROWS).max(1);
        let tile_rows = m.div_ceil(tiles).max(1);
        for column in (0..n).step_by(width) {
            let columns = width.min(n - column);
            // Reading B where it lies saves the packing, which a product of one head would not earn back; it needs
            // whole vectors, because the tile loads nothing less.
            let (panel, b_depth) = if T::IS_F32 && !b.transposed && columns.is_multiple_of(LANES) {
                (b.rows.start.wrapping_add(column).cast(), b.rows.stride)
            } else {
                // SAFETY: the columns lie inside B, and the workspace holds a panel of `depth` rows of `width`.
                unsafe {
                    let panel = workspace.as_mut_ptr();
                    pack::panel(simd, b, (0, depth), (column, columns), panel, width);
                }
                (workspace.as_ptr(), width)
            };
            for row in (0..m).step_by(tile_rows) {
                let rows = tile_rows.min(m - row);
                // The last row of a tile reaches furthest, and decides for it.
                let (mut first, mut end, mut columns) = (0, depth, columns);
                match extent {
                    Extent::Whole => {}
                    Extent::Result(stairs) => {
                        let reached = stairs.end(row + rows - 1, n).next_multiple_of(LANES);
                        columns = columns.min(reached.saturating_sub(column));
                    }
                    Extent::Left(stairs) => end = stairs.end(row + rows - 1, depth),
                    Extent::LeftTransposed(stairs) => first = stairs.first_row(row).min(depth),
                }
                if columns == 0 {
                    continue;
                }
                let tile = Tile {
                    depth: end - first,
                    a: a.rows.start.wrapping_add(row * a_row + first * a_depth),
                    a_row,
                    a_depth,
                    b: panel.wrapping_add(first * b_depth),
                    b_depth,
                    c: c.start.wrapping_add(row * c.stride + column),
                    c_row: c.stride,
                    rows,
                    columns,
                    alpha,
                    beta,
                    bias: None,
                    ahead: &ahead,
                };
                // SAFETY: the tile lies inside A and C; B's rows hold whole vectors here, or the panel does.
                unsafe { tile.compute(simd) };
            }
        }
    }
}
