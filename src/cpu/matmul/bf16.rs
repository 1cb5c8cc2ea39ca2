//! Linear layers whose numbers are stored in bf16: rows times a packed weight, sums in f32.
//!
//! Where the machine multiplies bf16 in pairs or on a unit for tiles, and faster than f32, the weight is packed in pairs and the left
//! factor is read where it lies ([`super::pairs`]). Elsewhere the weight is widened while it is packed, and a block of rows of the
//! left factor is widened into memory of its thread, where it stays in the second-level cache while it meets every panel. The order
//! of an element's sum follows from the reduction's length in every way, so its bits do not depend on threads; widened, it is one chain of
//! multiply-adds, that of the f32 product of the widened numbers, whose bits do not depend on the vector width either. It is rounded once,
//! on its way out of the epilogue.

use std::marker::PhantomData;

use half::bf16;

use super::WIDEST;
use super::backward_weight::Cut;
use super::few_rows::{FEW, few_rows};
use super::finish::{Finish, FinishTile};
use super::linear::{BLOCK_ELEMENTS, BLOCK_ROWS, FEW_TASKS, Factor};
use super::matrix::{Operand, Rows};
use super::tile::{Ahead, Tile};
use super::way::{Way, WayTask, dispatch_cells, dispatch_widened, length};
use super::{bf16_weight, pack, pairs, unit_tile};
use crate::bf16_products::{Bf16Products, bf16_products};
use crate::parallel::{Shared, for_each};
use crate::simd::{LANES, Simd, Task};
use crate::vector_math::{load, store};

/// Rows of the tallest tile of any path that reads widened rows.
const TALLEST: usize = 14;

/// Distance of widened rows: no multiple of 4 KiB, at which the rows of a tile would compete for cache sets.
fn widened_stride(depth: usize) -> usize {
    let stride = depth.next_multiple_of(LANES);
    if stride.is_multiple_of(1024) {
        stride + LANES
    } else {
        stride
    }
}

/// Floats in which one thread widens a block of rows.
fn widened_elements(depth: usize) -> usize {
    let stride = widened_stride(depth);
    (BLOCK_ELEMENTS / depth.max(1)).clamp(TALLEST, BLOCK_ROWS) * stride
}

/// Floats of workspace that a linear layer of bf16 takes besides its packed weight, where a reduction has `depth` elements:
/// rows that each of `threads` threads widens.
pub fn widened_rows_workspace(depth: usize, threads: usize) -> usize {
    threads * widened_elements(depth)
}

impl Factor for bf16 {
    fn rows_times_panels(
        a: Rows<'_, bf16>,
        b: Operand<'_, bf16>,
        finish: Finish<bf16>,
        workspace: &mut [f32],
    ) {
        let (depth, columns) = b.shape();
        let (packed, threads) = (
            depth * columns.next_multiple_of(WIDEST),
            rayon::current_num_threads(),
        );
        let need = packed + widened_rows_workspace(depth, threads);
        assert!(
            workspace.len() >= need,
            "workspace of {}, needs {need} for {threads} threads",
            workspace.len()
        );
        if a.rows == 0 || columns == 0 {
            return;
        }
        // Of an odd number of terms the last would be half a pair, with the next row's first beside it.
        let are_cells = a.are_cells() && (!b.transposed || b.rows.are_cells());
        let way = bf16_products();
        let (panels, widened) = workspace.split_at_mut(packed);
        // Tiles add up in an order of their own, which few rows of them have too.
        let are_tiles = way == Bf16Products::Tiles && are_cells;
        if a.rows <= FEW && b.transposed && !are_tiles {
            if way == Bf16Products::Pairs && are_cells {
                let (a, b) = (a.as_cells(), b.rows.as_cells());
                few_rows::<f32, bf16, true>(a, b, finish, panels);
            } else {
                few_rows::<bf16, bf16, false>(widen_rows(a, widened), b.rows, finish, panels);
            }
            return;
        }
        let products = Products {
            a,
            b,
            finish,
            panels: Shared::new(panels),
            widened: Shared::new(widened),
        };
        match way {
            way @ (Bf16Products::Pairs | Bf16Products::Tiles) if are_cells => {
                dispatch_cells(way, products);
            }
            _ => dispatch_widened(products),
        }
    }

    fn weight_partials(
        factors: (Rows<'_, bf16>, Rows<'_, bf16>),
        cut: Cut,
        partials: &mut [f32],
        packing: &mut [f32],
        wants_bias: bool,
    ) {
        bf16_weight::partials(factors, cut, partials, packing, wants_bias);
    }
}

/// Widens few rows, all of them, into the memory of the first threads.
fn widen_rows<'a>(a: Rows<'_, bf16>, widened: &'a mut [f32]) -> Rows<'a> {
    let stride = widened_stride(a.width);
    for row in 0..a.rows {
        crate::widen(a.row(row), &mut widened[row * stride..][..a.width]);
    }
    Rows::strided(widened, a.rows, a.width, stride)
}

/// A product about to be cut into tasks on some path.
struct Products<'a> {
    a: Rows<'a, bf16>,
    b: Operand<'a, bf16>,
    finish: Finish<bf16>,
    panels: Shared<f32>,
    /// The blocks of the threads, one after the other.
    widened: Shared<f32>,
}

impl Products<'_> {
    /// Rows of a tile. Cells are read where they lie, widened rows never at a distance that asks for a shorter tile.
    #[inline(always)]
    fn tile_rows<S: Simd, W: Way>(&self) -> usize {
        if W::HAS_CELLS {
            W::rows_at::<S>(self.a.stride)
        } else {
            W::rows::<S>()
        }
    }
}

impl WayTask for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, W: Way>(self, simd: S, way: W) {
        let (depth, columns) = self.b.shape();
        let panel_count = columns.div_ceil(W::columns::<S>());
        // Cut as in f32: from the shape alone.
        let wanted = (BLOCK_ELEMENTS / depth.max(1)).min(self.a.rows.div_ceil(FEW_TASKS));
        let tile_rows = self.tile_rows::<S, W>();
        let tiles = (wanted / tile_rows).clamp(1, BLOCK_ROWS / tile_rows);
        let block_rows = tiles * tile_rows;
        let blocks = self.a.rows.div_ceil(block_rows);
        let groups = (FEW_TASKS / blocks).clamp(1, panel_count);
        let is_alone = blocks == 1;
        if !is_alone {
            for_each(panel_count, |panel| {
                simd.call(PackPanel {
                    products: &self,
                    panel,
                    place: panel,
                    way: PhantomData::<W>,
                });
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
                is_alone,
                way,
            });
        });
    }
}

struct PackPanel<'a, W> {
    products: &'a Products<'a>,
    panel: usize,
    /// The panel in whose place it is packed.
    place: usize,
    way: PhantomData<W>,
}

impl<W: Way> Task for PackPanel<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Products { b, panels, .. } = self.products;
        let ((depth, columns), width) = (b.shape(), W::columns::<S>());
        let (column, rows) = (self.panel * width, length::<W>(depth));
        let count = width.min(columns - column);
        // SAFETY: each place is its own part of the workspace, which the caller of the tasks borrows and one task at a time packs
        // into; the columns lie inside B, and the panel holds `depth` rows of `width`.
        unsafe {
            let panel = panels.part(self.place * rows * width, rows * width);
            let panel = panel.as_mut_ptr();
            if W::HAS_CELLS {
                pairs::panel(simd, *b, (0, depth), (column, count), panel, width);
            } else {
                pack::panel(simd, *b, (0, depth), (column, count), panel, width);
            }
        }
    }
}

/// A block of rows times a range of panels.
struct Block<'a, W> {
    products: &'a Products<'a>,
    row: usize,
    rows: usize,
    panels: std::ops::Range<usize>,
    /// As in f32: whether there is no other block, and this one packs its panels itself.
    is_alone: bool,
    way: W,
}

/// The products of one tile on their way to the epilogue.
#[repr(align(64))]
struct Scratch([f32; unit_tile::ROWS * WIDEST]);

impl<W: Way> Block<'_, W> {
    /// Widens the block's rows of A into the thread's memory; gives their start and distance there.
    #[inline(always)]
    fn widen<S: Simd>(&self, simd: S) -> (*const f32, usize) {
        let Products { a, b, widened, .. } = self.products;
        let (depth, _) = b.shape();
        let (stride, size) = (widened_stride(depth), widened_elements(depth));
        let thread = rayon::current_thread_index().unwrap_or(0);
        // SAFETY: a thread runs one task at a time, and each thread has its own part of the borrowed workspace.
        let to = unsafe { widened.part(thread * size, size) };
        for row in 0..self.rows {
            let from = a.row(self.row + row);
            let to = &mut to[row * stride..][..depth];
            for at in (0..depth).step_by(LANES) {
                store(simd, to, at, load(simd, from, at));
            }
        }
        (to.as_ptr(), stride)
    }
}

impl<W: Way> Task for Block<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Products {
            a,
            b,
            finish,
            panels,
            ..
        } = self.products;
        let (terms, columns) = b.shape();
        let (width, depth) = (W::columns::<S>(), length::<W>(terms));
        let (left, stride) = if W::HAS_CELLS {
            let cells = a.part(self.row, self.rows).as_cells();
            (cells.start, cells.stride)
        } else {
            self.widen(simd)
        };
        let tile_rows = self.products.tile_rows::<S, W>();
        let ahead = Ahead::new();
        let mut scratch = Scratch([0.0; unit_tile::ROWS * WIDEST]);
        let mut unit = self.way.take();
        let own = self.panels.start;
        for panel in self.panels {
            let column = panel * width;
            let count = width.min(columns - column);
            let place = if self.is_alone { own } else { panel };
            if self.is_alone {
                simd.call(PackPanel {
                    products: self.products,
                    panel,
                    place,
                    way: PhantomData::<W>,
                });
            }
            // SAFETY: the panel was packed before, by this task or by all, and is only read now.
            let packed = unsafe { panels.part(place * depth * width, depth * width) };
            for row in (0..self.rows).step_by(tile_rows) {
                let rows = tile_rows.min(self.rows - row);
                finish.prefetch(simd, (self.row + row, rows), (column, count));
                let tile = Tile {
                    depth,
                    a: left.wrapping_add(row * stride),
                    a_row: stride,
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
                // SAFETY: the rows lie inside A, or were widened just now, and the panel holds `depth` whole rows; C is the
                // scratch.
                unsafe { W::compute(&mut unit, simd, tile) };
                simd.call(FinishTile {
                    finish,
                    products: scratch.0.as_ptr(),
                    products_stride: width,
                    row: self.row + row,
                    rows,
                    column,
                    columns: count,
                });
            }
        }
    }
}
