//! Batches: layout and masks, purity, the split kept, skips counted, prefetching.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keel::data::augment::Augmentation;
use keel::data::batch::{Batch, BatchShape, IGNORED, Weighting, assemble, fits};
use keel::data::embedded::Artist;
use keel::data::eval_sets::{batch_of, batches, captioned, questions, subcategories};
use keel::data::library::{Library, Split};
use keel::data::mixture::{MOST_ATTEMPTS, Mixture, MixtureSettings};
use keel::data::pairs::{Pair, PairSource};
use keel::data::picture::Picture;
use keel::data::prefetch::Prefetcher;
use keel::data::task::{QuestionKind, Sample, TaskKind, View};
use keel::data::tokenizer::{ASSISTANT, BEGIN, END, IMAGE, PAD, Tokenizer, USER};
use keel::error::{Error, Result};

const SHAPE: BatchShape = BatchShape {
    batch: 16,
    image_size: 64,
    image_tokens: 16,
    tokens: 64,
    caption_tokens: 32,
};

/// No pictures drawn, for tests of words alone.
const TEXT_ONLY_SHAPE: BatchShape = BatchShape {
    image_size: 0,
    ..SHAPE
};

fn settings(weights: &[(TaskKind, f64)], shape: BatchShape) -> MixtureSettings {
    MixtureSettings {
        seed: 9,
        stage: 2,
        weights: weights.to_vec(),
        shape,
        weighting: Weighting::Square,
        augmentation: Augmentation::TRAINING,
        contrastive: false,
    }
}

fn all_tasks() -> Vec<(TaskKind, f64)> {
    vec![
        (TaskKind::ShortCaptions, 2.0),
        (TaskKind::DenseCaptions, 2.0),
        (TaskKind::Reading, 1.0),
        (TaskKind::Scenes, 3.0),
        (TaskKind::Facts, 1.5),
    ]
}

fn mixture(weights: &[(TaskKind, f64)], shape: BatchShape) -> Mixture {
    Mixture::new(Library::embedded(), None, settings(weights, shape)).unwrap()
}

fn fingerprint(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for floats in [&batch.images, &batch.weights, &batch.caption_weights] {
        bytes.extend(
            floats
                .iter()
                .flat_map(|value| value.to_bits().to_le_bytes()),
        );
    }
    for ids in [
        &batch.tokens,
        &batch.targets,
        &batch.caption_tokens,
        &batch.caption_end,
    ] {
        bytes.extend(ids.iter().flat_map(|value| value.to_le_bytes()));
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
        let other = Mixture::new(Library::embedded(), None, changed).unwrap();
        assert_ne!(fingerprint(&other.batch(0).unwrap()), forwards[0]);
    }
}

#[test]
fn prefetched_batches_are_the_same_for_any_number_of_threads() {
    let mixture = Arc::new(mixture(&all_tasks(), SHAPE));
    let want: Vec<Vec<u8>> = (3..9)
        .map(|step| fingerprint(&mixture.batch(step).unwrap()))
        .collect();
    for (threads, depth) in [(1, 1), (1, 4), (3, 2), (4, 8)] {
        let made = mixture.clone();
        let mut queue = Prefetcher::new(Arc::new(move |step| made.batch(step)), 3, threads, depth);
        for (offset, want) in want.iter().enumerate() {
            let (step, batch) = queue.next_batch().unwrap();
            assert_eq!(step, 3 + offset as u64);
            assert_eq!(&fingerprint(&batch), want, "{threads} threads, step {step}");
        }
    }
}

#[test]
fn prefetching_is_bounded_carries_errors_and_panics_and_ends() {
    let small = mixture(
        &[(TaskKind::Facts, 1.0)],
        BatchShape {
            batch: 1,
            ..TEXT_ONLY_SHAPE
        },
    );
    let template = small.batch(0).unwrap();
    let started = Arc::new(AtomicUsize::new(0));
    let counter = started.clone();
    let source = move |step: u64| -> Result<Batch> {
        counter.fetch_add(1, Ordering::SeqCst);
        match step {
            2 => Err(Error::stopped("data of step 2", "made to fail", "nothing")),
            4 => panic!("a worker in trouble"),
            _ => Ok(template.clone()),
        }
    };
    let mut queue = Prefetcher::new(Arc::new(source), 0, 2, 3);
    let mut outcomes = Vec::new();
    for taken in 0..6 {
        assert!(
            started.load(Ordering::SeqCst) <= taken + 3,
            "never more than 3 ahead"
        );
        outcomes.push(queue.next_batch().map(|(step, _)| step));
    }
    let texts: Vec<String> = outcomes
        .into_iter()
        .map(|outcome| outcome.map_or_else(|error| error.to_string(), |step| step.to_string()))
        .collect();
    assert_eq!(
        (texts[1].as_str(), texts[3].as_str(), texts[5].as_str()),
        ("1", "3", "5")
    );
    assert!(texts[2].contains("made to fail"), "{}", texts[2]);
    assert!(texts[4].contains("a worker in trouble"), "{}", texts[4]);
    drop(queue);
    let after = started.load(Ordering::SeqCst);
    assert!(after <= 9, "{after}: the workers have ended");
}

fn sample(view: View, context: &str, question: &str, answer: &str, caption: &str) -> Sample {
    Sample {
        key: "golden".into(),
        kind: TaskKind::Scenes,
        question_kind: Some(QuestionKind::What),
        view,
        context: context.into(),
        question: question.into(),
        answer: answer.into(),
        caption: caption.into(),
    }
}

fn some_view(library: &Library) -> View {
    captioned(library, Artist::Noto, Split::Train, 1)
        .remove(0)
        .view
}

#[test]
fn labels_cover_exactly_the_answer_and_its_end() {
    let library = Library::embedded();
    let tokenizer = Tokenizer::embedded();
    let shape = BatchShape {
        batch: 3,
        image_size: 8,
        image_tokens: 2,
        tokens: 24,
        caption_tokens: 10,
    };
    let rows = [
        sample(some_view(&library), "unused", "what?", "yes no", "red"),
        sample(View::None, "red", "what?", "yes", ""),
        sample(View::None, "red yes", "", "", ""),
    ];
    let ids =
        |text: &str| -> Vec<i32> { tokenizer.encode(text).into_iter().map(i32::from).collect() };
    let [begin, end, image, user, assistant, pad] =
        [BEGIN, END, IMAGE, USER, ASSISTANT, PAD].map(i32::from);
    let join = |parts: &[&[i32]]| parts.concat();
    let wanted: [(Vec<i32>, usize); 3] = [
        (
            join(&[
                &[begin, image, image, user],
                &ids("what?"),
                &[assistant],
                &ids("yes no"),
                &[end],
            ]),
            3 + 1 + ids("what?").len() + 1,
        ),
        (
            join(&[
                &[begin],
                &ids("red"),
                &[user],
                &ids("what?"),
                &[assistant],
                &ids("yes"),
                &[end],
            ]),
            1,
        ),
        (join(&[&[begin], &ids("red yes"), &[end]]), 1),
    ];
    for weighting in [Weighting::Token, Weighting::Sample, Weighting::Square] {
        let batch = assemble(&library, &rows, &shape, weighting, tokenizer).unwrap();
        for (row, (sequence, from)) in wanted.iter().enumerate() {
            let part = row * 24..(row + 1) * 24;
            let mut tokens = sequence.clone();
            tokens.resize(24, pad);
            assert_eq!(batch.tokens[part.clone()], tokens, "row {row}");
            let supervised = sequence.len() - from;
            let weight = match weighting {
                Weighting::Token => 1.0,
                Weighting::Sample => 1.0 / supervised as f32,
                Weighting::Square => 1.0 / (supervised as f32).sqrt(),
            };
            for position in 0..24 {
                let next = position + 1;
                let (target, share) = if next >= *from && next < sequence.len() {
                    (sequence[next], weight)
                } else {
                    (IGNORED, 0.0)
                };
                assert_eq!(
                    batch.targets[row * 24 + position],
                    target,
                    "row {row}, {position}"
                );
                assert_eq!(
                    batch.weights[row * 24 + position],
                    share,
                    "row {row}, {position}"
                );
            }
        }
        let red = join(&[&[begin], &ids("red"), &[end]]);
        assert_eq!(batch.caption_tokens[..red.len()], red);
        assert_eq!(batch.caption_end, [red.len() as i32 - 1, 1, 1]);
        let total: f32 = batch.caption_weights[..10].iter().sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert!(
            batch.caption_weights[red.len()..]
                .iter()
                .all(|&weight| weight == 0.0)
        );
        let picture = 3 * 8 * 8;
        assert!(batch.images[..picture].iter().any(|&value| value != 0.0));
        assert!(
            batch.images[picture..].iter().all(|&value| value == 0.0),
            "text-only rows are zero"
        );
        assert_eq!(
            batch.samples[2].answer, "red yes",
            "plain text is its own answer"
        );
    }
}

#[test]
fn a_sample_that_does_not_fit_is_refused_and_never_cut() {
    let library = Library::embedded();
    let shape = BatchShape {
        batch: 1,
        image_size: 8,
        image_tokens: 2,
        tokens: 12,
        caption_tokens: 4,
    };
    let tokenizer = Tokenizer::embedded();
    let long = sample(some_view(&library), "", "what?", &"zq".repeat(20), "");
    assert!(!fits(&long, &shape, tokenizer));
    let error = assemble(&library, &[long], &shape, Weighting::Token, tokenizer).unwrap_err();
    assert!(error.to_string().contains("tokens, 12 fit"), "{error}");
    let long_caption = sample(some_view(&library), "", "", "a", &"zq".repeat(20));
    let error = assemble(
        &library,
        &[long_caption],
        &shape,
        Weighting::Token,
        tokenizer,
    )
    .unwrap_err();
    assert!(error.to_string().contains("caption"), "{error}");
}

#[test]
fn training_never_shows_or_names_a_held_out_concept_or_twemoji() {
    let library = Library::embedded();
    let mixture = mixture(&all_tasks(), TEXT_ONLY_SHAPE);
    let held_out: HashSet<&str> = library
        .of_split(Split::HeldOut)
        .iter()
        .map(|&index| library.concept(index).name.as_str())
        .collect();
    assert!(held_out.len() > 100);
    let mut shown = 0;
    for step in 0..500 {
        for sample in mixture.samples(step).unwrap().0 {
            assert!(!held_out.contains(sample.answer.as_str()), "{sample:?}");
            if let View::Scene(scene) = &sample.view {
                assert_eq!(scene.artist, Artist::Noto);
                for object in &scene.objects {
                    assert_eq!(
                        library.concept(object.concept).split,
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
    let library = Library::embedded();
    let shape = BatchShape {
        batch: 1,
        ..TEXT_ONLY_SHAPE
    };
    let mixture = mixture(&[(TaskKind::ShortCaptions, 1.0)], shape);
    let items = mixture.items(TaskKind::ShortCaptions);
    assert_eq!(items as usize, library.training().len());
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
        (TaskKind::ShortCaptions, 0.5),
        (TaskKind::Facts, 0.3),
        (TaskKind::Reading, 0.2),
    ];
    let mixture = mixture(&weights, TEXT_ONLY_SHAPE);
    let mut counts: HashMap<TaskKind, f64> = HashMap::new();
    let mut slots = 0.0;
    for step in 0..200 {
        for sample in mixture.samples(step).unwrap().0 {
            *counts.entry(sample.kind).or_default() += 1.0;
            slots += 1.0;
        }
        for (kind, weight) in weights {
            let due = slots * weight;
            // One slot of rounding, and the round's 1024ths.
            let slack = 1.5 + slots / 1024.0;
            assert!(
                (counts[&kind] - due).abs() <= slack,
                "{kind} at {slots}: {}",
                counts[&kind]
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
                if batch.samples[row].kind.has_image() {
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
fn contrastive_batches_hold_distinct_concepts_and_captions() {
    let shape = BatchShape {
        batch: 128,
        ..TEXT_ONLY_SHAPE
    };
    let mut contrastive = settings(
        &[
            (TaskKind::ShortCaptions, 0.5),
            (TaskKind::DenseCaptions, 0.3),
            (TaskKind::Reading, 0.2),
        ],
        shape,
    );
    contrastive.contrastive = true;
    let mixture = Mixture::new(Library::embedded(), None, contrastive.clone()).unwrap();
    let mut repeated = 0;
    for step in 0..60 {
        let (samples, skipped) = mixture.samples(step).unwrap();
        repeated += skipped.repeated;
        let keys: HashSet<&str> = samples.iter().map(|sample| sample.key.as_str()).collect();
        let captions: HashSet<&str> = samples
            .iter()
            .map(|sample| sample.caption.as_str())
            .collect();
        assert_eq!((keys.len(), captions.len()), (128, 128), "step {step}");
    }
    assert!(
        repeated > 0,
        "overlaps between tasks do occur and are counted"
    );
    contrastive.weights.push((TaskKind::Facts, 0.1));
    let error = Mixture::new(Library::embedded(), None, contrastive)
        .err()
        .unwrap();
    assert!(error.to_string().contains("facts"), "{error}");
}

#[test]
fn impossible_weights_are_refused_by_name() {
    for (weights, needle) in [
        (vec![], "data weights"),
        (vec![(TaskKind::Scenes, 0.0)], "data weights"),
        (vec![(TaskKind::Scenes, -1.0)], "scenes"),
        (vec![(TaskKind::Facts, f64::NAN)], "facts"),
        (vec![(TaskKind::Pairs, 1.0)], "--data"),
        (
            vec![(TaskKind::Facts, 1.0), (TaskKind::Facts, 1.0)],
            "one weight",
        ),
    ] {
        let made = Mixture::new(Library::embedded(), None, settings(&weights, SHAPE));
        let error = made.err().expect("refused").to_string();
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
            picture: Picture::filled(300 + index as u32, 200, [level, level, level, 255]),
            caption,
            prompt: Some("was ist das?".to_owned()),
        })
    }
}

#[test]
fn unusable_pairs_are_counted_and_replaced_and_the_rest_is_drawn_whole() {
    let weights = [(TaskKind::Pairs, 1.0)];
    let shape = BatchShape {
        image_size: 16,
        ..SHAPE
    };
    let made = Mixture::new(
        Library::embedded(),
        Some(Arc::new(Odd)),
        settings(&weights, shape),
    );
    let mixture = made.unwrap();
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
        let picture = &batch.images[row * 768..(row + 1) * 768];
        let spread = picture
            .iter()
            .fold(0.0f32, |most, value| most.max((value - picture[0]).abs()));
        assert!(spread < 1e-3, "a plain picture fills its whole frame");
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
    let hopeless = Mixture::new(
        Library::embedded(),
        Some(Arc::new(Bad)),
        settings(&weights, shape),
    );
    let error = hopeless.unwrap().batch(0).unwrap_err().to_string();
    assert!(
        error.contains(&MOST_ATTEMPTS.to_string()) && error.contains("damaged"),
        "{error}"
    );
}

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
                    fits(sample, &SHAPE, Tokenizer::embedded()),
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
        let set = questions(&library, artist, Split::Train, 5, &SHAPE);
        let mut counts: HashMap<QuestionKind, usize> = HashMap::new();
        for sample in &set {
            *counts.entry(sample.question_kind.unwrap()).or_default() += 1;
            assert!(fits(sample, &SHAPE, Tokenizer::embedded()));
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
            .map(|index| batch_of(&library, &set, index, &shape).unwrap().1)
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
    for sample in questions(&library, Artist::Noto, Split::Train, 20, &SHAPE) {
        assert!(!trained.contains(&format!("{:?}", sample.view)));
    }
}
