//! Text without images: what the concepts are, scenes in words with questions, counting and sides. It teaches the
//! language model the words and the layout before it sees anything, and keeps them alive later. In the described forms a
//! text stands where an image would, so that the model learns to answer from what comes before the question.

use std::sync::Arc;

use super::captions::details_of;
use super::emoji_set::{EmojiSet, Pool};
use super::question_kind::QuestionKind;
use super::questions::ask;
use super::scenes::Side;
use super::tasks;
use keel_base::random::Stream;
use keel_data::augment::Augmentation;
use keel_data::sample::{Sample, View};

const NUMBERS: [&str; 9] = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];

/// A text about the concept `index` of the pool. `attempt` counts earlier versions that were too long.
pub fn fact(
    emoji: &Arc<EmojiSet>,
    pool: &Pool,
    index: usize,
    attempt: usize,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let mut sample = match text.below(16) {
        _ if attempt > 3 => statement(emoji, pool, index, text),
        0..4 => statement(emoji, pool, index, text),
        4..7 => described(emoji, pool, index, "", text),
        7..9 => described(emoji, pool, index, "what is this?", text),
        9..15 => {
            let kind = *text.pick(&QuestionKind::SCENES);
            ask(
                emoji,
                pool,
                index,
                kind,
                &Augmentation::TRAINING,
                text,
                look,
            )
        }
        _ => plain(arithmetic(text)),
    };
    sample.key = emoji.concept(index).key.clone();
    sample.task = tasks::FACTS;
    sample.view = View::None;
    sample.caption = String::new();
    sample
}

fn plain(context: String) -> Sample {
    Sample {
        key: String::new(),
        task: tasks::FACTS,
        question_kind: None,
        view: View::None,
        context,
        question: String::new(),
        answer: String::new(),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption: String::new(),
    }
}

fn statement(emoji: &EmojiSet, pool: &Pool, index: usize, text: &mut Stream) -> Sample {
    let concept = emoji.concept(index);
    let subcategory = &emoji.subcategories()[concept.subcategory];
    let category = &emoji.categories()[concept.category];
    let colours = concept.palette(pool.vendor).dominant(0.15, 2);
    let (name, phrase) = (&concept.name, &concept.phrase);
    plain(match text.below(5) {
        0 => format!("{phrase} is of kind {category}"),
        1 if !colours.is_empty() => {
            let words: Vec<&str> = colours.iter().map(|colour| colour.word()).collect();
            format!("the colour of {phrase} is {}", words.join(" and "))
        }
        2 if !concept.keywords.is_empty() => {
            let keyword = text.pick(&concept.keywords);
            format!("{name} goes with {keyword}")
        }
        3 => {
            let answer = match &concept.ocr {
                Some(content) => format!("{phrase} reads {}", content.answer()),
                None => phrase.clone(),
            };
            return Sample {
                answer,
                ..plain(String::new())
            };
        }
        _ => format!("{name} is in the group {subcategory}"),
    })
}

fn described(
    emoji: &EmojiSet,
    pool: &Pool,
    index: usize,
    question: &str,
    text: &mut Stream,
) -> Sample {
    let concept = emoji.concept(index);
    let keywords = 1 + text.below(3);
    let details = details_of(emoji, concept, pool.vendor, keywords, text);
    Sample {
        question: question.to_owned(),
        answer: if question.is_empty() {
            &concept.phrase
        } else {
            &concept.name
        }
        .clone(),
        ..plain(details.join(", "))
    }
}

fn arithmetic(text: &mut Stream) -> String {
    let less = text.below(8);
    let more = 1 + text.below(8 - less);
    match text.below(4) {
        0 => format!(
            "{} and {} make {}",
            NUMBERS[less],
            NUMBERS[more - 1],
            NUMBERS[less + more]
        ),
        1 => format!("{} comes after {}", NUMBERS[less + 1], NUMBERS[less]),
        2 => format!("{} is {}", NUMBERS[less], less + 1),
        _ => {
            let side = *text.pick(&Side::ALL);
            let opposite = match side {
                Side::Left => Side::Right,
                Side::Right => Side::Left,
                Side::Above => Side::Below,
                Side::Below => Side::Above,
            };
            format!("the opposite of {} is {}", side.word(), opposite.word())
        }
    }
}
