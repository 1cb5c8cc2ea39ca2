//! The row kernels of the processor. Sums run in sixteen lanes in index order, then over the lanes, then the rest: the
//! same bits on every machine and for any number of threads. The loops are plain; run through
//! [`dispatch`](keel_cpu::simd::dispatch) they are compiled for the widest vectors the machine has.

use super::Kind;
use keel_cpu::Stored;
use keel_cpu::simd::{Simd, Task};

/// Lanes of a sum.
const LANES: usize = 16;

/// What scales a normalised row.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a> {
    /// [C].
    pub weight: &'a [f32],
    /// [C].
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What dx is added to.
#[derive(Clone, Copy)]
pub(super) enum Sum<'a, T> {
    /// Nothing.
    None,
    /// What dx holds.
    InPlace,
    /// Rows like dx's.
    From(&'a [T]),
}

/// sum = a + b, where an absent addend lies in the sum's place.
pub(super) fn add<T: Stored>(sum: &mut [T], a: Option<&[T]>, b: Option<&[T]>) {
    match (a, b) {
        (Some(a), Some(b)) => {
            for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                *sum = T::rounded(a.widen() + b.widen());
            }
        }
        (Some(other), None) | (None, Some(other)) => {
            for (sum, other) in sum.iter_mut().zip(other) {
                *sum = T::rounded(sum.widen() + other.widen());
            }
        }
        (None, None) => unreachable!("one output takes the place of one input"),
    }
}

/// Whole rows to normalise.
pub(super) struct Forward<'a, T> {
    pub kind: Kind,
    /// [rows, C]; in y's place where absent.
    pub x: Option<&'a [T]>,
    /// [rows, C].
    pub y: &'a mut [T],
    /// [rows, 2]: receives mean and rstd.
    pub statistics: &'a mut [f32],
    pub scale: Scale<'a>,
}

impl<T: Stored> Task for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Forward {
            kind,
            x,
            y,
            statistics,
            scale,
        } = self;
        let columns = scale.weight.len();
        let rows = y.len() / columns;
        assert_eq!(
            (y.len(), statistics.len()),
            (rows * columns, 2 * rows),
            "whole rows, with two numbers each"
        );
        for (row, (y, statistics)) in y
            .chunks_exact_mut(columns)
            .zip(statistics.chunks_exact_mut(2))
            .enumerate()
        {
            let x = x.map(|x| &x[row * columns..][..columns]);
            let (mean, rstd) = moments(kind, x.unwrap_or(y), scale.epsilon);
            statistics.copy_from_slice(&[mean, rstd]);
            // Copied and scaled in place: one loop for rows that are elsewhere and rows that lie here already.
            if let Some(x) = x {
                y.copy_from_slice(x);
            }
            // Two loops and not a test in one: a choice inside keeps the compiler from vectorising.
            match scale.bias {
                Some(bias) => {
                    for ((y, weight), bias) in y.iter_mut().zip(scale.weight).zip(bias) {
                        *y = T::rounded((y.widen() - mean) * rstd * weight + bias);
                    }
                }
                None => {
                    for (y, weight) in y.iter_mut().zip(scale.weight) {
                        *y = T::rounded((y.widen() - mean) * rstd * weight);
                    }
                }
            }
        }
    }
}

/// Whole rows to differentiate.
pub(super) struct Backward<'a, T> {
    pub kind: Kind,
    /// [rows, C].
    pub dy: &'a [T],
    /// [rows, C].
    pub x: &'a [T],
    /// [C].
    pub weight: &'a [f32],
    /// [rows, 2].
    pub statistics: &'a [f32],
    /// What dx is added to.
    pub sum: Sum<'a, T>,
    /// [rows, C].
    pub dx: &'a mut [T],
    /// dweight [C] and dbias [C], dweight alone or nothing: added to.
    pub partial: &'a mut [f32],
}

impl<T: Stored> Task for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Backward {
            kind,
            dy,
            x,
            weight,
            statistics,
            sum,
            dx,
            partial,
        } = self;
        let columns = weight.len();
        let rows = dx.len() / columns;
        assert_eq!(
            (dx.len(), dy.len(), x.len(), statistics.len()),
            (rows * columns, dx.len(), dx.len(), 2 * rows),
            "whole rows, with two numbers each"
        );
        let (dweight, dbias) = partial.split_at_mut(columns.min(partial.len()));
        for (row, (dx, statistics)) in dx
            .chunks_exact_mut(columns)
            .zip(statistics.chunks_exact(2))
            .enumerate()
        {
            let dy = &dy[row * columns..][..columns];
            let x = &x[row * columns..][..columns];
            let (mean, rstd) = (statistics[0], statistics[1]);
            // Both sums of the row before any dx: every dx needs them.
            let (sum_g, sum_gd) = gradient_sums(dy, x, weight, mean);
            for ((dweight, dy), x) in dweight.iter_mut().zip(dy).zip(x) {
                *dweight += dy.widen() * ((x.widen() - mean) * rstd);
            }
            for (dbias, dy) in dbias.iter_mut().zip(dy) {
                *dbias += dy.widen();
            }
            let mean_g = match kind {
                Kind::Layer => sum_g / columns as f32,
                Kind::Rms => 0.0,
            };
            // h·mean(g ⊙ h) = (x − μ)·r²·mean(g ⊙ (x − μ)).
            let slope = rstd * rstd * (sum_gd / columns as f32);
            let dx_of = |dy: T, x: T, weight: f32| {
                rstd * (dy.widen() * weight - mean_g - (x.widen() - mean) * slope)
            };
            let row_of = dy.iter().zip(x).zip(weight);
            match sum {
                Sum::None => {
                    for (dx, ((dy, x), weight)) in dx.iter_mut().zip(row_of) {
                        *dx = T::rounded(dx_of(*dy, *x, *weight));
                    }
                }
                Sum::InPlace => {
                    for (dx, ((dy, x), weight)) in dx.iter_mut().zip(row_of) {
                        *dx = T::rounded(dx.widen() + dx_of(*dy, *x, *weight));
                    }
                }
                Sum::From(sum) => {
                    let sum = &sum[row * columns..][..columns];
                    for ((dx, sum), ((dy, x), weight)) in dx.iter_mut().zip(sum).zip(row_of) {
                        *dx = T::rounded(sum.widen() + dx_of(*dy, *x, *weight));
                    }
                }
            }
        }
    }
}

/// Mean (zero for RMSNorm) and rstd of a row.
#[inline(always)]
fn moments<T: Stored>(kind: Kind, x: &[T], epsilon: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = match kind {
        Kind::Layer => lane_sum(x, |x| x) / count,
        Kind::Rms => 0.0,
    };
    // Of differences from the mean, a second pass over a row in cache. E[x²] − E[x]² would take one pass and cancel
    // where the mean is large.
    let variance = lane_sum(x, |x| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// Σ f(x) in lanes.
#[inline(always)]
fn lane_sum<T: Stored>(x: &[T], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x.widen());
        }
    }
    let rest: f32 = rest.iter().map(|x| f(x.widen())).sum();
    tree(lanes) + rest
}

/// Σ dy·weight and Σ dy·weight·(x − mean) in lanes.
#[inline(always)]
fn gradient_sums<T: Stored>(dy: &[T], x: &[T], weight: &[f32], mean: f32) -> (f32, f32) {
    let (dy_chunks, dy_rest) = dy.as_chunks::<LANES>();
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (weight_chunks, weight_rest) = weight.as_chunks::<LANES>();
    let (mut g_lanes, mut gd_lanes) = ([0.0; LANES], [0.0; LANES]);
    for ((dy, x), weight) in dy_chunks.iter().zip(x_chunks).zip(weight_chunks) {
        for lane in 0..LANES {
            let g = dy[lane].widen() * weight[lane];
            g_lanes[lane] += g;
            gd_lanes[lane] += g * (x[lane].widen() - mean);
        }
    }
    let (mut g_sum, mut gd_sum) = (tree(g_lanes), tree(gd_lanes));
    for ((dy, x), weight) in dy_rest.iter().zip(x_rest).zip(weight_rest) {
        g_sum += dy.widen() * weight;
        gd_sum += dy.widen() * weight * (x.widen() - mean);
    }
    (g_sum, gd_sum)
}

/// The sum of the lanes: eight apart, then four, two, one.
#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
