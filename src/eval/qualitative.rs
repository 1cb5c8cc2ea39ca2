//! What a model does, to look at: images with the captions it finds for them, classes it takes for one another, where its
//! last block looks, and where visual and text tokens lie. A run keeps one file of them a stage; reports draw them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::context::{EvalContext, load_forward};
use super::retrieval::normalise_rows;
use keel_base::error::Result;
use keel_data::batch::BatchShape;
use keel_data::batches::batch_of;
use keel_data::eval_set::{Classes, EvalSet, SetName};
use keel_data::pixels::Pixels;
use keel_data::sample::Sample;
use keel_engine::tensor::TensorType;
use keel_model::{ModelInput, VisionConfig, vision_tower};

/// Images of each kind of example.
const EXAMPLES: usize = 4;
/// Captions shown with an image.
const SHOWN_CAPTIONS: usize = 3;
/// Confusions shown.
const SHOWN_CONFUSIONS: usize = 6;
/// Tokens of each side that are kept for maps.
const KEPT_TOKENS: usize = 192;

/// The qualitative samples after one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QualitativeSamples {
    /// The stage.
    pub stage: String,
    /// Side S of every image, pixels.
    pub side: usize,
    /// Captions found by images, and classes.
    pub retrieval: Option<RetrievalSamples>,
    /// Where the tower looks.
    pub attention: Vec<AttentionSample>,
    /// Tokens on both sides of the connector.
    pub tokens: Option<TokenClouds>,
}

/// Captions that images of one set find.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RetrievalSamples {
    /// The set.
    pub set: SetName,
    /// Its images, and as many captions.
    pub images: usize,
    /// Images whose own caption is first by the widest margin.
    pub best: Vec<RetrievalExample>,
    /// Images whose own caption ranks lowest.
    pub worst: Vec<RetrievalExample>,
    /// Classes that are taken for others, the most frequent first.
    pub confusions: Vec<Confusion>,
}

/// An image and what it found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RetrievalExample {
    /// The image, as `rgb_text` writes it.
    pub image: String,
    /// Its own caption.
    pub caption: String,
    /// The rank of that caption, from 1.
    pub rank: usize,
    /// The captions that rank first.
    pub found: Vec<String>,
}

/// Images of one class that were taken for another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    /// One of the images, as `rgb_text` writes it.
    pub image: String,
    /// Its class.
    pub class: String,
    /// What it was taken for.
    pub taken_for: String,
    /// Images of the class that were taken for the other.
    pub count: usize,
    /// Images of the class.
    pub of: usize,
}

/// What the last block of the tower looks at in one image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttentionSample {
    /// The image, as `rgb_text` writes it.
    pub image: String,
    /// Its caption.
    pub caption: String,
    /// Patches along a side.
    pub grid: usize,
    /// Attention that each patch receives, head by head: the class token's where there is one, else the mean over all
    /// patches. Each head sums to 1 or, with a class token, to what that token leaves to patches.
    pub heads: Vec<Vec<f32>>,
    /// The patch that receives most, over all heads.
    pub patch: usize,
    /// Cosine of that patch's feature with every patch's.
    pub similarity: Vec<f32>,
}

/// Visual and text tokens in the language model's space, of unit length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenClouds {
    /// Width D.
    pub width: usize,
    /// Visual tokens [n, D], as [`floats_text`].
    pub visual: String,
    /// Rows of the embedding table [m, D], as [`floats_text`].
    pub text: String,
}

impl TokenClouds {
    /// Keeps evenly spaced rows of `visual` [N, `width`] and `text` [M, `width`], both of unit length.
    pub(super) fn of(visual: &[f32], text: &[f32], width: usize) -> TokenClouds {
        let some = |rows: &[f32]| {
            let count = rows.len() / width;
            let kept = count.min(KEPT_TOKENS);
            let rows = (0..kept).flat_map(|k| {
                let row = k * count / kept;
                &rows[row * width..(row + 1) * width]
            });
            floats_text(&rows.copied().collect::<Vec<_>>())
        };
        TokenClouds {
            width,
            visual: some(visual),
            text: some(text),
        }
    }
}

/// Numbers as base64 of little-endian f32.
pub fn floats_text(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// The numbers of [`floats_text`]; nothing where the text is something else.
pub fn floats_of(text: &str) -> Option<Vec<f32>> {
    let bytes = STANDARD.decode(text).ok()?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
    rest.is_empty().then(|| numbers.collect())
}

/// An image [3, S, S] as base64 of bytes [S, S, 3].
pub fn rgb_text(image: &[f32], pixels: Pixels) -> String {
    let mut image = image.to_vec();
    pixels.undo(&mut image);
    let plane = image.len() / 3;
    let byte = |value: f32| ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    let bytes: Vec<u8> = (0..plane)
        .flat_map(|at| [0, 1, 2].map(|colour| byte(image[colour * plane + at])))
        .collect();
    STANDARD.encode(bytes)
}

/// The bytes [S, S, 3] of an image in an qualitative sample; nothing where the text is something else.
pub fn rgb_of(text: &str, side: usize) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(text).ok()?;
    (bytes.len() == 3 * side * side).then_some(bytes)
}

/// What [`retrieval`] looks at: features of unit length, all of one width.
pub(super) struct Seen<'a> {
    /// Of images [N, E].
    pub images: &'a [f32],
    /// Of their captions [N, E].
    pub texts: &'a [f32],
    /// Where the set has classes.
    pub classes: Option<SeenClasses<'a>>,
}

/// What classes are found by; features of unit length, all of one width.
pub(super) struct SeenClasses<'a> {
    /// The classes.
    pub classes: &'a Classes,
    /// That of each image.
    pub labels: &'a [usize],
    /// Features of images [N, E'].
    pub images: &'a [f32],
    /// Features of classes [K, E'].
    pub texts: &'a [f32],
}

/// Σ aᵢ·bᵢ in order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Similarities of `query` to rows of `width` candidates, the highest first; ties go to the smaller index.
fn ranked(query: &[f32], candidates: &[f32], width: usize) -> Vec<(usize, f32)> {
    let mut all: Vec<(usize, f32)> = candidates
        .chunks_exact(width)
        .map(|row| dot(row, query))
        .enumerate()
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

/// The best and worst finds of `samples`, those of the set `name`, and the commonest confusions of its classes.
///
/// # Errors
/// Whatever drawing the images reports.
pub(super) fn retrieval(
    context: EvalContext<'_>,
    shape: &BatchShape,
    samples: &[Sample],
    seen: &Seen<'_>,
    name: SetName,
) -> Result<RetrievalSamples> {
    let count = samples.len();
    let finds = finds(seen, count);
    let taken = seen.classes.as_ref().map(confused).unwrap_or_default();
    let shown = EXAMPLES.min(count);
    let (best, worst) = (&finds[..shown], &finds[count - shown..]);
    // All images that are shown are drawn as one batch, in the order in which they are taken from it below.
    let mut wanted: Vec<usize> = best
        .iter()
        .chain(worst.iter().rev())
        .map(|f| f.own)
        .collect();
    wanted.extend(taken.iter().map(|(_, images)| images[0]));
    let drawn: Vec<_> = wanted.iter().map(|i| samples[*i].clone()).collect();
    let mut images = images_of(context, shape, &drawn)?.into_iter();
    let mut example = |find: &Find| RetrievalExample {
        image: images.next().unwrap_or_default(),
        caption: samples[find.own].caption.clone(),
        rank: find.rank + 1,
        found: find
            .first
            .iter()
            .map(|index| samples[*index].caption.clone())
            .collect(),
    };
    let best = best.iter().map(&mut example).collect();
    let worst = worst.iter().rev().map(&mut example).collect();
    let confusions = taken.iter().filter_map(|((class, guess), of_pair)| {
        let SeenClasses {
            classes, labels, ..
        } = seen.classes.as_ref()?;
        Some(Confusion {
            image: images.next().unwrap_or_default(),
            class: classes.names[*class].clone(),
            taken_for: classes.names[*guess].clone(),
            count: of_pair.len(),
            of: labels.iter().filter(|label| *label == class).count(),
        })
    });
    Ok(RetrievalSamples {
        set: name,
        images: count,
        best,
        worst,
        confusions: confusions.collect(),
    })
}

/// What one image finds among the captions.
struct Find {
    /// The image.
    own: usize,
    /// The rank of its caption, from 0.
    rank: usize,
    /// How much nearer its caption is than the nearest other.
    margin: f32,
    /// The captions that rank first.
    first: Vec<usize>,
}

/// What each of `count` images finds, the best first: those of a low rank, and of a wide margin among them.
fn finds(seen: &Seen<'_>, count: usize) -> Vec<Find> {
    let width = seen.texts.len() / count.max(1);
    let mut finds = Vec::with_capacity(count);
    for (own, query) in seen.images.chunks_exact(width).enumerate() {
        let order = ranked(query, seen.texts, width);
        let rank = order.iter().position(|(index, _)| *index == own);
        let rank = rank.unwrap_or(count);
        // How far ahead of the best wrong caption, or behind: it orders what has the same rank.
        let other = order.iter().find(|(index, _)| *index != own);
        let own_score = order.get(rank).map_or(0.0, |(_, score)| *score);
        finds.push(Find {
            own,
            rank,
            margin: own_score - other.map_or(0.0, |(_, score)| *score),
            first: order.iter().map(|(i, _)| *i).take(SHOWN_CAPTIONS).collect(),
        });
    }
    finds.sort_by(|a, b| a.rank.cmp(&b.rank).then(b.margin.total_cmp(&a.margin)));
    finds
}

/// Images of one class that were taken for another, by (class, other), the most frequent first.
fn confused(seen: &SeenClasses<'_>) -> Vec<((usize, usize), Vec<usize>)> {
    let width = seen.texts.len() / seen.classes.names.len().max(1);
    let mut taken: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, query) in seen.images.chunks_exact(width).enumerate() {
        let order = ranked(query, seen.texts, width);
        let guess = order.first().map_or(0, |(class, _)| *class);
        if guess != seen.labels[index] {
            let pair = (seen.labels[index], guess);
            taken.entry(pair).or_default().push(index);
        }
    }
    let mut taken: Vec<_> = taken.into_iter().collect();
    taken.sort_by_key(|(pair, images)| (std::cmp::Reverse(images.len()), *pair));
    taken.truncate(SHOWN_CONFUSIONS);
    taken
}

/// The images of samples, as `rgb_text` writes it.
fn images_of(
    context: EvalContext<'_>,
    shape: &BatchShape,
    samples: &[Sample],
) -> Result<Vec<String>> {
    if samples.is_empty() {
        return Ok(Vec::new());
    }
    let shape = BatchShape {
        batch: samples.len(),
        ..*shape
    };
    let (batch, _) = batch_of(samples, 0, &shape, context.tokenizer)?;
    let image = 3 * shape.image_size * shape.image_size;
    let images = batch.images.chunks_exact(image);
    Ok(images.map(|p| rgb_text(p, shape.pixels)).collect())
}

/// Where the last block looks in a few images of `set`, and which patches are alike.
///
/// # Errors
/// Whatever recording, loading or the data report.
pub(super) fn attention(
    context: EvalContext<'_>,
    set: &dyn EvalSet,
    shape: &BatchShape,
) -> Result<Vec<AttentionSample>> {
    let samples = set.captioned(EXAMPLES);
    let config = &context.config.vision;
    if samples.is_empty() || config.depth == 0 {
        return Ok(Vec::new());
    }
    let shape = BatchShape {
        batch: samples.len(),
        ..*shape
    };
    let attended = format!("vision.blocks.{}.attended", config.depth - 1);
    let side = config.image_size;
    let mut session = load_forward(context, vec![attended.clone()], |tape| {
        let images = tape.input(
            ModelInput::Images,
            TensorType::f32([samples.len(), 3, side, side]),
        );
        let features = vision_tower(tape, config, images)?;
        tape.output(features, "tower");
        Ok(())
    })?;
    let (batch, _) = batch_of(&samples, 0, &shape, context.tokenizer)?;
    session.write_f32(ModelInput::Images.name(), &batch.images)?;
    session.run()?;
    let (qkv, mut tower) = (session.read_f32(&attended)?, session.read_f32("tower")?);
    normalise_rows(&mut tower, config.width);
    let tokens = tower.len() / samples.len() / config.width;
    let skip = config.prefix_tokens();
    let image = 3 * side * side;
    let qualitative = samples.iter().enumerate().map(|(row, sample)| {
        let packed = &qkv[row * tokens * 3 * config.width..][..tokens * 3 * config.width];
        let heads: Vec<Vec<f32>> = (0..config.heads)
            .map(|head| received(packed, tokens, head, config))
            .collect();
        // The patch that all heads together look at most is the one whose likeness to the others is drawn.
        let total = |patch: usize| heads.iter().map(|head| head[patch]).sum::<f32>();
        let patches = tokens - skip;
        let patch = (0..patches).max_by(|a, b| total(*a).total_cmp(&total(*b)));
        let patch = patch.unwrap_or(0);
        let feature = |patch: usize| {
            let at = row * tokens + skip + patch;
            &tower[at * config.width..(at + 1) * config.width]
        };
        let alike = |other: usize| dot(feature(patch), feature(other));
        AttentionSample {
            image: rgb_text(&batch.images[row * image..][..image], context.pixels),
            caption: sample.caption.clone(),
            grid: patches.isqrt(),
            patch,
            similarity: (0..patches).map(alike).collect(),
            heads,
        }
    });
    Ok(qualitative.collect())
}

/// The attention that each patch receives in one head of `packed` queries, keys and values [T, 3·H·D]: softmax of
/// q·k/√D, of the class token or the mean over all queries.
fn received(packed: &[f32], tokens: usize, head: usize, config: &VisionConfig) -> Vec<f32> {
    let (heads, skip) = (config.heads, config.prefix_tokens());
    let row = packed.len() / tokens;
    let dim = row / 3 / heads;
    let part =
        |token: usize, which: usize| &packed[token * row + (which * heads + head) * dim..][..dim];
    // With a class token, where it looks; without one, where all tokens look on average.
    let queries = if config.class_token { 0..1 } else { 0..tokens };
    let count = queries.len() as f32;
    let mut sums = vec![0.0f32; tokens];
    for query in queries {
        let query = part(query, 0);
        let score = |token: usize| dot(query, part(token, 1)) / (dim as f32).sqrt();
        let scores: Vec<f32> = (0..tokens).map(score).collect();
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f32 = weights.iter().sum();
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += weight / total / count;
        }
    }
    sums.split_off(skip)
}
