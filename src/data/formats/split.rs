//! Pairs divided in two by what they are called: those that are trained on, and those that are held out.
//!
//! A pair's side is a function of its split key alone, and not of a seed, of its place or of how many pairs there are. So it
//! stays when data grow, on every rank, in every epoch and however often a source is repeated; records of one image file lie on
//! one side; and what a smaller share holds out, a larger one does too.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::digest::DataDigest;
use super::pair::{Pair, PairSource};
use super::remote::with_readers;
use super::skips::{Note, Reason};
use keel_base::error::{Error, Result};

/// Samples on a side that are too few: retrieval needs something to tell apart.
const FEWEST: usize = 2;

/// Pairs divided by [`split`].
pub struct SplitPairs {
    /// What is left to train on.
    pub trained: Arc<dyn PairSource>,
    /// What is held out.
    pub held_out: Arc<dyn PairSource>,
}

/// Where a split key lies between 0 and 1: the first bits of its hash, so that every share of keys is a fair draw.
pub fn split_place(key: &str) -> f64 {
    let hash = blake3::hash(key.as_bytes());
    let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    // 53 bits are what a double holds.
    (u64::from_le_bytes(*first) >> 11) as f64 / (1u64 << 53) as f64
}

/// Holds out the pairs whose split key lies below `share`, above 0 and below 1.
///
/// # Errors
/// [`Error::Setting`] naming the counts when one of the sides has fewer than two samples; what is wrong with a pair whose key has
/// to be read.
pub fn split(pairs: Arc<dyn PairSource>, share: f64) -> Result<SplitPairs> {
    let sides = with_readers(pairs.is_remote(), || {
        let sides = (0..pairs.len()).into_par_iter().map(|index| {
            let key = pairs.split_key(index)?;
            Ok(split_place(&key) < share)
        });
        sides.collect::<Result<Vec<bool>>>()
    });
    let sides = sides??;
    let side = |is_held_out: bool| -> Vec<usize> {
        let all = sides.iter().enumerate();
        let own = all.filter(|(_, side)| **side == is_held_out);
        own.map(|(index, _)| index).collect()
    };
    let (trained, held_out) = (side(false), side(true));
    if trained.len() < FEWEST || held_out.len() < FEWEST {
        return Err(Error::setting(
            format!("--validate {}", percent(share)),
            format!(
                "a share that leaves at least {FEWEST} samples on both sides, or a list of held-out samples of its own"
            ),
            format!(
                "{} held out and {} to train on, of {} samples",
                held_out.len(),
                trained.len(),
                pairs.len()
            ),
        ));
    }
    Ok(SplitPairs {
        trained: Arc::new(Side {
            whole: pairs.clone(),
            items: trained,
            speaks: true,
        }),
        held_out: Arc::new(Side {
            whole: pairs,
            items: held_out,
            speaks: false,
        }),
    })
}

/// A share as people write it: `2%`.
pub fn percent(share: f64) -> String {
    // What was read as a percentage and divided by a hundred may be off in its last digit.
    let percent = (share * 1e12).round() / 1e10;
    format!("{percent}%")
}

/// One side.
struct Side {
    whole: Arc<dyn PairSource>,
    /// Its pairs' places in the whole, rising.
    items: Vec<usize>,
    /// Whether it hands on what the whole has to say, which has to be heard once.
    speaks: bool,
}

impl PairSource for Side {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize) -> Result<Pair> {
        self.whole.get(self.items[index])
    }

    fn words(&self, index: usize) -> Result<Pair> {
        self.whole.words(self.items[index])
    }

    fn news(&self) -> Option<String> {
        self.whole.news().filter(|_| self.speaks)
    }

    fn is_remote(&self) -> bool {
        self.whole.is_remote()
    }

    fn first_of(&self, index: usize) -> usize {
        let first = self.whole.first_of(self.items[index]);
        // The same pair has the same key, and lies on the same side.
        self.items.binary_search(&first).unwrap_or(index)
    }

    fn split_key(&self, index: usize) -> Result<String> {
        self.whole.split_key(self.items[index])
    }

    /// Those of the whole: which part of it this is, a run says beside them.
    fn digests(&self) -> Result<Vec<DataDigest>> {
        self.whole.digests()
    }

    fn count(&self, index: usize, left_out: Option<(Reason, &str)>) -> Result<()> {
        self.whole.count(self.items[index], left_out)
    }

    fn note(&self, index: usize, note: Note, name: &str) {
        self.whole.note(self.items[index], note, name);
    }

    fn left_out(&self) -> Option<String> {
        self.whole.left_out().filter(|_| self.speaks)
    }

    fn notes(&self) -> Vec<String> {
        if self.speaks {
            self.whole.notes()
        } else {
            Vec::new()
        }
    }
}

/// The last part of a path or an address: what stays where data are moved.
pub(super) fn last_part(name: &str) -> String {
    let path = PathBuf::from(name);
    let last = path.file_name().map(|last| last.to_string_lossy());
    last.map_or_else(|| name.to_owned(), |last| last.into_owned())
}
