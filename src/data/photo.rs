//! A user's picture as a sample shows it: whole or a window of it, decoded now or kept from an earlier draw.
//!
//! Decoding and scaling a photograph takes far longer than laying out its numbers, so what they made is kept between epochs,
//! up to a limit. Every pair comes once an epoch, in an order that is new each time: one that is kept is worth as much as
//! any other, so nothing is ever replaced. What is kept is what would be made anew, bit for bit.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::Pixels;
use super::pairs::PairSource;
use super::picture::Picture;
use super::prepare::Fit;
use super::resample::Filter;
use super::sprite::{Frame, Tint};
use super::tiles::tiles_of;
use keel_base::error::{Error, Result};
use keel_base::random::Stream;

/// What was made of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    /// The picture itself.
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

#[derive(Default)]
struct Kept {
    bytes: u64,
    forms: HashMap<(usize, Form), Vec<Arc<Picture>>>,
    sizes: HashMap<usize, [u32; 2]>,
}

/// Pictures of a user's pairs, kept in memory up to a number of bytes of pixels.
pub struct KeptPictures {
    most: u64,
    kept: Mutex<Kept>,
}

impl KeptPictures {
    /// Room for `most` bytes of pixels.
    pub fn new(most: u64) -> KeptPictures {
        KeptPictures {
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

    fn find(&self, item: usize, form: Form) -> Option<Vec<Arc<Picture>>> {
        self.lock().forms.get(&(item, form)).cloned()
    }

    /// Keeps a form of the pair `item`, whose picture has `size`, where there is room.
    fn put(&self, item: usize, size: [u32; 2], form: Form, pictures: &[Arc<Picture>]) {
        let bytes: u64 = pictures.iter().map(|p| p.rgba.len() as u64).sum();
        let mut kept = self.lock();
        if kept.bytes + bytes > self.most || kept.forms.contains_key(&(item, form)) {
            return;
        }
        kept.bytes += bytes;
        kept.forms.insert((item, form), pictures.to_vec());
        kept.sizes.insert(item, size);
    }
}

/// Where a pair's picture can be had again, and what is kept of it.
#[derive(Clone)]
pub struct KeptPlace {
    /// What is kept of all.
    pub kept: Arc<KeptPictures>,
    /// Where the picture is.
    pub pairs: Arc<dyn PairSource>,
    /// The pair.
    pub item: usize,
}

/// A user's picture and the part of it that is shown.
#[derive(Clone)]
pub struct Photo {
    /// Width and height of the whole picture in pixels.
    pub size: [u32; 2],
    /// Left, top and side of a square of it, in its pixels; all that the tower's processor shows where there is none.
    pub window: Option<[u32; 3]>,
    /// Colour change.
    pub tint: Tint,
    /// One of these two is there.
    decoded: Option<Arc<Picture>>,
    place: Option<KeptPlace>,
}

impl fmt::Debug for Photo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Photo")
            .field("size", &self.size)
            .field("window", &self.window)
            .field("tint", &self.tint)
            .finish_non_exhaustive()
    }
}

impl Photo {
    /// As the tower's processor shows it.
    pub fn whole(picture: Arc<Picture>) -> Photo {
        Photo {
            size: [picture.width, picture.height],
            window: None,
            tint: Tint::NONE,
            decoded: Some(picture),
            place: None,
        }
    }

    /// The picture at `place`, where something of it is kept, as the tower's processor shows it.
    pub fn kept(place: &KeptPlace) -> Option<Photo> {
        let size = place.kept.lock().sizes.get(&place.item).copied()?;
        Some(Photo {
            size,
            window: None,
            tint: Tint::NONE,
            decoded: None,
            place: Some(place.clone()),
        })
    }

    /// The same, with what is made of it kept for the next draw.
    #[must_use]
    pub fn keeping(mut self, place: KeptPlace) -> Photo {
        self.place = Some(place);
        self
    }

    /// What `make` makes of the picture, or what it made before.
    fn form(
        &self,
        form: Form,
        make: impl FnOnce(&Arc<Picture>) -> Vec<Arc<Picture>>,
    ) -> Result<Vec<Arc<Picture>>> {
        if let Some(kept) = self.find(form) {
            return Ok(kept);
        }
        let made = make(&self.decoded()?);
        if let Some(place) = &self.place {
            place.kept.put(place.item, self.size, form, &made);
        }
        Ok(made)
    }

    fn find(&self, form: Form) -> Option<Vec<Arc<Picture>>> {
        let place = self.place.as_ref()?;
        place.kept.find(place.item, form)
    }

    /// The picture itself, decoded once more where only other forms of it are kept.
    fn decoded(&self) -> Result<Arc<Picture>> {
        if let Some(picture) = &self.decoded {
            return Ok(picture.clone());
        }
        if let Some(kept) = self.find(Form::Decoded) {
            return Ok(kept[0].clone());
        }
        let place = self.place.as_ref();
        let KeptPlace { pairs, item, .. } = place.expect("a picture is decoded or has a place");
        let pair = pairs.get(*item)?;
        pair.picture.map(Arc::new).ok_or_else(|| {
            Error::content(
                pair.key,
                "its picture is gone since it was first read",
                "leave the data as they are while a run reads them",
            )
        })
    }

    /// All of the picture, in the same colours.
    #[must_use]
    pub fn unwindowed(&self) -> Photo {
        Photo {
            window: None,
            ..self.clone()
        }
    }

    /// A square of 80–100 % of the shorter side, anywhere inside, with the colours slightly changed.
    #[must_use]
    pub fn varied(mut self, tint: Tint, look: &mut Stream) -> Photo {
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
    /// As [`PairSource::get`], where the picture is no longer what it was when something of it was kept.
    pub fn square(&self, pixels: &Pixels, side: u32) -> Result<Arc<Picture>> {
        let form = match self.window {
            None => Form::Square {
                side,
                fit: pixels.fit,
                filter: pixels.filter,
            },
            // Windows are drawn anew each time; the picture that they are cut from is the same.
            Some(_) => Form::Decoded,
        };
        let made = self.form(form, |picture| match self.window {
            None => vec![Arc::new(pixels.prepared(picture, side))],
            Some(_) => vec![picture.clone()],
        })?;
        Ok(match self.window {
            None => made[0].clone(),
            Some(window) => Arc::new(pixels.prepared_part(&made[0], window, side)),
        })
    }

    /// Draws [`Photo::square`] as planes `[3, side, side]` of numbers from −1 to 1.
    ///
    /// # Errors
    /// As [`Photo::square`].
    pub fn draw(&self, (side, pixels): (usize, &Pixels), out: &mut [f32]) -> Result<()> {
        let square = self.square(pixels, side as u32)?;
        Frame::of(&square).write_normalised(self.tint, out);
        Ok(())
    }

    /// The tiles of a grid of the whole picture, each of `side` pixels; none where it leaves the picture whole.
    ///
    /// # Errors
    /// As [`Photo::square`].
    pub fn tiles(&self, pixels: &Pixels, grid: [u32; 2], side: u32) -> Result<Vec<Arc<Picture>>> {
        if tiles_of(grid) == 0 {
            return Ok(Vec::new());
        }
        let form = Form::Tiles {
            side,
            filter: pixels.filter,
            grid,
        };
        self.form(form, |picture| {
            let tiles = pixels.tiles(picture, grid, side).into_iter();
            tiles.map(Arc::new).collect()
        })
    }
}
