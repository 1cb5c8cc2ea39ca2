//! Evaluation sets: fixed, fitting, complete, and apart from training.

use std::collections::{HashMap, HashSet};

use keel::data::assemble::fits;
use keel::data::batch::BatchShape;
use keel::data::batches::{batch_of, batches};
use keel::data::chat::ChatTokenizer;
use keel::data::eval_set::{ClassifiedSet, EvalSet};
use keel::data::image::{Image, ImageLimits};
use keel::data::sample::Sample;
use keel::emoji::embedded::Vendor;
use keel::emoji::emoji_set::{EmojiSet, Split};
use keel::emoji::eval_sets::EmojiEvalSet;
use keel::emoji::question_kind::QuestionKind;
use keel::emoji::scenes::Scene;
use keel::emoji::tasks;
use keel::report::contact_sheet;

use crate::tasks_mixture::{SHAPE, TEXT_ONLY_SHAPE, mixture};

/// Questions about a vendor's trained concepts that fit [`SHAPE`].
fn questions(vendor: Vendor, per_kind: usize) -> Vec<Sample> {
    let set = EmojiEvalSet::new(&EmojiSet::embedded(), vendor, Split::Train);
    let fits = |sample: &Sample| fits(sample, &SHAPE, ChatTokenizer::embedded());
    set.questions(per_kind, &fits).expect("there are questions")
}

#[test]
fn evaluation_sets_are_fixed_fit_and_belong_together() {
    let emoji = EmojiSet::embedded();
    for vendor in Vendor::ALL {
        for split in [Split::Train, Split::HeldOut] {
            let sets = EmojiEvalSet::new(&emoji, vendor, split);
            let set = sets.captioned(100);
            assert_eq!(set.len(), 100);
            let keys: HashSet<&str> = set.iter().map(|sample| sample.key.as_str()).collect();
            assert_eq!(keys.len(), 100);
            for sample in &set {
                let scene = Scene::of(&sample.view).expect("a scene");
                let concept = emoji.concept(scene.objects[0].concept);
                assert_eq!((scene.vendor, concept.split), (vendor, split));
                assert_eq!(sample.caption, concept.phrase);
                assert!(
                    fits(sample, &SHAPE, ChatTokenizer::embedded()),
                    "{}",
                    sample.caption
                );
            }
            let zero_shot = ClassifiedSet::of(&sets, 50).expect("there are classes");
            let classes = &zero_shot.classes;
            assert_eq!(
                classes.prompts.len(),
                classes.names.len() * classes.templates
            );
            for (sample, &label) in zero_shot.samples.iter().zip(&zero_shot.labels) {
                let concept = emoji
                    .concepts()
                    .iter()
                    .find(|c| c.key == sample.key)
                    .unwrap();
                assert_eq!(
                    emoji.subcategories()[concept.subcategory],
                    classes.names[label]
                );
            }
        }
    }
    assert!(
        EmojiEvalSet::new(&emoji, Vendor::Noto, Split::HeldOut)
            .captioned(usize::MAX)
            .len()
            < 300
    );
}

#[test]
fn question_sets_hold_every_kind_for_both_vendors_and_batch_up() {
    for vendor in Vendor::ALL {
        let set = questions(vendor, 5);
        let mut counts: HashMap<QuestionKind, usize> = HashMap::new();
        for sample in &set {
            *counts.entry(QuestionKind::of(sample).unwrap()).or_default() += 1;
            assert!(fits(sample, &SHAPE, ChatTokenizer::embedded()));
        }
        for kind in QuestionKind::SCENES.into_iter().chain(QuestionKind::OCR) {
            assert_eq!(counts[&kind], 5, "{}", kind.name());
        }
        let shape = BatchShape {
            image_size: 8,
            ..SHAPE
        };
        let total: usize = (0..batches(set.len(), &shape))
            .map(|index| {
                batch_of(&set, index, &shape, ChatTokenizer::embedded())
                    .unwrap()
                    .1
            })
            .sum();
        assert_eq!(total, set.len());
    }
}

#[test]
fn evaluation_scenes_are_not_training_scenes() {
    let mixture = mixture(&[(tasks::VQA, 1.0)], TEXT_ONLY_SHAPE);
    let mut trained = HashSet::new();
    for step in 0..300 {
        for sample in mixture.samples(step).unwrap().0 {
            trained.insert(format!("{:?}", sample.view));
        }
    }
    for sample in questions(Vendor::Noto, 20) {
        assert!(!trained.contains(&format!("{:?}", sample.view)));
    }
}

#[test]
fn a_contact_sheet_shows_each_image_in_its_cell() {
    let images: Vec<f32> = (0..3 * 12)
        .map(|i| if i / 12 == 1 { 1.0 } else { -1.0 })
        .collect();
    let png = contact_sheet(&images, 2, 2, 3).unwrap();
    let sheet = Image::decode("the sheet", &png, &ImageLimits::default()).unwrap();
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
