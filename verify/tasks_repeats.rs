//! Images and captions that repeat inside a batch: every sample is trained on, and a contrastive loss leaves out what is
//! neither a positive nor a negative.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use keel::data::batch::{Batch, BatchShape};
use keel::data::identities::{MaskedShare, identities};
use keel::data::image::Image;
use keel::data::image_view::ImageCache;
use keel::data::mixture::{Mixture, MixtureSettings};
use keel::data::pairs::{Pair, PairSource};
use keel::data::task::Task;
use keel::emoji::tasks;
use keel::error::Result;
use serde_json::json;

use crate::bad_input::{DRAWS_PAIRS, place, train};
use crate::data_image::png_file;
use crate::data_pairs::open;
use crate::tasks_mixture::{SAMPLES, SHAPE, TEXT_ONLY_SHAPE, made, settings};

const YES: usize = 180;
const NO: usize = 180;
const OTHERS: usize = 40;
const ALL: usize = YES + NO + OTHERS;

/// A plain image of its own colour for each `index` below 65,536.
fn plain(index: usize) -> Vec<u8> {
    let colour = [(index % 256) as u8, (index / 256) as u8, 128];
    png_file(32, 32, png::ColorType::Rgb, &colour.repeat(32 * 32))
}

/// The answer to question `index`, which is the same for most.
fn answer(index: usize) -> String {
    match index {
        _ if index < YES => "yes".into(),
        _ if index < YES + NO => "no".into(),
        _ => format!("a thing called number {index}"),
    }
}

/// The list `name` in `folder`: a question with [`answer`] about each of these images, no two alike.
fn write_answers(folder: &Path, name: &str, images: Range<usize>) {
    let records: Vec<_> = images
        .map(|index| {
            let image = format!("{index}.png");
            fs::write(folder.join(&image), plain(index)).unwrap();
            json!({"image": image, "conversations": [
                {"from": "human", "value": "<image>\nIs it?"},
                {"from": "gpt", "value": answer(index)},
            ]})
        })
        .collect();
    fs::write(folder.join(name), json!(records).to_string()).unwrap();
}

fn drawn_from(pairs: Arc<dyn PairSource>, batch: usize, contrastive: bool) -> Mixture {
    let shape = BatchShape {
        batch,
        image_size: 32,
        ..SHAPE
    };
    let settings = MixtureSettings {
        contrastive,
        ..settings(&[(Task::SAMPLES, 1.0)], shape)
    };
    made(Some(pairs), &SAMPLES, settings).unwrap()
}

/// Rows of a batch that a number says are equal, as pairs of rows.
fn equal_rows(numbers: &[i32]) -> HashSet<(usize, usize)> {
    let rows = 0..numbers.len();
    let all = rows.flat_map(|row| (0..row).map(move |other| (other, row)));
    all.filter(|(a, b)| numbers[*a] != 0 && numbers[*a] == numbers[*b])
        .collect()
}

/// The same as some property of the rows says.
fn alike<T: PartialEq>(rows: &[T]) -> HashSet<(usize, usize)> {
    let all = (0..rows.len()).flat_map(|row| (0..row).map(move |other| (other, row)));
    all.filter(|(a, b)| rows[*a] == rows[*b]).collect()
}

#[test]
fn an_epoch_of_repeated_answers_trains_on_every_sample() {
    let folder = tempfile::tempdir().unwrap();
    write_answers(folder.path(), "list.json", 0..ALL);
    let pairs: Arc<dyn PairSource> = Arc::new(open(folder.path().join("list.json")).unwrap());
    let mixture = drawn_from(pairs.clone(), 8, true);
    let without = drawn_from(pairs, 8, false);
    let mut answers: HashMap<String, usize> = HashMap::new();
    let mut images = HashSet::new();
    let mut masked = MaskedShare::default();
    for step in 0..(ALL / 8) as u64 {
        let batch = mixture.batch(step).unwrap();
        assert_eq!(batch, without.batch(step).unwrap(), "step {step}");
        for (row, sample) in batch.samples.iter().enumerate() {
            let weights = &batch.weights[row * SHAPE.tokens..][..SHAPE.tokens];
            assert!(weights.iter().sum::<f32>() > 0.0, "{}", sample.key);
            *answers.entry(sample.answer.clone()).or_default() += 1;
            images.insert(sample.key.clone());
        }
        let said: Vec<&str> = batch.samples.iter().map(|s| s.answer.as_str()).collect();
        assert_eq!(equal_rows(&batch.caption_identities), alike(&said));
        assert!(equal_rows(&batch.image_identities).is_empty());
        masked.add(&batch);
    }
    assert_eq!((answers["yes"], answers["no"]), (YES, NO));
    assert_eq!(answers.len(), 2 + OTHERS);
    assert_eq!(images.len(), ALL, "each image once");
    // Of two different samples of the epoch, so many have the same answer.
    let chance = |count: usize| (count * (count - 1)) as f64 / (ALL * (ALL - 1)) as f64;
    let expected = chance(YES) + chance(NO);
    assert!((masked.share() - expected).abs() < 0.05, "{masked}");
    assert!(
        masked
            .to_string()
            .contains("left out of the contrastive loss")
    );
}

#[test]
fn a_long_answer_is_trained_on_with_a_contrastive_loss_or_without() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<_> = (0..40)
        .map(|index| {
            let image = format!("{index}.png");
            fs::write(folder.path().join(&image), plain(index)).unwrap();
            // Twice as long as a caption may be, and within the sequence, for every other one.
            let long = "zq ".repeat(if index % 2 == 0 {
                SHAPE.caption_tokens
            } else {
                1
            });
            json!({"image": image, "question": "?", "answer": format!("{index} {long}")})
        })
        .collect();
    fs::write(folder.path().join("list.json"), json!(records).to_string()).unwrap();
    let shape = |caption_tokens| BatchShape {
        batch: 8,
        image_size: 32,
        tokens: 256,
        caption_tokens,
        ..SHAPE
    };
    let drawn = |caption_tokens, contrastive| {
        let pairs = Arc::new(open(folder.path().join("list.json")).unwrap());
        let settings = MixtureSettings {
            contrastive,
            ..settings(&[(Task::SAMPLES, 1.0)], shape(caption_tokens))
        };
        let mixture = made(Some(pairs.clone()), &SAMPLES, settings).unwrap();
        let batches: Vec<Batch> = (0..5).map(|step| mixture.batch(step).unwrap()).collect();
        (batches, pairs)
    };
    let (whole, _) = drawn(256, true);
    let (without, quiet) = drawn(SHAPE.caption_tokens, false);
    let (with, noted) = drawn(SHAPE.caption_tokens, true);
    let learnt = |batch: &Batch| {
        let keys: Vec<String> = batch
            .samples
            .iter()
            .map(|sample| sample.key.clone())
            .collect();
        (
            keys,
            batch.tokens.clone(),
            batch.targets.clone(),
            batch.weights.clone(),
        )
    };
    for ((whole, without), with) in whole.iter().zip(&without).zip(&with) {
        assert_eq!(learnt(whole), learnt(without));
        assert_eq!(without, with);
        assert_eq!((with.skipped.too_long, with.pairs), (0, 8));
    }
    assert_eq!(quiet.notes(), Vec::<String>::new(), "nothing is contrasted");
    let notes = noted.notes().join("; ");
    let said = "20 contrasted by the first max_caption_tokens of its caption alone (";
    assert!(notes.contains(said), "{notes}");
}

/// Four pairs under one key: two images, and two texts, in all combinations.
struct SameKey;

impl PairSource for SameKey {
    fn len(&self) -> usize {
        4
    }

    fn get(&self, index: usize) -> Result<Pair> {
        Ok(Pair {
            rules: Default::default(),
            key: "0001".into(),
            image: Some(Image::filled(40, 30, [80 * (index % 2) as u8, 7, 7, 255])),
            before: Vec::new(),
            is_marked: false,
            further: Vec::new(),
            system: None,
            caption: ["a stone", "a stick"][index / 2].into(),
            prompt: Some(format!("question {index}")),
        })
    }
}

#[test]
fn rows_are_equal_by_what_they_hold_and_not_by_their_keys() {
    let mixture = drawn_from(Arc::new(SameKey), 4, true);
    let mixture = mixture.keeping(Arc::new(ImageCache::new(1 << 20)));
    // From the second epoch on, images are found in the cache and their files are left alone.
    for epoch in 0..3 {
        let batch = mixture.batch(epoch).unwrap();
        let index = |question: &str| question.split_once(' ').unwrap().1.parse::<usize>();
        let rows = batch.samples.iter().map(|s| index(&s.question).unwrap());
        let (images, texts): (Vec<_>, Vec<_>) = rows.map(|index| (index % 2, index / 2)).unzip();
        assert_eq!(equal_rows(&batch.image_identities), alike(&images));
        assert_eq!(equal_rows(&batch.caption_identities), alike(&texts));
        let mut masked = MaskedShare::default();
        masked.add(&batch);
        // Each is like two of the other three.
        assert!((masked.share() - 2.0 / 3.0).abs() < f64::EPSILON);
    }
}

#[test]
fn embedded_images_are_equal_where_they_show_the_same() {
    let shape = BatchShape {
        batch: 128,
        ..TEXT_ONLY_SHAPE
    };
    let weights = [
        (tasks::SHORT_CAPTIONS, 0.5),
        (tasks::DENSE_CAPTIONS, 0.2),
        (tasks::OCR, 0.2),
        (tasks::FACTS, 0.1),
    ];
    let mut settings = settings(&weights, shape);
    settings.contrastive = true;
    let mixture = made(None, &SAMPLES, settings).unwrap();
    let mut found = 0;
    for step in 0..20 {
        let Batch {
            samples,
            pairs,
            image_identities,
            caption_identities,
            caption_tokens,
            ..
        } = mixture.batch(step).unwrap();
        let keys: Vec<&str> = samples[..pairs].iter().map(|s| s.key.as_str()).collect();
        assert_eq!(equal_rows(&image_identities), alike(&keys), "step {step}");
        let captions: Vec<&[i32]> = caption_tokens.chunks(shape.caption_tokens).collect();
        let captions = alike(&captions[..pairs]);
        assert_eq!(equal_rows(&caption_identities), captions, "step {step}");
        // Text alone has no part in it, whatever it says.
        assert!(image_identities[pairs..].iter().all(|number| *number == 0));
        assert!(
            caption_identities[pairs..]
                .iter()
                .all(|number| *number == 0)
        );
        found += equal_rows(&image_identities).len();
    }
    assert!(found > 0, "tasks overlap now and then");
}

#[test]
fn numbers_count_the_groups_of_equal_contents() {
    let contents = ["b", "a", "c", "a", "", "b", "a"];
    let contents = contents.map(|content| Some(content).filter(|content| !content.is_empty()));
    assert_eq!(identities(&contents), [1, 2, 0, 2, 0, 1, 2]);
    assert_eq!(identities::<&str>(&[]), [0; 0]);
    assert_eq!(identities::<&str>(&[None, None]), [0, 0]);
}

#[test]
fn images_of_equal_pixels_and_no_others_have_the_same_content() {
    let image = Image::filled(9, 5, [1, 2, 3, 255]);
    let mut seen = HashSet::from([image.content()]);
    assert_eq!(image.clone().content(), image.content());
    // Every single byte matters, those that fill no block of the sum among them.
    for byte in 0..image.rgba.len() {
        let mut other = image.clone();
        other.rgba[byte] ^= 0x10;
        assert!(seen.insert(other.content()), "byte {byte}");
    }
    // So do the proportions of the same bytes.
    assert!(seen.insert(Image::filled(5, 9, [1, 2, 3, 255]).content()));
    assert!(seen.insert(Image::filled(45, 1, [1, 2, 3, 255]).content()));
}

#[test]
fn folders_of_two_classes_and_lists_of_yes_and_no_train_with_a_contrastive_loss() {
    let folder = place();
    let path = folder.path();
    write_answers(path, "list.json", 0..ALL);
    write_answers(path, "others.json", YES + NO..ALL);
    for (class, first) in [("cat", 0), ("dog", 20)] {
        fs::create_dir_all(path.join("classes").join(class)).unwrap();
        for index in 0..20 {
            let image = path.join(format!("classes/{class}/{index}.png"));
            fs::write(image, plain(first + index)).unwrap();
        }
    }
    let said = " % of the scores between images and captions are left out";
    let masked_in = |data: &str, run: &str, batch: usize| {
        let batch = format!("stage.warm-up.batch_size={batch}");
        let mut further = vec!["--data", data, "--out", run, "--max-steps", "3"];
        further.extend(["--set", &batch]);
        further.extend(DRAWS_PAIRS);
        train(path, &further).fine();
        let log = fs::read_to_string(path.join(run).join("log.txt")).unwrap();
        assert!(!log.contains("could not be used"), "{log}");
        let lines = log.lines().filter_map(|line| line.split_once(said));
        let number = |(before, _): (&str, &str)| before.rsplit(' ').next().unwrap().to_owned();
        lines.map(number).collect::<Vec<String>>()
    };
    for (data, run, share) in [
        ("classes", "one", 40.0..60.0),
        ("list.json", "two", 30.0..60.0),
    ] {
        let [masked] = &masked_in(data, run, 32)[..] else {
            panic!("the log of {data} says it once");
        };
        assert!(share.contains(&masked.parse().unwrap()), "{data}: {masked}");
    }
    // Within an epoch of samples that are all different there is nothing to say.
    assert!(masked_in("others.json", "three", 8).is_empty());
}
