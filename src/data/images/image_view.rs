//! A user's image as a sample shows it: whole or a window of it, decoded now or kept from an earlier draw.
//!
//! Decoding and scaling a photograph takes far longer than laying out its numbers, so what they made is kept between epochs,
//! up to a limit. Every pair comes once an epoch, in an order that is new each time: one that is kept is worth as much as
//! any other, so nothing is ever replaced. What is kept is what would be made anew, bit for bit.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frame::{Frame, Tint};
use super::image::Image;
use super::pixels::{Fit, Pixels};
use super::resample::Filter;
use super::tiles::tiles_of;
use keel_base::error::Result;
use keel_base::random::Stream;

/// What was made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Preparation {
    /// The image itself.
    Decoded,
    /// The square of a tower's processor.
    Square { side: u32, fit: Fit, filter: Filter },
    /// The tiles of a grid.
    Tiles {
        side: u32,
        filter: Filter,
        grid: [u32; 2],
    },
}

/// What is known of an image without its pixels.
#[derive(Clone, Copy)]
struct Known {
    size: [u32; 2],
    content: u64,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    prepared: HashMap<(usize, Preparation), Vec<Arc<Image>>>,
    known: HashMap<usize, Known>,
}

/// Images of a user's pairs, kept in memory up to a number of bytes of pixels.
pub struct ImageCache {
    most: u64,
    kept: Mutex<Kept>,
}

impl ImageCache {
    /// Room for `most` bytes of pixels.
    pub fn new(most: u64) -> ImageCache {
        ImageCache {
            most,
            kept: Mutex::default(),
        }
    }

    /// Bytes of the pixels that are kept.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Every change is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, item: usize, preparation: Preparation) -> Option<Vec<Arc<Image>>> {
        self.lock().prepared.get(&(item, preparation)).cloned()
    }

    /// Keeps a form of the pair `item`, of whose image that much is known, where there is room.
    fn put(&self, item: usize, known: Known, preparation: Preparation, images: &[Arc<Image>]) {
        let bytes: u64 = images.iter().map(|p| p.rgba.len() as u64).sum();
        let mut kept = self.lock();
        if kept.bytes + bytes > self.most || kept.prepared.contains_key(&(item, preparation)) {
            return;
        }
        kept.bytes += bytes;
        kept.prepared.insert((item, preparation), images.to_vec());
        kept.known.insert(item, known);
    }
}

/// Where the image of a sample can be read again.
pub trait ImageSource: Send + Sync {
    /// Reads and decodes the image of the sample `item`; the same one every time.
    ///
    /// # Errors
    /// [`Error::Io`](keel_base::error::Error::Io) or [`Error::Content`](keel_base::error::Error::Content) naming the sample when its
    /// image is no longer there or can no longer be read.
    fn image(&self, item: usize) -> Result<Image>;
}

/// Where a sample's image can be had again, and what is kept of it.
#[derive(Clone)]
pub struct ImageOrigin {
    /// What is kept of all.
    pub kept: Arc<ImageCache>,
    /// Where the image is read.
    pub source: Arc<dyn ImageSource>,
    /// The sample there.
    pub item: usize,
}

/// A user's image and the part of it that is shown.
#[derive(Clone)]
pub struct ImageView {
    /// Width and height of the whole image in pixels.
    pub size: [u32; 2],
    /// Left, top and side of a square of it, in its pixels; all that the tower's processor shows where there is none.
    pub window: Option<[u32; 3]>,
    /// Colour change.
    pub tint: Tint,
    /// [`Image::content`] of the whole image.
    content: u64,
    /// Tiles that it may be cut into, at most.
    pub most_tiles: usize,
    /// One of these two is there.
    decoded: Option<Arc<Image>>,
    origin: Option<ImageOrigin>,
}

impl fmt::Debug for ImageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageView")
            .field("size", &self.size)
            .field("window", &self.window)
            .field("tint", &self.tint)
            .finish_non_exhaustive()
    }
}

impl ImageView {
    /// As the tower's processor shows it.
    pub fn whole(image: Arc<Image>) -> ImageView {
        ImageView {
            size: [image.width, image.height],
            window: None,
            tint: Tint::NONE,
            content: image.content(),
            most_tiles: usize::MAX,
            decoded: Some(image),
            origin: None,
        }
    }

    /// The image of `origin`, where something of it is kept, as the tower's processor shows it.
    pub fn kept(origin: &ImageOrigin) -> Option<ImageView> {
        let known = origin.kept.lock().known.get(&origin.item).copied()?;
        Some(ImageView {
            size: known.size,
            window: None,
            tint: Tint::NONE,
            content: known.content,
            most_tiles: usize::MAX,
            decoded: None,
            origin: Some(origin.clone()),
        })
    }

    /// What tells the whole image from others, as [`Image::content`] does, whatever part of it is shown.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// The same, with what is made of it kept for the next draw.
    #[must_use]
    pub fn keeping(mut self, origin: ImageOrigin) -> ImageView {
        self.origin = Some(origin);
        self
    }

    /// The same, cut into at most so many tiles.
    #[must_use]
    pub fn in_tiles(mut self, most_tiles: usize) -> ImageView {
        self.most_tiles = most_tiles;
        self
    }

    /// What `make` makes of the image, or what it made before.
    fn prepared(
        &self,
        preparation: Preparation,
        make: impl FnOnce(&Arc<Image>) -> Vec<Arc<Image>>,
    ) -> Result<Vec<Arc<Image>>> {
        if let Some(kept) = self.find(preparation) {
            return Ok(kept);
        }
        let made = make(&self.decoded()?);
        if let Some(origin) = &self.origin {
            let known = Known {
                size: self.size,
                content: self.content,
            };
            origin.kept.put(origin.item, known, preparation, &made);
        }
        Ok(made)
    }

    fn find(&self, preparation: Preparation) -> Option<Vec<Arc<Image>>> {
        let origin = self.origin.as_ref()?;
        origin.kept.find(origin.item, preparation)
    }

    /// The image itself, decoded once more where only other forms of it are kept.
    fn decoded(&self) -> Result<Arc<Image>> {
        if let Some(image) = &self.decoded {
            return Ok(image.clone());
        }
        if let Some(kept) = self.find(Preparation::Decoded) {
            return Ok(kept[0].clone());
        }
        let origin = self.origin.as_ref();
        let origin = origin.expect("an image is decoded or has an origin");
        origin.source.image(origin.item).map(Arc::new)
    }

    /// All of the image, in the same colours.
    #[must_use]
    pub fn unwindowed(&self) -> ImageView {
        ImageView {
            window: None,
            ..self.clone()
        }
    }

    /// A square of 80–100 % of the shorter side, anywhere inside, with the colours slightly changed.
    #[must_use]
    pub fn varied(mut self, tint: Tint, look: &mut Stream) -> ImageView {
        let shorter = self.size[0].min(self.size[1]);
        let side = (shorter as f32 * look.between(0.8, 1.0)).round().max(1.0) as u32;
        let corner = self
            .size
            .map(|edge| look.below((edge - side) as usize + 1) as u32);
        self.window = Some([corner[0], corner[1], side]);
        self.tint = tint;
        self
    }

    /// What is shown as a square of `side` pixels.
    ///
    /// # Errors
    /// As [`ImageSource::image`], where the image is no longer what it was when something of it was kept.
    pub fn square(&self, pixels: &Pixels, side: u32) -> Result<Arc<Image>> {
        let preparation = match self.window {
            None => Preparation::Square {
                side,
                fit: pixels.fit,
                filter: pixels.filter,
            },
            // Windows are drawn anew each time; the image that they are cut from is the same.
            Some(_) => Preparation::Decoded,
        };
        let made = self.prepared(preparation, |image| match self.window {
            None => vec![Arc::new(pixels.prepared(image, side))],
            Some(_) => vec![image.clone()],
        })?;
        Ok(match self.window {
            None => made[0].clone(),
            Some(window) => Arc::new(pixels.prepared_part(&made[0], window, side)),
        })
    }

    /// Draws [`ImageView::square`] as planes `[3, side, side]` of numbers from −1 to 1.
    ///
    /// # Errors
    /// As [`ImageView::square`].
    pub fn draw(&self, (side, pixels): (usize, &Pixels), out: &mut [f32]) -> Result<()> {
        let square = self.square(pixels, side as u32)?;
        Frame::of(&square).write_normalised(self.tint, out);
        Ok(())
    }

    /// The tiles of a grid of the whole image, each of `side` pixels; none where it leaves the image whole.
    ///
    /// # Errors
    /// As [`ImageView::square`].
    pub fn tiles(&self, pixels: &Pixels, grid: [u32; 2], side: u32) -> Result<Vec<Arc<Image>>> {
        if tiles_of(grid) == 0 {
            return Ok(Vec::new());
        }
        let preparation = Preparation::Tiles {
            side,
            filter: pixels.filter,
            grid,
        };
        self.prepared(preparation, |image| {
            let tiles = pixels.tiles(image, grid, side).into_iter();
            tiles.map(Arc::new).collect()
        })
    }
}
