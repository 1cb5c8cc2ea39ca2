//! Elementwise and row-wise math on slices, in f32, vectorised over [`simd`](super::simd).
//!
//! [`functions`] are the vector forms for kernels that fuse more; the slice forms here and in [`rows`] cost one choice
//! of path per call. All are single-threaded: the caller cuts its tensors into tasks. A NaN goes through everything;
//! infinities give what the limit gives, except that x · σ(x) and its kin give NaN at −∞, as PyTorch's do.
#![allow(unsafe_code)]

pub(crate) mod activation;
pub mod functions;
pub mod rows;

use half::bf16;

use self::activation::{Curve, with_curve};
use super::simd::{LANES, Simd, Task, dispatch};
use super::storage::Stored;

pub use self::activation::Activation;

/// Reads lanes `at..` of `x`, at most sixteen; the others are zero.
#[inline(always)]
pub fn load<S: Simd, T: Stored>(simd: S, x: &[T], at: usize) -> S::Vector {
    let rest = &x[at..];
    // SAFETY: `rest` holds the lanes read.
    unsafe {
        if rest.len() >= LANES {
            T::load(simd, rest.as_ptr())
        } else {
            T::load_first(simd, rest.as_ptr(), rest.len())
        }
    }
}

/// Writes lanes `at..` of `y`, at most sixteen.
#[inline(always)]
pub fn store<S: Simd, T: Stored>(simd: S, y: &mut [T], at: usize, x: S::Vector) {
    let rest = &mut y[at..];
    // SAFETY: `rest` holds the lanes written.
    unsafe {
        if rest.len() >= LANES {
            T::store(simd, rest.as_mut_ptr(), x)
        } else {
            T::store_first(simd, rest.as_mut_ptr(), rest.len(), x)
        }
    }
}

/// Writes lanes `at..` of `y` as terms of products in pairs ([`Simd::store_terms`]). Panics where there are no sixteen.
#[inline(always)]
pub fn store_terms<S: Simd>(simd: S, y: &mut [bf16], at: usize, x: S::Vector) {
    let to = &mut y[at..][..LANES];
    // SAFETY: the slice holds the lanes written.
    unsafe { simd.store_terms(to.as_mut_ptr(), x) }
}

/// A slice function of one argument: its name, its vector form and what it says.
macro_rules! elementwise {
    ($($(#[$doc:meta])* $name:ident = $function:path;)*) => {
        $(
            $(#[$doc])*
            ///
            /// Panics where lengths differ.
            pub fn $name(x: &[f32], y: &mut [f32]) {
                struct Map<'a>(&'a [f32], &'a mut [f32]);
                impl Task for Map<'_> {
                    type Output = ();
                    #[inline(always)]
                    fn run<S: Simd>(self, simd: S) {
                        for at in (0..self.0.len()).step_by(LANES) {
                            let value = $function(simd, load(simd, self.0, at));
                            store(simd, self.1, at, value);
                        }
                    }
                }
                assert_eq!(x.len(), y.len(), "lengths");
                dispatch(Map(x, y));
            }
        )*
    };
}

elementwise! {
    /// y = eˣ.
    exp = functions::exp;
    /// y = ln x.
    log = functions::log;
    /// y = tanh x.
    tanh = functions::tanh;
    /// y = 1 / (1 + e⁻ˣ).
    sigmoid = functions::sigmoid;
}

/// (sin x, cos x) for |x| ≤ 2¹³. Panics where lengths differ.
pub fn sine_cosine(x: &[f32], sine: &mut [f32], cosine: &mut [f32]) {
    struct Both<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);
    impl Task for Both<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for at in (0..self.0.len()).step_by(LANES) {
                let (sine, cosine) = functions::sine_cosine(simd, load(simd, self.0, at));
                store(simd, self.1, at, sine);
                store(simd, self.2, at, cosine);
            }
        }
    }
    assert_eq!((x.len(), x.len()), (sine.len(), cosine.len()), "lengths");
    dispatch(Both(x, sine, cosine));
}

/// y = activation(z). Panics where lengths differ.
pub fn activate(activation: Activation, z: &[f32], y: &mut [f32]) {
    struct Forward<'a>(Activation, &'a [f32], &'a mut [f32]);
    impl Forward<'_> {
        #[inline(always)]
        fn each<S: Simd, C: Curve>(self, simd: S, curve: C) {
            for at in (0..self.1.len()).step_by(LANES) {
                store(simd, self.2, at, curve.value(simd, load(simd, self.1, at)));
            }
        }
    }
    impl Task for Forward<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            with_curve!(self.0, curve => self.each(simd, curve))
        }
    }
    assert_eq!(z.len(), y.len(), "lengths");
    dispatch(Forward(activation, z, y));
}

/// gradient ← gradient · activation′(z). Panics where lengths differ.
pub fn activation_backward<T: Stored>(activation: Activation, z: &[T], gradient: &mut [T]) {
    struct Backward<'a, T>(Activation, &'a [T], &'a mut [T]);
    impl<T: Stored> Backward<'_, T> {
        #[inline(always)]
        fn each<S: Simd, C: Curve>(self, simd: S, curve: C) {
            for at in (0..self.1.len()).step_by(LANES) {
                let slope = curve.slope(simd, load(simd, self.1, at));
                let product = simd.mul(load(simd, self.2, at), slope);
                store(simd, self.2, at, product);
            }
        }
    }
    impl<T: Stored> Task for Backward<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            with_curve!(self.0, curve => self.each(simd, curve))
        }
    }
    assert_eq!(z.len(), gradient.len(), "lengths");
    dispatch(Backward(activation, z, gradient));
}

/// y = silu(gate) · up. Panics where lengths differ.
pub fn swiglu<T: Stored>(gate: &[T], up: &[T], y: &mut [T]) {
    struct Forward<'a, T>(&'a [T], &'a [T], &'a mut [T]);
    impl<T: Stored> Task for Forward<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for at in (0..self.0.len()).step_by(LANES) {
                let gate = activation::Silu.value(simd, load(simd, self.0, at));
                store(simd, self.2, at, simd.mul(gate, load(simd, self.1, at)));
            }
        }
    }
    assert_eq!((gate.len(), gate.len()), (up.len(), y.len()), "lengths");
    dispatch(Forward(gate, up, y));
}

/// gate ← dgate = dy · up · silu′(gate) and up ← dup = dy · silu(gate), from one exponential. Panics where lengths differ.
pub fn swiglu_backward<T: Stored>(dy: &[T], gate: &mut [T], up: &mut [T]) {
    struct Backward<'a, T>(&'a [T], &'a mut [T], &'a mut [T]);
    impl<T: Stored> Task for Backward<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for at in (0..self.0.len()).step_by(LANES) {
                let dy = load(simd, self.0, at);
                let (gate, up) = (load(simd, self.1, at), load(simd, self.2, at));
                let (value, slope) = activation::Silu.both(simd, gate);
                store(simd, self.1, at, simd.mul(simd.mul(dy, up), slope));
                store(simd, self.2, at, simd.mul(dy, value));
            }
        }
    }
    assert_eq!((dy.len(), dy.len()), (gate.len(), up.len()), "lengths");
    dispatch(Backward(dy, gate, up));
}
