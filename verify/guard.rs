//! The guard over losses: what it calls bad, and that a run that went back ends as one that never saw that data.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keel::error::Result;
use keel::executor::{CpuExecutor, Device, Executor, SelectedDevice, Session};
use keel::model::{ModelInput, declare};
use keel::program::Program;
use keel::tape::{Arena, CompileTarget};
use keel::train::{
    Guard, MOST_RETURNS, MOST_STRIKES, Recipe, TrainOptions, Trainer, Verdict, load, read_position,
    save,
};
use proptest::prelude::*;

use crate::command::{checkpoint, keel, tensors, tiny_recipe};

/// Losses around `level`, none further off than `noise` of it.
fn calm(guard: &mut Guard, level: f64, noise: f64, steps: usize, seed: u64) {
    for step in 0..steps {
        let phase = (seed % 97) as f64 + 1.7 * step as f64;
        let loss = level * (1.0 + noise * phase.sin());
        assert_eq!(
            guard.judge(loss, 1.0, 10.0),
            Verdict::Well,
            "step {step}: {loss}"
        );
    }
}

proptest! {
    #[test]
    fn noise_is_never_a_spike_and_a_loss_far_above_it_always_is(
        level in 0.4f64..100.0, noise in 0.0f64..0.5, steps in 24usize..200, seed: u64
    ) {
        let mut guard = Guard::default();
        calm(&mut guard, level, noise, steps, seed);
        let spike = level * (1.0 + 0.3 + 30.0 * noise);
        let verdict = guard.judge(spike, 1.0, 10.0);
        prop_assert!(matches!(verdict, Verdict::Bad(_)), "{verdict:?}");
        // A fall is no spike, however steep.
        prop_assert_eq!(guard.judge(level / 100.0, 1.0, 10.0), Verdict::Well);
    }

    /// What a contrastive loss does when it has been learnt: batches differ by many times the median, and none by a tenth of a nat.
    #[test]
    fn no_loss_near_zero_is_a_spike_and_a_rise_by_more_than_a_tenth_of_a_nat_is(
        level in 1e-4f64..5e-3, harder in 2.0f64..20.0, every in 3usize..9, steps in 24usize..200
    ) {
        let mut guard = Guard::default();
        for step in 0..steps {
            let loss = if step % every == 0 { level * harder } else { level };
            prop_assert_eq!(guard.judge(loss, 1.0, 10.0), Verdict::Well);
        }
        let risen = guard.judge(level * harder + 0.11, 1.0, 10.0);
        prop_assert!(matches!(risen, Verdict::Bad(_)), "{risen:?}");
    }

    #[test]
    fn numbers_that_are_not_finite_blind_the_guard_to_nothing(
        which in prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]), at in 24usize..90
    ) {
        let (mut with, mut without) = (Guard::default(), Guard::default());
        for step in 0..100 {
            let loss = 2.0 + 0.1 * (1.3 * step as f64).sin();
            if step == at {
                prop_assert!(matches!(with.judge(which, 1.0, 10.0), Verdict::Bad(_)));
                prop_assert!(matches!(with.judge(loss, which, 10.0), Verdict::Bad(_)));
            }
            prop_assert_eq!(with.judge(loss, 1.0, 10.0), without.judge(loss, 1.0, 10.0));
        }
        prop_assert!(matches!(with.judge(9.0, 1.0, 10.0), Verdict::Bad(_)));
        prop_assert_eq!(with.judge(2.0, 1.0, 10.0), Verdict::Well);
        prop_assert_eq!(with.bad_steps, 3);
    }

    #[test]
    fn batches_that_are_left_out_are_never_drawn_and_no_other_is_missed(
        backs in prop::collection::vec((0u64..40, 0u64..30), 0..4)
    ) {
        let mut guard = Guard::default();
        let mut left_out = std::collections::BTreeSet::new();
        for (further, back) in backs {
            let last = back + u64::from(MOST_STRIKES) - 1 + further;
            let bad: Vec<u64> = (last + 1 - u64::from(MOST_STRIKES)..=last)
                .map(|step| guard.batch_of(step))
                .collect();
            left_out.extend(bad[0]..=bad[bad.len() - 1]);
            let (next, first) = guard.go_back(Guard::default(), last);
            prop_assert_eq!(first, bad[0]);
            guard = next;
        }
        let drawn: Vec<u64> = (0..120).map(|step| guard.batch_of(step)).collect();
        let wanted: Vec<u64> = (0..).filter(|batch| !left_out.contains(batch)).take(120).collect();
        prop_assert_eq!(drawn, wanted);
    }
}

#[test]
fn a_stage_goes_back_a_few_times_and_stops_at_once_where_that_cannot_help() {
    let bad = |guard: &mut Guard| -> Vec<Verdict> {
        (0..MOST_STRIKES)
            .map(|_| guard.judge(f64::NAN, 1.0, 10.0))
            .collect()
    };
    let mut guard = Guard::default();
    for _ in 0..MOST_RETURNS {
        calm(&mut guard, 1.0, 0.1, 30, 1);
        let verdicts = bad(&mut guard);
        assert!(
            matches!(verdicts.last(), Some(Verdict::GoBack(_))),
            "{verdicts:?}"
        );
        guard = guard
            .go_back(Guard::default(), 29 + u64::from(MOST_STRIKES))
            .0;
    }
    let mut other = guard.clone();
    // Well again for a while: too often is too often.
    calm(&mut guard, 1.0, 0.1, 30, 1);
    assert!(matches!(bad(&mut guard).last(), Some(Verdict::Stop(_))));
    // Never well since: the data was not the cause.
    assert!(matches!(bad(&mut other).last(), Some(Verdict::Stop(_))));
    let mut spikes = Guard::default();
    calm(&mut spikes, 1.0, 0.1, 30, 1);
    assert_eq!(
        spikes.judge(50.0, 1.0, 0.0),
        Verdict::Well,
        "a threshold of 0 calls none"
    );
}

/// What a [`Faulty`] executor does wrong in some runs of its programs.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    /// The weights of the loss are no numbers: neither are loss and gradient.
    NotFinite,
    /// The loss is read as a thousandfold.
    Spike,
    /// One bit of one moment is another.
    WrongBit,
    /// From the first faulty run on, one bit of the first parameter is read as another.
    WrongCopy,
}

/// A processor that computes wrongly in runs `from..to`, counted from 0 over all its programs.
pub struct Faulty {
    inner: CpuExecutor,
    fault: Fault,
    from: u64,
    to: u64,
    runs: Arc<AtomicU64>,
}

impl Faulty {
    /// `inner`, with a fault in these runs.
    pub fn new(inner: CpuExecutor, fault: Fault, runs: std::ops::Range<u64>) -> Faulty {
        Faulty {
            inner,
            fault,
            from: runs.start,
            to: runs.end,
            runs: Arc::default(),
        }
    }
}

impl Executor for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn compile_target(&self) -> CompileTarget {
        self.inner.compile_target()
    }

    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>> {
        Ok(Box::new(FaultySession {
            inner: self.inner.load(program)?,
            fault: self.fault,
            faults: self.from..self.to,
            runs: self.runs.clone(),
        }))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        self.inner.write_parameters(offset, values)
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        self.inner.read_parameters(offset, values)?;
        let has_run = self.runs.load(Ordering::Relaxed) > self.from;
        if self.fault == Fault::WrongCopy && has_run && offset == 0 {
            values[0] = f32::from_bits(values[0].to_bits() ^ 1);
        }
        Ok(())
    }

    fn hold_in_bf16(&self, in_bf16: &[std::ops::Range<usize>]) -> Result<()> {
        self.inner.hold_in_bf16(in_bf16)
    }
}

struct FaultySession {
    inner: Box<dyn Session>,
    fault: Fault,
    faults: std::ops::Range<u64>,
    runs: Arc<AtomicU64>,
}

impl Session for FaultySession {
    fn program(&self) -> &Program {
        self.inner.program()
    }

    fn run(&mut self) -> Result<()> {
        let is_faulty = self.faults.contains(&self.runs.load(Ordering::Relaxed));
        if is_faulty && self.fault == Fault::NotFinite {
            let input = self.program().input(ModelInput::Weights.name())?;
            let count = self.program().ty(input).numel();
            self.inner
                .write_f32(ModelInput::Weights.name(), &vec![f32::NAN; count])?;
        }
        self.inner.run()?;
        if is_faulty && self.fault == Fault::WrongBit {
            let arena = self.program().optimizer_state()[0].arena;
            let mut moments = self.inner.read_arena(arena)?;
            moments[0] = f32::from_bits(moments[0].to_bits() ^ 1);
            self.inner.write_arena(arena, &moments)?;
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        Ok(())
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
        self.inner.write_i32(input, values)
    }

    fn read_f64(&self, output: &str) -> Result<Vec<f64>> {
        let mut values = self.inner.read_f64(output)?;
        let run = self.runs.load(Ordering::Relaxed).wrapping_sub(1);
        if output == "loss" && self.fault == Fault::Spike && self.faults.contains(&run) {
            values[0] *= 1000.0;
        }
        Ok(values)
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        self.inner.read_arena(arena)
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        self.inner.write_arena(arena, values)
    }
}

const STEPS: u64 = 44;
/// The first bad step: enough are well before it for spikes to be called.
const BAD: u64 = 30;

/// A run whose first stage is done, and its recipe, with a second of [`STEPS`] steps to come.
fn begun(folder: &Path) -> Recipe {
    fs::write(
        folder.join("two.toml"),
        tiny_recipe(&["warm-up", "fine-grained"]),
    )
    .unwrap();
    let steps = format!("stage.fine-grained.steps={STEPS}");
    let mut args = vec![
        "train",
        "--recipe",
        "two.toml",
        "--out",
        "run",
        "--no-evaluation",
    ];
    args.extend([
        "--device",
        "cpu",
        "--threads",
        "1",
        "--set",
        "stage.warm-up.steps=2",
    ]);
    args.extend(["--set", &steps, "--save-every", "0"]);
    keel(folder, &args).fine();
    fs::remove_file(checkpoint(&folder.join("run"), "2-fine-grained")).unwrap();
    let recipe = folder.join("run/recipe.toml");
    Recipe::load(recipe.to_str().unwrap(), &[]).unwrap()
}

fn options(run: &Path, save_every: u64, recheck_every: u64) -> TrainOptions {
    TrainOptions {
        resume: Some(run.to_owned()),
        save_every,
        recheck_every,
        keep: 2,
        ..TrainOptions::new(SelectedDevice::new(Device::Cpu, 1, None).unwrap())
    }
}

fn copied(run: &Path, to: &Path) {
    fs::create_dir_all(to.join("checkpoints")).unwrap();
    for file in ["recipe.toml", "checkpoints/1-warm-up.safetensors"] {
        fs::copy(run.join(file), to.join(file)).unwrap();
    }
}

fn go_on(
    recipe: &Recipe,
    run: &Path,
    fault: Fault,
    [from, to]: [u64; 2],
    every: [u64; 2],
) -> Result<()> {
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let executor = CpuExecutor::new(layout.elements(), 1).unwrap();
    let faulty = Faulty::new(executor, fault, from..to);
    let trainer = Trainer::new(recipe.clone(), options(run, every[0], every[1]), None)?;
    trainer.computing_on(Box::new(faulty)).run().map(drop)
}

#[test]
fn a_run_that_went_back_ends_with_the_bits_of_one_that_never_saw_that_data() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = begun(folder.path());
    let run = folder.path().join("run");
    // A run that leaves the batches out from the beginning: its guard says so.
    let clean = folder.path().join("clean");
    copied(&run, &clean);
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let path = checkpoint(&clean, "1-warm-up");
    let executor = CpuExecutor::new(layout.elements(), 1).unwrap();
    let sink = &mut |offset, values: &[f32]| executor.write_parameters(offset, values);
    let stored = load(&path, &layout, None, sink).unwrap();
    let mut position = stored.position;
    position.guard = position
        .guard
        .go_back(Guard::default(), BAD + u64::from(MOST_STRIKES) - 1)
        .0;
    save(&path, &position, &layout, &executor, None).unwrap();
    go_on(&recipe, &clean, Fault::Spike, [0, 0], [0, 0]).unwrap();
    let wanted = tensors(&checkpoint(&clean, "2-fine-grained"));

    let bad = [BAD, BAD + u64::from(MOST_STRIKES)];
    for (name, fault, save_every, place) in [
        (
            "from the beginning",
            Fault::NotFinite,
            0,
            "step 0 (the beginning of the stage)",
        ),
        ("from a checkpoint", Fault::NotFinite, 8, "step 24 ("),
        ("after a spike", Fault::Spike, 7, "step 28 ("),
    ] {
        let other = folder.path().join(name);
        copied(&run, &other);
        go_on(&recipe, &other, fault, bad, [save_every, 0]).unwrap();
        assert!(
            tensors(&checkpoint(&other, "2-fine-grained")) == wanted,
            "{name}: other bits"
        );
        let log = fs::read_to_string(other.join("log.txt")).unwrap();
        let line = format!("going back to {place}");
        assert!(
            log.contains(&line) && log.contains("leaving out the batches 30 to 34"),
            "{log}"
        );
        let word = if fault == Fault::Spike {
            "is a spike"
        } else {
            "are not finite"
        };
        assert_eq!(log.matches(word).count() as u32, MOST_STRIKES, "{log}");
        let saved = (STEPS - 1)
            .checked_div(save_every)
            .map(|saves| saves * save_every);
        if let Some(last) = saved {
            assert!(
                log.contains("checkpoints inside stage fine-grained; training waited"),
                "{log}"
            );
            let last = checkpoint(&other, &format!("2-fine-grained.step-{last}"));
            let guard = read_position(&last).unwrap().guard;
            assert_eq!(guard.bad_steps, u64::from(MOST_STRIKES));
            assert_eq!(guard.batch_of(BAD), BAD + u64::from(MOST_STRIKES));
        }
    }
    // Bad whatever is left out: a sentence, and the newest good checkpoint is still there.
    let hopeless = folder.path().join("hopeless");
    copied(&run, &hopeless);
    let problem = go_on(
        &recipe,
        &hopeless,
        Fault::NotFinite,
        [BAD, u64::MAX],
        [8, 0],
    )
    .unwrap_err();
    assert!(
        problem
            .to_string()
            .contains("going back and leaving their data out has not helped"),
        "{problem}"
    );
    assert!(checkpoint(&hopeless, "2-fine-grained.step-24").exists());
}

#[test]
fn a_step_done_twice_changes_no_bit_and_finds_a_machine_that_computes_wrongly() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = begun(folder.path());
    let run = folder.path().join("run");
    let ends = ["once", "twice"].map(|name| {
        let path = folder.path().join(name);
        copied(&run, &path);
        let every = if name == "twice" { 3 } else { 0 };
        go_on(&recipe, &path, Fault::WrongBit, [0, 0], [0, every]).unwrap();
        tensors(&checkpoint(&path, "2-fine-grained"))
    });
    assert!(ends[0] == ends[1]);
    // The second of the two runs of step 6 is wrong; without the check nobody would know.
    let path = folder.path().join("wrong");
    copied(&run, &path);
    let problem = go_on(&recipe, &path, Fault::WrongBit, [9, 10], [0, 3]).unwrap_err();
    let problem = problem.to_string();
    assert!(
        problem.contains("step 6") && problem.contains("does not compute reliably"),
        "{problem}"
    );
}
