//! Distances between two clouds of tokens (SAIL-VL2 report, Table 7): to the nearest neighbour, on average, and of
//! optimal transport. Clouds are rows of one width; what space they lie in is the caller's choice.

mod exact;
mod sinkhorn;
mod sliced;

use rayon::prelude::*;

pub use exact::exact_wasserstein;
pub use sinkhorn::{Sinkhorn, sinkhorn_divergence};
pub use sliced::{sliced_wasserstein, sliced_wasserstein_along};

/// Squared Euclidean distance of two rows.
fn squared(a: &[f32], b: &[f32]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
    differences.map(|d| d * d).sum()
}

/// Mean over the rows of `from` [N, `width`] of the Euclidean distance to the nearest row of `to` [M, `width`].
pub fn nearest_neighbour_distance(from: &[f32], to: &[f32], width: usize) -> f64 {
    let nearest = |row: &[f32]| {
        let squares = to.chunks_exact(width).map(|other| squared(row, other));
        squares.fold(f64::INFINITY, f64::min).sqrt()
    };
    let distances: Vec<f64> = from.par_chunks_exact(width).map(nearest).collect();
    distances.iter().sum::<f64>() / distances.len().max(1) as f64
}

/// Mean Euclidean distance over all pairs of a row of `a` [N, `width`] and a row of `b` [M, `width`].
pub fn mean_distance(a: &[f32], b: &[f32], width: usize) -> f64 {
    let of_row = |row: &[f32]| -> f64 {
        b.chunks_exact(width)
            .map(|other| squared(row, other).sqrt())
            .sum()
    };
    let sums: Vec<f64> = a.par_chunks_exact(width).map(of_row).collect();
    let pairs = (a.len() / width) * (b.len() / width);
    sums.iter().sum::<f64>() / pairs.max(1) as f64
}

/// Squared Euclidean distances [N, M] of all pairs.
pub(super) fn squared_costs(a: &[f32], b: &[f32], width: usize) -> Vec<f64> {
    a.par_chunks_exact(width)
        .flat_map_iter(|row| b.chunks_exact(width).map(move |other| squared(row, other)))
        .collect()
}
