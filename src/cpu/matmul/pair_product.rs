//! One product of bf16 numbers in pairs, in one task: heads of attention.
//!
//! Both factors are cells of two terms ([`super::pairs`]), sums are f32. An element is summed over the cells in index order, by the
//! instruction for pairs or a unit for tiles, whatever the tiling.

use half::bf16;

use super::WIDEST;
use super::matrix::{Operand, Rows, RowsMut};
use super::pairs::{self, cells};
use super::product::Extent;
use super::tile::{Ahead, Tile};
use super::way::{Way, WayTask, dispatch_cells};
use crate::bf16_products::bf16_products;
use crate::simd::{LANES, Simd};
use crate::tile_unit::SIDE;

/// The left factor [M, K] of a product in pairs.
#[derive(Clone, Copy)]
pub struct Cells<'a>(Operand<'a>);

impl<'a> Cells<'a> {
    /// Rows of terms as they lie, two neighbours in a cell; where K is odd, K + 1 of them, the last zero. Panics where their
    /// number or distance is odd.
    pub fn of_rows(rows: Rows<'a, bf16>) -> Self {
        assert!(
            rows.are_cells(),
            "rows of {} terms {} apart are no cells",
            rows.width,
            rows.stride
        );
        Self(rows.as_cells().into())
    }

    /// The transpose of rows of cells, each of which holds two terms of M columns, as [`Simd::pair`] makes them.
    pub fn across(rows: Rows<'a>) -> Self {
        Self(rows.transposed())
    }
}

/// Floats of memory for [`Panels`] of a factor [depth, columns].
pub fn panels_workspace(depth: usize, columns: usize) -> usize {
    cells(depth) * columns.next_multiple_of(WIDEST)
}

/// The right factor [K, N] of products in pairs, or a part of it, packed once for all of them.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    memory: &'a [f32],
    /// Columns of a panel.
    width: usize,
    /// Cells of a column of a whole panel.
    panel_cells: usize,
    /// First row of the part; even.
    row: usize,
    /// Rows of the part, K.
    depth: usize,
    /// First column of the part; a multiple of [`WIDEST`].
    column: usize,
    /// Columns of the part, N.
    columns: usize,
}

impl<'a> Panels<'a> {
    /// Packs `b` into `memory`. Panics where that is shorter than [`panels_workspace`], or where stored rows that are read as
    /// their transpose are no cells.
    pub fn pack<'b>(b: impl Into<Operand<'b, bf16>>, memory: &'a mut [f32]) -> Self {
        let b = b.into();
        let (depth, columns) = b.shape();
        let need = panels_workspace(depth, columns);
        assert!(
            memory.len() >= need,
            "memory of {} for panels, which need {need}",
            memory.len()
        );
        assert!(
            !b.transposed || b.rows.are_cells(),
            "rows of {} terms {} apart are no cells",
            b.rows.width,
            b.rows.stride
        );
        let width = dispatch_cells(
            bf16_products(),
            Pack {
                b,
                memory: &mut *memory,
            },
        );
        Self {
            memory,
            width,
            panel_cells: cells(depth),
            row: 0,
            depth,
            column: 0,
            columns,
        }
    }

    /// Rows `first..first + count`. Panics where they lie outside or `first` is odd.
    pub fn rows(self, first: usize, count: usize) -> Self {
        assert!(
            first.is_multiple_of(2) && first + count <= self.depth,
            "rows {first}+{count} of {}",
            self.depth
        );
        Self {
            row: self.row + first,
            depth: count,
            ..self
        }
    }

    /// Columns `first..first + count`. Panics where they lie outside or `first` is no multiple of 32.
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(
            first.is_multiple_of(WIDEST) && first + count <= self.columns,
            "columns {first}+{count} of {}",
            self.columns
        );
        Self {
            column: self.column + first,
            columns: count,
            ..self
        }
    }

    /// The cells of the part from column `column` on, a multiple of a panel's.
    fn at(&self, column: usize) -> &[f32] {
        let width = self.width;
        let panel = (self.column + column) / width * self.panel_cells;
        let first = (panel + self.row / 2) * width;
        &self.memory[first..][..cells(self.depth) * width]
    }
}

struct Pack<'a, 'b> {
    b: Operand<'b, bf16>,
    memory: &'a mut [f32],
}

impl WayTask for Pack<'_, '_> {
    /// Columns of a panel.
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd, W: Way>(self, simd: S, _: W) -> usize {
        let ((depth, columns), width) = (self.b.shape(), W::columns::<S>());
        let panels = self.memory.chunks_exact_mut((cells(depth) * width).max(1));
        for (column, panel) in (0..columns).step_by(width).zip(panels) {
            let count = width.min(columns - column);
            // SAFETY: the columns lie inside B, whose stored rows are cells where it is transposed; the panel holds its cells.
            unsafe {
                let panel = panel.as_mut_ptr();
                pairs::panel(simd, self.b, (0, depth), (column, count), panel, width);
            }
        }
        width
    }
}

/// C = alpha · A · B + beta · C on the calling thread, as far as `extent` says; at beta 0, C is not read.
///
/// Shapes: A [M, K], B [K, N], C [M, N]. The extent counts terms. Panics where shapes do not fit, or where B was packed for products
/// computed in another way.
pub fn product_of_pairs(
    extent: Extent,
    alpha: f32,
    a: Cells<'_>,
    b: Panels<'_>,
    beta: f32,
    c: RowsMut<'_>,
) {
    let (m, depth) = a.0.shape();
    assert_eq!(
        (cells(b.depth), c.rows, c.width),
        (depth, m, b.columns),
        "cells of B and the shape of C"
    );
    dispatch_cells(
        bf16_products(),
        Product {
            extent,
            alpha,
            a: a.0,
            b,
            beta,
            c,
        },
    );
}

struct Product<'a, 'c> {
    extent: Extent,
    alpha: f32,
    a: Operand<'a>,
    b: Panels<'a>,
    beta: f32,
    c: RowsMut<'c>,
}

impl Product<'_, '_> {
    /// The first cell and the one after the last that rows `row..row + rows` of a tile need, and how many of the columns from
    /// `column` on.
    #[inline(always)]
    fn within(&self, row: usize, rows: usize, column: usize, columns: usize) -> [usize; 3] {
        let (terms, all) = (self.b.depth, cells(self.b.depth));
        // The last row of a tile reaches furthest, and decides for it.
        match self.extent {
            Extent::Whole => [0, all, columns],
            Extent::Result(stairs) => {
                let reached = stairs.end(row + rows - 1, self.b.columns);
                let reached = reached.next_multiple_of(LANES).saturating_sub(column);
                [0, all, columns.min(reached)]
            }
            Extent::Left(stairs) => [0, cells(stairs.end(row + rows - 1, terms)), columns],
            Extent::LeftTransposed(stairs) => match stairs.first_row(row) {
                first if first < terms => [first / 2, all, columns],
                _ => [all, all, columns],
            },
        }
    }
}

impl WayTask for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, W: Way>(self, simd: S, way: W) {
        let (m, n) = (self.c.rows, self.c.width);
        let (a, c) = (self.a.rows, &self.c);
        let (a_row, a_depth) = if self.a.transposed {
            (1, a.stride)
        } else {
            (a.stride, 1)
        };
        let (ahead, mut unit) = (Ahead::new(), way.take());
        let width = self.b.width;
        assert_eq!(width, W::columns::<S>(), "columns of a panel on this path");
        let tile_rows = match self.extent {
            Extent::Whole => W::equal_rows::<S>(m),
            // A tile reads as far as its last row reaches: READ_BEYOND allows for sixteen.
            _ => W::equal_rows::<S>(m).min(SIDE),
        };
        for column in (0..n).step_by(width) {
            let panel = self.b.at(column).as_ptr();
            for row in (0..m).step_by(tile_rows) {
                let rows = tile_rows.min(m - row);
                let [first, end, columns] = self.within(row, rows, column, width.min(n - column));
                if columns == 0 {
                    continue;
                }
                let tile = Tile {
                    depth: end - first,
                    a: a.start.wrapping_add(row * a_row + first * a_depth),
                    a_row,
                    a_depth,
                    b: panel.wrapping_add(first * width),
                    b_depth: width,
                    c: c.start.wrapping_add(row * c.stride + column),
                    c_row: c.stride,
                    rows,
                    columns,
                    alpha: self.alpha,
                    beta: self.beta,
                    bias: None,
                    ahead: &ahead,
                };
                // SAFETY: the tile lies inside A and C, and the panel holds whole rows of its cells.
                unsafe { W::compute(&mut unit, simd, tile) };
            }
        }
    }
}
