//! Seeded random inputs. The same seed gives the same numbers on every machine.

use keel::random::Stream;

/// A stream of random numbers.
#[derive(Debug)]
pub struct Random(Stream);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(Stream::of_seed(seed))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0.uniform()
    }

    /// Uniform in 0..limit.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.uniform() * limit as f64) as usize
    }

    /// Normal with mean 0 and standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        self.0.normal()
    }

    /// `count` normal numbers times `scale`, rounded to f32.
    pub fn normals(&mut self, count: usize, scale: f64) -> Vec<f32> {
        (0..count).map(|_| (self.normal() * scale) as f32).collect()
    }

    /// `count` whole numbers in −2..=2.
    pub fn whole(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.below(5) as f32 - 2.0).collect()
    }

    /// `count` integers in 0..limit.
    pub fn integers(&mut self, count: usize, limit: usize) -> Vec<i32> {
        (0..count).map(|_| self.below(limit) as i32).collect()
    }
}
