//! Batches made ahead of the step that needs them, on threads of their own. The order is the order of steps whatever the
//! number of threads; errors and panics of a worker arrive at the step they belong to; dropping it ends the threads.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::batch::Batch;
use keel_base::error::{Error, Result};

/// Makes the batch of a step.
pub type MakeBatch = Arc<dyn Fn(u64) -> Result<Batch> + Send + Sync>;

struct State {
    ready: BTreeMap<u64, Result<Batch>>,
    /// The next step that a worker takes on.
    next_to_make: u64,
    /// The next step that the consumer will ask for.
    next_to_give: u64,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    depth: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("workers catch panics outside the lock")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .expect("workers catch panics outside the lock")
    }
}

/// A bounded queue of batches, filled in the background.
pub struct Prefetcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Prefetcher {
    /// Starts `threads` workers (at least one) that make the batches from `first_step` on, at most `depth` (at least one)
    /// ahead of the consumer.
    pub fn new(make: MakeBatch, first_step: u64, threads: usize, depth: usize) -> Prefetcher {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ready: BTreeMap::new(),
                next_to_make: first_step,
                next_to_give: first_step,
                stopped: false,
            }),
            changed: Condvar::new(),
            depth: depth.max(1) as u64,
        });
        let workers = (0..threads.max(1))
            .map(|_| {
                let (shared, make) = (shared.clone(), make.clone());
                std::thread::spawn(move || work(&shared, &make))
            })
            .collect();
        Prefetcher { shared, workers }
    }

    /// The batch of the next step, with the step; waits until it is made.
    ///
    /// # Errors
    /// The error of making this step's batch; the steps after it can still be asked for.
    pub fn next_batch(&mut self) -> Result<(u64, Batch)> {
        let mut state = self.shared.lock();
        let step = state.next_to_give;
        let made = loop {
            match state.ready.remove(&step) {
                Some(made) => break made,
                None => state = self.shared.wait(state),
            }
        };
        state.next_to_give += 1;
        drop(state);
        self.shared.changed.notify_all();
        made.map(|batch| (step, batch))
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            worker
                .join()
                .expect("workers catch the panics of what makes batches");
        }
    }
}

fn work(shared: &Shared, make: &MakeBatch) {
    loop {
        let step = {
            let mut state = shared.lock();
            while !state.stopped && state.next_to_make >= state.next_to_give + shared.depth {
                state = shared.wait(state);
            }
            if state.stopped {
                return;
            }
            state.next_to_make += 1;
            state.next_to_make - 1
        };
        let made = catch_unwind(AssertUnwindSafe(|| make(step))).unwrap_or_else(|panic| {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Error::stopped(
                format!("data of step {step}"),
                format!("making the batch failed inside the program ({said})"),
                "report this with the recipe and seed",
            ))
        });
        shared.lock().ready.insert(step, made);
        shared.changed.notify_all();
    }
}
