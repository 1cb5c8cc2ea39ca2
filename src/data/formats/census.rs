//! Reads data once and counts: what there is, how large, how long, what is broken, what comes twice.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use super::pair::{Pair, PairSource};
use super::pairs::{ImageFiles, Pairs};
use super::remote::with_readers;
use super::skips::Reason;
use crate::text::chat::{ChatTokenizer, Conversation};
use keel_base::error::{Error, Result};

/// Pairs of duplicates that are named.
const EXAMPLES: usize = 3;

/// What a check of data found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Census {
    /// Samples, repeats counted; those that opening left out not among them.
    pub samples: usize,
    /// Samples that can be read and decoded.
    pub usable: usize,
    /// Images of the usable samples.
    pub images: ImageCensus,
    /// Their words.
    pub words: WordCensus,
    /// What was left out when the data were opened, in words.
    pub left_out_at_opening: Option<String>,
    /// What was done to samples that are used, and what is to be known of the data as a whole, a sentence each.
    pub notes: Vec<String>,
}

/// Images, counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImageCensus {
    /// Samples with an image.
    pub count: usize,
    /// The smallest, the median and the largest, by area: width and height in pixels.
    pub sizes: [[u32; 2]; 3],
    /// Samples with several images, and the most that one has. Sizes are those of the last of each sample.
    pub several: [usize; 2],
    /// Samples with an image of several frames, of which the first is shown.
    pub animated: usize,
    /// Bytes of all image files.
    pub bytes: u64,
    /// Files whose content came before.
    pub duplicates: usize,
    /// Some of these: its key, and the key of the one before.
    pub examples: Vec<(String, String)>,
}

/// Words, counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WordCensus {
    /// Answers, captions among them.
    pub answers: usize,
    /// Those that are read and not learnt, as their records say.
    pub not_learnt: usize,
    /// Samples whose first answer came before, word for word, with the same question.
    pub duplicates: usize,
    /// Tokens of the embedded tokenizer in a whole conversation, the image's not among them: how many samples have at most
    /// 16, 32, 64, 128, 256, 512, 1024 and more.
    pub tokens: [usize; 8],
    /// The longest.
    pub most_tokens: usize,
}

/// The bounds of [`WordCensus::tokens`].
pub const TOKEN_BOUNDS: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// What is known of one usable sample.
struct Seen {
    key: String,
    size: Option<[u32; 2]>,
    bytes: u64,
    image: Option<[u8; 32]>,
    words: [u8; 32],
    answers: usize,
    not_learnt: usize,
    tokens: usize,
    /// Images, at least 1.
    several: usize,
    is_animated: bool,
}

/// Reads every sample once on all cores. What cannot be used is counted in the pairs' own record of draws.
///
/// # Errors
/// [`Error::Stopped`] when a store does not give what was opened.
pub fn census(pairs: &Pairs) -> Result<Census> {
    let look_at = |index: usize| match pairs.read(index) {
        Ok((pair, file)) => {
            pairs.drawing_skips().count_good();
            Ok(Some(look(pair, file)))
        }
        Err(error @ Error::Stopped { .. }) => Err(error),
        Err(error) => {
            pairs.count_broken(index, Reason::of(&error), &error.to_string());
            Ok(None)
        }
    };
    let seen: Vec<Option<Seen>> = with_readers(pairs.is_remote(), || {
        (0..pairs.len())
            .into_par_iter()
            .map(look_at)
            .collect::<Result<_>>()
    })??;
    let opening = pairs.opening_logs().into_iter();
    let left_out: Vec<String> = opening
        .filter(|skips| skips.skipped() > 0)
        .map(|skips| skips.summary())
        .collect();
    let mut all = Census {
        samples: seen.len(),
        notes: pairs.notes(),
        left_out_at_opening: (!left_out.is_empty()).then(|| left_out.join(", ")),
        ..Census::default()
    };
    let mut sizes: Vec<[u32; 2]> = Vec::new();
    let mut images: HashMap<[u8; 32], String> = HashMap::new();
    let mut words: HashMap<[u8; 32], usize> = HashMap::new();
    // In the order of the data, not as threads finished: which of two duplicates came before must not change between checks.
    for seen in seen.into_iter().flatten() {
        all.usable += 1;
        all.words.answers += seen.answers;
        all.words.not_learnt += seen.not_learnt;
        let bin = TOKEN_BOUNDS.iter().position(|bound| seen.tokens <= *bound);
        all.words.tokens[bin.unwrap_or(TOKEN_BOUNDS.len())] += 1;
        all.words.most_tokens = all.words.most_tokens.max(seen.tokens);
        let times = words.entry(seen.words).or_default();
        all.words.duplicates += usize::from(*times > 0);
        *times += 1;
        sizes.extend(seen.size);
        if seen.several > 1 {
            let [count, most] = &mut all.images.several;
            (*count, *most) = (*count + 1, seen.several.max(*most));
        }
        all.images.animated += usize::from(seen.is_animated);
        all.images.bytes += seen.bytes;
        if let Some(hash) = seen.image {
            match images.get(&hash) {
                Some(first) => {
                    all.images.duplicates += 1;
                    if all.images.examples.len() < EXAMPLES && *first != seen.key {
                        all.images.examples.push((seen.key, first.clone()));
                    }
                }
                None => {
                    images.insert(hash, seen.key);
                }
            }
        }
    }
    sizes.sort_by_key(|[width, height]| (u64::from(*width) * u64::from(*height), *width));
    all.images.count = sizes.len();
    if let (Some(first), Some(last)) = (sizes.first(), sizes.last()) {
        all.images.sizes = [*first, sizes[sizes.len() / 2], *last];
    }
    Ok(all)
}

fn look(pair: Pair, file: Option<ImageFiles>) -> Seen {
    let mut turns = vec![[
        pair.prompt.as_deref().unwrap_or_default(),
        pair.caption.as_str(),
    ]];
    let further = pair.further.iter();
    turns.extend(further.map(|turn| [turn.question.as_str(), turn.answer.as_str()]));
    let conversation = Conversation {
        image_tokens: usize::from(pair.image.is_some()),
        is_marked: pair.is_marked,
        system: pair.system.as_deref(),
        context: "",
        turns,
        unsupervised: &pair.rules.unsupervised,
    };
    let length = ChatTokenizer::embedded().sequence(&conversation).ids.len();
    let mut words = blake3::Hasher::new();
    words.update(pair.prompt.as_deref().unwrap_or_default().as_bytes());
    words.update(b"\0");
    words.update(pair.caption.as_bytes());
    Seen {
        tokens: length - conversation.image_tokens * (1 + pair.before.len()),
        several: 1 + pair.before.len(),
        answers: conversation.turns.len(),
        not_learnt: conversation.unsupervised.len(),
        words: *words.finalize().as_bytes(),
        size: pair.image.as_ref().map(|image| [image.width, image.height]),
        bytes: file.as_ref().map_or(0, |file| file.bytes.len() as u64),
        is_animated: file.as_ref().is_some_and(|file| file.is_animated),
        image: file.map(|file| *blake3::hash(&file.bytes).as_bytes()),
        key: pair.key,
    }
}
