//! How an image of any size becomes the square that a tower sees: the resize and crop of its published processor.

use std::borrow::Cow;

use super::image::Image;
use super::pixels::{Fit, Pixels};

/// The background of evaluation images, and what stands behind an image that is transparent.
pub const PLAIN_BACKGROUND: [u8; 3] = [236, 236, 236];

impl Pixels {
    /// The image as a tower of `side` pixels sees it, with what is transparent laid over the plain background.
    pub fn prepared(&self, image: &Image, side: u32) -> Image {
        let image = on_plain_background(image);
        let [width, height] = match self.fit {
            Fit::Stretch => return image.resize(side, side, self.filter),
            Fit::StretchFrom(edge) => [edge; 2],
            Fit::Crop => image.scaled_to_shortest_edge(side),
            Fit::CropFrom(edge) => image.scaled_to_shortest_edge(edge),
        };
        if width < side || height < side {
            let scaled = image.resize(width, height, self.filter);
            return scaled.centre_crop(side, side);
        }
        let part = [(width - side) / 2, (height - side) / 2, side, side];
        image.resize_part(width, height, part, self.filter)
    }

    /// The square of `from` pixels whose corner is at `left` and `top`, as a tower of `side` pixels sees it.
    pub fn prepared_part(&self, image: &Image, [left, top, from]: [u32; 3], side: u32) -> Image {
        let part = image.crop(left.into(), top.into(), from, from);
        on_plain_background(&part).resize(side, side, self.filter)
    }
}

/// The image, with the plain background where it is transparent.
pub(super) fn on_plain_background(image: &Image) -> Cow<'_, Image> {
    if image.is_opaque() {
        Cow::Borrowed(image)
    } else {
        Cow::Owned(image.flatten(PLAIN_BACKGROUND))
    }
}
