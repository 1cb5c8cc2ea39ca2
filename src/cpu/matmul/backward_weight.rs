//! The product of a linear layer that reduces over rows: weight and bias gradients.
//!
//! dW = dyᵀ x has a small output and a long reduction. The output is cut into blocks and, where those are few, the rows
//! into slices with a partial output each; the partials are added in order. All borders follow from the shape.

use std::ops::Range;

use super::linear::Factor;
use super::matrix::{Rows, RowsMut};
use super::tile::{Ahead, Tile};
use super::{WIDEST, pack};
use crate::parallel::{Shared, for_each, share};
use crate::simd::{LANES, Simd, Task, dispatch};
use crate::vector_math::{load, store};

/// Rows packed at a time: a panel of x and a panel of dy stay in the first-level cache (128 · 32 and 128 · 16 floats, 24 KiB).
pub(super) const DEPTH: usize = 128;
/// Most outputs (rows of dW) of a block: fourteen tiles of fourteen rows, whose packed dy takes 112 KiB.
const BLOCK_OUTPUTS: usize = 196;
/// Most inputs (columns of dW) of a block.
const BLOCK_INPUTS: usize = 384;
/// Tasks aimed at: enough for the cores of a desktop to share, few enough that slices stay long.
const TASKS: usize = 16;
/// Rows of a path's tile from which x and dy are read where they lie.
///
/// A tall tile uses what it reads often enough, at whatever distance it lies: the next rows come from the second-level cache
/// while it multiplies. On a Zen 5 dW takes 2 % less than with packing where the machine is quiet, and as much where seven
/// other programs use its caches. Short tiles would wait.
const IN_PLACE_ROWS: usize = 8;
/// Fewest rows worth a slice of their own: its partial dW has to be written and added once more.
const SLICE_ROWS: usize = 512;

/// How a weight gradient is cut.
#[derive(Clone, Copy)]
pub struct Cut {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) output_blocks: usize,
    pub(super) input_blocks: usize,
    pub(super) slices: usize,
}

impl Cut {
    fn new(rows: usize, inputs: usize, outputs: usize) -> Self {
        let output_blocks = outputs.div_ceil(BLOCK_OUTPUTS).max(1);
        let input_blocks = inputs.div_ceil(BLOCK_INPUTS).max(1);
        let wanted = (TASKS / (output_blocks * input_blocks)).max(1);
        // The slices are part of the order of the sums, and so of the bits; the blocks are not.
        let slices = wanted.min(rows / SLICE_ROWS).max(1);
        Self {
            rows,
            inputs,
            outputs,
            output_blocks,
            input_blocks,
            slices,
        }
    }

    /// Slices of blocks.
    fn parts(&self) -> usize {
        self.slices * self.output_blocks * self.input_blocks
    }

    /// An even number: of an odd number of parts, the last becomes two tasks.
    fn tasks(&self) -> usize {
        self.parts().next_multiple_of(2)
    }

    /// Which part task `task` computes, and which of its halves where it does not compute all of it.
    ///
    /// The halves are the tasks at the middle and at the end, where the queues of two threads end: of 15 parts, each thread
    /// has seven and a half.
    fn part(&self, task: usize) -> (usize, Option<usize>) {
        let (parts, last) = (self.parts(), self.parts() - 1);
        if parts == self.tasks() {
            return (task, None);
        }
        match task {
            _ if task == parts / 2 => (last, Some(0)),
            _ if task == parts => (last, Some(1)),
            _ if task > parts / 2 => (task - 1, None),
            _ => (task, None),
        }
    }

    /// Distance of rows in a partial: no multiple of 2 KiB, at which the rows of a tile would compete for cache sets.
    pub(super) fn stride(&self) -> usize {
        let stride = self.inputs.next_multiple_of(LANES);
        if stride.is_multiple_of(512) {
            stride + LANES
        } else {
            stride
        }
    }

    /// Where the bias sums follow the weight's in a partial.
    pub(super) fn bias_offset(&self) -> usize {
        self.outputs * self.stride()
    }

    /// Floats of the partial weight and bias gradients.
    pub(super) fn partials(&self) -> usize {
        self.slices * (self.bias_offset() + self.outputs).next_multiple_of(LANES)
    }

    /// Floats a task packs into: panels of dy, one panel of x, and the lanes that whole-vector stores spill over.
    pub(super) fn packing(&self) -> usize {
        let outputs = self.outputs.div_ceil(self.output_blocks);
        let dy_panels = [14, 6, 4].map(|tall| outputs.div_ceil(tall) * panel_rows(tall));
        let widest = dy_panels.into_iter().max().unwrap_or(0);
        (DEPTH * (widest + WIDEST) + LANES).next_multiple_of(LANES)
    }
}

/// Elements from one row of a panel of dy to the next, for tiles of `tall` rows.
pub(super) fn panel_rows(tall: usize) -> usize {
    tall.next_multiple_of(8)
}

/// Floats of workspace for [`linear_backward_weight`] over `rows` M with `inputs` K and `outputs` N.
pub fn linear_backward_weight_workspace(rows: usize, inputs: usize, outputs: usize) -> usize {
    let cut = Cut::new(rows, inputs, outputs);
    cut.partials() + cut.tasks() * cut.packing()
}

/// dW = dyᵀ x and db = Σ dy over rows; added to what dw and db hold where `accumulate`.
///
/// Shapes: dy [M, N], x [M, K], dw [N, K], db `[N]`. Runs on the current rayon pool. Panics where shapes do not fit or
/// the workspace is smaller than [`linear_backward_weight_workspace`].
pub fn linear_backward_weight<T: Factor>(
    dy: Rows<'_, T>,
    x: Rows<'_, T>,
    mut dw: RowsMut<'_>,
    db: Option<&mut [f32]>,
    accumulate: bool,
    workspace: &mut [f32],
) {
    let cut = Cut::new(dy.rows, x.width, dy.width);
    assert_eq!(x.rows, dy.rows, "rows of x and dy");
    assert_eq!(
        (dw.rows, dw.width),
        (cut.outputs, cut.inputs),
        "shape of dw"
    );
    assert!(
        db.as_ref().is_none_or(|db| db.len() == cut.outputs),
        "elements of db"
    );
    let need = linear_backward_weight_workspace(cut.rows, cut.inputs, cut.outputs);
    assert!(
        workspace.len() >= need,
        "workspace of {}, needs {need}",
        workspace.len()
    );
    let (partials, packing) = workspace.split_at_mut(cut.partials());
    let wants_bias = db.is_some();
    T::weight_partials((dy, x), cut, partials, packing, wants_bias);
    add_partials(&cut, partials, &mut dw, db, accumulate);
}

/// The partials of a weight gradient in f32.
pub(super) fn partials_of_f32(
    (dy, x): (Rows<'_>, Rows<'_>),
    cut: Cut,
    partials: &mut [f32],
    packing: &mut [f32],
    wants_bias: bool,
) {
    dispatch(Products {
        dy,
        x,
        cut,
        partials: Shared::new(partials),
        packing: Shared::new(packing),
        wants_bias,
    });
}

/// Adds the slices' partials in order.
fn add_partials(
    cut: &Cut,
    partials: &[f32],
    dw: &mut RowsMut<'_>,
    db: Option<&mut [f32]>,
    accumulate: bool,
) {
    let size = cut.partials() / cut.slices;
    let sum = |to: &mut [f32], offset: usize| {
        dispatch(AddPartials {
            to,
            partials,
            offset,
            size,
            slices: cut.slices,
            accumulate,
        });
    };
    if let Some(db) = db {
        sum(db, cut.bias_offset());
    }
    let target = RowsTarget {
        start: dw.start,
        stride: dw.stride,
    };
    let tasks = cut.outputs.div_ceil(32);
    for_each(tasks, |task| {
        for row in share(cut.outputs, tasks, 1, task) {
            // SAFETY: row `row` lies inside dw, and each row belongs to one task.
            let to = unsafe { target.row(row, cut.inputs) };
            sum(to, row * cut.stride());
        }
    });
}

/// The rows of dw, shared among tasks that own different ones.
#[derive(Clone, Copy)]
struct RowsTarget {
    start: *mut f32,
    stride: usize,
}

// SAFETY: each row is used by one task.
unsafe impl Send for RowsTarget {}
// SAFETY: as above.
unsafe impl Sync for RowsTarget {}

impl RowsTarget {
    /// # Safety
    /// 1. The row lies inside the borrowed matrix; 2. no other task uses it.
    unsafe fn row<'a>(self, row: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), width) }
    }
}

struct AddPartials<'a> {
    to: &'a mut [f32],
    partials: &'a [f32],
    offset: usize,
    size: usize,
    slices: usize,
    accumulate: bool,
}

impl Task for AddPartials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let len = self.to.len();
        let slice = |index: usize| {
            let start = index * self.size + self.offset;
            &self.partials[start..start + len]
        };
        for at in (0..len).step_by(LANES) {
            let mut sum = load(simd, slice(0), at);
            // Element by element over the slices, and not slice by slice over the elements: each sum stays in a
            // register, in the order of the slices.
            for index in 1..self.slices {
                sum = simd.add(sum, load(simd, slice(index), at));
            }
            if self.accumulate {
                sum = simd.add(load(simd, self.to, at), sum);
            }
            store(simd, self.to, at, sum);
        }
    }
}

struct Products<'a> {
    dy: Rows<'a>,
    x: Rows<'a>,
    cut: Cut,
    partials: Shared<f32>,
    packing: Shared<f32>,
    wants_bias: bool,
}

impl Products<'_> {
    /// The bias sums of some outputs in the partial of a slice.
    ///
    /// # Safety
    /// No other task uses them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn bias_sums(&self, slice: usize, outputs: &Range<usize>) -> &mut [f32] {
        let size = self.cut.partials() / self.cut.slices;
        let start = slice * size + self.cut.bias_offset() + outputs.start;
        // SAFETY: the caller's contract; the workspace is borrowed while the tasks run.
        unsafe { self.partials.part(start, outputs.len()) }
    }

    /// Zeroes a block of the partial of a slice: what it is where there are no rows to sum.
    ///
    /// # Safety
    /// No other task uses the block.
    unsafe fn clear(&self, slice: usize, outputs: &Range<usize>, inputs: &Range<usize>) {
        let size = self.cut.partials() / self.cut.slices;
        for output in outputs.clone() {
            let start = slice * size + output * self.cut.stride() + inputs.start;
            // SAFETY: as above.
            unsafe { self.partials.part(start, inputs.len()) }.fill(0.0);
        }
    }
}

impl Task for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for_each(self.cut.tasks(), |task| {
            simd.call(Block {
                products: &self,
                task,
            })
        });
    }
}

/// One slice of rows for one block of dW, or for half of one.
struct Block<'a> {
    products: &'a Products<'a>,
    task: usize,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Products {
            dy,
            x,
            cut,
            partials,
            packing,
            wants_bias,
        } = self.products;
        let blocks = cut.output_blocks * cut.input_blocks;
        let (part, half) = cut.part(self.task);
        let (slice, block) = (part / blocks, part % blocks);
        let (output_block, input_block) = (block / cut.input_blocks, block % cut.input_blocks);
        let rows = share(cut.rows, cut.slices, 1, slice);
        let mut outputs = share(cut.outputs, cut.output_blocks, 1, output_block);
        if let Some(half) = half {
            let of_block = share(outputs.len(), 2, S::TILE_ROWS, half);
            outputs = outputs.start + of_block.start..outputs.start + of_block.end;
        }
        let inputs = share(cut.inputs, cut.input_blocks, LANES, input_block);
        let wants_bias = *wants_bias && input_block == 0;

        let size = cut.partials() / cut.slices;
        let partial = partials.start_at(slice * size);
        let pack_size = cut.packing();
        // SAFETY: every task has its own packing memory, inside the borrowed workspace.
        let packing = unsafe { packing.part(self.task * pack_size, pack_size) };
        let (panel, dy_panels) = packing.split_at_mut(DEPTH * WIDEST);

        if wants_bias {
            // SAFETY: the bias sums of this slice and block belong to this task alone.
            unsafe { self.products.bias_sums(slice, &outputs) }.fill(0.0);
        }
        if outputs.is_empty() || inputs.is_empty() {
            return;
        }
        if rows.is_empty() {
            // SAFETY: this block of the partial belongs to this task alone.
            unsafe { self.products.clear(slice, &outputs, &inputs) };
            return;
        }
        let width = S::TILE_VECTORS * LANES;
        // Equal tiles rather than full ones and a small rest.
        let tall = outputs.len().div_ceil(outputs.len().div_ceil(S::TILE_ROWS));
        let is_in_place = S::TILE_ROWS >= IN_PLACE_ROWS;
        let mut ahead = Ahead::new();
        // Rows outermost: dy and x are each read from memory once, and dW, which is small, is added to once for every
        // DEPTH rows. Within them some columns of x, which stay in the first-level cache, meet all of the block's dy.
        for first in rows.clone().step_by(DEPTH) {
            let depth = DEPTH.min(rows.end - first);
            // SAFETY: the bias sums of this slice and block belong to this task alone.
            let sums = wants_bias.then(|| unsafe { self.products.bias_sums(slice, &outputs) });
            match sums {
                // SAFETY: the rows and outputs lie inside dy, and a tile has at most sixteen rows.
                sums if !is_in_place => unsafe {
                    pack_dy(simd, *dy, (first, depth), &outputs, dy_panels, tall, sums);
                },
                Some(sums) => add_rows(simd, *dy, first..first + depth, &outputs, sums),
                None => {}
            }
            let mut next = NextRows::new(dy, x, (first + depth, rows.end), &outputs, &inputs, tall);
            for column in inputs.clone().step_by(width) {
                let columns = width.min(inputs.end - column);
                // A tile reads whole vectors of x.
                let (b, b_depth) = if is_in_place && columns.is_multiple_of(LANES) {
                    (x.start.wrapping_add(first * x.stride + column), x.stride)
                } else {
                    let (rows, columns) = ((first, depth), (column, columns));
                    let to = panel.as_mut_ptr();
                    // SAFETY: the rows and columns lie inside x; the panel holds `depth` rows of `width`.
                    unsafe { pack::panel(simd, (*x).into(), rows, columns, to, width) };
                    (panel.as_ptr(), width)
                };
                for (tile_row, output) in outputs.clone().step_by(tall).enumerate() {
                    let (a, a_depth) = if is_in_place {
                        (dy.start.wrapping_add(first * dy.stride + output), dy.stride)
                    } else {
                        let at = tile_row * depth * panel_rows(tall);
                        (dy_panels[at..].as_ptr(), panel_rows(tall))
                    };
                    next.ask(simd, &mut ahead, depth);
                    let tile = Tile {
                        depth,
                        a,
                        a_row: 1,
                        a_depth,
                        b,
                        b_depth,
                        c: partial.wrapping_add(output * cut.stride() + column),
                        c_row: cut.stride(),
                        rows: tall.min(outputs.end - output),
                        columns,
                        alpha: 1.0,
                        // The first rows overwrite whatever the workspace held.
                        beta: if first == rows.start { 0.0 } else { 1.0 },
                        bias: None,
                        ahead: &ahead,
                    };
                    // SAFETY: the rows, outputs and whole vectors of inputs lie inside dy and x, or in the panels just
                    // packed; the tile of the partial is this task's.
                    unsafe { tile.compute(simd) };
                }
            }
        }
    }
}

/// sums += each row of the outputs of dy, one after the other.
#[inline(always)]
fn add_rows<S: Simd>(
    simd: S,
    dy: Rows<'_>,
    rows: Range<usize>,
    outputs: &Range<usize>,
    sums: &mut [f32],
) {
    // Row by row, as dy lies, though the sums are then read and written for each: column by column, each vector of columns
    // would walk over as many pages as there are rows.
    for row in rows {
        let row = &dy.row(row)[outputs.clone()];
        for at in (0..row.len()).step_by(LANES) {
            let sum = simd.add(load(simd, sums, at), load(simd, row, at));
            store(simd, sums, at, sum);
        }
    }
}

/// The rows of the next turn, asked for bit by bit while this one computes: it would wait for memory.
struct NextRows<'a> {
    dy: &'a Rows<'a>,
    x: &'a Rows<'a>,
    row: usize,
    end: usize,
    outputs: Range<usize>,
    inputs: Range<usize>,
    /// Rows to ask for at each tile, in sixteenths.
    step: usize,
    /// Sixteenths of a row carried over.
    carried: usize,
}

impl<'a> NextRows<'a> {
    fn new(
        dy: &'a Rows<'a>,
        x: &'a Rows<'a>,
        (row, end): (usize, usize),
        outputs: &Range<usize>,
        inputs: &Range<usize>,
        tall: usize,
    ) -> Self {
        let end = end.min(row + DEPTH);
        let tiles = outputs.len().div_ceil(tall) * inputs.len().div_ceil(WIDEST);
        let step = (16 * end.saturating_sub(row)).div_ceil(tiles.max(1));
        let (outputs, inputs) = (outputs.clone(), inputs.clone());
        Self {
            dy,
            x,
            row,
            end,
            outputs,
            inputs,
            step,
            carried: 0,
        }
    }

    /// Lists what one more tile asks for.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, simd: S, ahead: &mut Ahead, depth: usize) {
        ahead.clear();
        self.carried += self.step;
        while self.carried >= 16 && self.row < self.end {
            self.carried -= 16;
            for (matrix, columns) in [(self.dy, &self.outputs), (self.x, &self.inputs)] {
                let start = matrix.start.wrapping_add(self.row * matrix.stride);
                for column in columns.clone().step_by(LANES) {
                    ahead.add(simd, start.wrapping_add(column), depth);
                }
            }
            self.row += 1;
        }
    }
}

/// Copies rows of dy into panels, one per tile row of dW: `depth` rows of `tall` elements, [`panel_rows`] apart. Adds
/// the rows to `sums` on the way, one after the other.
///
/// # Safety
/// 1. The rows and columns lie inside `dy`; 2. `tall` is at most sixteen.
#[inline(always)]
unsafe fn pack_dy<S: Simd>(
    simd: S,
    dy: Rows<'_>,
    (first, depth): (usize, usize),
    outputs: &Range<usize>,
    dy_panels: &mut [f32],
    tall: usize,
    mut sums: Option<&mut [f32]>,
) {
    let (count, width) = (outputs.len().div_ceil(tall), panel_rows(tall));
    assert!(dy_panels.len() >= count * depth * width + LANES);
    for tile_row in 0..count {
        let at = tile_row * tall;
        let present = LANES.min(outputs.len() - at);
        let from = dy
            .start
            .wrapping_add(first * dy.stride + outputs.start + at);
        let to = dy_panels[tile_row * depth * width..].as_mut_ptr();
        let mut sum = match &sums {
            Some(sums) => load(simd, sums, at),
            None => simd.splat(0.0),
        };
        // SAFETY: `present` lanes lie inside each row of dy. A whole vector is stored: what goes beyond `width` is
        // overwritten by the next row or panel, and the assertion leaves room for it after the last one.
        unsafe {
            if present == LANES {
                for row in 0..depth {
                    let x = simd.load(from.add(row * dy.stride));
                    simd.store(to.add(row * width), x);
                    sum = simd.add(sum, x);
                }
            } else {
                for row in 0..depth {
                    let x = simd.load_first(from.add(row * dy.stride), present);
                    simd.store(to.add(row * width), x);
                    sum = simd.add(sum, x);
                }
            }
        }
        if let Some(sums) = &mut sums {
            let end = (at + tall).min(sums.len());
            store(simd, &mut sums[..end], at, sum);
        }
    }
}
