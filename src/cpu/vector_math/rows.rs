//! Reductions over one row: sums, largest element, softmax, log-sum-exp.
//!
//! Sums run in sixteen lanes in index order and end in the tree of [`Simd::sum`], so their bits depend on nothing else.
//! Every function is written for rows that are in cache; an empty row gives the neutral element.

use super::functions::{exp, log};
use super::{load, store};
use crate::simd::{LANES, Simd, Task, dispatch};

/// Lanes from `count` on replaced by `other`: what a shorter last vector holds beyond its end.
#[inline(always)]
fn tail<S: Simd>(simd: S, x: S::Vector, count: usize, other: f32) -> S::Vector {
    if count >= LANES {
        return x;
    }
    let mut lanes = [other; LANES];
    // SAFETY: both accesses stay inside the sixteen lanes.
    unsafe {
        simd.store_first(lanes.as_mut_ptr(), count, x);
        simd.load(lanes.as_ptr())
    }
}

// Plain loops below: a closure does not take on the path's instructions unless the compiler happens to inline it.

/// Σ x.
#[inline(always)]
pub fn sum_of<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sum = simd.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        sum = simd.add(sum, load(simd, x, at));
    }
    simd.sum(sum)
}

/// Σ (x − centre)².
#[inline(always)]
pub fn square_sum_of<S: Simd>(simd: S, x: &[f32], centre: f32) -> f32 {
    let (mut sum, centre) = (simd.splat(0.0), simd.splat(centre));
    for at in (0..x.len()).step_by(LANES) {
        let d = simd.sub(load(simd, x, at), centre);
        let d = tail(simd, d, x.len() - at, 0.0);
        sum = simd.mul_add(d, d, sum);
    }
    simd.sum(sum)
}

/// Σ a · b.
#[inline(always)]
pub fn dot_of<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = simd.splat(0.0);
    for at in (0..a.len()).step_by(LANES) {
        sum = simd.mul_add(load(simd, a, at), load(simd, b, at), sum);
    }
    simd.sum(sum)
}

/// The largest element, −∞ for an empty row; NaN elements are passed over.
#[inline(always)]
pub fn largest_of<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut best = simd.splat(f32::NEG_INFINITY);
    for at in (0..x.len()).step_by(LANES) {
        let x = tail(simd, load(simd, x, at), x.len() - at, f32::NEG_INFINITY);
        best = simd.max(x, best);
    }
    simd.largest(best)
}

/// x ← e^(scale · x − shift); gives Σ of the result.
#[inline(always)]
pub fn exp_in_place<S: Simd>(simd: S, x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let (factor, shift) = (simd.splat(scale), simd.splat(-shift));
    let mut sum = simd.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        let y = exp(simd, simd.mul_add(factor, load(simd, x, at), shift));
        store(simd, x, at, y);
        sum = simd.add(sum, tail(simd, y, x.len() - at, 0.0));
    }
    simd.sum(sum)
}

/// x ← factor · x.
#[inline(always)]
pub fn scale_in_place<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    let factor = simd.splat(factor);
    for at in (0..x.len()).step_by(LANES) {
        let y = simd.mul(factor, load(simd, x, at));
        store(simd, x, at, y);
    }
}

/// x ← softmax(scale · x), scale > 0; gives the log-sum-exp of scale · x.
///
/// A row that is −∞ throughout (everything masked) becomes zeros with log-sum-exp −∞.
#[inline(always)]
pub fn softmax_in_place<S: Simd>(simd: S, x: &mut [f32], scale: f32) -> f32 {
    let largest = scale * largest_of(simd, x);
    // e^(−∞ − (−∞)) would be NaN.
    if largest == f32::NEG_INFINITY {
        x.fill(0.0);
        return largest;
    }
    let sum = exp_in_place(simd, x, scale, largest);
    scale_in_place(simd, x, 1.0 / sum);
    largest + simd.largest(log(simd, simd.splat(sum)))
}

/// ln Σ e^(scale · x), scale > 0.
#[inline(always)]
pub fn log_sum_exp_of<S: Simd>(simd: S, x: &[f32], scale: f32) -> f32 {
    let largest = scale * largest_of(simd, x);
    if largest == f32::NEG_INFINITY {
        return largest;
    }
    let (factor, shift) = (simd.splat(scale), simd.splat(-largest));
    let mut sum = simd.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        let y = exp(simd, simd.mul_add(factor, load(simd, x, at), shift));
        sum = simd.add(sum, tail(simd, y, x.len() - at, 0.0));
    }
    let sum = simd.sum(sum);
    largest + simd.largest(log(simd, simd.splat(sum)))
}

/// A slice form that chooses its path once: name, arguments, result, vector form.
macro_rules! chosen {
    ($life:lifetime; $($(#[$doc:meta])* $name:ident($($argument:ident: $ty:ty),*) -> $output:ty = $function:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name<$life>($($argument: $ty),*) -> $output {
                struct Call<$life> {
                    $($argument: $ty,)*
                }
                impl<$life> Task for Call<$life> {
                    type Output = $output;
                    #[inline(always)]
                    fn run<S: Simd>(self, simd: S) -> $output {
                        $function(simd, $(self.$argument),*)
                    }
                }
                dispatch(Call { $($argument),* })
            }
        )*
    };
}

chosen! { 'a;
    /// Σ x.
    sum(x: &'a [f32]) -> f32 = sum_of;
    /// Σ (x − centre)².
    square_sum(x: &'a [f32], centre: f32) -> f32 = square_sum_of;
    /// Σ a · b. Panics where b is shorter than a.
    dot(a: &'a [f32], b: &'a [f32]) -> f32 = dot_of;
    /// The largest element, −∞ for an empty row; NaN elements are passed over.
    largest(x: &'a [f32]) -> f32 = largest_of;
    /// x ← e^(scale · x − shift); gives Σ of the result.
    exp_row(x: &'a mut [f32], scale: f32, shift: f32) -> f32 = exp_in_place;
    /// x ← softmax(scale · x), scale > 0; gives the log-sum-exp of scale · x. See [`softmax_in_place`].
    softmax(x: &'a mut [f32], scale: f32) -> f32 = softmax_in_place;
    /// ln Σ e^(scale · x), scale > 0; −∞ where every x is.
    log_sum_exp(x: &'a [f32], scale: f32) -> f32 = log_sum_exp_of;
}
