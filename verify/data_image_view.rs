//! Images of a user's pairs that are kept for their next draw: the same batches, bit for bit, with less decoding.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keel::data::augment::Augmentation;
use keel::data::batch::{Batch, BatchShape};
use keel::data::image::Image;
use keel::data::image_view::ImageCache;
use keel::data::mixture::Mixture;
use keel::data::pairs::{Pair, PairLimits, PairRules, PairSource, Pairs};
use keel::data::skips::SkipLimits;
use keel::data::source::SampleSettings;
use keel::data::task::Task;
use keel::data::tiles::Tiling;
use keel::error::{Error, Result};

use crate::data_image::png_file;
use crate::harness::Random;
use crate::tasks_mixture::{SAMPLES, SHAPE, fingerprint, made, settings};

const SIDE: usize = 16;
const PAIRS: usize = 24;
const BATCH: usize = 8;

/// Pairs with images of many sizes, some of them text alone and one of them damaged; counts what is decoded.
#[derive(Default)]
struct Counted {
    decoded: AtomicUsize,
}

impl PairSource for Counted {
    fn len(&self) -> usize {
        PAIRS
    }

    fn get(&self, index: usize) -> Result<Pair> {
        if index == 5 {
            return Err(Error::content("pair 5", "damaged", "replace it"));
        }
        let mut pair = self.words(index)?;
        if index % 7 != 3 {
            self.decoded.fetch_add(1, Ordering::Relaxed);
            let mut random = Random::new(index as u64);
            let (width, height) = (20 + 5 * (index as u32 % 9), 18 + 7 * (index as u32 % 5));
            let values = (0..4 * width * height).map(|_| random.below(256) as u8);
            pair.image = Some(Image {
                width,
                height,
                rgba: values.collect(),
            });
        }
        Ok(pair)
    }

    fn words(&self, index: usize) -> Result<Pair> {
        Ok(Pair {
            key: format!("pair {index}"),
            image: None,
            before: Vec::new(),
            is_marked: false,
            caption: format!("number {index}"),
            prompt: Some("which?".to_owned()),
            further: Vec::new(),
            system: None,
            rules: PairRules::default(),
        })
    }
}

fn mixture(pairs: Arc<dyn PairSource>, varies: bool, tiling: Tiling) -> Mixture {
    let shape = BatchShape {
        batch: BATCH,
        image_size: SIDE,
        image_tokens: 4,
        tokens: 96,
        tiling,
        ..SHAPE
    };
    let samples = SampleSettings {
        augmentation: if varies {
            Augmentation::TRAINING
        } else {
            Augmentation::NONE
        },
        ..SAMPLES
    };
    let settings = settings(&[(Task::SAMPLES, 1.0)], shape);
    made(Some(pairs), &samples, settings).unwrap()
}

fn prints(batches: &[Batch]) -> Vec<Vec<u8>> {
    batches.iter().map(fingerprint).collect()
}

/// The batches of `epochs` epochs, and how many images were decoded in each.
fn epochs(mixture: &Mixture, source: &Counted, epochs: u64) -> (Vec<Batch>, Vec<usize>) {
    let steps = (PAIRS / BATCH) as u64;
    let mut batches = Vec::new();
    let decoded = (0..epochs).map(|epoch| {
        let before = source.decoded.load(Ordering::Relaxed);
        let of_epoch = epoch * steps..(epoch + 1) * steps;
        batches.extend(of_epoch.map(|step| mixture.batch(step).unwrap()));
        source.decoded.load(Ordering::Relaxed) - before
    });
    let decoded = decoded.collect();
    (batches, decoded)
}

const TILES: Tiling = Tiling { most: 6, slots: 48 };

#[test]
fn batches_are_the_same_bits_whatever_is_kept_of_their_images() {
    for (varies, tiling) in [
        (false, Tiling::NONE),
        (true, Tiling::NONE),
        (false, TILES),
        (true, TILES),
    ] {
        let source = Arc::new(Counted::default());
        let (plain, each) = epochs(&mixture(source.clone(), varies, tiling), &source, 3);
        assert!(each.iter().all(|decoded| *decoded > PAIRS / 2), "{each:?}");
        for most in [0, 10_000, 1 << 30] {
            let kept = Arc::new(ImageCache::new(most));
            let source = Arc::new(Counted::default());
            let mixture = mixture(source.clone(), varies, tiling).keeping(kept.clone());
            let (batches, decoded) = epochs(&mixture, &source, 3);
            let what = format!("varies {varies}, {tiling:?}, {most} bytes");
            assert!(prints(&batches) == prints(&plain), "{what}");
            assert!(kept.bytes() <= most, "{what}");
            match most {
                0 => assert_eq!(decoded, each, "{what}"),
                // What has room is decoded no more.
                10_000 => assert!(
                    decoded[2] < each[2] && decoded[2] > 0,
                    "{what}: {decoded:?}"
                ),
                _ => assert_eq!(decoded[2], 0, "{what}: {decoded:?}"),
            }
        }
    }
}

#[test]
fn a_image_that_needs_other_tiles_than_are_kept_is_decoded_again() {
    let kept = Arc::new(ImageCache::new(1 << 30));
    let source = Arc::new(Counted::default());
    let of = |tiling| mixture(source.clone(), false, tiling);
    let plain = of(TILES).batch(0).unwrap();
    of(Tiling::NONE).keeping(kept.clone()).batch(0).unwrap();
    let (decoded, bytes) = (source.decoded.load(Ordering::Relaxed), kept.bytes());
    let cut = of(TILES).keeping(kept.clone()).batch(0).unwrap();
    assert_eq!(fingerprint(&cut), fingerprint(&plain));
    assert!(source.decoded.load(Ordering::Relaxed) > decoded);
    assert!(kept.bytes() > bytes);
}

#[test]
fn pairs_that_come_several_times_an_epoch_are_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..4u8 {
        let image = Image::filled(20, 20, [index, 90, 200, 255]);
        let path = folder.path().join(format!("{index}.png"));
        let file = png_file(20, 20, png::ColorType::Rgba, &image.rgba);
        std::fs::write(path, file).unwrap();
        let caption = folder.path().join(format!("{index}.txt"));
        std::fs::write(caption, format!("number {index}")).unwrap();
    }
    let limits = PairLimits {
        skips: SkipLimits::default(),
        ..PairLimits::default()
    };
    let spec = folder.path().display().to_string();
    let pairs = Pairs::open_all(&[format!("{spec}=2.5"), spec], limits).unwrap();
    assert_eq!(pairs.len(), 14);
    let first: Vec<usize> = (0..14).map(|index| pairs.first_of(index)).collect();
    assert_eq!(first, [0, 1, 2, 3, 0, 1, 2, 3, 1, 3, 10, 11, 12, 13]);
    for (index, first) in first.iter().enumerate() {
        assert_eq!(pairs.get(index).unwrap(), pairs.get(*first).unwrap());
    }
    let kept = Arc::new(ImageCache::new(1 << 30));
    let mixture = mixture(Arc::new(pairs), false, Tiling::NONE).keeping(kept.clone());
    for step in 0..4 {
        mixture.batch(step).unwrap();
    }
    // The four of the first spec and the four of the second.
    assert_eq!(kept.bytes(), 8 * 4 * (SIDE * SIDE) as u64);
}
