//! Evaluation sets: fixed, fitting, complete, and apart from training.

use std::collections::{HashMap, HashSet};

use keel::data::batch::{BatchShape, fits};
use keel::data::chat::ChatTokenizer;
use keel::data::embedded::Artist;
use keel::data::eval_sets::{batch_of, batches, captioned, questions, subcategories};
use keel::data::library::{Library, Split};
use keel::data::picture::{Picture, PictureLimits};
use keel::data::task::{QuestionKind, TaskKind, View};
use keel::report::contact_sheet;

use crate::tasks_mixture::{SHAPE, TEXT_ONLY_SHAPE, mixture};

#[test]
fn evaluation_sets_are_fixed_fit_and_belong_together() {
    let library = Library::embedded();
    for artist in Artist::ALL {
        for split in [Split::Train, Split::HeldOut] {
            let set = captioned(&library, artist, split, 100);
            assert_eq!(set.len(), 100);
            let keys: HashSet<&str> = set.iter().map(|sample| sample.key.as_str()).collect();
            assert_eq!(keys.len(), 100);
            for sample in &set {
                let View::Scene(scene) = &sample.view else {
                    panic!("no scene")
                };
                let concept = library.concept(scene.objects[0].concept);
                assert_eq!((scene.artist, concept.split), (artist, split));
                assert_eq!(sample.caption, concept.phrase);
                assert!(
                    fits(sample, &SHAPE, ChatTokenizer::embedded()),
                    "{}",
                    sample.caption
                );
            }
            let zero_shot = subcategories(&library, artist, split, 50);
            assert_eq!(
                zero_shot.prompts.len(),
                zero_shot.classes.len() * zero_shot.templates
            );
            for (sample, &label) in zero_shot.samples.iter().zip(&zero_shot.labels) {
                let concept = library
                    .concepts()
                    .iter()
                    .find(|c| c.key == sample.key)
                    .unwrap();
                assert_eq!(
                    library.subcategories()[concept.subcategory],
                    zero_shot.classes[label]
                );
            }
        }
    }
    assert!(captioned(&library, Artist::Noto, Split::HeldOut, usize::MAX).len() < 300);
}

#[test]
fn question_sets_hold_every_kind_for_both_artists_and_batch_up() {
    let library = Library::embedded();
    for artist in Artist::ALL {
        let set = questions(
            &library,
            artist,
            Split::Train,
            5,
            &SHAPE,
            ChatTokenizer::embedded(),
        );
        let mut counts: HashMap<QuestionKind, usize> = HashMap::new();
        for sample in &set {
            *counts.entry(sample.question_kind.unwrap()).or_default() += 1;
            assert!(fits(sample, &SHAPE, ChatTokenizer::embedded()));
        }
        for kind in QuestionKind::SCENES
            .into_iter()
            .chain(QuestionKind::READING)
        {
            assert_eq!(counts[&kind], 5, "{}", kind.name());
        }
        let shape = BatchShape {
            image_size: 8,
            ..SHAPE
        };
        let total: usize = (0..batches(set.len(), &shape))
            .map(|index| {
                batch_of(&library, &set, index, &shape, ChatTokenizer::embedded())
                    .unwrap()
                    .1
            })
            .sum();
        assert_eq!(total, set.len());
    }
}

#[test]
fn evaluation_scenes_are_not_training_scenes() {
    let library = Library::embedded();
    let mixture = mixture(&[(TaskKind::Scenes, 1.0)], TEXT_ONLY_SHAPE);
    let mut trained = HashSet::new();
    for step in 0..300 {
        for sample in mixture.samples(step).unwrap().0 {
            trained.insert(format!("{:?}", sample.view));
        }
    }
    for sample in questions(
        &library,
        Artist::Noto,
        Split::Train,
        20,
        &SHAPE,
        ChatTokenizer::embedded(),
    ) {
        assert!(!trained.contains(&format!("{:?}", sample.view)));
    }
}

#[test]
fn a_contact_sheet_shows_each_picture_in_its_cell() {
    let images: Vec<f32> = (0..3 * 12)
        .map(|i| if i / 12 == 1 { 1.0 } else { -1.0 })
        .collect();
    let png = contact_sheet(&images, 2, 2, 3).unwrap();
    let sheet = Picture::decode("the sheet", &png, &PictureLimits::default()).unwrap();
    assert_eq!(
        (sheet.width, sheet.height),
        (20, 20),
        "two columns and rows of 2 x 3 + 4"
    );
    let pixel = |x: usize, y: usize| &sheet.rgba[(y * 20 + x) * 4..][..4];
    for (x, y, level) in [
        (0, 0, 0),
        (5, 5, 0),
        (6, 6, 255),
        (10, 0, 255),
        (0, 10, 0),
        (10, 10, 255),
    ] {
        assert_eq!(pixel(x, y), [level, level, level, 255], "{x}, {y}");
    }
    assert!(contact_sheet(&[], 2, 2, 3).is_err());
}
