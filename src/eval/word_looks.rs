//! Where a model looks for each token of an answer, and what its visual tokens are near to.

use rayon::prelude::*;

use super::context::{EvalContext, text_embeddings};
use super::retrieval::normalise_rows;
use super::streams::Reading;
use keel_base::error::Result;

/// Tokens of text that are named for each visual token.
const NEAREST: usize = 3;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WordLook {
    /// Visual tokens along the side of an image or tile, which come in rows from the top.
    pub grid: usize,
    /// Images and tiles, in the order of their tokens.
    pub images: usize,
    /// For each token of the answer the attention on each visual token, over heads and layers, when it was chosen. The rest
    /// up to 1 went to text.
    pub attention: Vec<Vec<f32>>,
    /// For each visual token the tokens of text whose embeddings are nearest by their angle, with the cosine; the nearest first.
    pub nearest: Vec<Vec<(i32, f32)>>,
}

/// What `reading` of `ids` tells of the answer that begins at `answer`.
///
/// # Errors
/// Whatever reading the embeddings reports.
pub fn word_looks(
    context: EvalContext<'_>,
    reading: &Reading,
    ids: &[i32],
    answer: usize,
) -> Result<WordLook> {
    let image = context.tokenizer.image();
    let places: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] == image).collect();
    let tokens = context.config.image_tokens();
    let queries: Vec<usize> = (answer..ids.len()).collect();
    let attention = queries
        .par_iter()
        // What chose a token is the place before it.
        .map(|query| attention_of(context, reading, query - 1, &places))
        .collect();
    Ok(WordLook {
        grid: tokens.isqrt(),
        images: places.len() / tokens.max(1),
        attention,
        nearest: nearest(context, reading, &places)?,
    })
}

/// The attention of the token at `query` on those at `places`, the mean over heads and layers.
fn attention_of(
    context: EvalContext<'_>,
    reading: &Reading,
    query: usize,
    places: &[usize],
) -> Vec<f32> {
    let heads = context.config.language.block().heads;
    let (width, dim) = (heads.packed_width(), heads.dim);
    let group = heads.query / heads.key_value;
    let mut sums = vec![0.0f32; places.len()];
    for packed in &reading.attended {
        for head in 0..heads.query {
            let own = &packed[query * width + head * dim..][..dim];
            let key = (heads.query + head / group) * dim;
            let score = |place: usize| {
                let key = &packed[place * width + key..][..dim];
                own.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() / (dim as f32).sqrt()
            };
            let scores: Vec<f32> = (0..=query).map(score).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all: f32 = scores.iter().map(|score| (score - most).exp()).sum();
            for (sum, place) in sums.iter_mut().zip(places) {
                *sum += scores
                    .get(*place)
                    .map_or(0.0, |score| (score - most).exp() / all);
            }
        }
    }
    let count = (reading.attended.len() * heads.query).max(1) as f32;
    for sum in &mut sums {
        *sum /= count;
    }
    sums
}

fn nearest(
    context: EvalContext<'_>,
    reading: &Reading,
    places: &[usize],
) -> Result<Vec<Vec<(i32, f32)>>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let width = context.config.language.width;
    let ids = context.tokenizer.text_ids();
    let mut table = text_embeddings(context)?;
    normalise_rows(&mut table, width);
    let visual = places
        .iter()
        .flat_map(|place| &reading.embedded[place * width..][..width]);
    let mut visual: Vec<f32> = visual.copied().collect();
    normalise_rows(&mut visual, width);
    let of_one = |own: &[f32]| {
        let mut best: Vec<(i32, f32)> = Vec::with_capacity(NEAREST + 1);
        for (id, row) in ids.iter().zip(table.chunks_exact(width)) {
            let cosine: f32 = own.iter().zip(row).map(|(a, b)| a * b).sum();
            let at = best.partition_point(|(_, other)| *other >= cosine);
            if at < NEAREST {
                best.insert(at, (*id as i32, cosine));
                best.truncate(NEAREST);
            }
        }
        best
    };
    Ok(visual.par_chunks_exact(width).map(of_one).collect())
}
