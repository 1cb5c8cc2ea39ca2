//! What a run tells: the same events feed the terminal, the run's own files and anyone else who listens, and the library
//! prints nothing.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use keel::error::{Error, Result};
use keel::executor::SelectedDevice;
use keel::train::{Event, Observer, Observers, Recipe, TrainOptions, Trainer};
use serde_json::Value;

use crate::command::{keel, tiny_recipe};

/// An event's kind and text.
type Heard = (&'static str, Option<String>);

/// Keeps every event; fails at those of one kind.
#[derive(Debug, Default)]
struct Recording {
    heard: Mutex<Vec<Heard>>,
    fails_at: Option<&'static str>,
}

impl Recording {
    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.heard().into_iter().map(|(kind, _)| kind).collect()
    }
}

fn kind(event: &Event<'_>) -> &'static str {
    match event {
        Event::RunBegins(_) => "run",
        Event::StageBegins(_) => "stage",
        Event::StepsBegin(_) => "steps begin",
        Event::StepDone(_) => "step done",
        Event::Metrics(_) => "step",
        Event::Progress(_) => "progress",
        Event::StepsEnd => "steps end",
        Event::Validated(_) => "validation",
        Event::Evaluated(_) => "evaluation",
        Event::UnitBegins(_) => "unit",
        Event::Note(_) => "note",
        Event::Warning(_) => "warning",
        Event::Interrupted(_) => "interrupted",
    }
}

impl Observer for Recording {
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        let kind = kind(event);
        self.heard.lock().unwrap().push((kind, event.text()));
        if self.fails_at == Some(kind) {
            return Err(Error::stopped("the tracker", "gone", "start it again"));
        }
        Ok(())
    }
}

/// A trainer of one stage in `folder`, heard by `observer`.
fn trainer(folder: &Path, observer: Arc<Recording>) -> Trainer {
    let path = folder.join("one.toml");
    fs::write(&path, tiny_recipe(&["warm-up"])).unwrap();
    let sets = ["stage.warm-up.steps=3".to_owned()];
    let recipe = Recipe::load(path.to_str().unwrap(), &sets).unwrap();
    let options = TrainOptions {
        out: Some(folder.join("run")),
        evaluate: true,
        evaluation_size: 4,
        observer,
        ..TrainOptions::new(SelectedDevice::processor(1))
    };
    Trainer::new(recipe, options, None).unwrap()
}

#[test]
fn a_runs_own_files_hold_what_every_observer_heard() {
    let folder = tempfile::tempdir().unwrap();
    let recording = Arc::new(Recording::default());
    let mut trainer = trainer(folder.path(), recording.clone());
    trainer.run().unwrap();
    trainer.note("that was all").unwrap();

    // Without rows that are due by the clock, whose number depends on the machine's speed.
    let mut kinds = recording.kinds();
    kinds.dedup();
    kinds.retain(|kind| !["step", "progress"].contains(kind));
    kinds.dedup();
    let wanted = [
        "run",
        "stage",
        "steps begin",
        "step done",
        "steps end",
        "evaluation",
        "note",
    ];
    assert_eq!(kinds, wanted);
    let count = |wanted| recording.kinds().iter().filter(|k| **k == wanted).count();
    assert_eq!(count("step done"), 3);
    assert!(count("step") >= 2 && count("progress") >= 2);

    let run = folder.path().join("run");
    let said: String = recording
        .heard()
        .into_iter()
        .filter_map(|(_, text)| Some(text? + "\n"))
        .collect();
    assert_eq!(fs::read_to_string(run.join("log.txt")).unwrap(), said);
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let rows: Vec<&str> = rows.iter().filter_map(|row| row["kind"].as_str()).collect();
    let mut told = recording.kinds();
    told.retain(|kind| ["run", "stage", "step", "evaluation", "warning"].contains(kind));
    assert_eq!(rows, told);
}

#[test]
fn the_terminal_says_what_the_log_says() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let args = "train --recipe one.toml --out run --max-steps 2 --evaluation-images 4";
    let args: Vec<&str> = args.split(' ').collect();
    let answer = keel(folder.path(), &args).fine();
    let log = fs::read_to_string(folder.path().join("run/log.txt")).unwrap();
    assert!(answer.stdout.ends_with(&log), "{answer:#?}\n{log}");
    let before: Vec<&str> = answer.stdout[..answer.stdout.len() - log.len()]
        .lines()
        .filter_map(|line| line.split_once(':').map(|(what, _)| what))
        .collect();
    assert_eq!(before, ["device", "recipe", "run"]);
    assert!(answer.stderr.is_empty(), "{answer:#?}");
}

#[test]
fn an_observer_that_fails_ends_the_run_after_the_others_have_heard() {
    let folder = tempfile::tempdir().unwrap();
    let recording = Arc::new(Recording {
        fails_at: Some("stage"),
        ..Recording::default()
    });
    let problem = trainer(folder.path(), recording.clone()).run().unwrap_err();
    assert!(problem.to_string().contains("the tracker"), "{problem}");
    assert_eq!(recording.kinds(), ["run", "stage"]);
    let log = fs::read_to_string(folder.path().join("run/log.txt")).unwrap();
    assert!(log.contains("stage warm-up: trains"), "{log}");
}

#[test]
fn of_several_ranks_the_first_tells_everything_and_the_others_their_warnings() {
    for (rank, wanted) in [
        (0, &["note", "warning", "step done"][..]),
        (1, &["warning"]),
    ] {
        let recording = Arc::new(Recording::default());
        let observers = Observers::new(rank, vec![recording.clone()]);
        for event in [
            Event::Note("all is well"),
            Event::Warning("a sample was left out"),
            Event::StepDone(1),
        ] {
            observers.observe(&event).unwrap();
        }
        assert_eq!(recording.kinds(), wanted, "rank {rank}");
    }
}

/// Every Rust file of a folder and of those below it.
fn sources(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            into.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn nothing_below_the_command_line_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    // Examples are programs of their own.
    let above = |path: &str| {
        path.contains("/cli/") || path.contains("/examples/") || path.ends_with("/main.rs")
    };
    assert!(files.iter().any(|(path, _)| above(path)) && files.len() > 100);
    for (path, text) in files.iter().filter(|(path, _)| !above(path)) {
        for way in [
            "println!",
            "print!(",
            "dbg!(",
            "stdout()",
            "stderr()",
            "indicatif",
        ] {
            // What ends a process for another rank's sake has nothing above it left to print by.
            let may = way == "stderr()" && path.ends_with("src/ranks/control/mod.rs");
            assert!(may || !text.contains(way), "{path} has {way}");
        }
    }
}
