//! Principal components: the plane in which the distances of SAIL-VL2's Table 7 are taken, and its 2-D maps.

use rayon::prelude::*;

use keel_engine::ops::dot;

/// Directions that are iterated beside those asked for: they make the iteration converge by a later, smaller eigenvalue.
const SPARE: usize = 8;

/// Rounds of the iteration, at most.
const MOST_ROUNDS: usize = 500;

/// The first principal components of a cloud.
#[derive(Clone, Debug)]
pub struct Principal {
    width: usize,
    mean: Vec<f64>,
    /// Unit rows [k, `width`], by falling variance; the component of largest absolute value is positive in each.
    directions: Vec<Vec<f64>>,
    /// Variance along each direction, over N − 1.
    pub variances: Vec<f64>,
}

impl Principal {
    /// The first `count` components of the rows [N, `width`], by orthogonal iteration on the covariance with a small
    /// eigenproblem in each round (Rutishauser 1969). Deterministic.
    pub fn fit(rows: &[f32], width: usize, count: usize) -> Principal {
        assert!(rows.len().is_multiple_of(width), "whole rows of {width}");
        let n = rows.len() / width;
        let mut mean = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            for (sum, x) in mean.iter_mut().zip(row) {
                *sum += f64::from(*x) / n.max(1) as f64;
            }
        }
        // Of the covariance, width × width, and not of the rows: there are many more rows than channels, and it is
        // multiplied hundreds of times.
        let covariance = covariance(rows, width, &mean);
        let count = count.min(width);
        let block = (count + SPARE).min(width);
        // Fixed, and in general position to any eigenvector of data.
        let mut basis: Vec<Vec<f64>> = (0..block)
            .map(|k| {
                let phase = 0.7 + k as f64;
                (0..width)
                    .map(|i| (phase * (i as f64 + 1.0) + 0.3 * (i * i) as f64).sin())
                    .collect()
            })
            .collect();
        orthonormalise(&mut basis);
        let mut values = vec![0.0; block];
        // Subspace iteration on a block a little wider than asked for: it converges by the ratio of the last wanted
        // eigenvalue to the first outside the block, so spare directions save rounds.
        for _ in 0..MOST_ROUNDS {
            let images: Vec<Vec<f64>> = basis.par_iter().map(|v| apply(&covariance, v)).collect();
            // The eigenproblem inside the block: eigenvectors of BᵀCB turn the images into the next basis.
            let mut small: Vec<f64> = Vec::with_capacity(block * block);
            for b in &basis {
                small.extend(images.iter().map(|image| dot(b, image)));
            }
            let (found, turns) = symmetric_eigen(small, block);
            basis = (0..block)
                .map(|k| {
                    let mut sum = vec![0.0; width];
                    for (j, image) in images.iter().enumerate() {
                        let factor = turns[j * block + k];
                        for (sum, x) in sum.iter_mut().zip(image) {
                            *sum += factor * x;
                        }
                    }
                    sum
                })
                .collect();
            orthonormalise(&mut basis);
            let largest = found[0].abs().max(f64::MIN_POSITIVE);
            let moved = (0..count).any(|k| (found[k] - values[k]).abs() > 1e-14 * largest);
            values = found;
            if !moved {
                break;
            }
        }
        basis.truncate(count);
        values.truncate(count);
        for direction in &mut basis {
            // An eigenvector has no sign of its own: the largest component is made positive, so that two runs draw the
            // same plane.
            let largest = direction
                .iter()
                .copied()
                .fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
            if largest < 0.0 {
                direction.iter_mut().for_each(|x| *x = -*x);
            }
        }
        Principal {
            width,
            mean,
            directions: basis,
            variances: values,
        }
    }

    /// The rows [N, `width`] in the plane of their own first two components, [N, 2].
    pub fn plane(rows: &[f32], width: usize) -> Vec<f32> {
        Principal::fit(rows, width, 2).project(rows)
    }

    /// The rows [N, `width`] in the components' coordinates, [N, k].
    pub fn project(&self, rows: &[f32]) -> Vec<f32> {
        rows.par_chunks_exact(self.width)
            .flat_map_iter(|row| {
                self.directions.iter().map(move |direction| {
                    let centred = row.iter().zip(&self.mean).map(|(x, m)| f64::from(*x) - m);
                    centred.zip(direction).map(|(x, d)| x * d).sum::<f64>() as f32
                })
            })
            .collect()
    }
}

/// [width, width], over N − 1.
fn covariance(rows: &[f32], width: usize, mean: &[f64]) -> Vec<Vec<f64>> {
    let n = rows.len() / width;
    (0..width)
        .into_par_iter()
        .map(|i| {
            let mut sums = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                let own = f64::from(row[i]) - mean[i];
                for ((sum, x), mean) in sums.iter_mut().zip(row).zip(mean) {
                    *sum += own * (f64::from(*x) - mean);
                }
            }
            let scale = n.saturating_sub(1).max(1) as f64;
            sums.iter_mut().for_each(|sum| *sum /= scale);
            sums
        })
        .collect()
}

fn apply(matrix: &[Vec<f64>], vector: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| dot(row, vector)).collect()
}

/// Gram and Schmidt, twice over; rows that vanish stay zero.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for k in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(k);
        let own = &mut rest[0];
        // Twice is enough (Giraud et al. 2005): one pass of Gram–Schmidt leaves components where vectors are nearly
        // dependent, as they are after a few rounds.
        for _ in 0..2 {
            for other in before.iter() {
                let factor = dot(own, other);
                for (x, o) in own.iter_mut().zip(other) {
                    *x -= factor * o;
                }
            }
        }
        let length = dot(own, own).sqrt();
        let scale = if length > 1e-150 { 1.0 / length } else { 0.0 };
        own.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Eigenvalues, falling, and eigenvectors as columns [n, n] of a symmetric matrix [n, n], by Jacobi's rotations (Golub and
/// Van Loan, section 8.5).
fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v: Vec<f64> = (0..n * n)
        .map(|i| if i / n == i % n { 1.0 } else { 0.0 })
        .collect();
    for _ in 0..50 {
        let off: f64 = (0..n * n)
            .filter(|i| i / n != i % n)
            .map(|i| a[i] * a[i])
            .sum();
        let all: f64 = a.iter().map(|x| x * x).sum();
        if off <= 1e-30 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let (pp, qq, pq) = (a[p * n + p], a[q * n + q], a[p * n + q]);
                if pq == 0.0 {
                    continue;
                }
                // The smaller of the two angles that zero this element: the other would swap rows, and the sweeps would
                // not converge.
                let theta = (qq - pp) / (2.0 * pq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                }
                for k in 0..n {
                    let (x, y) = (v[k * n + p], v[k * n + q]);
                    v[k * n + p] = c * x - s * y;
                    v[k * n + q] = s * x + c * y;
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|i| a[i * n + i]).collect();
    let vectors = (0..n * n).map(|at| v[at / n * n + order[at % n]]).collect();
    (values, vectors)
}
