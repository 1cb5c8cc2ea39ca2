//! SIGKILL of the program itself, at moments drawn by a seed: whatever carries a checkpoint's name is whole, and
//! every run that comes to its end has the bits of one that was never killed.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use keel::model::declare;
use keel::train::{Recipe, load};

use crate::command::{checkpoint, checkpoints, command, keel, tensors, tiny_recipe};
use crate::harness::Random;

/// A process lives at most this long, milliseconds: starting takes a part of it, both stages about twice as much.
const LONGEST_LIFE: f64 = 800.0;

/// Asserts that every checkpoint of a run loads, its checksum included.
fn all_load(run: &Path) {
    let path = run.join("recipe.toml");
    if !path.exists() {
        return;
    }
    let recipe = Recipe::load(path.to_str().unwrap(), &[]).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    for name in checkpoints(run) {
        let Some(label) = name.strip_suffix(".safetensors") else {
            assert!(name.ends_with(".part"), "{name}");
            continue;
        };
        load(&checkpoint(run, label), &layout, None, &mut |_, _| Ok(()))
            .unwrap_or_else(|problem| panic!("{problem}"));
    }
}

#[test]
fn kills_at_random_moments_cost_no_bit_and_no_checkpoint() {
    // A few in every run of the tests; .ci/run asks for a hundred.
    let wanted_kills = match std::env::var("KEEL_KILLS") {
        Ok(number) => number.parse().expect("KEEL_KILLS is a number"),
        Err(_) => 8,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(
        path.join("two.toml"),
        tiny_recipe(&["warm-up", "fine-grained"]),
    )
    .unwrap();
    let settings = "--no-evaluation --device cpu --threads 1 --save-every 2 --keep 2";
    let new = |out: &str| {
        let steps = "--set stage.warm-up.steps=30 --set stage.fine-grained.steps=30";
        format!("train --recipe two.toml --out {out} {steps} {settings}")
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let run = |line: &str| {
        let words = words(line);
        keel(path, &words.iter().map(String::as_str).collect::<Vec<_>>()).fine()
    };
    run(&new("whole"));
    let labels = ["1-warm-up", "2-fine-grained"];
    let wanted = labels.map(|label| tensors(&checkpoint(&path.join("whole"), label)));

    let mut random = Random::new(20_261_125);
    let (mut kills, mut ends, mut number) = (0, 0, 0);
    // The last run is left alone and comes to its end.
    while kills < wanted_kills || ends == 0 {
        let out = format!("run-{number}");
        let line = if path.join(&out).join("recipe.toml").exists() {
            format!("train --resume {out} {settings}")
        } else {
            new(&out)
        };
        let words = words(&line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut child = command(path, &words).stdout(Stdio::null()).spawn().unwrap();
        let is_left_alone = kills >= wanted_kills;
        let life = if is_left_alone {
            60_000.0
        } else {
            LONGEST_LIFE * random.uniform()
        };
        let end = std::time::Instant::now() + Duration::from_secs_f64(life / 1e3);
        let mut has_ended = false;
        while !has_ended && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            has_ended = child.try_wait().unwrap().is_some();
        }
        if !has_ended {
            child.kill().unwrap();
        }
        // A process that was killed has no code; one may have come to its end at the last moment.
        let status = child.wait().unwrap();
        all_load(&path.join(&out));
        match status.code() {
            None => kills += 1,
            Some(_) => {
                assert!(status.success(), "{status}");
                for (label, wanted) in labels.iter().zip(&wanted) {
                    let found = tensors(&checkpoint(&path.join(&out), label));
                    assert!(
                        found == *wanted,
                        "{out}, {label}: other bits after {kills} kills"
                    );
                }
                ends += 1;
                number += 1;
            }
        }
    }
    println!("{kills} kills; {ends} runs came to their end with the same bits");
}
