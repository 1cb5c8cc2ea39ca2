//! How a picture of any size becomes the square that a tower sees: the resize and crop of its published processor.

use std::borrow::Cow;

use super::picture::Picture;
use super::pixels::{Fit, Pixels};

/// The background of evaluation pictures, and what stands behind a picture that is transparent.
pub const PLAIN_BACKGROUND: [u8; 3] = [236, 236, 236];

impl Pixels {
    /// The picture as a tower of `side` pixels sees it, with what is transparent laid over the plain background.
    pub fn prepared(&self, picture: &Picture, side: u32) -> Picture {
        let picture = on_plain_background(picture);
        let edge = match self.fit {
            Fit::Stretch => return picture.resize(side, side, self.filter),
            Fit::Crop => side,
            Fit::CropFrom(edge) => edge,
        };
        let [width, height] = picture.scaled_to_shortest_edge(edge);
        if width < side || height < side {
            let scaled = picture.resize(width, height, self.filter);
            return scaled.centre_crop(side, side);
        }
        let part = [(width - side) / 2, (height - side) / 2, side, side];
        picture.resize_part(width, height, part, self.filter)
    }

    /// The square of `from` pixels whose corner is at `left` and `top`, as a tower of `side` pixels sees it.
    pub fn prepared_part(
        &self,
        picture: &Picture,
        [left, top, from]: [u32; 3],
        side: u32,
    ) -> Picture {
        let part = picture.crop(left.into(), top.into(), from, from);
        on_plain_background(&part).resize(side, side, self.filter)
    }
}

/// The picture, with the plain background where it is transparent.
pub(super) fn on_plain_background(picture: &Picture) -> Cow<'_, Picture> {
    if picture.is_opaque() {
        Cow::Borrowed(picture)
    } else {
        Cow::Owned(picture.flatten(PLAIN_BACKGROUND))
    }
}
