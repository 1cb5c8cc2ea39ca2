//! How two sets of features lie to each other: modality gap, alignment, uniformity, and linear CKA.

use rayon::prelude::*;

/// The mean row [`width`] of `rows` [N, `width`].
fn mean_row(rows: &[f32], width: usize) -> Vec<f64> {
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let count = (rows.len() / width).max(1) as f64;
    mean.iter_mut().for_each(|sum| *sum /= count);
    mean
}

/// The distance between the centres of images [N, `width`] and texts [M, `width`], all of unit length (Liang et al. 2022).
pub fn modality_gap(images: &[f32], texts: &[f32], width: usize) -> f64 {
    let (a, b) = (mean_row(images, width), mean_row(texts, width));
    let squares = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f64>().sqrt()
}

/// Mean distance of an image from its own text, rows of unit length in the same order (Wang and Isola 2020, α = 1).
pub fn alignment(images: &[f32], texts: &[f32], width: usize) -> f64 {
    let pairs = images.chunks_exact(width).zip(texts.chunks_exact(width));
    let count = (images.len() / width).max(1) as f64;
    pairs.map(|(a, b)| squared(a, b).sqrt()).sum::<f64>() / count
}

/// log of the mean of exp(−2 ‖u − v‖²) over all pairs of different rows, of unit length (Wang and Isola 2020, t = 2): the
/// lower, the more evenly features fill the sphere. 0 for fewer than two rows.
pub fn uniformity(rows: &[f32], width: usize) -> f64 {
    let count = rows.len() / width;
    if count < 2 {
        return 0.0;
    }
    let sums: Vec<f64> = (0..count)
        .into_par_iter()
        .map(|i| {
            let own = &rows[i * width..(i + 1) * width];
            rows[(i + 1) * width..]
                .chunks_exact(width)
                .map(|other| (-2.0 * squared(own, other)).exp())
                .sum()
        })
        .collect();
    let pairs = count * (count - 1) / 2;
    (sums.iter().sum::<f64>() / pairs as f64).ln()
}

fn squared(a: &[f32], b: &[f32]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
    differences.map(|d| d * d).sum()
}

/// Rows less their mean.
fn centred(rows: &[f32], width: usize) -> Vec<f64> {
    let mean = mean_row(rows, width);
    rows.chunks_exact(width)
        .flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| f64::from(*x) - mean))
        .collect()
}

/// ‖Xᵀ Y‖²_F.
fn squared_product(x: &[f64], x_width: usize, y: &[f64], y_width: usize) -> f64 {
    let columns: Vec<f64> = (0..x_width)
        .into_par_iter()
        .map(|i| {
            let mut sums = vec![0.0; y_width];
            for (x, y) in x.chunks_exact(x_width).zip(y.chunks_exact(y_width)) {
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum += x[i] * y;
                }
            }
            sums.iter().map(|sum| sum * sum).sum()
        })
        .collect();
    columns.iter().sum()
}

/// Linear centred kernel alignment of two representations of the same N things, `x` [N, `x_width`] and `y`
/// [N, `y_width`]: ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) on centred columns (Kornblith et al. 2019). 1 for the same up to a rotation
/// and a scale, 0 for nothing in common; 0 where a representation is constant.
pub fn linear_cka(x: &[f32], x_width: usize, y: &[f32], y_width: usize) -> f64 {
    assert_eq!(
        x.len() / x_width,
        y.len() / y_width,
        "both sets have the same images"
    );
    let (x, y) = (centred(x, x_width), centred(y, y_width));
    // ‖XᵀY‖² of channels by channels, and not of images by images: the same number, and channels are fewer.
    let cross = squared_product(&x, x_width, &y, y_width);
    let own = squared_product(&x, x_width, &x, x_width) * squared_product(&y, y_width, &y, y_width);
    if own > 0.0 { cross / own.sqrt() } else { 0.0 }
}
