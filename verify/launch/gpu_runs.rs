//! Whole trainings on GPUs, a process a rank, on the stand-ins for the driver and for NCCL: the same bits as threads, by graphs and
//! without; and `keel train` itself under kills, stops, signals, idle kernels and ranks that were started otherwise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use keel::executor::kernel_table::IMAGES;
use keel::executor::{CudaExecutor, Device, Executor, Precision, SelectedDevice, cuda};
use keel::model::declare;
use keel::ranks::control::{ANOTHER_RANK, COPIES_DIFFER, Patience, end_process};
use keel::ranks::join::{Memory, join};
use keel::ranks::launch::RanksFrom;
use keel::ranks::{Seat, local};
use keel::tensor::DType;
use keel::train::{Recipe, TrainOptions, Trainer};

use super::nccl::library;
use super::processes::{as_rank, free_port};
use crate::bad_input::{DRAWS_PAIRS, pairs};
use crate::command::{Answer, checkpoint, tensors, tiny_recipe};
use crate::cuda::executing_driver;
use crate::harness::images;

/// Set in children: the folder of the run that they train.
pub(super) const OUT: &str = "KEEL_VERIFY_GPU_RUN";

/// Set in children of a run that is to be cut off: the seconds of silence and of standing still that its ranks bear.
pub(super) const PATIENCE: &str = "KEEL_VERIFY_GPU_PATIENCE";

/// Steps of each stage of a run that is to be cut off: more than it comes to.
const MANY: u64 = 2000;

/// Where standard output and errors of processes go that are not looked at.
pub(super) const QUIET: &str = "--exact --nocapture --test-threads=1 launch::gpu_runs::child";

/// Stages of [`recipe`], of which the second has micro-batches: two of each rank of two.
const STAGES: [&str; 2] = ["1-warm-up", "2-world-knowledge"];
const STEPS: u64 = 2;

fn recipe() -> Recipe {
    let text = tiny_recipe(&["warm-up", "world-knowledge"]);
    let sets = ["stage.world-knowledge.micro_batch_size=2".to_owned()];
    Recipe::parse("two", &text, &sets).unwrap()
}

/// What a rank trains by: the kernels of the emulator, which the driver's stand-in runs too.
fn options(out: &Path, seat: Seat) -> TrainOptions {
    let device = SelectedDevice::new(Device::Simt, 1, Some(Precision::F32)).unwrap();
    TrainOptions {
        out: Some(out.to_owned()),
        max_steps: Some(STEPS),
        save_every: 1,
        seat,
        ..TrainOptions::new(device)
    }
}

/// A rank; nothing in the test's own process.
#[test]
fn child() {
    let Ok(out) = std::env::var(OUT) else {
        return;
    };
    let end = Box::new(end_process);
    let seconds = std::env::var(PATIENCE).map(|text| text.parse().expect("seconds"));
    let patience = match seconds.map(Duration::from_secs) {
        Ok(silence) => Patience {
            beat: Duration::from_millis(100),
            silence,
            step: silence,
            ..Patience::default()
        },
        Err(_) => Patience::default(),
    };
    let joined = join(RanksFrom::Any, Memory::Gpu, patience, end).unwrap();
    let (mut recipe, seat) = (recipe(), joined.seat);
    let mut options = options(Path::new(&out), seat.clone());
    if std::env::var(PATIENCE).is_ok() {
        recipe
            .stages
            .iter_mut()
            .for_each(|stage| stage.steps = Some(MANY));
        (options.max_steps, options.save_every) = (None, 2);
        // All of them.
        options.keep = MANY;
    }
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let found = cuda::probe_ordinal(joined.place.local_rank).unwrap();
    let executor = CudaExecutor::with_images(found, layout.elements(), images()).unwrap();
    let mut executor = executor.in_precision(DType::F32);
    executor.join(seat.engine().unwrap().clone()).unwrap();
    let trainer = Trainer::new(recipe, options, None).unwrap();
    let mut trainer = trainer.computing_on(Box::new(executor));
    trainer.run().unwrap();
    drop(trainer);
    joined.control.unwrap().leave().unwrap();
}

/// Sets what a rank of two finds: its place, and both stand-ins.
pub(super) fn on_stand_ins(
    command: &mut Command,
    rank: usize,
    port: u16,
    driver: &Path,
    settings: &str,
) {
    as_rank(command, rank, 2, port);
    let paths = format!("{}:{}", library().display(), driver.display());
    command
        .env("LD_LIBRARY_PATH", paths)
        .env("KEEL_FAKE_CUDA", format!("devices=2 {settings}"))
        .env_remove("KEEL_FAKE_NCCL")
        .env_remove("KEEL_NCCL")
        .env_remove("KEEL_CUDA_SYNC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

/// Trains as two processes, of which the second waits for every kernel where `is_synchronous`. Returns how often each was asked to
/// launch a graph.
fn train_as_processes(out: &Path, driver: &Path, is_synchronous: bool) -> [usize; 2] {
    let port = free_port();
    let log = |rank: usize| out.with_extension(format!("{rank}.log"));
    let children = [0, 1].map(|rank| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Queued work of a rank that runs late may wait for one of another that is waited for.
        let late = if is_synchronous { "" } else { "late " };
        let settings = format!("{late}log={}", log(rank).display());
        on_stand_ins(&mut command, rank, port, driver, &settings);
        if is_synchronous && rank == 1 {
            command.env("KEEL_CUDA_SYNC", "1");
        }
        let started = command.args(QUIET.split(' ')).env(OUT, out).spawn();
        started.expect("this program starts")
    });
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:#?}");
    }
    [0, 1].map(|rank| {
        let calls = fs::read_to_string(log(rank)).unwrap();
        assert!(!calls.contains("misuse"), "{calls}");
        calls.matches("graph launch").count()
    })
}

#[test]
fn whole_trainings_over_gpus_replay_graphs_on_all_ranks_or_none_and_give_the_bits_of_threads() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let threads = folder.path().join("threads");
    std::thread::scope(|scope| {
        for seat in local::seats(2) {
            let options = options(&threads, seat);
            scope.spawn(|| {
                Trainer::new(recipe(), options, None)
                    .unwrap()
                    .run()
                    .unwrap()
            });
        }
    });
    // A step of the first stage is one graph; of the second, one for each of two micro-batches.
    for (name, is_synchronous, graphs) in [("graphs", false, 3 * STEPS as usize), ("ops", true, 0)]
    {
        let out = folder.path().join(name);
        let launched = train_as_processes(&out, driver, is_synchronous);
        assert_eq!(launched, [graphs; 2], "{name}");
        for label in STAGES {
            let of = |run: &Path| tensors(&checkpoint(run, label));
            assert!(of(&out) == of(&threads), "{name}, {label}: other bits");
        }
    }
}

/// A place to run `keel train --device cuda` in as two ranks; `None` where this program has no kernels for GPUs.
struct Place {
    folder: TempDir,
    driver: &'static Path,
}

/// How long after a rank's end, or after patience with it, all others have to be gone, on a machine that does other things too.
const SLACK: Duration = Duration::from_secs(10);

impl Place {
    fn new() -> Option<Place> {
        let driver = executing_driver().filter(|_| !IMAGES.is_empty())?;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
        Some(Place { folder, driver })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts both ranks; `of_rank` says what is special about one.
    fn start(&self, words: &str, of_rank: impl Fn(usize) -> Special) -> [Child; 2] {
        let port = free_port();
        [0, 1].map(|rank| {
            let Special {
                program,
                more,
                driver,
            } = of_rank(rank);
            let mut command = Command::new(program);
            on_stand_ins(&mut command, rank, port, self.driver, &driver);
            command
                .current_dir(self.path())
                .arg("train")
                .args(words.split(' '))
                .args("--device cuda --precision f32 --threads 1 --no-evaluation".split(' '))
                .args(more);
            command.spawn().expect("the program starts")
        })
    }

    fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    /// Waits until the run has saved `step` steps.
    fn wait_for(&self, step: u64) {
        let saved = checkpoint(&self.run(), &format!("1-warm-up.step-{step}"));
        let began = Instant::now();
        while !saved.is_file() {
            assert!(began.elapsed() < Duration::from_secs(60), "never {step}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What may be special about a rank: its program, further words to it, and settings of its driver.
struct Special {
    program: PathBuf,
    more: Vec<String>,
    driver: String,
}

/// A rank as any other.
fn keel(_: usize) -> Special {
    Special {
        program: env!("CARGO_BIN_EXE_keel").into(),
        more: Vec::new(),
        driver: String::new(),
    }
}

fn answers(children: [Child; 2]) -> [Answer; 2] {
    children.map(|child| Answer::of(child.wait_with_output().unwrap()))
}

/// Asserts the code, and that there is one sentence with all of `parts`.
#[track_caller]
fn assert_said(answer: &Answer, code: i32, parts: &[&str]) {
    let sentences = answer
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "));
    let sentences: Vec<&str> = sentences.collect();
    assert_eq!(answer.code, Some(code), "{answer:#?}");
    assert_eq!(sentences.len(), 1, "{answer:#?}");
    for part in parts {
        assert!(
            sentences[0].contains(part),
            "{part:?} is not in {answer:#?}"
        );
    }
}

const NEW: &str =
    "--recipe one.toml --out run --save-every 2 --keep 2 --patience 3 --set stage.warm-up.steps=30";
const RESUMED: &str = "--resume run --save-every 2 --keep 2 --patience 3";

#[test]
fn a_job_whose_ranks_are_killed_stopped_and_ended_goes_on_to_the_same_bits() {
    let (Some(whole), Some(place)) = (Place::new(), Place::new()) else {
        return;
    };
    for answer in answers(whole.start(NEW, keel)) {
        answer.fine();
    }
    // Rank 1 is killed: the other ends at once.
    let [first, mut second] = place.start(NEW, keel);
    place.wait_for(4);
    second.kill().unwrap();
    let killed = Instant::now();
    let answer = Answer::of(first.wait_with_output().unwrap());
    second.wait().unwrap();
    assert_said(
        &answer,
        ANOTHER_RANK,
        &["rank 1 (", ", GPU 1) is gone at step ", "--resume"],
    );
    assert!(killed.elapsed() < SLACK, "{:?}", killed.elapsed());
    // Rank 1 is stopped: the other ends when its patience does.
    let [first, mut second] = place.start(RESUMED, keel);
    place.wait_for(10);
    kill_process(Pid::from_child(&second), Signal::STOP).unwrap();
    let stopped = Instant::now();
    let answer = Answer::of(first.wait_with_output().unwrap());
    second.kill().unwrap();
    second.wait().unwrap();
    assert_said(
        &answer,
        ANOTHER_RANK,
        &["nothing was heard of rank 1 (", "GPU 1) for 3."],
    );
    assert!(stopped.elapsed() < SLACK, "{:?}", stopped.elapsed());
    // Rank 1 is asked to end: both save the same step and end with the signal's code.
    let ranks = place.start(RESUMED, keel);
    place.wait_for(16);
    kill_process(Pid::from_child(&ranks[1]), Signal::TERM).unwrap();
    for answer in answers(ranks) {
        let answer = answer.code_is(143);
        assert!(
            answer
                .stderr
                .starts_with("ended by TERM at stage warm-up, step "),
            "{answer:#?}"
        );
    }
    for answer in answers(place.start(RESUMED, keel)) {
        answer.fine();
    }
    let last = |place: &Place| tensors(&checkpoint(&place.run(), "1-warm-up"));
    assert!(last(&place) == last(&whole), "other bits");
}

#[test]
fn ranks_of_another_program_recipe_or_data_are_refused_by_all_before_a_folder_is_made() {
    let Some(place) = Place::new() else {
        return;
    };
    pairs(place.path(), 12, 12);
    fs::rename(place.path().join("pairs"), place.path().join("other")).unwrap();
    pairs(place.path(), 8, 8);
    // What stands behind the end of a program is not read.
    let other = place.path().join("keel");
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_keel")).unwrap();
    bytes.push(0);
    fs::write(&other, bytes).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let program = |rank: usize| Special {
        program: [Path::new(env!("CARGO_BIN_EXE_keel")), &other][rank].to_owned(),
        ..keel(rank)
    };
    let recipe = |rank: usize| Special {
        more: vec!["--seed".to_owned(), rank.to_string()],
        ..keel(rank)
    };
    let data = |rank: usize| {
        let data = ["--data", ["pairs", "other"][rank]];
        let words = DRAWS_PAIRS.into_iter().chain(data);
        Special {
            more: words.map(str::to_owned).collect(),
            ..keel(rank)
        }
    };
    let drawn = format!("{NEW} --set stage.warm-up.batch_size=4");
    type OfRank<'a> = &'a dyn Fn(usize) -> Special;
    let cases: [(&str, &str, OfRank<'_>); 3] = [
        ("program", NEW, &program),
        ("recipe", NEW, &recipe),
        ("data", &drawn, &data),
    ];
    for (what, words, of_rank) in cases {
        for answer in answers(place.start(words, of_rank)) {
            assert_said(
                &answer,
                2,
                &[
                    "rank 1 (",
                    &format!("it has another {what} than the others: "),
                ],
            );
        }
        assert!(!place.run().exists(), "{what}");
    }
}

#[test]
fn a_kernel_that_does_nothing_on_one_rank_is_found_before_its_parameters_are_saved() {
    let Some(place) = Place::new() else {
        return;
    };
    let words = "--recipe one.toml --save-every 1 --max-steps 2";
    let with = |settings: String| {
        move |rank: usize| Special {
            driver: [String::new(), settings.clone()][rank].clone(),
            ..keel(rank)
        }
    };
    let log = place.path().join("cuda.log");
    let clean = format!("{words} --out clean");
    for answer in answers(place.start(&clean, with(format!("log={}", log.display())))) {
        answer.fine();
    }
    // Kernels in the order in which they are captured, which is that of the first step: the last copies bring parameters that the
    // other rank has updated to their places.
    let calls = fs::read_to_string(&log).unwrap();
    let kernels = calls.lines().filter(|line| line.starts_with("launch "));
    let copies = kernels
        .enumerate()
        .filter(|(_, line)| line.starts_with("launch copy_f32"));
    let (last, _) = copies.last().expect("parameters are copied");
    let idle = with(format!("idle={}", last + 1));
    for answer in answers(place.start(&format!("{words} --out run"), idle)) {
        let parts = [
            "stage warm-up, step 1: ranks 0, 1 (",
            "hold different parameters",
        ];
        assert_said(&answer, COPIES_DIFFER, &parts);
    }
    assert!(!checkpoint(&place.run(), "1-warm-up.step-1").exists());
}
