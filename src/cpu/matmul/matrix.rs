//! Row-major views with a row stride: parts of packed tensors without copies.

use std::marker::PhantomData;

use half::bf16;

use crate::simd::Simd;
use crate::storage::Stored;

/// A read-only matrix [rows, width] whose rows lie `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a, T = f32> {
    pub(super) start: *const T,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
    borrow: PhantomData<&'a [T]>,
}

/// A writable matrix [rows, width] whose rows lie `stride` elements apart.
pub struct RowsMut<'a, T = f32> {
    pub(super) start: *mut T,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a view is a shared borrow of numbers.
unsafe impl<T: Stored> Send for Rows<'_, T> {}
// SAFETY: a view is a shared borrow of numbers.
unsafe impl<T: Stored> Sync for Rows<'_, T> {}
// SAFETY: a view is an exclusive borrow of numbers.
unsafe impl<T: Stored> Send for RowsMut<'_, T> {}
// SAFETY: writing through a view needs `&mut` or an unsafe block.
unsafe impl<T: Stored> Sync for RowsMut<'_, T> {}

/// Elements from the first of the first row to the last of the last one.
fn span(rows: usize, width: usize, stride: usize) -> usize {
    if rows == 0 || width == 0 {
        0
    } else {
        (rows - 1) * stride + width
    }
}

impl<'a, T: Stored> Rows<'a, T> {
    /// A whole matrix [rows, width].
    #[inline]
    pub fn new(data: &'a [T], rows: usize, width: usize) -> Self {
        Self::strided(data, rows, width, width)
    }

    /// A matrix [rows, width] that starts at `data[0]` with rows `stride` apart. Panics where `data` is too short.
    #[inline]
    pub fn strided(data: &'a [T], rows: usize, width: usize, stride: usize) -> Self {
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
    pub fn row(self, index: usize) -> &'a [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the constructor checked that every row lies inside the borrowed data.
        unsafe { std::slice::from_raw_parts(self.start.add(index * self.stride), self.width) }
    }

    /// Where it lies.
    pub fn hint(self) -> Hint {
        Hint::of(self.start, [self.rows, self.width, self.stride])
    }

    /// Read as its transpose [width, rows].
    #[inline]
    pub fn transposed(self) -> Operand<'a, T> {
        Operand {
            rows: self,
            transposed: true,
        }
    }
}

impl<'a> Rows<'a, bf16> {
    /// Whether the rows can be read as rows of [`Rows::as_cells`].
    pub(super) fn are_cells(self) -> bool {
        self.width.is_multiple_of(2)
            && (self.stride.is_multiple_of(2) || self.rows <= 1)
            && self.start.addr().is_multiple_of(align_of::<f32>())
    }

    /// The same rows of half as many numbers of 32 bits, each of them two neighbours.
    pub(super) fn as_cells(self) -> Rows<'a> {
        debug_assert!(self.are_cells());
        Rows {
            start: self.start.cast(),
            rows: self.rows,
            width: self.width / 2,
            stride: self.stride / 2,
            borrow: PhantomData,
        }
    }
}

impl<'a, T: Stored> RowsMut<'a, T> {
    /// A whole matrix [rows, width].
    #[inline]
    pub fn new(data: &'a mut [T], rows: usize, width: usize) -> Self {
        Self::strided(data, rows, width, width)
    }

    /// A matrix [rows, width] that starts at `data[0]` with rows `stride` apart. Panics where `data` is too short or
    /// where rows would overlap.
    #[inline]
    pub fn strided(data: &'a mut [T], rows: usize, width: usize, stride: usize) -> Self {
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
    pub unsafe fn from_raw(start: *mut T, rows: usize, width: usize, stride: usize) -> Self {
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
    pub fn reborrow(&mut self) -> RowsMut<'_, T> {
        RowsMut {
            borrow: PhantomData,
            ..*self
        }
    }

    /// Rows `..at` and the rest.
    pub fn split_at_row(self, at: usize) -> (RowsMut<'a, T>, RowsMut<'a, T>) {
        assert!(at <= self.rows, "row {at} of {}", self.rows);
        let rest = RowsMut {
            start: self.start.wrapping_add(at * self.stride),
            rows: self.rows - at,
            ..self
        };
        (RowsMut { rows: at, ..self }, rest)
    }

    /// Columns `..at` and the rest.
    pub fn split_at_column(self, at: usize) -> (RowsMut<'a, T>, RowsMut<'a, T>) {
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
    ) -> RowsMut<'_, T> {
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
        let start = self.start.wrapping_add(row * self.stride + column);
        Hint::of(start, [rows, width, self.stride])
    }

    /// The same view, read-only.
    #[inline]
    pub fn as_rows(&self) -> Rows<'_, T> {
        Rows {
            start: self.start,
            rows: self.rows,
            width: self.width,
            stride: self.stride,
            borrow: PhantomData,
        }
    }

    /// All elements of a matrix whose rows lie one after the other. Panics where they do not.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        assert!(
            self.stride == self.width || self.rows <= 1,
            "rows of {} lie {} apart",
            self.width,
            self.stride
        );
        // SAFETY: the constructor checked that the rows, which are one range here, lie inside the borrowed data.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.rows * self.width) }
    }

    /// Row `index` as a slice.
    #[inline]
    pub fn row(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the constructor checked that every row lies inside the borrowed data; rows do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.stride), self.width) }
    }
}

/// Where a matrix lies, to ask for its rows before they are used; nothing can be read or written through it.
#[derive(Clone, Copy)]
pub struct Hint {
    start: *const u8,
    rows: usize,
    /// Bytes of a row.
    width: usize,
    /// Bytes from a row to the next.
    stride: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl Hint {
    /// Nowhere.
    pub const NONE: Hint = Hint {
        start: std::ptr::null(),
        rows: 0,
        width: 0,
        stride: 0,
    };

    /// Of rows of `width` numbers, `stride` apart.
    fn of<T>(start: *const T, [rows, width, stride]: [usize; 3]) -> Hint {
        Hint {
            start: start.cast(),
            rows,
            width: width * size_of::<T>(),
            stride: stride * size_of::<T>(),
        }
    }

    /// Asks for row `index`, if it has one, for a use soon but not next.
    #[inline(always)]
    pub fn ask<S: Simd>(self, simd: S, index: usize) {
        if index < self.rows {
            let start = self.start.wrapping_add(index * self.stride);
            for byte in (0..self.width).step_by(LINE) {
                simd.prefetch(start.wrapping_add(byte).cast());
            }
        }
    }
}

/// A factor of a product: a matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub struct Operand<'a, T = f32> {
    pub(super) rows: Rows<'a, T>,
    pub(super) transposed: bool,
}

impl<'a, T> From<Rows<'a, T>> for Operand<'a, T> {
    fn from(rows: Rows<'a, T>) -> Self {
        Self {
            rows,
            transposed: false,
        }
    }
}

impl<T: Stored> Operand<'_, T> {
    /// (rows, columns) as the product sees them.
    pub(super) fn shape(&self) -> (usize, usize) {
        if self.transposed {
            (self.rows.width, self.rows.rows)
        } else {
            (self.rows.rows, self.rows.width)
        }
    }
}
