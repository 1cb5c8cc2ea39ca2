//! The batches of a stage on their way from the data to its session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::left_out::LeftOut;
use super::rank_batch::{MicroWeight, meet};
use super::stage_loop::write_micro_batch;
use crate::gradient_accumulator::weight;
use crate::guard::Guard;
use crate::recipe::{Dealing, Stage};
use keel_base::error::{Error, Result};
use keel_data::batch::{Batch, Skipped};
use keel_data::mixture::Mixture;
use keel_data::prefetch::Prefetcher;
use keel_engine::executor::Session;
use keel_model::BatchInputs;
use keel_ranks::Votes;

/// Batches that are made before they are wanted, at least.
const BATCHES_AHEAD: usize = 4;

/// Hands micro-batch after micro-batch to a session, in the order of the steps.
pub(super) struct Feed<'a> {
    stage: &'a Stage,
    batches: Prefetcher,
    /// What the session's program reads of a batch.
    inputs: Arc<BatchInputs>,
    /// What its steps leave out of the vision tower.
    left_out: LeftOut,
    /// What was handed over before it was asked for, or what was wrong with it.
    ahead: Option<Result<(Batch, MicroWeight)>>,
    /// What this rank tells the others of its batches.
    votes: &'a dyn Votes,
    dealing: Dealing,
    in_tree: bool,
}

/// Which batches a feed gives.
pub(super) struct FeedPlan {
    /// The first step, from 0.
    pub first: u64,
    /// All steps of the stage.
    pub steps: u64,
    /// Whether every step gets the first batch.
    pub one_batch: bool,
    /// What batches are left out.
    pub guard: Guard,
    /// Whether a device computes, which leaves the processor's cores to the data.
    pub cores_are_free: bool,
    /// Which micro-batches are this rank's.
    pub dealing: Dealing,
    /// Whether their gradients are added in a tree.
    pub in_tree: bool,
}

/// The micro-batches of a stage's first batch, for steps that all train on it. They are made once: what cannot be used of them
/// is one sample each, however often it is trained around.
#[derive(Default)]
struct FirstBatch {
    made: Mutex<BTreeMap<u64, Batch>>,
}

impl FirstBatch {
    /// Micro-batch `micro` of this rank, `number` among those of all.
    fn micro_batch(&self, mixture: &Mixture, step: u64, micro: u64, number: u64) -> Result<Batch> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = match made.get(&micro) {
            Some(batch) => batch.clone(),
            None => {
                let batch = mixture.batch(number)?;
                made.insert(micro, batch.clone());
                batch
            }
        };
        if step > 0 {
            // Counted in the first step, also by a run that goes on after it.
            batch.skipped = Skipped {
                without_room: batch.skipped.without_room,
                ..Skipped::default()
            };
        }
        Ok(batch)
    }
}

impl<'a> Feed<'a> {
    /// Begins to make the batches of `plan` in the background.
    pub fn new(
        stage: &'a Stage,
        mixture: Arc<Mixture>,
        (inputs, left_out): (Arc<BatchInputs>, LeftOut),
        votes: &'a dyn Votes,
        plan: FeedPlan,
    ) -> Feed<'a> {
        let FeedPlan {
            first,
            steps,
            one_batch,
            guard,
            cores_are_free,
            dealing,
            in_tree,
        } = plan;
        let count = stage.micro_batches() as u64;
        let world = votes.world();
        let number_of = move |micro: u64| dealing.number(world, count, micro);
        let workers = if cores_are_free {
            std::thread::available_parallelism().map_or(1, usize::from)
        } else {
            1
        };
        let first_batch = FirstBatch::default();
        // By number and not by a counter: whatever worker makes it, a batch depends on the seed, the stage and its step.
        let make = move |number: u64| {
            let (step, micro) = (number / count, number % count);
            if step >= steps {
                // Made ahead and never asked for.
                return Err(Error::setting("step", format!("below {steps}"), step));
            }
            if one_batch {
                return first_batch.micro_batch(&mixture, step, micro, number_of(micro));
            }
            mixture.batch(number_of(guard.batch_of(step) * count + micro))
        };
        let depth = BATCHES_AHEAD.max(workers);
        Feed {
            stage,
            inputs,
            left_out,
            batches: Prefetcher::new(Arc::new(make), first * count, workers, depth),
            ahead: None,
            votes,
            dealing,
            in_tree,
        }
    }

    /// Hands the next micro-batch to the session, unless it is there already; returns it with its weight.
    ///
    /// # Errors
    /// What is wrong with the batch; whatever the session reports.
    pub fn next(&mut self, session: &mut dyn Session) -> Result<(Batch, MicroWeight)> {
        match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.write(session),
        }
    }

    /// Hands the next micro-batch to the session while that still computes. What is wrong with it is said when it is asked
    /// for: the step that is under way has nothing to do with it.
    pub fn go_ahead(&mut self, session: &mut dyn Session) {
        assert!(self.ahead.is_none(), "one micro-batch ahead at most");
        self.ahead = Some(self.write(session));
    }

    fn write(&mut self, session: &mut dyn Session) -> Result<(Batch, MicroWeight)> {
        let (number, mut batch) = self.batches.next_batch()?;
        let (world, count) = (self.votes.world(), self.stage.micro_batches() as u64);
        let number = self.dealing.number(world, count, number);
        let own = MicroWeight {
            place: self.dealing.place(world.ranks, count, number) as i32,
            ..MicroWeight::alone(weight(self.stage, &batch, world.ranks), number)
        };
        let weight = meet(self.votes, self.stage, &mut batch, own, self.in_tree)?;
        let inputs = (&*self.inputs, &self.left_out);
        write_micro_batch(session, self.stage, inputs, &batch, &weight)?;
        Ok((batch, weight))
    }
}
