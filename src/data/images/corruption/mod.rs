//! Corruptions of images in five severities, to measure how robust features are (after ImageNet-C, Hendrycks and
//! Dietterich 2019). All are pure functions of the image: what is random is drawn from a hash of its pixels.

mod jpeg;

use keel_base::random::{Purpose, Stream};

/// The strongest severity; 0 leaves an image as it is.
pub const SEVERITIES: usize = 5;

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// Gaussian noise added to every channel.
    Noise,
    /// A Gaussian blur.
    Blur,
    /// Less contrast about each channel's mean.
    Contrast,
    /// The loss of a JPEG file.
    Jpeg,
    /// A grey square laid over a part.
    Occlusion,
    /// Turned about the centre.
    Rotation,
    /// Shrunk, on more background.
    Scale,
}

impl Corruption {
    /// All, in the order of reports.
    pub const ALL: [Corruption; 7] = [
        Corruption::Noise,
        Corruption::Blur,
        Corruption::Contrast,
        Corruption::Jpeg,
        Corruption::Occlusion,
        Corruption::Rotation,
        Corruption::Scale,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Corruption::Noise => "noise",
            Corruption::Blur => "blur",
            Corruption::Contrast => "contrast",
            Corruption::Jpeg => "jpeg",
            Corruption::Occlusion => "occlusion",
            Corruption::Rotation => "rotation",
            Corruption::Scale => "scale",
        }
    }

    /// The strength of each severity from 1: the deviation of the noise and of the blur (in pixels of an image 224 wide),
    /// the share of contrast left, the quality of the file (the four as in ImageNet-C), the side of the square over the
    /// image's, the turn in degrees, and the size left.
    pub fn strengths(self) -> [f32; SEVERITIES] {
        match self {
            Corruption::Noise => [0.08, 0.12, 0.18, 0.26, 0.38],
            Corruption::Blur => [1.0, 2.0, 3.0, 4.0, 6.0],
            Corruption::Contrast => [0.4, 0.3, 0.2, 0.1, 0.05],
            Corruption::Jpeg => [25.0, 18.0, 15.0, 10.0, 7.0],
            Corruption::Occlusion => [0.2, 0.3, 0.4, 0.5, 0.6],
            Corruption::Rotation => [10.0, 20.0, 30.0, 45.0, 60.0],
            Corruption::Scale => [0.8, 0.65, 0.5, 0.35, 0.25],
        }
    }

    /// Changes a normalised image [3, `side`, `side`], values −1..1, by `severity`, 0 to [`SEVERITIES`].
    ///
    /// # Panics
    /// When the image has another size or there is no such severity.
    pub fn apply(self, image: &mut [f32], side: usize, severity: usize) {
        assert_eq!(image.len(), 3 * side * side, "an image of three planes");
        if severity == 0 {
            return;
        }
        let strength = self.strengths()[severity - 1];
        let hash = blake3::hash(bytemuck::cast_slice(image));
        let seed = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        let mut draws = Stream::new(seed, Purpose::Evaluation, 4, self as u64);
        let planes = image.chunks_exact_mut(side * side);
        match self {
            Corruption::Noise => {
                for value in image.iter_mut() {
                    // Box and Muller 1958; the deviation is of values 0..1.
                    let radius = (-2.0 * (1.0 - draws.unit()).ln()).sqrt();
                    let normal = radius * (std::f32::consts::TAU * draws.unit()).cos();
                    *value = (*value + 2.0 * strength * normal).clamp(-1.0, 1.0);
                }
            }
            Corruption::Blur => {
                let deviation = strength * side as f32 / 224.0;
                planes.for_each(|plane| blur(plane, side, deviation));
            }
            Corruption::Contrast => planes.for_each(|plane| {
                let mean = plane.iter().sum::<f32>() / plane.len() as f32;
                for value in plane {
                    *value = mean + strength * (*value - mean);
                }
            }),
            Corruption::Jpeg => jpeg::lose(image, side, strength as u32),
            Corruption::Occlusion => {
                let size = ((strength * side as f32).round() as usize).clamp(1, side);
                let left = draws.below(side - size + 1);
                let top = draws.below(side - size + 1);
                for plane in planes {
                    for row in plane.chunks_exact_mut(side).skip(top).take(size) {
                        row[left..left + size].fill(0.0);
                    }
                }
            }
            Corruption::Rotation => {
                let turn = if draws.chance(0.5) {
                    strength
                } else {
                    -strength
                };
                let (sine, cosine) = turn.to_radians().sin_cos();
                redraw(image, side, |x, y| {
                    [cosine * x + sine * y, cosine * y - sine * x]
                });
            }
            Corruption::Scale => redraw(image, side, |x, y| [x / strength, y / strength]),
        }
    }
}

/// A separable Gaussian blur, cut off at four deviations; the edge goes on outside.
fn blur(plane: &mut [f32], side: usize, deviation: f32) {
    let reach = (4.0 * deviation + 0.5) as isize;
    let mut weights: Vec<f32> = (-reach..=reach)
        .map(|k| (-0.5 * (k as f32 / deviation).powi(2)).exp())
        .collect();
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    let mut line = vec![0.0; side];
    for (start, step) in (0..side)
        .map(|row| (row * side, 1))
        .chain((0..side).map(|column| (column, side)))
    {
        for (at, value) in line.iter_mut().enumerate() {
            *value = weights
                .iter()
                .enumerate()
                .map(|(k, weight)| {
                    let from = at as isize + k as isize - reach;
                    let from = from.clamp(0, side as isize - 1) as usize;
                    weight * plane[start + from * step]
                })
                .sum();
        }
        for (at, value) in line.iter().enumerate() {
            plane[start + at * step] = *value;
        }
    }
}

/// Draws the image anew, bilinear: what is at (x, y) from the centre comes from `source(x, y)`; what lies outside the
/// image has the colour of its first corner.
fn redraw(image: &mut [f32], side: usize, source: impl Fn(f32, f32) -> [f32; 2]) {
    let before = image.to_vec();
    let centre = (side as f32 - 1.0) / 2.0;
    for (plane, before) in image
        .chunks_exact_mut(side * side)
        .zip(before.chunks_exact(side * side))
    {
        let background = before[0];
        let at = |x: isize, y: isize| {
            let inside = (0..side as isize).contains(&x) && (0..side as isize).contains(&y);
            if inside {
                before[y as usize * side + x as usize]
            } else {
                background
            }
        };
        for (index, value) in plane.iter_mut().enumerate() {
            let (x, y) = (
                (index % side) as f32 - centre,
                (index / side) as f32 - centre,
            );
            let [x, y] = source(x, y).map(|offset| offset + centre);
            let (left, top) = (x.floor(), y.floor());
            let (right_share, low_share) = (x - left, y - top);
            let (left, top) = (left as isize, top as isize);
            let upper = at(left, top) * (1.0 - right_share) + at(left + 1, top) * right_share;
            let lower =
                at(left, top + 1) * (1.0 - right_share) + at(left + 1, top + 1) * right_share;
            *value = upper * (1.0 - low_share) + lower * low_share;
        }
    }
}
