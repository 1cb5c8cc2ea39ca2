//! Row-major views with a row stride: parts of packed tensors without copies.

use std::marker::PhantomData;

use crate::simd::{LANES, Simd};

/// A read-only matrix [rows, width] whose rows lie `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub(super) start: *const f32,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
    borrow: PhantomData<&'a [f32]>,
}

/// A writable matrix [rows, width] whose rows lie `stride` elements apart.
pub struct RowsMut<'a> {
    pub(super) start: *mut f32,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is a shared borrow of f32.
unsafe impl Send for Rows<'_> {}
// SAFETY: a view is a shared borrow of f32.
unsafe impl Sync for Rows<'_> {}
// SAFETY: a view is an exclusive borrow of f32.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: writing through a view needs `&mut` or an unsafe block.
unsafe impl Sync for RowsMut<'_> {}

/// Elements from the first of the first row to the last of the last one.
fn span(rows: usize, width: usize, stride: usize) -> usize {
    if rows == 0 || width == 0 {
        0
    } else {
        (rows - 1) * stride + width
    }
}

impl<'a> Rows<'a> {
    /// A whole matrix [rows, width].
    #[inline]
    pub fn new(data: &'a [f32], rows: usize, width: usize) -> Self {
        Self::strided(data, rows, width, width)
    }

    /// A matrix [rows, width] that starts at `data[0]` with rows `stride` apart. Panics where `data` is too short.
    #[inline]
    pub fn strided(data: &'a [f32], rows: usize, width: usize, stride: usize) -> Self {
        let need = span(rows, width, stride);
        assert!(
            data.len() >= need,
            "matrix [{rows}, {width}] needs {need}, has {}",
            data.len()
        );
        Self {
            start: data.as_ptr(),
            rows,
            width,
            stride,
            borrow: PhantomData,
        }
    }

    /// Its rows.
    #[inline]
    pub fn count(self) -> usize {
        self.rows
    }

    /// Elements of a row.
    #[inline]
    pub fn width(self) -> usize {
        self.width
    }

    /// Rows `first..first + count`.
    #[inline]
    pub fn part(self, first: usize, count: usize) -> Self {
        assert!(
            first + count <= self.rows,
            "rows {first}+{count} of {}",
            self.rows
        );
        Self {
            start: self.start.wrapping_add(first * self.stride),
            rows: count,
            ..self
        }
    }

    /// Row `index` as a slice.
    #[inline]
    pub fn row(self, index: usize) -> &'a [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the constructor checked that every row lies inside the borrowed data.
        unsafe { std::slice::from_raw_parts(self.start.add(index * self.stride), self.width) }
    }

    /// Where it lies.
    pub fn hint(self) -> Hint {
        Hint {
            start: self.start,
            rows: self.rows,
            width: self.width,
            stride: self.stride,
        }
    }

    /// Read as its transpose [width, rows].
    #[inline]
    pub fn transposed(self) -> Operand<'a> {
        Operand {
            rows: self,
            transposed: true,
        }
    }
}

impl<'a> RowsMut<'a> {
    /// A whole matrix [rows, width].
    #[inline]
    pub fn new(data: &'a mut [f32], rows: usize, width: usize) -> Self {
        Self::strided(data, rows, width, width)
    }

    /// A matrix [rows, width] that starts at `data[0]` with rows `stride` apart. Panics where `data` is too short or
    /// where rows would overlap.
    #[inline]
    pub fn strided(data: &'a mut [f32], rows: usize, width: usize, stride: usize) -> Self {
        let need = span(rows, width, stride);
        assert!(
            data.len() >= need,
            "matrix [{rows}, {width}] needs {need}, has {}",
            data.len()
        );
        assert!(
            stride >= width || rows <= 1,
            "rows of {width} overlap at stride {stride}"
        );
        Self {
            start: data.as_mut_ptr(),
            rows,
            width,
            stride,
            borrow: PhantomData,
        }
    }

    /// A view of memory that other tasks hold other columns of.
    ///
    /// # Safety
    /// 1. Rows of `width` at `start`, `stride` apart, are valid for `'a`; 2. nothing else reads or writes those
    ///    elements meanwhile; 3. `stride >= width` unless there is at most one row.
    pub unsafe fn from_raw(start: *mut f32, rows: usize, width: usize, stride: usize) -> Self {
        Self {
            start,
            rows,
            width,
            stride,
            borrow: PhantomData,
        }
    }

    /// The same view for a shorter time.
    #[inline]
    pub fn reborrow(&mut self) -> RowsMut<'_> {
        RowsMut {
            borrow: PhantomData,
            ..*self
        }
    }

    /// Rows `..at` and the rest.
    pub fn split_at_row(self, at: usize) -> (RowsMut<'a>, RowsMut<'a>) {
        assert!(at <= self.rows, "row {at} of {}", self.rows);
        let rest = RowsMut {
            start: self.start.wrapping_add(at * self.stride),
            rows: self.rows - at,
            ..self
        };
        (RowsMut { rows: at, ..self }, rest)
    }

    /// Columns `..at` and the rest.
    pub fn split_at_column(self, at: usize) -> (RowsMut<'a>, RowsMut<'a>) {
        assert!(at <= self.width, "column {at} of {}", self.width);
        let rest = RowsMut {
            start: self.start.wrapping_add(at),
            width: self.width - at,
            ..self
        };
        (RowsMut { width: at, ..self }, rest)
    }

    /// `rows` rows from `row` and `width` columns from `column`, for a shorter time.
    #[inline]
    pub fn part(
        &mut self,
        (row, rows): (usize, usize),
        (column, width): (usize, usize),
    ) -> RowsMut<'_> {
        assert!(
            row + rows <= self.rows && column + width <= self.width,
            "rows {row}+{rows} of {} and columns {column}+{width} of {}",
            self.rows,
            self.width
        );
        RowsMut {
            start: self.start.wrapping_add(row * self.stride + column),
            rows,
            width,
            stride: self.stride,
            borrow: PhantomData,
        }
    }

    /// Where `rows` rows from `row` and `width` columns from `column` lie, whether they are inside or not.
    pub fn hint(&self, (row, rows): (usize, usize), (column, width): (usize, usize)) -> Hint {
        Hint {
            start: self.start.wrapping_add(row * self.stride + column),
            rows,
            width,
            stride: self.stride,
        }
    }

    /// The same view, read-only.
    #[inline]
    pub fn as_rows(&self) -> Rows<'_> {
        Rows {
            start: self.start,
            rows: self.rows,
            width: self.width,
            stride: self.stride,
            borrow: PhantomData,
        }
    }

    /// Row `index` as a slice.
    #[inline]
    pub fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the constructor checked that every row lies inside the borrowed data; rows do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.stride), self.width) }
    }
}

/// Where a matrix lies, to ask for its rows before they are used; nothing can be read or written through it.
#[derive(Clone, Copy)]
pub struct Hint {
    start: *const f32,
    rows: usize,
    width: usize,
    stride: usize,
}

impl Hint {
    /// Nowhere.
    pub const NONE: Hint = Hint {
        start: std::ptr::null(),
        rows: 0,
        width: 0,
        stride: 0,
    };

    /// Asks for row `index`, if it has one, for a use soon but not next.
    #[inline(always)]
    pub fn ask<S: Simd>(self, simd: S, index: usize) {
        if index < self.rows {
            let start = self.start.wrapping_add(index * self.stride);
            for column in (0..self.width).step_by(LANES) {
                simd.prefetch(start.wrapping_add(column));
            }
        }
    }
}

/// A factor of a product: a matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) transposed: bool,
}

impl<'a> From<Rows<'a>> for Operand<'a> {
    fn from(rows: Rows<'a>) -> Self {
        Self {
            rows,
            transposed: false,
        }
    }
}

impl Operand<'_> {
    /// (rows, columns) as the product sees them.
    pub(super) fn shape(&self) -> (usize, usize) {
        if self.transposed {
            (self.rows.width, self.rows.rows)
        } else {
            (self.rows.rows, self.rows.width)
        }
    }
}
