//! A square image in the making, its colour change, and the way from both to the numbers that a tower takes.

use std::any::Any;
use std::fmt::Debug;

use super::image::Image;

/// A frame under construction: `side`² pixels of (r, g, b, unused), 0..255.
#[derive(Clone, Debug)]
pub struct Frame {
    side: usize,
    pixels: Vec<[f32; 4]>,
}

/// A colour change of the whole frame: `(x − 127.5)·contrast + 127.5 + brightness` after mixing with grey by saturation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tint {
    /// Added, in 0..255 units.
    pub brightness: f32,
    /// Factor about mid grey.
    pub contrast: f32,
    /// 0 is grey, 1 leaves the colours, above 1 strengthens them.
    pub saturation: f32,
}

impl Tint {
    /// Changes nothing.
    pub const NONE: Tint = Tint {
        brightness: 0.0,
        contrast: 1.0,
        saturation: 1.0,
    };
}

impl Frame {
    /// A frame filled with one colour.
    pub fn new(side: usize, background: [u8; 3]) -> Frame {
        let [r, g, b] = background.map(f32::from);
        Frame {
            side,
            pixels: vec![[r, g, b, 255.0]; side * side],
        }
    }

    /// A square image without transparency.
    pub fn of(image: &Image) -> Frame {
        let pixels = image.rgba.chunks_exact(4);
        Frame {
            side: image.width as usize,
            pixels: pixels
                .map(|p| [p[0], p[1], p[2], 255].map(f32::from))
                .collect(),
        }
    }

    /// Pixels along a side.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The pixels `[side, side]`, row by row, to be drawn over.
    pub fn pixels_mut(&mut self) -> &mut [[f32; 4]] {
        &mut self.pixels
    }

    /// Writes the frame as planes `[3, side, side]`, normalised to mean 0.5 and deviation 0.5 (values −1..1).
    pub fn write_normalised(&self, tint: Tint, out: &mut [f32]) {
        let plane = self.side * self.side;
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let scale = 1.0 / 127.5;
        for (index, pixel) in self.pixels.iter().enumerate() {
            let [r, g, b, _] = *pixel;
            let grey = 0.299 * r + 0.587 * g + 0.114 * b;
            let change = |c: f32| {
                let c = grey + (c - grey) * tint.saturation;
                let c = (c - 127.5) * tint.contrast + 127.5 + tint.brightness;
                c.clamp(0.0, 255.0) * scale - 1.0
            };
            red[index] = change(r);
            green[index] = change(g);
            blue[index] = change(b);
        }
    }
}

/// An image that is drawn when a batch is made, at whatever size the batch needs.
///
/// What an image shows is its maker's business: samples hold it behind this trait, and the maker finds its own type again
/// through [`Any`].
pub trait Drawing: Any + Debug + Send + Sync {
    /// Draws planes `[3, side, side]` of numbers from −1 to 1 into `out`, the same ones every time.
    fn draw(&self, side: usize, out: &mut [f32]);
}
