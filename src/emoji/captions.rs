//! Captions: short ones for coarse alignment, dense ones with group, colours and keywords. All are made
//! from one concept of the pool and never mention anything that is not in the image's facts.

use std::sync::Arc;

use super::embedded::Vendor;
use super::emoji_set::{Concept, EmojiSet, Pool};
use super::names::with_article;
use super::scenes::{Arrangement, compose};
use super::tasks;
use keel_base::random::Stream;
use keel_data::augment::Augmentation;
use keel_data::sample::{Sample, View};

/// What stands around a phrase in a short caption; the first is what evaluation uses.
pub const SHORT_TEMPLATES: [[&str; 2]; 5] = [
    ["", ""],
    ["a picture of ", ""],
    ["this is ", ""],
    ["an emoji of ", ""],
    ["", " on its own"],
];

/// The caption of a concept as evaluation uses it.
pub fn plain_caption(concept: &Concept) -> String {
    concept.phrase.clone()
}

/// One concept alone with its name. Most captions are the bare phrase.
pub fn short(
    emoji: &Arc<EmojiSet>,
    pool: &Pool,
    index: usize,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let concept = emoji.concept(index);
    let template = if text.chance(0.6) {
        SHORT_TEMPLATES[0]
    } else {
        *text.pick(&SHORT_TEMPLATES[1..])
    };
    let caption = format!("{}{}{}", template[0], concept.phrase, template[1]);
    Sample {
        key: concept.key.clone(),
        task: tasks::SHORT_CAPTIONS,
        question_kind: None,
        view: single(emoji, pool, index, augmentation, look),
        context: String::new(),
        question: String::new(),
        answer: caption.clone(),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption,
    }
}

/// One concept alone, described. `attempt` counts earlier versions that were too long: each has one detail less.
pub fn dense(
    emoji: &Arc<EmojiSet>,
    pool: &Pool,
    index: usize,
    attempt: usize,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let concept = emoji.concept(index);
    let keywords = text.below(3);
    let mut words = vec![concept.phrase.clone()];
    words.extend(details_of(
        emoji,
        concept,
        pool.vendor,
        keywords.saturating_sub(attempt),
        text,
    ));
    if attempt > 3 {
        words.truncate(2);
    }
    let caption = words.join(", ");
    Sample {
        key: concept.key.clone(),
        task: tasks::DENSE_CAPTIONS,
        question_kind: None,
        view: single(emoji, pool, index, &augmentation.true_colours(), look),
        context: String::new(),
        question: "describe this".to_owned(),
        answer: caption.clone(),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption,
    }
}

/// Group, colours and up to `keywords` keywords of a concept, everything but its name.
pub fn details_of(
    emoji: &EmojiSet,
    concept: &Concept,
    vendor: Vendor,
    keywords: usize,
    text: &mut Stream,
) -> Vec<String> {
    let mut details = vec![with_article(&emoji.subcategories()[concept.subcategory])];
    let colours = concept.palette(vendor).dominant(0.15, 2);
    if !colours.is_empty() {
        details.push(
            colours
                .iter()
                .map(|colour| colour.word())
                .collect::<Vec<_>>()
                .join(" and "),
        );
    }
    let mut order: Vec<&String> = concept.keywords.iter().collect();
    text.shuffle(&mut order);
    details.extend(order.into_iter().take(keywords).cloned());
    details
}

/// One concept alone in the frame.
fn single(
    emoji: &Arc<EmojiSet>,
    pool: &Pool,
    index: usize,
    augmentation: &Augmentation,
    look: &mut Stream,
) -> View {
    let shown = [index];
    compose(emoji, pool, Arrangement::Single, &shown, augmentation, look).view(emoji)
}
