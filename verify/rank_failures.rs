//! What one of several ranks meets, known to all: kills, full disks, numbers that are not finite, parameters that differ, signals.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use keel::executor::{CpuExecutor, Device, Executor, Precision, SelectedDevice};
use keel::model::declare;
use keel::tensor::DType;
use keel::train::{Disk, LocalDisk, OpenFile, Signals, Stop, TrainOptions, Trainer};

use crate::command::{checkpoint, command, tensors, tiny_recipe};
use crate::guard::{Fault, Faulty};
use crate::harness::Random;
use crate::rank_runs::{
    floats, on_ranks, one_stage, options, packed, shards, train, whole_tensors,
};

#[test]
fn kills_of_ranks_at_random_moments_cost_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("two.toml"),
        tiny_recipe(&["warm-up", "fine-grained"]),
    )
    .unwrap();
    let settings = "--ranks 2 --no-evaluation --device cpu --threads 1 --save-every 2 --keep 2";
    let new = |out: &str| {
        let steps = "--set stage.warm-up.steps=20 --set stage.fine-grained.steps=20";
        format!("train --recipe two.toml --out {out} {steps} {settings}")
    };
    let start = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        command(folder.path(), &words)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    assert!(start(&new("whole")).wait().unwrap().success());
    let labels = ["1-warm-up", "2-fine-grained"];
    let of = |run: &str| labels.map(|label| tensors(&checkpoint(&folder.path().join(run), label)));
    let wanted = of("whole");
    // A few in every run of the tests; .ci/run asks for a hundred.
    let wanted_kills = match std::env::var("KEEL_KILLS") {
        Ok(number) => number.parse().expect("KEEL_KILLS is a number"),
        Err(_) => 4,
    };
    let mut random = Random::new(26);
    let (mut kills, mut ends) = (0, 0);
    while kills < wanted_kills || ends == 0 {
        let out = format!("run-{ends}");
        let line = if folder.path().join(&out).join("recipe.toml").exists() {
            format!("train --resume {out} {settings}")
        } else {
            new(&out)
        };
        let mut child = start(&line);
        // The last life is left alone.
        if kills < wanted_kills {
            std::thread::sleep(Duration::from_secs_f64(0.6 * random.uniform()));
            // One may have come to its end by now.
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.code().is_none() {
            kills += 1;
            continue;
        }
        assert!(status.success(), "{status}");
        assert!(of(&out) == wanted, "{out}: other bits after {kills} kills");
        ends += 1;
    }
    println!("{kills} kills; {ends} runs came to their end with the same bits");
}

/// A disk that has no room for files whose names begin like this.
#[derive(Debug)]
struct FullFor(&'static str);

impl Disk for FullFor {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        LocalDisk.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(self.0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        LocalDisk.create(path)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        LocalDisk.append(path)
    }

    fn shorten(&self, path: &Path, length: u64) -> io::Result<()> {
        LocalDisk.shorten(path, length)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove(path)
    }

    fn flush_folder(&self, path: &Path) -> io::Result<()> {
        LocalDisk.flush_folder(path)
    }
}

#[test]
fn a_rank_without_room_for_its_part_costs_that_checkpoint_and_not_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = packed();
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    let to_the_end = |out: &Path| TrainOptions {
        max_steps: None,
        ..options(out, 1)
    };
    train(2, &recipe, &to_the_end(&whole));
    let outcomes = on_ranks(2, |seat| {
        let disk: Arc<dyn Disk> = match seat.world().rank {
            1 => Arc::new(FullFor("1-world-knowledge.step-3.rank-0001")),
            _ => Arc::new(LocalDisk),
        };
        let options = TrainOptions {
            disk,
            seat,
            ..to_the_end(&run)
        };
        Trainer::new(recipe.clone(), options, None)
    });
    for outcome in outcomes {
        outcome.unwrap();
    }
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    let said = "1-world-knowledge.step-3.safetensors was not saved, and the run goes on: rank 1: ";
    assert!(log.contains(said), "{log}");
    assert!(!checkpoint(&run, "1-world-knowledge.step-3").exists());
    assert!(shards(&run, "1-world-knowledge.step-3").is_empty());
    for label in [
        "1-world-knowledge.step-2",
        "1-world-knowledge.step-4",
        "1-world-knowledge",
    ] {
        assert!(
            whole_tensors(&run, label) == whole_tensors(&whole, label),
            "{label}"
        );
    }
}

#[test]
fn parameters_that_differ_between_ranks_end_all_of_them_before_they_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = one_stage("fine-grained", &["steps=14", "contrastive_weight=0.0"]);
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    for (ranks, named) in [
        (2, "ranks 0, 1 hold different parameters"),
        (4, "rank 1 holds other parameters than the others"),
    ] {
        let run = folder.path().join(ranks.to_string());
        let outcomes = on_ranks(ranks, |seat| {
            let is_faulty = seat.world().rank == 1;
            let mut executor = CpuExecutor::new(layout.elements(), 1).unwrap();
            executor.join(seat.engine().unwrap().clone()).unwrap();
            let options = TrainOptions {
                max_steps: None,
                save_every: 2,
                seat,
                ..options(&run, 1)
            };
            let first = if is_faulty { 2 } else { u64::MAX - 1 };
            let faulty = Faulty::new(executor, Fault::WrongCopy, first..first + 1);
            Ok(Trainer::new(recipe.clone(), options, None)?.computing_on(Box::new(faulty)))
        });
        for outcome in outcomes {
            let sentence = outcome.unwrap_err().to_string();
            let said = format!("stage fine-grained, step 4: {named}, ");
            assert!(sentence.starts_with(&said), "{sentence}");
        }
        assert!(checkpoint(&run, "1-fine-grained.step-2").is_file());
        assert!(!checkpoint(&run, "1-fine-grained.step-4").exists());
    }
}

#[test]
fn numbers_that_are_not_finite_on_one_rank_take_all_ranks_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = one_stage("fine-grained", &["steps=14", "contrastive_weight=0.0"]);
    recipe.stages[0].batch_size = 2;
    let run = folder.path().join("run");
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let outcomes = on_ranks(2, |seat| {
        let is_faulty = !seat.world().is_first();
        let mut executor = CpuExecutor::new(layout.elements(), 1).unwrap();
        executor.join(seat.engine().unwrap().clone()).unwrap();
        let options = TrainOptions {
            max_steps: None,
            save_every: 2,
            seat,
            ..options(&run, 1)
        };
        let faults = if is_faulty { 5..10 } else { 0..0 };
        let faulty = Faulty::new(executor, Fault::NotFinite, faults);
        Ok(Trainer::new(recipe.clone(), options, None)?.computing_on(Box::new(faulty)))
    });
    for outcome in outcomes {
        outcome.unwrap();
    }
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    let back = "5 bad steps in a row; going back to step 4";
    assert!(
        log.contains(back) && log.contains("leaving out the batches 5 to 9"),
        "{log}"
    );
    assert!(
        log.contains("rank 0: stage fine-grained, step 5: loss NaN"),
        "{log}"
    );
    let last = tensors(&checkpoint(&run, "1-fine-grained"));
    assert!(
        last.values()
            .flat_map(|bytes| floats(bytes))
            .all(f32::is_finite)
    );
}

#[test]
fn ranks_with_f32_values_in_shards_go_back_to_the_beginning_as_one_rank_does() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["steps=8", "batch_size=4", "micro_batch_size=2"];
    let mut recipe = one_stage("fine-grained", &settings);
    recipe.reproducible_across_ranks = true;
    recipe.stages[0].reinitialize = vec!["align".into()];
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let ended = [1, 2].map(|ranks| {
        let run = folder.path().join(ranks.to_string());
        let outcomes = on_ranks(ranks, |seat| {
            let is_faulty = seat.world().rank + 1 == ranks;
            let mut executor = CpuExecutor::new(layout.elements(), 1).unwrap();
            if let Some(engine) = seat.engine() {
                executor.join(engine.clone()).unwrap();
            }
            let options = TrainOptions {
                compute: SelectedDevice::new(Device::Cpu, 1, Some(Precision::Bf16)).unwrap(),
                max_steps: None,
                save_every: 0,
                seat,
                ..options(&run, 1)
            };
            let faults = if is_faulty { 1..6 } else { 0..0 };
            let executor = executor.in_precision(DType::Bf16);
            let faulty = Faulty::new(executor, Fault::NotFinite, faults);
            Ok(Trainer::new(recipe.clone(), options, None)?.computing_on(Box::new(faulty)))
        });
        for outcome in outcomes {
            outcome.unwrap();
        }
        let log = fs::read_to_string(run.join("log.txt")).unwrap();
        let back = "going back to step 0 (the beginning of the stage)";
        assert!(log.contains(back), "{log}");
        tensors(&checkpoint(&run, "1-fine-grained"))
    });
    assert!(ended[0] == ended[1], "other bits");
}

#[test]
fn a_rank_that_fails_ends_all_with_its_own_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = one_stage("fine-grained", &["steps=14", "contrastive_weight=0.0"]);
    let run = folder.path().join("run");
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let outcomes = on_ranks(2, |seat| {
        let is_faulty = !seat.world().is_first();
        let mut executor = CpuExecutor::new(layout.elements(), 1).unwrap();
        executor.join(seat.engine().unwrap().clone()).unwrap();
        let options = TrainOptions {
            recheck_every: 1,
            seat,
            ..options(&run, 1)
        };
        let faults = if is_faulty { 1..2 } else { 0..0 };
        let faulty = Faulty::new(executor, Fault::WrongBit, faults);
        Ok(Trainer::new(recipe.clone(), options, None)?.computing_on(Box::new(faulty)))
    });
    let texts: Vec<String> = outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_err().to_string())
        .collect();
    let cause = "the same step done twice left different bits";
    assert!(texts[1].contains(cause), "{texts:?}");
    assert!(
        texts[0].starts_with("rank 1: it is gone: ") && texts[0].contains(cause),
        "{texts:?}"
    );
}

#[test]
fn a_signal_to_any_rank_ends_all_at_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = one_stage("fine-grained", &["steps=1000"]);
    let run = folder.path().join("run");
    let outcomes = on_ranks(2, |seat| {
        let signals = Signals::default();
        if !seat.world().is_first() {
            signals.ask_to_stop(Stop::Terminate);
        }
        let options = TrainOptions {
            max_steps: None,
            signals,
            seat,
            ..options(&run, 1)
        };
        Trainer::new(recipe.clone(), options, None)
    });
    for outcome in outcomes {
        let sentence = outcome.unwrap_err().to_string();
        assert!(
            sentence.starts_with("ended by TERM at stage fine-grained, step 1,"),
            "{sentence}"
        );
    }
    assert!(checkpoint(&run, "1-fine-grained.step-1").is_file());
}
