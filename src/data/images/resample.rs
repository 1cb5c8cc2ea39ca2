//! Scaling of images, bit for bit as Pillow up to 12.2 does it: backbones were trained on images scaled that way.
//!
//! Separable filters, stretched when scaling down so that every source pixel counts (antialiasing), weights in 22-bit
//! fixed point, columns first with an 8-bit image between the passes. Opacity: colours are premultiplied on the way in
//! and divided out on the way out. (Pillow 13 chooses the order of the passes by shape, which changes single pixels.)

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::image::Image;
use keel_cpu::simd::{self, Simd, Task};

/// Fractional bits of a weight; 32 less 8 of a pixel less 2 for sums that overshoot.
const WEIGHT_BITS: u32 = 22;

/// The interpolation filter of a resize, with antialiasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Linear, support 1.
    Bilinear,
    /// Cubic with a = −0.5, support 2 (Keys 1981, eq. 15).
    #[default]
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

impl Image {
    /// The image scaled to exactly `width` × `height`, whatever that does to its proportions.
    ///
    /// A side of zero, before or after, leaves nothing to scale: the outcome is then transparent.
    pub fn resize(&self, width: u32, height: u32, filter: Filter) -> Image {
        self.resize_part(width, height, [0, 0, width, height], filter)
    }

    /// The part of the scaled image whose left column, top row, width and height are given: the pixels are those of
    /// [`Image::resize`] and a crop, and no others are made.
    ///
    /// # Panics
    /// When the part does not lie within the scaled image.
    pub fn resize_part(
        &self,
        width: u32,
        height: u32,
        [left, top, part_width, part_height]: [u32; 4],
        filter: Filter,
    ) -> Image {
        assert!(left + part_width <= width && top + part_height <= height);
        if (width, height) == (self.width, self.height) {
            return self.crop(left.into(), top.into(), part_width, part_height);
        }
        if [width, height, self.width, self.height].contains(&0) {
            return Image::filled(part_width, part_height, [0; 4]);
        }
        let opaque = self.is_opaque();
        let mut pixels = Cow::Borrowed(&self.rgba[..]);
        if !opaque {
            pixels.to_mut().chunks_exact_mut(4).for_each(premultiply);
        }
        let part = |from: u32, count: u32| (from as usize, (from + count) as usize);
        let rows = taps(self.height, height, part(top, part_height), filter);
        // The rows that any row of the part takes from.
        let first = rows.iter().map(|tap| tap.first).min().unwrap_or(0);
        let last = rows.iter().map(|tap| tap.first + tap.weights.len()).max();
        let seen = first..last.unwrap_or(first);
        let stride = self.width as usize * 4;
        let mut pixels = simd::dispatch(Columns {
            pixels: &pixels[seen.start * stride..seen.end * stride],
            stride,
            taps: &taps(self.width, width, part(left, part_width), filter),
        });
        if height != self.height {
            pixels = simd::dispatch(Rows {
                pixels: &pixels,
                stride: part_width as usize * 4,
                first,
                taps: &rows,
            });
        }
        if !opaque {
            pixels.chunks_exact_mut(4).for_each(divide_out);
        }
        Image {
            width: part_width,
            height: part_height,
            rgba: pixels,
        }
    }

    /// The image scaled so that its shorter edge is `edge`, the longer one in proportion, rounded down.
    pub fn resize_shortest_edge(&self, edge: u32, filter: Filter) -> Image {
        let [width, height] = self.scaled_to_shortest_edge(edge);
        self.resize(width, height, filter)
    }

    /// Width and height of [`Image::resize_shortest_edge`].
    pub fn scaled_to_shortest_edge(&self, edge: u32) -> [u32; 2] {
        let scaled = |long: u32, short: u32| {
            (u64::from(edge) * u64::from(long) / u64::from(short.max(1))) as u32
        };
        if self.width <= self.height {
            [edge, scaled(self.height, self.width)]
        } else {
            [scaled(self.width, self.height), edge]
        }
    }
}

/// What one output position takes from the input: `weights[k]` of position `first + k`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Those of the output positions from `part.0` to before `part.1`. Where nothing is scaled each takes its own.
fn taps(input: u32, output: u32, part: (usize, usize), filter: Filter) -> Vec<Taps> {
    let (input, output) = (input as usize, output as usize);
    if input == output {
        let own = |first| Taps {
            first,
            weights: vec![1 << WEIGHT_BITS],
        };
        return (part.0..part.1).map(own).collect();
    }
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (part.0..part.1)
        .map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            let weights: Vec<f64> = (first..last)
                .map(|place| filter.weight((place as f64 - centre + 0.5) * (1.0 / stretch)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: f64| {
                let weight = if sum == 0.0 { weight } else { weight / sum };
                // Rounded half away from zero.
                (weight * f64::from(1 << WEIGHT_BITS) + 0.5_f64.copysign(weight)) as i32
            };
            Taps {
                first,
                weights: weights.into_iter().map(fixed).collect(),
            }
        })
        .collect()
}

/// A sum in fixed point, started at one half, as a channel value.
#[inline(always)]
fn channel(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Adds `values` times `weight` to the sums, one each.
#[inline(always)]
fn add_weighted(sums: &mut [i32], values: &[u8], weight: i32) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += i32::from(value) * weight;
    }
}

/// Writes the sums that there is room for.
#[inline(always)]
fn write_channels(sums: &[i32], to: &mut [u8]) {
    for (to, &sum) in to.iter_mut().zip(sums) {
        *to = channel(sum);
    }
}

/// [rows, from, 4] to [rows, taps, 4].
struct Columns<'a> {
    pixels: &'a [u8],
    /// Bytes of a row.
    stride: usize,
    taps: &'a [Taps],
}

impl Task for Columns<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<u8> {
        let rows = self.pixels.len() / self.stride;
        let mut scaled = vec![0; rows * self.taps.len() * 4];
        let width = (self.taps.len() * 4).max(1);
        for (row, to) in self
            .pixels
            .chunks_exact(self.stride)
            .zip(scaled.chunks_exact_mut(width))
        {
            for (tap, to) in self.taps.iter().zip(to.chunks_exact_mut(4)) {
                let from = &row[tap.first * 4..(tap.first + tap.weights.len()) * 4];
                let mut sums = [HALF; 4];
                for (pixel, &weight) in from.chunks_exact(4).zip(&tap.weights) {
                    add_weighted(&mut sums, pixel, weight);
                }
                write_channels(&sums, to);
            }
        }
        scaled
    }
}

/// Bytes of a row that are summed at once, in registers.
const BLOCK: usize = 64;

/// [from, columns, 4], its rows counted from `first`, to [taps, columns, 4].
struct Rows<'a> {
    pixels: &'a [u8],
    /// Bytes of a row.
    stride: usize,
    first: usize,
    taps: &'a [Taps],
}

impl Task for Rows<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<u8> {
        let stride = self.stride;
        let mut scaled = vec![0; stride * self.taps.len()];
        for (tap, to) in self.taps.iter().zip(scaled.chunks_exact_mut(stride.max(1))) {
            let from = &self.pixels[(tap.first - self.first) * stride..];
            for (block, to) in to.chunks_mut(BLOCK).enumerate() {
                let mut sums = [HALF; BLOCK];
                for (row, &weight) in from.chunks_exact(stride).zip(&tap.weights) {
                    let row = &row[block * BLOCK..block * BLOCK + to.len()];
                    match <&[u8; BLOCK]>::try_from(row) {
                        // A whole block: the compiler knows its length.
                        Ok(row) => add_weighted(&mut sums, row, weight),
                        Err(_) => add_weighted(&mut sums, row, weight),
                    }
                }
                write_channels(&sums, to);
            }
        }
        scaled
    }
}

fn premultiply(pixel: &mut [u8]) {
    let opacity = u32::from(pixel[3]);
    for value in &mut pixel[..3] {
        let product = u32::from(*value) * opacity + 128;
        *value = (((product >> 8) + product) >> 8) as u8;
    }
}

fn divide_out(pixel: &mut [u8]) {
    let opacity = u32::from(pixel[3]);
    if opacity != 0 && opacity != 255 {
        for value in &mut pixel[..3] {
            *value = (u32::from(*value) * 255 / opacity).min(255) as u8;
        }
    }
}
