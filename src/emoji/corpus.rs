//! The texts that the embedded tokenizer is learned from: what the tasks say about the training concepts, drawn with a
//! fixed seed. `keel data tokenizer` rebuilds `assets/tokenizer.merges` from it, and a test compares the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::captions::{dense, short};
use super::embedded::Vendor;
use super::emoji_set::{EmojiSet, Split};
use super::facts::fact;
use super::ocr::{ocr_items, ocr_question};
use super::question_kind::QuestionKind;
use super::questions::ask;
use keel_base::error::Result;
use keel_base::random::{Purpose, Stream};
use keel_data::augment::Augmentation;
use keel_data::sample::Sample;
use keel_data::tokenizer::Tokenizer;

const CORPUS_SEED: u64 = 1;

/// How often one text counts at most, so that fixed questions do not fill the vocabulary with their pieces.
const MOST_REPEATS: u64 = 300;

/// The texts of a few epochs of the tasks with how often each counts.
pub fn texts(emoji: &Arc<EmojiSet>) -> BTreeMap<String, u64> {
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    let augmentation = &Augmentation::TRAINING;
    let mut texts = BTreeMap::new();
    let mut keep = |sample: Sample| {
        for text in [sample.context, sample.question, sample.answer] {
            if !text.is_empty() {
                let times = texts.entry(text).or_insert(0);
                // Capped: a question that every concept is asked would otherwise take most of the merges.
                *times = MOST_REPEATS.min(*times + 1);
            }
        }
    };
    for (position, &index) in pool.all.iter().enumerate() {
        let streams = |task: u64| {
            // A stream for each task and concept: adding a task leaves the texts of the others as they are.
            let address = (task << 32) | position as u64;
            (
                Stream::new(CORPUS_SEED, Purpose::Text, 0, address),
                Stream::new(CORPUS_SEED, Purpose::Augment, 0, address),
            )
        };
        for round in 0..2 {
            let (mut text, mut look) = streams(round);
            keep(short(
                emoji,
                &pool,
                index,
                augmentation,
                &mut text,
                &mut look,
            ));
            let (mut text, mut look) = streams(2 + round);
            keep(dense(
                emoji,
                &pool,
                index,
                0,
                augmentation,
                &mut text,
                &mut look,
            ));
            let (mut text, mut look) = streams(4 + round);
            keep(fact(emoji, &pool, index, 0, &mut text, &mut look));
            let (mut text, mut look) = streams(6 + round);
            let kind =
                QuestionKind::SCENES[(position + round as usize) % QuestionKind::SCENES.len()];
            let mut sample = ask(
                emoji,
                &pool,
                index,
                kind,
                augmentation,
                &mut text,
                &mut look,
            );
            // The description is what the facts say already; here it would only repeat them.
            sample.context.clear();
            keep(sample);
        }
    }
    for (position, item) in ocr_items(emoji, &pool).into_iter().enumerate() {
        let address = (8u64 << 32) | position as u64;
        let mut text = Stream::new(CORPUS_SEED, Purpose::Text, 0, address);
        let mut look = Stream::new(CORPUS_SEED, Purpose::Augment, 0, address);
        if let Some(sample) = ocr_question(emoji, &pool, item, augmentation, &mut text, &mut look) {
            keep(sample);
        }
    }
    texts
}

/// Learns the tokenizer of the embedded data; the same concepts give the same merges on every machine.
pub fn learn_tokenizer(emoji: &Arc<EmojiSet>) -> Result<Tokenizer> {
    let texts = texts(emoji);
    Tokenizer::learn(texts.iter().map(|(text, &times)| (text.as_str(), times)))
}
