//! The portable path: a vector is an array, and the compiler vectorises what its target allows.

use super::{LANES, Simd, Task};

/// The path that every machine has.
#[derive(Clone, Copy)]
pub struct Portable;

type Array = [f32; LANES];

#[inline(never)]
fn enter<T: Task>(simd: Portable, task: T) -> T::Output {
    task.run(simd)
}

#[inline(always)]
fn map(a: Array, f: impl Fn(f32) -> f32) -> Array {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: Array, b: Array, f: impl Fn(f32, f32) -> f32) -> Array {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// a · b + c: fused where the target has the instruction, since the library call for it would be slow.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// 2ⁿ for integers −126 ≤ n ≤ 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

#[inline(always)]
fn tree(mut x: Array, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

impl Simd for Portable {
    type Vector = Array;
    type Mask = [bool; LANES];
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        enter(self, task)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Array {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Array {
        // SAFETY: the caller vouches for sixteen lanes; the read needs no alignment.
        unsafe { from.cast::<Array>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Array {
        let mut x = [0.0; LANES];
        for (i, lane) in x.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` lanes.
            *lane = unsafe { *from.add(i) };
        }
        x
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Array) {
        // SAFETY: the caller vouches for sixteen lanes; the write needs no alignment.
        unsafe { to.cast::<Array>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: Array) {
        for (i, lane) in x.iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` lanes.
            unsafe { *to.add(i) = *lane };
        }
    }
    #[inline(always)]
    fn prefetch(self, _address: *const f32) {}
    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        for i in 0..LANES {
            for j in 0..LANES {
                // SAFETY: the caller vouches for 16 × 16 on both sides.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Array, b: Array, c: Array) -> Array {
        std::array::from_fn(|i| fused(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Array, b: Array, c: Array) -> Array {
        std::array::from_fn(|i| fused(-a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Array, b: Array) -> Array {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Array, b: Array) -> Array {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, x: Array) -> Array {
        map(x, f32::sqrt)
    }
    #[inline(always)]
    fn abs(self, x: Array) -> Array {
        map(x, f32::abs)
    }
    #[inline(always)]
    fn copy_sign(self, magnitude: Array, sign: Array) -> Array {
        zip(magnitude, sign, f32::copysign)
    }
    #[inline(always)]
    fn round(self, x: Array) -> Array {
        // Adding and taking away 1.5 · 2²³ rounds |x| < 2²² to even; larger callers' values are integers already.
        map(x, |x| {
            let magic = 12582912.0;
            if x.abs() < 4194304.0 {
                ((x + magic) - magic).copysign(x)
            } else {
                x.round_ties_even()
            }
        })
    }
    #[inline(always)]
    fn scale(self, x: Array, n: Array) -> Array {
        zip(x, n, |x, n| {
            let n = n as i32;
            let half = n >> 1;
            x * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn split(self, x: Array) -> (Array, Array) {
        let part = |x: f32| {
            let small = x < f32::MIN_POSITIVE;
            let bits = if small { x * 16777216.0 } else { x }.to_bits();
            let bias = if small { 151.0 } else { 127.0 };
            (
                f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000),
                (bits >> 23) as f32 - bias,
            )
        };
        (map(x, |x| part(x).0), map(x, |x| part(x).1))
    }
    #[inline(always)]
    fn less(self, a: Array, b: Array) -> [bool; LANES] {
        std::array::from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn equal(self, a: Array, b: Array) -> [bool; LANES] {
        std::array::from_fn(|i| a[i] == b[i])
    }
    #[inline(always)]
    fn select(self, mask: [bool; LANES], yes: Array, no: Array) -> Array {
        std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn sum(self, x: Array) -> f32 {
        tree(x, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, x: Array) -> f32 {
        tree(x, |a, b| if a > b { a } else { b })
    }
}
