//! How products of bf16 numbers are computed, and which way is faster here.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Instant;

use super::simd::{LANES, Simd, Task, dispatch_pairs, has_pairs};

/// How the products of linear layers and of attention are computed where they are stored in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Products {
    /// Widened to f32 on the way into fused multiply-adds: on every machine, with the same bits wherever those of f32 are.
    Widened,
    /// In pairs, by the instruction `vdpbf16ps` or its model ([`Simd::dot_pairs`]).
    Pairs,
}

impl Bf16Products {
    /// The words for it.
    pub const fn name(self) -> &'static str {
        match self {
            Bf16Products::Widened => "products in f32",
            Bf16Products::Pairs => "products by vdpbf16ps",
        }
    }
}

thread_local! {
    static CHOSEN: Cell<Option<Bf16Products>> = const { Cell::new(None) };
}

/// How this thread begins products: as was asked of it, and otherwise the faster way of this machine, which is measured
/// once.
pub fn bf16_products() -> Bf16Products {
    CHOSEN.get().unwrap_or_else(faster)
}

/// From now on this thread begins products this way, whether or not it is the faster one. For tests and measurements.
pub fn set_bf16_products(products: Bf16Products) {
    CHOSEN.set(Some(products));
}

/// Independent sums in flight.
const SUMS: usize = 16;
/// Rounds of one burst: a few microseconds, so that most bursts are not interrupted.
const ROUNDS: usize = 1024;
/// Bursts of each kind, in turn.
const BURSTS: usize = 31;

/// The faster way of this machine. An AVX-512 unit for bf16 is twice as fast as one for f32 on AMD's Zen 4 and 5 and half as
/// fast on Intel's Sapphire Rapids: what a machine has says nothing, so it is measured, in registers alone. Ratios are far
/// from 1 on either side, so that the answer is the same every time.
fn faster() -> Bf16Products {
    static FASTER: OnceLock<Bf16Products> = OnceLock::new();
    *FASTER.get_or_init(|| {
        if has_pairs() && median_ratio() > 1.0 {
            Bf16Products::Pairs
        } else {
            Bf16Products::Widened
        }
    })
}

/// How many times as many terms pairs take in a second as fused multiply-adds.
fn median_ratio() -> f64 {
    let seconds = |is_pairs| {
        let start = Instant::now();
        std::hint::black_box(dispatch_pairs(Burst { is_pairs }));
        start.elapsed().as_secs_f64()
    };
    // In turn, so that whatever disturbs the machine meets both alike.
    let mut ratios: Vec<f64> = (0..BURSTS)
        .map(|_| 2.0 * seconds(false) / seconds(true))
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[BURSTS / 2]
}

struct Burst {
    is_pairs: bool,
}

impl Task for Burst {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        // As two bf16 numbers it is 0.5 and 0; as one of f32, 0.5.
        let factor = simd.splat(std::hint::black_box(0.5));
        let mut sums = [simd.splat(1.0); SUMS];
        if self.is_pairs {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.dot_pairs(factor, factor, *sum);
                }
            }
        } else {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.mul_add(factor, factor, *sum);
                }
            }
        }
        let total = sums.into_iter().reduce(|a, b| simd.add(a, b));
        simd.sum(total.expect("there are sums")) / LANES as f32
    }
}
