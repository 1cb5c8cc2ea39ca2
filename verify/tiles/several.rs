//! Samples of several images: each stands where its conversation marks it, in slots as tiles do.

use std::fs;

use keel::data::assemble::assemble;
use keel::data::batch::TokenWeighting;
use keel::data::chat::{ChatTokenizer, Turn};
use keel::data::image_view::ImageView;
use keel::data::sample::{Sample, View};
use keel::data::tiles::Tiling;
use keel::executor::{Executor, ReferenceExecutor};
use keel::tape::Target;
use keel::train::Stage;

use super::{
    TOKENS, Tiny, as_images_of_their_own, batch, hold_to_images_of_their_own, losses_and_gradients,
    marks, photo, sample, samples, shape,
};
use crate::command::{keel, tiny_recipe};
use crate::data_image::png_file;
use crate::harness::Random;

/// Samples of three images, of one, of one in a later question, and of none: each image stands where it is marked, and a step
/// is that on images which are spliced one after the other.
#[test]
fn a_step_on_samples_of_several_images_is_one_on_images_of_their_own() {
    let tiny = Tiny::new();
    let mut random = Random::new(20_261_129);
    let photos: Vec<ImageView> = (0..5).map(|_| photo(&mut random, [40, 50])).collect();
    let marked = |index: usize, photos: &[ImageView], questions: [&str; 2]| {
        let mut sample = sample(index, View::Images(photos.to_vec()));
        sample.question = questions[0].into();
        sample.further = vec![Turn {
            question: questions[1].into(),
            answer: "yes".into(),
        }];
        sample
    };
    let samples = [
        marked(0, &photos[..3], ["a <image> b <image>", "<image>\nc"]),
        sample(1, View::Image(photos[3].clone())),
        marked(2, &photos[4..], ["d", "e <image>"]),
        sample(3, View::None),
    ];
    let stage = tiny.recipe.stage("world-knowledge").unwrap();
    let several = Stage {
        batch_size: 4,
        max_images: 3,
        max_tokens: TOKENS,
        contrastive_weight: 0.0,
        ..stage.clone()
    };
    let slots = several.tiling(4).slots;
    let batch_several = batch(&samples, &shape(several.tiling(4), 1, TOKENS));
    // Samples of one image stand first.
    assert_eq!(
        marks(&batch_several, TOKENS),
        [[0, 4], [0, 4], [12, 0], [0, 0]]
    );
    assert_eq!(batch_several.pairs, 2);
    // Where the marks are: text and images of the third row in turn.
    let tokenizer = ChatTokenizer::embedded();
    let row = &batch_several.tokens[2 * TOKENS..3 * TOKENS];
    let runs = row.chunk_by(|a, b| (*a == tokenizer.image()) == (*b == tokenizer.image()));
    let told: Vec<String> = runs
        .map(|run| {
            if run[0] == tokenizer.image() {
                format!("{} tokens", run.len())
            } else {
                tokenizer.decode(run)
            }
        })
        .collect();
    assert_eq!(
        told,
        [
            "a ",
            "4 tokens",
            " b ",
            "4 tokens",
            "it is number 0",
            "4 tokens",
            "\ncyes"
        ]
    );
    // Each whole and prepared as an image alone is.
    let alone: Vec<Sample> = [&photos[..3], &photos[4..]]
        .concat()
        .iter()
        .map(|photo| sample(0, View::Image(photo.clone())))
        .collect();
    let alone = batch(&alone, &shape(Tiling::NONE, 1, TOKENS));
    let image = 3 * 32 * 32;
    let at = |images: &[f32], slot: usize| images[slot * image..][..image].to_vec();
    for (slot, photo) in [(0, 0), (1, 1), (2, 2), (slots + 1, 3)] {
        assert!(
            at(&batch_several.images, slot) == at(&alone.images, photo),
            "slot {slot}"
        );
    }

    let batch_apart = as_images_of_their_own(&batch_several, slots, &[0, 0, 3, 0]);
    let own = (&several, &batch_several);
    hold_to_images_of_their_own(&tiny, &samples, own, &batch_apart);
    let error = assemble(
        &samples,
        &shape(Tiling { most: 0, slots: 1 }, 1, TOKENS),
        TokenWeighting::Square,
        tokenizer,
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("3 images of samples of several for 1 slots"),
        "{error}"
    );
}

#[test]
fn a_contrast_leaves_samples_of_several_images_out() {
    let tiny = Tiny::new();
    let mut samples = samples();
    let mut random = Random::new(20_261_130);
    let two = [0; 2].map(|_| photo(&mut random, [30, 30]));
    samples[0].view = View::Images(two.to_vec());
    samples[0].question = "<image> or <image>?".into();
    let mut without = samples.clone();
    without[0].view = View::None;
    without[0].question.clear();
    let stage = tiny.recipe.stage("world-knowledge").unwrap();
    let stage = Stage {
        batch_size: 4,
        max_images: 2,
        max_tokens: TOKENS,
        contrastive_weight: 0.5,
        ..stage.clone()
    };
    let reference = ReferenceExecutor::new(tiny.layout.elements());
    let contrast = |samples: &[Sample]| {
        let batch = batch(samples, &shape(stage.tiling(4), 1, TOKENS));
        assert_eq!(batch.pairs, 2);
        let on: (&dyn Executor, Target) = (&reference, Target::Reference);
        losses_and_gradients(&tiny, &stage, &batch, on)
    };
    let (with, without) = (contrast(&samples), contrast(&without));
    assert_eq!(with["loss.contrastive"], without["loss.contrastive"]);
    assert!(with["loss.next_token"] != without["loss.next_token"]);
}

#[test]
fn a_run_on_samples_of_several_images_trains_and_stages_without_room_pass_them_over() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..2 {
        fs::write(folder.path().join(format!("{index}.png")), png(index)).unwrap();
    }
    let lines: String = (0..6)
        .map(|i| format!("{{\"image\": [\"0.png\", \"1.png\"], \"question\": \"<image> or <image>, {i}?\", \"answer\": \"number {i}\"}}\n"))
        .collect();
    fs::write(folder.path().join("list.jsonl"), lines).unwrap();
    let recipe = tiny_recipe(&["world-knowledge"]);
    fs::write(folder.path().join("my.toml"), recipe).unwrap();
    let check = keel(folder.path(), &["data", "check", "list.jsonl"]).fine();
    assert!(
        check.stdout.contains("6 samples show several, up to 2"),
        "{check:#?}"
    );
    let args = "train --device cpu --recipe my.toml --data list.jsonl --no-evaluation --max-steps 2 --out run \
                --set stage.world-knowledge.data.samples=3";
    let train = |more: &str| {
        let args = [args, more].join(" ");
        keel(folder.path(), &args.split_whitespace().collect::<Vec<_>>())
    };
    train("").failed(&["it shows 2 images, where this stage takes 1"]);
    fs::remove_dir_all(folder.path().join("run")).unwrap();
    train("--set stage.world-knowledge.max_images=65").refused(&["max_images", "1 to 64"]);
    // Beside a contrast, which is of the other samples.
    train("--set stage.world-knowledge.max_images=2").fine();
    let ask = |question: &str| {
        let args = ["caption", "run", "0.png", "1.png", "--question", question];
        keel(folder.path(), &[&args[..], &["--device", "cpu"]].concat())
    };
    // Unmarked, they come before the question.
    let unmarked = ask("which?").fine();
    assert_eq!(
        ask("<image>\n<image>\nwhich?").fine().stdout,
        unmarked.stdout
    );
    ask("is it <image>?").refused(&["one for each of the 2 images"]);
}

/// An image of 20 × 30 pixels.
fn png(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let values: Vec<u8> = (0..20 * 30 * 3).map(|_| random.below(256) as u8).collect();
    png_file(20, 30, png::ColorType::Rgb, &values)
}
