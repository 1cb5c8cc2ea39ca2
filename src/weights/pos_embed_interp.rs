//! Learned positions at another image size: the table's grid is scaled as the towers' published codes scale it.
//!
//! Sources: PyTorch's `interpolate` with `align_corners=False`, as transformers calls it in `interpolate_pos_encoding`:
//! bicubic (Keys 1981, a = −0.75) without a filter for smaller grids; SigLIP 2's NaFlex towers bilinear with one, and DINOv2's with
//! registers bicubic with one, for which PyTorch takes a = −0.5.

/// How a table is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaling {
    /// Four neighbours along each axis, whatever the scale.
    Bicubic,
    /// As many neighbours as four of the larger of the two grids' steps hold.
    FilteredBicubic,
    /// A triangle as wide as the larger of the two grids' steps.
    FilteredBilinear,
}

/// The share of each old place in a new one: for every new place the first old one and the weights from there on, which
/// sum to 1. Bicubic places outside are those of the edge.
fn shares(scaling: Scaling, old: usize, new: usize) -> Vec<Vec<(usize, f64)>> {
    let step = old as f64 / new as f64;
    let places = (0..new).map(|place| {
        let centre = step * (place as f64 + 0.5);
        match scaling {
            Scaling::Bicubic => {
                let from = (centre - 0.5).floor();
                let fraction = centre - 0.5 - from;
                let share = |tap: i64| {
                    let place = (from as i64 + tap).clamp(0, old as i64 - 1);
                    (place as usize, cubic(-0.75, tap as f64 - fraction))
                };
                (-1..=2).map(share).collect()
            }
            Scaling::FilteredBilinear => {
                let triangle = |distance: f64| (1.0 - distance.abs()).max(0.0);
                filtered(centre, step.max(1.0), 1.0, old, triangle)
            }
            Scaling::FilteredBicubic => {
                let kernel = |distance: f64| cubic(-0.5, distance);
                filtered(centre, step.max(1.0), 2.0, old, kernel)
            }
        }
    });
    places.collect()
}

/// The shares of a new place at `centre`: `kernel` over `reach` steps of `step` old places on both sides, as far as the old grid goes.
fn filtered(
    centre: f64,
    step: f64,
    reach: f64,
    old: usize,
    kernel: impl Fn(f64) -> f64,
) -> Vec<(usize, f64)> {
    let reach = reach * step;
    let first = (centre - reach + 0.5).max(0.0) as usize;
    let end = ((centre + reach + 0.5) as usize).min(old);
    let weight = |place: usize| kernel((place as f64 + 0.5 - centre) / step);
    let sum: f64 = (first..end).map(weight).sum();
    (first..end)
        .map(|place| (place, weight(place) / sum))
        .collect()
}

/// Keys' kernel with his `a`.
fn cubic(a: f64, distance: f64) -> f64 {
    let x = distance.abs();
    match x {
        _ if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        _ => 0.0,
    }
}

/// A table [K + old², C] as [K + new², C]: the first K rows, those of class and other tokens before the patches, stay as they are.
pub(super) fn resized(
    scaling: Scaling,
    table: &[f32],
    width: usize,
    (old, new): (usize, usize),
) -> Vec<f32> {
    let before = table.len() - old * old * width;
    let (kept, grid) = table.split_at(before);
    let shares = shares(scaling, old, new);
    let mut values = kept.to_vec();
    values.reserve(new * new * width);
    for rows in &shares {
        for columns in &shares {
            for channel in 0..width {
                let mut sum = 0.0;
                for (row, of_row) in rows {
                    for (column, of_column) in columns {
                        let value = grid[(row * old + column) * width + channel];
                        sum += of_row * of_column * f64::from(value);
                    }
                }
                values.push(sum as f32);
            }
        }
    }
    values
}
