//! The OCR task: what keys, letters, clocks, flags and arrows say, asked and answered.

use std::sync::Arc;

use super::emoji_set::{EmojiSet, Pool};
use super::names::OcrContent;
use super::question_kind::QuestionKind;
use super::scenes::{Arrangement, compose};
use super::tasks;
use keel_base::random::Stream;
use keel_data::augment::Augmentation;
use keel_data::sample::Sample;

/// What a question to be read off an image shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OcrItem {
    /// One concept, by its index.
    Single(usize),
    /// A row of two or three random keys.
    Row,
}

/// The items of the task: every readable concept at least once, each kind of question about equally often.
pub fn ocr_items(emoji: &EmojiSet, pool: &Pool) -> Vec<OcrItem> {
    /// About how many items a kind of question has in an epoch.
    const SHARE: usize = 120;
    let mut items = Vec::new();
    for kind in QuestionKind::OCR {
        let of_kind: Vec<usize> = pool
            .readable
            .iter()
            .copied()
            .filter(|&index| emoji.concept(index).ocr.as_ref().map(kind_of) == Some(kind))
            .collect();
        // Kinds have from a few to hundreds of members: repeating the few makes them about as frequent.
        let times = (SHARE / of_kind.len().max(1)).max(1);
        for _ in 0..times {
            items.extend(of_kind.iter().copied().map(OcrItem::Single));
        }
    }
    if pool.keys.len() > 1 {
        items.extend([OcrItem::Row; SHARE]);
    }
    items
}

fn kind_of(content: &OcrContent) -> QuestionKind {
    match content {
        OcrContent::Key(_) => QuestionKind::Keys,
        OcrContent::Text(_) => QuestionKind::Text,
        OcrContent::Time { .. } => QuestionKind::Time,
        OcrContent::Code(_) => QuestionKind::Code,
        OcrContent::Direction(_) => QuestionKind::Direction,
    }
}

/// The kind of question that `item` asks; nothing where it cannot be read.
pub fn item_kind(emoji: &EmojiSet, item: OcrItem) -> Option<QuestionKind> {
    match item {
        OcrItem::Single(index) => emoji.concept(index).ocr.as_ref().map(kind_of),
        OcrItem::Row => Some(QuestionKind::Keys),
    }
}

/// A question about what `item` says; nothing where the item cannot be read.
pub fn ocr_question(
    emoji: &Arc<EmojiSet>,
    pool: &Pool,
    item: OcrItem,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Option<Sample> {
    let (concepts, arrangement) = match item {
        OcrItem::Single(index) => (vec![index], Arrangement::Single),
        OcrItem::Row => {
            if pool.keys.is_empty() {
                return None;
            }
            let row = if text.chance(0.5) {
                Arrangement::Row2
            } else {
                Arrangement::Row3
            };
            let keys = row.slots().iter().map(|_| *text.pick(&pool.keys)).collect();
            (keys, row)
        }
    };
    let contents: Option<Vec<&OcrContent>> = concepts
        .iter()
        .map(|&index| emoji.concept(index).ocr.as_ref())
        .collect();
    let contents = contents?;
    let kind = kind_of(contents.first()?);
    let question = match kind {
        QuestionKind::Keys if concepts.len() > 1 => "read the keys",
        QuestionKind::Keys => "which key is this?",
        QuestionKind::Text => "what does it say?",
        QuestionKind::Time => "what time is it?",
        QuestionKind::Code => "which letters stand for this flag?",
        _ => "where does it point?",
    };
    let answer: String = contents.iter().map(|content| content.answer()).collect();
    let first = emoji.concept(concepts[0]);
    let caption = match concepts.len() {
        1 => first.phrase.clone(),
        _ => format!("keycaps {answer}"),
    };
    Some(Sample {
        key: concepts
            .iter()
            .map(|&index| emoji.concept(index).key.as_str())
            .collect(),
        task: tasks::OCR,
        question_kind: Some(kind.into()),
        view: compose(emoji, pool, arrangement, &concepts, augmentation, look).view(emoji),
        context: String::new(),
        question: question.to_owned(),
        answer,
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption,
    })
}
