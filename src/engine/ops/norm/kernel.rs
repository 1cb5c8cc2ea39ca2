//! The row kernels of the processor. Sums run in sixteen lanes in index order, then over the lanes, then the rest: the
//! same bits on every machine and for any number of threads. The loops of the gradient are plain; run through
//! [`dispatch`](keel_cpu::simd::dispatch) they are compiled for the widest vectors the machine has.

use super::Kind;
use keel_cpu::Stored;
use keel_cpu::simd::{LANES, Simd, Task};
use keel_cpu::vector_math::{load, store};

/// Rows that are normalised at once. The sum of a row is one chain of additions, each waiting for the last, so that a single
/// row would leave most of the processor idle; the order of a row's sum is the same for any number of them.
const ROWS_AT_ONCE: usize = 4;

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
pub(super) struct Add<'a, T> {
    pub sum: &'a mut [T],
    pub a: Option<&'a [T]>,
    pub b: Option<&'a [T]>,
}

impl<T: Stored> Task for Add<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Add { sum, a, b } = self;
        match (a, b) {
            (Some(a), Some(b)) => {
                for at in (0..sum.len()).step_by(LANES) {
                    let x = simd.add(load(simd, a, at), load(simd, b, at));
                    store(simd, sum, at, x);
                }
            }
            (Some(other), None) | (None, Some(other)) => {
                for at in (0..sum.len()).step_by(LANES) {
                    let x = simd.add(load(simd, sum, at), load(simd, other, at));
                    store(simd, sum, at, x);
                }
            }
            (None, None) => unreachable!("one output takes the place of one input"),
        }
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
    fn run<S: Simd>(self, simd: S) {
        let columns = self.scale.weight.len();
        let rows = self.y.len() / columns;
        assert_eq!(
            (self.y.len(), self.statistics.len()),
            (rows * columns, 2 * rows),
            "whole rows, with two numbers each"
        );
        let group = ROWS_AT_ONCE * columns;
        let groups = self.y.chunks_mut(group);
        let groups = groups.zip(self.statistics.chunks_mut(2 * ROWS_AT_ONCE));
        for (index, (y, statistics)) in groups.enumerate() {
            let x = self.x.map(|x| &x[index * group..][..y.len()]);
            if y.len() == group {
                normalise::<S, T, ROWS_AT_ONCE>(simd, self.kind, x, y, statistics, self.scale);
                continue;
            }
            let rest = y.chunks_mut(columns).zip(statistics.chunks_mut(2));
            for (row, (y, statistics)) in rest.enumerate() {
                let x = x.map(|x| &x[row * columns..][..columns]);
                normalise::<S, T, 1>(simd, self.kind, x, y, statistics, self.scale);
            }
        }
    }
}

/// Normalises ROWS rows: of x, or of y where they lie there.
#[inline(always)]
fn normalise<S: Simd, T: Stored, const ROWS: usize>(
    simd: S,
    kind: Kind,
    x: Option<&[T]>,
    y: &mut [T],
    statistics: &mut [f32],
    scale: Scale<'_>,
) {
    let columns = scale.weight.len();
    let (mean, rstd) = moments::<S, T, ROWS>(simd, kind, x.unwrap_or(y), columns, scale.epsilon);
    for (row, statistics) in statistics.chunks_exact_mut(2).enumerate() {
        statistics.copy_from_slice(&[mean[row], rstd[row]]);
    }
    for at in (0..columns).step_by(LANES) {
        let weight = load(simd, scale.weight, at);
        let bias = scale.bias.map(|bias| load(simd, bias, at));
        for row in 0..ROWS {
            let of_row = row * columns..(row + 1) * columns;
            let value = match x {
                Some(x) => load(simd, &x[of_row.clone()], at),
                None => load(simd, &y[of_row.clone()], at),
            };
            let centred = simd.sub(value, simd.splat(mean[row]));
            let scaled = simd.mul(simd.mul(centred, simd.splat(rstd[row])), weight);
            let result = match bias {
                Some(bias) => simd.add(scaled, bias),
                None => scaled,
            };
            store(simd, &mut y[of_row], at, result);
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

/// Mean (zero for RMSNorm) and rstd of each of ROWS rows of `columns`.
#[inline(always)]
fn moments<S: Simd, T: Stored, const ROWS: usize>(
    simd: S,
    kind: Kind,
    x: &[T],
    columns: usize,
    epsilon: f32,
) -> ([f32; ROWS], [f32; ROWS]) {
    let count = columns as f32;
    let mean = match kind {
        Kind::Layer => lane_sums::<S, T, ROWS, false>(simd, x, columns, [0.0; ROWS]),
        Kind::Rms => [0.0; ROWS],
    };
    let mean = mean.map(|sum| sum / count);
    // Of differences from the mean, a second pass over rows in cache. E[x²] − E[x]² would take one pass and cancel
    // where the mean is large.
    let squares = lane_sums::<S, T, ROWS, true>(simd, x, columns, mean);
    let rstd = squares.map(|sum| 1.0 / (sum / count + epsilon).sqrt());
    (mean, rstd)
}

/// Σ x of each of ROWS rows in lanes; Σ (x − mean)² where SQUARES.
#[inline(always)]
fn lane_sums<S: Simd, T: Stored, const ROWS: usize, const SQUARES: bool>(
    simd: S,
    x: &[T],
    columns: usize,
    mean: [f32; ROWS],
) -> [f32; ROWS] {
    let mut lanes = [simd.splat(0.0); ROWS];
    let mut rows: [(&[[T; LANES]], &[T]); ROWS] = [(&[], &[]); ROWS];
    for (row, parts) in rows.iter_mut().enumerate() {
        *parts = x[row * columns..][..columns].as_chunks();
    }
    for chunk in 0..columns / LANES {
        for row in 0..ROWS {
            let x = load(simd, &rows[row].0[chunk], 0);
            let term = if SQUARES {
                let centred = simd.sub(x, simd.splat(mean[row]));
                simd.mul(centred, centred)
            } else {
                x
            };
            lanes[row] = simd.add(lanes[row], term);
        }
    }
    let mut sums = [0.0; ROWS];
    for row in 0..ROWS {
        let mut rest = 0.0;
        for x in rows[row].1 {
            let centred = x.widen() - mean[row];
            rest += if SQUARES {
                centred * centred
            } else {
                x.widen()
            };
        }
        sums[row] = simd.sum(lanes[row]) + rest;
    }
    sums
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
