//! A batch: its sizes, its arrays, and where its rows came from.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::task::Task;
use crate::images::pixels::Pixels;
use crate::images::tiles::Tiling;
use crate::text::chat::{ChatTokenizer, Turn};
use keel_base::error::{Error, Result};

/// The target of a position that is not supervised.
pub const IGNORED: i32 = -100;

/// The sizes of a batch, fixed for a program: what the data are laid out in, and what a model records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchShape {
    /// Samples, B.
    pub batch: usize,
    /// Side of the square images in pixels, S.
    pub image_size: usize,
    /// Visual tokens an image takes in the sequence, Ti.
    pub image_tokens: usize,
    /// Length of the sequences, T, visual tokens included.
    pub tokens: usize,
    /// Samples that share a sequence, on average; 1 gives each its own. B is a multiple of it.
    pub pack: usize,
    /// Into how many tiles images are cut beside the whole one.
    pub tiling: Tiling,
    /// Length of the contrastive captions, Tc.
    pub caption_tokens: usize,
    /// The token id that stands for a visual token; the tokeniser's own.
    pub image_id: i32,
    /// How images become numbers.
    pub pixels: Pixels,
}

impl BatchShape {
    /// Sequences R.
    pub fn rows(&self) -> usize {
        self.batch / self.pack
    }
}

/// The weight of a supervised token in the loss, where its answer has n of them. Weights are divided by their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenWeighting {
    /// 1: every token counts the same.
    Token,
    /// 1/n: every answer counts the same.
    Sample,
    /// 1/√n: between the two (InternVL 2.5, loss reweighting, which names it so).
    #[default]
    Square,
}

impl TokenWeighting {
    /// The weight of each of `supervised` tokens; 0 when there are none.
    pub fn weight(self, supervised: usize) -> f32 {
        match (self, supervised) {
            (_, 0) => 0.0,
            (TokenWeighting::Token, _) => 1.0,
            (TokenWeighting::Sample, n) => 1.0 / n as f32,
            (TokenWeighting::Square, n) => 1.0 / (n as f32).sqrt(),
        }
    }
}

/// Where a row of a batch came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleInfo {
    /// The sample's key.
    pub key: String,
    /// Its task.
    pub task: Task,
    /// Its kind of question, where it has one.
    pub question_kind: Option<Cow<'static, str>>,
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
    /// A user's image that could not be read, or an empty caption.
    pub unreadable: u32,
    /// Without room in the sequences that the batch is packed into; still part of a contrastive loss.
    pub without_room: u32,
}

/// One batch, ready for the program. All arrays are row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Images `[N + B, 3, S, S]` in the form of [`BatchShape::pixels`]: first the tiles of all samples, or all
    /// images of those that show several, in the order of their places, then the samples' whole images; zeros for text-only
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
    /// What each token shows, as [`place`](super::image_slots::place) says, `[R, T]`; empty where images are not cut.
    pub places: Vec<i32>,
    /// The caption and its end, padded, `[B, Tc]`.
    pub caption_tokens: Vec<i32>,
    /// Index of the caption's end, `[B]`.
    pub caption_end: Vec<i32>,
    /// 1/n on the caption's n tokens, its end among them, else 0, `[B, Tc]`; all 0 without a caption.
    pub caption_weights: Vec<f32>,
    /// The number of pairs for a loss: that below. A rank among several has one for each rank here and their sum.
    pub pair_counts: Vec<i32>,
    /// What tells rows of batches apart that are made apart: numbers of the image and of the caption of each pair, as
    /// [`contents`](super::identities::contents) makes them, `[B]`.
    pub contents: Vec<[u64; 2]>,
    /// How many samples have one image: the first, M. The others have no part in a contrastive loss.
    pub pairs: usize,
    /// Which of the first M samples show equal images, as [`identities`](super::identities::identities) numbers them, `[B]`;
    /// 0 for the others. A rank among several has those of all ranks here, one rank's after the other's.
    pub image_identities: Vec<i32>,
    /// Which of the first M samples have equal captions, likewise, `[B]`.
    pub caption_identities: Vec<i32>,
    /// Where each sample came from, `[B]`, in the order of the images.
    pub samples: Vec<SampleInfo>,
    /// What was skipped to make this batch.
    pub skipped: Skipped,
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
    pub fn of(
        texts: &[String],
        caption_tokens: usize,
        tokenizer: &ChatTokenizer,
    ) -> Result<TextBatch> {
        let mut batch = TextBatch {
            tokens: vec![tokenizer.pad(); texts.len() * caption_tokens],
            end: Vec::with_capacity(texts.len()),
            weights: vec![0.0; texts.len() * caption_tokens],
        };
        for (row, text) in texts.iter().enumerate() {
            let ids = tokenizer.caption(text);
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
