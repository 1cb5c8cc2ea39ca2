//! Retrieval and zero-shot classification by similarity of features.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Recall at 1, 5 and 10, and the median rank (from 1), in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Share of images whose caption is among the first 1, 5, 10.
    pub image_to_text: [f64; 3],
    /// Share of captions whose image is among the first 1, 5, 10.
    pub text_to_image: [f64; 3],
    /// Median rank of the right caption.
    pub median_rank: f64,
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
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
            // Ties go against the later index: a model that gives everything the same feature must not rank first
            // everywhere.
            other > own || (other == own && *index < right)
        })
        .count()
}

/// Recall where image i [N, `width`] belongs to text i [N, `width`]; both of unit length.
pub fn recall(images: &[f32], texts: &[f32], width: usize) -> Recall {
    let own: Vec<Vec<usize>> = (0..images.len() / width).map(|i| vec![i]).collect();
    let forward = rank_positives(images, texts, width, &own);
    Recall {
        image_to_text: forward.recall,
        text_to_image: rank_positives(texts, images, width, &own).recall,
        median_rank: forward.median_rank,
    }
}

/// How soon the first of several right candidates comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Share of queries with a right candidate among the first 1, 5, 10.
    pub recall: [f64; 3],
    /// Median over the queries of the best right candidate's rank, from 1.
    pub median_rank: f64,
    /// Mean of the same.
    pub mean_rank: f64,
}

/// Ranks candidates [M, `width`] for queries [N, `width`], all of unit length. `positives[i]` are the right candidates of
/// query i; queries without any are left out. A query counts as answered at k when at least one of its right candidates is
/// among the first k. Ties go to the smaller index.
pub fn rank_positives(
    queries: &[f32],
    candidates: &[f32],
    width: usize,
    positives: &[Vec<usize>],
) -> Ranking {
    let mut ranks: Vec<usize> = queries
        .par_chunks_exact(width)
        .zip(positives)
        .filter_map(|(query, right)| {
            right
                .iter()
                .map(|right| rank(query, candidates, width, *right))
                .min()
        })
        .collect();
    ranks.sort_unstable();
    let count = ranks.len().max(1) as f64;
    Ranking {
        recall: [1, 5, 10].map(|k| ranks.iter().filter(|r| **r < k).count() as f64 / count),
        median_rank: median_rank(&ranks),
        mean_rank: ranks.iter().map(|rank| *rank as f64 + 1.0).sum::<f64>() / count,
    }
}

/// The median of sorted ranks from 0, as a rank from 1; 0 without ranks.
fn median_rank(sorted: &[usize]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2] as f64 + 1.0,
        n => (sorted[n / 2 - 1] + sorted[n / 2]) as f64 / 2.0 + 1.0,
    }
}

/// Share of images [N, `width`] whose label is the class [K, `width`] of highest similarity; ties go to the smaller.
pub fn classify(images: &[f32], classes: &[f32], width: usize, labels: &[usize]) -> f64 {
    classify_among(images, classes, width, labels, 1)
}

/// Share of images [N, `width`] whose label is among the `most` classes [K, `width`] of highest similarity.
pub fn classify_among(
    images: &[f32],
    classes: &[f32],
    width: usize,
    labels: &[usize],
    most: usize,
) -> f64 {
    assert_eq!(images.len(), labels.len() * width, "one label an image");
    let right = images
        .chunks(width)
        .zip(labels)
        .filter(|(image, label)| rank(image, classes, width, **label) < most)
        .count();
    right as f64 / labels.len().max(1) as f64
}

/// The features of classes: the mean of each run of `each` prompts' features [K · `each`, `width`], brought to unit length
/// (the ensemble of Radford et al. 2021, section 3.1.4, in open_clip's order: mean, then length).
pub fn class_features(prompts: &[f32], width: usize, each: usize) -> Vec<f32> {
    let mut features: Vec<f32> = prompts
        .chunks_exact(each * width)
        .flat_map(|run| {
            (0..width).map(move |column| {
                let values = run.iter().skip(column).step_by(width);
                (values.map(|x| f64::from(*x)).sum::<f64>() / each as f64) as f32
            })
        })
        .collect();
    normalise_rows(&mut features, width);
    features
}

/// Scales each row of `width` numbers to unit length; zero rows stay.
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
