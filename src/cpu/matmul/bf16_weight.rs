//! The weight gradient dW = dyᵀ x of factors that are stored in bf16: sums in f32, as is dW.
//!
//! It is cut as in f32, so its slices, and with them the order of its sums, follow from the shape. Both factors are packed
//! every way: widened, or two rows in a row of cells where products are in pairs or on a unit for tiles ([`super::pairs`]), for which dy
//! is turned, too.

use std::ops::Range;

use half::bf16;

use super::backward_weight::{Cut, DEPTH, panel_rows};
use super::matrix::Rows;
use super::tile::{Ahead, Tile};
use super::way::{Way, WayTask, dispatch_cells, dispatch_widened, length};
use super::{WIDEST, pack, pairs};
use crate::bf16_products::{Bf16Products, bf16_products};
use crate::parallel::{Shared, for_each, share};
use crate::simd::{LANES, Simd, Task};
use crate::storage::Stored;
use crate::vector_math::{load, store};

/// Numbers of bf16 in a cache line.
const LINE: usize = 32;

/// Writes the partial sums of the slices of dW, and of db behind them where it is wanted.
pub(super) fn partials(
    (dy, x): (Rows<'_, bf16>, Rows<'_, bf16>),
    cut: Cut,
    partials: &mut [f32],
    packing: &mut [f32],
    wants_bias: bool,
) {
    let parts = Parts {
        dy,
        x,
        cut,
        partials: Shared::new(partials),
        packing: Shared::new(packing),
        wants_bias,
    };
    match bf16_products() {
        Bf16Products::Widened => dispatch_widened(Products(parts)),
        way => dispatch_cells(way, Products(parts)),
    }
}

/// What all tasks share.
struct Parts<'a> {
    dy: Rows<'a, bf16>,
    x: Rows<'a, bf16>,
    cut: Cut,
    partials: Shared<f32>,
    packing: Shared<f32>,
    wants_bias: bool,
}

/// The products about to be cut into tasks on some path.
struct Products<'a>(Parts<'a>);

impl WayTask for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, W: Way>(self, simd: S, way: W) {
        let cut = &self.0.cut;
        for_each(cut.slices * cut.output_blocks * cut.input_blocks, |task| {
            simd.call(Block {
                parts: &self.0,
                task,
                way,
            });
        });
    }
}

/// One slice of rows for one block of dW.
struct Block<'a, W> {
    parts: &'a Parts<'a>,
    task: usize,
    way: W,
}

/// A range of the inputs and one of the outputs, with the rows that are summed.
struct Place {
    slice: usize,
    rows: Range<usize>,
    outputs: Range<usize>,
    inputs: Range<usize>,
}

impl<W: Way> Block<'_, W> {
    fn place(&self) -> Place {
        let cut = &self.parts.cut;
        let blocks = cut.output_blocks * cut.input_blocks;
        let (slice, block) = (self.task / blocks, self.task % blocks);
        let (output_block, input_block) = (block / cut.input_blocks, block % cut.input_blocks);
        Place {
            slice,
            rows: share(cut.rows, cut.slices, 1, slice),
            outputs: share(cut.outputs, cut.output_blocks, 1, output_block),
            inputs: share(cut.inputs, cut.input_blocks, LANES, input_block),
        }
    }

    /// Zeroes the block of the partial: what it is where there are no rows to sum.
    fn clear(&self, place: &Place) {
        let Parts { cut, partials, .. } = self.parts;
        let size = cut.partials() / cut.slices;
        for output in place.outputs.clone() {
            let start = place.slice * size + output * cut.stride() + place.inputs.start;
            // SAFETY: this block of the partial belongs to this task alone.
            unsafe { partials.part(start, place.inputs.len()) }.fill(0.0);
        }
    }

    /// The bias sums of the block's outputs, where this task makes them.
    ///
    /// # Safety
    /// 1. Of this task, nothing else holds them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn bias_sums(&self, place: &Place) -> Option<&mut [f32]> {
        let Parts { cut, partials, .. } = self.parts;
        if !self.parts.wants_bias || place.inputs.start > 0 {
            return None;
        }
        let start = place.slice * (cut.partials() / cut.slices) + cut.bias_offset();
        // SAFETY: of all tasks of a slice, only the one with the first inputs of these outputs uses their sums, and of this
        // one the caller vouches for it.
        Some(unsafe { partials.part(start + place.outputs.start, place.outputs.len()) })
    }

    /// Packs `count` rows of dy from `first` on into panels, one per tile row of dW, and adds the rows to the bias sums on
    /// the way, one after the other. Gives the elements of a panel, and the distances of its rows and of what follows in a row.
    #[inline(always)]
    fn pack_dy<S: Simd>(
        &self,
        simd: S,
        place: &Place,
        (first, count): (usize, usize),
        (panels, tall): (&mut [f32], usize),
    ) -> [usize; 3] {
        let dy = self.parts.dy;
        let start = first * dy.stride + place.outputs.start;
        let from = dy.start.wrapping_add(start);
        // SAFETY: held here alone.
        if let Some(sums) = unsafe { self.bias_sums(place) } {
            for at in (0..sums.len()).step_by(LANES) {
                let present = LANES.min(sums.len() - at);
                let mut sum = load(simd, sums, at);
                for row in 0..count {
                    // SAFETY: `present` numbers lie inside each of the rows.
                    let x =
                        unsafe { bf16::load_first(simd, from.add(row * dy.stride + at), present) };
                    sum = simd.add(sum, x);
                }
                store(simd, sums, at, sum);
            }
        }
        let (outputs, source) = (place.outputs.len(), (from, dy.stride));
        // SAFETY: the rows and outputs lie inside dy.
        unsafe {
            if W::PACKS_LEFT_IN_ROWS {
                let distance = pack_in_rows(simd, source, (count, outputs), panels);
                [tall * distance, distance, 1]
            } else {
                let depth = pack_across::<S, W>(simd, source, (count, outputs), (panels, tall));
                [depth * panel_rows(tall), 1, panel_rows(tall)]
            }
        }
    }

    /// Packs columns of x, `count` rows from `first` on, into a panel of `width`.
    #[inline(always)]
    fn pack_x<S: Simd>(
        &self,
        simd: S,
        (first, count): (usize, usize),
        (column, columns): (usize, usize),
        (panel, width): (&mut [f32], usize),
    ) {
        let (x, to) = (self.parts.x, panel.as_mut_ptr());
        // SAFETY: the rows and columns lie inside x; the panel holds `DEPTH` rows of `width`, and as many of cells.
        unsafe {
            if W::HAS_CELLS {
                let from = x.start.wrapping_add(first * x.stride + column);
                pairs::panel_of_rows(simd, (from, x.stride), count, columns, (to, width));
            } else {
                pack::panel(simd, x.into(), (first, count), (column, columns), to, width);
            }
        }
    }

    /// Asks for a share of the rows that the next turn packs, `part` of `parts`: packing would wait for memory.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, place: &Place, next: Range<usize>, part: [usize; 2]) {
        let [part, parts] = part;
        let (from, to) = (part * next.len() / parts, (part + 1) * next.len() / parts);
        let matrices = [
            (self.parts.dy, &place.outputs),
            (self.parts.x, &place.inputs),
        ];
        for row in next.start + from..next.start + to {
            for (matrix, columns) in matrices {
                let start = matrix.start.wrapping_add(row * matrix.stride);
                for column in columns.clone().step_by(LINE) {
                    simd.prefetch(start.wrapping_add(column).cast());
                }
            }
        }
    }
}

impl<W: Way> Task for Block<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (cut, place) = (self.parts.cut, self.place());
        // SAFETY: held here alone.
        if let Some(sums) = unsafe { self.bias_sums(&place) } {
            sums.fill(0.0);
        }
        if place.outputs.is_empty() || place.inputs.is_empty() {
            return;
        }
        if place.rows.is_empty() {
            return self.clear(&place);
        }
        let partial = self
            .parts
            .partials
            .start_at(place.slice * (cut.partials() / cut.slices));
        let pack_size = cut.packing();
        // SAFETY: every task has its own packing memory, inside the borrowed workspace.
        let packing = unsafe { self.parts.packing.part(self.task * pack_size, pack_size) };
        let (panel, dy_panels) = packing.split_at_mut(DEPTH * WIDEST);
        let width = W::columns::<S>();
        let (ahead, mut unit) = (Ahead::new(), self.way.take());
        let tall = W::equal_rows::<S>(place.outputs.len());
        let tiles = place.outputs.len().div_ceil(tall) * place.inputs.len().div_ceil(width);
        // Rows outermost: dy and x are each read from memory once, and dW, which is small, is added to once for every
        // turn. Cells are half as many, so a turn takes twice the rows.
        let turn = if W::HAS_CELLS { 2 * DEPTH } else { DEPTH };
        for first in place.rows.clone().step_by(turn) {
            let count = turn.min(place.rows.end - first);
            let depth = length::<W>(count);
            let next = first + count..place.rows.end.min(first + count + turn);
            let [panel_size, a_row, a_depth] =
                self.pack_dy(simd, &place, (first, count), (dy_panels, tall));
            let mut tile_index = 0;
            for column in place.inputs.clone().step_by(width) {
                let columns = width.min(place.inputs.end - column);
                self.pack_x(simd, (first, count), (column, columns), (panel, width));
                for (tile_row, output) in place.outputs.clone().step_by(tall).enumerate() {
                    self.prefetch(simd, &place, next.clone(), [tile_index, tiles]);
                    tile_index += 1;
                    let tile = Tile {
                        depth,
                        a: dy_panels[tile_row * panel_size..].as_ptr(),
                        a_row,
                        a_depth,
                        b: panel.as_ptr(),
                        b_depth: width,
                        c: partial.wrapping_add(output * cut.stride() + column),
                        c_row: cut.stride(),
                        rows: tall.min(place.outputs.end - output),
                        columns,
                        alpha: 1.0,
                        // The first rows overwrite whatever the workspace held.
                        beta: if first == place.rows.start { 0.0 } else { 1.0 },
                        bias: None,
                        ahead: &ahead,
                    };
                    // SAFETY: both panels were just packed; the tile of the partial is this task's.
                    unsafe { W::compute(&mut unit, simd, tile) };
                }
            }
        }
    }
}

/// Packs `count` rows of `outputs` numbers into panels, one for each `tall` outputs: rows along the outputs, of cells or of widened
/// numbers. Gives the rows of a panel.
///
/// # Safety
/// 1. The numbers are readable.
#[inline(always)]
unsafe fn pack_across<S: Simd, W: Way>(
    simd: S,
    (from, stride): (*const bf16, usize),
    (count, outputs): (usize, usize),
    (panels, tall): (&mut [f32], usize),
) -> usize {
    let (depth, width) = (length::<W>(count), panel_rows(tall));
    let tile_rows = outputs.div_ceil(tall);
    assert!(panels.len() >= tile_rows * depth * width + LANES);
    for tile_row in 0..tile_rows {
        let at = tile_row * tall;
        let present = LANES.min(outputs - at);
        let from = from.wrapping_add(at);
        let to = panels[tile_row * depth * width..].as_mut_ptr();
        // SAFETY: `present` numbers lie inside each of the rows. Whole vectors are stored: what goes beyond `width` is
        // overwritten by the next row or panel, and the assertion leaves room for it after the last one.
        unsafe {
            if W::HAS_CELLS {
                pairs::interleave(simd, (from, stride), count, present, (to, width));
            } else {
                for row in 0..count {
                    let x = bf16::load_first(simd, from.add(row * stride), present);
                    simd.store(to.add(row * width), x);
                }
            }
        }
    }
    depth
}

/// Packs `count` rows of `outputs` numbers as rows of cells, one for each output, sixteen outputs at a time. Gives their distance.
///
/// # Safety
/// 1. The numbers are readable.
#[inline(always)]
unsafe fn pack_in_rows<S: Simd>(
    simd: S,
    (from, stride): (*const bf16, usize),
    (count, outputs): (usize, usize),
    panels: &mut [f32],
) -> usize {
    /// Terms of sixteen cells.
    const TERMS: usize = 2 * LANES;
    let distance = pairs::cells(count).next_multiple_of(LANES);
    assert!(panels.len() >= outputs.next_multiple_of(LANES) * distance);
    let mut block = [[0.0f32; LANES]; LANES];
    for at in (0..outputs).step_by(LANES) {
        let present = LANES.min(outputs - at);
        for first in (0..count).step_by(TERMS) {
            let here = TERMS.min(count - first);
            block[pairs::cells(here)..].fill([0.0; LANES]);
            let from = from.wrapping_add(first * stride + at);
            let to = panels[at * distance + first / 2..].as_mut_ptr();
            // SAFETY: `here` rows of `present` numbers are readable; the block holds sixteen rows of sixteen cells, and so do the
            // panels from here on, by the assertion.
            unsafe {
                let cells = block.as_mut_ptr().cast::<f32>();
                pairs::interleave(simd, (from, stride), here, present, (cells, LANES));
                simd.transpose(cells, LANES, to, distance);
            }
        }
    }
    distance
}
