//! The mixture: a pure function of the step, the split kept, weights obeyed, skips counted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use keel::data::assemble::fits;
use keel::data::augment::Augmentation;
use keel::data::batch::{Batch, BatchShape, SampleInfo, TokenWeighting};
use keel::data::chat::ChatTokenizer;
use keel::data::image::Image;
use keel::data::mixture::{MOST_ATTEMPTS, Mixture, MixtureSettings};
use keel::data::pairs::{Pair, PairRules, PairSource};
use keel::data::pixels::{Fit, Pixels};
use keel::data::resample::Filter;
use keel::data::source::SampleSettings;
use keel::data::task::Task;
use keel::data::tokenizer::{END, IMAGE, PAD};
use keel::emoji::embedded::Vendor;
use keel::emoji::emoji_set::{EmojiSet, Split};
use keel::emoji::scenes::Scene;
use keel::emoji::sources::task_sources;
use keel::emoji::tasks;
use keel::error::{Error, Result};

/// As [`Pixels::default`], which is no constant.
const HALF: Pixels = Pixels {
    mean: [0.5; 3],
    std: [0.5; 3],
    fit: Fit::Crop,
    filter: Filter::Bicubic,
};

pub(crate) const SHAPE: BatchShape = BatchShape {
    tiling: keel::data::tiles::Tiling::NONE,
    pack: 1,
    batch: 16,
    image_size: 64,
    image_tokens: 16,
    tokens: 64,
    caption_tokens: 32,
    image_id: IMAGE as i32,
    pixels: HALF,
};

/// No images drawn, for tests of words alone.
pub(crate) const TEXT_ONLY_SHAPE: BatchShape = BatchShape {
    image_size: 0,
    ..SHAPE
};

/// How training makes samples, but for a limit on images.
pub(crate) const SAMPLES: SampleSettings = SampleSettings {
    augmentation: Augmentation::TRAINING,
    turns: 1,
    images: 1,
    share: 1.0,
};

/// A mixture over the embedded concepts and `pairs`.
pub(crate) fn made(
    pairs: Option<Arc<dyn PairSource>>,
    samples: &SampleSettings,
    settings: MixtureSettings,
) -> Result<Mixture> {
    let sources = task_sources(&EmojiSet::embedded(), pairs, settings.seed, samples);
    Mixture::new(sources, settings)
}

pub(crate) fn settings(weights: &[(Task, f64)], shape: BatchShape) -> MixtureSettings {
    MixtureSettings {
        seed: 9,
        stage: 2,
        weights: weights.to_vec(),
        shape,
        weighting: TokenWeighting::Square,
        contrastive: false,
    }
}

pub(crate) fn all_tasks() -> Vec<(Task, f64)> {
    vec![
        (tasks::SHORT_CAPTIONS, 2.0),
        (tasks::DENSE_CAPTIONS, 2.0),
        (tasks::OCR, 1.0),
        (tasks::VQA, 3.0),
        (tasks::FACTS, 1.5),
    ]
}

pub(crate) fn mixture(weights: &[(Task, f64)], shape: BatchShape) -> Mixture {
    made(None, &SAMPLES, settings(weights, shape)).unwrap()
}

pub(crate) fn fingerprint(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for floats in [&batch.images, &batch.weights, &batch.caption_weights] {
        bytes.extend_from_slice(bytemuck::cast_slice(floats));
    }
    for ids in [
        &batch.tokens,
        &batch.targets,
        &batch.caption_tokens,
        &batch.caption_end,
        &batch.image_identities,
        &batch.caption_identities,
    ] {
        bytes.extend_from_slice(bytemuck::cast_slice(ids));
    }
    bytes.extend(format!("{:?}", batch.samples).into_bytes());
    bytes
}

#[test]
fn a_batch_depends_on_its_step_alone() {
    let first = mixture(&all_tasks(), SHAPE);
    let forwards: Vec<Vec<u8>> = (0..6)
        .map(|step| fingerprint(&first.batch(step).unwrap()))
        .collect();
    let second = mixture(&all_tasks(), SHAPE);
    for step in (0..6).rev() {
        assert_eq!(
            fingerprint(&second.batch(step).unwrap()),
            forwards[step as usize],
            "step {step}"
        );
    }
    assert_ne!(forwards[0], forwards[1]);
    let mut other_seed = settings(&all_tasks(), SHAPE);
    other_seed.seed += 1;
    let mut other_stage = settings(&all_tasks(), SHAPE);
    other_stage.stage += 1;
    for changed in [other_seed, other_stage] {
        let other = made(None, &SAMPLES, changed).unwrap();
        assert_ne!(fingerprint(&other.batch(0).unwrap()), forwards[0]);
    }
}

#[test]
fn training_never_shows_or_names_a_held_out_concept_or_twemoji() {
    let emoji = EmojiSet::embedded();
    let mixture = mixture(&all_tasks(), TEXT_ONLY_SHAPE);
    let held_out: HashSet<&str> = emoji
        .of_split(Split::HeldOut)
        .iter()
        .map(|&index| emoji.concept(index).name.as_str())
        .collect();
    assert!(held_out.len() > 100);
    let mut shown = 0;
    for step in 0..500 {
        for sample in mixture.samples(step).unwrap().0 {
            assert!(!held_out.contains(sample.answer.as_str()), "{sample:?}");
            if let Some(scene) = Scene::of(&sample.view) {
                assert_eq!(scene.vendor, Vendor::Noto);
                for object in &scene.objects {
                    assert_eq!(
                        emoji.concept(object.concept).split,
                        Split::Train,
                        "{sample:?}"
                    );
                    shown += 1;
                }
            }
        }
    }
    assert!(shown > 5000);
}

#[test]
fn an_epoch_shows_every_training_concept_once() {
    let emoji = EmojiSet::embedded();
    let shape = BatchShape {
        batch: 1,
        ..TEXT_ONLY_SHAPE
    };
    let mixture = mixture(&[(tasks::SHORT_CAPTIONS, 1.0)], shape);
    let items = mixture.items(tasks::SHORT_CAPTIONS);
    assert_eq!(items as usize, emoji.training().len());
    assert_eq!(mixture.steps_per_epoch(), items);
    for epoch in 0..2 {
        let keys: HashSet<String> = (epoch * items..(epoch + 1) * items)
            .map(|step| mixture.samples(step).unwrap().0.remove(0).key)
            .collect();
        assert_eq!(keys.len() as u64, items);
    }
}

#[test]
fn weights_are_obeyed_to_within_one_slot_in_every_stretch() {
    let weights = [
        (tasks::SHORT_CAPTIONS, 0.5),
        (tasks::FACTS, 0.3),
        (tasks::OCR, 0.2),
    ];
    let mixture = mixture(&weights, TEXT_ONLY_SHAPE);
    let mut counts: HashMap<Task, f64> = HashMap::new();
    let mut slots = 0.0;
    for step in 0..200 {
        for sample in mixture.samples(step).unwrap().0 {
            *counts.entry(sample.task).or_default() += 1.0;
            slots += 1.0;
        }
        for (task, weight) in weights {
            let due = slots * weight;
            // One slot of rounding, and the round's 1024ths.
            let slack = 1.5 + slots / 1024.0;
            assert!(
                (counts[&task] - due).abs() <= slack,
                "{task} at {slots}: {}",
                counts[&task]
            );
        }
    }
}

#[test]
fn every_sample_of_every_task_keeps_the_token_budget_and_skips_are_few() {
    let mixture = mixture(&all_tasks(), TEXT_ONLY_SHAPE);
    let mut too_long = 0;
    for step in 0..200 {
        let batch = mixture.batch(step).unwrap();
        too_long += batch.skipped.too_long;
        assert_eq!(batch.skipped.unreadable, 0);
        for row in 0..16 {
            let tokens = &batch.tokens[row * 64..(row + 1) * 64];
            let used = tokens.iter().rposition(|&id| id != i32::from(PAD)).unwrap() + 1;
            assert_eq!(tokens[used - 1], i32::from(END));
            let images = tokens.iter().filter(|&&id| id == i32::from(IMAGE)).count();
            assert_eq!(
                images,
                if batch.samples[row].task.has_images {
                    16
                } else {
                    0
                }
            );
            assert!(batch.weights[row * 64..(row + 1) * 64].iter().sum::<f32>() > 0.0);
        }
    }
    assert!(too_long < 400, "{too_long} of 3200");
}

#[test]
fn text_alone_stands_behind_the_images_of_a_contrastive_batch() {
    let shape = BatchShape {
        batch: 16,
        ..TEXT_ONLY_SHAPE
    };
    let weights = [(tasks::SHORT_CAPTIONS, 0.6), (tasks::FACTS, 0.4)];
    let mut mixed = settings(&weights, shape);
    mixed.contrastive = true;
    let mixture = made(None, &SAMPLES, mixed.clone()).unwrap();
    let mut alone = 0;
    for step in 0..20 {
        let batch = mixture.batch(step).unwrap();
        let is_pair = |sample: &SampleInfo| sample.task != tasks::FACTS;
        let (pairs, others) = batch.samples.split_at(batch.pairs);
        assert!(pairs.iter().all(is_pair) && !others.iter().any(is_pair));
        alone += others.len();
    }
    assert!((100..160).contains(&alone), "{alone} of 320 are text");
    mixed.weights = vec![(tasks::FACTS, 1.0)];
    let refused = made(None, &SAMPLES, mixed);
    let problem = refused.err().unwrap().to_string();
    assert!(problem.contains("a task with images"), "{problem}");
}

#[test]
fn impossible_weights_are_refused_by_name() {
    for (weights, needle) in [
        (vec![], "data weights"),
        (vec![(tasks::VQA, 0.0)], "data weights"),
        (vec![(tasks::VQA, -1.0)], "vqa"),
        (vec![(tasks::FACTS, f64::NAN)], "facts"),
        (vec![(Task::SAMPLES, 1.0)], "--data"),
        (vec![(tasks::FACTS, 1.0), (tasks::FACTS, 1.0)], "one weight"),
    ] {
        let refused = made(None, &SAMPLES, settings(&weights, SHAPE));
        let error = refused.err().expect("refused").to_string();
        assert!(error.contains(needle), "{error}");
    }
}

/// Pairs of which some cannot be used.
struct Odd;

impl PairSource for Odd {
    fn len(&self) -> usize {
        40
    }

    fn get(&self, index: usize) -> Result<Pair> {
        if index.is_multiple_of(5) {
            return Err(Error::content(
                format!("pair {index}"),
                "damaged",
                "replace it",
            ));
        }
        let caption = match index % 5 {
            1 => "far too many words ".repeat(20),
            2 => "  ".to_owned(),
            _ => format!("Größe {index}: 絵"),
        };
        let level = index as u8 * 6;
        Ok(Pair {
            key: format!("pair {index}"),
            image: Some(Image::filled(
                300 + index as u32,
                200,
                [level, level, level, 255],
            )),
            before: Vec::new(),
            is_marked: false,
            further: Vec::new(),
            rules: PairRules::default(),
            system: None,
            caption,
            prompt: Some("was ist das?".to_owned()),
        })
    }
}

#[test]
fn unusable_pairs_are_counted_and_replaced_and_the_rest_is_drawn_whole() {
    let weights = [(Task::SAMPLES, 1.0)];
    let shape = BatchShape {
        image_size: 16,
        ..SHAPE
    };
    let odd = made(Some(Arc::new(Odd)), &SAMPLES, settings(&weights, shape));
    let mixture = odd.unwrap();
    let batch = mixture.batch(0).unwrap();
    assert!(
        batch.skipped.too_long > 0 && batch.skipped.unreadable > 0,
        "{:?}",
        batch.skipped
    );
    for (row, info) in batch.samples.iter().enumerate() {
        let index: usize = info.key.strip_prefix("pair ").unwrap().parse().unwrap();
        assert!(index % 5 >= 3);
        assert_eq!(info.answer, format!("Größe {index}: 絵"));
        assert_eq!(info.question, "was ist das?");
        let image = &batch.images[row * 768..(row + 1) * 768];
        let spread = image
            .iter()
            .fold(0.0f32, |most, value| most.max((value - image[0]).abs()));
        assert!(spread < 1e-3, "a plain image fills its whole frame");
    }
    struct Bad;
    impl PairSource for Bad {
        fn len(&self) -> usize {
            3
        }
        fn get(&self, index: usize) -> Result<Pair> {
            Err(Error::content(
                format!("pair {index}"),
                "damaged",
                "replace it",
            ))
        }
    }
    let hopeless = made(Some(Arc::new(Bad)), &SAMPLES, settings(&weights, shape));
    let error = hopeless.unwrap().batch(0).unwrap_err().to_string();
    assert!(
        error.contains(&MOST_ATTEMPTS.to_string()) && error.contains("damaged"),
        "{error}"
    );
}

#[test]
fn several_turns_fill_the_sequence_and_change_nothing_else() {
    let shape = BatchShape {
        tokens: 96,
        ..TEXT_ONLY_SHAPE
    };
    let mixture = |turns| {
        let samples = SampleSettings { turns, ..SAMPLES };
        let settings = settings(&[(tasks::VQA, 1.0)], shape);
        made(None, &samples, settings).expect("scenes are there")
    };
    let (one, several) = (mixture(1), mixture(6));
    let tokenizer = ChatTokenizer::embedded();
    let (mut first, mut all) = (0, 0);
    for step in 0..4 {
        let (single, _) = one.samples(step).expect("a batch");
        let (samples, _) = several.samples(step).expect("a batch");
        let (again, _) = several.samples(step).expect("a batch");
        for ((single, sample), again) in single.iter().zip(&samples).zip(&again) {
            assert!(single.further.is_empty());
            assert_eq!(
                sample.further, again.further,
                "a function of the step alone"
            );
            assert_eq!(
                (&single.question, &single.answer),
                (&sample.question, &sample.answer)
            );
            assert_eq!(single.key, sample.key);
            assert!(sample.further.len() <= 5);
            assert!(fits(sample, &shape, tokenizer), "{sample:?}");
            first += 1;
            all += 1 + sample.further.len();
        }
    }
    assert!(all > 2 * first, "{all} questions about {first} scenes");
}
