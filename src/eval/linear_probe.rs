//! A linear classifier on frozen features in closed form: ridge regression on one-hot labels.

use super::linear_map::LinearMap;
use super::neighbours::largest_index;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct LinearProbe {
    map: LinearMap,
    classes: usize,
}

impl LinearProbe {
    /// Fits features [N, `width`] to `labels` below `classes`. `ridge` is the penalty relative to the mean over the
    /// features of their sums of squares about the mean.
    pub fn fit(
        features: &[f32],
        width: usize,
        labels: &[usize],
        classes: usize,
        ridge: f64,
    ) -> LinearProbe {
        let mut targets = vec![0.0f32; labels.len() * classes];
        for (row, label) in labels.iter().enumerate() {
            targets[row * classes + label] = 1.0;
        }
        LinearProbe {
            map: LinearMap::fit(features, width, &targets, classes, ridge),
            classes,
        }
    }

    /// Scores [N, classes] of features [N, width].
    pub fn scores(&self, features: &[f32]) -> Vec<f64> {
        self.map.predict(features)
    }

    /// The class of the highest score of each row, the first of equals.
    pub fn classify(&self, features: &[f32]) -> Vec<usize> {
        let scores = self.scores(features);
        scores.chunks(self.classes).map(largest_index).collect()
    }
}
