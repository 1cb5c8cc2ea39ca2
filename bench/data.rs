//! Images a second from file to the numbers of a tower of 224 pixels: decode, scale along the shorter edge, cut, normalise.
//!
//!     cargo bench --bench data                                  Keel on PNG files that it makes
//!     cargo bench --bench data -- --against-python PYTHON       and on JPEG, beside Pillow and torchvision in the same run
//!
//! Work of one image of 640 × 480 after decoding: its middle is scaled from 480 to 224 pixels a side, 9 taps of the cubic an
//! output value, four channels: 3.9 M multiply-adds along the rows, 1.8 M along the columns.

mod peer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use keel::data::augment::Augmentation;
use keel::data::batch::{BatchShape, TokenWeighting};
use keel::data::chat::ChatTokenizer;
use keel::data::image::{Image, ImageLimits};
use keel::data::image_view::ImageCache;
use keel::data::mixture::{Mixture, MixtureSettings};
use keel::data::pairs::{PairLimits, Pairs};
use keel::data::pixels::Pixels;
use keel::data::source::SampleSettings;
use keel::data::task::Task;
use keel::data::tiles::Tiling;
use keel::data::user_samples::UserSamples;
use rayon::prelude::*;

/// The tower's square.
const SIDE: u32 = 224;
/// Images of a folder.
const IMAGES: usize = 64;
/// Rounds of which the fastest counts; both programs take turns.
const ROUNDS: usize = 5;

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--against-python");
    let python = args.nth(1);
    let folder = tempfile::tempdir().expect("a folder for the images");
    let kinds: &[&str] = match &python {
        Some(python) => {
            ask_peer(python, &["make", &text(folder.path()), &IMAGES.to_string()]);
            &["jpg", "png"]
        }
        None => {
            make_pngs(folder.path());
            &["png"]
        }
    };
    println!("images of 640 × 480 to numbers [3, {SIDE}, {SIDE}], a second on one core");
    for kind in kinds {
        let files = files(folder.path(), kind);
        let mut keel = 0.0f64;
        let mut peers: Vec<(String, f64)> = Vec::new();
        for _ in 0..ROUNDS {
            keel = keel.max(per_second(&files, 1));
            if let Some(python) = &python {
                for line in ask_peer(python, &["time", &text(folder.path()), kind]).lines() {
                    let (name, rate) = line.split_once('\t').expect("a name and a rate");
                    let rate: f64 = rate.parse().expect("a number");
                    match peers.iter_mut().find(|(known, _)| known == name) {
                        Some((_, best)) => *best = best.max(rate),
                        None => peers.push((name.to_owned(), rate)),
                    }
                }
            }
        }
        println!("{kind}: Keel {keel:.0}");
        for (name, rate) in peers {
            println!(
                "{kind}: {name} {rate:.0}, Keel {:.2} times as fast",
                keel / rate
            );
        }
        for (what, tiles) in [("whole", 0), ("in up to 6 tiles and whole", 6)] {
            let [first, second] = epochs(folder.path(), kind, tiles);
            println!(
                "{kind}: batches of pairs, images {what}: {first:.0} in the first epoch, {second:.0} in the next, {:.1} times as many",
                second / first
            );
        }
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let all = (0..ROUNDS).map(|_| per_second(&files, threads));
        println!(
            "{kind}: Keel on {threads} threads {:.0}",
            all.fold(0.0, f64::max)
        );
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What the Python side prints.
fn ask_peer(python: &str, args: &[&str]) -> String {
    let output = peer::peer(python, "data.py").args(args).output();
    let output = output.expect("the Python given starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn files(folder: &Path, kind: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("it was made");
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == kind));
    paths.sort();
    assert_eq!(paths.len(), IMAGES);
    let bytes = paths
        .iter()
        .map(|path| std::fs::read(path).expect("it is there"));
    bytes.collect()
}

fn per_second(files: &[Vec<u8>], threads: usize) -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.expect("threads can be had");
    let pixels = Pixels::default();
    let start = Instant::now();
    let sums: f32 = pool.install(|| {
        let numbers = files.par_iter().map(|file| {
            let image = Image::decode("an image", file, &ImageLimits::default());
            let square = pixels.prepared(&image.expect("it is whole"), SIDE);
            square.to_chw(pixels.mean, pixels.std)[0]
        });
        numbers.sum()
    });
    assert!(sums.is_finite());
    files.len() as f64 / start.elapsed().as_secs_f64()
}

/// Images a second that become rows of batches, on one thread, in an epoch that decodes and in the next, which finds them
/// kept.
fn epochs(folder: &Path, kind: &str, tiles: usize) -> [f64; 2] {
    let lines = (0..IMAGES).map(|index| {
        format!("{{\"image\": \"{index:02}.{kind}\", \"caption\": \"image {index}\"}}\n")
    });
    let list = folder.join(format!("{kind}.jsonl"));
    std::fs::write(&list, lines.collect::<String>()).expect("room for a list");
    let pairs = Pairs::open(&text(&list), PairLimits::default()).expect("the list is whole");
    let settings = MixtureSettings {
        seed: 1,
        stage: 0,
        weights: vec![(Task::SAMPLES, 1.0)],
        shape: BatchShape {
            batch: IMAGES / 4,
            image_size: SIDE as usize,
            image_tokens: 16,
            tokens: 256,
            pack: 1,
            tiling: Tiling {
                most: tiles,
                slots: tiles * IMAGES / 4,
            },
            caption_tokens: 32,
            image_id: ChatTokenizer::embedded().image(),
            pixels: Pixels::default(),
        },
        weighting: TokenWeighting::default(),
        contrastive: false,
    };
    let samples = SampleSettings {
        augmentation: Augmentation::NONE,
        turns: 1,
        images: 1,
        share: 1.0,
    };
    let source = UserSamples::new(Arc::new(pairs), &samples);
    let mixture = Mixture::new(vec![Arc::new(source)], settings);
    let kept = Arc::new(ImageCache::new(1 << 30));
    let mixture = mixture.expect("there are pairs").keeping(kept);
    let mut epoch = 0;
    [0; 2].map(|_| {
        let start = Instant::now();
        for step in 0..4 {
            mixture.batch(4 * epoch + step).expect("images are whole");
        }
        epoch += 1;
        IMAGES as f64 / start.elapsed().as_secs_f64()
    })
}

/// Broad waves of colour with a little noise, as PNG.
fn make_pngs(folder: &Path) {
    for index in 0..IMAGES {
        let mut noise = index as u32 * 2_654_435_761 + 1;
        let mut rgb = Vec::with_capacity(640 * 480 * 3);
        for y in 0..480 {
            for x in 0..640 {
                for colour in 0..3 {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let wave = (x as f32 / 40.0 + index as f32).sin()
                        * (y as f32 / 31.0 + colour as f32).cos();
                    rgb.push((127.0 + 100.0 * wave + (noise >> 29) as f32) as u8);
                }
            }
        }
        let path = folder.join(format!("{index:02}.png"));
        let file = std::fs::File::create(path).expect("it can be made");
        let mut encoder = png::Encoder::new(file, 640, 480);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().expect("it can be written");
        writer.write_image_data(&rgb).expect("it can be written");
    }
}
