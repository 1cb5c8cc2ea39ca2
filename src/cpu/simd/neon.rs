//! The NEON path of aarch64: a vector is four registers, lanes 0–3, 4–7, 8–11 and 12–15.
//!
//! Every aarch64 has these instructions, multiply-add among them is fused, and so the bits are those of AVX2 and AVX-512.

use std::arch::aarch64::*;

use super::{LANES, Simd, Task};

/// The path that every aarch64 has.
#[derive(Clone, Copy)]
pub struct Neon;

#[inline(never)]
fn enter<T: Task>(simd: Neon, task: T) -> T::Output {
    task.run(simd)
}

type Four = [float32x4_t; 4];
type Mask = [uint32x4_t; 4];

/// Wraps intrinsics that touch no memory: they are there on every aarch64.
macro_rules! instructions {
    ($($body:tt)*) => {{
        // SAFETY: NEON is part of the target's baseline; no memory is touched.
        #[allow(unused_unsafe)]
        unsafe { $($body)* }
    }};
}

/// One instruction on each register of its operands.
macro_rules! each {
    ($instruction:ident($($operand:ident),*)) => {
        instructions!([
            $instruction($($operand[0]),*),
            $instruction($($operand[1]),*),
            $instruction($($operand[2]),*),
            $instruction($($operand[3]),*),
        ])
    };
}

/// 2ⁿ for integers −126 ≤ n ≤ 127.
#[inline(always)]
fn power(n: int32x4_t) -> float32x4_t {
    instructions!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(
        n,
        vdupq_n_s32(127)
    ))))
}

/// Four lanes of [`Simd::scale`]: in two factors, because 2ⁿ alone may not be a normal number.
#[inline(always)]
fn scale4(x: float32x4_t, n: float32x4_t) -> float32x4_t {
    instructions!({
        let n = vcvtnq_s32_f32(n);
        let half = vshrq_n_s32::<1>(n);
        vmulq_f32(vmulq_f32(x, power(half)), power(vsubq_s32(n, half)))
    })
}

/// Four lanes of [`Simd::split`].
#[inline(always)]
fn split4(x: float32x4_t) -> (float32x4_t, float32x4_t) {
    instructions!({
        let small = vcltq_f32(x, vdupq_n_f32(f32::MIN_POSITIVE));
        let lifted = vmulq_f32(x, vdupq_n_f32(16777216.0));
        let bits = vreinterpretq_u32_f32(vbslq_f32(small, lifted, x));
        let biased = vcvtq_f32_u32(vshrq_n_u32::<23>(bits));
        let bias = vbslq_f32(small, vdupq_n_f32(151.0), vdupq_n_f32(127.0));
        let mantissa = vorrq_u32(
            vandq_u32(bits, vdupq_n_u32(0x007f_ffff)),
            vdupq_n_u32(0x3f80_0000),
        );
        (vreinterpretq_f32_u32(mantissa), vsubq_f32(biased, bias))
    })
}

/// a > b ? a : b: the instruction for the larger one makes NaN of either.
#[inline(always)]
fn max4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    instructions!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

/// a < b ? a : b.
#[inline(always)]
fn min4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    instructions!(vbslq_f32(vcltq_f32(a, b), a, b))
}

/// |magnitude| with the sign of `sign`.
#[inline(always)]
fn copy_sign4(magnitude: float32x4_t, sign: float32x4_t) -> float32x4_t {
    instructions!(vbslq_f32(vdupq_n_u32(0x8000_0000), sign, magnitude))
}

/// The transpose of a 4 × 4 block.
#[inline(always)]
fn transpose4(r: Four) -> Four {
    instructions!({
        let even = |a, b| vreinterpretq_f64_f32(vtrn1q_f32(a, b));
        let odd = |a, b| vreinterpretq_f64_f32(vtrn2q_f32(a, b));
        let (a, b) = (even(r[0], r[1]), odd(r[0], r[1]));
        let (c, d) = (even(r[2], r[3]), odd(r[2], r[3]));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(a, c)),
            vreinterpretq_f32_f64(vtrn1q_f64(b, d)),
            vreinterpretq_f32_f64(vtrn2q_f64(a, c)),
            vreinterpretq_f32_f64(vtrn2q_f64(b, d)),
        ]
    })
}

/// Four lanes to two to one: 2 apart, then 1.
macro_rules! tree {
    ($fold:ident, $x:ident) => {
        instructions!({
            // Lanes 8 apart, then 4.
            let x = $fold($fold($x[0], $x[2]), $fold($x[1], $x[3]));
            let x = $fold(x, vextq_f32::<2>(x, x));
            vgetq_lane_f32::<0>($fold(x, vextq_f32::<1>(x, x)))
        })
    };
}

impl Simd for Neon {
    type Vector = Four;
    type Mask = Mask;
    // 20 of 32 registers hold sums and four a vector of B; with six rows the compiler runs out of them.
    const TILE_ROWS: usize = 5;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        enter(self, task)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Four {
        instructions!([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Four {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe {
            [
                vld1q_f32(from),
                vld1q_f32(from.add(4)),
                vld1q_f32(from.add(8)),
                vld1q_f32(from.add(12)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Four {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller vouches for `count` lanes, at most sixteen; the array holds sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            self.load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Four) {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe {
            vst1q_f32(to, x[0]);
            vst1q_f32(to.add(4), x[1]);
            vst1q_f32(to.add(8), x[2]);
            vst1q_f32(to.add(12), x[3]);
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: Four) {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array holds sixteen lanes; the caller vouches for `count`, at most sixteen.
        unsafe {
            self.store(lanes.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            std::arch::asm!(
                "prfm pldl2keep, [{address}]",
                address = in(reg) address,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        for row in (0..LANES).step_by(4) {
            for column in (0..LANES).step_by(4) {
                // SAFETY: the caller vouches for 16 × 16 on both sides; each 4 × 4 block lies inside.
                unsafe {
                    let from = from.add(row * from_stride + column);
                    let to = to.add(column * to_stride + row);
                    let block = transpose4([
                        vld1q_f32(from),
                        vld1q_f32(from.add(from_stride)),
                        vld1q_f32(from.add(2 * from_stride)),
                        vld1q_f32(from.add(3 * from_stride)),
                    ]);
                    for (index, line) in block.into_iter().enumerate() {
                        vst1q_f32(to.add(index * to_stride), line);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Four, b: Four) -> Four {
        each!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Four, b: Four) -> Four {
        each!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Four, b: Four) -> Four {
        each!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Four, b: Four) -> Four {
        each!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Four, b: Four, c: Four) -> Four {
        each!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Four, b: Four, c: Four) -> Four {
        each!(vfmsq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: Four, b: Four) -> Four {
        each!(max4(a, b))
    }
    #[inline(always)]
    fn min(self, a: Four, b: Four) -> Four {
        each!(min4(a, b))
    }
    #[inline(always)]
    fn sqrt(self, x: Four) -> Four {
        each!(vsqrtq_f32(x))
    }
    #[inline(always)]
    fn abs(self, x: Four) -> Four {
        each!(vabsq_f32(x))
    }
    #[inline(always)]
    fn copy_sign(self, magnitude: Four, sign: Four) -> Four {
        each!(copy_sign4(magnitude, sign))
    }
    #[inline(always)]
    fn round(self, x: Four) -> Four {
        each!(vrndnq_f32(x))
    }
    #[inline(always)]
    fn scale(self, x: Four, n: Four) -> Four {
        each!(scale4(x, n))
    }
    #[inline(always)]
    fn split(self, x: Four) -> (Four, Four) {
        let [a, b, c, d] = each!(split4(x));
        ([a.0, b.0, c.0, d.0], [a.1, b.1, c.1, d.1])
    }
    #[inline(always)]
    fn less(self, a: Four, b: Four) -> Mask {
        each!(vcltq_f32(a, b))
    }
    #[inline(always)]
    fn equal(self, a: Four, b: Four) -> Mask {
        each!(vceqq_f32(a, b))
    }
    #[inline(always)]
    fn select(self, mask: Mask, yes: Four, no: Four) -> Four {
        each!(vbslq_f32(mask, yes, no))
    }
    #[inline(always)]
    fn sum(self, x: Four) -> f32 {
        tree!(vaddq_f32, x)
    }
    #[inline(always)]
    fn largest(self, x: Four) -> f32 {
        tree!(max4, x)
    }
}
