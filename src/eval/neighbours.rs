//! Classification by the nearest training features, as DINOv2 does it (Oquab et al. 2023).

use rayon::prelude::*;

use super::retrieval::dot;

/// How neighbours vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbours {
    /// Neighbours that vote, k.
    pub count: usize,
    /// A neighbour of similarity s weighs exp(s / temperature).
    pub temperature: f64,
}

impl Default for Neighbours {
    /// 20 neighbours at 0.07.
    fn default() -> Neighbours {
        Neighbours {
            count: 20,
            temperature: 0.07,
        }
    }
}

impl Neighbours {
    /// The class of each row of `test` [M, `width`] by the vote of its nearest rows of `train` [N, `width`] with
    /// `labels` below `classes`. All rows are of unit length. Ties go to the smaller index, of rows and of classes.
    pub fn classify(
        &self,
        (train, labels): (&[f32], &[usize]),
        test: &[f32],
        width: usize,
        classes: usize,
    ) -> Vec<usize> {
        assert_eq!(
            train.len(),
            labels.len() * width,
            "one label a training row"
        );
        let class_of = |row: &[f32]| {
            let mut ranked: Vec<(f64, usize)> = train
                .chunks_exact(width)
                .map(|other| dot(row, other))
                .zip(labels.iter().copied())
                .collect();
            // Stable: equal similarities stay in order of their index.
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
            let largest = ranked.first().map_or(0.0, |(similarity, _)| *similarity);
            let mut votes = vec![0.0; classes];
            for (similarity, label) in ranked.iter().take(self.count) {
                // Less the largest similarity, which changes no order and keeps the exponentials from overflowing.
                votes[*label] += ((similarity - largest) / self.temperature).exp();
            }
            largest_index(&votes)
        };
        test.par_chunks_exact(width).map(class_of).collect()
    }
}

/// The index of the largest value, the first of equals.
pub(super) fn largest_index(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// The share of `labels` that were `predicted`.
pub fn accuracy(predicted: &[usize], labels: &[usize]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len().max(1) as f64
}
