//! What the machine's multiply-add units can do at most, measured: the roof that throughput is compared with.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::bf16_products::{Bf16Products, TILE_TERMS, bf16_products, multiply_tiles};
use super::simd::{LANES, Simd, Task, dispatch_pairs};
use super::tile_unit::{Model, Tiles, amx};

/// Multiply-adds of each sum between looks at the clock.
const ROUNDS: usize = 4096;
/// How long every thread computes.
const TIME: Duration = Duration::from_millis(25);
/// Runs at most: on a clock that stands still, that time never comes.
const MOST_RUNS: usize = 1 << 13;

/// Floating-point operations a second that the threads of the current pool reach together, in registers alone; 0 where the
/// clock saw no time pass.
pub fn measure() -> f64 {
    on_all_threads(|| one(MultiplyAdd::<false>))
}

/// As [`measure`], of what multiplies bf16 numbers on the current thread: tiles, pairs, or widened numbers as f32.
pub fn measure_bf16() -> f64 {
    match (bf16_products(), amx()) {
        (Bf16Products::Tiles, Some(amx)) => on_all_threads(|| one(MultiplyTiles(amx))),
        (Bf16Products::Tiles, None) => on_all_threads(|| one(MultiplyTiles(Model))),
        (Bf16Products::Pairs, _) => on_all_threads(|| one(MultiplyAdd::<true>)),
        (Bf16Products::Widened, _) => measure(),
    }
}

fn on_all_threads(one: impl Fn() -> f64 + Sync) -> f64 {
    let threads = rayon::current_num_threads();
    let rates: Vec<f64> = (0..threads)
        .into_par_iter()
        .with_max_len(1)
        .map(|_| one())
        .collect();
    rates.iter().sum()
}

/// The median of many short runs on this thread: what others take of the core, they take of what is compared with it too, and
/// the best run of a shared core is one that nothing else ever has.
fn one(burst: impl Task<Output = (f32, f64)> + Copy) -> f64 {
    let start = Instant::now();
    let mut rates = Vec::new();
    for _ in 0..MOST_RUNS {
        if start.elapsed() >= TIME {
            break;
        }
        let before = Instant::now();
        let (sum, flops) = dispatch_pairs(burst);
        let seconds = before.elapsed().as_secs_f64();
        // The sum is used, so that it must be computed.
        if sum.is_finite() && seconds > 0.0 {
            rates.push(flops / seconds);
        }
    }
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// Elements of each array that is streamed: far more than caches hold.
const STREAMED: usize = 32 << 20;
/// Passes, of which the fastest counts.
const PASSES: usize = 4;

/// Bytes a second that memory gives to the threads of the current pool: y = 0.5·x over arrays that no cache holds, each
/// read or written once (the `scale` of McCalpin's STREAM, by its own count); 0 where the clock saw no time pass.
pub fn measure_bandwidth() -> f64 {
    let (x, mut y) = (vec![1.0f32; STREAMED], vec![0.0f32; STREAMED]);
    let part = STREAMED.div_ceil(rayon::current_num_threads());
    let mut best: f64 = 0.0;
    for _ in 0..PASSES {
        let start = Instant::now();
        y.par_chunks_mut(part)
            .zip(x.par_chunks(part))
            .for_each(|(y, x)| {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = 0.5 * x;
                }
            });
        let bytes = (2 * STREAMED * size_of::<f32>()) as f64;
        let seconds = start.elapsed().as_secs_f64();
        if seconds > 0.0 {
            best = best.max(bytes / seconds);
        }
    }
    // What was written is used, so that it must be.
    std::hint::black_box(&y);
    best
}

/// Rounds of tiles between looks at the clock, sixty-four cycles each at best.
const TILE_ROUNDS: usize = 256;

#[derive(Clone, Copy)]
struct MultiplyTiles<T>(T);

impl<T: Tiles> Task for MultiplyTiles<T> {
    type Output = (f32, f64);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f64) {
        let sum = multiply_tiles(simd, self.0, TILE_ROUNDS);
        (sum, (2 * TILE_TERMS * TILE_ROUNDS) as f64)
    }
}

#[derive(Clone, Copy)]
struct MultiplyAdd<const PAIRS: bool>;

impl<const PAIRS: bool> Task for MultiplyAdd<PAIRS> {
    /// The sums added up, and the floating-point operations that made them.
    type Output = (f32, f64);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f64) {
        // As many sums as registers hold: a multiply-add takes four or five cycles, and two may start in each.
        if S::TILE_ROWS * S::TILE_VECTORS >= 16 {
            chains::<S, 16, PAIRS>(simd)
        } else {
            chains::<S, 6, PAIRS>(simd)
        }
    }
}

#[inline(always)]
fn chains<S: Simd, const SUMS: usize, const PAIRS: bool>(simd: S) -> (f32, f64) {
    let factor = simd.splat(std::hint::black_box(0.999));
    let mut sums = [simd.splat(1.0); SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = if PAIRS {
                simd.dot_pairs(factor, factor, *sum)
            } else {
                simd.mul_add(*sum, factor, factor)
            };
        }
    }
    let total = sums.into_iter().reduce(|a, b| simd.add(a, b));
    let total = simd.sum(total.expect("there are sums"));
    let terms = if PAIRS { 2 } else { 1 };
    (total, (2 * terms * LANES * SUMS * ROUNDS) as f64)
}
