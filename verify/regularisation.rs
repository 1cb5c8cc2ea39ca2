//! Drop path and patch dropout: what they compute on every executor, what they draw, that their mean is what stands without them,
//! that runs with them go on bit for bit, and the layer of the tower that a connector takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use keel::executor::{Executor, ReferenceExecutor};
use keel::model::{
    Regularisation, VisionConfig, drop_path, initialise, keep_tokens, vision_layers,
};
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;
use keel::train::{BUILT_IN, LeftOut, PublishedWeights, Recipe};
use proptest::prelude::*;

use crate::command::{checkpoint, keel, tensors, tiny_recipe};
use crate::harness::{Case, Random, check, goldens, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn dropped_branches_match_the_reference(
        images in 1usize..5, tokens in 1usize..9, width in 1usize..40, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let (shape, count) = ([images, tokens, width], images * tokens * width);
        let mut scales = vec![1.25; images];
        scales[1..].iter_mut().step_by(2).for_each(|scale| *scale = 0.0);
        let case = Case::new("drop path", |tape, v| {
            Ok(vec![out("y", drop_path(tape, v[0], v[1], v[2])?)])
        })
        .input("residual", shape, random.normals(count, 1.0))
        .input("branch", shape, random.normals(count, 1.0))
        .constant("scale", [images, 1], scales);
        check(&case, seed);
    }

    #[test]
    fn kept_tokens_match_the_reference(
        images in 1usize..4, tokens in 2usize..9, width in 1usize..20, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let kept: Vec<i32> = (0..images)
            .flat_map(|image| [1, 0].map(|token| (image * tokens + token) as i32))
            .collect();
        let case = Case::new("kept tokens", |tape, v| {
            Ok(vec![out("y", keep_tokens(tape, v[0], v[1])?)])
        })
        .input("x", [images, tokens, width], random.normals(images * tokens * width, 1.0))
        .integers("kept", [images, 2], kept);
        check(&case, seed);
    }
}

/// The tiny recipe's tower with three blocks.
fn tower() -> VisionConfig {
    let recipe = Recipe::load("tiny", &["model.vision.depth=3".to_owned()]).unwrap();
    recipe.model.vision
}

const IMAGES: usize = 2;

/// The tower's output and that of its first block, with every branch that may be dropped scaled by `scale`.
fn features(regularisation: Regularisation, scale: f32, kept: &[i32]) -> [Vec<f64>; 2] {
    let config = tower();
    let side = config.image_size;
    let record = |tape: &mut Tape| {
        let images = tape.input("images", TensorType::f32([IMAGES, 3, side, side]));
        vision_layers(tape, &config, images, &regularisation).unwrap()
    };
    let mut declaring = Tape::declaring();
    record(&mut declaring);
    let layout = Arc::new(ParameterLayout::new(&declaring.specs()));
    let mut tape = Tape::new(layout.clone(), |_| false);
    let layers = record(&mut tape);
    tape.output(layers.output, "output");
    tape.output(layers.layers[0], "first");
    let executor = ReferenceExecutor::new(layout.elements());
    let options = CompileOptions::new(executor.compile_target());
    let program = Arc::new(Program::compile(tape, &options).unwrap());
    executor
        .write_parameters(0, &initialise(&layout, 3))
        .unwrap();
    let inputs: Vec<String> = program.input_names().map(str::to_owned).collect();
    let mut session = executor.load(program).unwrap();
    let mut random = Random::new(5);
    let images = random.normals(IMAGES * 3 * side * side, 1.0);
    for input in &inputs {
        match input.as_str() {
            "images" => session.write_f32(input, &images).unwrap(),
            "kept_patches" => session.write_i32(input, kept).unwrap(),
            _ => session.write_f32(input, &[scale; IMAGES]).unwrap(),
        }
    }
    session.run().unwrap();
    ["output", "first"].map(|name| session.read_f64(name).unwrap())
}

/// Whether numbers agree to the rounding of sums in another order.
fn agree(one: &[f64], other: &[f64]) -> bool {
    let pairs = one.iter().zip(other);
    let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-9 * (1.0 + a.abs());
    one.len() == other.len() && !pairs.into_iter().any(far)
}

#[test]
fn branches_that_stay_are_the_towers_own_and_dropped_ones_leave_its_first_block() {
    let dropping = Regularisation {
        drop_path_rate: 0.5,
        ..Regularisation::default()
    };
    assert_eq!(dropping.dropping(3), [1, 2]);
    assert_eq!(dropping.drop_path_of(1, 3), 0.25);
    let [plain, first] = features(Regularisation::default(), 0.0, &[]);
    assert!(agree(&features(dropping, 1.0, &[])[0], &plain));
    // Without later branches the stream stays as the first block left it, up to the final norm.
    let [dropped, of_first] = features(dropping, 0.0, &[]);
    assert!(agree(&of_first, &first) && !agree(&dropped, &plain));
    let width = tower().width;
    for (row, normed) in first.chunks(width).zip(dropped.chunks(width)) {
        let square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let length = (square + f64::from(tower().norm_epsilon)).sqrt();
        let wanted: Vec<f64> = row.iter().map(|x| x / length).collect();
        assert!(agree(normed, &wanted));
    }
}

#[test]
fn a_tower_that_keeps_all_patches_is_the_tower_whatever_their_order() {
    let config = tower();
    let tokens = config.patches();
    let none = Regularisation {
        patch_dropout: 1e-12,
        ..Regularisation::default()
    };
    assert_eq!(none.kept_patches(tokens), tokens);
    // Each image's patches backwards: positions were added before, and attention knows no order.
    let numbers =
        (0..IMAGES).flat_map(|image| (0..tokens).rev().map(move |t| (image * tokens + t) as i32));
    let kept: Vec<i32> = numbers.collect();
    let [plain, _] = features(Regularisation::default(), 0.0, &[]);
    let [turned, _] = features(none, 0.0, &kept);
    let back = turned.chunks(tokens * config.width).flat_map(|image| {
        let rows: Vec<&[f64]> = image.chunks(config.width).rev().collect();
        rows.concat()
    });
    assert!(agree(&back.collect::<Vec<_>>(), &plain));
}

fn draws(sets: &[&str]) -> LeftOut {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "tiny").unwrap();
    let recipe = Recipe::parse("tiny", text, &sets).unwrap();
    let stage = recipe
        .stages
        .iter()
        .find(|stage| stage.name == "warm-start-vision");
    LeftOut::new(&recipe, stage.unwrap())
}

const DROP: &str = "stage.warm-start-vision.drop_path_rate=0.4";
const LEAVE: &str = "stage.warm-start-vision.patch_dropout=0.5";

#[test]
fn what_is_dropped_has_the_mean_of_what_is_not_and_belongs_to_seed_stage_step_and_sample() {
    let left_out = draws(&[DROP, "model.vision.depth=3"]);
    let batches = 500;
    let all: Vec<_> = (0..batches).map(|number| left_out.scales(number)).collect();
    let names: Vec<&String> = all[0].iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "drop_path.1.0",
            "drop_path.1.1",
            "drop_path.2.0",
            "drop_path.2.1"
        ]
    );
    for (place, rate) in [0.2f64, 0.2, 0.4, 0.4].into_iter().enumerate() {
        let scales = all.iter().flat_map(|batch| batch[place].1.iter().copied());
        let scales: Vec<f64> = scales.map(f64::from).collect();
        assert_eq!(scales.len(), 8 * batches as usize);
        let stays = 1.0 / (1.0 - rate);
        assert!(scales.iter().all(|s| *s == 0.0 || (s - stays).abs() < 1e-6));
        let mean = scales.iter().sum::<f64>() / scales.len() as f64;
        // Five standard deviations of the mean of numbers that are 0 with this rate.
        let far = 5.0 * (rate / (1.0 - rate) / scales.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < far, "{place}: {mean}");
    }
    let distinct: BTreeSet<String> = all[0]
        .iter()
        .map(|(_, scales)| format!("{scales:?}"))
        .collect();
    assert!(distinct.len() > 1, "branches are dropped apart");
    // Two micro-batches of four are one of eight.
    let halves = draws(&[
        DROP,
        "model.vision.depth=3",
        "stage.warm-start-vision.micro_batch_size=4",
    ]);
    for (place, (_, scales)) in all[7].iter().enumerate() {
        let both = [14, 15].map(|number| halves.scales(number)[place].1.clone());
        assert_eq!(*scales, both.concat());
    }
    assert_ne!(
        draws(&[DROP, "model.vision.depth=3", "seed=2"]).scales(0),
        all[0]
    );
    assert!(draws(&[]).scales(0).is_empty());
}

#[test]
fn patches_stay_each_as_often_as_any_other() {
    let left_out = draws(&[LEAVE]);
    let (tokens, kept, images) = (16, 8, 8);
    let mut counts = vec![0u32; tokens];
    let batches = 200;
    for number in 0..batches {
        let all = left_out.kept(number);
        assert_eq!(all.len(), images * kept);
        for (row, own) in all.chunks(kept).enumerate() {
            assert!(own.is_sorted_by(|a, b| a < b), "{own:?}");
            for token in own {
                counts[*token as usize - row * tokens] += 1;
            }
        }
    }
    let draws = (batches as usize * images) as f64;
    let far = 5.0 * (draws * 0.25).sqrt();
    assert!(
        counts
            .iter()
            .all(|count| (f64::from(*count) - draws / 2.0).abs() < far),
        "{counts:?}"
    );
}

/// A run of two stages that leave something out, a checkpoint after each step.
fn run(folder: &Path, out: &str, more: &[&str]) {
    let args = [
        "train",
        "--recipe",
        "two.toml",
        "--out",
        out,
        "--max-steps",
        "3",
        "--save-every",
        "1",
        "--keep",
        "9",
        "--no-evaluation",
        "--set",
        DROP,
        "--set",
        LEAVE,
        "--set",
        "stage.fine-grained.drop_path_rate=0.3",
    ];
    keel(folder, &[&args[..], more].concat()).fine();
}

#[test]
fn runs_that_leave_out_at_random_are_the_same_on_any_threads_and_go_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let recipe = tiny_recipe(&["warm-start-vision", "fine-grained"]);
    fs::write(path.join("two.toml"), recipe).unwrap();
    let micro = ["--set", "stage.fine-grained.micro_batch_size=4"];
    run(
        path,
        "one",
        &[&micro[..], &["--threads", "1", "--recheck-every", "2"]].concat(),
    );
    run(path, "two", &[&micro[..], &["--threads", "2"]].concat());
    let of = |run: &str, label: &str| tensors(&checkpoint(&path.join(run), label));
    for label in ["1-warm-start-vision", "2-fine-grained"] {
        assert_eq!(of("one", label), of("two", label), "{label}");
    }
    for (label, file) in [
        ("1-warm-start-vision.step-2", "a"),
        ("2-fine-grained.step-1", "b"),
    ] {
        let cut = path.join(file);
        fs::create_dir_all(cut.join("checkpoints")).unwrap();
        fs::copy(path.join("one/recipe.toml"), cut.join("recipe.toml")).unwrap();
        let from = checkpoint(&path.join("one"), label);
        fs::copy(from, checkpoint(&cut, label)).unwrap();
        let resume = [
            "train",
            "--resume",
            file,
            "--max-steps",
            "3",
            "--no-evaluation",
        ];
        keel(path, &resume).fine();
        assert_eq!(
            of(file, "2-fine-grained"),
            of("one", "2-fine-grained"),
            "{label}"
        );
    }
    run(path, "ranks", &["--ranks", "2"]);
    // Another tower than without: something was left out.
    let plain = [
        "train",
        "--recipe",
        "two.toml",
        "--out",
        "plain",
        "--max-steps",
        "3",
        "--no-evaluation",
    ];
    keel(path, &plain).fine();
    assert_ne!(of("plain", "2-fine-grained"), of("one", "2-fine-grained"));
}

#[test]
fn a_connector_takes_the_layer_that_it_is_told_and_trains_no_block_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("one.toml"), tiny_recipe(&["fine-grained"])).unwrap();
    let train = |out: &str, layer: &str| {
        let set = format!("model.connector.select_layer={layer}");
        let args = ["train", "--recipe", "one.toml", "--out", out, "--set", &set];
        let more = [
            "--max-steps",
            "2",
            "--evaluation-images",
            "4",
            "--save-every",
            "1",
            "--keep",
            "2",
        ];
        keel(path, &[&args[..], &more].concat()).fine();
        tensors(&checkpoint(&path.join(out), "1-fine-grained"))
    };
    let (output, before) = (train("output", "-1"), train("before", "-2"));
    let recipe = Recipe::load("tiny", &[]).unwrap();
    let layout = keel::model::declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let first = initialise(&layout, recipe.seed);
    for entry in layout.entries() {
        let name = &entry.spec.name;
        let values = &first[entry.offset..entry.offset + entry.spec.shape.numel()];
        let values = bytemuck::cast_slice::<f32, u8>(values);
        let is_behind =
            name.starts_with("vision.blocks.1.") || name.starts_with("vision.final_norm");
        assert_eq!(
            before[name] == values,
            is_behind || !is_trained(name),
            "{name}"
        );
        assert_eq!(output[name] == values, !is_trained(name), "{name}");
    }
    let asked = ["caption", "before", "../fox.png"];
    let fox = Path::new(env!("CARGO_MANIFEST_DIR")).join("verify/goldens/chat/fox.png");
    let asked = asked.map(|arg| {
        if arg == "../fox.png" {
            fox.to_str().unwrap()
        } else {
            arg
        }
    });
    keel(path, &asked).fine();
    let export = ["export", "before", "--out", "part", "--part", "connector"];
    keel(path, &export).fine();
    let config = fs::read_to_string(path.join("part/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["select_layer"], -2);
}

fn is_trained(name: &str) -> bool {
    ["vision.", "connector.", "align."]
        .iter()
        .any(|module| name.starts_with(module))
}

#[test]
fn what_cannot_be_left_out_or_selected_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |set: &str, parts: &[&str]| {
        let args = ["train", "--recipe", "tiny", "--dry-run", "--set", set];
        keel(folder.path(), &args).refused(parts);
    };
    refused(
        "stage.warm-up.drop_path_rate=0.1",
        &["drop_path_rate", "does not train vision"],
    );
    refused(
        "stage.fine-grained.drop_path_rate=1",
        &["drop_path_rate", "below 1"],
    );
    refused(
        "stage.fine-grained.patch_dropout=0.5",
        &["patch_dropout", "needs all patches"],
    );
    refused(
        "stage.warm-start-vision.patch_dropout=-0.5",
        &["patch_dropout", "from 0"],
    );
    let set = [
        "stage.warm-start-vision.patch_dropout=0.5",
        "model.vision.rope_theta=100",
    ];
    let [dropout, turning] = set.map(|set| ["--set", set]);
    let args = [
        &["train", "--recipe", "tiny", "--dry-run"],
        &dropout[..],
        &turning,
    ]
    .concat();
    keel(folder.path(), &args).refused(&["patch_dropout", "rotary positions"]);
    refused(
        "model.connector.select_layer=0",
        &["select_layer", "-1", "-2"],
    );
    refused("model.connector.select_layer=-3", &["select_layer", "-2"]);
}

#[test]
fn stages_that_train_a_tower_take_the_rate_of_its_folder_where_they_have_none() {
    let weights = PublishedWeights {
        vision: Some(goldens().join("hub/internvit")),
        ..PublishedWeights::default()
    };
    let sets = [
        "stage.fine-grained.drop_path_rate=0",
        "model.connector.unshuffle_factor=1",
    ];
    let (recipe, begun) = Recipe::load_from("tiny", &sets.map(str::to_owned), &weights).unwrap();
    for stage in &recipe.stages {
        let want = match stage.name.as_str() {
            "fine-grained" => 0.0,
            _ if stage.trains("vision") => 0.1,
            _ => 0.0,
        };
        let name = &stage.name;
        assert_eq!(stage.regularisation().drop_path_rate, want, "{name}");
    }
    let said =
        |note: &&String| note.contains("drop_path_rate is 0.1 in world-knowledge, as the tower");
    assert!(
        begun.notes.iter().any(|note| said(&note)),
        "{:?}",
        begun.notes
    );
}
