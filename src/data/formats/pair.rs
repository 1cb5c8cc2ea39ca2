//! One sample of the user's, and what such samples are drawn from.

use std::sync::Arc;

use super::digest::DataDigest;
use super::record_text::RecordText;
use super::skips::{Note, Reason};
use crate::images::image::Image;
use crate::images::image_view::ImageSource;
use crate::text::chat::Turn;
use keel_base::error::{Error, Result};

/// One image and the words that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What the sample is called in its source.
    pub key: String,
    /// The image, with its transparency; none where the sample is text alone. The last one where there are several.
    pub image: Option<Image>,
    /// Images before that one, in order.
    pub before: Vec<Image>,
    /// Whether the questions mark where each image stands, by [`MARK`](crate::chat::MARK); else there is one
    /// at most, before the first.
    pub is_marked: bool,
    /// What is to be learnt about it; never empty.
    pub caption: String,
    /// The question that the caption answers, where the source holds conversations.
    pub prompt: Option<String>,
    /// Questions and answers after that.
    pub further: Vec<Turn>,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<String>,
    /// How it is to be trained on.
    pub rules: PairRules,
}

/// What data say about how one of their samples is to be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairRules {
    /// Answers that are read and not learnt, by their place in the conversation (`loss: false`, `weight: 0`).
    pub unsupervised: Vec<usize>,
    /// Tiles that the image may be cut into, where that is fewer than a stage's (a mixture's `max_dynamic_patch`).
    pub most_tiles: usize,
    /// Whether a stage may vary the image (a mixture's `data_augment`).
    pub is_varied: bool,
}

impl Default for PairRules {
    /// Every answer is learnt, and the stage decides the rest.
    fn default() -> PairRules {
        PairRules {
            unsupervised: Vec::new(),
            most_tiles: usize::MAX,
            is_varied: true,
        }
    }
}

impl Pair {
    /// A pair whose image has yet to be decoded.
    pub(super) fn of(key: String, words: RecordText) -> Pair {
        Pair {
            rules: PairRules {
                unsupervised: words.unsupervised.clone(),
                ..PairRules::default()
            },
            key,
            image: None,
            before: Vec::new(),
            is_marked: words.marks() > 0,
            caption: words.caption,
            prompt: words.prompt,
            further: words.further,
            system: words.system,
        }
    }
}

/// Anything pairs can be drawn from; the same index gives the same pair on any thread.
pub trait PairSource: Send + Sync {
    /// How many pairs there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads and decodes one pair.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Content`] naming the sample when it cannot be used, [`Error::Setting`] when there is no
    /// such index.
    fn get(&self, index: usize) -> Result<Pair>;

    /// Reads one pair without its images, which are not decoded.
    ///
    /// # Errors
    /// As [`PairSource::get`], for all but the images.
    fn words(&self, index: usize) -> Result<Pair> {
        self.get(index).map(|pair| Pair {
            image: None,
            before: Vec::new(),
            ..pair
        })
    }

    /// What has happened since the last time that cannot wait for [`PairSource::notes`], a sentence once.
    fn news(&self) -> Option<String> {
        None
    }

    /// Whether reading a pair waits for a network, so that it pays to read many at once.
    fn is_remote(&self) -> bool {
        false
    }

    /// What says on which side of a split a pair lies, wherever its data are and whatever else is in them: the path of its image
    /// below the data's folder or its key in a shard, else what it holds, else its file's name and row.
    ///
    /// # Errors
    /// As [`PairSource::words`].
    fn split_key(&self, index: usize) -> Result<String> {
        self.words(index).map(|pair| pair.key)
    }

    /// The first index of the same pair, where an epoch has it several times.
    fn first_of(&self, index: usize) -> usize {
        index
    }

    /// What the pairs are told by, a source after the other; nothing where nobody else could give other ones under their name.
    ///
    /// # Errors
    /// [`Error::Io`] naming a file that cannot be read.
    fn digests(&self) -> Result<Vec<DataDigest>> {
        Ok(Vec::new())
    }

    /// Hears what became of a pair that training drew: used, or left out and why.
    ///
    /// # Errors
    /// [`Error::Stopped`] once too many have been left out.
    fn count(&self, _index: usize, _left_out: Option<(Reason, &str)>) -> Result<()> {
        Ok(())
    }

    /// Hears what was done to a pair that training uses, called `name`.
    fn note(&self, _index: usize, _note: Note, _name: &str) {}

    /// How many were left out and why; `None` when none was.
    fn left_out(&self) -> Option<String> {
        None
    }

    /// What was done to samples that are used, and what is to be known of the data as a whole, a sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

impl ImageSource for Arc<dyn PairSource> {
    fn image(&self, item: usize) -> Result<Image> {
        let pair = self.get(item)?;
        pair.image.ok_or_else(|| {
            Error::content(
                pair.key,
                "its image is gone since it was first read",
                "leave the data as they are while a run reads them",
            )
        })
    }
}
