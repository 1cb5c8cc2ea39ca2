//! Which rows of a batch show the same image or say the same caption.
//!
//! A contrastive loss takes every other row of its batch for a negative. A row whose image or caption equals another's is
//! none, so the loss leaves such scores out. Rows are told apart by what they hold and never by what they are called: keys
//! repeat between shards and folders, and one image stands in a list under many questions.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use super::batch::Batch;

/// What the one image of a sample shows, so that it can be compared with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageContent<'a> {
    /// What is drawn anew for each batch: the key of what it shows. Place, size and colours vary from draw to draw.
    Drawn(&'a str),
    /// A user's image: [`Image::content`](crate::image::Image::content), whatever part of it is shown.
    Pixels(u64),
}

/// A number for each row: rows of equal content have the same one, counted from 1, and rows that are like no other row, or
/// have no content, have 0.
pub fn identities<T: Eq + Hash>(contents: &[Option<T>]) -> Vec<i32> {
    let mut counts: HashMap<&T, usize> = HashMap::new();
    for content in contents.iter().flatten() {
        *counts.entry(content).or_default() += 1;
    }
    // Numbered in the order of the rows, so that a batch is the same whatever order a map has.
    let mut numbers: HashMap<&T, i32> = HashMap::new();
    let mut rows = Vec::with_capacity(contents.len());
    for content in contents {
        let next = numbers.len() as i32 + 1;
        rows.push(match content {
            Some(content) if counts[content] > 1 => *numbers.entry(content).or_insert(next),
            _ => 0,
        });
    }
    rows
}

/// For each row a number of its image and one of its caption: equal contents have equal numbers, whoever makes the batch. A row
/// without content has 0.
pub fn contents(
    images: &[Option<ImageContent<'_>>],
    captions: &[Option<&Vec<i32>>],
) -> Vec<[u64; 2]> {
    let image = |content: &ImageContent<'_>| match content {
        ImageContent::Drawn(key) => number(b"drawn", key.bytes()),
        ImageContent::Pixels(pixels) => number(b"pixels", pixels.to_le_bytes()),
    };
    let caption =
        |tokens: &&Vec<i32>| number(b"caption", tokens.iter().flat_map(|t| t.to_le_bytes()));
    let rows = images.iter().zip(captions);
    rows.map(|(of, said)| {
        [
            of.as_ref().map_or(0, image),
            said.as_ref().map_or(0, caption),
        ]
    })
    .collect()
}

/// A number above 0 of some bytes: 64 bits of their hash, so that different ones have different numbers but by an accident
/// that no run lives to see.
fn number(kind: &[u8], bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes: Vec<u8> = kind.iter().copied().chain(bytes).collect();
    let hash = blake3::hash(&bytes);
    let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first).max(1)
}

/// As [`identities`], of numbers that [`contents`] made.
pub fn identities_of(numbers: impl Iterator<Item = u64>) -> Vec<i32> {
    let rows: Vec<Option<u64>> = numbers
        .map(|number| (number != 0).then_some(number))
        .collect();
    identities(&rows)
}

/// How many of the scores between the images and the captions of some batches a contrastive loss leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaskedShare {
    masked: u64,
    scores: u64,
}

impl MaskedShare {
    /// Takes in a batch.
    pub fn add(&mut self, batch: &Batch) {
        let rows = || batch.image_identities.iter().zip(&batch.caption_identities);
        let images = same_as_others(rows().map(|(image, _)| [*image, 0]).filter(|[i, _]| *i > 0));
        let captions = same_as_others(rows().map(|(_, text)| [0, *text]).filter(|[_, t]| *t > 0));
        // Rows that share both were counted twice.
        let both = rows().map(|(image, text)| [*image, *text]);
        let both = same_as_others(both.filter(|[image, text]| *image > 0 && *text > 0));
        self.masked += images + captions - both;
        // Of all ranks, where there are several.
        let pairs = batch.pair_counts.last().map_or(0, |count| *count as u64);
        self.scores += pairs * pairs.saturating_sub(1);
    }

    /// The share of all scores of an image with another row's caption, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.masked as f64 / self.scores.max(1) as f64
    }
}

impl fmt::Display for MaskedShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} % of the scores between images and captions are left out of the contrastive loss, because their images or \
             captions are equal",
            100.0 * self.share()
        )
    }
}

/// Ordered pairs of different rows with equal numbers.
fn same_as_others(numbers: impl Iterator<Item = [i32; 2]>) -> u64 {
    let mut counts: HashMap<[i32; 2], u64> = HashMap::new();
    for number in numbers {
        *counts.entry(number).or_default() += 1;
    }
    counts.values().map(|count| count * (count - 1)).sum()
}
