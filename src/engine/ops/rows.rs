//! What ops that work row by row share: how rows are divided among tasks and, in `cuda/rows.cuh`, among threads.

use crate::launch::kernels::constants::kernel::MULTIPROCESSORS;
use crate::launch::kernels::constants::rows::{
    BROAD_COLUMNS, BROAD_RESIDENT, MIDDLE_COLUMNS, MIDDLE_RESIDENT, NARROW_COLUMNS, NARROW_TEAMS,
    USUAL_COLUMNS, USUAL_RESIDENT, WIDE_COLUMNS, WIDE_RESIDENT,
};
use crate::launch::{KernelEntry, Widths, blocks};
use crate::tensor::DType;
use keel_base::error::{Error, Result};
use keel_cpu::Stored;

/// Elements that one task works on: long enough to hide the hand-over, short enough to share among cores.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Rows of `columns` elements that one task works on; at least one.
pub(super) fn rows_per_task(columns: usize) -> usize {
    (ELEMENTS_PER_TASK / columns.max(1)).max(1)
}

/// to += factor · from, each sum rounded once.
pub(super) fn add_scaled<T: Stored, U: Stored>(to: &mut [T], factor: f32, from: &[U]) {
    debug_assert_eq!(to.len(), from.len());
    for (to, from) in to.iter_mut().zip(from) {
        *to = T::rounded(to.widen() + factor * from.widen());
    }
}

/// Σ a·b in eight interleaved sums, so that it vectorises; the order depends on the length alone.
pub(super) fn dot<T: Stored, U: Stored>(a: &[T], b: &[U]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let (a_whole, a_rest) = a.as_chunks::<8>();
    let (b_whole, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..8 {
            sums[lane] += a[lane].widen() * b[lane].widen();
        }
    }
    let rest = a_rest.iter().zip(b_rest);
    let rest: f32 = rest.map(|(a, b)| a.widen() * b.widen()).sum();
    sums.iter().sum::<f32>() + rest
}

/// A kernel of `cuda/rows.cuh`, in the width that holds a row in registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowKernel {
    /// Which it is.
    pub entry: &'static KernelEntry,
    /// Rows a block takes at a time.
    pub rows: usize,
    /// Blocks that a multiprocessor holds.
    pub resident: usize,
}

impl RowKernel {
    /// The one of `kernels` for rows of `columns` elements of `dtype`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when no width holds such a row, or the kernels are not written for `dtype`.
    pub fn new(kernels: Widths, columns: usize, dtype: DType) -> Result<RowKernel> {
        let (family, rows, resident) = if columns <= NARROW_COLUMNS {
            (kernels.narrow, NARROW_TEAMS, USUAL_RESIDENT)
        } else if columns <= MIDDLE_COLUMNS {
            (kernels.middle, 1, MIDDLE_RESIDENT)
        } else if columns <= USUAL_COLUMNS {
            (kernels.usual, 1, USUAL_RESIDENT)
        } else if columns <= BROAD_COLUMNS {
            (kernels.broad, 1, BROAD_RESIDENT)
        } else if columns <= WIDE_COLUMNS {
            (kernels.wide, 1, WIDE_RESIDENT)
        } else {
            return Err(Error::kernel(format!(
                "kernel {}: a row has at most {WIDE_COLUMNS} columns, but {columns} are wanted; use a narrower model",
                kernels.usual.name
            )));
        };
        Ok(RowKernel {
            entry: family.of(dtype)?,
            rows,
            resident,
        })
    }

    /// Blocks for `rows` rows, each row by a team of its own.
    ///
    /// # Errors
    /// [`Error::Kernel`] when they are more than a grid may have.
    pub fn blocks(&self, rows: usize) -> Result<u32> {
        blocks(self.entry, rows, self.rows)
    }

    /// Blocks that take `rows` rows in turn to read once what all rows share: up to eight rows a team, as many blocks as fill a
    /// large chip at the least. A row's result does not depend on it.
    ///
    /// # Errors
    /// [`Error::Kernel`] when they are more than a grid may have.
    pub fn sharing_blocks(&self, rows: usize) -> Result<u32> {
        let teams = rows.div_ceil(self.rows);
        let each = (teams / (MULTIPROCESSORS * self.resident)).clamp(1, 8);
        blocks(self.entry, teams, each)
    }

    /// Blocks that take `rows` rows in turn, each with sums of its own: as many as fill a large chip, and fewer where a
    /// team would get less than eight rows. From the shape alone, so that every device gives the same sums.
    pub fn persistent_blocks(&self, rows: usize) -> u32 {
        let most = MULTIPROCESSORS * self.resident;
        rows.div_ceil(8 * self.rows).clamp(1, most) as u32
    }
}

/// Rows that a block of an elementwise kernel takes where a row has `columns` elements of `dtype`: about 1024 vectors of 16
/// bytes, four a thread.
pub(super) fn rows_per_block(columns: usize, dtype: DType) -> usize {
    let vectors = columns.div_ceil(16 / dtype.size()).max(1);
    (1024 / vectors).max(1)
}
