//! Sixteen-lane vectors, chosen at run time.
//!
//! Every CPU primitive is written once over [`Simd`], whose vector is always sixteen `f32` lanes wide: one AVX-512
//! register, two AVX2 registers, four NEON registers, or an array that the compiler vectorises as it can. [`dispatch`] picks the widest
//! path the machine has, once per call of a primitive and never per element. Because lane count, order of operations
//! and reduction trees are the same on every path, results are the same bits on AVX-512, AVX2 and NEON; the portable
//! path gives those bits too wherever the target fuses multiply-add, and otherwise rounds each multiply-add twice.
//!
//! A value of a [`Simd`] type is the proof that the machine has those instructions, so its methods are safe.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};

pub use portable::Portable;

use half::bf16;

use crate::storage::Stored;

/// Lanes of a vector on every path.
pub const LANES: usize = 16;

/// One instruction path: arithmetic on sixteen `f32` lanes.
///
/// Masks come from comparisons and are consumed by [`Simd::select`]. Pointer methods are the only unsafe ones.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen `f32` lanes.
    type Vector: Copy;
    /// Sixteen truth values.
    type Mask: Copy;
    /// Rows of the largest register tile of the matrix product.
    const TILE_ROWS: usize;
    /// Vectors per row of that tile.
    const TILE_VECTORS: usize;

    /// Runs `task` inside a function compiled for this path, kept out of line.
    fn call<T: Task>(self, task: T) -> T::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::Vector;
    /// One row of a register tile: b · a + c, rounded once, where a is the number OFFSET numbers after `base`.
    ///
    /// # Safety
    /// 1. The number is readable.
    #[inline(always)]
    unsafe fn mul_add_row<const OFFSET: usize, const VECTORS: usize>(
        self,
        base: *const f32,
        b: [Self::Vector; VECTORS],
        mut c: [Self::Vector; VECTORS],
    ) -> [Self::Vector; VECTORS] {
        // SAFETY: the caller vouches for the number.
        let factor = self.splat(unsafe { *base.add(OFFSET) });
        for (c, b) in c.iter_mut().zip(b) {
            *c = self.mul_add(factor, b, *c);
        }
        c
    }
    /// As [`Simd::mul_add_row`], with the number `stride` bytes further on: the second row of a pair, which needs no
    /// pointer of its own.
    ///
    /// # Safety
    /// 1. The number is readable.
    #[inline(always)]
    unsafe fn mul_add_row_after<const OFFSET: usize, const VECTORS: usize>(
        self,
        base: *const f32,
        stride: usize,
        b: [Self::Vector; VECTORS],
        c: [Self::Vector; VECTORS],
    ) -> [Self::Vector; VECTORS] {
        // SAFETY: the caller vouches for the number.
        unsafe { self.mul_add_row::<OFFSET, VECTORS>(base.byte_add(stride), b, c) }
    }
    /// Reads sixteen lanes.
    ///
    /// # Safety
    /// 1. `from..from + 16` is readable.
    unsafe fn load(self, from: *const f32) -> Self::Vector;
    /// Reads the first `count` lanes and sets the others to zero.
    ///
    /// # Safety
    /// 1. `from..from + count` is readable; 2. `count <= 16`.
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::Vector;
    /// Writes sixteen lanes.
    ///
    /// # Safety
    /// 1. `to..to + 16` is writable.
    unsafe fn store(self, to: *mut f32, x: Self::Vector);
    /// Writes the first `count` lanes.
    ///
    /// # Safety
    /// 1. `to..to + count` is writable; 2. `count <= 16`.
    unsafe fn store_first(self, to: *mut f32, count: usize, x: Self::Vector);
    /// Reads sixteen bf16 numbers, widened.
    ///
    /// # Safety
    /// 1. `from..from + 16` is readable.
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::Vector {
        // SAFETY: the caller's contract.
        unsafe { self.load_first_bf16(from, LANES) }
    }
    /// Reads the first `count` bf16 numbers, widened, and sets the other lanes to zero.
    ///
    /// # Safety
    /// 1. `from..from + count` is readable; 2. `count <= 16`.
    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const bf16, count: usize) -> Self::Vector {
        let mut lanes = [0.0; LANES];
        for (index, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` numbers.
            *lane = unsafe { from.add(index).read() }.widen();
        }
        // SAFETY: sixteen lanes lie in the array.
        unsafe { self.load(lanes.as_ptr()) }
    }
    /// Writes sixteen lanes as bf16, rounded to the nearest, ties to even.
    ///
    /// # Safety
    /// 1. `to..to + 16` is writable.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: Self::Vector) {
        // SAFETY: the caller's contract.
        unsafe { self.store_first_bf16(to, LANES, x) }
    }
    /// Writes the first `count` lanes as bf16, rounded to the nearest, ties to even.
    ///
    /// # Safety
    /// 1. `to..to + count` is writable; 2. `count <= 16`.
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut bf16, count: usize, x: Self::Vector) {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen lanes lie in the array, and the caller vouches for `count` numbers.
        unsafe {
            self.store(lanes.as_mut_ptr(), x);
            for (index, lane) in lanes.iter().enumerate().take(count) {
                to.add(index).write(bf16::rounded(*lane));
            }
        }
    }
    /// Reads `count` pairs of bf16 numbers as the bits of as many lanes, those at `even` in the lower halves and those at
    /// `odd`, or zeros where it is null, in the upper ones; the other lanes are zero.
    ///
    /// # Safety
    /// 1. `even..even + count` is readable, and so is `odd..odd + count` unless `odd` is null; 2. `count <= 16`.
    #[inline(always)]
    unsafe fn load_pairs(self, even: *const bf16, odd: *const bf16, count: usize) -> Self::Vector {
        let mut lanes = [0.0; LANES];
        for (index, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` numbers on both sides.
            let (low, high) = unsafe {
                let high = if odd.is_null() {
                    bf16::ZERO
                } else {
                    odd.add(index).read()
                };
                (even.add(index).read(), high)
            };
            *lane = f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16);
        }
        // SAFETY: sixteen lanes lie in the array.
        unsafe { self.load(lanes.as_ptr()) }
    }
    /// sum + a · b over the two bf16 numbers in each lane of `a` and `b`: the upper halves are multiplied and added first,
    /// then the lower ones, each in one rounding to nearest; subnormal operands and results become zero. That is what
    /// `vdpbf16ps` computes (Intel's manual, volume 2C; the same bits on AMD's Zen 5), and this is its model where there is
    /// no such instruction.
    #[inline(always)]
    fn dot_pairs(self, a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector {
        model_dot_pairs(self, a, b, sum)
    }
    /// Rounds `even` and `odd` to bf16, to the nearest with ties to even and subnormal numbers to zero, and puts them side by
    /// side in each lane, as [`Simd::load_pairs`] does: operands of [`Simd::dot_pairs`], which takes subnormal numbers as zero.
    /// That is the rounding of `vcvtneps2bf16`, and this is its model where there is no such instruction.
    #[inline(always)]
    fn pair(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector {
        model_pair(self, even, odd)
    }
    /// Writes sixteen lanes as bf16, rounded as by [`Simd::pair`].
    ///
    /// # Safety
    /// 1. `to..to + 16` is writable.
    #[inline(always)]
    unsafe fn store_terms(self, to: *mut bf16, x: Self::Vector) {
        // SAFETY: the caller's contract.
        unsafe { model_store_terms(self, to, x) }
    }
    /// Asks for the cache line at `address`, for a use soon but not next. Any address will do.
    fn prefetch(self, address: *const f32);
    /// Writes the transpose of a 16 × 16 block.
    ///
    /// # Safety
    /// 1. Sixteen rows of sixteen lanes, `from_stride` apart, are readable; 2. the same at `to` is writable.
    unsafe fn transpose(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);

    /// a + b.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a − b.
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a · b.
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a / b.
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a · b + c, rounded once.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// c − a · b, rounded once.
    fn neg_mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// a > b ? a : b, so `b` where either is NaN.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a < b ? a : b, so `b` where either is NaN.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Square root, correctly rounded.
    fn sqrt(self, x: Self::Vector) -> Self::Vector;
    /// |x|.
    fn abs(self, x: Self::Vector) -> Self::Vector;
    /// |magnitude| with the sign of `sign`.
    fn copy_sign(self, magnitude: Self::Vector, sign: Self::Vector) -> Self::Vector;
    /// The nearest integer, ties to even.
    fn round(self, x: Self::Vector) -> Self::Vector;
    /// x · 2ⁿ for integers |n| ≤ 252, rounded once, with subnormal results kept.
    fn scale(self, x: Self::Vector, n: Self::Vector) -> Self::Vector;
    /// (m, e) with x = m · 2ᵉ and 1 ≤ m < 2, for positive finite x, subnormal ones included.
    fn split(self, x: Self::Vector) -> (Self::Vector, Self::Vector);
    /// a < b.
    fn less(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// a = b.
    fn equal(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// mask ? yes : no.
    fn select(self, mask: Self::Mask, yes: Self::Vector, no: Self::Vector) -> Self::Vector;
    /// The sum over lanes as a tree: lanes 8 apart, then 4, 2, 1.
    fn sum(self, x: Self::Vector) -> f32;
    /// The largest lane by the same tree of [`Simd::max`].
    fn largest(self, x: Self::Vector) -> f32;
}

/// [`Simd::dot_pairs`] lane by lane.
#[inline(always)]
fn model_dot_pairs<S: Simd>(simd: S, a: S::Vector, b: S::Vector, sum: S::Vector) -> S::Vector {
    let mut lanes = [[0.0; LANES]; 3];
    // SAFETY: sixteen lanes lie in each array.
    unsafe {
        for (lanes, x) in lanes.iter_mut().zip([a, b, sum]) {
            simd.store(lanes.as_mut_ptr(), x);
        }
        let [a, b, mut sum] = lanes;
        for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
            *sum = dot_pair(a.to_bits(), b.to_bits(), *sum);
        }
        simd.load(sum.as_ptr())
    }
}

/// [`Simd::pair`] lane by lane.
#[inline(always)]
fn model_pair<S: Simd>(simd: S, even: S::Vector, odd: S::Vector) -> S::Vector {
    let mut lanes = [[0.0; LANES]; 2];
    // SAFETY: sixteen lanes lie in each array.
    unsafe {
        for (lanes, x) in lanes.iter_mut().zip([even, odd]) {
            simd.store(lanes.as_mut_ptr(), x);
        }
        let [mut even, odd] = lanes;
        for (even, odd) in even.iter_mut().zip(odd) {
            let (low, high) = (rounded_term(*even), rounded_term(odd));
            *even = f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16);
        }
        simd.load(even.as_ptr())
    }
}

/// [`Simd::store_terms`] lane by lane.
///
/// # Safety
/// 1. As there.
#[inline(always)]
unsafe fn model_store_terms<S: Simd>(simd: S, to: *mut bf16, x: S::Vector) {
    let mut lanes = [0.0; LANES];
    // SAFETY: sixteen lanes lie in the array, and the caller vouches for as many numbers.
    unsafe {
        simd.store(lanes.as_mut_ptr(), x);
        for (index, lane) in lanes.iter().enumerate() {
            to.add(index).write(rounded_term(*lane));
        }
    }
}

/// x, or zero of its sign where it is subnormal.
fn normal(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

/// One number of [`Simd::pair`].
fn rounded_term(x: f32) -> bf16 {
    bf16::rounded(normal(x))
}

/// One lane of [`Simd::dot_pairs`].
fn dot_pair(a: u32, b: u32, sum: f32) -> f32 {
    let high = |bits: u32| normal(f32::from_bits(bits & 0xffff_0000));
    let low = |bits: u32| normal(f32::from_bits(bits << 16));
    let sum = normal(high(a).mul_add(high(b), normal(sum)));
    normal(low(a).mul_add(low(b), sum))
}

/// Work that can run on any path.
///
/// `run` and everything it calls with `simd` must be `#[inline(always)]`: only what is inlined takes on the path's
/// instructions. So no closures around vector code: where the compiler keeps one out of line, every instruction in it
/// becomes a function call. [`Simd::call`] is the door to a further function of its own.
pub trait Task {
    /// What the work returns.
    type Output;
    /// Does the work on `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction path, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Plain Rust, vectorised by the compiler for the target's baseline.
    Portable = 0,
    /// NEON, which every aarch64 has.
    Neon = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512 = 3,
}

impl Level {
    /// The paths that are compiled for this kind of processor, narrowest first.
    pub const COMPILED: &[Level] = if cfg!(target_arch = "x86_64") {
        &[Level::Portable, Level::Avx2, Level::Avx512]
    } else if cfg!(target_arch = "aarch64") {
        &[Level::Portable, Level::Neon]
    } else {
        &[Level::Portable]
    };

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

/// The widest path of the machine as its number, or [`UNKNOWN`] before the first look.
static DETECTED: AtomicU8 = AtomicU8::new(UNKNOWN);

/// No path has this number.
const UNKNOWN: u8 = u8::MAX;

thread_local! {
    /// The widest path that this thread may use.
    static LIMIT: Cell<Level> = const { Cell::new(Level::Avx512) };
}

/// The widest path this machine has.
#[inline]
pub fn detected() -> Level {
    match DETECTED.load(Ordering::Relaxed) {
        0 => Level::Portable,
        1 => Level::Neon,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Level {
    #[cfg(target_arch = "x86_64")]
    let level = {
        let narrow = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (narrow, wide) {
            (true, true) => Level::Avx512,
            (true, false) => Level::Avx2,
            _ => Level::Portable,
        }
    };
    #[cfg(target_arch = "aarch64")]
    let level = Level::Neon;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let level = Level::Portable;
    DETECTED.store(level as u8, Ordering::Relaxed);
    level
}

/// The path in use on this thread: the machine's widest, or a narrower one set by [`limit`].
#[inline]
pub fn level() -> Level {
    detected().min(LIMIT.get())
}

/// From now on uses no path wider than `widest` in what this thread dispatches, and says which it will be.
///
/// For tests and measurements. Threads of a pool have a limit of their own each.
pub fn limit(widest: Level) -> Level {
    LIMIT.set(widest);
    level()
}

/// Runs `task` on the path in use.
pub fn dispatch<T: Task>(task: T) -> T::Output {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` is at most what `detect` found, so every feature the token stands for is there.
        Level::Avx512 => unsafe { avx512::Avx512::<false>::assume() }.call(task),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above, for AVX2 and FMA.
        Level::Avx2 => unsafe { avx2::Avx2::assume() }.call(task),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::Neon.call(task),
        _ => Portable.call(task),
    }
}

/// Whether [`Simd::dot_pairs`] is an instruction of this machine that this thread may use.
pub fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_instruction = is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let has_instruction = false;
    has_instruction && level() == Level::Avx512
}

/// Runs `task` on the path in use, with the instruction for [`Simd::dot_pairs`] where [`has_pairs`].
pub fn dispatch_pairs<T: Task>(task: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    if has_pairs() {
        // SAFETY: `has_pairs` has found what the token stands for: AVX-512 by the level, and AVX512-BF16.
        return unsafe { avx512::Avx512::<true>::assume() }.call(task);
    }
    dispatch(task)
}
