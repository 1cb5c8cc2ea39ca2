//! A linear map from image features to text features, fitted in closed form on training pairs.
//!
//! Stages differ in which heads they train. So that they can be compared, images and captions are matched through a
//! map that every stage gets in the same way: ridge regression on the training pairs (Hoerl and Kennard 1970).

use super::retrieval::normalise_rows;

/// y ≈ (x − mean_x) W + mean_y. See the module's documentation.
#[derive(Clone, Debug)]
pub struct LinearMap {
    inputs: usize,
    outputs: usize,
    mean_x: Vec<f64>,
    mean_y: Vec<f64>,
    /// [inputs, outputs]
    weights: Vec<f64>,
}

impl LinearMap {
    /// Fits x [N, `inputs`] to y [N, `outputs`] with the penalty `ridge` times the mean variance of x.
    pub fn fit(x: &[f32], inputs: usize, y: &[f32], outputs: usize, ridge: f64) -> LinearMap {
        assert_eq!(
            x.len() / inputs,
            y.len() / outputs,
            "a pair has a row on either side"
        );
        let count = (x.len() / inputs) as f64;
        let mean = |rows: &[f32], width: usize| {
            let mut mean = vec![0.0; width];
            for row in rows.chunks(width) {
                for (sum, value) in mean.iter_mut().zip(row) {
                    *sum += f64::from(*value) / count;
                }
            }
            mean
        };
        let (mean_x, mean_y) = (mean(x, inputs), mean(y, outputs));
        let mut gram = vec![0.0; inputs * inputs];
        let mut cross = vec![0.0; inputs * outputs];
        for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
            for (i, value) in x.iter().enumerate() {
                let centred = f64::from(*value) - mean_x[i];
                for (j, other) in x.iter().enumerate() {
                    gram[i * inputs + j] += centred * (f64::from(*other) - mean_x[j]);
                }
                for (j, target) in y.iter().enumerate() {
                    cross[i * outputs + j] += centred * (f64::from(*target) - mean_y[j]);
                }
            }
        }
        // Relative to the mean variance, so that one number suits features of any scale; never zero, so that constant
        // features have a solution.
        let trace: f64 = (0..inputs).map(|i| gram[i * inputs + i]).sum();
        let penalty = (ridge * trace / inputs as f64).max(f64::MIN_POSITIVE);
        for i in 0..inputs {
            gram[i * inputs + i] += penalty;
        }
        solve_in_place(&mut gram, inputs, &mut cross, outputs);
        LinearMap {
            inputs,
            outputs,
            mean_x,
            mean_y,
            weights: cross,
        }
    }

    /// x [N, inputs] mapped, relative to the mean of y: [N, outputs].
    fn centred_prediction(&self, x: &[f32]) -> Vec<f64> {
        let mut mapped = Vec::with_capacity(x.len() / self.inputs * self.outputs);
        for row in x.chunks(self.inputs) {
            let mut sums = vec![0.0; self.outputs];
            for ((x, mean), weights) in row
                .iter()
                .zip(&self.mean_x)
                .zip(self.weights.chunks(self.outputs))
            {
                let centred = f64::from(*x) - mean;
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += centred * weight;
                }
            }
            mapped.extend(sums);
        }
        mapped
    }

    /// What the map makes of x [N, inputs]: [N, outputs].
    pub fn predict(&self, x: &[f32]) -> Vec<f64> {
        let mut mapped = self.centred_prediction(x);
        for row in mapped.chunks_mut(self.outputs) {
            for (value, mean) in row.iter_mut().zip(&self.mean_y) {
                *value += mean;
            }
        }
        mapped
    }

    /// Maps x [N, inputs] and brings the result, relative to the mean of y, to unit length.
    pub fn map(&self, x: &[f32]) -> Vec<f32> {
        let mapped = self.centred_prediction(x);
        let mut mapped: Vec<f32> = mapped.into_iter().map(|x| x as f32).collect();
        normalise_rows(&mut mapped, self.outputs);
        mapped
    }

    /// Brings y [N, outputs], relative to its mean, to unit length.
    pub fn centre(&self, y: &[f32]) -> Vec<f32> {
        let mut centred: Vec<f32> = y
            .chunks(self.outputs)
            .flat_map(|row| {
                row.iter()
                    .zip(&self.mean_y)
                    .map(|(y, m)| (f64::from(*y) - m) as f32)
            })
            .collect();
        normalise_rows(&mut centred, self.outputs);
        centred
    }
}

/// Solves A X = B for symmetric positive definite A [n, n] by Cholesky; B [n, k] becomes X.
fn solve_in_place(a: &mut [f64], n: usize, b: &mut [f64], k: usize) {
    // Cholesky: a Gram matrix with a ridge is positive definite, so no pivoting is needed and the upper half is never
    // read.
    for j in 0..n {
        for p in 0..j {
            let factor = a[j * n + p];
            for i in j..n {
                a[i * n + j] -= a[i * n + p] * factor;
            }
        }
        let pivot = a[j * n + j].max(f64::MIN_POSITIVE).sqrt();
        for i in j..n {
            a[i * n + j] /= pivot;
        }
    }
    for i in 0..n {
        for p in 0..i {
            let factor = a[i * n + p];
            for c in 0..k {
                b[i * k + c] -= factor * b[p * k + c];
            }
        }
        for c in 0..k {
            b[i * k + c] /= a[i * n + i];
        }
    }
    for i in (0..n).rev() {
        for p in i + 1..n {
            let factor = a[p * n + i];
            for c in 0..k {
                b[i * k + c] -= factor * b[p * k + c];
            }
        }
        for c in 0..k {
            b[i * k + c] /= a[i * n + i];
        }
    }
}
