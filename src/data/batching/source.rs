//! Where a mixture's samples come from: one source for each task.

use std::sync::Arc;

use super::sample::Sample;
use super::task::Task;
use crate::formats::skips::{Note, Reason};
use crate::images::augment::Augmentation;
use crate::images::image_view::ImageCache;
use keel_base::error::Result;
use keel_base::random::Stream;

/// How samples are made; every source takes from it what concerns it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSettings {
    /// How the look of images varies.
    pub augmentation: Augmentation,
    /// Questions about one image, at most; as many are asked as fit the sequence.
    pub turns: usize,
    /// Images of one sample, at most.
    pub images: usize,
    /// Share of the items that are drawn from, above 0 and at most 1, where the source can be trained on less of itself.
    pub share: f64,
}

/// What the making of one sample depends on beside its item. Equal draws give equal samples.
pub struct Draw<'a> {
    /// Earlier forms of the item that were too long.
    pub form: usize,
    /// The stream of its words.
    pub text: &'a mut Stream,
    /// The stream of its look.
    pub look: &'a mut Stream,
    /// Whether a sample fits the token limits.
    pub fits: &'a dyn Fn(&Sample) -> bool,
    /// What is kept of the images of earlier draws; it changes no bit of any sample.
    pub kept: &'a Arc<ImageCache>,
}

/// The samples of one task: a number of items, of which each epoch shows every one once.
pub trait TaskSource: Send + Sync {
    /// The task.
    fn task(&self) -> Task;

    /// Items in one epoch.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether making a sample waits for a network, so that it pays to make many at once.
    fn is_remote(&self) -> bool {
        false
    }

    /// Forms of one item, each shorter than the one before, that are tried before another item takes its place.
    fn forms(&self) -> usize {
        1
    }

    /// Makes the sample of `item`, on any thread. A pure function of the item and the draw.
    ///
    /// # Errors
    /// [`Error::Io`](keel_base::error::Error::Io) or [`Error::Content`](keel_base::error::Error::Content) naming the item when it
    /// cannot be used; another one then takes its place. [`Error::Stopped`](keel_base::error::Error::Stopped) when none can be
    /// made, because what items are read from does not answer.
    fn sample(&self, item: usize, draw: &mut Draw<'_>) -> Result<Sample>;

    /// Hears what became of an item that was drawn: used, or left out and why.
    ///
    /// # Errors
    /// [`Error::Stopped`](keel_base::error::Error::Stopped) once too many have been left out.
    fn count(&self, _item: usize, _left_out: Option<(Reason, &str)>) -> Result<()> {
        Ok(())
    }

    /// Hears what was done to an item that is used, called `name`.
    fn note(&self, _item: usize, _note: Note, _name: &str) {}
}
