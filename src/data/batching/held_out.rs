//! Held-out samples in batches: always the same ones in the same order, shown as they are.
//!
//! Batches are of one kind of sample each, so that a loss can be told for every kind. Samples are made anew for each pass: decoded
//! images of a whole set would take more memory than training does.

use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use super::assemble::{assemble_at_most, fits};
use super::batch::{Batch, BatchShape, TokenWeighting};
use super::packing::Packing;
use super::sample::Sample;
use super::source::{Draw, SampleSettings, TaskSource};
use super::user_samples::UserSamples;
use crate::formats::pair::PairSource;
use crate::formats::remote::with_readers;
use crate::formats::split::split_place;
use crate::images::augment::Augmentation;
use crate::images::image_view::ImageCache;
use crate::text::chat::ChatTokenizer;
use keel_base::error::{Error, Result};
use keel_base::random::{Purpose, Stream};

/// What is asked of a held-out sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeldOutKind {
    /// To say what is seen in an image, where nothing is asked.
    Captions,
    /// To answer a question about images.
    Questions,
    /// To go on with text, without an image.
    Text,
}

impl HeldOutKind {
    /// All of them.
    pub const ALL: [HeldOutKind; 3] = [
        HeldOutKind::Captions,
        HeldOutKind::Questions,
        HeldOutKind::Text,
    ];

    fn of(sample: &Sample) -> HeldOutKind {
        match (sample.view.is_some(), sample.question.is_empty()) {
            (false, _) => HeldOutKind::Text,
            (true, true) => HeldOutKind::Captions,
            (true, false) => HeldOutKind::Questions,
        }
    }
}

/// How held-out samples are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutSettings {
    /// Sizes of a batch. One that packs is filled as far as every sample of it finds room: none is left out.
    pub shape: BatchShape,
    /// How tokens share the loss.
    pub weighting: TokenWeighting,
    /// Images of one sample, at most.
    pub images: usize,
    /// Samples, at most.
    pub most: usize,
}

/// See the module's documentation.
pub struct HeldOut {
    samples: UserSamples,
    /// Places in the pairs, in the order in which they are taken.
    items: Vec<usize>,
    is_remote: bool,
    settings: HeldOutSettings,
    tokenizer: Arc<ChatTokenizer>,
    kept: Arc<ImageCache>,
}

impl fmt::Debug for HeldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldOut({} samples)", self.items.len())
    }
}

/// Samples of one kind, laid out.
pub struct HeldOutBatch {
    /// The kind.
    pub kind: HeldOutKind,
    /// The batch; what no sample takes of it is padding.
    pub batch: Batch,
    /// Samples in it, of which the first [`Batch::pairs`] have one image.
    pub count: usize,
}

/// Samples of one kind that wait for their batch, and the tokens of each.
#[derive(Default)]
struct Waiting {
    samples: Vec<Sample>,
    lengths: Vec<usize>,
}

impl Waiting {
    /// Whether a batch holds these samples and one of `length` tokens. One holds any that fits by itself.
    fn has_room_for(&self, length: usize, shape: &BatchShape) -> bool {
        let lengths = [&self.lengths[..], &[length]].concat();
        if lengths.len() > shape.batch {
            return false;
        }
        if shape.pack == 1 {
            return true;
        }
        let seen = vec![true; lengths.len()];
        let packing = Packing::new(&lengths, &seen, shape.rows(), shape.tokens);
        packing.samples.iter().all(|packed| packed.place.is_some())
    }
}

/// What a pass could not use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldOutSkips {
    /// Samples.
    pub count: u64,
    /// What was wrong with the first.
    pub first: String,
}

impl HeldOut {
    /// The held-out samples of `pairs`, each once: at most [`HeldOutSettings::most`], those that come first by their split key's
    /// place, so that more data change few of them. What is made of their images is kept in `kept`.
    ///
    /// # Errors
    /// What is wrong with a pair whose key has to be read.
    pub fn new(
        pairs: &Arc<dyn PairSource>,
        settings: HeldOutSettings,
        tokenizer: Arc<ChatTokenizer>,
        kept: Arc<ImageCache>,
    ) -> Result<HeldOut> {
        let is_remote = pairs.is_remote();
        let once = (0..pairs.len()).filter(|index| pairs.first_of(*index) == *index);
        let once: Vec<usize> = once.collect();
        let placed = with_readers(is_remote, || {
            let placed = once.par_iter().map(|index| {
                let key = pairs.split_key(*index)?;
                Ok((split_place(&key), *index))
            });
            placed.collect::<Result<Vec<_>>>()
        });
        let mut placed = placed??;
        placed.sort_by(|(one, at), (other, there)| one.total_cmp(other).then(at.cmp(there)));
        placed.truncate(settings.most);
        let made = SampleSettings {
            augmentation: Augmentation::NONE,
            turns: 1,
            images: settings.images,
            share: 1.0,
        };
        Ok(HeldOut {
            samples: UserSamples::new(pairs.clone(), &made),
            items: placed.into_iter().map(|(_, index)| index).collect(),
            is_remote,
            settings,
            tokenizer,
            kept,
        })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The sizes of a batch.
    pub fn shape(&self) -> &BatchShape {
        &self.settings.shape
    }

    /// The sample at one of [`HeldOut::items`].
    fn sample(&self, item: usize) -> Result<Sample> {
        let fits = |sample: &Sample| fits(sample, &self.settings.shape, &self.tokenizer);
        let stream = |purpose| Stream::new(0, purpose, 0, item as u64);
        let sample = self.samples.sample(
            item,
            &mut Draw {
                form: 0,
                text: &mut stream(Purpose::Text),
                look: &mut stream(Purpose::Augment),
                fits: &fits,
                kept: &self.kept,
            },
        )?;
        if fits(&sample) {
            return Ok(sample);
        }
        Err(Error::content(
            &sample.key,
            "it is too long for the token limits",
            "raise the stage's max_tokens",
        ))
    }

    /// Makes some of the samples at once.
    fn made(&self, items: &[usize]) -> Result<Vec<Result<Sample>>> {
        let make = || items.par_iter().map(|item| self.sample(*item)).collect();
        with_readers(self.is_remote, make)
    }

    /// Hands every sample that can be used to `take`, batch by batch; returns what could not be.
    ///
    /// # Errors
    /// [`Error::Stopped`] when what samples are read from does not answer; whatever laying out and `take` report.
    pub fn batches(
        &self,
        mut take: impl FnMut(HeldOutBatch) -> Result<()>,
    ) -> Result<HeldOutSkips> {
        let most = self.settings.shape.batch;
        let mut skips = HeldOutSkips::default();
        let mut waiting: [Waiting; 3] = Default::default();
        for items in self.items.chunks(most) {
            for sample in self.made(items)? {
                let sample = match sample {
                    Ok(sample) => sample,
                    Err(error @ Error::Stopped { .. }) => return Err(error),
                    Err(error) => {
                        if skips.count == 0 {
                            skips.first = error.to_string();
                        }
                        skips.count += 1;
                        continue;
                    }
                };
                let kind = HeldOutKind::of(&sample);
                let length = self.length(&sample);
                let of_kind = &mut waiting[kind as usize];
                if !of_kind.has_room_for(length, &self.settings.shape) {
                    take(self.laid_out(kind, std::mem::take(of_kind).samples)?)?;
                }
                of_kind.samples.push(sample);
                of_kind.lengths.push(length);
            }
        }
        for (kind, of_kind) in HeldOutKind::ALL.into_iter().zip(waiting) {
            if !of_kind.samples.is_empty() {
                take(self.laid_out(kind, of_kind.samples)?)?;
            }
        }
        Ok(skips)
    }

    /// Tokens of a sample's sequence.
    fn length(&self, sample: &Sample) -> usize {
        let conversation = sample.conversation(self.settings.shape.image_tokens);
        self.tokenizer.sequence(&conversation).ids.len()
    }

    fn laid_out(&self, kind: HeldOutKind, samples: Vec<Sample>) -> Result<HeldOutBatch> {
        let HeldOutSettings {
            shape, weighting, ..
        } = self.settings;
        let batch = assemble_at_most(&samples, &shape, weighting, &self.tokenizer)?;
        assert_eq!(batch.skipped.without_room, 0, "it was held to its room");
        Ok(HeldOutBatch {
            kind,
            batch,
            count: samples.len(),
        })
    }

    /// The first samples, at most `most`, that show one image each and satisfy `wanted`.
    ///
    /// # Errors
    /// [`Error::Stopped`] when what samples are read from does not answer.
    pub fn first_with_image(
        &self,
        most: usize,
        wanted: impl Fn(&Sample) -> bool,
    ) -> Result<Vec<Sample>> {
        let mut found = Vec::new();
        for items in self.items.chunks(most.max(1)) {
            for sample in self.made(items)? {
                match sample {
                    Err(error @ Error::Stopped { .. }) => return Err(error),
                    // A pass over all samples says what is wrong with it.
                    Err(_) => {}
                    Ok(sample) => {
                        if sample.view.is_one() && wanted(&sample) && found.len() < most {
                            found.push(sample);
                        }
                    }
                }
            }
            if found.len() == most {
                break;
            }
        }
        Ok(found)
    }
}
