//! The AVX2 path: a vector is two registers, lanes 0–7 and 8–15.

use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, Simd, Task};

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// Makes the proof.
    ///
    /// # Safety
    /// 1. The machine has AVX2 and FMA.
    pub unsafe fn assume() -> Self {
        Self(())
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn enter<T: Task>(simd: Avx2, task: T) -> T::Output {
    task.run(simd)
}

/// Lane masks: sixteen ones, then sixteen zeros; a window starting at 16 − n has n ones.
static WINDOW: [i32; 32] = {
    let mut window = [0; 32];
    let mut i = 0;
    while i < 16 {
        window[i] = -1;
        i += 1;
    }
    window
};

/// The sum of eight lanes: 4 apart, then 2, then 1.
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn sum8(x: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

/// The largest of eight lanes by the same tree.
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn largest8(x: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

/// The lane masks of the first `count` of sixteen lanes.
///
/// # Safety
/// 1. The machine has AVX2; 2. `count <= 16`.
#[inline(always)]
unsafe fn first(count: usize) -> [__m256i; 2] {
    debug_assert!(count <= 16);
    // SAFETY: a window of sixteen starts at 16 − count, which lies in 0..=16 of 32 entries.
    unsafe {
        let start = WINDOW.as_ptr().add(16 - count);
        [
            _mm256_loadu_si256(start.cast()),
            _mm256_loadu_si256(start.add(8).cast()),
        ]
    }
}

/// Wraps intrinsics that are safe wherever the token exists.
macro_rules! instructions {
    ($($body:tt)*) => {
        // SAFETY: the token `self` proves that the machine has the instruction; no memory is touched.
        unsafe { $($body)* }
    };
}

/// 2ⁿ for integers −126 ≤ n ≤ 127.
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
unsafe fn power(n: __m256i) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            n,
            _mm256_set1_epi32(127),
        )))
    }
}

/// Eight lanes of [`Simd::scale`].
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
unsafe fn scale8(x: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        _mm256_mul_ps(
            _mm256_mul_ps(x, power(half)),
            power(_mm256_sub_epi32(n, half)),
        )
    }
}

/// Eight lanes of [`Simd::split`].
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
unsafe fn split8(x: __m256) -> (__m256, __m256) {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let small = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(f32::MIN_POSITIVE));
        let lifted = _mm256_mul_ps(x, _mm256_set1_ps(16777216.0));
        let bits = _mm256_castps_si256(_mm256_blendv_ps(x, lifted, small));
        let biased = _mm256_cvtepi32_ps(_mm256_srli_epi32::<23>(bits));
        let bias = _mm256_blendv_ps(_mm256_set1_ps(127.0), _mm256_set1_ps(151.0), small);
        let mantissa = _mm256_or_si256(
            _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff)),
            _mm256_set1_epi32(0x3f80_0000),
        );
        (_mm256_castsi256_ps(mantissa), _mm256_sub_ps(biased, bias))
    }
}

/// Eight lanes of [`Simd::copy_sign`].
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
unsafe fn copy_sign8(magnitude: __m256, sign: __m256) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let bit = _mm256_set1_ps(-0.0);
        _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign))
    }
}

/// Eight bf16 numbers in f32.
///
/// # Safety
/// 1. The machine has AVX2; 2. `from..from + 8` is readable.
#[inline(always)]
unsafe fn widen8(from: *const bf16) -> __m256 {
    // SAFETY: the caller's contract.
    unsafe {
        let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
}

/// Eight numbers rounded to bf16, one in each 32 bits.
///
/// # Safety
/// 1. The machine has AVX2.
#[inline(always)]
unsafe fn narrow8(x: __m256) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let kept = _mm256_blendv_epi8(_mm256_add_epi32(bits, bias), quiet, is_nan);
        _mm256_srli_epi32::<16>(kept)
    }
}

type Pair = [__m256; 2];

impl Simd for Avx2 {
    type Vector = Pair;
    type Mask = Pair;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the token proves the features that `enter` is compiled for.
        unsafe { enter(self, task) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        instructions!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Pair {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Pair {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe {
            let mask = first(count);
            [
                _mm256_maskload_ps(from, mask[0]),
                _mm256_maskload_ps(from.wrapping_add(8), mask[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Pair) {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: Pair) {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe {
            let mask = first(count);
            _mm256_maskstore_ps(to, mask[0], x[0]);
            _mm256_maskstore_ps(to.wrapping_add(8), mask[1], x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Pair {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe { [widen8(from), widen8(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const bf16, count: usize) -> Pair {
        debug_assert!(count <= LANES);
        let mut lanes = [bf16::ZERO; LANES];
        // SAFETY: the caller vouches for `count` lanes, and the array holds sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            self.load_bf16(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: Pair) {
        // SAFETY: the caller vouches for sixteen lanes. The pack works on each half of its registers, which the permutation
        // puts in order.
        unsafe {
            let packed = _mm256_packus_epi32(narrow8(x[0]), narrow8(x[1]));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0xd8>(packed));
        }
    }
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut bf16, count: usize, x: Pair) {
        debug_assert!(count <= LANES);
        let mut lanes = [bf16::ZERO; LANES];
        // SAFETY: the caller vouches for `count` lanes, and the array holds sixteen.
        unsafe {
            self.store_bf16(lanes.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch of any address is harmless; every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: the caller vouches for 16 × 16 on both sides; each quarter lies inside.
            unsafe {
                let from = from.add(row * from_stride + column);
                let to = to.add(column * to_stride + row);
                let mut r = [_mm256_setzero_ps(); 8];
                for (i, lane) in r.iter_mut().enumerate() {
                    *lane = _mm256_loadu_ps(from.add(i * from_stride));
                }
                let mut t = r;
                for i in (0..8).step_by(2) {
                    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
                }
                for i in (0..8).step_by(4) {
                    r[i] = _mm256_shuffle_ps::<0x44>(t[i], t[i + 2]);
                    r[i + 1] = _mm256_shuffle_ps::<0xee>(t[i], t[i + 2]);
                    r[i + 2] = _mm256_shuffle_ps::<0x44>(t[i + 1], t[i + 3]);
                    r[i + 3] = _mm256_shuffle_ps::<0xee>(t[i + 1], t[i + 3]);
                }
                for i in 0..4 {
                    let low = _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]);
                    let high = _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]);
                    _mm256_storeu_ps(to.add(i * to_stride), low);
                    _mm256_storeu_ps(to.add((i + 4) * to_stride), high);
                }
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        instructions!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        instructions!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        instructions!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        instructions!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        instructions!([
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1])
        ])
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        instructions!([
            _mm256_fnmadd_ps(a[0], b[0], c[0]),
            _mm256_fnmadd_ps(a[1], b[1], c[1])
        ])
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        instructions!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        instructions!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sqrt(self, x: Pair) -> Pair {
        instructions!([_mm256_sqrt_ps(x[0]), _mm256_sqrt_ps(x[1])])
    }
    #[inline(always)]
    fn abs(self, x: Pair) -> Pair {
        instructions!({
            let bit = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(bit, x[0]), _mm256_andnot_ps(bit, x[1])]
        })
    }
    #[inline(always)]
    fn copy_sign(self, magnitude: Pair, sign: Pair) -> Pair {
        instructions!([
            copy_sign8(magnitude[0], sign[0]),
            copy_sign8(magnitude[1], sign[1])
        ])
    }
    #[inline(always)]
    fn round(self, x: Pair) -> Pair {
        instructions!([
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x[0]),
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x[1])
        ])
    }
    #[inline(always)]
    fn scale(self, x: Pair, n: Pair) -> Pair {
        // Two factors, because 2ⁿ alone may not be a normal number; the first product is exact for the callers' x.
        instructions!([scale8(x[0], n[0]), scale8(x[1], n[1])])
    }
    #[inline(always)]
    fn split(self, x: Pair) -> (Pair, Pair) {
        instructions!({
            let (low, high) = (split8(x[0]), split8(x[1]));
            ([low.0, high.0], [low.1, high.1])
        })
    }
    #[inline(always)]
    fn less(self, a: Pair, b: Pair) -> Pair {
        instructions!([
            _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]),
            _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])
        ])
    }
    #[inline(always)]
    fn equal(self, a: Pair, b: Pair) -> Pair {
        instructions!([
            _mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0]),
            _mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1])
        ])
    }
    #[inline(always)]
    fn select(self, mask: Pair, yes: Pair, no: Pair) -> Pair {
        instructions!([
            _mm256_blendv_ps(no[0], yes[0], mask[0]),
            _mm256_blendv_ps(no[1], yes[1], mask[1])
        ])
    }
    #[inline(always)]
    fn sum(self, x: Pair) -> f32 {
        instructions!(sum8(_mm256_add_ps(x[0], x[1])))
    }
    #[inline(always)]
    fn largest(self, x: Pair) -> f32 {
        instructions!(largest8(_mm256_max_ps(x[0], x[1])))
    }
}
