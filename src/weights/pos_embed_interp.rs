//! Learned positions at another image size: the table's grid is scaled as the towers' published codes scale it.
//!
//! Sources: PyTorch's `interpolate` with `align_corners=False`, as transformers calls it in `interpolate_pos_encoding`:
//! bicubic (Keys 1981, a = −0.75) without a filter for smaller grids; SigLIP 2's NaFlex towers bilinear with one.

/// How a table is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaling {
    /// Four neighbours along each axis, whatever the scale.
    Bicubic,
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
                    (place as usize, cubic(tap as f64 - fraction))
                };
                (-1..=2).map(share).collect()
            }
            Scaling::FilteredBilinear => {
                let reach = step.max(1.0);
                let first = (centre - reach + 0.5).max(0.0) as usize;
                let end = ((centre + reach + 0.5) as usize).min(old);
                let weight = |place: usize| {
                    let distance = (place as f64 + 0.5 - centre).abs() / reach;
                    (1.0 - distance).max(0.0)
                };
                let sum: f64 = (first..end).map(weight).sum();
                let share = |place| (place, weight(place) / sum);
                (first..end).map(share).collect::<Vec<_>>()
            }
        }
    });
    places.collect()
}

/// Keys' kernel with a = −0.75.
fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    let x = distance.abs();
    match x {
        _ if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    }
}

/// A table [K + old², C] as [K + new², C]: the first K rows, those of a class token, stay as they are.
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
