//! The product of a linear layer that reduces over rows: weight and bias gradients.
//!
//! dW = dyᵀ x has a small output and a long reduction. The output is cut into blocks and, where those are few, the rows
//! into slices with a partial output each; the partials are added in order. All borders follow from the shape.

use super::matrix::{Rows, RowsMut};
use super::tile::Tile;
use super::{WIDEST, pack};
use crate::executor::cpu::parallel::{Shared, for_each, share};
use crate::executor::cpu::simd::{LANES, Simd, Task, dispatch};

/// Rows packed at a time: a panel of x and a strip of dy stay in the first-level cache.
const DEPTH: usize = 256;
/// Most outputs (rows of dW) of a block.
const BLOCK_OUTPUTS: usize = 196;
/// Most inputs (columns of dW) of a block.
const BLOCK_INPUTS: usize = 384;
/// Tasks aimed at.
const TASKS: usize = 16;
/// Fewest rows worth a slice of their own.
const SLICE_ROWS: usize = 512;
/// Most rows of a tile on any path.
const STRIP: usize = 14;

/// How a weight gradient is cut.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    inputs: usize,
    outputs: usize,
    output_blocks: usize,
    input_blocks: usize,
    slices: usize,
}

impl Cut {
    fn new(rows: usize, inputs: usize, outputs: usize) -> Self {
        let output_blocks = outputs.div_ceil(BLOCK_OUTPUTS).max(1);
        let input_blocks = inputs.div_ceil(BLOCK_INPUTS).max(1);
        let wanted = (TASKS / (output_blocks * input_blocks)).max(1);
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

    fn tasks(&self) -> usize {
        self.slices * self.output_blocks * self.input_blocks
    }

    /// Floats of the partial weight and bias gradients.
    fn partials(&self) -> usize {
        self.slices * (self.outputs * self.inputs + self.outputs).next_multiple_of(LANES)
    }

    /// Floats a task packs into: strips of dy and one panel of x.
    fn packing(&self) -> usize {
        let outputs = self.outputs.div_ceil(self.output_blocks);
        (outputs + STRIP) * DEPTH + DEPTH * WIDEST
    }
}

/// Floats of workspace for [`linear_weight_gradient`] over `rows` M with `inputs` K and `outputs` N.
pub fn linear_weight_gradient_workspace(rows: usize, inputs: usize, outputs: usize) -> usize {
    let cut = Cut::new(rows, inputs, outputs);
    cut.partials() + cut.tasks() * cut.packing().next_multiple_of(LANES)
}

/// dW = dyᵀ x and db = Σ dy over rows; added to what dw and db hold where `accumulate`.
///
/// Shapes: dy [M, N], x [M, K], dw [N, K], db [N]. Runs on the current rayon pool. Panics where shapes do not fit or
/// the workspace is smaller than [`linear_weight_gradient_workspace`].
pub fn linear_weight_gradient(
    dy: Rows<'_>,
    x: Rows<'_>,
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
    let need = linear_weight_gradient_workspace(cut.rows, cut.inputs, cut.outputs);
    assert!(
        workspace.len() >= need,
        "workspace of {}, needs {need}",
        workspace.len()
    );
    let (partials, packing) = workspace.split_at_mut(cut.partials());
    let wants_bias = db.is_some();
    dispatch(Products {
        dy,
        x,
        cut,
        partials: Shared::new(partials),
        packing: Shared::new(packing),
        wants_bias,
    });
    add_partials(&cut, partials, &mut dw, db, accumulate);
}

/// Adds the slices' partials in order.
fn add_partials(
    cut: &Cut,
    partials: &[f32],
    dw: &mut RowsMut<'_>,
    db: Option<&mut [f32]>,
    accumulate: bool,
) {
    let (size, whole) = (cut.partials() / cut.slices, cut.outputs * cut.inputs);
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
        sum(db, whole);
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
            sum(to, row * cut.inputs);
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
        use crate::executor::cpu::vector_math::{load, store};
        let len = self.to.len();
        let slice = |index: usize| {
            let start = index * self.size + self.offset;
            &self.partials[start..start + len]
        };
        for at in (0..len).step_by(LANES) {
            let mut sum = load(simd, slice(0), at);
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

/// One slice of rows for one block of dW.
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
        let (slice, block) = (self.task / blocks, self.task % blocks);
        let (output_block, input_block) = (block / cut.input_blocks, block % cut.input_blocks);
        let rows = share(cut.rows, cut.slices, 1, slice);
        let outputs = share(cut.outputs, cut.output_blocks, 1, output_block);
        let inputs = share(cut.inputs, cut.input_blocks, LANES, input_block);
        let wants_bias = *wants_bias && input_block == 0;

        let size = cut.partials() / cut.slices;
        let whole = cut.outputs * cut.inputs;
        let partial = partials.start_at(slice * size);
        let pack_size = cut.packing().next_multiple_of(LANES);
        // SAFETY: every task has its own packing memory, inside the borrowed workspace.
        let packing = unsafe { packing.part(self.task * pack_size, pack_size) };
        let (panel, strips) = packing.split_at_mut(DEPTH * WIDEST);

        if wants_bias {
            // SAFETY: the bias sums of this slice and block belong to this task alone.
            unsafe { partials.part(slice * size + whole + outputs.start, outputs.len()) }.fill(0.0);
        }
        if rows.is_empty() {
            for output in outputs {
                // SAFETY: this block of the partial belongs to this task alone.
                let row = unsafe {
                    let start = slice * size + output * cut.inputs + inputs.start;
                    partials.part(start, inputs.len())
                };
                row.fill(0.0);
            }
            return;
        }
        let (width, tall) = (S::TILE_VECTORS * LANES, S::TILE_ROWS);
        for first in rows.clone().step_by(DEPTH) {
            let depth = DEPTH.min(rows.end - first);
            // SAFETY: the rows and outputs lie inside dy; the strips hold every output rounded up to whole tiles.
            unsafe { pack_strips(simd, *dy, (first, depth), &outputs, strips, tall) };
            if wants_bias {
                // SAFETY: as above.
                let sums =
                    unsafe { partials.part(slice * size + whole + outputs.start, outputs.len()) };
                add_columns(simd, *dy, (first, depth), outputs.start, sums);
            }
            for column in inputs.clone().step_by(width) {
                let columns = width.min(inputs.end - column);
                // SAFETY: the rows and columns lie inside x; the panel holds `depth` rows of `width`.
                unsafe {
                    pack::panel(
                        simd,
                        (*x).into(),
                        (first, depth),
                        (column, columns),
                        panel.as_mut_ptr(),
                        width,
                    );
                }
                for (strip, output) in outputs.clone().step_by(tall).enumerate() {
                    let tile = Tile {
                        depth,
                        a: strips[strip * depth * tall..].as_ptr(),
                        a_row: 1,
                        a_depth: tall,
                        b: panel.as_ptr(),
                        b_depth: width,
                        c: partial.wrapping_add(output * cut.inputs + column),
                        c_row: cut.inputs,
                        rows: tall.min(outputs.end - output),
                        columns,
                        alpha: 1.0,
                        beta: if first == rows.start { 0.0 } else { 1.0 },
                    };
                    // SAFETY: the strip and the panel were just packed; the tile of the partial is this task's.
                    unsafe { tile.compute(simd) };
                }
            }
        }
    }
}

/// Copies rows of dy into strips [depth, tall], one per tile row of dW.
///
/// # Safety
/// 1. The rows and columns lie inside `dy`; 2. `tall` is at most sixteen.
#[inline(always)]
unsafe fn pack_strips<S: Simd>(
    simd: S,
    dy: Rows<'_>,
    (first, depth): (usize, usize),
    outputs: &std::ops::Range<usize>,
    strips: &mut [f32],
    tall: usize,
) {
    let count = outputs.len().div_ceil(tall);
    assert!(strips.len() >= count * depth * tall);
    for row in 0..depth {
        let from = dy.start.wrapping_add((first + row) * dy.stride);
        for strip in 0..count {
            let output = outputs.start + strip * tall;
            let present = tall.min(outputs.end - output);
            // SAFETY: `present` lanes lie inside the row of dy, and `tall` lanes inside the strip.
            unsafe {
                let x = simd.load_first(from.add(output), present);
                simd.store_first(
                    strips.as_mut_ptr().add((strip * depth + row) * tall),
                    tall,
                    x,
                );
            }
        }
    }
}

/// Adds rows of dy to `sums`, one after the other.
#[inline(always)]
fn add_columns<S: Simd>(
    simd: S,
    dy: Rows<'_>,
    (first, depth): (usize, usize),
    column: usize,
    sums: &mut [f32],
) {
    use crate::executor::cpu::vector_math::{load, store};
    for at in (0..sums.len()).step_by(LANES) {
        let mut sum = load(simd, sums, at);
        for row in first..first + depth {
            sum = simd.add(
                sum,
                load(simd, &dy.row(row)[column..column + sums.len()], at),
            );
        }
        store(simd, sums, at, sum);
    }
}
