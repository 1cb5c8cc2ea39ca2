//! How numbers lie in memory: f32, or bf16 that is widened when it is read and rounded when it is written.
//!
//! Arithmetic is in f32 either way. What is generic over [`Stored`] is compiled for both types, and for f32 it is what it
//! would be without: loads and stores, and nothing between.

#![allow(unsafe_code)]

use half::bf16;

use crate::matmul::{Rows, RowsMut};
use crate::simd::{LANES, Simd};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A number as it is stored: f32 or bf16.
pub trait Stored:
    sealed::Sealed + Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static
{
    /// Whether it is stored in the type that arithmetic is in.
    const IS_F32: bool;

    /// The number in f32, exactly.
    fn widen(self) -> f32;
    /// `x` rounded to the nearest, ties to even; NaN stays NaN.
    fn rounded(x: f32) -> Self;

    /// Reads sixteen numbers.
    ///
    /// # Safety
    /// 1. `from..from + 16` is readable.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector;
    /// Reads the first `count` numbers and sets the other lanes to zero.
    ///
    /// # Safety
    /// 1. `from..from + count` is readable; 2. `count <= 16`.
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> S::Vector;
    /// Writes sixteen numbers, as [`Stored::rounded`] has them.
    ///
    /// # Safety
    /// 1. `to..to + 16` is writable.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, x: S::Vector);
    /// Writes the first `count` numbers.
    ///
    /// # Safety
    /// 1. `to..to + count` is writable; 2. `count <= 16`.
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, count: usize, x: S::Vector);

    /// `rows` in f32: as they lie where that is their type, and widened into `scratch` otherwise, side by side.
    ///
    /// Panics where they have to be widened and `scratch` is too short.
    fn view<'a>(rows: Rows<'a, Self>, scratch: &'a mut [f32]) -> Rows<'a>;
    /// Where results for `rows` are computed in f32: `rows` where that is their type, and otherwise `scratch`, which
    /// [`Stored::settle`] brings there.
    fn target<'a>(rows: RowsMut<'a, Self>, scratch: &'a mut [f32]) -> RowsMut<'a>;
    /// Rounds what was computed in the [`Stored::target`] `scratch` into `rows`; nothing where it was computed there.
    fn settle(rows: RowsMut<'_, Self>, scratch: &[f32]);
    /// The elements of scratch memory that [`Stored::view`] and [`Stored::target`] take for so many elements.
    fn scratch(elements: usize) -> usize {
        if Self::IS_F32 { 0 } else { elements }
    }
}

impl Stored for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> S::Vector {
        // SAFETY: the caller's contract.
        unsafe { simd.load(from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(simd: S, from: *const f32, count: usize) -> S::Vector {
        // SAFETY: the caller's contract.
        unsafe { simd.load_first(from, count) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut f32, x: S::Vector) {
        // SAFETY: the caller's contract.
        unsafe { simd.store(to, x) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(simd: S, to: *mut f32, count: usize, x: S::Vector) {
        // SAFETY: the caller's contract.
        unsafe { simd.store_first(to, count, x) }
    }
    fn view<'a>(rows: Rows<'a>, _scratch: &'a mut [f32]) -> Rows<'a> {
        rows
    }
    fn target<'a>(rows: RowsMut<'a>, _scratch: &'a mut [f32]) -> RowsMut<'a> {
        rows
    }
    fn settle(_rows: RowsMut<'_>, _scratch: &[f32]) {}
}

impl Stored for bf16 {
    const IS_F32: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn rounded(x: f32) -> bf16 {
        let bits = x.to_bits();
        // Without a branch, so that loops over it vectorise. A NaN is made quiet: its upper half alone could be an infinity.
        let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let kept = if x.is_nan() {
            bits | 0x0040_0000
        } else {
            nearest
        };
        bf16::from_bits((kept >> 16) as u16)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const bf16) -> S::Vector {
        // SAFETY: the caller's contract.
        unsafe { simd.load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(simd: S, from: *const bf16, count: usize) -> S::Vector {
        // SAFETY: the caller's contract.
        unsafe { simd.load_first_bf16(from, count) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut bf16, x: S::Vector) {
        // SAFETY: the caller's contract.
        unsafe { simd.store_bf16(to, x) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(simd: S, to: *mut bf16, count: usize, x: S::Vector) {
        // SAFETY: the caller's contract.
        unsafe { simd.store_first_bf16(to, count, x) }
    }
    fn view<'a>(rows: Rows<'a, bf16>, scratch: &'a mut [f32]) -> Rows<'a> {
        let (count, width) = (rows.count(), rows.width());
        let scratch = &mut scratch[..count * width];
        for (row, to) in scratch.chunks_exact_mut(width.max(1)).enumerate() {
            widen(rows.row(row), to);
        }
        Rows::new(scratch, count, width)
    }
    fn target<'a>(rows: RowsMut<'a, bf16>, scratch: &'a mut [f32]) -> RowsMut<'a> {
        let view = rows.as_rows();
        let (count, width) = (view.count(), view.width());
        RowsMut::new(&mut scratch[..count * width], count, width)
    }
    fn settle(mut rows: RowsMut<'_, bf16>, scratch: &[f32]) {
        let view = rows.as_rows();
        let (count, width) = (view.count(), view.width());
        let scratch = scratch[..count * width].chunks_exact(width.max(1));
        for (row, from) in scratch.enumerate() {
            round(from, rows.row(row));
        }
    }
}

/// Instructions for a loop over two slices of equal length.
struct Convert<'a, T, U>(&'a [T], &'a mut [U]);

impl<T: Stored, U: Stored> crate::simd::Task for Convert<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..self.0.len()).step_by(LANES) {
            let x = crate::vector_math::load(simd, self.0, at);
            crate::vector_math::store(simd, self.1, at, x);
        }
    }
}

/// to = from in f32. Panics where lengths differ.
pub fn widen<T: Stored>(from: &[T], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "lengths");
    crate::simd::dispatch(Convert(from, to));
}

/// to = from, each as [`Stored::rounded`] has it. Panics where lengths differ.
pub fn round<T: Stored>(from: &[f32], to: &mut [T]) {
    assert_eq!(from.len(), to.len(), "lengths");
    crate::simd::dispatch(Convert(from, to));
}
