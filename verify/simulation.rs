//! A run under everything at once. One seed draws a disk that fails, signals, kills, steps whose numbers are not finite, samples
//! that cannot be read, and how the run is started each time; it is taken up again until it comes to its end. Then every
//! checkpoint has the bits of the run that nothing happened to.
//!
//! Everything runs in one process: a kill is an observer that ends the run between two steps, or a disk that is dead from some
//! operation on, with half of the last write done. A seed gives the same accidents again, up to which thread asks the disk
//! first.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keel::data::pairs::{PairLimits, Pairs};
use keel::error::{Error, Result};
use keel::executor::{CpuExecutor, Executor, SelectedDevice, Session};
use keel::model::{ModelInput, declare};
use keel::program::Program;
use keel::tape::{Arena, CompileTarget};
use keel::train::{
    Disk, Event, LocalDisk, Observer, OpenFile, Recipe, Signals, Stop, TrainOptions, Trainer,
};

use crate::bad_input::pairs;
use crate::command::{checkpoint, tensors, tiny_recipe};
use crate::harness::Random;

/// Accidents of one run at most: after them it is left alone.
const MOST_ACCIDENTS: usize = 6;

/// What the disk does at one of its operations.
#[derive(Clone, Copy, Debug, PartialEq)]
enum DiskFault {
    /// It is full this once.
    Full,
    /// It is dead from then on.
    Dead,
}

/// This machine's disk with one fault.
#[derive(Debug)]
struct FaultyDisk {
    fault: Option<(usize, DiskFault)>,
    asked: Arc<AtomicUsize>,
}

impl FaultyDisk {
    fn ask<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Some((at, DiskFault::Dead)) if number >= at => {
                Err(io::Error::other("the disk is dead"))
            }
            Some((at, DiskFault::Full)) if number == at => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the disk is full",
            )),
            _ => work(),
        }
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    file: Box<dyn OpenFile>,
}

impl Disk for FaultyDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(|| LocalDisk.create_folder(path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = self.ask(|| LocalDisk.create(path))?;
        let disk = FaultyDisk {
            fault: self.fault,
            asked: self.asked.clone(),
        };
        Ok(Box::new(FaultyFile { disk, file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(|| LocalDisk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.ask(|| LocalDisk.remove(path))
    }

    fn flush_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(|| LocalDisk.flush_folder(path))
    }
}

impl OpenFile for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = &mut self.file;
        let written = self.disk.ask(|| file.write(bytes));
        if written.is_err() {
            // It fails in the middle of it.
            file.write(&bytes[..bytes.len() / 2])?;
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = &mut self.file;
        self.disk.ask(|| file.flush())
    }
}

/// What happens after a number of steps, counted over the stages of one process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum StepFault {
    Killed,
    Signal(Stop),
    AskedToSave,
}

/// Counts steps and lets happen what is due after one of them.
#[derive(Debug)]
struct Fate {
    due: Option<(usize, StepFault)>,
    steps: AtomicUsize,
    signals: Signals,
}

impl Observer for Fate {
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        if !matches!(event, Event::StepDone(_)) {
            return Ok(());
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
            disk: None,
            steps: None,
        };
        if random.below(2) == 0 {
            let fault = [DiskFault::Full, DiskFault::Dead][random.below(2)];
            life.disk = Some((random.below(120), fault));
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
            disk: Arc::new(FaultyDisk {
                fault: life.disk,
                asked: Arc::default(),
            }),
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
    let by_disk = ["the disk is dead", "the disk is full"];
    match problem {
        Error::Interrupted { .. } => matches!(life.steps, Some((_, StepFault::Signal(_)))),
        _ if text.contains("killed") => matches!(life.steps, Some((_, StepFault::Killed))),
        _ => life.disk.is_some() && by_disk.iter().any(|said| text.contains(said)),
    }
}

const LABELS: [&str; 2] = ["1-warm-up", "2-fine-grained"];

#[test]
fn a_run_under_all_accidents_at_once_ends_with_the_bits_of_one_that_had_none() {
    // A few dozen in every run of the tests; .ci/run asks for more.
    let seeds = match std::env::var("KEEL_SIMULATIONS") {
        Ok(number) => number.parse().expect("KEEL_SIMULATIONS is a number"),
        Err(_) => 24,
    };
    let folder = tempfile::tempdir().unwrap();
    // No batch is poisoned, a few are, and so many that going back does not help.
    let worlds: Vec<_> = [0, 40, 220]
        .into_iter()
        .enumerate()
        .map(|(index, poison)| {
            let place = folder.path().join(format!("world-{index}"));
            std::fs::create_dir(&place).unwrap();
            let world = World::new(&place, poison);
            let run = place.join("whole");
            let wanted = world.live(&run, &Life::calm());
            let wanted = wanted.map(|()| LABELS.map(|label| tensors(&checkpoint(&run, label))));
            (world, wanted)
        })
        .collect();
    assert!(worlds[..2].iter().all(|(_, wanted)| wanted.is_ok()));
    let (mut lives, mut accidents) = (0, 0);
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let (world, wanted) = &worlds[random.below(worlds.len())];
        let run = world.folder.join(format!("run-{seed}"));
        for life in 0.. {
            let life = if life < MOST_ACCIDENTS {
                Life::drawn(&mut random)
            } else {
                Life::calm()
            };
            lives += 1;
            let place = format!("seed {seed}, {life:?}");
            match (world.live(&run, &life), wanted) {
                (Ok(()), Ok(wanted)) => {
                    for (label, wanted) in LABELS.iter().zip(wanted) {
                        let found = tensors(&checkpoint(&run, label));
                        assert!(found == *wanted, "{place}: other bits in {label}");
                    }
                    break;
                }
                (Err(problem), _) if is_named(&life, &problem) => accidents += 1,
                // What stops a run that nothing happened to stops this one; at what step depends on what there is to go back to.
                (Err(problem), Err(wanted)) => {
                    let same = [&problem, wanted].map(|p| p.to_string().contains("has not helped"));
                    assert_eq!(same, [true; 2], "{place}: {problem}");
                    break;
                }
                (Err(problem), Ok(_)) => panic!("{place}: {problem}"),
                (Ok(()), Err(wanted)) => panic!("{place}: it came to its end, not to {wanted}"),
            }
        }
    }
    println!("{seeds} runs, {lives} processes, {accidents} of which ended by accident");
    assert!(accidents * 2 > seeds as usize);
}
