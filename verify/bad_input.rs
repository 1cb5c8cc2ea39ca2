//! What users get wrong and what machines run out of: one sentence, the right exit code, and nothing left behind that a
//! later run stumbles over.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use keel::model::declare;
use keel::train::Recipe;
use tempfile::TempDir;

use crate::command::{Answer, command, keel, tiny_recipe};
use crate::data_pairs::images;

/// A folder with the tiny recipe's stage I in it.
pub fn place() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
    folder
}

/// Trains by one.toml with these further arguments; no evaluation.
pub fn train(folder: &Path, further: &[&str]) -> Answer {
    let mut args = vec!["train", "--recipe", "one.toml", "--no-evaluation"];
    args.extend(further);
    keel(folder, &args)
}

/// Names of everything in a folder and below.
pub fn everything_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(everything_in(&path));
        }
        found.push(path.display().to_string());
    }
    found.sort();
    found
}

/// A folder `pairs` of `count` images with captions, every one from `from` on broken.
pub fn pairs(folder: &Path, count: usize, from: usize) {
    let root = folder.join("pairs");
    fs::create_dir_all(&root).unwrap();
    let kinds = images();
    for index in 0..count {
        let (ending, bytes) = &kinds[index % kinds.len()];
        let end = if index < from {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        fs::write(root.join(format!("{index:03}.{ending}")), &bytes[..end]).unwrap();
        fs::write(
            root.join(format!("{index:03}.txt")),
            format!("image {index}"),
        )
        .unwrap();
    }
}

pub const DRAWS_PAIRS: [&str; 2] = ["--set", "stage.warm-up.data={ samples = 1.0 }"];

#[test]
fn settings_that_cannot_be_are_refused_before_anything_is_written() {
    let folder = place();
    fs::write(folder.path().join("file"), "x").unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    let before = everything_in(folder.path());
    let path = folder.path();
    let none = ["train", "--recipe", "none.toml"];
    keel(path, &none).refused(&["none.toml: cannot read the recipe: No such file"]);
    let directory = ["train", "--recipe", "empty"];
    keel(path, &directory).refused(&["empty: cannot read the recipe: Is a directory"]);
    keel(path, &["train", "--recipe", "emojy"]).refused(&["(did you mean emoji?)"]);
    train(path, &["--memory-budget", "1K"]).refused(&["--memory-budget: expected at least"]);
    train(path, &["--out", "file"])
        .refused(&["--out file: expected a new or empty folder, found a file"]);
    train(path, &["--resume", "empty"]).code_is(2);
    keel(path, &["eval", "one.toml"]).refused(&["one.toml: ", "damaged"]);
    for set in ["stage.warm-up.batch_size=0", "stage.warm-up.data.sceens=1"] {
        train(path, &["--set", set]).refused(&["stage warm-up: ", set]);
    }
    assert_eq!(everything_in(path), before);
}

#[test]
fn a_command_line_that_cannot_be_understood_is_a_usage_error() {
    let folder = place();
    let cases: [&[&str]; 13] = [
        &["frobnicate"],
        &["train", "--threads", "0"],
        &["train", "--threads", "99999"],
        &["train", "--device", "abacus"],
        &["train", "--memory-budget", "12Q"],
        &["train", "--memory-budget", "0"],
        &["train", "--threads", "two"],
        &["train", "--max-steps", "0"],
        &["train", "--seed", "18446744073709551615"],
        &["train", "--resume", "run", "--out", "other"],
        &["train", "--resume", "run", "--recipe", "tiny"],
        &["plan", "--batch", "0"],
        &["caption", "run"],
    ];
    for args in cases {
        keel(folder.path(), args).misunderstood(&[]);
    }
    assert_eq!(everything_in(folder.path()).len(), 1);
}

#[test]
fn pairs_that_cannot_be_used_are_refused_by_name() {
    let folder = place();
    let path = folder.path();
    fs::create_dir(path.join("empty")).unwrap();
    let with = |data: &str| {
        let mut further = vec!["--data", data];
        further.extend(DRAWS_PAIRS);
        train(path, &further)
    };
    with("none").refused(&["none: cannot open: No such file"]);
    with("none-{0..3}.tar").refused(&["none-0.tar: cannot open: No such file"]);
    with("empty").refused(&["empty: it holds no pairs; a pair is an image"]);
    with("one.toml").refused(&["one.toml: it is no kind of pairs"]);
    train(path, &DRAWS_PAIRS)
        .refused(&["stage warm-up: data.samples: expected your own pairs, given with --data"]);
    pairs(path, 4, 4);
    train(path, &["--data", "pairs"]).refused(&[
        "--data: expected a recipe with a stage that draws from samples",
        "--set stage.warm-up.data.samples=1",
    ]);
    assert!(!path.join("runs").exists());
}

#[test]
fn a_few_broken_images_are_passed_over_and_reported_at_the_end() {
    let folder = place();
    pairs(folder.path(), 40, 39);
    fs::write(folder.path().join("pairs/lonely.png"), &images()[0].1).unwrap();
    let mut further = vec!["--data", "pairs", "--out", "run"];
    further.extend(DRAWS_PAIRS);
    let answer = train(folder.path(), &further).fine();
    let opened = "data: 40 samples of pairs; left out 1 of 41 samples when the data were opened: 1 no caption (";
    assert!(answer.stdout.contains(opened), "{answer:#?}");
    let ended = "left out of the data: 1 of 41 samples when the data were opened";
    let log = fs::read_to_string(folder.path().join("run/log.txt")).unwrap();
    for text in [&answer.stdout, &log] {
        let line = text.lines().find(|line| line.starts_with(ended));
        let line = line.unwrap_or_else(|| panic!("no report in {text}"));
        // Six steps of eight samples draw each of the forty images once and eight twice.
        assert!(line.contains(" draws while training: "), "{line}");
        assert!(
            line.contains(" unusable image (") && line.contains("039."),
            "{line}"
        );
    }
}

#[test]
fn too_many_broken_images_end_the_run_in_a_sentence() {
    let folder = place();
    pairs(folder.path(), 40, 20);
    let mut further = vec!["--data", "pairs", "--out", "run"];
    further.extend(DRAWS_PAIRS);
    let refusal = [
        "samples could not be used, more than 5 %",
        "unusable image",
        "repair the data",
    ];
    train(folder.path(), &further).failed(&refusal);
    // Repaired, the same run goes on.
    pairs(folder.path(), 40, 40);
    let resume = [
        "train",
        "--resume",
        "run",
        "--data",
        "pairs",
        "--no-evaluation",
    ];
    keel(folder.path(), &resume).fine();
    assert!(
        folder
            .path()
            .join("run/checkpoints/1-warm-up.safetensors")
            .exists()
    );
}

#[test]
fn captions_too_long_for_the_recipe_count_as_unusable() {
    let folder = place();
    pairs(folder.path(), 40, 40);
    for index in 0..30 {
        let words = "a very long story about it ".repeat(40);
        fs::write(folder.path().join(format!("pairs/{index:03}.txt")), words).unwrap();
    }
    let mut further = vec!["--data", "pairs", "--out", "run"];
    further.extend(DRAWS_PAIRS);
    train(folder.path(), &further).failed(&["more than 5 %", "text too long", "token limits"]);
}

#[test]
fn a_folder_in_use_or_with_a_run_in_it_is_refused_and_left_alone() {
    let folder = place();
    let args = [
        "train",
        "--recipe",
        "one.toml",
        "--no-evaluation",
        "--out",
        "run",
        "--threads",
        "1",
        "--save-every",
        "1",
        "--set",
        "stage.warm-up.steps=100000",
    ];
    let mut first = command(folder.path(), &args)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = folder
        .path()
        .join("run/checkpoints/1-warm-up.step-1.safetensors");
    while !checkpoint.exists() {
        assert!(first.try_wait().unwrap().is_none(), "the first run ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let in_use = [
        "run folder run: expected a folder that no other process trains in",
        "found one that is in use",
    ];
    train(folder.path(), &["--out", "run"]).refused(&in_use);
    keel(
        folder.path(),
        &["train", "--resume", "run", "--no-evaluation"],
    )
    .refused(&in_use);
    assert!(first.try_wait().unwrap().is_none(), "the first run ended");
    first.kill().unwrap();
    first.wait().unwrap();
    train(folder.path(), &["--out", "run"])
        .refused(&["--out run: expected a folder without a run", "found a run"]);
    // A killed process holds no lock.
    let resume = [
        "train",
        "--resume",
        "run",
        "--no-evaluation",
        "--max-steps",
        "2",
    ];
    keel(folder.path(), &resume).fine();
}

#[test]
fn runs_without_a_folder_of_their_own_get_the_next_free_one() {
    let folder = place();
    for number in 1..=2 {
        let answer = train(folder.path(), &["--max-steps", "1"]).fine();
        assert!(
            answer
                .stdout
                .contains(&format!("run: runs/tiny-{number}\n")),
            "{answer:#?}"
        );
    }
}

#[test]
fn a_disk_that_fills_up_costs_only_the_checkpoint_that_did_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("two.toml"),
        tiny_recipe(&["warm-up", "fine-grained"]),
    )
    .unwrap();
    let recipe = Recipe::load("tiny", &[]).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    // Parameters fit, the moments of stage II do not.
    let blocks = (4 * layout.elements() + 48 * 1024) / 512;
    let program = env!("CARGO_BIN_EXE_keel");
    let settings = "--no-evaluation --threads 1 --save-every 1 --set stage.warm-up.steps=1 --set stage.fine-grained.steps=3";
    let begin = format!("{program} train --recipe two.toml --out run {settings}");
    let shell = |script: String| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(folder.path());
        Answer::of(shell.output().unwrap())
    };
    // The signal would end the process without a word: the program does not take it.
    shell(format!("ulimit -f {blocks}; exec {begin}")).fine();
    let log = fs::read_to_string(folder.path().join("run/log.txt")).unwrap();
    for step in [1, 2] {
        let said =
            format!("2-fine-grained.step-{step}.safetensors was not saved, and the run goes on");
        assert!(log.contains(&said), "{log}");
    }
    assert!(log.contains("cannot write: File too large"), "{log}");
    let checkpoints = folder.path().join("run/checkpoints");
    let whole = ["1-warm-up", "2-fine-grained"]
        .map(|label| format!("{}/{label}.safetensors", checkpoints.display()));
    assert_eq!(everything_in(&checkpoints), whole);

    // A file system of its own that is really full, where the system lets a user mount one.
    fs::create_dir(folder.path().join("disk")).unwrap();
    // Room for the drawn memory and the rows too.
    let kilobytes = blocks / 2 + 160;
    let mount = format!("mount -t tmpfs -o size={kilobytes}k none disk");
    let may_mount = Command::new("unshare")
        .args(["-rm", "sh", "-c", &mount])
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .status();
    if !may_mount.is_ok_and(|status| status.success()) {
        eprintln!(
            "this system lets nobody mount a file system: the limit on file sizes stood in for a full disk"
        );
        return;
    }
    let begin = begin.replace("--out run", "--out disk/run");
    let script = format!(
        "{mount} && {{ {begin} && exit 7 || test $? = 1; }} && ls disk/run/checkpoints \
         && mount -o remount,size=64m disk && exec {program} train --resume disk/run --no-evaluation"
    );
    let script = format!("unshare -rm sh -c '{script}'");
    let answer = shell(script).fine();
    assert!(
        answer
            .stderr
            .contains("cannot write: No space left on device"),
        "{answer:#?}"
    );
    assert!(!answer.stdout.contains(".part"), "{answer:#?}");
    assert!(
        answer.stdout.contains("continuing disk/run from"),
        "{answer:#?}"
    );
    assert!(
        answer.stdout.contains("everything is in disk/run"),
        "{answer:#?}"
    );
}

#[test]
fn a_line_cut_short_by_a_full_disk_is_gone_after_the_run_goes_on() {
    let folder = place();
    train(folder.path(), &["--out", "run", "--max-steps", "1"]).fine();
    let metrics = folder.path().join("run/metrics.jsonl");
    let mut text = fs::read_to_string(&metrics).unwrap();
    let whole = text.clone();
    text.push_str("{\"kind\":\"st");
    fs::write(&metrics, text).unwrap();
    keel(
        folder.path(),
        &["train", "--resume", "run", "--no-evaluation"],
    )
    .fine();
    let text = fs::read_to_string(&metrics).unwrap();
    let added = text.strip_prefix(&whole).expect("what was whole is there");
    assert!(
        added.starts_with("{\"kind\":\"run\"") && added.lines().count() == 1,
        "{added}"
    );
}

#[test]
fn output_that_nobody_reads_or_that_does_not_fit_is_no_accident() {
    let folder = place();
    let full = |args: &[&str]| {
        let sink = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = command(folder.path(), args);
        Answer::of(
            command
                .stdout(sink)
                .stderr(Stdio::piped())
                .output()
                .unwrap(),
        )
    };
    let said = ["standard output: cannot write: No space left on device"];
    full(&["plan", "--recipe", "tiny", "--stage", "warm-up"]).failed(&said);
    full(&["train", "--recipe", "one.toml", "--dry-run"]).failed(&said);
    let mut child = command(folder.path(), &["plan", "--recipe", "tiny"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let answer = Answer::of(child.wait_with_output().unwrap());
    assert_eq!(
        (answer.code, answer.stderr.as_str()),
        (Some(141), ""),
        "{answer:#?}"
    );
    // A run goes on: its log has every line.
    let args = [
        "train",
        "--recipe",
        "one.toml",
        "--no-evaluation",
        "--out",
        "run",
        "--max-steps",
        "1",
    ];
    let mut child = command(folder.path(), &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("run: ") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut reader, &mut line).unwrap() > 0);
    }
    drop(reader);
    Answer::of(child.wait_with_output().unwrap()).fine();
    let log = fs::read_to_string(folder.path().join("run/log.txt")).unwrap();
    assert!(log.contains("everything is in run"), "{log}");
}

#[test]
fn a_batch_that_no_memory_holds_is_refused() {
    let folder = place();
    let further = [
        "--set",
        "stage.warm-up.batch_size=26000000",
        "--set",
        "stage.warm-up.contrastive_weight=0",
    ];
    let answer = train(folder.path(), &further);
    answer.failed(&["bytes", "choose a smaller batch"]);
}

#[test]
fn a_memory_limit_is_refused_with_settings_that_fit() {
    let folder = place();
    let train_with = |further: &[&str]| train(folder.path(), further);
    let answer = train_with(&["--memory-limit", "4M", "--max-steps", "1"]).refused(&[
        "--memory-limit 4.0 MiB: expected ",
        "for stage ",
        "any of these fits: ",
    ]);
    assert!(!folder.path().join("runs").exists());
    let (_, offers) = answer.stderr.split_once("any of these fits: ").unwrap();
    let (offers, _) = offers.split_once(", found").unwrap();
    let offers: Vec<&str> = offers.split("; ").collect();
    assert_eq!(offers.len(), 3, "{offers:?}");
    // Every offer is true.
    for (index, offer) in offers.into_iter().enumerate() {
        let out = format!("fits-{index}");
        let mut args = vec!["--memory-limit", "4M", "--max-steps", "1", "--out", &out];
        args.extend(offer.split(' '));
        train_with(&args).fine();
    }
    let hopeless = ["--memory-limit", "100K", "--max-steps", "1"];
    train_with(&hopeless).refused(&["what is fixed alone takes more"]);
    train_with(&[
        "--memory-limit",
        "64M",
        "--max-steps",
        "1",
        "--out",
        "enough",
    ])
    .fine();
}
