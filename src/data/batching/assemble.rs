//! From samples to numbers: the layout of a sequence, its targets and weights, the caption side of the contrastive loss,
//! and the drawn images. A sample whose sequence does not fit is refused here, never cut. Its caption is, for the contrastive side
//! alone: as CLIP's and SigLIP's tokenisers do.

use super::batch::{Batch, BatchShape, IGNORED, SampleInfo, Skipped, TokenWeighting};
use super::identities::{contents, identities};
use super::image_slots::{mark_places, place};
use super::packing::{Packing, Room};
use super::sample::Sample;
use crate::images::pixels::Pixels;
use crate::images::tiles;
use crate::text::chat::{ChatTokenizer, Sequence};
use keel_base::error::{Error, Result};

/// Whether a sample fits the shape as a sequence.
pub fn fits(sample: &Sample, shape: &BatchShape, tokenizer: &ChatTokenizer) -> bool {
    let conversation = sample.conversation(shape.image_tokens);
    tokenizer.sequence(&conversation).ids.len() <= shape.tokens
}

/// Whether a sample's caption is read whole by a contrastive loss.
pub fn caption_fits(sample: &Sample, shape: &BatchShape, tokenizer: &ChatTokenizer) -> bool {
    tokenizer.caption(&sample.caption).len() <= shape.caption_tokens
}

/// A caption of at most so many tokens, the last of which is still its end.
fn cut(mut caption: Vec<i32>, most: usize) -> Vec<i32> {
    if caption.len() > most {
        caption.swap_remove(most - 1);
        caption.truncate(most);
    }
    caption
}

/// Turns exactly `shape.batch` samples into a batch and draws their images. They are put in the order of [`Packing`]:
/// those of one image first.
///
/// # Errors
/// `Content` when the number of samples is not the batch's or a sample does not fit; as
/// [`View::render`](super::sample::View).
///
/// # Panics
/// When the shape's image id is not that of `words`.
pub fn assemble(
    samples: &[Sample],
    shape: &BatchShape,
    weighting: TokenWeighting,
    tokenizer: &ChatTokenizer,
) -> Result<Batch> {
    if samples.len() != shape.batch {
        return Err(Error::content(
            "a batch",
            format!("{} samples for {} rows", samples.len(), shape.batch),
            "give as many samples as the batch has rows",
        ));
    }
    assemble_at_most(samples, shape, weighting, tokenizer)
}

/// As [`assemble`], with fewer samples than the batch has rows, or as many. Rows without a sample are padding alone: nothing in them
/// weighs, and they have no part in a contrastive loss.
///
/// # Errors
/// As [`assemble`], but for the number of samples.
///
/// # Panics
/// When there are more samples than rows; as [`assemble`].
pub(super) fn assemble_at_most(
    samples: &[Sample],
    shape: &BatchShape,
    weighting: TokenWeighting,
    tokenizer: &ChatTokenizer,
) -> Result<Batch> {
    assert_eq!(
        shape.image_id,
        tokenizer.image(),
        "a shape is made for one tokeniser"
    );
    assert!(samples.len() <= shape.batch, "more samples than rows");
    let plan = BatchPlan::new(samples, shape, tokenizer)?;
    let mut batch = empty(shape, tokenizer);
    batch.pairs = samples.iter().filter(|s| s.view.is_one()).count();
    let image_contents = plan.of_pairs(samples, |sample| samples[sample].image_content());
    batch.image_identities = identities(&image_contents);
    // By tokens, which is what the text side reads: texts that only differ in what a tokeniser drops are equal to it.
    let captions = plan.of_pairs(samples, |sample| Some(&plan.captions[sample]));
    batch.caption_identities = identities(&captions);
    batch.pair_counts = vec![batch.pairs as i32];
    batch.contents = contents(&image_contents, &captions);
    batch.image_identities.resize(shape.batch, 0);
    batch.caption_identities.resize(shape.batch, 0);
    batch.images = draw_images(samples, shape, &plan)?;
    for (row, packed) in plan.packing.samples.iter().enumerate() {
        let (sample, sequence) = (&samples[packed.sample], &plan.sequences[packed.sample]);
        match packed.place {
            Some(room) => {
                write_sequence(sequence, room, shape, weighting, &mut batch);
                if shape.tiling.is_on() {
                    let slots = plan.slots(samples, packed.sample);
                    write_places(&sequence.ids, room, slots, shape, &mut batch);
                }
            }
            // It is still part of a contrastive loss: its image and its caption are there.
            None => batch.skipped.without_room += 1,
        }
        let caption = &plan.captions[packed.sample];
        write_caption(caption, sample.caption.is_empty(), row, shape, &mut batch);
        batch.samples.push(info(sample));
    }
    Ok(batch)
}

/// Where everything of a batch goes, decided before anything is written: the sequences depend on how images are cut, and
/// what is packed together depends on the sequences.
struct BatchPlan {
    /// The grid that each sample's image is cut into.
    grids: Vec<[u32; 2]>,
    /// Each sample's ids, with the image tokens of its tiles.
    sequences: Vec<Sequence>,
    /// Each sample's caption and its end, as far as the contrastive side reads it.
    captions: Vec<Vec<i32>>,
    /// The samples in the order of the batch.
    packing: Packing,
}

impl BatchPlan {
    fn new(samples: &[Sample], shape: &BatchShape, tokenizer: &ChatTokenizer) -> Result<BatchPlan> {
        let sequence = |sample: &Sample, tiles: usize| {
            tokenizer.sequence(&sample.conversation((1 + tiles) * shape.image_tokens))
        };
        let mut sequences: Vec<Sequence> = samples.iter().map(|s| sequence(s, 0)).collect();
        let grids = grids(samples, &lengths(&sequences), shape)?;
        for ((sample, grid), laid_out) in samples.iter().zip(&grids).zip(&mut sequences) {
            let tiles = tiles::tiles_of(*grid);
            if tiles > 0 {
                *laid_out = sequence(sample, tiles);
            }
        }
        let captions: Vec<Vec<i32>> = samples
            .iter()
            .map(|s| cut(tokenizer.caption(&s.caption), shape.caption_tokens))
            .collect();
        for (sample, sequence) in samples.iter().zip(&sequences) {
            check_length(sample, sequence.ids.len(), shape.tokens)?;
        }
        let seen: Vec<bool> = samples.iter().map(|s| s.view.is_one()).collect();
        let packing = match shape.pack {
            1 => Packing::apart(&seen),
            _ => Packing::new(&lengths(&sequences), &seen, shape.rows(), shape.tokens),
        };
        Ok(BatchPlan {
            grids,
            sequences,
            captions,
            packing,
        })
    }

    /// What `content` finds of each sample of one image, in the order of the batch; nothing of the others, which have no
    /// part in a contrastive loss.
    fn of_pairs<T>(
        &self,
        samples: &[Sample],
        content: impl Fn(usize) -> Option<T>,
    ) -> Vec<Option<T>> {
        let of_one = |sample: usize| {
            if samples[sample].view.is_one() {
                content(sample)
            } else {
                None
            }
        };
        let order = self.packing.samples.iter();
        order.map(|packed| of_one(packed.sample)).collect()
    }

    /// Slots that a sample takes: its tiles, or the images of one that shows several.
    fn slots(&self, samples: &[Sample], sample: usize) -> usize {
        tiles::tiles_of(self.grids[sample]) + samples[sample].view.several().len()
    }
}

fn lengths(sequences: &[Sequence]) -> Vec<usize> {
    sequences.iter().map(|s| s.ids.len()).collect()
}

/// The grid of every sample's image: as fine as its proportions ask, with tokens that fit the sequence and tiles that are
/// left by the samples before it, and by samples of several images, which stay whole. `lengths` are those of the sequences
/// with whole images.
fn grids(samples: &[Sample], lengths: &[usize], shape: &BatchShape) -> Result<Vec<[u32; 2]>> {
    let several: usize = samples.iter().map(|s| s.view.several().len()).sum();
    let left = shape.tiling.slots.checked_sub(several);
    let mut left = left.ok_or_else(|| {
        Error::content(
            "a batch",
            format!(
                "{several} images of samples of several for {} slots",
                shape.tiling.slots
            ),
            "raise the stage's images",
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

/// A batch in which nothing is said yet: padding, no targets, no places.
fn empty(shape: &BatchShape, tokenizer: &ChatTokenizer) -> Batch {
    let (b, tc, ids) = (
        shape.batch,
        shape.caption_tokens,
        shape.rows() * shape.tokens,
    );
    let packed = if shape.pack > 1 { ids } else { 0 };
    let cut = if shape.tiling.is_on() { ids } else { 0 };
    Batch {
        images: Vec::new(),
        tokens: vec![tokenizer.pad(); ids],
        targets: vec![IGNORED; ids],
        weights: vec![0.0; ids],
        segments: vec![-1; packed],
        positions: vec![0; packed],
        places: vec![place::NONE; cut],
        caption_tokens: vec![tokenizer.pad(); b * tc],
        caption_end: vec![0; b],
        caption_weights: vec![0.0; b * tc],
        pairs: 0,
        pair_counts: Vec::new(),
        contents: Vec::new(),
        image_identities: Vec::new(),
        caption_identities: Vec::new(),
        samples: Vec::with_capacity(b),
        skipped: Skipped::default(),
    }
}

/// Images [N + B, 3, S, S]: what takes slots, in the order of the places in the sequences, then the whole images in the
/// order of the batch.
fn draw_images(samples: &[Sample], shape: &BatchShape, plan: &BatchPlan) -> Result<Vec<f32>> {
    // What may be cut is not also shifted, and stretched as its tiles are.
    let may_be_cut = shape.tiling.most > 1;
    let pixels = if may_be_cut {
        shape.pixels.beside_tiles()
    } else {
        shape.pixels
    };
    let sizes: (usize, &Pixels) = (shape.image_size, &pixels);
    let image = 3 * shape.image_size * shape.image_size;
    let mut images = vec![0.0; (shape.tiling.slots + shape.batch) * image];
    let (slots, wholes) = images.split_at_mut(shape.tiling.slots * image);
    if shape.tiling.is_on() {
        // The model splices slots in the order of their tokens: by sequence, then by place in it.
        let mut placed: Vec<(Room, usize)> = plan
            .packing
            .samples
            .iter()
            .filter_map(|packed| Some((packed.place?, packed.sample)))
            .collect();
        placed.sort_by_key(|(room, _)| (room.row, room.segment));
        let mut slots = slots.chunks_exact_mut(image.max(1));
        for (_, sample) in placed {
            let view = &samples[sample].view;
            view.render_slots(plan.grids[sample], sizes, &mut slots)?;
        }
    }
    for (row, packed) in plan.packing.samples.iter().enumerate() {
        let view = &samples[packed.sample].view;
        let drawn = &mut wholes[row * image..(row + 1) * image];
        if may_be_cut {
            view.whole().render(sizes, drawn)?;
        } else {
            view.render(sizes, drawn)?;
        }
        if view.is_one() {
            pixels.apply(drawn);
        }
    }
    Ok(images)
}

fn check_length(sample: &Sample, length: usize, limit: usize) -> Result<()> {
    if length <= limit {
        return Ok(());
    }
    Err(Error::content(
        format!("sample {}", sample.key),
        format!("its sequence has {length} tokens, {limit} fit"),
        "raise the stage's max_tokens or shorten the text",
    ))
}

/// Ids, targets and weights of a sample in its room of a sequence.
fn write_sequence(
    sequence: &Sequence,
    room: Room,
    shape: &BatchShape,
    weighting: TokenWeighting,
    batch: &mut Batch,
) {
    let start = room.row * shape.tokens + room.start;
    for (position, &id) in sequence.ids.iter().enumerate() {
        batch.tokens[start + position] = id;
        if shape.pack > 1 {
            batch.segments[start + position] = room.segment as i32;
            batch.positions[start + position] = position as i32;
        }
    }
    for answer in &sequence.supervised {
        let weight = weighting.weight(answer.len());
        for position in answer.clone() {
            // The id at `position` is what the position before it must predict.
            batch.targets[start + position - 1] = sequence.ids[position];
            batch.weights[start + position - 1] = weight;
        }
    }
}

/// What a sample's image tokens show, where `slots` of its images or tiles stand apart from the whole ones.
fn write_places(ids: &[i32], room: Room, slots: usize, shape: &BatchShape, batch: &mut Batch) {
    let start = room.row * shape.tokens + room.start;
    let places = &mut batch.places[start..start + ids.len()];
    mark_places(ids, shape.image_id, (slots, shape.image_tokens), places);
}

fn write_caption(caption: &[i32], empty: bool, row: usize, shape: &BatchShape, batch: &mut Batch) {
    let weight = if empty {
        0.0
    } else {
        1.0 / caption.len() as f32
    };
    let start = row * shape.caption_tokens;
    for (position, &id) in caption.iter().enumerate() {
        batch.caption_tokens[start + position] = id;
        batch.caption_weights[start + position] = weight;
    }
    batch.caption_end[row] = caption.len() as i32 - 1;
}

fn info(sample: &Sample) -> SampleInfo {
    SampleInfo {
        key: sample.key.clone(),
        task: sample.task,
        question_kind: sample.question_kind.clone(),
        question: sample.question.clone(),
        answer: if sample.question.is_empty() && sample.answer.is_empty() {
            sample.context.clone()
        } else {
            sample.answer.clone()
        },
        further: sample.further.clone(),
    }
}
