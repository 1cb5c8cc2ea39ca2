//! The Sinkhorn divergence: optimal transport made smooth by entropy, less what the smoothing itself costs.

use rayon::prelude::*;

use super::squared_costs;

/// How the entropic problem is solved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinkhorn {
    /// Weight ε of the entropy, in the units of the squared distance.
    pub epsilon: f64,
    /// Rounds over both sides, at most.
    pub most_rounds: usize,
    /// Ends when the plan's row sums are off by less than this in total.
    pub tolerance: f64,
}

/// OT(a, b) − ½ OT(a, a) − ½ OT(b, b), where OT is the squared-distance cost ⟨P, C⟩ of the entropic plan between rows of
/// equal weight (Genevay et al. 2018). Zero for equal clouds, and near the squared Wasserstein-2 distance for a small ε.
pub fn sinkhorn_divergence(a: &[f32], b: &[f32], width: usize, settings: &Sinkhorn) -> f64 {
    let between = entropic_cost(a, b, width, settings);
    let within = entropic_cost(a, a, width, settings) + entropic_cost(b, b, width, settings);
    // Below zero only by rounding and by rounds that ended early.
    (between - 0.5 * within).max(0.0)
}

/// −ε · log Σ_k exp((price_k − cost_k) / ε) over the items of `costs` and `prices`.
fn soft_minimum(costs: impl Iterator<Item = f64> + Clone, prices: &[f64], epsilon: f64) -> f64 {
    let scores = costs
        .zip(prices)
        .map(|(cost, price)| (price - cost) / epsilon);
    let largest = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.map(|score| (score - largest).exp()).sum();
    -epsilon * (largest + sum.ln())
}

/// Cuturi 2013, in the log domain: f_i = −ε lse_j((g_j − C_ij)/ε + log b_j) and the same for g, in turn.
fn entropic_cost(a: &[f32], b: &[f32], width: usize, settings: &Sinkhorn) -> f64 {
    let (n, m) = (a.len() / width, b.len() / width);
    if n == 0 || m == 0 {
        return 0.0;
    }
    let costs = squared_costs(a, b, width);
    let epsilon = settings.epsilon;
    let (log_a, log_b) = ((n as f64).ln(), (m as f64).ln());
    let (mut f, mut g) = (vec![0.0; n], vec![0.0; m]);
    for _ in 0..settings.most_rounds {
        // In the log domain throughout: e^(−cost / ε) underflows for all but the nearest points at the small ε that is
        // wanted here.
        g.par_iter_mut().enumerate().for_each(|(j, g)| {
            let column = costs.iter().skip(j).step_by(m).copied();
            *g = soft_minimum(column, &f, epsilon) + epsilon * log_a;
        });
        let before = f.clone();
        f.par_iter_mut().enumerate().for_each(|(i, f)| {
            let row = costs[i * m..(i + 1) * m].iter().copied();
            *f = soft_minimum(row, &g, epsilon) + epsilon * log_b;
        });
        // With the new g the old f gave row i the mass exp((before − f) / ε) / n instead of 1 / n.
        let off: f64 = f
            .iter()
            .zip(&before)
            .map(|(now, before)| (((before - now) / epsilon).exp() - 1.0).abs() / n as f64)
            .sum();
        if off < settings.tolerance {
            break;
        }
    }
    let rows: Vec<f64> = costs
        .par_chunks_exact(m)
        .zip(&f)
        .map(|(row, f)| {
            row.iter()
                .zip(&g)
                .map(|(cost, g)| cost * ((f + g - cost) / epsilon - log_a - log_b).exp())
                .sum::<f64>()
        })
        .collect();
    rows.iter().sum()
}
