//! What an experiment can see before it is run: the power of the paired t-test, and Holm's correction for several tests.

use super::statistics::student_quantile;

/// Steps of the integral over the standard deviation that is estimated; Simpson's rule is exact to ten digits with these.
const STEPS: usize = 1000;

/// Largest effect that is looked for, in standard deviations of a difference.
const MOST_EFFECT: f64 = 1e4;

/// The probability that the two-sided paired t-test of `count` seeds finds p below `level` where the true difference is
/// `effect` standard deviations of a difference between seeds: from the noncentral t distribution.
///
/// # Panics
/// With fewer than two seeds, which test nothing.
pub fn power(effect: f64, count: usize, level: f64) -> f64 {
    power_beyond(critical_value(count, level), effect, count)
}

/// The t beyond which the test of `count` seeds finds p below `level`.
fn critical_value(count: usize, level: f64) -> f64 {
    assert!(count >= 2, "a test needs two seeds");
    student_quantile(1.0 - 0.5 * level, count as f64 - 1.0)
}

fn power_beyond(critical: f64, effect: f64, count: usize) -> f64 {
    let freedom = count as f64 - 1.0;
    let shift = effect * (count as f64).sqrt();
    // T = (Z + shift) / U, where U² is a mean of `freedom` squares: given U, it is a normal distribution.
    let beyond = |u: f64| normal(shift - critical * u) + normal(-critical * u - shift);
    let most = 1.0 + 9.0 / freedom.sqrt();
    let step = most / STEPS as f64;
    let (mut sum, mut weights) = (0.0, 0.0);
    for at in 0..=STEPS {
        let u = at as f64 * step;
        let simpson = match at {
            0 | STEPS => 1.0,
            at if at % 2 == 1 => 4.0,
            _ => 2.0,
        };
        // Unnormalised: the sum of the weights takes the place of the gamma function.
        let log_density = match freedom {
            1.0 => -0.5 * u * u,
            _ => (freedom - 1.0) * u.ln() - 0.5 * freedom * (u * u - 1.0),
        };
        let weight = simpson * log_density.exp();
        sum += weight * beyond(u);
        weights += weight;
    }
    sum / weights
}

/// The smallest effect, in standard deviations of a difference between seeds, that the two-sided paired t-test of `count` seeds
/// finds at `level` with probability `wanted`.
///
/// # Panics
/// As [`power`].
pub fn detectable_effect(count: usize, level: f64, wanted: f64) -> f64 {
    let critical = critical_value(count, level);
    let (mut low, mut high) = (0.0, 1.0);
    while power_beyond(critical, high, count) < wanted && high < MOST_EFFECT {
        high *= 2.0;
    }
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if power_beyond(critical, middle, count) < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The normal distribution function, to 1.2·10⁻⁷ of the smaller tail: erfc by a Chebyshev fit (Press et al., "Numerical Recipes
/// in C", 1992, §6.2).
fn normal(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 10] = [
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    ];
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let fit = COEFFICIENTS.iter().rev().fold(0.0, |sum, c| sum * t + c);
    let tail = 0.5 * t * (fit - z * z).exp();
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// Holm's adjusted p of several tests, in their order: at most 0.05 where the test holds with all of them decided together
/// (Holm 1979). A test without a p counts among them and holds never.
pub fn holm(p: &[Option<f64>]) -> Vec<Option<f64>> {
    let value = |at: &usize| p[*at].unwrap_or(1.0);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| value(a).total_cmp(&value(b)));
    let mut adjusted = vec![None; p.len()];
    let mut least = 0.0f64;
    for (rank, at) in order.into_iter().enumerate() {
        least = least.max((value(&at) * (p.len() - rank) as f64).min(1.0));
        adjusted[at] = p[at].map(|_| least);
    }
    adjusted
}
