//! Functions that the standard library lacks, in double precision.

/// Σ aᵢ·bᵢ in order, from −0 as the standard library's sums. Called for every element of every product, so a loop and not a
/// chain of adapters, each of which is a call where the units of a crate are optimised apart.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sum = -0.0;
    for (a, b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

/// The error function, to within a few units in the last place.
///
/// Below 3 the series erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!! (Abramowitz and Stegun 1964, 7.1.6), whose terms
/// are all positive; beyond, one minus [`erfc`].
pub(super) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let mut term = a;
        let mut sum = a;
        let mut n = 1.0;
        // All terms are positive and fall once n exceeds a², so the first that no longer counts ends the series.
        while term > sum * 1e-18 {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else {
        1.0 - erfc(a)
    };
    value.copysign(x)
}

/// 1 − erf x without cancellation for large x, by the continued fraction 7.1.14 of the same book.
pub(super) fn erfc(x: f64) -> f64 {
    if x < 3.0 {
        return 1.0 - erf(x);
    }
    let mut fraction = x;
    // From the inside out; at 3, the smallest argument, 60 levels are more than double precision needs.
    for k in (1..=60).rev() {
        fraction = x + 0.5 * f64::from(k) / fraction;
    }
    (-x * x).exp() / (fraction * std::f64::consts::PI.sqrt())
}

/// The logistic function 1 / (1 + e^(−x)), without overflow.
pub(super) fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 {
        1.0 / (1.0 + e)
    } else {
        e / (1.0 + e)
    }
}
