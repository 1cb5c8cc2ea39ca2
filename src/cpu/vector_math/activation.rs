//! Activations and their derivatives.

use super::functions::{normal, sigmoid, sigmoid_and_slope};
use crate::simd::Simd;

/// An elementwise activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Φ(x) (Hendrycks and Gimpel 2016).
    Gelu,
    /// The tanh form of GELU: x σ(2√(2/π)(x + 0.044715 x³)).
    GeluTanh,
    /// x σ(1.702 x), as CLIP has it.
    QuickGelu,
    /// x σ(x).
    Silu,
}

/// √(2/π) · 2.
const TANH_SCALE: f32 = 1.595_769_1;
const TANH_CUBE: f32 = 0.044_715;
const QUICK: f32 = 1.702;

/// An activation known at compile time, so that loops over it have no branch.
pub(crate) trait Curve: Copy + Send + Sync {
    /// f(x).
    fn value<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector;
    /// f′(x).
    fn slope<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector;
}

/// [`Activation::Gelu`].
#[derive(Clone, Copy)]
pub(crate) struct Gelu;
/// [`Activation::GeluTanh`].
#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;
/// [`Activation::QuickGelu`].
#[derive(Clone, Copy)]
pub(crate) struct QuickGelu;
/// [`Activation::Silu`].
#[derive(Clone, Copy)]
pub(crate) struct Silu;

/// x held within ±`bound`, NaN kept: where the slope's second term is zero anyway, and 0 · ∞ must not arise.
#[inline(always)]
fn within<S: Simd>(simd: S, x: S::Vector, bound: f32) -> S::Vector {
    simd.max(simd.splat(-bound), simd.min(simd.splat(bound), x))
}

impl Curve for Gelu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        simd.mul(x, normal(simd, x).0)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        let (distribution, density) = normal(simd, x);
        simd.mul_add(within(simd, x, 30.0), density, distribution)
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        let cubic = simd.mul_add(
            simd.mul(x, x),
            simd.splat(TANH_SCALE * TANH_CUBE),
            simd.splat(TANH_SCALE),
        );
        simd.mul(x, sigmoid(simd, simd.mul(x, cubic)))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        let x = within(simd, x, 30.0);
        let (square, scale) = (simd.mul(x, x), simd.splat(TANH_SCALE));
        let cubic = simd.mul_add(square, simd.splat(TANH_SCALE * TANH_CUBE), scale);
        let (s, slope) = sigmoid_and_slope(simd, simd.mul(x, cubic));
        let inner = simd.mul_add(square, simd.splat(3.0 * TANH_SCALE * TANH_CUBE), scale);
        simd.mul_add(simd.mul(x, slope), inner, s)
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        simd.mul(x, sigmoid(simd, simd.mul(simd.splat(QUICK), x)))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        let y = within(simd, simd.mul(simd.splat(QUICK), x), 200.0);
        let (s, slope) = sigmoid_and_slope(simd, y);
        simd.mul_add(y, slope, s)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        simd.mul(x, sigmoid(simd, x))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        self.both(simd, x).1
    }
}

impl Silu {
    /// (f(x), f′(x)) from one exponential.
    #[inline(always)]
    pub(crate) fn both<S: Simd>(self, simd: S, x: S::Vector) -> (S::Vector, S::Vector) {
        let y = within(simd, x, 200.0);
        let (s, slope) = sigmoid_and_slope(simd, y);
        (simd.mul(x, s), simd.mul_add(y, slope, s))
    }
}

/// Evaluates `$body` with `$curve` bound to the compile-time form of an [`Activation`].
macro_rules! with_curve {
    ($activation:expr, $curve:ident => $body:expr) => {
        match $activation {
            $crate::vector_math::Activation::Gelu => {
                let $curve = $crate::vector_math::activation::Gelu;
                $body
            }
            $crate::vector_math::Activation::GeluTanh => {
                let $curve = $crate::vector_math::activation::GeluTanh;
                $body
            }
            $crate::vector_math::Activation::QuickGelu => {
                let $curve = $crate::vector_math::activation::QuickGelu;
                $body
            }
            $crate::vector_math::Activation::Silu => {
                let $curve = $crate::vector_math::activation::Silu;
                $body
            }
        }
    };
}
pub(crate) use with_curve;
