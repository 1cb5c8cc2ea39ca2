//! What a handful of seeds can say: means with confidence intervals, and the paired test.

use std::collections::BTreeMap;
use std::sync::RwLock;

use serde::{Deserialize, Serialize};

use super::power::detectable_effect;

/// The p below which a difference is said to show.
pub const LEVEL: f64 = 0.05;

/// How often an effect of the size that is called detectable shows.
pub const POWER: f64 = 0.8;

/// A mean over seeds with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Number of values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Half the width of the interval by Student's distribution; nothing for fewer than two values.
    pub half_width: Option<f64>,
}

/// The result of a paired t-test, two-sided.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedTest {
    /// The differences' mean and interval.
    pub difference: Interval,
    /// The probability of a difference at least as large were there none; nothing where the differences are all equal, but for
    /// rounding, or fewer than two.
    pub p: Option<f64>,
    /// The smallest true difference that would have been found at p < 0.05 four times in five, were the differences spread as
    /// they are; nothing where there is no p.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectable: Option<f64>,
}

/// The mean of `values` and its interval.
pub fn interval(values: &[f64]) -> Interval {
    let count = values.len();
    let mean = values.iter().sum::<f64>() / count.max(1) as f64;
    let half_width = standard_error(values, mean)
        .map(|error| student_quantile(0.975, count as f64 - 1.0) * error);
    Interval {
        count,
        mean,
        half_width,
    }
}

/// The standard error of the mean; nothing for fewer than two values.
fn standard_error(values: &[f64], mean: f64) -> Option<f64> {
    let count = values.len() as f64;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (values.len() >= 2).then(|| (squares / (count - 1.0) / count).sqrt())
}

/// Whether `a` and `b`, measured on the same seeds in the same order, differ: Student's test on the differences a − b.
///
/// # Panics
/// When there are not as many values of one as of the other.
pub fn paired_test(a: &[f64], b: &[f64]) -> PairedTest {
    assert_eq!(a.len(), b.len(), "pairs need both values");
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let difference = interval(&differences);
    // Equal differences of shares differ in their last bits.
    let largest = a.iter().chain(b).fold(0.0f64, |most, x| most.max(x.abs()));
    let error = standard_error(&differences, difference.mean)
        .filter(|error| *error > 4.0 * f64::EPSILON * largest);
    let count = differences.len();
    PairedTest {
        difference,
        p: error.map(|error| {
            let freedom = count as f64 - 1.0;
            2.0 * (1.0 - student_probability((difference.mean / error).abs(), freedom))
        }),
        detectable: error.map(|error| detectable_deviations(count) * error * (count as f64).sqrt()),
    }
}

/// Values of which those with the same name hang together, such as answers about one image: how many, their mean, and the
/// standard error of the mean with the number of names.
fn clustered<'a>(
    values: impl Iterator<Item = (&'a str, f64)> + Clone,
) -> (usize, f64, Option<f64>, usize) {
    let count = values.clone().count();
    let mean = values.clone().map(|(_, x)| x).sum::<f64>() / count.max(1) as f64;
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, x) in values {
        *sums.entry(name).or_default() += x - mean;
    }
    let clusters = sums.len();
    let squares: f64 = sums.values().map(|sum| sum * sum).sum();
    let of_few = clusters as f64 / (clusters as f64 - 1.0);
    let error = (clusters >= 2).then(|| (of_few * squares).sqrt() / count as f64);
    (count, mean, error, clusters)
}

/// The mean of named values and its interval, with the values of one name as one draw: their deviations are added before they
/// are squared (Liang and Zeger 1986; for benchmarks Miller 2024). Where every name has one value it is [`interval`].
pub fn clustered_interval<'a>(values: impl Iterator<Item = (&'a str, f64)> + Clone) -> Interval {
    let (count, mean, error, clusters) = clustered(values);
    let half_width = error.map(|error| student_quantile(0.975, clusters as f64 - 1.0) * error);
    Interval {
        count,
        mean,
        half_width,
    }
}

/// Whether named differences are other than 0 on average, with those of one name as one draw.
pub fn clustered_test<'a>(differences: impl Iterator<Item = (&'a str, f64)> + Clone) -> PairedTest {
    let difference = clustered_interval(differences.clone());
    let (_, mean, error, clusters) = clustered(differences);
    let error = error.filter(|error| *error > 4.0 * f64::EPSILON);
    PairedTest {
        difference,
        p: error.map(|error| {
            let freedom = clusters as f64 - 1.0;
            2.0 * (1.0 - student_probability((mean / error).abs(), freedom))
        }),
        detectable: error
            .map(|error| detectable_deviations(clusters) * error * (clusters as f64).sqrt()),
    }
}

/// What `count` seeds find at [`LEVEL`] with [`POWER`], in standard deviations of a difference. Tables ask for the same few
/// counts again and again.
fn detectable_deviations(count: usize) -> f64 {
    static KNOWN: RwLock<BTreeMap<usize, f64>> = RwLock::new(BTreeMap::new());
    if let Some(known) = KNOWN.read().expect("no holder panics").get(&count) {
        return *known;
    }
    let new = detectable_effect(count, LEVEL, POWER);
    KNOWN.write().expect("no holder panics").insert(count, new);
    new
}

/// P(T ≤ t) of Student's distribution with `freedom` degrees, t ≥ 0.
fn student_probability(t: f64, freedom: f64) -> f64 {
    let x = freedom / (freedom + t * t);
    1.0 - 0.5 * incomplete_beta(x, 0.5 * freedom, 0.5)
}

/// The t at which P(T ≤ t) is `probability`, above one half, by bisection.
pub fn student_quantile(probability: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while student_probability(high, freedom) < probability {
        high *= 2.0;
    }
    // By bisection: the distribution function has no closed inverse, and 200 halvings end at the last bit from any
    // start.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if student_probability(middle, freedom) < probability {
            low = middle
        } else {
            high = middle
        }
    }
    0.5 * (low + high)
}

/// ln Γ(x) for x > 0 (Lanczos 1964, with the coefficients of Godfrey for g = 7).
fn log_gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 8] = [
        676.5203681218851,
        -1259.1392167224028,
        771.32342877765313,
        -176.61502916214059,
        12.507343278686905,
        -0.13857109526572012,
        9.9843695780195716e-6,
        1.5056327351493116e-7,
    ];
    if x < 0.5 {
        let sine = (std::f64::consts::PI * x).sin();
        return (std::f64::consts::PI / sine).ln() - log_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let mut sum = 0.99999999999980993;
    for (index, coefficient) in COEFFICIENTS.iter().enumerate() {
        sum += coefficient / (x + index as f64 + 1.0);
    }
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (Abramowitz and Stegun, 26.5.8) in the
/// form of Lentz 1976.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast below the mean; above it the mirrored one does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front =
        (log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp() / a;
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    // Lentz's method for the continued fraction of the incomplete beta function; `away` keeps its two ratios from
    // dividing by zero.
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away(1.0 + even * d);
        c = away(1.0 + even / c);
        fraction *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away(1.0 + odd * d);
        c = away(1.0 + odd / c);
        fraction *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    front * fraction
}
