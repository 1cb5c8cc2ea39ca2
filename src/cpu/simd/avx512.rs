//! The AVX-512 path: a vector is one register.

use std::arch::{asm, x86_64::*};

use half::bf16;

use super::{Simd, Task};

/// Proof that the machine has AVX-512 F, BW, DQ and VL, AVX2 and FMA; with `PAIRS`, that it has AVX512-BF16 too.
#[derive(Clone, Copy)]
pub struct Avx512<const PAIRS: bool>(());

impl<const PAIRS: bool> Avx512<PAIRS> {
    /// Makes the proof.
    ///
    /// # Safety
    /// 1. The machine has AVX-512 F, BW, DQ, VL, AVX2 and FMA; 2. with `PAIRS`, AVX512-BF16.
    pub unsafe fn assume() -> Self {
        Self(())
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn enter<T: Task, const PAIRS: bool>(simd: Avx512<PAIRS>, task: T) -> T::Output {
    task.run(simd)
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn enter_with_pairs<T: Task, const PAIRS: bool>(simd: Avx512<PAIRS>, task: T) -> T::Output {
    task.run(simd)
}

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// [`Simd::mul_add_row`]: the number is read by each multiply-add, whose instruction has room for its address and no index.
///
/// Assembly, here and below, because the compiler neither forms these addresses nor keeps this order: it puts off half of
/// the multiply-adds until their sums no longer fit in registers. For that order the blocks are not `pure`.
///
/// # Safety
/// 1. As there; 2. the machine has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn mul_add_row<const OFFSET: usize, const VECTORS: usize>(
    base: *const f32,
    b: [__m512; VECTORS],
    mut c: [__m512; VECTORS],
) -> [__m512; VECTORS] {
    for (c, b) in c.iter_mut().zip(b) {
        // SAFETY: the caller vouches for the number that is read; nothing is written.
        unsafe {
            asm!(
                "vfmadd231ps {c}, {b}, dword ptr [{base} + {offset}]{{1to16}}",
                c = inout(zmm_reg) *c,
                b = in(zmm_reg) b,
                base = in(reg) base,
                offset = const size_of::<f32>() * OFFSET,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
    c
}

/// [`Simd::mul_add_row_after`]: the number is read once, into a register.
///
/// # Safety
/// 1. As there; 2. the machine has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn mul_add_row_after<const OFFSET: usize, const VECTORS: usize>(
    base: *const f32,
    stride: usize,
    b: [__m512; VECTORS],
    mut c: [__m512; VECTORS],
) -> [__m512; VECTORS] {
    let factor: __m512;
    // SAFETY: the caller vouches for the number that is read; nothing is written.
    unsafe {
        asm!(
            "vbroadcastss {factor}, dword ptr [{base} + {stride} + {offset}]",
            factor = lateout(zmm_reg) factor,
            base = in(reg) base,
            stride = in(reg) stride,
            offset = const size_of::<f32>() * OFFSET,
            options(readonly, nostack, preserves_flags),
        );
    }
    for (c, b) in c.iter_mut().zip(b) {
        // SAFETY: registers only.
        unsafe {
            asm!(
                "vfmadd231ps {c}, {b}, {factor}",
                c = inout(zmm_reg) *c,
                b = in(zmm_reg) b,
                factor = in(zmm_reg) factor,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
    c
}

/// Wraps intrinsics that are safe wherever the token exists.
macro_rules! instructions {
    ($($body:tt)*) => {
        // SAFETY: the token `self` proves that the machine has the instruction; no memory is touched.
        unsafe { $($body)* }
    };
}

/// The same bits as pairs of bf16 numbers.
#[inline(always)]
fn pairs(x: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes of which any bits are a value.
    unsafe { std::mem::transmute(x) }
}

/// Sixteen numbers rounded to bf16 by the instruction for it, which makes zeros of subnormal numbers.
///
/// # Safety
/// 1. The machine has AVX512-BF16.
#[inline(always)]
unsafe fn rounded(x: __m512) -> __m256i {
    // SAFETY: the caller vouches for the instruction; both types are 32 bytes of which any bits are a value.
    unsafe { std::mem::transmute(_mm512_cvtneps_pbh(x)) }
}

/// Sixteen bf16 numbers in f32.
///
/// # Safety
/// 1. The machine has AVX-512 F.
#[inline(always)]
unsafe fn widen(x: __m256i) -> __m512 {
    // SAFETY: the caller vouches for the instructions.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))) }
}

/// Sixteen numbers rounded to bf16. In integers and not by `vcvtneps2bf16`, which makes zeros of subnormal numbers.
///
/// # Safety
/// 1. The machine has AVX-512 F.
#[inline(always)]
unsafe fn narrow(x: __m512) -> __m256i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let kept = _mm512_mask_blend_epi32(is_nan, _mm512_add_epi32(bits, bias), quiet);
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept))
    }
}

impl<const PAIRS: bool> Simd for Avx512<PAIRS> {
    type Vector = __m512;
    type Mask = __mmask16;
    const TILE_ROWS: usize = 14;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the token proves the features that the function is compiled for.
        unsafe {
            if PAIRS {
                enter_with_pairs(self, task)
            } else {
                enter(self, task)
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        instructions!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn mul_add_row<const OFFSET: usize, const VECTORS: usize>(
        self,
        base: *const f32,
        b: [__m512; VECTORS],
        c: [__m512; VECTORS],
    ) -> [__m512; VECTORS] {
        // SAFETY: the caller vouches for the number; the token for the instruction.
        unsafe { mul_add_row::<OFFSET, VECTORS>(base, b, c) }
    }
    #[inline(always)]
    unsafe fn mul_add_row_after<const OFFSET: usize, const VECTORS: usize>(
        self,
        base: *const f32,
        stride: usize,
        b: [__m512; VECTORS],
        c: [__m512; VECTORS],
    ) -> [__m512; VECTORS] {
        // SAFETY: the caller vouches for the number; the token for the instructions.
        unsafe { mul_add_row_after::<OFFSET, VECTORS>(base, stride, b, c) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the range; the token for the instruction.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m512 {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: the caller vouches for the range.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: __m512) {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(to, first(count), x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: the caller vouches for the range.
        unsafe { widen(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const bf16, count: usize) -> __m512 {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe { widen(_mm256_maskz_loadu_epi16(first(count), from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: __m512) {
        // SAFETY: the caller vouches for the range.
        unsafe { _mm256_storeu_si256(to.cast(), narrow(x)) }
    }
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut bf16, count: usize, x: __m512) {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe { _mm256_mask_storeu_epi16(to.cast(), first(count), narrow(x)) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, even: *const bf16, odd: *const bf16, count: usize) -> __m512 {
        // SAFETY: the caller vouches for `count` lanes; masked lanes are not touched.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), even.cast()));
            if odd.is_null() {
                return _mm512_castsi512_ps(low);
            }
            let high = _mm512_castps_si512(self.load_first_bf16(odd, count));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        if PAIRS {
            instructions!(_mm512_dpbf16_ps(sum, pairs(a), pairs(b)))
        } else {
            super::model_dot_pairs(self, a, b, sum)
        }
    }
    #[inline(always)]
    fn pair(self, even: __m512, odd: __m512) -> __m512 {
        if !PAIRS {
            return super::model_pair(self, even, odd);
        }
        instructions!({
            let low = _mm512_cvtepu16_epi32(rounded(even));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded(odd)));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        })
    }
    #[inline(always)]
    unsafe fn store_terms(self, to: *mut bf16, x: __m512) {
        // SAFETY: the caller vouches for the range, and `PAIRS` for the instruction.
        unsafe {
            if PAIRS {
                _mm256_storeu_si256(to.cast(), rounded(x));
            } else {
                super::model_store_terms(self, to, x);
            }
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
        // SAFETY: the caller vouches for sixteen rows on both sides; the token for the instructions.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * from_stride));
            }
            // Pairs of rows, then pairs of pairs: every 128-bit lane becomes a transposed 4 × 4 block.
            let mut t = r;
            for i in (0..16).step_by(2) {
                t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
                t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
            }
            for i in (0..16).step_by(4) {
                r[i] = _mm512_shuffle_ps::<0x44>(t[i], t[i + 2]);
                r[i + 1] = _mm512_shuffle_ps::<0xee>(t[i], t[i + 2]);
                r[i + 2] = _mm512_shuffle_ps::<0x44>(t[i + 1], t[i + 3]);
                r[i + 3] = _mm512_shuffle_ps::<0xee>(t[i + 1], t[i + 3]);
            }
            // Then the 4 × 4 grid of those blocks is transposed.
            for i in 0..4 {
                t[i] = _mm512_shuffle_f32x4::<0x88>(r[i], r[i + 4]);
                t[i + 4] = _mm512_shuffle_f32x4::<0xdd>(r[i], r[i + 4]);
                t[i + 8] = _mm512_shuffle_f32x4::<0x88>(r[i + 8], r[i + 12]);
                t[i + 12] = _mm512_shuffle_f32x4::<0xdd>(r[i + 8], r[i + 12]);
            }
            for i in 0..4 {
                r[i] = _mm512_shuffle_f32x4::<0x88>(t[i], t[i + 8]);
                r[i + 4] = _mm512_shuffle_f32x4::<0x88>(t[i + 4], t[i + 12]);
                r[i + 8] = _mm512_shuffle_f32x4::<0xdd>(t[i], t[i + 8]);
                r[i + 12] = _mm512_shuffle_f32x4::<0xdd>(t[i + 4], t[i + 12]);
            }
            for (i, row) in r.iter().enumerate() {
                _mm512_storeu_ps(to.add(i * to_stride), *row);
            }
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        instructions!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        instructions!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        instructions!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        instructions!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        instructions!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        instructions!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        instructions!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        instructions!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, x: __m512) -> __m512 {
        instructions!(_mm512_sqrt_ps(x))
    }
    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        instructions!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn copy_sign(self, magnitude: __m512, sign: __m512) -> __m512 {
        instructions!({
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign))
        })
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        instructions!(_mm512_roundscale_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(x))
    }
    #[inline(always)]
    fn scale(self, x: __m512, n: __m512) -> __m512 {
        instructions!(_mm512_scalef_ps(x, n))
    }
    #[inline(always)]
    fn split(self, x: __m512) -> (__m512, __m512) {
        instructions!((
            _mm512_getmant_ps::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_SRC>(x),
            _mm512_getexp_ps(x)
        ))
    }
    #[inline(always)]
    fn less(self, a: __m512, b: __m512) -> __mmask16 {
        instructions!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn equal(self, a: __m512, b: __m512) -> __mmask16 {
        instructions!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        instructions!(_mm512_mask_blend_ps(mask, no, yes))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        instructions!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::sum8(x)
        })
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        instructions!({
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::largest8(x)
        })
    }
}
