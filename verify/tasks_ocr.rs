//! OCR tasks say what the code points say, and cover everything that can be read.

use std::collections::BTreeMap;

use keel::data::augment::Augmentation;
use keel::emoji::embedded::Vendor;
use keel::emoji::emoji_set::{EmojiSet, Split};
use keel::emoji::ocr::{ocr_items, ocr_question};
use keel::emoji::question_kind::QuestionKind;
use keel::emoji::scenes::Arrangement;
use keel::random::{Purpose, Stream};

use crate::tasks_questions::scene;

#[test]
fn ocr_answers_say_what_the_code_points_say() {
    let emoji = EmojiSet::embedded();
    let ocr_of = |name: &str| {
        let concept = emoji
            .concepts()
            .iter()
            .find(|concept| concept.name == name)
            .unwrap();
        concept.ocr.as_ref().unwrap().answer()
    };
    for (name, answer) in [
        ("keycap 7", "7"),
        ("three o'clock", "3:00"),
        ("twelve-thirty", "12:30"),
        ("one-thirty", "1:30"),
        ("cool button", "cool"),
        ("flag of kenya", "ke"),
        ("down-left arrow", "down left"),
    ] {
        assert_eq!(ocr_of(name), answer);
    }
}

#[test]
fn ocr_covers_every_readable_concept_and_every_kind() {
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    let items = ocr_items(&emoji, &pool);
    let mut kinds: BTreeMap<QuestionKind, usize> = BTreeMap::new();
    let mut keys = std::collections::HashSet::new();
    for (number, &item) in items.iter().enumerate() {
        let mut text = Stream::new(3, Purpose::Text, 0, number as u64);
        let mut look = Stream::new(3, Purpose::Augment, 0, number as u64);
        let sample = ocr_question(
            &emoji,
            &pool,
            item,
            &Augmentation::TRAINING,
            &mut text,
            &mut look,
        )
        .unwrap();
        *kinds.entry(QuestionKind::of(&sample).unwrap()).or_default() += 1;
        let scene = scene(&sample);
        assert!(matches!(scene.objects.len(), 1..=3));
        let read: String = scene
            .objects
            .iter()
            .map(|object| emoji.concept(object.concept).ocr.as_ref().unwrap().answer())
            .collect();
        assert_eq!(read, sample.answer, "read from left to right");
        keys.insert(sample.key);
    }
    for &index in &pool.readable {
        assert!(
            keys.contains(&emoji.concept(index).key),
            "{}",
            emoji.concept(index).name
        );
    }
    let (least, most) = (kinds.values().min().unwrap(), kinds.values().max().unwrap());
    assert_eq!(kinds.len(), QuestionKind::OCR.len());
    assert!(most < &(3 * least), "{kinds:?}");
}

#[test]
fn the_largest_arrangement_still_shows_digits_apart() {
    // Three keys in a row must not touch, or "459" could not be read.
    let slots = Arrangement::Row3.slots();
    let (_, most, stray) = Arrangement::Row3.sizes();
    assert!(slots[1].0[0] - slots[0].0[0] >= most + 2.0 * stray);
}
