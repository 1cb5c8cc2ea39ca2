//! Elementary functions and row reductions against f64: errors in units in the last place over dense sweeps.

use keel::cpu::vector_math::{self, Activation, rows};

use super::{ROUNDOFF, bits, draw, on_every_path, same_bits_as_widest, with_threads};
use crate::harness::Random;
use keel::cpu::simd::Level;

/// Φ(x) in f64: a series near zero, a continued fraction in the tail (Abramowitz and Stegun 26.2.11, 26.2.14).
fn normal_distribution(x: f64) -> f64 {
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let t = x.abs();
    let fraction = (1..200).rev().fold(t, |f, n| t + f64::from(n) / f);
    let lower = density / fraction;
    if x < 0.0 { lower } else { 1.0 - lower }
}

fn sigmoid_truth(x: f64) -> f64 {
    if x < 0.0 {
        x.exp() / (1.0 + x.exp())
    } else {
        1.0 / (1.0 + (-x).exp())
    }
}

const TANH_SCALE: f64 = 1.595_769_121_605_731;

/// The gate of x · gate(x), its derivative times x, in f64.
fn gate_truth(activation: Activation, x: f64) -> (f64, f64) {
    let gated = |inner: f64, slope: f64| {
        let s = sigmoid_truth(inner);
        let rest = x * s * sigmoid_truth(-inner) * slope;
        (s, if rest.is_nan() { 0.0 } else { rest })
    };
    match activation {
        Activation::Gelu => {
            let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (normal_distribution(x), x * density)
        }
        Activation::GeluTanh => gated(
            TANH_SCALE * (x + 0.044715 * x * x * x),
            TANH_SCALE * (1.0 + 3.0 * 0.044715 * x * x),
        ),
        Activation::QuickGelu => gated(1.702 * x, 1.702),
        Activation::Silu => gated(x, 1.0),
    }
}

pub fn activation_truth(activation: Activation, x: f64) -> f64 {
    x * gate_truth(activation, x).0
}

pub fn slope_truth(activation: Activation, x: f64) -> f64 {
    let (gate, rest) = gate_truth(activation, x);
    gate + rest
}

/// Floats spread evenly over the bit patterns from `low` to `high`, of both signs where `low` is negative.
fn sweep(low: f32, high: f32) -> Vec<f32> {
    let mut values = Vec::new();
    let mut positive = |to: f32, sign: f32| {
        let last = to.to_bits();
        values.extend(
            (0..=40_000).map(|i| sign * f32::from_bits((u64::from(last) * i / 40_000) as u32)),
        );
        values.extend((0..=40_000).map(|i| sign * to * i as f32 / 40_000.0));
    };
    if high > 0.0 {
        positive(high, 1.0);
    }
    if low < 0.0 {
        positive(-low, -1.0);
    }
    values.retain(|x| (low..=high).contains(x));
    values
}

/// One unit in the last place of the f32 next to `x`, at least the smallest subnormal.
fn ulp(x: f64) -> f64 {
    let x = (x.abs() as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
    2.0 * ROUNDOFF * f64::from(f32::from_bits(x.to_bits() & 0x7f80_0000))
}

/// The largest error of `function` over `x` in ulp of max(|truth|, floor), and where.
fn worst(
    x: &[f32],
    function: impl Fn(&[f32], &mut [f32]),
    truth: impl Fn(f64) -> f64,
    floor: f64,
) -> (f64, f32) {
    let mut y = vec![0.0; x.len()];
    function(x, &mut y);
    let mut worst = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(&y) {
        let want = truth(f64::from(x));
        let error = if want.abs() > f64::from(f32::MAX) && y.is_infinite() {
            0.0
        } else {
            (f64::from(y) - want).abs() / ulp(want.abs().max(floor))
        };
        if error.is_nan() || error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

fn assert_within(name: &str, limit: f64, (error, at): (f64, f32)) {
    assert!(
        error <= limit,
        "{name} is {error:.2} ulp off at {at:e}, {limit} allowed"
    );
}

#[test]
fn elementary_functions_stay_within_their_ulps() {
    on_every_path(1, |_| {
        let all = |x: f64| sweep(-x as f32, x as f32);
        assert_within(
            "exp",
            1.5,
            worst(&all(110.0), vector_math::exp, f64::exp, 0.0),
        );
        let positive = sweep(0.0, f32::MAX);
        assert_within(
            "log",
            1.5,
            worst(&positive[1..], vector_math::log, f64::ln, 0.0),
        );
        let near_one = sweep(0.5, 2.0);
        assert_within(
            "log near 1",
            1.5,
            worst(&near_one, vector_math::log, f64::ln, 0.0),
        );
        assert_within(
            "tanh",
            3.0,
            worst(&all(100.0), vector_math::tanh, f64::tanh, 0.0),
        );
        let logistic = worst(&all(110.0), vector_math::sigmoid, sigmoid_truth, 0.0);
        assert_within("sigmoid", 3.0, logistic);
        let angles = all(8192.0);
        let sine = |x: &[f32], y: &mut [f32]| {
            vector_math::sine_cosine(x, y, &mut vec![0.0; x.len()]);
        };
        let cosine = |x: &[f32], y: &mut [f32]| {
            vector_math::sine_cosine(x, &mut vec![0.0; x.len()], y);
        };
        // Near a zero the reduced angle keeps an absolute error of 2⁻²⁹ or so.
        assert_within("sine", 2.0, worst(&angles, sine, f64::sin, 1.0 / 64.0));
        assert_within("cosine", 2.0, worst(&angles, cosine, f64::cos, 1.0 / 64.0));
    });
}

#[test]
fn activations_and_slopes_stay_within_their_ulps() {
    on_every_path(1, |level| {
        for activation in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Silu,
        ] {
            let x = sweep(-12.0, 12.0);
            let value = |x: &[f32], y: &mut [f32]| vector_math::activate(activation, x, y);
            let slope = |x: &[f32], y: &mut [f32]| {
                y.fill(1.0);
                vector_math::activation_backward(activation, x, y);
            };
            let truth = |x| activation_truth(activation, x);
            // The argument of the exponential carries its own rounding, so the left tail is held absolutely.
            let name = format!("{activation:?}");
            assert_within(&name, 6.0, worst(&x, value, truth, 1.0 / 16.0));
            // A slope crosses zero as a difference of terms: it is held absolutely below 1/2.
            let truth = |x| slope_truth(activation, x);
            let name = format!("{activation:?}'");
            assert_within(&name, 3.5, worst(&x, slope, truth, 0.5));
        }
        let gelu = |x: &[f32], y: &mut [f32]| vector_math::activate(Activation::Gelu, x, y);
        let truth = |x| activation_truth(Activation::Gelu, x);
        if same_bits_as_widest(level) {
            let tail = worst(&sweep(-12.0, 0.0), gelu, truth, 0.0);
            assert_within("gelu's tail", 8.0, tail);
        }
    });
}

#[test]
fn extremes_go_to_their_limits_and_nan_goes_through() {
    on_every_path(1, |level| {
        let inputs = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            f32::MAX,
            -f32::MAX,
            -1e-45,
        ];
        let run = |function: &dyn Fn(&[f32], &mut [f32])| {
            let mut y = [1.0; 7];
            function(&inputs, &mut y);
            assert!(y[0].is_nan(), "{level:?}");
            y
        };
        let infinity = f32::INFINITY;
        assert_eq!(
            run(&vector_math::exp)[1..6],
            [infinity, 0.0, 1.0, infinity, 0.0]
        );
        assert_eq!(run(&vector_math::tanh)[1..6], [1.0, -1.0, 0.0, 1.0, -1.0]);
        assert_eq!(run(&vector_math::sigmoid)[1..6], [1.0, 0.0, 0.5, 1.0, 0.0]);
        let log = run(&vector_math::log);
        assert_eq!([log[1], log[3]], [infinity, -infinity]);
        assert!(log[2].is_nan() && log[5].is_nan() && log[6].is_nan());
        for activation in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Silu,
        ] {
            let y = run(&|x, y| vector_math::activate(activation, x, y));
            assert_eq!(
                (y[1], y[3], y[4]),
                (infinity, 0.0, f32::MAX),
                "{activation:?}"
            );
            let y = run(&|x, y| vector_math::activation_backward(activation, x, y));
            assert_eq!(y[1..6], [1.0, 0.0, 0.5, 1.0, 0.0], "{activation:?}");
        }
    });
}

#[test]
fn swiglu_matches_f64() {
    on_every_path(1, |level| {
        for len in [1, 15, 16, 33, 257] {
            let random = &mut Random::new(700 + len as u64);
            let [gate, up, dy] = [(); 3].map(|()| random.normals(len, 3.0));
            let (mut y, mut dgate, mut dup) = (vec![0.0; len], gate.clone(), up.clone());
            vector_math::swiglu(&gate, &up, &mut y);
            vector_math::swiglu_backward(&dy, &mut dgate, &mut dup);
            for i in 0..len {
                let [g, u, d] = [gate[i], up[i], dy[i]].map(f64::from);
                let value = activation_truth(Activation::Silu, g);
                let slope = slope_truth(Activation::Silu, g);
                let near = |got: f32, want: f64, size: f64| {
                    let error = (f64::from(got) - want).abs();
                    assert!(
                        error <= 10.0 * ROUNDOFF * size,
                        "{level:?} {len} {i}: {got} {want}"
                    );
                };
                near(y[i], value * u, (value * u).abs());
                near(dup[i], value * d, (value * d).abs());
                near(dgate[i], slope * u * d, (u * d).abs());
            }
        }
    });
}

#[test]
fn row_reductions_match_f64() {
    on_every_path(1, |level| {
        for len in [1, 7, 16, 17, 64, 333] {
            let random = &mut Random::new(800 + len as u64);
            let (x, y) = (random.normals(len, 2.0), random.normals(len, 1.0));
            let (centre, scale) = (0.25f32, 0.375f32);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let size = |terms: &[f64]| terms.iter().map(|t| t.abs()).sum::<f64>();
            let check = |name: &str, got: f32, terms: Vec<f64>| {
                // At most len/16 + 5 additions meet in one lane's chain, each term rounded twice before.
                let bound = (len as f64 / 16.0 + 8.0) * ROUNDOFF * size(&terms);
                let want: f64 = terms.iter().sum();
                let error = (f64::from(got) - want).abs();
                assert!(
                    error <= bound,
                    "{level:?} {name} {len}: {got} {want} {bound}"
                );
            };
            check("sum", rows::sum(&x), wide.clone());
            let squares = wide
                .iter()
                .map(|x| (x - f64::from(centre)).powi(2))
                .collect();
            check("square_sum", rows::square_sum(&x, centre), squares);
            let dots = wide
                .iter()
                .zip(&y)
                .map(|(x, &y)| x * f64::from(y))
                .collect();
            check("dot", rows::dot(&x, &y), dots);
            let largest = wide.iter().copied().fold(f64::MIN, f64::max);
            assert_eq!(f64::from(rows::largest(&x)), largest, "{level:?}");

            let scaled: Vec<f64> = wide.iter().map(|x| x * f64::from(scale)).collect();
            let total: f64 = scaled.iter().map(|s| s.exp()).sum();
            let bound = (len as f64 / 16.0 + 16.0) * ROUNDOFF;
            let log_sum_exp = rows::log_sum_exp(&x, scale);
            let size = total.ln().abs() + 1.0 + largest.abs();
            assert!(
                (f64::from(log_sum_exp) - total.ln()).abs() <= bound * size,
                "{level:?} {len}"
            );
            let mut p = x.clone();
            assert_eq!(rows::softmax(&mut p, scale), log_sum_exp, "{level:?}");
            for (p, s) in p.iter().zip(&scaled) {
                let want = s.exp() / total;
                let error = (f64::from(*p) - want).abs();
                assert!(
                    error <= (bound + 4.0 * ROUNDOFF * s.abs()) * want,
                    "{level:?} {p} {want}"
                );
            }
            let mut again = x.clone();
            rows::exp_row(&mut again, scale, log_sum_exp);
            for (p, q) in p.iter().zip(&again) {
                assert!(
                    (p - q).abs() <= 64.0 * f32::EPSILON * p,
                    "{level:?} {p} {q}"
                );
            }
        }
        let mut masked = [f32::NEG_INFINITY; 19];
        assert_eq!(rows::softmax(&mut masked, 1.0), f32::NEG_INFINITY);
        assert_eq!(masked, [0.0; 19]);
    });
}

/// Everything that is one slice in and one out, on ragged data.
fn all_functions() -> Vec<u32> {
    let random = &mut Random::new(900);
    let x: Vec<f32> = draw(random, 1003).iter().map(|x| x * 20.0).collect();
    let positive: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    let mut outputs = Vec::new();
    let mut keep = |function: &dyn Fn(&[f32], &mut [f32]), x: &[f32]| {
        let mut y = vec![1.0; x.len()];
        function(x, &mut y);
        outputs.extend(bits(&y));
    };
    keep(&vector_math::exp, &x);
    keep(&vector_math::log, &positive);
    keep(&vector_math::tanh, &x);
    keep(&vector_math::sigmoid, &x);
    keep(
        &|x, y| vector_math::sine_cosine(x, y, &mut vec![0.0; x.len()]),
        &x,
    );
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
    ] {
        keep(&|x, y| vector_math::activate(activation, x, y), &x);
        keep(
            &|x, y| vector_math::activation_backward(activation, x, y),
            &x,
        );
    }
    keep(
        &|x, y| {
            y.copy_from_slice(x);
            rows::softmax(y, 0.5);
        },
        &x,
    );
    outputs.extend(bits(&[
        rows::sum(&x),
        rows::square_sum(&x, 1.0),
        rows::dot(&x, &positive),
    ]));
    outputs
}

#[test]
fn functions_are_the_same_bits_on_every_path() {
    let widest = with_threads(1, Level::Avx512, all_functions);
    on_every_path(1, |level| {
        if same_bits_as_widest(level) {
            assert!(all_functions() == widest, "{level:?}");
        }
    });
}
