//! From samples to numbers: the layout of a sequence, its targets and weights, the caption side of the contrastive loss,
//! and the drawn pictures. A sample that does not fit is refused here, never cut.

use serde::{Deserialize, Serialize};

use super::chat::ChatTokenizer;
use super::library::Library;
use super::packing::Packing;
use super::prepare::Fit;
use super::resample::Filter;
use super::task::{QuestionKind, Sample, TaskKind, Turn};
use super::tiles::{self, Tiling};
use crate::tiles::place;
use keel_base::error::{Error, Result};

/// The target of a position that is not supervised.
pub const IGNORED: i32 = -100;

/// How images become numbers: resized to the tower's square, then (value − mean) / std of each channel, with values from 0
/// to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pixels {
    /// Mean of red, green and blue, values from 0 to 1.
    ///
    /// - Range: finite
    /// - Source: 0.48145466, 0.4578275, 0.40821073 (CLIP, AIMv2); 0.485, 0.456, 0.406 (InternVL, SAIL-VL, DINOv2); 0.5 (SigLIP)
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    ///
    /// - Range: above 0
    /// - Source: 0.26862954, 0.26130258, 0.27577711 (CLIP, AIMv2); 0.229, 0.224, 0.225 (InternVL, SAIL-VL, DINOv2); 0.5 (SigLIP)
    pub std: [f32; 3],
    /// How an image that is not square becomes one.
    #[serde(default)]
    pub fit: Fit,
    /// The interpolation filter of the resize.
    #[serde(default)]
    pub filter: Filter,
}

impl Default for Pixels {
    /// Mean and std 0.5: numbers from −1 to 1.
    fn default() -> Pixels {
        Pixels {
            mean: [0.5; 3],
            std: [0.5; 3],
            fit: Fit::default(),
            filter: Filter::default(),
        }
    }
}

impl Pixels {
    /// Turns a picture [3, S, S] of numbers from −1 to 1 into this form.
    pub fn apply(&self, picture: &mut [f32]) {
        self.each(picture, |value, mean, deviation| {
            (value * 0.5 + 0.5 - mean) / deviation
        });
    }

    /// Turns a picture of this form back into numbers from −1 to 1.
    pub fn undo(&self, picture: &mut [f32]) {
        self.each(picture, |value, mean, deviation| {
            (value * deviation + mean - 0.5) / 0.5
        });
    }

    fn each(&self, picture: &mut [f32], change: impl Fn(f32, f32, f32) -> f32) {
        // Exactly the numbers that are there.
        let plain = Pixels::default();
        if (self.mean, self.std) == (plain.mean, plain.std) {
            return;
        }
        let plane = picture.len() / 3;
        for (colour, plane) in picture.chunks_exact_mut(plane).enumerate() {
            let (mean, deviation) = (self.mean[colour], self.std[colour]);
            plane
                .iter_mut()
                .for_each(|value| *value = change(*value, mean, deviation));
        }
    }
}

/// The sizes of a batch, fixed for a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchShape {
    /// Samples, B.
    pub batch: usize,
    /// Side of the square pictures in pixels, S.
    pub image_size: usize,
    /// Visual tokens a picture takes in the sequence, Ti.
    pub image_tokens: usize,
    /// Length of the sequences, T, visual tokens included.
    pub tokens: usize,
    /// Samples that share a sequence, on average; B is a multiple of it.
    #[serde(default = "one")]
    pub pack: usize,
    /// Into how many tiles pictures are cut beside the whole one.
    #[serde(default)]
    pub tiling: Tiling,
    /// Length of the contrastive captions, Tc.
    pub caption_tokens: usize,
    /// How pictures become numbers.
    #[serde(default)]
    pub pixels: Pixels,
}

fn one() -> usize {
    1
}

/// How supervised tokens share a batch's loss. With n supervised tokens in an answer, each weighs:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// 1: long answers count more.
    Token,
    /// 1/n: every answer counts the same, that is every sample where each has one.
    Sample,
    /// 1/√n: between the two.
    #[default]
    Square,
}

impl Weighting {
    /// The weight of each of `supervised` tokens; 0 when there are none.
    pub fn weight(self, supervised: usize) -> f32 {
        match (self, supervised) {
            (_, 0) => 0.0,
            (Weighting::Token, _) => 1.0,
            (Weighting::Sample, n) => 1.0 / n as f32,
            (Weighting::Square, n) => 1.0 / (n as f32).sqrt(),
        }
    }
}

/// Where a row of a batch came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleInfo {
    /// The sample's key.
    pub key: String,
    /// Its task.
    pub kind: TaskKind,
    /// Its kind of question, where it has one.
    pub question_kind: Option<QuestionKind>,
    /// The question, possibly empty.
    pub question: String,
    /// The answer; for plain text the whole text.
    pub answer: String,
    /// What is asked after that.
    pub further: Vec<Turn>,
}

/// Samples that could not be used and were replaced while a batch was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Longer than the sequence or the caption allows.
    pub too_long: u32,
    /// A user's picture that could not be read, or an empty caption.
    pub unreadable: u32,
    /// Already in this contrastive batch.
    pub repeated: u32,
    /// Without room in the sequences that the batch is packed into; still part of a contrast.
    pub without_room: u32,
}

/// One batch, ready for the program. All arrays are row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Pictures `[N + B, 3, S, S]` in the form of [`BatchShape::pixels`]: first the tiles of all samples, or all
    /// pictures of those that show several, in the order of their places, then the samples' whole pictures; zeros for text-only
    /// samples, for those that show several, and for tiles that there are not.
    pub images: Vec<f32>,
    /// Input ids `[R, T]`, in R = B / pack sequences.
    pub tokens: Vec<i32>,
    /// The id that follows each position, [`IGNORED`] where not supervised, `[R, T]`.
    pub targets: Vec<i32>,
    /// Loss weights `[R, T]`, 0 where not supervised.
    pub weights: Vec<f32>,
    /// Which of a sequence's samples each token is of, -1 for padding, `[R, T]`; empty where each has its own sequence.
    pub segments: Vec<i32>,
    /// Positions, from 0 in each sample, `[R, T]`; empty where each has its own sequence.
    pub positions: Vec<i32>,
    /// What each token shows, as [`place`] says, `[R, T]`; empty where pictures are not cut.
    pub places: Vec<i32>,
    /// The caption and its end, padded, `[B, Tc]`.
    pub caption_tokens: Vec<i32>,
    /// Index of the caption's end, `[B]`.
    pub caption_end: Vec<i32>,
    /// 1/n on the caption's n tokens, its end among them, else 0, `[B, Tc]`; all 0 without a caption.
    pub caption_weights: Vec<f32>,
    /// How many samples have one picture: the first, M. The others have no part in a contrast.
    pub pairs: usize,
    /// Where each sample came from, `[B]`, in the order of the pictures.
    pub samples: Vec<SampleInfo>,
    /// What was skipped to make this batch.
    pub skipped: Skipped,
}

/// Whether a sample fits the shape, both as a sequence and as a caption.
pub fn fits(sample: &Sample, shape: &BatchShape, words: &ChatTokenizer) -> bool {
    words
        .sequence(&sample.conversation(shape.image_tokens))
        .ids
        .len()
        <= shape.tokens
        && words.caption(&sample.caption).len() <= shape.caption_tokens
}

/// Turns exactly `shape.batch` samples into a batch and draws their pictures. They are put in the order of [`Packing`]:
/// those of one picture first.
///
/// # Errors
/// `Content` when the number of samples is not the batch's or a sample does not fit; as [`View::render`](super::task::View).
pub fn assemble(
    library: &Library,
    samples: &[Sample],
    shape: &BatchShape,
    weighting: Weighting,
    words: &ChatTokenizer,
) -> Result<Batch> {
    let (b, t, tc) = (shape.batch, shape.tokens, shape.caption_tokens);
    if samples.len() != b {
        return Err(Error::content(
            "a batch",
            format!("{} samples for {b} rows", samples.len()),
            "give as many samples as the batch has rows",
        ));
    }
    let picture = 3 * shape.image_size * shape.image_size;
    let mut sequences: Vec<_> = samples
        .iter()
        .map(|sample| words.sequence(&sample.conversation(shape.image_tokens)))
        .collect();
    let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    let grids = grids(samples, &lengths, shape)?;
    for ((sample, grid), sequence) in samples.iter().zip(&grids).zip(&mut sequences) {
        let tiles = tiles::tiles_of(*grid);
        if tiles > 0 {
            *sequence = words.sequence(&sample.conversation((1 + tiles) * shape.image_tokens));
        }
    }
    let seen: Vec<bool> = samples.iter().map(|s| s.view.is_one()).collect();
    let packing = match shape.pack {
        1 => Packing::apart(&seen),
        pack => {
            let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
            Packing::new(&lengths, &seen, b / pack, t)
        }
    };
    let rows = b / shape.pack;
    let is_packed = shape.pack > 1;
    let is_cut = shape.tiling.is_on();
    let mut images = vec![0.0; (shape.tiling.slots + b) * picture];
    let mut batch = Batch {
        images: Vec::new(),
        tokens: vec![words.pad(); rows * t],
        targets: vec![IGNORED; rows * t],
        weights: vec![0.0; rows * t],
        segments: vec![-1; if is_packed { rows * t } else { 0 }],
        positions: vec![0; if is_packed { rows * t } else { 0 }],
        places: vec![place::NONE; if is_cut { rows * t } else { 0 }],
        caption_tokens: vec![words.pad(); b * tc],
        caption_end: vec![0; b],
        caption_weights: vec![0.0; b * tc],
        pairs: seen.iter().filter(|seen| **seen).count(),
        samples: Vec::with_capacity(b),
        skipped: Skipped::default(),
    };
    let (tiles, wholes) = images.split_at_mut(shape.tiling.slots * picture);
    let mut tiles = tiles.chunks_exact_mut(picture.max(1));
    // What may be cut is not also shifted, and stretched as its tiles are.
    let may_be_cut = shape.tiling.most > 1;
    let pixels = match may_be_cut {
        true => shape.pixels.beside_tiles(),
        false => shape.pixels,
    };
    if is_cut {
        // Slots are taken in the order of the places.
        let with_place = packing
            .samples
            .iter()
            .filter(|packed| packed.place.is_some());
        let mut placed: Vec<_> = with_place.collect();
        placed.sort_by_key(|packed| packed.place.map(|room| (room.row, room.segment)));
        for packed in placed {
            let sizes = (shape.image_size, &pixels);
            let view = &samples[packed.sample].view;
            view.render_slots(grids[packed.sample], sizes, &mut tiles)?;
        }
    }
    for (row, packed) in packing.samples.iter().enumerate() {
        let (sample, sequence) = (&samples[packed.sample], &sequences[packed.sample]);
        let ids = &sequence.ids;
        let caption = words.caption(&sample.caption);
        for (what, length, limit) in [("sequence", ids.len(), t), ("caption", caption.len(), tc)] {
            if length > limit {
                return Err(Error::content(
                    format!("sample {}", sample.key),
                    format!("its {what} has {length} tokens, {limit} fit"),
                    "raise the stage's token limits or shorten the text",
                ));
            }
        }
        if let Some(place) = packed.place {
            let start = place.row * t + place.start;
            if is_cut {
                let grid = grids[packed.sample];
                let slots = tiles::tiles_of(grid) + sample.view.several().len();
                let counts = (slots, shape.image_tokens);
                let places = &mut batch.places[start..start + ids.len()];
                tiles::mark_places(ids, words.image(), counts, places);
            }
            for (position, &id) in ids.iter().enumerate() {
                batch.tokens[start + position] = id;
                if is_packed {
                    batch.segments[start + position] = place.segment as i32;
                    batch.positions[start + position] = position as i32;
                }
            }
            for answer in &sequence.supervised {
                let weight = weighting.weight(answer.len());
                for position in answer.clone() {
                    // The id at `position` is what the position before it must predict.
                    batch.targets[start + position - 1] = ids[position];
                    batch.weights[start + position - 1] = weight;
                }
            }
        } else {
            batch.skipped.without_room += 1;
        }
        write_caption(&caption, sample.caption.is_empty(), row, tc, &mut batch);
        let drawn = &mut wholes[row * picture..(row + 1) * picture];
        let sizes = (shape.image_size, &pixels);
        match may_be_cut {
            true => sample.view.whole().render(library, sizes, drawn)?,
            false => sample.view.render(library, sizes, drawn)?,
        }
        if sample.view.is_one() {
            pixels.apply(drawn);
        }
        batch.samples.push(SampleInfo {
            key: sample.key.clone(),
            kind: sample.kind,
            question_kind: sample.question_kind,
            question: sample.question.clone(),
            answer: if sample.question.is_empty() && sample.answer.is_empty() {
                sample.context.clone()
            } else {
                sample.answer.clone()
            },
            further: sample.further.clone(),
        });
    }
    Ok(Batch { images, ..batch })
}

/// The grid of every sample's picture: as fine as its proportions ask, with tokens that fit the sequence and tiles that are
/// left by the samples before it, and by samples of several pictures, which stay whole. `lengths` are those of the sequences
/// with whole pictures.
fn grids(samples: &[Sample], lengths: &[usize], shape: &BatchShape) -> Result<Vec<[u32; 2]>> {
    let several: usize = samples.iter().map(|s| s.view.several().len()).sum();
    let left = shape.tiling.slots.checked_sub(several);
    let mut left = left.ok_or_else(|| {
        Error::content(
            "a batch",
            format!(
                "{several} pictures of samples of several for {} slots",
                shape.tiling.slots
            ),
            "raise the stage's pictures",
        )
    })?;
    let pairs = samples.iter().zip(lengths);
    let fit = pairs.map(|(sample, length)| {
        let room = shape.tokens.saturating_sub(*length) / shape.image_tokens.max(1);
        let most = shape.tiling.most.min(left).min(room);
        let grid = sample.view.grid(most, shape.image_size as u32);
        left -= tiles::tiles_of(grid);
        grid
    });
    Ok(fit.collect())
}

fn write_caption(caption: &[i32], empty: bool, row: usize, tc: usize, batch: &mut Batch) {
    let weight = if empty {
        0.0
    } else {
        1.0 / caption.len() as f32
    };
    for (position, &id) in caption.iter().enumerate() {
        batch.caption_tokens[row * tc + position] = id;
        batch.caption_weights[row * tc + position] = weight;
    }
    batch.caption_end[row] = caption.len() as i32 - 1;
}

/// Texts as the contrastive side reads them: `(tokens [N, Tc], end [N], weights [N, Tc])` for N texts.
#[derive(Clone, Debug, PartialEq)]
pub struct TextBatch {
    /// The text and its end, padded, `[N, Tc]`.
    pub tokens: Vec<i32>,
    /// Index of the end, `[N]`.
    pub end: Vec<i32>,
    /// 1/n on the text's tokens, `[N, Tc]`.
    pub weights: Vec<f32>,
}

impl TextBatch {
    /// Encodes `texts`.
    ///
    /// # Errors
    /// `Content` when a text has more tokens than `caption_tokens`, its end among them.
    pub fn of(texts: &[String], caption_tokens: usize, words: &ChatTokenizer) -> Result<TextBatch> {
        let mut batch = TextBatch {
            tokens: vec![words.pad(); texts.len() * caption_tokens],
            end: Vec::with_capacity(texts.len()),
            weights: vec![0.0; texts.len() * caption_tokens],
        };
        for (row, text) in texts.iter().enumerate() {
            let ids = words.caption(text);
            if ids.len() > caption_tokens {
                return Err(Error::content(
                    format!("text {text:?}"),
                    format!("it has {} tokens, {caption_tokens} fit", ids.len()),
                    "raise caption_tokens",
                ));
            }
            for (position, &id) in ids.iter().enumerate() {
                batch.tokens[row * caption_tokens + position] = id;
                batch.weights[row * caption_tokens + position] = 1.0 / ids.len() as f32;
            }
            batch.end.push(ids.len() as i32 - 1);
        }
        Ok(batch)
    }
}
