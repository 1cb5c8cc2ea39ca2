//! Large images in tiles: grids and pixels as transformers makes them; a step on tiles is the step on as many images of
//! their own in one sequence; runs with them are trained, asked and continued.

mod several;

use std::fs;
use std::sync::Arc;

use keel::data::assemble::assemble;
use keel::data::batch::{Batch, BatchShape, TokenWeighting};
use keel::data::chat::ChatTokenizer;
use keel::data::image::Image;
use keel::data::image_slots::place;
use keel::data::image_view::ImageView;
use keel::data::pixels::Pixels;
use keel::data::sample::{Sample, View};
use keel::data::task::Task;
use keel::data::tiles::{Tiling, grid};
use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::tape::Target;
use keel::tensor::DType;
use keel::train::Stage;

use crate::command::{keel, tiny_recipe};
use crate::data_image::files;
use crate::harness::{Golden, Random};
use crate::packing::losses_and_gradients;
use crate::program::Tiny;

/// Of the published tiles in the golden.
const SIDE: u32 = 16;

fn case(name: &str) -> Golden {
    let cases = Golden::open("tiles").cases().into_iter();
    let mut named = cases.filter(|case| case.name == format!("tiles/{name}"));
    named.next().expect("a case of the golden")
}

#[test]
fn grids_are_those_of_transformers() {
    let grids = case("grids");
    let rows = grids.integers("value.grids").chunks_exact(5);
    assert!(rows.len() >= 500);
    let mut kinds = std::collections::BTreeSet::new();
    for row in rows {
        let [width, height, most, columns, rows] = <[i32; 5]>::try_from(row).unwrap();
        let found = grid([width as u32, height as u32], most as usize, SIDE);
        assert_eq!(
            found,
            [columns as u32, rows as u32],
            "{width} x {height}, at most {most}"
        );
        kinds.insert(found);
    }
    assert!(kinds.len() > 20, "the sizes ask for many grids: {kinds:?}");
}

#[test]
fn tiles_and_the_whole_image_beside_them_are_those_of_transformers_to_the_bit() {
    let mut cut = 0;
    for name in ["wide", "tall", "square", "small", "thin"] {
        let case = case(name);
        let &[height, width, 3] = case.shape("input.picture").dims() else {
            panic!("{name} is an image")
        };
        let colours = case.integers("input.picture").chunks_exact(3);
        let rgba = colours
            .flat_map(|c| [c[0] as u8, c[1] as u8, c[2] as u8, 255])
            .collect();
        let [width, height] = [width as u32, height as u32];
        let image = Image {
            width,
            height,
            rgba,
        };
        let most = case.config["most"].as_u64().unwrap() as usize;
        let grid = grid([width, height], most, SIDE);
        let pixels = Pixels::default().beside_tiles();
        let mut tiles = pixels.tiles(&image, grid, SIDE);
        cut += usize::from(!tiles.is_empty());
        tiles.push(pixels.prepared(&image, SIDE));
        let want = case.integers("value.tiles");
        let found: Vec<i32> = tiles
            .iter()
            .flat_map(|tile| tile.rgba.chunks_exact(4))
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]].map(i32::from))
            .collect();
        assert_eq!(found.len(), want.len(), "{name}");
        let other = found
            .iter()
            .zip(want)
            .position(|(found, want)| found != want);
        let at = |i: usize| format!("{name}, value {i}: {} and {}", found[i], want[i]);
        assert!(other.is_none(), "{}", other.map(at).unwrap_or_default());
    }
    assert!(cut >= 3);
}

/// Of the tiny model: 32 pixels in patches of 8, two by two in one.
const IMAGE_TOKENS: usize = 4;
const TOKENS: usize = 80;

fn photo(random: &mut Random, [width, height]: [u32; 2]) -> ImageView {
    let bytes = (0..width * height).flat_map(|_| {
        [
            random.below(256) as u8,
            random.below(256) as u8,
            random.below(256) as u8,
            255,
        ]
    });
    let rgba = bytes.collect();
    ImageView::whole(Arc::new(Image {
        width,
        height,
        rgba,
    }))
}

fn sample(index: usize, view: View) -> Sample {
    Sample {
        key: format!("sample {index}"),
        task: Task::SAMPLES,
        question_kind: None,
        view,
        context: String::new(),
        question: "what is it?".into(),
        answer: format!("it is number {index}"),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption: format!("number {index}"),
    }
}

/// Images of four tiles, of one and of two, and text alone, which stands last in a batch.
fn samples() -> Vec<Sample> {
    let mut random = Random::new(20_261_128);
    let views = [
        View::Image(photo(&mut random, [70, 66])),
        View::Image(photo(&mut random, [20, 20])),
        View::Image(photo(&mut random, [90, 40])),
        View::None,
    ];
    views
        .into_iter()
        .enumerate()
        .map(|(i, view)| sample(i, view))
        .collect()
}

fn shape(tiling: Tiling, pack: usize, tokens: usize) -> BatchShape {
    BatchShape {
        batch: 4,
        pack,
        image_size: 32,
        image_tokens: IMAGE_TOKENS,
        tiling,
        tokens,
        caption_tokens: 32,
        image_id: ChatTokenizer::embedded().image(),
        pixels: Pixels::default(),
    }
}

fn batch(samples: &[Sample], shape: &BatchShape) -> Batch {
    let tokenizer = ChatTokenizer::embedded();
    assemble(samples, shape, TokenWeighting::Square, tokenizer).unwrap()
}

/// How many tokens of each row show tiles and whole images.
fn marks(batch: &Batch, tokens: usize) -> Vec<[usize; 2]> {
    let rows = batch.places.chunks_exact(tokens);
    rows.map(|row| {
        let ids = [place::TILE, place::WHOLE];
        ids.map(|id| row.iter().filter(|mark| **mark == id).count())
    })
    .collect()
}

#[test]
fn images_are_cut_as_far_as_slots_and_tokens_allow() {
    let samples = samples();
    let all = batch(&samples, &shape(Tiling { most: 6, slots: 16 }, 1, TOKENS));
    assert_eq!(marks(&all, TOKENS), [[16, 4], [0, 4], [8, 4], [0, 0]]);
    assert_eq!(all.images.len(), (16 + 4) * 3 * 32 * 32);
    let is_drawn = |slot: usize| {
        let image = &all.images[slot * 3 * 32 * 32..][..3 * 32 * 32];
        image.iter().any(|x| *x != 0.0)
    };
    let drawn: Vec<usize> = (0..20).filter(|slot| is_drawn(*slot)).collect();
    // Six tiles, ten slots that nothing is in, then all images but that of the text alone.
    assert_eq!(drawn, [0, 1, 2, 3, 4, 5, 16, 17, 18]);
    // Tokens of tiles stand before those of the whole image.
    let row = &all.places[..TOKENS];
    let marked: Vec<i32> = row
        .iter()
        .copied()
        .filter(|mark| *mark != place::NONE)
        .collect();
    assert!(marked.is_sorted(), "{marked:?}");

    let few = batch(&samples, &shape(Tiling { most: 6, slots: 5 }, 1, TOKENS));
    assert_eq!(marks(&few, TOKENS), [[16, 4], [0, 4], [0, 4], [0, 0]]);
    let base = batch(&samples, &shape(Tiling::NONE, 1, TOKENS));
    let used = |batch: &Batch| {
        let pad = ChatTokenizer::embedded().pad();
        batch.tokens[..TOKENS]
            .iter()
            .filter(|id| **id != pad)
            .count()
    };
    let short = used(&base) + 2 * IMAGE_TOKENS + 1;
    let tight = batch(&samples, &shape(Tiling { most: 6, slots: 16 }, 1, short));
    // Four do not fit, and one or two are nearer to no grid than to the square.
    assert_eq!(marks(&tight, short), [[0, 4], [0, 4], [8, 4], [0, 0]]);
}

/// The same images with nothing left to do but to splice them: every tile and every image a sample of its own, in the
/// order of their places, in sequences that hold several.
fn as_images_of_their_own(cut: &Batch, slots: usize, tiles: &[usize]) -> Batch {
    let image = 3 * 32 * 32;
    let at = |slot: usize| cut.images[slot * image..][..image].to_vec();
    let mut images = Vec::new();
    let mut next = 0;
    let mut left = Vec::new();
    for (row, count) in tiles.iter().enumerate() {
        for slot in next..next + count {
            images.extend(at(slot));
        }
        next += count;
        if cut.places[row * TOKENS..][..TOKENS].contains(&place::WHOLE) {
            images.extend(at(slots + row))
        } else {
            left.extend(at(slots + row))
        }
    }
    for slot in next..slots {
        images.extend(at(slot));
    }
    images.extend(left);
    let rows = cut.tokens.len() / TOKENS;
    let positions = (0..rows).flat_map(|_| 0..TOKENS as i32).collect();
    Batch {
        images,
        segments: vec![0; rows * TOKENS],
        positions,
        ..cut.clone()
    }
}

#[test]
fn a_step_on_tiles_has_the_loss_and_gradients_of_a_step_on_images_of_their_own() {
    let tiny = Tiny::new();
    let samples = samples();
    let stage = tiny.recipe.stage("world-knowledge").unwrap();
    let cut = Stage {
        batch_size: 4,
        max_tiles: 4,
        tile_budget: Some(2),
        max_tokens: TOKENS,
        contrastive_weight: 0.0,
        ..stage.clone()
    };
    let batch_cut = batch(&samples, &shape(cut.tiling(4), 1, TOKENS));
    assert_eq!(marks(&batch_cut, TOKENS), [[16, 4], [0, 4], [8, 4], [0, 0]]);
    let batch_apart = as_images_of_their_own(&batch_cut, 8, &[4, 0, 2, 0]);

    hold_to_images_of_their_own(&tiny, &samples, (&cut, &batch_cut), &batch_apart);
}

/// Holds a step, and the one on its samples packed, to that on `apart`, whose slots and images are images of samples in four
/// sequences, on every executor.
fn hold_to_images_of_their_own(
    tiny: &Tiny,
    samples: &[Sample],
    (own, batch_own): (&Stage, &Batch),
    apart: &Batch,
) {
    // Two sequences of two samples each.
    let packed = Stage {
        samples_per_sequence: 2,
        max_tokens: 2 * TOKENS,
        ..own.clone()
    };
    let batch_packed = batch(samples, &shape(own.tiling(4), 2, 2 * TOKENS));
    assert_eq!(batch_packed.skipped.without_room, 0);
    let steps = [(own, batch_own), (&packed, &batch_packed)];
    let images = own.tiling(4).slots + 4;
    let stage = Stage {
        batch_size: images,
        samples_per_sequence: images / 4,
        max_tiles: 0,
        tile_budget: None,
        max_images: 1,
        ..own.clone()
    };
    let elements = tiny.layout.elements();
    let reference = ReferenceExecutor::new(elements);
    let cpu = CpuExecutor::new(elements, 2).unwrap();
    let simt = SimtExecutor::new(elements, Options::default()).ok();
    let simt = simt.map(|simt| simt.in_precision(DType::F32));
    let mut executors: Vec<(&dyn Executor, Target, f64)> = vec![
        // f64 sums in another order; f32 sums of some thousand terms in another order.
        (&reference, Target::Reference, 1e-11),
        (&cpu, Target::Cpu { threads: 2 }, 1e-4),
    ];
    if let Some(simt) = &simt {
        executors.push((simt, Target::Cuda, 1e-4));
    }
    let truth = losses_and_gradients(tiny, &stage, apart, (&reference, Target::Reference));
    assert!(truth.len() > 20 && truth["loss"][0] > 0.0);
    for (executor, target, allowed) in executors {
        for (stage, batch) in steps {
            let found = losses_and_gradients(tiny, stage, batch, (executor, target));
            assert!(found.keys().eq(truth.keys()));
            for (name, want) in &truth {
                let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (want, found) in want.iter().zip(&found[name]) {
                    let close = (want - found).abs() <= allowed * scale;
                    assert!(close, "{} {name}: {want} and {found}", executor.describe());
                }
            }
        }
    }
}

#[test]
fn a_contrast_beside_tiles_is_that_of_the_whole_images() {
    let tiny = Tiny::new();
    let samples: Vec<Sample> = samples().into_iter().filter(|s| s.view.is_some()).collect();
    let mut samples = samples;
    samples.push(sample(9, samples[0].view.clone()));
    let stage = tiny.recipe.stage("world-knowledge").unwrap();
    let cut = Stage {
        batch_size: 4,
        max_tiles: 4,
        max_tokens: TOKENS,
        contrastive_weight: 0.5,
        ..stage.clone()
    };
    let whole = Stage {
        max_tiles: 0,
        ..cut.clone()
    };
    let stretched = BatchShape {
        pixels: Pixels::default().beside_tiles(),
        ..shape(Tiling::NONE, 1, TOKENS)
    };
    let reference = ReferenceExecutor::new(tiny.layout.elements());
    let on: (&dyn Executor, Target) = (&reference, Target::Reference);
    let batch_cut = batch(&samples, &shape(cut.tiling(4), 1, TOKENS));
    let with_tiles = losses_and_gradients(&tiny, &cut, &batch_cut, on);
    let without = losses_and_gradients(&tiny, &whole, &batch(&samples, &stretched), on);
    let [one, other] = [&with_tiles, &without].map(|values| values["loss.contrastive"][0]);
    assert!((one - other).abs() < 1e-11 * other, "{one} and {other}");
    assert!(
        with_tiles["loss.next_token"] != without["loss.next_token"],
        "tiles are read"
    );
}

#[test]
fn a_run_on_tiles_is_trained_continued_to_the_same_bits_and_asked() {
    let folder = tempfile::tempdir().unwrap();
    let image = &files()[0];
    let ending = ["png", "jpg", "webp"]
        .into_iter()
        .find(|e| image.0.contains(&e[..3]))
        .unwrap_or("png");
    let name = format!("a.{ending}");
    fs::write(folder.path().join(&name), &image.1).unwrap();
    let lines: String = (0..6)
        .map(|i| format!("{{\"image\": \"{name}\", \"question\": \"what is {i}?\", \"answer\": \"number {i}\"}}\n"))
        .collect();
    fs::write(folder.path().join("list.jsonl"), lines).unwrap();
    fs::write(
        folder.path().join("my.toml"),
        tiny_recipe(&["world-knowledge"]),
    )
    .unwrap();
    let args = "train --device cpu --recipe my.toml --data list.jsonl --no-evaluation --max-steps 3 --out run \
                --set stage.world-knowledge.contrastive_weight=0 --set stage.world-knowledge.max_tiles=4 --set stage.world-knowledge.data.samples=3 --save-every 1";
    keel(folder.path(), &args.split_whitespace().collect::<Vec<_>>()).fine();
    let run = folder.path().join("run");
    let newest = || keel::train::newest_checkpoint(&run).unwrap().unwrap();
    let last = newest();
    let whole = fs::read(&last).unwrap();
    fs::remove_file(&last).unwrap();
    let inner = newest();
    assert!(
        inner.to_string_lossy().contains("step-"),
        "{}",
        inner.display()
    );
    let args = "train --device cpu --resume run --data list.jsonl --no-evaluation --max-steps 3";
    keel(folder.path(), &args.split(' ').collect::<Vec<_>>()).fine();
    assert!(
        fs::read(&last).unwrap() == whole,
        "the run goes on otherwise"
    );
    keel(
        folder.path(),
        &[
            "caption",
            "run",
            &name,
            "--question",
            "what is it?",
            "--device",
            "cpu",
        ],
    )
    .fine();

    // A whole model says so, and who begins from it is told.
    let export = ["export", "run", "--part", "model", "--out", "whole"];
    keel(folder.path(), &export).fine();
    let text = fs::read(folder.path().join("whole/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let said = ["dynamic_image_size", "use_thumbnail", "max_dynamic_patch"].map(|key| &config[key]);
    assert!(
        said[0] == true && said[1] == true && said[2] == 4,
        "{said:?}"
    );
    let again = [
        "train",
        "--recipe",
        "my.toml",
        "--vision",
        "whole",
        "--dry-run",
    ];
    let answer = keel(folder.path(), &again).fine();
    assert!(answer.stdout.contains("in up to 4 tiles"), "{answer:#?}");

    let refuse = |set: &str, texts: &[&str]| {
        let args = ["train", "--recipe", "my.toml", "--set", set];
        keel(folder.path(), &args).refused(texts);
    };
    refuse(
        "stage.world-knowledge.max_tiles=1",
        &["max_tiles", "0, or 2 to 64"],
    );
    refuse(
        "stage.world-knowledge.tile_budget=3",
        &["tile_budget", "1 to max_tiles = 0"],
    );
}
