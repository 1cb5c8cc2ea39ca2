//! Holds the reference's gradients against central differences of its own forward, in f64.
//!
//! The loss is Σ ⟨output, random cotangent⟩, so that a gradient that is zero for a plain sum still shows. Each input is
//! moved along random directions and along single elements; the difference quotient at two step sizes must approach
//! the gradient as the square of the step.

use std::collections::BTreeMap;

use keel::tensor::TensorType;

use super::Random;
use super::case::Loaded;

/// Larger of the two step sizes: truncation error falls with its square, rounding error rises with its inverse.
const STEP: f64 = 1e-4;

/// Random directions and single elements tried for each input.
const DIRECTIONS: usize = 2;
const ELEMENTS: usize = 6;

pub fn check(
    what: &str,
    reference: &mut Loaded<'_>,
    floats: &BTreeMap<String, Vec<f64>>,
    truth: &BTreeMap<String, (TensorType, Vec<f64>)>,
    differentiable: &[&str],
    random: &mut Random,
) {
    for input in differentiable {
        let Some((_, gradient)) = truth.get(&format!("gradient.{input}")) else {
            panic!("{what}: input {input} got no gradient");
        };
        let count = gradient.len();
        let mut directions: Vec<Vec<f64>> = (0..DIRECTIONS)
            .map(|_| (0..count).map(|_| random.normal()).collect())
            .collect();
        for _ in 0..ELEMENTS.min(count) {
            let mut single = vec![0.0; count];
            single[random.below(count)] = 1.0;
            directions.push(single);
        }
        for direction in directions {
            let want: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let coarse = quotient(reference, floats, input, &direction, STEP);
            let fine = quotient(reference, floats, input, &direction, STEP / 2.0);
            // Richardson: the fine quotient's truncation error is a third of the change, to leading order.
            let truncation = (coarse.0 - fine.0).abs();
            let rounding = f64::EPSILON * fine.1 / STEP * 64.0;
            let allowed = truncation + rounding + 1e-9 * want.abs() + 1e-12;
            assert!(
                (fine.0 - want).abs() <= allowed,
                "{what}: gradient of {input}: central difference {:.9e}, backward {want:.9e}, \
                 allowed {allowed:.1e}",
                fine.0
            );
        }
    }
}

/// (L(x + h·d) − L(x − h·d)) / 2h, and the sum of magnitudes that went into L.
fn quotient(
    reference: &mut Loaded<'_>,
    floats: &BTreeMap<String, Vec<f64>>,
    input: &str,
    direction: &[f64],
    step: f64,
) -> (f64, f64) {
    let mut loss_at = |sign: f64| {
        let mut moved = floats.clone();
        let values = moved
            .get_mut(input)
            .expect("a differentiable input is a float input");
        for (value, d) in values.iter_mut().zip(direction) {
            *value += sign * step * d;
        }
        let outputs = reference.run(&moved);
        let mut loss = (0.0, 0.0);
        for (name, cotangent) in floats {
            let Some(output) = name.strip_prefix("cotangent.") else {
                continue;
            };
            for (value, c) in outputs[output].1.iter().zip(cotangent) {
                loss.0 += value * c;
                loss.1 += (value * c).abs();
            }
        }
        loss
    };
    let (plus, minus) = (loss_at(1.0), loss_at(-1.0));
    ((plus.0 - minus.0) / (2.0 * step), plus.1 + minus.1)
}
