//! A run under everything at once. One seed draws a disk that fails, a clock that jumps or stands still, signals, kills, steps
//! whose numbers are not finite, samples that cannot be read, and how the run is started each time; it is taken up again until
//! it comes to its end. Then every checkpoint has the bits of the run that nothing happened to.
//!
//! Everything runs in one process: a kill is an observer that ends the run between two steps, or a disk that is dead from some
//! operation on, with half of the last write done. A seed gives the same accidents again, up to which thread asks the disk
//! and the clock first.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keel::clock::{Clock, TimeSource};
use keel::data::pairs::{PairLimits, Pairs};
use keel::error::{Error, Result};
use keel::executor::{CpuExecutor, Executor, SelectedDevice, Session};
use keel::model::{ModelInput, declare};
use keel::program::Program;
use keel::tape::{Arena, CompileTarget};
use keel::train::{
    Disk, Event, LocalDisk, Observer, OpenFile, Recipe, Signals, Stop, TrainOptions, Trainer,
};
use rustix::io::Errno;

use crate::bad_input::pairs;
use crate::command::{checkpoint, tensors, tiny_recipe};
use crate::harness::Random;

/// Accidents of one run at most: after them it is left alone.
const MOST_ACCIDENTS: usize = 6;

/// What the disk does from one of its operations on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum DiskFault {
    /// It is full this once.
    Full,
    /// Nothing works any more.
    Dead,
    /// It became read-only, as file systems do that found an error.
    ReadOnly,
    /// The next flush of a file or folder fails.
    Unflushed,
    /// The next file to be renamed is not.
    Unnamed,
    /// Writes take at most so many bytes. No failure.
    Short(usize),
    /// A signal interrupts every other operation. No failure.
    Interrupted,
}

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asked {
    Flush,
    Rename,
    Other,
}

/// This machine's disk with one fault.
#[derive(Clone, Debug)]
struct FaultyDisk {
    fault: Option<(usize, DiskFault)>,
    count: Arc<AtomicUsize>,
    /// Whether the one failure has been, of a fault that is one.
    is_over: Arc<AtomicUsize>,
}

impl FaultyDisk {
    fn new(fault: Option<(usize, DiskFault)>) -> FaultyDisk {
        FaultyDisk {
            fault,
            count: Arc::default(),
            is_over: Arc::default(),
        }
    }

    /// How the next operation fails, if it does.
    fn failure(&self, asked: Asked) -> Option<Errno> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let (at, fault) = self.fault?;
        if number < at {
            return None;
        }
        let once = |errno| (self.is_over.fetch_add(1, Ordering::SeqCst) == 0).then_some(errno);
        match (fault, asked) {
            (DiskFault::Full, _) => once(Errno::NOSPC),
            (DiskFault::Dead, _) => Some(Errno::IO),
            (DiskFault::ReadOnly, _) => Some(Errno::ROFS),
            (DiskFault::Unflushed, Asked::Flush) | (DiskFault::Unnamed, Asked::Rename) => {
                once(Errno::IO)
            }
            (DiskFault::Interrupted, _) => (number - at).is_multiple_of(2).then_some(Errno::INTR),
            _ => None,
        }
    }

    fn ask<T>(&self, asked: Asked, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.failure(asked) {
            Some(errno) => Err(errno.into()),
            None => work(),
        }
    }

    fn opened(&self, file: Box<dyn OpenFile>) -> Box<dyn OpenFile> {
        let disk = self.clone();
        Box::new(FaultyFile { disk, file })
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    file: Box<dyn OpenFile>,
}

impl Disk for FaultyDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Asked::Other, || LocalDisk.create_folder(path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = self.ask(Asked::Other, || LocalDisk.create(path))?;
        Ok(self.opened(file))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = self.ask(Asked::Other, || LocalDisk.append(path))?;
        Ok(self.opened(file))
    }

    fn shorten(&self, path: &Path, length: u64) -> io::Result<()> {
        self.ask(Asked::Other, || LocalDisk.shorten(path, length))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(Asked::Rename, || LocalDisk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.ask(Asked::Other, || LocalDisk.remove(path))
    }

    fn flush_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Asked::Flush, || LocalDisk.flush_folder(path))
    }
}

impl OpenFile for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let failure = self.disk.failure(Asked::Other);
        let count = match (failure, self.disk.fault) {
            (Some(Errno::INTR), _) => 0,
            // It fails in the middle of it.
            (Some(_), _) => bytes.len() / 2,
            (None, Some((_, DiskFault::Short(most)))) => bytes.len().min(most),
            _ => bytes.len(),
        };
        let written = self.file.write(&bytes[..count])?;
        failure.map_or(Ok(written), |errno| Err(errno.into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = &mut self.file;
        self.disk.ask(Asked::Flush, || file.flush())
    }
}

/// What the clock does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ClockFault {
    /// It goes as clocks go.
    True,
    /// It never moves.
    Stands,
    /// It jumps at every other look, by this seed: forward by up to a century, backward to its beginning.
    Jumps(u64),
}

/// A clock that does so.
#[derive(Debug)]
struct FaultyClock {
    fault: ClockFault,
    random: Mutex<Random>,
    /// Nanoseconds of the clock for durations, and of the one for stamps.
    times: Mutex<[u64; 2]>,
}

/// Where faulty clocks begin: in the year 2001.
const BEGIN: u64 = 1_000_000_000 * 1_000_000_000;

impl FaultyClock {
    fn over(fault: ClockFault) -> Clock {
        let seed = match fault {
            ClockFault::True => return Clock::default(),
            ClockFault::Stands => 0,
            ClockFault::Jumps(seed) => seed,
        };
        Clock::over(Arc::new(FaultyClock {
            fault,
            random: Mutex::new(Random::new(seed)),
            times: Mutex::new([BEGIN; 2]),
        }))
    }

    fn look(&self, which: usize) -> Duration {
        let mut times = self.times.lock().unwrap();
        let mut random = self.random.lock().unwrap();
        let century = 100 * 365 * 86_400;
        let time = &mut times[which];
        let seconds = |count: usize| count as u64 * 1_000_000_000;
        *time = match (self.fault, random.below(10)) {
            (ClockFault::Stands, _) => *time,
            (_, 0) => time.saturating_add(seconds(random.below(century))),
            (_, 1) => time.saturating_add(seconds(random.below(10))),
            (_, 2) => time.saturating_sub(seconds(random.below(10))),
            (_, 3) => time.saturating_sub(seconds(random.below(century))),
            (_, 4) => 0,
            (_, 5 | 6) => *time,
            _ => time.saturating_add(random.below(1 << 24) as u64),
        };
        Duration::from_nanos(*time)
    }
}

impl TimeSource for FaultyClock {
    fn now(&self) -> Duration {
        self.look(0)
    }

    fn since_1970(&self) -> Duration {
        self.look(1)
    }
}

/// What happens after a number of steps, counted over the stages of one process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum StepFault {
    Killed,
    Signal(Stop),
    AskedToSave,
}

/// Counts steps and lets happen what is due after one of them. Of what a run tells it asks that every number is one.
#[derive(Debug)]
struct Fate {
    due: Option<(usize, StepFault)>,
    steps: AtomicUsize,
    signals: Signals,
}

impl Observer for Fate {
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::StepDone(_) => {}
            Event::Metrics(report) | Event::Progress(report) => {
                for (name, value) in report.averages.scalars() {
                    assert!(value.is_finite() && value >= 0.0, "{name} {value}");
                }
                return Ok(());
            }
            Event::Note(text) => {
                // `NaN` and `inf` are read as numbers too.
                let mut words = text.split([' ', ',', '%']).map(str::parse::<f64>);
                assert!(
                    words.all(|word| word.map_or(true, |n| n >= 0.0 && n.is_finite())),
                    "{text}"
                );
                return Ok(());
            }
            _ => return Ok(()),
        }
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        match self.due {
            Some((at, StepFault::Killed)) if at == step => {
                return Err(Error::stopped("the simulation", "killed", "go on"));
            }
            Some((at, StepFault::Signal(stop))) if at == step => self.signals.ask_to_stop(stop),
            Some((at, StepFault::AskedToSave)) if at == step => self.signals.ask_to_save(),
            _ => {}
        }
        Ok(())
    }
}

/// A processor on which some batches give numbers that are not finite: always the same ones, as data would.
struct Poisoned {
    inner: CpuExecutor,
    poison: u8,
}

struct PoisonedSession {
    inner: Box<dyn Session>,
    poison: u8,
    is_poisoned: bool,
}

impl Executor for Poisoned {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn compile_target(&self) -> CompileTarget {
        self.inner.compile_target()
    }

    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>> {
        Ok(Box::new(PoisonedSession {
            inner: self.inner.load(program)?,
            poison: self.poison,
            is_poisoned: false,
        }))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        self.inner.write_parameters(offset, values)
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        self.inner.read_parameters(offset, values)
    }
}

impl Session for PoisonedSession {
    fn program(&self) -> &Program {
        self.inner.program()
    }

    fn run(&mut self) -> Result<()> {
        if self.is_poisoned {
            let input = self.program().input(ModelInput::Weights.name())?;
            let count = self.program().ty(input).numel();
            let name = ModelInput::Weights.name();
            self.inner.write_f32(name, &vec![f32::NAN; count])?;
        }
        self.inner.run()
    }

    fn run_gradients(&mut self) -> Result<()> {
        self.inner.run_gradients()
    }

    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()> {
        self.inner.run_timed(seconds)
    }

    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()> {
        self.inner.write_f32(input, values)
    }

    fn write_i32(&mut self, input: &str, values: &[i32]) -> Result<()> {
        if input == ModelInput::Tokens.name() {
            let hash = blake3::hash(bytemuck::cast_slice(values));
            self.is_poisoned = hash.as_bytes()[0] < self.poison;
        }
        self.inner.write_i32(input, values)
    }

    fn read_f64(&self, output: &str) -> Result<Vec<f64>> {
        self.inner.read_f64(output)
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        self.inner.read_arena(arena)
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        self.inner.write_arena(arena, values)
    }
}

/// One process of a run: how it is started, and what happens to it.
#[derive(Debug)]
struct Life {
    threads: usize,
    save_every: u64,
    keep: u64,
    recheck_every: u64,
    image_cache: u64,
    clock: ClockFault,
    disk: Option<(usize, DiskFault)>,
    steps: Option<(usize, StepFault)>,
}

impl Life {
    /// A process that nothing happens to.
    fn calm() -> Life {
        Life {
            threads: 1,
            save_every: 3,
            keep: 2,
            recheck_every: 0,
            image_cache: 0,
            clock: ClockFault::True,
            disk: None,
            steps: None,
        }
    }

    fn drawn(random: &mut Random) -> Life {
        let mut life = Life {
            threads: 1 + random.below(3),
            save_every: random.below(5) as u64,
            keep: 1 + random.below(3) as u64,
            recheck_every: [0, 0, 2, 5][random.below(4)],
            image_cache: [0, 1 << 20][random.below(2)],
            clock: match random.below(4) {
                0 => ClockFault::True,
                1 => ClockFault::Stands,
                _ => ClockFault::Jumps(random.below(1 << 30) as u64),
            },
            disk: None,
            steps: None,
        };
        if random.below(3) > 0 {
            let fault = [
                DiskFault::Full,
                DiskFault::Dead,
                DiskFault::ReadOnly,
                DiskFault::Unflushed,
                DiskFault::Unnamed,
                DiskFault::Short(1 + random.below(1 << 14)),
                DiskFault::Interrupted,
            ][random.below(7)];
            life.disk = Some((random.below(MOST_OPERATIONS), fault));
        }
        if random.below(3) > 0 {
            let fault = [
                StepFault::Killed,
                StepFault::Signal(Stop::Terminate),
                StepFault::Signal(Stop::HangUp),
                StepFault::AskedToSave,
            ][random.below(4)];
            life.steps = Some((random.below(2 * STEPS), fault));
        }
        life
    }
}

/// Operations of the disk among which a fault falls: most processes ask for about as many.
const MOST_OPERATIONS: usize = 150;

/// Steps of each of the two stages.
const STEPS: usize = 8;

/// What every run is made of: settings, samples of which some cannot be read, and which batches are poisoned.
struct World {
    folder: PathBuf,
    recipe: Recipe,
    poison: u8,
}

impl World {
    fn new(folder: &Path, poison: u8) -> World {
        // 40 samples; the last is broken, and the stage draws it a few times at most.
        pairs(folder, 40, 39);
        let path = folder.join("two.toml");
        std::fs::write(&path, tiny_recipe(&["warm-up", "fine-grained"])).unwrap();
        let mut sets = ["warm-up", "fine-grained"]
            .map(|stage| format!("stage.{stage}.steps={STEPS}"))
            .to_vec();
        sets.push("stage.warm-up.data={ samples = 1.0 }".to_owned());
        sets.push("stage.warm-up.batch_size=4".to_owned());
        World {
            folder: folder.to_owned(),
            recipe: Recipe::load(path.to_str().unwrap(), &sets).unwrap(),
            poison,
        }
    }

    /// One process: begins the run, or takes it up.
    fn live(&self, run: &Path, life: &Life) -> Result<()> {
        let goes_on = run.join("recipe.toml").exists();
        let signals = Signals::default();
        let fate = Arc::new(Fate {
            due: life.steps,
            steps: AtomicUsize::new(0),
            signals: signals.clone(),
        });
        let options = TrainOptions {
            out: (!goes_on).then(|| run.to_owned()),
            resume: goes_on.then(|| run.to_owned()),
            save_every: life.save_every,
            keep: life.keep,
            recheck_every: life.recheck_every,
            image_cache: life.image_cache,
            observer: fate,
            clock: FaultyClock::over(life.clock),
            disk: Arc::new(FaultyDisk::new(life.disk)),
            signals,
            ..TrainOptions::new(SelectedDevice::processor(life.threads))
        };
        let samples = self.folder.join("pairs").display().to_string();
        let samples = Arc::new(Pairs::open(&samples, PairLimits::default())?);
        let layout = declare(&self.recipe.model, self.recipe.contrastive_loss)?;
        let poisoned = Poisoned {
            inner: CpuExecutor::new(layout.elements(), life.threads)?,
            poison: self.poison,
        };
        let trainer = Trainer::new(self.recipe.clone(), options, Some(samples))?;
        trainer.computing_on(Box::new(poisoned)).run().map(drop)
    }
}

/// Whether a process ended as one may to which these things happened.
fn is_named(life: &Life, problem: &Error) -> bool {
    let text = problem.to_string();
    let by_disk = life.disk.and_then(|(_, fault)| match fault {
        DiskFault::Full => Some(Errno::NOSPC),
        DiskFault::ReadOnly => Some(Errno::ROFS),
        DiskFault::Dead | DiskFault::Unflushed | DiskFault::Unnamed => Some(Errno::IO),
        DiskFault::Short(_) | DiskFault::Interrupted => None,
    });
    match problem {
        Error::Interrupted { .. } => matches!(life.steps, Some((_, StepFault::Signal(_)))),
        _ if text.contains("killed") => matches!(life.steps, Some((_, StepFault::Killed))),
        _ => by_disk.is_some_and(|errno| {
            text.contains(&format!("(os error {})", errno.raw_os_error())) && text.contains("/run-")
        }),
    }
}

const LABELS: [&str; 2] = ["1-warm-up", "2-fine-grained"];

/// A world, and the checkpoints of the run that nothing happens to; or what stops that one.
struct Expected {
    world: World,
    outcome: Result<[BTreeMap<String, Vec<u8>>; 2]>,
}

/// No batch is poisoned, a few are, and so many that going back does not help.
fn worlds(folder: &Path) -> Vec<Expected> {
    let worlds = [0, 40, 220].into_iter().enumerate();
    let worlds: Vec<Expected> = worlds
        .map(|(index, poison)| {
            let place = folder.join(format!("world-{index}"));
            std::fs::create_dir(&place).unwrap();
            let world = World::new(&place, poison);
            let run = place.join("whole");
            let outcome = world.live(&run, &Life::calm());
            let outcome = outcome.map(|()| LABELS.map(|label| tensors(&checkpoint(&run, label))));
            Expected { world, outcome }
        })
        .collect();
    assert!(worlds[..2].iter().all(|world| world.outcome.is_ok()));
    worlds
}

/// The names of a run's event files, which TensorBoard reads in this order.
fn event_files(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.contains(".tfevents.")).collect();
    names.sort();
    names
}

/// Times of an event file's records.
fn stamps(path: &Path) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut stamps) = (bytes.as_slice(), Vec::new());
    // Length, its checksum, the tag of the time, the time. A record that a fault cut short is the last.
    while let Some(record) = rest.get(..21) {
        let length = u64::from_le_bytes(record[..8].try_into().unwrap()) as usize;
        stamps.push(f64::from_le_bytes(record[13..21].try_into().unwrap()));
        rest = rest.get(16 + length..).unwrap_or_default();
    }
    stamps
}

/// How many processes a run had, and how many of them ended by accident.
#[derive(Default)]
struct Lives {
    all: usize,
    accidents: usize,
}

/// Takes a run through `lives`, and then through one that nothing happens to, until it comes to its end.
fn go_through(name: &str, expected: &Expected, lives: impl Iterator<Item = Life>) -> Lives {
    let run = expected.world.folder.join(format!("run-{name}"));
    let mut count = Lives::default();
    for life in lives.chain([Life::calm()]) {
        count.all += 1;
        let place = format!("{name}, {life:?}");
        let before = event_files(&run);
        let lived = expected.world.live(&run, &life);
        let after = event_files(&run);
        assert!(after.starts_with(&before), "{place}: {before:?} {after:?}");
        for name in &after[before.len()..] {
            let stamps = stamps(&run.join(name));
            assert!(stamps.is_sorted(), "{place}: {stamps:?}");
        }
        match (lived, &expected.outcome) {
            (Ok(()), Ok(wanted)) => {
                for (label, wanted) in LABELS.iter().zip(wanted) {
                    let found = tensors(&checkpoint(&run, label));
                    assert!(found == *wanted, "{place}: other bits in {label}");
                }
                return count;
            }
            (Err(problem), _) if is_named(&life, &problem) => count.accidents += 1,
            // What stops a run that nothing happened to stops this one; at what step depends on what there is to go back to.
            (Err(problem), Err(wanted)) => {
                let same = [&problem, wanted].map(|p| p.to_string().contains("has not helped"));
                assert_eq!(same, [true; 2], "{place}: {problem}");
                return count;
            }
            (Err(problem), Ok(_)) => panic!("{place}: {problem}"),
            (Ok(()), Err(wanted)) => panic!("{place}: it came to its end, not to {wanted}"),
        }
    }
    unreachable!("{name}: nothing happens to the last process")
}

#[test]
fn a_run_under_all_accidents_at_once_ends_with_the_bits_of_one_that_had_none() {
    // A few dozen in every run of the tests; .ci/run asks for more.
    let seeds = match std::env::var("KEEL_SIMULATIONS") {
        Ok(number) => number.parse().expect("KEEL_SIMULATIONS is a number"),
        Err(_) => 24,
    };
    let folder = tempfile::tempdir().unwrap();
    let worlds = worlds(folder.path());
    let mut total = Lives::default();
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let expected = &worlds[random.below(worlds.len())];
        let lives = (0..MOST_ACCIDENTS).map(|_| Life::drawn(&mut random));
        let count = go_through(&format!("seed-{seed}"), expected, lives);
        total.all += count.all;
        total.accidents += count.accidents;
    }
    let Lives { all, accidents } = total;
    println!("{seeds} runs, {all} processes, {accidents} of which ended by accident");
    assert!(accidents * 2 > seeds as usize);
}

#[test]
fn accidents_that_once_broke_runs_are_survived() {
    let from = |clock, disk, steps| Life {
        clock,
        disk,
        steps,
        ..Life::calm()
    };
    let killed = Some((5, StepFault::Killed));
    // Each broke a run, or what it left, before it was mended. A seed that fails comes here, with the lives that it printed.
    let cases = [
        // The event file of the second process was sorted before that of the first.
        (
            "a-clock-set-back-between-processes",
            vec![
                from(ClockFault::True, None, killed),
                from(ClockFault::Stands, None, None),
            ],
        ),
        // Times in one event file went backward, rates and shares were infinite or negative.
        (
            "a-clock-that-jumps",
            vec![
                from(ClockFault::Jumps(1), None, killed),
                from(ClockFault::Jumps(2), None, killed),
            ],
        ),
        (
            "a-clock-that-stands",
            vec![from(ClockFault::Stands, None, None)],
        ),
        // A folder that could not be made at once because of a signal was taken for a failure.
        (
            "signals-at-every-call",
            vec![from(
                ClockFault::True,
                Some((0, DiskFault::Interrupted)),
                None,
            )],
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let expected = &worlds(folder.path())[0];
    for (name, lives) in cases {
        go_through(name, expected, lives.into_iter());
    }
}
