//! The texts that the embedded tokeniser is learned from: what the tasks say about the training concepts, drawn with a
//! fixed seed. `keel data tokenizer` rebuilds `assets/tokenizer.merges` from it, and a test compares the two.

use std::collections::BTreeMap;

use super::augment::Augmentation;
use super::captions::{dense, reading, reading_items, short};
use super::embedded::Artist;
use super::facts::fact;
use super::library::{Library, Split};
use super::questions::ask;
use super::task::{QuestionKind, Sample};
use super::tokenizer::Tokenizer;
use keel_base::error::Result;
use keel_base::random::{Purpose, Stream};

const CORPUS_SEED: u64 = 1;

/// How often one text counts at most, so that fixed questions do not fill the vocabulary with their pieces.
const MOST_REPEATS: u64 = 300;

/// The texts of a few epochs of the tasks with how often each counts.
pub fn texts(library: &Library) -> BTreeMap<String, u64> {
    let pool = library.pool(Artist::Noto, Split::Train);
    let augmentation = &Augmentation::TRAINING;
    let mut texts = BTreeMap::new();
    let mut keep = |sample: Sample| {
        for text in [sample.context, sample.question, sample.answer] {
            if !text.is_empty() {
                let times = texts.entry(text).or_insert(0);
                *times = MOST_REPEATS.min(*times + 1);
            }
        }
    };
    for (position, &index) in pool.all.iter().enumerate() {
        let streams = |task: u64| {
            let address = (task << 32) | position as u64;
            (
                Stream::new(CORPUS_SEED, Purpose::Text, 0, address),
                Stream::new(CORPUS_SEED, Purpose::Augment, 0, address),
            )
        };
        for round in 0..2 {
            let (mut text, mut look) = streams(round);
            keep(short(
                library,
                &pool,
                index,
                augmentation,
                &mut text,
                &mut look,
            ));
            let (mut text, mut look) = streams(2 + round);
            keep(dense(
                library,
                &pool,
                index,
                0,
                augmentation,
                &mut text,
                &mut look,
            ));
            let (mut text, mut look) = streams(4 + round);
            keep(fact(library, &pool, index, 0, &mut text, &mut look));
            let (mut text, mut look) = streams(6 + round);
            let kind =
                QuestionKind::SCENES[(position + round as usize) % QuestionKind::SCENES.len()];
            let mut sample = ask(
                library,
                &pool,
                index,
                kind,
                augmentation,
                &mut text,
                &mut look,
            );
            sample.context.clear();
            keep(sample);
        }
    }
    for (position, item) in reading_items(library, &pool).into_iter().enumerate() {
        let address = (8u64 << 32) | position as u64;
        let mut text = Stream::new(CORPUS_SEED, Purpose::Text, 0, address);
        let mut look = Stream::new(CORPUS_SEED, Purpose::Augment, 0, address);
        if let Some(sample) = reading(library, &pool, item, augmentation, &mut text, &mut look) {
            keep(sample);
        }
    }
    texts
}

/// Learns the tokeniser of the embedded data; the same library gives the same merges on every machine.
pub fn learn_tokenizer(library: &Library) -> Result<Tokenizer> {
    let texts = texts(library);
    Tokenizer::learn(texts.iter().map(|(text, &times)| (text.as_str(), times)))
}
