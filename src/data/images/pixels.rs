//! The form in which a tower takes its images: how they become square, how they are scaled, and how their colours become
//! numbers.

use serde::{Deserialize, Serialize};

use super::resample::Filter;

/// How an image that is not square becomes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Shorter edge resized to the square's, then a centre crop (CLIP, AIMv2).
    #[default]
    Crop,
    /// Shorter edge resized to this many pixels, more than the square's, then a centre crop (DINOv2).
    CropFrom(u32),
    /// Both edges resized to the square, without regard to the aspect ratio (SigLIP, InternViT).
    Stretch,
    /// Both edges resized to this many pixels, more than the square's, then a centre crop (DeiT).
    StretchFrom(u32),
}

/// How images become numbers: resized to the tower's square, then (value − mean) / std of each channel, with values from 0
/// to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pixels {
    /// Mean of red, green and blue, values from 0 to 1.
    ///
    /// - Range: finite
    /// - Source: 0.48145466, 0.4578275, 0.40821073 (CLIP, AIMv2); 0.485, 0.456, 0.406 (InternVL, SAIL-VL, DINOv2); 0.5 (SigLIP)
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    ///
    /// - Range: above 0
    /// - Source: 0.26862954, 0.26130258, 0.27577711 (CLIP, AIMv2); 0.229, 0.224, 0.225 (InternVL, SAIL-VL, DINOv2); 0.5 (SigLIP)
    pub std: [f32; 3],
    /// How an image that is not square becomes one.
    #[serde(default)]
    pub fit: Fit,
    /// The interpolation filter of the resize.
    #[serde(default)]
    pub filter: Filter,
}

impl Default for Pixels {
    /// Mean and std 0.5: numbers from −1 to 1.
    fn default() -> Pixels {
        Pixels {
            mean: [0.5; 3],
            std: [0.5; 3],
            fit: Fit::default(),
            filter: Filter::default(),
        }
    }
}

impl Pixels {
    /// Turns an image [3, S, S] of numbers from −1 to 1 into this form.
    pub fn apply(&self, image: &mut [f32]) {
        self.each(image, |value, mean, deviation| {
            (value * 0.5 + 0.5 - mean) / deviation
        });
    }

    /// Turns an image of this form back into numbers from −1 to 1.
    pub fn undo(&self, image: &mut [f32]) {
        self.each(image, |value, mean, deviation| {
            (value * deviation + mean - 0.5) / 0.5
        });
    }

    fn each(&self, image: &mut [f32], change: impl Fn(f32, f32, f32) -> f32) {
        // Exactly the numbers that are there.
        let plain = Pixels::default();
        if (self.mean, self.std) == (plain.mean, plain.std) {
            return;
        }
        let plane = image.len() / 3;
        for (colour, plane) in image.chunks_exact_mut(plane).enumerate() {
            let (mean, deviation) = (self.mean[colour], self.std[colour]);
            plane
                .iter_mut()
                .for_each(|value| *value = change(*value, mean, deviation));
        }
    }
}
