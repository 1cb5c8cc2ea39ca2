//! The two products of a linear layer with rows on the left: forward and input gradient.

use super::WIDEST;
use super::backward_weight::{Cut, partials_of_f32};
use super::few_rows::{FEW, few_rows};
use super::finish::{Epilogue, Finish, FinishTile, Plane, Residual, Slope};
use super::matrix::{Operand, Rows, RowsMut};
use super::pack;
use super::tile::{Ahead, Tile};
use crate::parallel::{Shared, for_each};
use crate::simd::{LANES, Simd, Task, dispatch};
use crate::storage::Stored;

/// Elements of the left factor that a block of rows may hold: leaves half of a 1 MiB second-level cache to the weight.
pub(super) const BLOCK_ELEMENTS: usize = 96 * 1024;

/// Most rows of a block.
pub(super) const BLOCK_ROWS: usize = 112;

/// Tasks below which a product with few rows is cut along its columns as well.
pub(super) const FEW_TASKS: usize = 16;

/// Elements of panels that the second-level cache keeps for all rows of a block: half of 1 MiB.
const PANEL_ELEMENTS: usize = 128 * 1024;

/// Floats of workspace for [`linear`] with `inputs` K and `outputs` N: the packed weight.
pub fn linear_workspace(inputs: usize, outputs: usize) -> usize {
    inputs * outputs.next_multiple_of(WIDEST)
}

/// Floats of workspace for [`linear_backward_input`] with `inputs` K and `outputs` N: the packed weight.
pub fn linear_backward_input_workspace(inputs: usize, outputs: usize) -> usize {
    outputs * inputs.next_multiple_of(WIDEST)
}

/// y = residual + scale · activation(x Wᵀ + bias), each part optional.
///
/// Shapes: x [M, K], w [N, K], y [M, N]; bias and scale `[N]`; pre-activation and residual [M, N]. Runs on the current
/// rayon pool. Panics where shapes do not fit or the workspace is smaller than [`linear_workspace`].
pub fn linear<T: Factor>(
    x: Rows<'_, T>,
    w: Rows<'_, T>,
    y: RowsMut<'_, T>,
    epilogue: Epilogue<'_, T>,
    workspace: &mut [f32],
) {
    let (m, n) = (x.rows, w.rows);
    assert_eq!(
        (w.width, y.rows, y.width),
        (x.width, m, n),
        "w's width and the shape of y"
    );
    let mut finish = Finish::plain(&y);
    finish.bias = epilogue.bias.map(|bias| {
        assert_eq!(bias.len(), n, "elements of the bias");
        bias.as_ptr()
    });
    finish.scale = epilogue.scale.map(|scale| {
        assert_eq!(scale.len(), n, "elements of the scale");
        scale.as_ptr()
    });
    finish.pre_activation = epilogue.pre_activation.map(|z| {
        assert_eq!((z.rows, z.width), (m, n), "shape of the pre-activation");
        Plane::write(&z)
    });
    finish.activation = epilogue.activation;
    finish.residual = match epilogue.residual {
        Residual::None => None,
        Residual::InPlace => Some(finish.output),
        Residual::From(rows) => {
            assert_eq!((rows.rows, rows.width), (m, n), "shape of the residual");
            Some(Plane::read(rows))
        }
    };
    T::rows_times_panels(x, w.transposed(), finish, workspace);
}

/// dx = dy W, multiplied by the slope of the activation in front where one is given; added to dx where `accumulate`.
///
/// Shapes: dy [M, N], w [N, K], dx [M, K], the slope's pre-activation [M, K]. Runs on the current rayon pool. Panics
/// where shapes do not fit or the workspace is smaller than [`linear_backward_input_workspace`].
pub fn linear_backward_input<T: Factor>(
    dy: Rows<'_, T>,
    w: Rows<'_, T>,
    dx: RowsMut<'_, T>,
    accumulate: bool,
    slope: Option<Slope<'_, T>>,
    workspace: &mut [f32],
) {
    let shape = (dy.rows, w.width);
    assert_eq!(w.rows, dy.width, "rows of w and width of dy");
    assert_eq!((dx.rows, dx.width), shape, "shape of dx");
    let mut finish = Finish::plain(&dx);
    finish.residual = accumulate.then_some(finish.output);
    finish.slope = slope.map(|slope| {
        let z = slope.pre_activation;
        assert_eq!((z.rows, z.width), shape, "shape of the pre-activation");
        (slope.activation, Plane::read(z))
    });
    T::rows_times_panels(dy, w.into(), finish, workspace);
}

/// A number that linear layers are written for, each type with products of its own.
pub trait Factor: Stored {
    /// output = finish(a · b).
    #[doc(hidden)]
    fn rows_times_panels(
        a: Rows<'_, Self>,
        b: Operand<'_, Self>,
        finish: Finish<Self>,
        workspace: &mut [f32],
    );
    /// The partials of the weight gradient of `factors` dy and x, cut like this; `packing` is scratch memory.
    #[doc(hidden)]
    fn weight_partials(
        factors: (Rows<'_, Self>, Rows<'_, Self>),
        cut: Cut,
        partials: &mut [f32],
        packing: &mut [f32],
        wants_bias: bool,
    );
}

impl Factor for f32 {
    fn rows_times_panels(a: Rows<'_>, b: Operand<'_>, finish: Finish, workspace: &mut [f32]) {
        rows_times_panels(a, b, finish, workspace);
    }

    fn weight_partials(
        factors: (Rows<'_>, Rows<'_>),
        cut: Cut,
        partials: &mut [f32],
        packing: &mut [f32],
        wants_bias: bool,
    ) {
        partials_of_f32(factors, cut, partials, packing, wants_bias);
    }
}

/// output = finish(a · b): packs b once, then blocks of rows as tasks.
fn rows_times_panels(a: Rows<'_>, b: Operand<'_>, finish: Finish, workspace: &mut [f32]) {
    let (depth, columns) = b.shape();
    let (rows, packed) = (a.rows, depth * columns.next_multiple_of(WIDEST));
    assert!(
        workspace.len() >= packed,
        "workspace of {}, needs {packed}",
        workspace.len()
    );
    if rows == 0 || columns == 0 {
        return;
    }
    if rows <= FEW && b.transposed {
        few_rows::<f32, f32, false>(a, b.rows, finish, workspace);
        return;
    }
    let panels = Shared::new(&mut workspace[..packed]);
    dispatch(Products {
        a,
        b,
        finish,
        panels,
    });
}

/// A product about to be cut into tasks on some path.
struct Products<'a> {
    a: Rows<'a>,
    b: Operand<'a>,
    finish: Finish,
    panels: Shared<f32>,
}

impl Task for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (depth, columns) = self.b.shape();
        let width = S::TILE_VECTORS * LANES;
        let panel_count = columns.div_ceil(width);
        let tile_rows = tile_rows::<S>(self.a.stride);
        // As many rows as the cache takes, but no fewer than FEW_TASKS blocks where there are rows enough; where there
        // are not, the panels are divided as well. From the shape alone, as all cuts.
        let wanted = (BLOCK_ELEMENTS / depth.max(1)).min(self.a.rows.div_ceil(FEW_TASKS));
        let tiles = (wanted / tile_rows).clamp(1, BLOCK_ROWS / tile_rows);
        let block_rows = tiles * tile_rows;
        let blocks = self.a.rows.div_ceil(block_rows);
        let groups = (FEW_TASKS / blocks).clamp(1, panel_count);
        let is_alone = blocks == 1;
        if !is_alone {
            // Packing is a pass of its own with a barrier behind it: every block of rows reads every panel, and packing
            // inside a block would repeat it for each.
            for_each(panel_count, |panel| {
                simd.call(self.pack(panel, panel));
            });
        }
        for_each(blocks * groups, |task| {
            let first = task / groups * block_rows;
            let panels = (task % groups * panel_count / groups)
                ..((task % groups + 1) * panel_count / groups);
            simd.call(Block {
                products: &self,
                row: first,
                rows: block_rows.min(self.a.rows - first),
                panels,
                tile_rows,
                is_alone,
            });
        });
    }
}

/// Rows of a tile that reads its left factor with rows `stride` apart.
///
/// At a multiple of the 4 KiB that a way of the first-level cache holds, all rows compete for one set of 12 lines (8 on
/// other machines); a shorter tile stays below that.
#[inline(always)]
pub(super) fn tile_rows<S: Simd>(stride: usize) -> usize {
    if stride.is_multiple_of(1024) {
        S::TILE_ROWS.min(8)
    } else {
        S::TILE_ROWS
    }
}

impl<'a> Products<'a> {
    /// The packing of panel `panel` into the place of panel `place`.
    fn pack(&self, panel: usize, place: usize) -> PackPanel<'a> {
        let (depth, columns) = self.b.shape();
        PackPanel {
            b: self.b,
            panels: self.panels,
            panel,
            place,
            depth,
            columns,
        }
    }
}

struct PackPanel<'a> {
    b: Operand<'a>,
    panels: Shared<f32>,
    panel: usize,
    place: usize,
    depth: usize,
    columns: usize,
}

impl Task for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = S::TILE_VECTORS * LANES;
        let column = self.panel * width;
        let count = width.min(self.columns - column);
        // SAFETY: each place is its own part of the workspace, which the caller of the tasks borrows, and one task at a time
        // packs into it.
        let panel = unsafe {
            self.panels
                .part(self.place * self.depth * width, self.depth * width)
        };
        // SAFETY: the columns lie inside B, and the panel holds `depth` rows of `width`.
        unsafe {
            pack::panel(
                simd,
                self.b,
                (0, self.depth),
                (column, count),
                panel.as_mut_ptr(),
                width,
            );
        }
    }
}

/// A block of rows times a range of panels.
struct Block<'a> {
    products: &'a Products<'a>,
    row: usize,
    rows: usize,
    panels: std::ops::Range<usize>,
    tile_rows: usize,
    /// Whether there is no other block: it packs each panel itself, into one place of its own, which stays in cache. The matrix is
    /// then read once and nothing of it is written, which is all that a product of few rows costs.
    is_alone: bool,
}

/// The products of one tile on their way to the epilogue.
#[repr(align(64))]
struct Scratch([f32; 14 * WIDEST]);

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Products {
            a,
            b,
            finish,
            panels,
        } = self.products;
        let (depth, columns) = b.shape();
        let width = S::TILE_VECTORS * LANES;
        let beta = finish.beta();
        let mut scratch = Scratch([0.0; 14 * WIDEST]);
        let ahead = Ahead::new();
        // Panels outside, tiles of rows inside: a panel stays in the first-level cache for all rows of the block, whose
        // rows stay in the second-level cache for all panels. Where each tile reads the argument of an activation, too, it goes
        // through several panels before it moves down: so it reads that matrix along its rows, and not 128 bytes in each, for
        // which it would wait.
        let group = match finish.slope {
            Some(_) if !self.is_alone => (PANEL_ELEMENTS / (depth * width).max(1)).max(1),
            _ => 1,
        };
        let own = self.panels.start;
        for first in self.panels.clone().step_by(group) {
            let group = first..self.panels.end.min(first + group);
            if self.is_alone {
                simd.call(self.products.pack(first, own));
            }
            for row in (self.row..self.row + self.rows).step_by(self.tile_rows) {
                let rows = self.tile_rows.min(self.row + self.rows - row);
                for panel in group.clone() {
                    let column = panel * width;
                    let count = width.min(columns - column);
                    // In a group the next tile, by which time it has come; alone, the tile at hand.
                    let soon = match group.len() {
                        1 => (row, column),
                        _ if panel + 1 < group.end => (row, column + width),
                        _ => (row + rows, group.start * width),
                    };
                    finish.prefetch(simd, (soon.0, rows), (soon.1, count));
                    let place = if self.is_alone { own } else { panel };
                    // SAFETY: the panel was packed before, by this task or by all, and is only read now.
                    let packed = unsafe { panels.part(place * depth * width, depth * width) };
                    let tile = Tile {
                        depth,
                        a: a.start.wrapping_add(row * a.stride),
                        a_row: a.stride,
                        a_depth: 1,
                        b: packed.as_ptr(),
                        b_depth: width,
                        c: scratch.0.as_mut_ptr(),
                        c_row: width,
                        rows,
                        columns: count,
                        alpha: 1.0,
                        beta: 0.0,
                        bias: None,
                        ahead: &ahead,
                    };
                    // SAFETY: the rows lie inside A and the panel holds `depth` whole rows; C is the scratch, or the
                    // output's tile, which belongs to this task alone.
                    unsafe {
                        match beta {
                            Some(beta) => Tile {
                                c: finish.output.at(row, column),
                                c_row: finish.output.stride(),
                                beta,
                                bias: finish.bias.map(|bias| bias.wrapping_add(column)),
                                ..tile
                            }
                            .compute(simd),
                            None => {
                                tile.compute(simd);
                                simd.call(FinishTile {
                                    finish,
                                    products: scratch.0.as_ptr(),
                                    products_stride: width,
                                    row,
                                    rows,
                                    column,
                                    columns: count,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
}
