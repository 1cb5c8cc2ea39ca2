//! One strided product in one task: attention heads, tiles of a contrastive loss.

use super::WIDEST;
use super::matrix::{Operand, RowsMut};
use super::pack;
use super::tile::{Ahead, Tile};
use crate::simd::{LANES, Simd, Task, dispatch};

/// Floats of workspace for [`product`] with a reduction of `depth` and `columns` of output.
pub fn product_workspace(depth: usize, columns: usize) -> usize {
    depth * columns.next_multiple_of(WIDEST)
}

/// C = alpha · A · B + beta · C on the calling thread; at beta 0, C is not read.
///
/// Shapes: A [M, K], B [K, N], C [M, N]; either factor may be the transpose of stored rows. B is read where it lies in
/// whole vectors of a stored row, and packed where it is transposed. Panics where shapes do not fit or the workspace is
/// smaller than [`product_workspace`].
pub fn product<'a>(
    alpha: f32,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
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
        workspace,
    });
}

struct Product<'a, 'c> {
    alpha: f32,
    a: Operand<'a>,
    b: Operand<'a>,
    beta: f32,
    c: RowsMut<'c>,
    workspace: &'c mut [f32],
}

impl Task for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            alpha,
            a,
            b,
            beta,
            c,
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
        for column in (0..n).step_by(width) {
            let columns = width.min(n - column);
            // Reading B where it lies saves the packing, which a product of one head would not earn back; it needs
            // whole vectors, because the tile loads nothing less.
            let (panel, b_depth) = if !b.transposed && columns.is_multiple_of(LANES) {
                (b.rows.start.wrapping_add(column), b.rows.stride)
            } else {
                // SAFETY: the columns lie inside B, and the workspace holds a panel of `depth` rows of `width`.
                unsafe {
                    let panel = workspace.as_mut_ptr();
                    pack::panel(simd, b, (0, depth), (column, columns), panel, width);
                }
                (workspace.as_ptr(), width)
            };
            // Equal tiles rather than full ones and a small rest.
            let tiles = m.div_ceil(S::TILE_ROWS).max(1);
            let tile_rows = m.div_ceil(tiles).max(1);
            for row in (0..m).step_by(tile_rows) {
                let tile = Tile {
                    depth,
                    a: a.rows.start.wrapping_add(row * a_row),
                    a_row,
                    a_depth,
                    b: panel,
                    b_depth,
                    c: c.start.wrapping_add(row * c.stride + column),
                    c_row: c.stride,
                    rows: tile_rows.min(m - row),
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
