//! How a picture of any size becomes the square that a tower sees: the resize and crop of its published processor.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::batch::Pixels;
use super::picture::Picture;
use super::scenes::PLAIN_BACKGROUND;

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
}

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
    match picture.is_opaque() {
        true => Cow::Borrowed(picture),
        false => Cow::Owned(picture.flatten(PLAIN_BACKGROUND)),
    }
}
