//! Scaling of pictures, bit for bit as Pillow up to 12.2 does it: backbones were trained on pictures scaled that way.
//!
//! Separable filters, stretched when scaling down so that every source pixel counts (antialiasing), weights in 22-bit
//! fixed point, columns first with an 8-bit picture between the passes. Opacity: colours are premultiplied on the way in
//! and divided out on the way out. (Pillow 13 chooses the order of the passes by shape, which changes single pixels.)

use serde::{Deserialize, Serialize};

use super::picture::Picture;

/// Fractional bits of a weight; 32 less 8 of a pixel less 2 for sums that overshoot.
const WEIGHT_BITS: u32 = 22;

/// The interpolation kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = −0.5, support 2 (Keys 1981, eq. 15).
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

impl Picture {
    /// The picture scaled to exactly `width` × `height`, whatever that does to its proportions.
    ///
    /// A side of zero, before or after, leaves nothing to scale: the outcome is then transparent.
    pub fn resize(&self, width: u32, height: u32, filter: Filter) -> Picture {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        if [width, height, self.width, self.height].contains(&0) {
            return Picture::filled(width, height, [0; 4]);
        }
        let opaque = self.is_opaque();
        let mut pixels = self.rgba.clone();
        if !opaque {
            pixels.chunks_exact_mut(4).for_each(premultiply);
        }
        if width != self.width {
            pixels = scale_columns(&pixels, self.width as usize, width as usize, filter);
        }
        if height != self.height {
            pixels = scale_rows(&pixels, width as usize, height as usize, filter);
        }
        if !opaque {
            pixels.chunks_exact_mut(4).for_each(divide_out);
        }
        Picture {
            width,
            height,
            rgba: pixels,
        }
    }

    /// The picture scaled so that its shorter edge is `edge`, the longer one in proportion, rounded down.
    pub fn resize_shortest_edge(&self, edge: u32, filter: Filter) -> Picture {
        let scaled = |long: u32, short: u32| {
            (u64::from(edge) * u64::from(long) / u64::from(short.max(1))) as u32
        };
        if self.width <= self.height {
            self.resize(edge, scaled(self.height, self.width), filter)
        } else {
            self.resize(scaled(self.width, self.height), edge, filter)
        }
    }
}

/// What one output position takes from the input: `weights[k]` of position `first + k`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(input: usize, output: usize, filter: Filter) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..output)
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
fn channel(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// [rows, from, 4] to [rows, to, 4].
fn scale_columns(pixels: &[u8], from: usize, to: usize, filter: Filter) -> Vec<u8> {
    let taps = taps(from, to, filter);
    let mut scaled = Vec::with_capacity(pixels.len() / from * to);
    for row in pixels.chunks_exact(from * 4) {
        for tap in &taps {
            let mut sums = [HALF; 4];
            for (pixel, &weight) in row[tap.first * 4..].chunks_exact(4).zip(&tap.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            scaled.extend(sums.map(channel));
        }
    }
    scaled
}

/// [from, columns, 4] to [to, columns, 4].
fn scale_rows(pixels: &[u8], columns: usize, to: usize, filter: Filter) -> Vec<u8> {
    let stride = columns * 4;
    let taps = taps(pixels.len() / stride, to, filter);
    let mut scaled = Vec::with_capacity(stride * to);
    let mut sums = vec![HALF; stride];
    for tap in &taps {
        sums.fill(HALF);
        for (row, &weight) in pixels[tap.first * stride..]
            .chunks_exact(stride)
            .zip(&tap.weights)
        {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        scaled.extend(sums.iter().map(|&sum| channel(sum)));
    }
    scaled
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
