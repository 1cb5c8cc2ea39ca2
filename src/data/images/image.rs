//! Images in memory, and the few operations training needs on them. Reading their files is in `decode`, scaling in
//! [`super::resample`].

use keel_base::random::scramble;

/// Bounds on what one file may ask for.
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    /// Largest width × height accepted; decoding needs about 7 bytes a pixel, 13 for a progressive JPEG, 16 for a TIFF of 16 bits.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    /// 67 million pixels: a 64-megapixel photograph passes.
    fn default() -> ImageLimits {
        ImageLimits {
            max_pixels: 1 << 26,
        }
    }
}

/// An image in memory: straight (not premultiplied) RGBA, 8 bits a channel, rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// [height, width, 4] channel values.
    pub rgba: Vec<u8>,
}

impl Image {
    /// An image of one colour.
    pub fn filled(width: u32, height: u32, colour: [u8; 4]) -> Image {
        let pixels = width as usize * height as usize;
        Image {
            width,
            height,
            rgba: colour.repeat(pixels),
        }
    }

    /// A number that tells images apart by their size and pixels. Equal images have equal ones, whatever files they came
    /// from; that two others agree by chance is a matter of one in 2⁶⁴.
    pub fn content(&self) -> u64 {
        // Four chains of mixing instead of one: each step waits for the one before it, and the chains do not wait for each
        // other. A photograph takes a hundredth of the time of decoding it.
        let mut chains = [u64::from(self.width), u64::from(self.height), 2, 3].map(scramble);
        let (blocks, rest) = self.rgba.as_chunks::<32>();
        for block in blocks {
            for (chain, word) in chains.iter_mut().zip(block.as_chunks::<8>().0) {
                *chain = scramble(*chain ^ u64::from_le_bytes(*word));
            }
        }
        for (index, byte) in rest.iter().enumerate() {
            let chain = &mut chains[index % 4];
            *chain = scramble(*chain ^ u64::from(*byte));
        }
        // In a row and not by exclusive or, in which two equal chains would vanish.
        chains
            .into_iter()
            .fold(0, |all, chain| scramble(all.rotate_left(1) ^ chain))
    }

    /// Whether every pixel hides what is behind it.
    pub fn is_opaque(&self) -> bool {
        self.rgba.chunks_exact(4).all(|pixel| pixel[3] == 255)
    }

    /// The image laid over a background colour: every pixel opaque, rounded as Pillow's `paste` with a mask does.
    pub fn flatten(&self, background: [u8; 3]) -> Image {
        let mut rgba = self.rgba.clone();
        for pixel in rgba.chunks_exact_mut(4) {
            let opacity = u32::from(pixel[3]);
            for (channel, &behind) in pixel.iter_mut().zip(&background) {
                let sum = u32::from(*channel) * opacity + u32::from(behind) * (255 - opacity) + 128;
                *channel = (((sum >> 8) + sum) >> 8) as u8;
            }
            pixel[3] = 255;
        }
        Image { rgba, ..*self }
    }

    /// The part `width` × `height` whose corner is at column `left`, row `top`; outside the image it is transparent.
    pub fn crop(&self, left: i64, top: i64, width: u32, height: u32) -> Image {
        let mut part = Image::filled(width, height, [0; 4]);
        // The columns of the part that lie inside the image.
        let first = (-left).clamp(0, i64::from(width)) as usize;
        let last = (i64::from(self.width) - left).clamp(first as i64, i64::from(width)) as usize;
        for y in 0..height as usize {
            let row = top + y as i64;
            if row < 0 || row >= i64::from(self.height) || first == last {
                continue;
            }
            let from = (row as usize * self.width as usize + (left + first as i64) as usize) * 4;
            let to = (y * width as usize + first) * 4;
            let length = (last - first) * 4;
            part.rgba[to..to + length].copy_from_slice(&self.rgba[from..from + length]);
        }
        part
    }

    /// The middle `width` × `height`, the odd pixel left at the right and bottom; padded where the image is smaller.
    pub fn centre_crop(&self, width: u32, height: u32) -> Image {
        let left = (i64::from(self.width) - i64::from(width)).div_euclid(2);
        let top = (i64::from(self.height) - i64::from(height)).div_euclid(2);
        self.crop(left, top, width, height)
    }

    /// Colours as [3, height, width], each channel over 255, less its mean, over its standard deviation.
    ///
    /// Opacity is not looked at: flatten first.
    pub fn to_chw(&self, mean: [f32; 3], standard_deviation: [f32; 3]) -> Vec<f32> {
        let mut values = Vec::with_capacity(3 * self.width as usize * self.height as usize);
        for channel in 0..3 {
            values.extend(self.rgba.chunks_exact(4).map(|pixel| {
                (f32::from(pixel[channel]) / 255.0 - mean[channel]) / standard_deviation[channel]
            }));
        }
        values
    }
}
