//! Reductions over rows in a fixed order, threaded: column sums of what a kernel makes from each row.
//!
//! A long reduction is cut into chunks of rows by shape alone; each chunk's partial sums lie in the caller's workspace
//! and are added in order. Row-wise sums are in [`vector_math::rows`](super::vector_math::rows).
#![allow(unsafe_code)]

use std::ops::Range;

use super::matmul::Rows;
use super::parallel::{Shared, for_each, share};
use super::simd::{LANES, Simd, Task, dispatch};
use super::storage::Stored;
use super::vector_math::{load, store};

/// Chunks aimed at.
const CHUNKS: usize = 32;
/// Fewest elements worth a chunk of their own.
const CHUNK_ELEMENTS: usize = 16 * 1024;

/// Chunks that a reduction over [rows, width] is cut into: of the shape alone.
pub fn row_chunks(rows: usize, width: usize) -> usize {
    (rows * width / CHUNK_ELEMENTS)
        .clamp(1, CHUNKS)
        .min(rows.max(1))
}

/// Floats of workspace for a reduction over [rows, width] into `sums` sums: see [`sum_over_rows`].
pub fn sum_over_rows_workspace(rows: usize, width: usize, sums: usize) -> usize {
    row_chunks(rows, width) * sums
}

/// Runs `body(rows, partial)` on every chunk of 0..rows, in parallel, with `partial` zeroed, then sums = Σ partials in
/// order, added to what `sums` holds where `accumulate`.
///
/// `width` is the elements a row costs; it and `rows` alone decide the chunks. A norm's backward pass computes dx of its
/// rows in `body` and adds dγ and dβ to `partial` on the way. Panics where the workspace is smaller than
/// [`sum_over_rows_workspace`].
pub fn sum_over_rows(
    (rows, width): (usize, usize),
    sums: &mut [f32],
    accumulate: bool,
    workspace: &mut [f32],
    body: impl Fn(Range<usize>, &mut [f32]) + Sync + Send,
) {
    let (chunks, len) = (row_chunks(rows, width), sums.len());
    let need = chunks * len;
    assert!(
        workspace.len() >= need,
        "workspace of {}, needs {need}",
        workspace.len()
    );
    let partials = Shared::new(workspace);
    for_each(chunks, |chunk| {
        // SAFETY: each chunk has its own part of the borrowed workspace.
        let partial = unsafe { partials.part(chunk * len, len) };
        partial.fill(0.0);
        body(share(rows, chunks, 1, chunk), partial);
    });
    dispatch(AddPartials {
        partials: &workspace[..need],
        chunks,
        sums,
        accumulate,
    });
}

struct AddPartials<'a> {
    partials: &'a [f32],
    chunks: usize,
    sums: &'a mut [f32],
    accumulate: bool,
}

impl Task for AddPartials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let len = self.sums.len();
        for at in (0..len).step_by(LANES) {
            let mut sum = load(simd, &self.partials[..len], at);
            for chunk in 1..self.chunks {
                let partial = &self.partials[chunk * len..(chunk + 1) * len];
                sum = simd.add(sum, load(simd, partial, at));
            }
            if self.accumulate {
                sum = simd.add(load(simd, self.sums, at), sum);
            }
            store(simd, self.sums, at, sum);
        }
    }
}

/// `sums[c]` = Σ over rows of x[r, c]; added to what `sums` holds where `accumulate`.
///
/// Shapes: x [rows, width], sums `[width]`. Panics where shapes do not fit or the workspace is smaller than
/// [`sum_over_rows_workspace`] of (rows, width, width).
pub fn column_sums<T: Stored>(
    x: Rows<'_, T>,
    sums: &mut [f32],
    accumulate: bool,
    workspace: &mut [f32],
) {
    assert_eq!(x.width(), sums.len(), "columns and sums");
    sum_over_rows(
        (x.count(), x.width()),
        sums,
        accumulate,
        workspace,
        |rows, partial| {
            dispatch(AddRows {
                x,
                y: None,
                rows,
                sums: partial,
            });
        },
    );
}

/// `sums[c]` = Σ over rows of x[r, c] · y[r, c]; added to what `sums` holds where `accumulate`.
///
/// Shapes: x and y [rows, width], sums `[width]`. Panics where shapes do not fit or the workspace is smaller than
/// [`sum_over_rows_workspace`] of (rows, width, width).
pub fn column_dots(
    x: Rows<'_>,
    y: Rows<'_>,
    sums: &mut [f32],
    accumulate: bool,
    workspace: &mut [f32],
) {
    assert_eq!(
        (x.count(), x.width()),
        (y.count(), y.width()),
        "shapes of the factors"
    );
    assert_eq!(x.width(), sums.len(), "columns and sums");
    sum_over_rows(
        (x.count(), x.width()),
        sums,
        accumulate,
        workspace,
        |rows, partial| {
            dispatch(AddRows {
                x,
                y: Some(y),
                rows,
                sums: partial,
            });
        },
    );
}

/// Adds rows of x, or of x · y, to `sums`, one after the other.
struct AddRows<'a, T> {
    x: Rows<'a, T>,
    y: Option<Rows<'a, T>>,
    rows: Range<usize>,
    sums: &'a mut [f32],
}

impl<T: Stored> Task for AddRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.rows {
            let x = self.x.row(row);
            for at in (0..x.len()).step_by(LANES) {
                // The sums of a row of columns are read and written once for each row of x: they are in cache, and x is
                // read in the order in which it lies.
                let sum = load(simd, self.sums, at);
                let sum = match self.y {
                    None => simd.add(sum, load(simd, x, at)),
                    Some(y) => simd.mul_add(load(simd, x, at), load(simd, y.row(row), at), sum),
                };
                store(simd, self.sums, at, sum);
            }
        }
    }
}
