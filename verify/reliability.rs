//! What a long run survives: signals, rotation of checkpoints, losses that break away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel::executor::CpuExecutor;
use keel::model::declare;
use keel::train::{Guard, LocalDisk, Position, Recipe, RunFolder, read_position, save};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::command::{Answer, checkpoint, checkpoints, command, keel, tiny_recipe};

/// A run of the tiny recipe's warm-up that is under way; killed when a test gives up on it.
struct Running {
    child: Option<Child>,
    folder: TempDir,
}

impl Running {
    /// Starts `keel train` with `settings` added, and waits until its log has `sign`.
    fn until(sign: &str, settings: &[&str]) -> Running {
        Running::started_by(command, sign, settings)
    }

    /// As [`Running::until`], with another way to start the program in a folder.
    fn started_by(
        start: impl Fn(&Path, &[&str]) -> Command,
        sign: &str,
        settings: &[&str],
    ) -> Running {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
        let mut args = vec!["train", "--recipe", "one.toml", "--out", "run"];
        args.extend(["--no-evaluation", "--threads", "1"]);
        args.extend(settings);
        let child = start(folder.path(), &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Running {
            child: Some(child),
            folder,
        };
        running.wait_for(sign);
        running
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn wait_for(&mut self, sign: &str) {
        let log = self.run().join("log.txt");
        let start = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|text| text.contains(sign)) {
            let child = self.child.as_mut().expect("it runs until it is ended");
            if child.try_wait().unwrap().is_some() {
                panic!("it ended before {sign:?}: {:#?}", self.ended());
            }
            assert!(start.elapsed() < Duration::from_secs(60), "never {sign:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs until it is ended");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    fn ended(&mut self) -> Answer {
        let child = self.child.take().expect("it is ended once");
        Answer::of(child.wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const STEPS: [&str; 2] = ["--set", "stage.warm-up.steps=200"];

fn last(run: &Path) -> Vec<u8> {
    fs::read(checkpoint(run, "1-warm-up")).unwrap()
}

/// Whether this process was started with HUP ignored, which children inherit.
fn hangups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn signals_that_end_a_run_save_at_the_next_step_and_it_goes_on_to_the_same_bits() {
    let mut whole = Running::until("1/200", &STEPS);
    whole.ended().fine();
    for (signal, code, name) in [
        (Signal::TERM, 143, "TERM"),
        (Signal::INT, 130, "INT"),
        (Signal::HUP, 129, "HUP"),
    ] {
        // Under nohup a run ignores HUP, and so would those started here.
        if name == "HUP" && hangups_are_ignored() {
            eprintln!("HUP: not tried, it is ignored here");
            continue;
        }
        let mut running = Running::until("1/200", &STEPS);
        running.signal(signal);
        let answer = running.ended().code_is(code);
        let wanted = format!("ended by {name} at stage warm-up, step ");
        assert!(answer.stderr.starts_with(&wanted), "{answer:#?}");
        assert_eq!(answer.stderr.lines().count(), 1, "{answer:#?}");
        let saved = checkpoints(&running.run());
        assert_eq!(saved.len(), 1, "{saved:?}");
        let step = answer.stderr[wanted.len()..].split(',').next().unwrap();
        assert_eq!(saved[0], format!("1-warm-up.step-{step}.safetensors"));
        let resume = ["train", "--resume", "run", "--no-evaluation"];
        keel(running.folder.path(), &resume).fine();
        assert!(last(&running.run()) == last(&whole.run()), "after {name}");
    }
}

#[test]
fn a_second_signal_ends_a_run_at_once_without_a_checkpoint() {
    // Steps long enough that the second signal comes within one.
    let long = ["--set", "stage.warm-up.batch_size=1024"];
    let mut running = Running::until("stage warm-up: trains", &long);
    running.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(50));
    running.signal(Signal::INT);
    let answer = running.ended().code_is(130);
    assert_eq!(answer.stderr, "");
    assert_eq!(checkpoints(&running.run()), [""; 0]);
}

#[test]
fn a_run_under_nohup_does_not_hear_the_terminal_close() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let program = env!("CARGO_BIN_EXE_keel");
    let script = format!(
        "trap '' HUP; {program} train --recipe one.toml --out run --no-evaluation --threads 1 {} & \
         while ! test -e run/recipe.toml; do sleep 0.01; done; kill -HUP $!; wait $!",
        STEPS.join(" ")
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).current_dir(folder.path());
    Answer::of(shell.output().unwrap()).fine();
    assert!(checkpoint(&folder.path().join("run"), "1-warm-up").exists());
}

#[test]
fn a_run_whose_folder_is_removed_ends_at_the_next_save() {
    let settings = ["--save-every", "2", "--set", "stage.warm-up.steps=1000000"];
    let mut running = Running::until("1/1000000", &settings);
    fs::rename(running.run(), running.folder.path().join("moved")).unwrap();
    fs::remove_dir_all(running.folder.path().join("moved")).unwrap();
    let answer = running.ended().code_is(1);
    let parts = ["run run: its folder is gone", "--resume"];
    assert!(
        parts.iter().all(|part| answer.stderr.contains(part)),
        "{answer:#?}"
    );
}

/// The program as somebody whom the permissions of a folder bind, where root starts it too; nothing where that cannot be had.
fn bound_by_permissions() -> Option<fn(&Path, &[&str]) -> Command> {
    fn without_privileges(folder: &Path, args: &[&str]) -> Command {
        let plain = command(folder, args);
        let mut bound = Command::new("setpriv");
        bound
            .arg("--bounding-set=-dac_override,-dac_read_search")
            .arg(plain.get_program())
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .env_remove("RUST_BACKTRACE");
        bound
    }
    if !rustix::process::geteuid().is_root() {
        return Some(command);
    }
    let tried = without_privileges(Path::new("."), &["--version"]).output();
    tried
        .is_ok_and(|output| output.status.success())
        .then_some(without_privileges)
}

#[test]
fn a_run_whose_folder_becomes_read_only_ends_at_the_next_save() {
    let Some(start) = bound_by_permissions() else {
        eprintln!("nothing binds root here: the test is for other users");
        return;
    };
    let settings = ["--save-every", "2", "--set", "stage.warm-up.steps=1000000"];
    let mut running = Running::started_by(start, "1/1000000", &settings);
    let run = running.run();
    let allow = |mode: u32| {
        for folder in [run.join("checkpoints"), run.clone()] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o555);
    let answer = running.ended();
    allow(0o755);
    let parts = [
        "run run: its folder is gone or can no longer be written",
        "Permission denied",
        "--resume",
    ];
    let answer = answer.code_is(1);
    assert!(
        parts.iter().all(|part| answer.stderr.contains(part)),
        "{answer:#?}"
    );
    // What had been saved is there.
    for name in checkpoints(&run)
        .iter()
        .filter(|name| name.ends_with(".safetensors"))
    {
        read_position(&run.join("checkpoints").join(name)).unwrap();
    }
}

#[test]
fn usr1_saves_and_the_run_goes_on() {
    let mut running = Running::until("1/200", &STEPS);
    running.signal(Signal::USR1);
    running.wait_for("saved as asked: run/checkpoints/1-warm-up.step-");
    running.ended().fine();
    let saved = checkpoints(&running.run());
    assert_eq!(saved.len(), 2, "{saved:?}");
    assert!(
        saved.contains(&"1-warm-up.safetensors".to_owned()),
        "{saved:?}"
    );
}

#[test]
fn the_newest_checkpoints_of_a_stage_are_kept_and_the_one_after_each_stage() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(&["warm-up", "fine-grained"]);
    fs::write(folder.path().join("two.toml"), recipe).unwrap();
    let args = "train --recipe two.toml --out run --no-evaluation --threads 1 --set stage.warm-up.steps=12 --set stage.fine-grained.steps=12 --save-every 1 --keep 2";
    let args: Vec<&str> = args.split(' ').collect();
    keel(folder.path(), &args).fine();
    // In order of the alphabet; steps are compared as numbers, or step 9 would outlive step 11.
    let wanted = [
        "1-warm-up.safetensors",
        "1-warm-up.step-10.safetensors",
        "1-warm-up.step-11.safetensors",
        "2-fine-grained.safetensors",
        "2-fine-grained.step-10.safetensors",
        "2-fine-grained.step-11.safetensors",
    ];
    assert_eq!(checkpoints(&folder.path().join("run")), wanted);
}

#[test]
fn the_best_checkpoint_of_a_stage_and_its_milestones_outlive_newer_ones() {
    let folder = short_run();
    let run = folder.path().join("run");
    let recipe = Recipe::load(run.join("recipe.toml").to_str().unwrap(), &[]).unwrap();
    let layout = Arc::new(declare(&recipe.model, recipe.contrastive_loss).unwrap());
    let executor = CpuExecutor::new(layout.elements(), 1).unwrap();
    let first = read_position(&checkpoint(&run, "1-warm-up.step-1")).unwrap();
    let runs = RunFolder::resume(Arc::new(LocalDisk), &run).unwrap();
    // Losses fall to the 30th step and rise after it; before the 24th too few are known.
    let mut guard = Guard::default();
    for step in 1..=60u64 {
        guard.judge(3.0 + (step as f64 - 30.0).abs(), 1.0, 0.0);
        if step % 5 == 0 {
            let position = Position {
                step,
                guard: guard.clone(),
                ..first.clone()
            };
            let path = runs.checkpoint(&format!("1-warm-up.step-{step}"));
            save(&path, &position, &layout, &executor, None).unwrap();
            runs.rotate(1, 2, 25).unwrap();
        }
    }
    let left = checkpoints(&run).into_iter();
    let left: Vec<String> = left.filter(|name| name.contains(".step-")).collect();
    let mut steps: Vec<u64> = left
        .iter()
        .map(|name| {
            read_position(&run.join("checkpoints").join(name))
                .unwrap()
                .step
        })
        .collect();
    steps.sort_unstable();
    // Of all medians the 40th step's is the lowest: it looks back on the fall and a third of the rise.
    assert_eq!(steps, [25, 40, 50, 55, 60]);
}

#[test]
fn settings_that_changed_since_the_checkpoint_are_listed() {
    let folder = short_run();
    fs::remove_file(checkpoint(&folder.path().join("run"), "1-warm-up")).unwrap();
    let mut args = vec!["train", "--resume", "run", "--no-evaluation", "--max-steps"];
    args.push("2");
    let unchanged = keel(folder.path(), &args).fine().stdout;
    assert!(!unchanged.contains("changed since"), "{unchanged}");
    fs::remove_file(checkpoint(&folder.path().join("run"), "1-warm-up")).unwrap();
    args.extend(["--set", "stage.warm-up.learning_rate=0.5"]);
    args.extend(["--set", "stage.warm-up.micro_batch_size=4"]);
    let changed = keel(folder.path(), &args).fine().stdout;
    let lines = changed
        .lines()
        .filter(|line| line.contains("changed since"));
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [
            "changed since that checkpoint: stage.warm-up.learning_rate was 0.002, is 0.5",
            "changed since that checkpoint: stage.warm-up.micro_batch_size was left out, is 4",
        ]
    );
}

/// A run of two steps of the warm-up, with a checkpoint between them.
fn short_run() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let args = "train --recipe one.toml --out run --no-evaluation --threads 1 --max-steps 2 --save-every 1";
    let args: Vec<&str> = args.split(' ').collect();
    keel(folder.path(), &args).fine();
    folder
}

#[test]
fn what_a_killed_save_left_half_written_is_removed() {
    let folder = short_run();
    let run = folder.path().join("run");
    let part = run.join("checkpoints/1-warm-up.safetensors.part");
    fs::rename(checkpoint(&run, "1-warm-up"), &part).unwrap();
    let args = ["train", "--resume", "run", "--no-evaluation", "--max-steps"];
    keel(folder.path(), &[&args[..], &["2"]].concat()).fine();
    assert!(!part.exists());
    assert!(checkpoint(&run, "1-warm-up").exists());
}

#[test]
fn a_checkpoint_of_another_model_is_refused_by_the_name_of_the_tensor() {
    let folder = short_run();
    let resume = |setting: &str, parts: &[&str]| {
        let args = ["train", "--resume", "run", "--set", setting];
        let problem = [
            parts,
            &[
                "1-warm-up.safetensors",
                "the recipe that the run was begun with",
            ],
        ];
        keel(folder.path(), &args).refused(&problem.concat());
    };
    resume(
        "model.vision.depth=1",
        &[
            "it holds the tensor vision.",
            "which the model does not have",
        ],
    );
    resume(
        "model.vision.depth=3",
        &["the tensor vision.", "which the model has, is missing"],
    );
    resume(
        "model.vision.mlp_width=80",
        &["the tensor vision.", "not F32 ["],
    );
    // What is no part of the model may change.
    let other = [
        "train",
        "--resume",
        "run",
        "--set",
        "stage.warm-up.learning_rate=1e-5",
    ];
    keel(folder.path(), &other).fine();
}

#[test]
fn doctor_says_what_there_is_and_what_missing_things_would_give() {
    let folder = tempfile::tempdir().unwrap();
    let answer = keel(folder.path(), &["doctor"]).fine();
    let line = |what: &str| {
        let mut lines = answer.stdout.lines();
        let found = lines.find(|line| line.starts_with(what));
        let found = found.unwrap_or_else(|| panic!("no {what} in {answer:#?}"));
        let advice = lines
            .next()
            .filter(|line| line.trim_start().starts_with("-> "));
        (found.to_owned(), advice.map(str::to_owned))
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(
        line("cores").0.contains(&format!(" {cores} usable")),
        "{answer:#?}"
    );
    for (what, part) in [("memory", " GiB available"), ("disk", " GiB free in ")] {
        assert!(line(what).0.contains(part), "{answer:#?}");
    }
    let has_wide = answer.stdout.contains("AVX-512: the widest path is used");
    assert_eq!(line("processor").1.is_none(), has_wide, "{answer:#?}");
    for (what, cure) in [
        ("GPU ", "--device cuda"),
        ("GPU kernels", "cargo tool nvcc"),
        ("emulator", "without a GPU"),
        ("data stores", "--features stores"),
    ] {
        let (found, advice) = line(what);
        let missing = found.contains(" none");
        assert_eq!(
            advice.is_some_and(|text| text.contains(cure)),
            missing,
            "{answer:#?}"
        );
    }
    let auto = line("device auto").0;
    assert!(
        auto.contains(" cpu, ") || auto.contains(" cuda, "),
        "{answer:#?}"
    );
}
