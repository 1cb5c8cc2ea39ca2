//! The sliced Wasserstein distance: sort along random directions.

use rayon::prelude::*;

use keel_base::random::Stream;

/// Directions of the sliced distance: the default of the POT library.
const DIRECTIONS: usize = 50;

/// `DIRECTIONS` unit vectors [`width`] from a seed.
fn random_directions(width: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut stream = Stream::of_seed(seed);
    (0..DIRECTIONS)
        .map(|_| {
            let mut direction: Vec<f64> = (0..width).map(|_| stream.normal()).collect();
            let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
            direction.iter_mut().for_each(|x| *x /= length);
            direction
        })
        .collect()
}

/// The sliced Wasserstein-2 distance between the rows of `a` [N, `width`] and `b` [M, `width`]: the root mean square,
/// over random directions, of the one-dimensional distances (Bonneel et al. 2015). Unequal counts are matched by quantile.
pub fn sliced_wasserstein(a: &[f32], b: &[f32], width: usize, seed: u64) -> f64 {
    sliced_wasserstein_along(a, b, width, &random_directions(width, seed))
}

/// As [`sliced_wasserstein`], along given unit vectors of `width` numbers.
pub fn sliced_wasserstein_along(
    a: &[f32],
    b: &[f32],
    width: usize,
    directions: &[Vec<f64>],
) -> f64 {
    let squares: Vec<f64> = directions
        .par_iter()
        .map(|direction| {
            let project = |rows: &[f32]| {
                let mut values: Vec<f64> = rows
                    .chunks(width)
                    .map(|row| {
                        row.iter()
                            .zip(direction)
                            .map(|(x, d)| f64::from(*x) * d)
                            .sum()
                    })
                    .collect();
                values.sort_by(f64::total_cmp);
                values
            };
            squared_distance(&project(a), &project(b))
        })
        .collect();
    (squares.iter().sum::<f64>() / directions.len().max(1) as f64).sqrt()
}

/// ∫ (F⁻¹ − G⁻¹)² over the merged quantiles of two sorted samples.
fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let (mut i, mut j, mut from, mut sum) = (0, 0, 0.0, 0.0);
    // Both are quantile functions, steps of 1/n and 1/m: the integral of their squared difference goes from the end of
    // one step to the next, so the clouds need not be equally large.
    while i < a.len() && j < b.len() {
        let (end_a, end_b) = (
            (i + 1) as f64 / a.len() as f64,
            (j + 1) as f64 / b.len() as f64,
        );
        let to = end_a.min(end_b);
        sum += (to - from) * (a[i] - b[j]).powi(2);
        from = to;
        // Both ends count as reached when they differ by rounding alone.
        let near = 1e-12;
        if end_a <= to + near {
            i += 1;
        }
        if end_b <= to + near {
            j += 1;
        }
    }
    sum
}
