//! How far an f32 kernel may be from the f64 reference. Derived for each tensor of each case, never chosen by hand.
//!
//! A backward-stable kernel returns the exact result of slightly different inputs, and what it stores between ops it
//! rounds. So the reference itself is run on inputs moved by a few units in the last place, with the results of its ops
//! rounded at random, several times; the budget is a small multiple of the largest change that makes, plus a few units
//! in the last place of the largest result.

use std::collections::BTreeMap;

use keel::tensor::{DType, Shape, TensorType};

use super::Random;

/// Draws of moved inputs that one op deserves.
pub const DRAWS: usize = 8;

/// The largest error allowed anywhere in one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub largest_error: f64,
    /// The largest change that moved inputs and rounded results made.
    pub rounding: f64,
}

/// An input moved by up to two units in the last place, of a type with this `epsilon`.
pub fn moved(value: f64, epsilon: f64, random: &mut Random) -> f64 {
    value * (1.0 + epsilon * (2.0 * random.uniform() - 1.0) * 2.0)
}

/// The budget of every tensor of `truth` from this many `draws`. Each call of `rounded` runs the reference that rounds on newly [`moved`] inputs
/// and returns at least these tensors.
pub fn derive_budget(
    truth: &BTreeMap<String, (TensorType, Vec<f64>)>,
    draws: usize,
    mut rounded: impl FnMut() -> BTreeMap<String, (TensorType, Vec<f64>)>,
) -> BTreeMap<String, Budget> {
    let mut change: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..draws {
        for (name, (_, values)) in rounded() {
            let differences = values
                .iter()
                .zip(&truth[&name].1)
                .map(|(a, b)| (a - b).abs());
            let largest = differences.fold(0.0, f64::max);
            let entry = change.entry(name).or_default();
            *entry = entry.max(largest);
        }
    }
    truth
        .iter()
        .map(|(name, (ty, values))| {
            let scale = values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            // Four units of f32, for what is summed in it; one unit of bf16, for what is rounded to it at the end.
            let units = match ty.dtype {
                DType::Bf16 => DType::Bf16.epsilon(),
                _ => 4.0 * DType::F32.epsilon(),
            };
            let rounding = change[name];
            let budget = Budget {
                largest_error: 4.0 * rounding + units * scale + 1e-37,
                rounding,
            };
            (name.clone(), budget)
        })
        .collect()
}

impl Budget {
    /// Holds `got` against `want`.
    ///
    /// # Errors
    /// A sentence that names the worst element, both values and the share of the budget used.
    pub fn compare(&self, shape: Shape, want: &[f64], got: &[f64]) -> Result<(), String> {
        assert_eq!(want.len(), got.len());
        let mut worst = (0.0, 0);
        for (index, (want, got)) in want.iter().zip(got).enumerate() {
            let error = (want - got).abs();
            if error.is_nan() {
                return Err(format!("not a number at {}", coordinate(shape, index)));
            }
            if error > worst.0 {
                worst = (error, index);
            }
        }
        let (error, index) = worst;
        if error <= self.largest_error {
            return Ok(());
        }
        Err(format!(
            "at {} of {shape} want {:.9e}, got {:.9e}: error {error:.2e} is {:.1} times the budget",
            coordinate(shape, index),
            want[index],
            got[index],
            error / self.largest_error
        ))
    }

    /// Proves that the budget bites: zeros, a flipped sign, rows shifted by one and the largest element off by 5 % must
    /// all be refused.
    pub fn must_refuse_wrong_answers(&self, what: &str, shape: Shape, want: &[f64]) {
        self.must_refuse(what, shape, want, &wrong_answers(shape, want));
    }

    /// The same for a drawn case in bf16, of which a draw may leave little: terms that cancel until what rounding moves
    /// is more than 1 % of the largest element leave nothing to tell 5 % by, or neighbouring rows, and more than 20 %
    /// nothing at all. In f32 every draw must refuse everything.
    pub fn must_refuse_wrong_answers_it_can_tell(&self, what: &str, shape: Shape, want: &[f64]) {
        let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let answers = wrong_answers(shape, want);
        let kinds = match self.rounding / scale {
            share if share <= 0.01 => answers.len(),
            share if share <= 0.2 => 2,
            _ => 0,
        };
        self.must_refuse(what, shape, want, &answers[..kinds]);
    }

    fn must_refuse(&self, what: &str, shape: Shape, want: &[f64], answers: &[WrongAnswer]) {
        for (kind, wrong) in answers {
            assert!(
                wrong == want || self.compare(shape, want, wrong).is_err(),
                "{what}: the budget {:.2e} accepts {kind}",
                self.largest_error
            );
        }
    }
}

/// What is wrong, and the answer.
type WrongAnswer = (&'static str, Vec<f64>);

/// Four wrong answers, the coarsest first.
fn wrong_answers(shape: Shape, want: &[f64]) -> [WrongAnswer; 4] {
    let mut shifted = want.to_vec();
    let columns = shape.columns();
    if want.len() > columns {
        shifted.rotate_right(columns);
    }
    let mut off = want.to_vec();
    if let Some(largest) = off.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())) {
        *largest *= 1.05;
    }
    [
        ("zeros", vec![0.0; want.len()]),
        ("a flipped sign", want.iter().map(|x| -x).collect()),
        ("rows shifted by one", shifted),
        ("the largest element off by 5 %", off),
    ]
}

fn coordinate(shape: Shape, mut index: usize) -> String {
    let mut coordinate: Vec<usize> = Vec::new();
    for dim in shape.dims().iter().rev() {
        coordinate.push(index % dim);
        index /= dim;
    }
    coordinate.reverse();
    format!("{coordinate:?}")
}
