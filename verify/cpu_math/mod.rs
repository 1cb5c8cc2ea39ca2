//! The CPU executor's primitives against f64 loops, on every instruction path and thread count.

mod bf16;
mod functions;
mod products;
mod tile_units;

use keel::cpu::simd::{Level, detected, limit};

use crate::harness::Random;

/// Unit roundoff of f32.
const ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;

/// Runs `body` on every path this machine has, one after the other, in a pool of `threads`.
fn on_every_path(threads: usize, body: impl Fn(Level) + Sync) {
    for &level in Level::COMPILED {
        if detected() >= level {
            with_threads(threads, level, || body(level));
        }
    }
}

/// Whether the portable path rounds as the others do: it fuses multiply-add only where the target's baseline has it.
fn same_bits_as_widest(level: Level) -> bool {
    level != Level::Portable || cfg!(any(target_arch = "aarch64", target_feature = "fma"))
}

fn draw(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len)
        .map(|_| (2.0 * random.uniform() - 1.0) as f32)
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Runs `body` inside a pool of `threads` that use paths up to `widest`.
fn with_threads<T: Send>(threads: usize, widest: Level, body: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(move |_| {
            limit(widest);
        })
        .build()
        .expect("threads can be had in a test")
        .install(body)
}
