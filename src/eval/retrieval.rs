//! Retrieval and zero-shot classification by similarity of features.

use serde::{Deserialize, Serialize};

/// Recall at 1, 5 and 10, and the median rank (from 1), in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Share of pictures whose caption is among the first 1, 5, 10.
    pub image_to_text: [f64; 3],
    /// Share of captions whose picture is among the first 1, 5, 10.
    pub text_to_image: [f64; 3],
    /// Median rank of the right caption.
    pub median_rank: f64,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

/// The rank (from 0) of candidate `right` for `query`; ties go to the smaller index.
fn rank(query: &[f32], candidates: &[f32], width: usize, right: usize) -> usize {
    let own = dot(query, &candidates[right * width..(right + 1) * width]);
    candidates
        .chunks(width)
        .enumerate()
        .filter(|(index, candidate)| {
            let other = dot(query, candidate);
            other > own || (other == own && *index < right)
        })
        .count()
}

/// Recall where image i [N, `width`] belongs to text i [N, `width`]; both of unit length.
pub fn recall(images: &[f32], texts: &[f32], width: usize) -> Recall {
    let count = images.len() / width;
    let ranks = |queries: &[f32], candidates: &[f32]| -> Vec<usize> {
        queries
            .chunks(width)
            .enumerate()
            .map(|(index, query)| rank(query, candidates, width, index))
            .collect()
    };
    let shares = |ranks: &[usize]| {
        [1, 5, 10]
            .map(|k| ranks.iter().filter(|rank| **rank < k).count() as f64 / count.max(1) as f64)
    };
    let mut forward = ranks(images, texts);
    let backward = ranks(texts, images);
    let image_to_text = shares(&forward);
    forward.sort_unstable();
    let median = match count {
        0 => 0.0,
        n if n % 2 == 1 => forward[n / 2] as f64 + 1.0,
        n => (forward[n / 2 - 1] + forward[n / 2]) as f64 / 2.0 + 1.0,
    };
    Recall {
        image_to_text,
        text_to_image: shares(&backward),
        median_rank: median,
    }
}

/// Share of images [N, `width`] whose label is the class [K, `width`] of highest similarity; ties go to the smaller.
pub fn classify(images: &[f32], classes: &[f32], width: usize, labels: &[usize]) -> f64 {
    let right = images
        .chunks(width)
        .zip(labels)
        .filter(|(image, label)| rank(image, classes, width, **label) == 0)
        .count();
    right as f64 / labels.len().max(1) as f64
}

/// Scales each row [`width`] to unit length; zero rows stay.
pub fn normalise_rows(rows: &mut [f32], width: usize) {
    for row in rows.chunks_mut(width) {
        let length = dot(row, row).sqrt();
        if length > 0.0 {
            for value in row {
                *value = (f64::from(*value) / length) as f32;
            }
        }
    }
}
