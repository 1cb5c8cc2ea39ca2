//! What ranks that are threads of one process cost: steps of one, two and four ranks with the same total batch on the same
//! cores, in turn, in processor time, which waiting does not count in and which what else the machine does touches least; and in
//! wall time beside it.
//!
//!     cargo bench --bench ranks              a row for each recipe and number of ranks

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keel::error::Result;
use keel::executor::SelectedDevice;
use keel::ranks::{Seat, local};
use keel::train::{Event, Observer, Recipe, TrainOptions, Trainer};
use rustix::time::{ClockId, clock_gettime};

/// What is timed.
struct Case {
    recipe: &'static str,
    /// Its stage.
    stage: &'static str,
    steps: u64,
    /// Samples that a rank computes at once, where that does not depend on the ranks.
    micro_batch: Option<usize>,
    /// Whether the gradients of micro-batches are added to the same bits on any number of ranks.
    is_reproducible: bool,
}

const CASES: [Case; 4] = [
    Case {
        recipe: "tiny",
        stage: "world-knowledge",
        steps: 24,
        micro_batch: None,
        is_reproducible: false,
    },
    Case {
        recipe: "emoji",
        stage: "world-knowledge",
        steps: 7,
        micro_batch: None,
        is_reproducible: false,
    },
    Case {
        recipe: "emoji",
        stage: "world-knowledge",
        steps: 7,
        micro_batch: Some(4),
        is_reproducible: false,
    },
    Case {
        recipe: "emoji",
        stage: "world-knowledge",
        steps: 7,
        micro_batch: Some(4),
        is_reproducible: true,
    },
];
/// Numbers of ranks.
const RANKS: [usize; 3] = [1, 2, 4];
/// Steps that are not counted, at the start of each run.
const WARM_UP: usize = 2;
/// Times that each number of ranks has its turn.
const ROUNDS: usize = 2;

/// Processor time of this process, and wall time, at one moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    processor: Duration,
    wall: Instant,
}

impl Moment {
    fn now() -> Moment {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Moment {
            processor: Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
            wall: Instant::now(),
        }
    }

    /// Seconds of the processor and of the clock since another.
    fn since(&self, other: &Moment) -> [f64; 2] {
        let processor = self.processor - other.processor;
        [processor, self.wall - other.wall].map(|time| time.as_secs_f64())
    }
}

/// Notes when each step was done.
#[derive(Debug, Default)]
struct Clock(Mutex<Vec<Moment>>);

impl Observer for Clock {
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        if let Event::StepDone(_) = event {
            self.0
                .lock()
                .expect("nobody panics with it")
                .push(Moment::now());
        }
        Ok(())
    }
}

/// Seconds of the processor and of the clock of each step but the first ones of a run of `recipe` over the seats, on `threads`
/// threads in all.
fn run(recipe: &Recipe, steps: u64, ranks: usize, threads: usize, out: &Path) -> Vec<[f64; 2]> {
    let clock = Arc::new(Clock::default());
    let train = |seat: Seat| {
        let options = TrainOptions {
            out: Some(out.to_owned()),
            max_steps: Some(steps),
            observer: clock.clone(),
            seat,
            ..TrainOptions::new(SelectedDevice::processor((threads / ranks).max(1)))
        };
        let trained = Trainer::new(recipe.clone(), options, None).and_then(|mut t| t.run());
        trained.expect("a run of a built-in recipe");
    };
    if ranks == 1 {
        train(Seat::default());
    } else {
        std::thread::scope(|scope| {
            for seat in local::seats(ranks) {
                scope.spawn(|| train(seat));
            }
        });
    }
    let done = clock.0.lock().expect("nobody panics with it");
    let seconds = done.windows(2).map(|pair| pair[1].since(&pair[0]));
    seconds.skip(WARM_UP).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "recipe,stage,batch,micro_batch,reproducible,threads,ranks,processor_ms,over_one_rank,wall_ms"
    );
    for case in CASES {
        let (name, stage, steps) = (case.recipe, case.stage, case.steps);
        let mut recipe = Recipe::load(name, &[]).expect("a built-in recipe");
        recipe.stages.retain(|known| known.name == stage);
        recipe.stages[0].micro_batch_size = case.micro_batch;
        recipe.reproducible_across_ranks = case.is_reproducible;
        let micro_batch = case.micro_batch.map_or("whole".into(), |n| n.to_string());
        let reproducible = if case.is_reproducible { "yes" } else { "no" };
        let mut seconds = RANKS.map(|_| Vec::new());
        for round in 0..ROUNDS {
            for (ranks, seconds) in RANKS.into_iter().zip(&mut seconds) {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let out = folder.path().join(format!("{ranks}-{round}"));
                seconds.extend(run(&recipe, steps, ranks, threads, &out));
            }
        }
        let medians = seconds.map(|steps| {
            [0, 1].map(|clock| 1e3 * median(steps.iter().map(|step| step[clock]).collect()))
        });
        for (ranks, [processor, wall]) in RANKS.into_iter().zip(medians) {
            let batch = recipe.stages[0].batch_size;
            let ratio = processor / medians[0][0];
            println!(
                "{name},{stage},{batch},{micro_batch},{reproducible},{threads},{ranks},{processor:.2},{ratio:.2},{wall:.2}"
            );
        }
    }
}
