//! Elementary functions of sixteen lanes, for kernels written over [`Simd`].
//!
//! Errors against f64 over dense sweeps, as `verify/cpu_math` holds them: [`exp`] and [`log`] stay within 1.5 ulp,
//! [`tanh`] and [`sine_cosine`] within 2 (the latter for |x| ≤ 2¹³, and absolutely within 2⁻²⁹ near a zero), [`sigmoid`]
//! within 3, subnormal results included; [`normal`] within 4, and within 8 in its tail, where a path without fused
//! multiply-add is only as good as the rounding of x². NaN goes in and comes out.

use crate::simd::Simd;

/// ln 2 = high + low; the high part has 9 significant bits.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Evaluates c₀ + c₁x + … by Horner's rule, the coefficients in that order.
#[inline(always)]
pub fn polynomial<S: Simd, const N: usize>(
    simd: S,
    x: S::Vector,
    coefficients: [f32; N],
) -> S::Vector {
    let mut sum = simd.splat(coefficients[N - 1]);
    for &coefficient in coefficients[..N - 1].iter().rev() {
        sum = simd.mul_add(sum, x, simd.splat(coefficient));
    }
    sum
}

/// eˣ; 0 below about −104, ∞ above about 88.7.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    // The second operand survives when it is NaN.
    let x = simd.max(simd.splat(-104.5), simd.min(simd.splat(89.0), x));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    // x − n · ln 2, ln 2 in two parts, the first short enough for an exact product without a fused multiply-add.
    let r = simd.neg_mul_add(n, simd.splat(LN_2_HIGH), x);
    let r = simd.neg_mul_add(n, simd.splat(LN_2_LOW), r);
    let p = polynomial(
        simd,
        r,
        [
            0.499_999_94,
            0.166_665_2,
            0.041_668_393,
            8.368_781e-3,
            1.381_446_7e-3,
        ],
    );
    let p = simd.mul_add(simd.mul(r, r), p, r);
    simd.scale(simd.add(p, simd.splat(1.0)), n)
}

/// ln x; −∞ at 0, NaN below.
#[inline(always)]
pub fn log<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let (m, e) = simd.split(x);
    let one = simd.splat(1.0);
    // m into [√½, √2).
    let large = simd.less(simd.splat(std::f32::consts::SQRT_2), m);
    let m = simd.select(large, simd.mul(m, simd.splat(0.5)), m);
    let e = simd.select(large, simd.add(e, one), e);
    let f = simd.sub(m, one);
    // ln(1 + f) = f − f²/2 + f³ p(f), the coefficients of Cephes' logf.
    let p = polynomial(
        simd,
        f,
        [
            3.333_333_1e-1,
            -2.499_999_4e-1,
            2.000_071_4e-1,
            -1.666_805_7e-1,
            1.424_932_3e-1,
            -1.242_014_1e-1,
            1.167_699_9e-1,
            -1.151_461e-1,
            7.037_683_6e-2,
        ],
    );
    let square = simd.mul(f, f);
    let y = simd.mul(simd.mul(square, f), p);
    let y = simd.mul_add(e, simd.splat(LN_2_LOW), y);
    let y = simd.neg_mul_add(simd.splat(0.5), square, y);
    let y = simd.mul_add(e, simd.splat(LN_2_HIGH), simd.add(f, y));
    let zero = simd.splat(0.0);
    let infinity = simd.splat(f32::INFINITY);
    let y = simd.select(simd.equal(x, infinity), infinity, y);
    let y = simd.select(simd.equal(x, zero), simd.splat(f32::NEG_INFINITY), y);
    let y = simd.select(simd.less(x, zero), simd.splat(f32::NAN), y);
    simd.select(simd.equal(x, x), y, x)
}

/// e^(−|x|), the numerator of the sigmoid on its small side.
#[inline(always)]
pub(super) fn exp_minus_magnitude<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    exp(simd, simd.sub(simd.splat(0.0), simd.abs(x)))
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    sigmoid_and_slope(simd, x).0
}

/// The sigmoid σ and its slope σ(1 − σ), without cancellation on either side.
#[inline(always)]
pub fn sigmoid_and_slope<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    let one = simd.splat(1.0);
    let e = exp_minus_magnitude(simd, x);
    let reciprocal = simd.div(one, simd.add(one, e));
    let small = simd.mul(e, reciprocal);
    let sigmoid = simd.select(simd.less(x, simd.splat(0.0)), small, reciprocal);
    (sigmoid, simd.mul(small, reciprocal))
}

/// tanh x.
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let t = simd.abs(x);
    let one = simd.splat(1.0);
    // Near zero x + x³ p(x²), the coefficients of Cephes' tanhf; beyond (1 − e⁻²ᵗ) / (1 + e⁻²ᵗ).
    let square = simd.mul(x, x);
    let p = polynomial(
        simd,
        square,
        [
            -3.333_328_2e-1,
            1.333_144_3e-1,
            -5.373_972e-2,
            2.063_903_6e-2,
            -5.704_988_7e-3,
        ],
    );
    let near = simd.mul_add(simd.mul(square, p), x, x);
    let e = exp(simd, simd.mul(simd.splat(-2.0), t));
    let far = simd.div(simd.sub(one, e), simd.add(one, e));
    let y = simd.select(
        simd.less(t, simd.splat(0.625)),
        near,
        simd.copy_sign(far, x),
    );
    simd.select(simd.equal(x, x), y, x)
}

/// (sin x, cos x) for |x| ≤ 2¹³; the error grows beyond.
#[inline(always)]
pub fn sine_cosine<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::FRAC_2_PI)));
    // x − n · π/2, π/2 in three parts, the first two short enough for exact products (Cephes' sinf).
    let r = simd.neg_mul_add(n, simd.splat(1.570_312_5), x);
    let r = simd.neg_mul_add(n, simd.splat(4.837_513e-4), r);
    let r = simd.neg_mul_add(n, simd.splat(7.549_79e-8), r);
    let square = simd.mul(r, r);
    let s = polynomial(
        simd,
        square,
        [-1.666_665_5e-1, 8.332_161e-3, -1.951_529_6e-4],
    );
    let sine = simd.mul_add(simd.mul(square, r), s, r);
    let c = polynomial(
        simd,
        square,
        [4.166_664_6e-2, -1.388_731_6e-3, 2.443_315_7e-5],
    );
    let c = simd.mul(simd.mul(square, square), c);
    let cosine = simd.add(
        simd.neg_mul_add(simd.splat(0.5), square, simd.splat(1.0)),
        c,
    );
    // The quadrant n mod 4 from halves: odd quadrants swap, quadrants 2 and 3 negate the sine, 1 and 2 the cosine.
    let half = simd.mul(n, simd.splat(0.5));
    let even = simd.equal(simd.round(half), half);
    let sine_of = simd.select(even, sine, cosine);
    let cosine_of = simd.select(even, cosine, sine);
    let next = simd.add(n, simd.splat(1.0));
    (
        flip_by_quadrant(simd, sine_of, n),
        flip_by_quadrant(simd, cosine_of, next),
    )
}

/// −v where n mod 4 is 2 or 3, v elsewhere.
#[inline(always)]
fn flip_by_quadrant<S: Simd>(simd: S, v: S::Vector, n: S::Vector) -> S::Vector {
    // n − 4 ⌊n/4⌋, the floor of quarters being the nearest integer of n/4 − 3/8.
    let quarter = simd.mul(n, simd.splat(0.25));
    let floor = simd.round(simd.sub(quarter, simd.splat(0.375)));
    let quadrant = simd.neg_mul_add(simd.splat(4.0), floor, n);
    let behind = simd.less(simd.splat(1.5), quadrant);
    simd.select(behind, simd.sub(simd.splat(0.0), v), v)
}

/// (Φ(x), φ(x)): the standard normal distribution function and its density, accurate in the tail.
#[inline(always)]
pub fn normal<S: Simd>(simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
    let t = simd.min(simd.splat(14.5), simd.abs(x));
    // e^(−t²/2), the rounding error of t² carried along.
    let square = simd.mul(t, t);
    let rest = simd.sub(simd.splat(0.0), simd.neg_mul_add(t, t, square));
    let e = exp(simd, simd.mul(simd.splat(-0.5), square));
    let e = simd.neg_mul_add(simd.mul(simd.splat(0.5), rest), e, e);
    // Φ(−t) e^(t²/2) is smooth and falls slowly: a polynomial in (t − 3) / (t + 3), relative error 2⁻²⁶ on [0, 14.5].
    let three = simd.splat(3.0);
    let u = simd.div(simd.sub(t, three), simd.add(t, three));
    let p = polynomial(
        simd,
        u,
        [
            1.215_139_5e-1,
            -2.064_026_1e-1,
            1.232_250_4e-1,
            -4.621_326e-2,
            6.131_942_4e-3,
            2.904_387_4e-3,
            -9.832_882e-4,
            -3.390_128_3e-4,
            1.150_136_6e-4,
            5.316_19e-5,
        ],
    );
    let lower = simd.mul(e, p);
    let upper = simd.sub(simd.splat(1.0), lower);
    let distribution = simd.select(simd.less(x, simd.splat(0.0)), lower, upper);
    // 1 / √2π.
    (distribution, simd.mul(e, simd.splat(0.398_942_3)))
}
