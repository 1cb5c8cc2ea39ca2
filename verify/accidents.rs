//! Accidents, and folders that a stranger prepared: what is not Keel's is neither written nor removed, what is asked for beyond
//! reason is refused before it costs anything, and what changed is named before it changes a result.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel::data::pairs::{PairLimits, PairSource, Pairs};
use keel::executor::{CpuExecutor, Executor};
use keel::model::declare;
use keel::program::escape;
use keel::train::{Recipe, load, save};
use tempfile::TempDir;

use crate::bad_input::{DRAWS_PAIRS, everything_in, pairs, place, train};
use crate::command::{Answer, checkpoint, checkpoints, command, keel, tiny_recipe};
use crate::data_webdataset::{END, file};

/// A run of two steps of the warm-up, with a checkpoint between them and none after.
fn stopped_run() -> TempDir {
    let folder = place();
    let more = "--out run --threads 1 --max-steps 2 --save-every 1";
    train(folder.path(), &more.split(' ').collect::<Vec<_>>()).fine();
    fs::remove_file(checkpoint(&folder.path().join("run"), "1-warm-up")).unwrap();
    folder
}

/// Goes on with the run of [`stopped_run`].
fn resume(folder: &Path, more: &[&str]) -> Answer {
    let args = "train --resume run --no-evaluation --threads 1 --max-steps 2";
    let args: Vec<&str> = args.split(' ').chain(more.iter().copied()).collect();
    keel(folder, &args)
}

const PRECIOUS: &str = "nobody's to change\n";

#[test]
fn links_in_a_strangers_run_folder_are_refused_by_name_and_what_they_point_to_stays() {
    for (name, is_folder) in [
        ("report.html.part", false),
        ("lock", false),
        ("log.txt", false),
        ("metrics.jsonl", false),
        ("checkpoints", true),
        ("memory", true),
    ] {
        for is_hard in [false, true] {
            let folder = stopped_run();
            let path = folder.path();
            let outside = path.join("outside");
            let inside = path.join("run").join(name);
            if is_folder {
                if is_hard {
                    continue;
                }
                // As full as what it takes the place of: only the link itself is wrong.
                fs::rename(&inside, &outside).unwrap();
                symlink("../outside", &inside).unwrap();
            } else {
                fs::write(&outside, PRECIOUS).unwrap();
                let _ = fs::remove_file(&inside);
                if is_hard {
                    fs::hard_link(&outside, &inside).unwrap();
                } else {
                    symlink("../outside", &inside).unwrap();
                }
            }
            let before = is_folder.then(|| everything_in(&outside));
            let answer = match name {
                "report.html.part" => keel(path, &["report", "run"]),
                _ => resume(path, &[]),
            };
            assert_ne!(answer.code, Some(0), "{name}: {answer:#?}");
            let sign = if is_hard {
                "another name elsewhere"
            } else {
                "it is a link"
            };
            let named = format!("run/{name}: cannot ");
            assert!(
                answer.stderr.contains(&named) && answer.stderr.contains(sign),
                "{answer:#?}"
            );
            assert!(inside.symlink_metadata().is_ok(), "{name} was removed");
            match before {
                Some(before) => assert_eq!(everything_in(&outside), before, "{name}"),
                None => assert_eq!(fs::read_to_string(&outside).unwrap(), PRECIOUS, "{name}"),
            }
        }
    }
    // What is measured of a stranger's run, too.
    let folder = stopped_run();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink("../outside", folder.path().join("run/evaluations")).unwrap();
    let args = ["eval", "run", "--metrics", "space", "--images", "4"];
    keel(folder.path(), &args).refused(&["run/evaluations: cannot write in the folder", "link"]);
    assert!(everything_in(&outside).is_empty());
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
    for name in ["log.txt", "checkpoints/1-warm-up.safetensors"] {
        let folder = stopped_run();
        let path = folder.path().join("run").join(name);
        let _ = fs::remove_file(&path);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let answer = resume(folder.path(), &[]);
        if name == "log.txt" {
            answer.refused(&["run/log.txt: cannot open: it is no regular file"]);
        } else {
            // As a damaged one is: the one before it is whole.
            let answer = answer.fine();
            assert!(answer.stdout.contains("passed over: "), "{answer:#?}");
        }
    }
    let folder = stopped_run();
    let metrics = folder.path().join("run/metrics.jsonl");
    fs::remove_file(&metrics).unwrap();
    Command::new("mkfifo").arg(&metrics).status().unwrap();
    keel(folder.path(), &["report", "run"]).refused(&["metrics.jsonl: cannot read"]);
}

#[test]
fn only_half_written_checkpoints_are_removed_from_a_run() {
    let folder = stopped_run();
    let part = |name: &str| folder.path().join("run/checkpoints").join(name);
    let own = part("1-warm-up.step-2.safetensors.part");
    let others = ["notes.part", "weights.safetensors.part"].map(part);
    for path in others.iter().chain([&own]) {
        fs::write(path, "x").unwrap();
    }
    resume(folder.path(), &[]).fine();
    assert!(!own.exists());
    assert!(others.iter().all(|path| path.exists()));
}

#[test]
fn an_export_leaves_alone_what_it_did_not_make() {
    let folder = stopped_run();
    let path = folder.path();
    let export = || keel(path, &["export", "run", "--out", "tower"]);
    let part = path.join("tower.part");
    fs::create_dir(&part).unwrap();
    fs::write(part.join("thesis.txt"), PRECIOUS).unwrap();
    export().refused(&["tower.part free", "something there that Keel did not make"]);
    assert_eq!(
        fs::read_to_string(part.join("thesis.txt")).unwrap(),
        PRECIOUS
    );
    // Nor is a folder within what it did make, or a link in its place.
    fs::write(part.join(".keel-export"), "").unwrap();
    fs::create_dir(part.join("mine")).unwrap();
    export().refused(&["tower.part", "mine in it is not of an export"]);
    assert!(part.join("mine").exists() && part.join("thesis.txt").exists());
    fs::rename(&part, path.join("elsewhere")).unwrap();
    symlink("elsewhere", &part).unwrap();
    export().refused(&["something there that Keel did not make"]);
    assert!(path.join("elsewhere/thesis.txt").exists());
    // What an export left that was killed is no obstacle.
    fs::remove_file(&part).unwrap();
    fs::create_dir(&part).unwrap();
    for name in [".keel-export", "config.json"] {
        fs::write(part.join(name), "{").unwrap();
    }
    export().fine();
    assert!(!part.exists());
    let names = everything_in(&path.join("tower"));
    assert!(names.iter().all(|name| !name.contains(".keel-export")));
    assert!(path.join("tower/config.json").exists());
}

#[test]
fn a_machine_without_memory_ends_the_program_in_a_sentence() {
    let folder = place();
    let program = env!("CARGO_BIN_EXE_keel");
    let mut ended = 0;
    for kilobytes in (90_000..=330_000).step_by(20_000) {
        let run = format!("run-{kilobytes}");
        let script = format!(
            "ulimit -v {kilobytes}; {program} --version > version 2>&1 || exit 127; \
             exec {program} train --recipe one.toml --no-evaluation --threads 2 --max-steps 1 --out {run}"
        );
        let start = Instant::now();
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(folder.path());
        let output = shell.output().unwrap();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(60), "{kilobytes}: it hung");
        match output.status.code() {
            // The system's own loader finds no room for the program, which is larger with images of the kernels in it.
            Some(0 | 127) => {}
            Some(1) => {
                ended += 1;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let is_sentence = said.starts_with("error: ") && said.lines().count() == 1;
                assert!(is_sentence, "{kilobytes}: {said}");
            }
            other => panic!("{kilobytes}: {other:?}, {output:#?}"),
        }
    }
    assert!(ended > 0, "no limit was low enough");
}

#[test]
fn numbers_beyond_reason_are_refused_before_memory_is_taken() {
    let folder = place();
    let most = u64::MAX.to_string();
    for option in [
        "--evaluation-images",
        "--max-steps",
        "--save-every",
        "--keep",
        "--keep-every",
        "--recheck-every",
        "--spike-threshold",
    ] {
        train(folder.path(), &[option, &most]).misunderstood(&[option, "expected a", " to "]);
    }
    for option in ["--image-cache", "--memory-limit", "--memory-budget"] {
        let size = format!("{most}G");
        train(folder.path(), &[option, &size]).misunderstood(&[option, "at most"]);
    }
    keel(folder.path(), &["eval", "run", "--images", &most]).misunderstood(&["--images"]);
    keel(folder.path(), &["plan", "--batch", &most]).misunderstood(&["--batch"]);
    keel(folder.path(), &["profile", "--steps", &most]).misunderstood(&["--steps"]);
    let start = Instant::now();
    for (set, said) in [
        ("model.vision.depth=1000000", "at most 1024"),
        ("model.language.depth=1000000", "at most 1024"),
        ("stage.warm-up.batch_size=4611686018427387904", "at most"),
        ("stage.warm-up.steps=4611686018427387904", "at most"),
    ] {
        let args = ["plan", "--recipe", "one.toml", "--set", set];
        keel(folder.path(), &args).refused(&[said]);
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// The arguments of a run on `pairs`.
fn on_pairs<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--data", "pairs"], more].concat()
}

#[test]
fn data_that_changed_since_the_checkpoint_are_named_and_refused_unless_asked_for() {
    let folder = place();
    let path = folder.path();
    pairs(path, 40, 40);
    let begin = "--out run --threads 1 --max-steps 2 --save-every 1";
    let begin = begin.split(' ').chain(DRAWS_PAIRS).collect::<Vec<_>>();
    train(path, &on_pairs(&begin)).fine();
    fs::remove_file(checkpoint(&path.join("run"), "1-warm-up")).unwrap();
    let caption = path.join("pairs/007.txt");
    let refused = |args: &[&str], parts: &[&str]| {
        let before = checkpoints(&path.join("run"));
        let answer = resume(path, args).refused(parts);
        let parts = ["--resume: expected the data and stages", "--accept-changes"];
        assert!(parts.iter().all(|part| answer.stderr.contains(part)));
        assert_eq!(checkpoints(&path.join("run")), before);
    };
    // Another caption under the same name; a sample less; another weight; one batch over and over.
    fs::write(&caption, "image 8").unwrap();
    let named = "the data pairs were 40 samples, content ";
    refused(&on_pairs(&[]), &[named, "are 40 samples, content "]);
    fs::write(&caption, "image 7").unwrap();
    fs::rename(&caption, path.join("007.txt")).unwrap();
    refused(&on_pairs(&[]), &[named, "are 39 samples"]);
    fs::rename(path.join("007.txt"), &caption).unwrap();
    refused(&["--data", "pairs=2"], &[named, "40 samples, 80 an epoch"]);
    refused(
        &on_pairs(&["--overfit-one-batch"]),
        &["--overfit-one-batch was left out, is given"],
    );
    // The same data elsewhere are the same.
    fs::rename(path.join("pairs"), path.join("moved")).unwrap();
    let moved = ["--data", "moved"];
    let answer = resume(path, &moved).fine();
    assert!(!answer.stdout.contains("changed since"), "{answer:#?}");
    // Asked for, the change is said.
    fs::remove_file(checkpoint(&path.join("run"), "1-warm-up")).unwrap();
    fs::write(path.join("moved/007.txt"), "image 8").unwrap();
    let answer = resume(path, &[&moved[..], &["--accept-changes"]].concat()).fine();
    let said = "changed since that checkpoint: the data moved were 40 samples";
    assert!(answer.stdout.contains(said), "{answer:#?}");
}

#[test]
fn images_that_changed_under_the_same_name_and_size_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    pairs(path, 40, 40);
    let image = fs::read(path.join("pairs/006.png")).unwrap();
    let member = |name: &str, bytes: &[u8]| file(name, bytes);
    let shard = |image: &[u8]| {
        [
            member("a.png", image),
            member("a.txt", b"one"),
            END.to_vec(),
        ]
        .concat()
    };
    fs::write(
        path.join("list.jsonl"),
        r#"{"image": "pairs/006.png", "caption": "six"}"#,
    )
    .unwrap();
    fs::write(path.join("one.tar"), shard(&image)).unwrap();
    let told = |name: &str| {
        let data = path.join(name);
        let pairs = Pairs::open(data.to_str().unwrap(), PairLimits::default()).unwrap();
        pairs.digests().unwrap()
    };
    let of_all = || ["pairs", "list.jsonl", "one.tar"].map(told);
    let before = of_all();
    assert_eq!(of_all(), before);
    // One byte of the pixels, of which the file keeps no other count.
    let mut other = image.clone();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    fs::write(path.join("pairs/006.png"), &other).unwrap();
    fs::write(path.join("one.tar"), shard(&other)).unwrap();
    for (was, is) in before.iter().zip(&of_all()) {
        assert_eq!((&was[0].name, was[0].samples), (&is[0].name, is[0].samples));
        assert_ne!(was[0].digest, is[0].digest, "{}", was[0].name);
    }
    fs::write(path.join("pairs/006.png"), &image).unwrap();
    fs::write(path.join("one.tar"), shard(&image)).unwrap();
    assert_eq!(of_all(), before);
}

#[test]
fn stages_in_another_order_than_the_checkpoints_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let recipe = tiny_recipe(&["warm-up", "fine-grained"]);
    fs::write(path.join("one.toml"), recipe).unwrap();
    let more = "--out run --threads 1 --max-steps 1";
    train(path, &more.split(' ').collect::<Vec<_>>()).fine();
    let toml = path.join("run/recipe.toml");
    let text = fs::read_to_string(&toml).unwrap();
    let parts: Vec<&str> = text.split("[[stage]]").collect();
    let swapped = format!("{}[[stage]]{}\n[[stage]]{}", parts[0], parts[2], parts[1]);
    fs::write(&toml, swapped).unwrap();
    let order = "were warm-up, fine-grained, are fine-grained, warm-up";
    resume(path, &[]).refused(&["--resume", order]);
    let answer = resume(path, &["--accept-changes"]).fine();
    let said = "changed since that checkpoint: the order of the stages was warm-up, fine-grained";
    assert!(answer.stdout.contains(said), "{answer:#?}");
}

#[test]
fn another_instruction_path_is_named_at_resume_and_stands_in_the_report() {
    let folder = stopped_run();
    let run = folder.path().join("run");
    let recipe = Recipe::load(run.join("recipe.toml").to_str().unwrap(), &[]).unwrap();
    let layout = Arc::new(declare(&recipe.model, recipe.contrastive_loss).unwrap());
    let executor = CpuExecutor::new(layout.elements(), 1).unwrap();
    let path = checkpoint(&run, "1-warm-up.step-1");
    let sink = &mut |offset, values: &[f32]| executor.write_parameters(offset, values);
    let mut position = load(&path, &layout, None, sink).unwrap().position;
    let here = position.inputs.instructions.clone();
    assert!(["avx512", "avx2", "portable"].contains(&here.as_str()));
    // Before the first step of the stage, where nothing of the optimiser is needed.
    position.step = 0;
    position.inputs.instructions = "another".into();
    save(&path, &position, &layout, &executor, None).unwrap();
    let answer = resume(folder.path(), &[]).fine();
    let said = format!("the instruction path was another, is {here}: other bits from here on");
    assert!(answer.stdout.contains(&said), "{answer:#?}");
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains(&format!(", {here}, by Keel")), "{here}");
}

#[test]
fn a_folder_whose_name_is_not_utf_8_is_as_good_as_any() {
    let folder = place();
    let run = folder.path().join(OsStr::from_bytes(b"run-\xff"));
    let start = |words: &str, run_as: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let mut keel = command(folder.path(), &words);
        if !run_as.is_empty() {
            keel.arg(run_as);
        }
        let output = keel.arg(&run).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {stderr}");
    };
    let quiet = "train --no-evaluation --threads 1 --max-steps 2";
    start(
        &format!("{quiet} --recipe one.toml --save-every 1"),
        "--out",
    );
    fs::remove_file(checkpoint(&run, "1-warm-up")).unwrap();
    start(quiet, "--resume");
    start("report", "");
    assert!(run.join("report.html").exists());
}

#[test]
fn marks_that_turn_the_direction_of_text_are_written_out_in_reports() {
    let turned = "safe\u{202e}gnp.exe\u{2066}\u{200f}";
    assert_eq!(escape(turned), "safe[U+202E]gnp.exe[U+2066][U+200F]");
    assert_eq!(escape("שלום <b>"), "שלום &lt;b&gt;");
}

/// Every `stage/loss` of a run's event files: its step, in the order of the files.
fn steps_in_event_files(run: &Path) -> Vec<u64> {
    let mut paths: Vec<_> = fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("tfevents"))
        .collect();
    paths.sort();
    let mut steps = Vec::new();
    for path in paths {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        while let Some((length, _)) = rest.split_first_chunk::<8>() {
            let length = u64::from_le_bytes(*length) as usize;
            let event = &rest[12..12 + length];
            // The time comes first, in nine bytes; then the step, which is small here.
            if event.windows(12).any(|part| part == b"warm-up/loss") {
                assert_eq!(event[9], 2 << 3);
                steps.push(u64::from(event[10]));
            }
            rest = &rest[length + 16..];
        }
    }
    steps
}

#[test]
fn event_files_have_no_step_twice_after_a_resume() {
    let folder = stopped_run();
    let run = folder.path().join("run");
    assert_eq!(steps_in_event_files(&run), [1, 2]);
    resume(folder.path(), &[]).fine();
    assert_eq!(steps_in_event_files(&run), [1, 2]);
}

#[test]
fn a_sample_that_is_too_long_is_counted_once_however_often_its_batch_is_trained_on() {
    let folder = place();
    let path = folder.path();
    pairs(path, 40, 40);
    let words = "a very long story about it ".repeat(40);
    for index in 0..4 {
        fs::write(path.join(format!("pairs/{index:03}.txt")), &words).unwrap();
    }
    let mut skipped = Vec::new();
    for (run, steps) in [("one", "1"), ("many", "40")] {
        let steps = format!("stage.warm-up.steps={steps}");
        let more = [
            "--out",
            run,
            "--threads",
            "1",
            "--overfit-one-batch",
            "--set",
            &steps,
        ];
        let args = [&more[..], &DRAWS_PAIRS].concat();
        let answer = train(path, &on_pairs(&args)).fine();
        let left_out = answer
            .stdout
            .lines()
            .find(|line| line.contains("draws while training"));
        skipped.push(left_out.map(str::to_owned));
    }
    assert_eq!(skipped[0], skipped[1]);
}
