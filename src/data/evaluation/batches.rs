//! An evaluation set in batches.

use crate::batching::assemble::assemble;
use crate::batching::batch::{Batch, BatchShape, TokenWeighting};
use crate::batching::sample::Sample;
use crate::text::chat::ChatTokenizer;
use keel_base::error::Result;

/// The number of batches that hold `samples` samples.
pub fn batches(samples: usize, shape: &BatchShape) -> usize {
    samples.div_ceil(shape.batch.max(1))
}

/// The `index`-th batch of an evaluation set, and how many of its rows count: the last batch is filled up with its first
/// rows. Every supervised token weighs 1.
///
/// # Errors
/// `Content` when a sample does not fit the shape.
pub fn batch_of(
    samples: &[Sample],
    index: usize,
    shape: &BatchShape,
    tokenizer: &ChatTokenizer,
) -> Result<(Batch, usize)> {
    let from = (index * shape.batch).min(samples.len());
    let rows = &samples[from..(from + shape.batch).min(samples.len())];
    let filled: Vec<Sample> = rows.iter().cycle().take(shape.batch).cloned().collect();
    let batch = assemble(&filled, shape, TokenWeighting::Token, tokenizer)?;
    Ok((batch, rows.len()))
}
