//! Matrix products on slices: a checked door to the `gemm` crate, one thread a call.
#![allow(unsafe_code)]

/// A matrix [rows, columns] inside a slice, possibly read transposed.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Operand<'a> {
    /// The row-major matrix [rows, columns] at the start of `data`.
    ///
    /// # Panics
    /// When `data` is too short.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Operand<'a> {
        assert!(
            data.len() >= rows * columns,
            "a matrix reaches past its slice"
        );
        Operand {
            data,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// Its transpose.
    pub fn transposed(self) -> Operand<'a> {
        Operand {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `count` of its columns from `first` on.
    ///
    /// # Panics
    /// When it has fewer columns.
    pub fn columns(self, first: usize, count: usize) -> Operand<'a> {
        assert!(
            first + count <= self.columns,
            "columns reach past the matrix"
        );
        Operand {
            data: &self.data[(first * self.column_stride).min(self.data.len())..],
            columns: count,
            ..self
        }
    }
}

/// c = a·b, or c + a·b when `adds`, for a [m, k], b [k, n], c [m, n] row-major.
///
/// # Panics
/// When the shapes do not fit.
pub fn product(a: Operand<'_>, b: Operand<'_>, c: &mut [f32], adds: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(b.rows == k && c.len() == m * n, "the factors do not fit");
    if k == 0 {
        if !adds {
            c.fill(0.0);
        }
        return;
    }
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: `Operand`'s constructors keep every element of a and b inside their slices; c holds m·n elements and is
    // borrowed exclusively, so it overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            adds,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
