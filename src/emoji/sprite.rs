//! Images made ready for composing: premultiplied alpha, a short pyramid of halved sizes and the box that is not empty.
//! Drawing is one inverse-mapped bilinear pass over the pixels that the sprite covers, so a scene costs
//! about as much as its area, whatever the size of the sources.

use keel_data::frame::Frame;

/// How a sprite is laid on the frame, in units of the frame's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Centre of the sprite's tight box, (x, y) in 0..1, y downwards.
    pub centre: [f32; 2],
    /// The longer side of the upright box around the turned tight box.
    pub side: f32,
    /// Turn in radians, clockwise on the screen.
    pub rotation: f32,
    /// Left and right swapped.
    pub mirrored: bool,
}

/// One level of the pyramid: `[height + 2, width + 2]` premultiplied pixels with a border, so that the four neighbours of
/// any point inside exist.
#[derive(Clone, Debug)]
struct Level {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 4]>,
}

impl Level {
    /// The border is empty, or repeats the edge of an image without transparency.
    fn bordered(width: usize, height: usize, inner: &[[u8; 4]], opaque: bool) -> Level {
        let stride = width + 2;
        let mut pixels = vec![[0; 4]; stride * (height + 2)];
        for (line, row) in inner
            .chunks_exact(width)
            .zip(pixels.chunks_exact_mut(stride).skip(1))
        {
            row[1..=width].copy_from_slice(line);
            if opaque {
                (row[0], row[width + 1]) = (line[0], line[width - 1]);
            }
        }
        if opaque {
            pixels.copy_within(stride..2 * stride, 0);
            pixels.copy_within(
                height * stride..(height + 1) * stride,
                (height + 1) * stride,
            );
        }
        Level {
            width,
            height,
            pixels,
        }
    }
}

/// An image ready to be drawn at any size.
#[derive(Clone, Debug)]
pub struct Sprite {
    levels: Vec<Level>,
    /// Left, top, right, bottom of what is not empty, in pixels of the first level.
    extent: [f32; 4],
}

impl Sprite {
    /// Prepares straight RGBA pixels, row-major `[height, width, 4]`. Missing pixels count as empty, and an image without
    /// any pixel as one empty pixel.
    pub fn new(width: usize, height: usize, rgba: &[u8]) -> Sprite {
        let (width, height) = (width.max(1), height.max(1));
        // Premultiplied before anything is averaged: transparent pixels have a colour too, and it would bleed into the
        // edges.
        let mut inner = vec![[0; 4]; width * height];
        for (pixel, p) in inner.iter_mut().zip(rgba.chunks_exact(4)) {
            *pixel = premultiplied([p[0], p[1], p[2], p[3]]);
        }
        let extent = extent(width, height, &inner);
        let opaque = inner.iter().all(|pixel| pixel[3] == 255);
        let (mut w, mut h) = (width, height);
        let mut levels = vec![Level::bordered(w, h, &inner, opaque)];
        while w.min(h) >= 16 {
            inner = halve(w, h, &inner);
            (w, h) = (w / 2, h / 2);
            levels.push(Level::bordered(w, h, &inner, opaque));
        }
        Sprite { levels, extent }
    }

    /// Half the width and half the height of the upright box around the turned tight box, in pixels of the source.
    fn half_box(&self, rotation: f32) -> [f32; 2] {
        let [left, top, right, bottom] = self.extent;
        let (half_width, half_height) = ((right - left) / 2.0, (bottom - top) / 2.0);
        let (sin, cos) = (rotation.sin().abs(), rotation.cos().abs());
        [
            half_width * cos + half_height * sin,
            half_width * sin + half_height * cos,
        ]
    }

    /// The upright box that `placement` covers: left, top, right, bottom in units of the frame's side.
    pub fn covered(&self, placement: &Placement) -> [f32; 4] {
        let [half_x, half_y] = self.half_box(placement.rotation);
        let scale = placement.side / (2.0 * half_x.max(half_y)).max(1.0);
        let [x, y] = placement.centre;
        [
            x - half_x * scale,
            y - half_y * scale,
            x + half_x * scale,
            y + half_y * scale,
        ]
    }

    /// Draws the sprite over what `frame` holds.
    pub fn draw(&self, placement: &Placement, frame: &mut Frame) {
        let side = frame.side() as f32;
        let [half_x, half_y] = self.half_box(placement.rotation);
        // Frame pixels per source pixel.
        let scale = placement.side * side / (2.0 * half_x.max(half_y)).max(1.0);
        let [left, top, right, bottom] = self.covered(placement);
        let source_centre = [
            (self.extent[0] + self.extent[2]) / 2.0,
            (self.extent[1] + self.extent[3]) / 2.0,
        ];
        self.draw_mapped(
            frame,
            [
                left * side - 1.0,
                top * side - 1.0,
                right * side + 1.0,
                bottom * side + 1.0,
            ],
            [placement.centre[0] * side, placement.centre[1] * side],
            source_centre,
            scale,
            placement.rotation,
            placement.mirrored,
        );
    }

    /// For every frame pixel in `region` (pixels), takes the source colour at
    /// `source_centre + M·R(−rotation)·(pixel − frame_centre)/scale` from the level nearest in size. Outside the source
    /// the frame stays as it is.
    #[allow(clippy::too_many_arguments)]
    fn draw_mapped(
        &self,
        frame: &mut Frame,
        region: [f32; 4],
        frame_centre: [f32; 2],
        source_centre: [f32; 2],
        scale: f32,
        rotation: f32,
        mirrored: bool,
    ) {
        // The coarsest level that still has at least 0.7 source pixels a frame pixel avoids aliasing without blurring.
        let mut depth = 0;
        while depth + 1 < self.levels.len() && scale * ((1u32 << depth) as f32) < 0.7 {
            depth += 1;
        }
        let level = &self.levels[depth];
        let shrink = 1.0 / (1u32 << depth) as f32;
        let step = shrink / scale;
        let (sin, cos) = rotation.sin_cos();
        let flip = if mirrored { -1.0 } else { 1.0 };
        let (step_x, step_y) = (
            [cos * step * flip, -sin * step],
            [sin * step * flip, cos * step],
        );
        let width = frame.side();
        let pixels = frame.pixels_mut();
        let clip = |value: f32| value.clamp(0.0, width as f32) as usize;
        let [x_from, y_from] = [clip(region[0].floor()), clip(region[1].floor())];
        let [x_to, y_to] = [clip(region[2].ceil()), clip(region[3].ceil())];
        let stride = level.width + 2;
        let (limit_x, limit_y) = (level.width as f32 + 0.5, level.height as f32 + 0.5);
        // Over the frame, asking each pixel where it comes from: over the sprite, rotated pixels would leave holes.
        for y in y_from..y_to {
            let dy = y as f32 + 0.5 - frame_centre[1];
            let dx = x_from as f32 + 0.5 - frame_centre[0];
            // Source position in bordered pixels: the centre of inner pixel 0 is 1.0.
            let mut u = source_centre[0] * shrink + dx * step_x[0] + dy * step_y[0] + 0.5;
            let mut v = source_centre[1] * shrink + dx * step_x[1] + dy * step_y[1] + 0.5;
            let row = &mut pixels[y * width..(y + 1) * width];
            for pixel in &mut row[x_from.min(x_to)..x_to] {
                // The border makes the four taps valid everywhere inside these limits, without a test of their own.
                if u >= 0.5 && v >= 0.5 && u < limit_x && v < limit_y {
                    let (column, line) = (u as usize, v as usize);
                    let (fx, fy) = (u - column as f32, v - line as f32);
                    let at = line * stride + column;
                    let upper = &level.pixels[at..at + 2];
                    let lower = &level.pixels[at + stride..at + stride + 2];
                    let weights = [
                        (1.0 - fx) * (1.0 - fy),
                        fx * (1.0 - fy),
                        (1.0 - fx) * fy,
                        fx * fy,
                    ];
                    let mut mixed = [0.0f32; 4];
                    for c in 0..4 {
                        let of = |tap: [u8; 4], weight: f32| weight * f32::from(tap[c]);
                        mixed[c] = of(upper[0], weights[0])
                            + of(upper[1], weights[1])
                            + of(lower[0], weights[2])
                            + of(lower[1], weights[3]);
                    }
                    let keep = 1.0 - mixed[3] * (1.0 / 255.0);
                    for c in 0..4 {
                        pixel[c] = mixed[c] + keep * pixel[c];
                    }
                }
                u += step_x[0];
                v += step_x[1];
            }
        }
    }
}

/// A straight colour as a sprite holds it: premultiplied, in 8 bits.
pub fn quantised(colour: [u8; 4]) -> [u8; 4] {
    unpremultiplied(premultiplied(colour))
}

// Most pixels are opaque or empty, and neither needs a division.

fn premultiplied([r, g, b, alpha]: [u8; 4]) -> [u8; 4] {
    let weigh = |c: u8| ((u32::from(c) * u32::from(alpha) + 127) / 255) as u8;
    match alpha {
        0 => [0; 4],
        255 => [r, g, b, 255],
        _ => [weigh(r), weigh(g), weigh(b), alpha],
    }
}

fn unpremultiplied([r, g, b, alpha]: [u8; 4]) -> [u8; 4] {
    if alpha == 0 || alpha == 255 {
        return [r, g, b, alpha];
    }
    let alpha32 = u32::from(alpha);
    let straight = |c: u8| ((u32::from(c) * 255 + alpha32 / 2) / alpha32).min(255) as u8;
    [straight(r), straight(g), straight(b), alpha]
}

/// The box of pixels whose alpha is above 8; the whole image when there is none.
fn extent(width: usize, height: usize, pixels: &[[u8; 4]]) -> [f32; 4] {
    let (mut left, mut top, mut right, mut bottom) = (width, height, 0, 0);
    for (y, row) in pixels.chunks_exact(width).enumerate() {
        let is_seen = |pixel: &[u8; 4]| pixel[3] > 8;
        if let (Some(first), Some(last)) =
            (row.iter().position(is_seen), row.iter().rposition(is_seen))
        {
            left = left.min(first);
            right = right.max(last + 1);
            top = top.min(y);
            bottom = y + 1;
        }
    }
    if left >= right {
        return [0.0, 0.0, width as f32, height as f32];
    }
    [left, top, right, bottom].map(|edge| edge as f32)
}

/// The image at half the size, each pixel the mean of four; an odd last row or column is dropped.
fn halve(width: usize, height: usize, pixels: &[[u8; 4]]) -> Vec<[u8; 4]> {
    let mut out = Vec::with_capacity((width / 2) * (height / 2));
    for y in 0..height / 2 {
        for x in 0..width / 2 {
            let at = 2 * y * width + 2 * x;
            let (upper, lower) = (&pixels[at..at + 2], &pixels[at + width..at + width + 2]);
            let mut mean = [0; 4];
            for c in 0..4 {
                let of = |pixel: [u8; 4]| u32::from(pixel[c]);
                let sum = of(upper[0]) + of(upper[1]) + of(lower[0]) + of(lower[1]);
                mean[c] = ((sum + 2) / 4) as u8;
            }
            out.push(mean);
        }
    }
    out
}
