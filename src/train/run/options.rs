//! What a run is started with beside its recipe.

use std::path::PathBuf;
use std::sync::Arc;

use super::signals::Signals;
use crate::checkpoint::{Disk, LocalDisk};
use crate::observer::{Observer, Silent};
use crate::validation::HeldOutPairs;
use keel_base::clock::Clock;
use keel_engine::executor::SelectedDevice;
use keel_ranks::Seat;

/// What the command line adds to a recipe.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// What computes.
    pub compute: SelectedDevice,
    /// Where the run goes; the next free folder under runs/ by default.
    pub out: Option<PathBuf>,
    /// A run to continue.
    pub resume: Option<PathBuf>,
    /// Steps after which each stage ends at the latest.
    pub max_steps: Option<u64>,
    /// Trains every step of a stage on its first batch, to see that the loss can fall.
    pub overfit_one_batch: bool,
    /// Whether a run may go on with other data, or stages in another order, than its checkpoint says.
    pub accept_changes: bool,
    /// The most bytes of a step's arena.
    pub memory_budget: Option<u64>,
    /// The most bytes that a stage may take in all, by its plan; more is refused.
    pub memory_limit: Option<u64>,
    /// Steps between checkpoints within a stage; 0 for none.
    pub save_every: u64,
    /// Standard deviations above the median of late losses from which a loss is a spike; 0 calls none.
    pub spike_threshold: f64,
    /// Steps between two that are done twice to compare their bits; 0 for none.
    pub recheck_every: u64,
    /// Checkpoints kept within a stage, the newest; at least 1.
    pub keep: u64,
    /// Steps between checkpoints within a stage that are kept for good; 0 for none.
    pub keep_every: u64,
    /// Samples of each evaluation set.
    pub evaluation_size: usize,
    /// Whether stages are evaluated.
    pub evaluate: bool,
    /// Samples that stages are validated on; none are where there are none.
    pub held_out: Option<HeldOutPairs>,
    /// Bytes of the pairs' images, decoded and scaled, that are kept for their next draw; 0 keeps none.
    pub image_cache: u64,
    /// Who hears what the run tells, beside its own folder.
    pub observer: Arc<dyn Observer>,
    /// What tells the time.
    pub clock: Clock,
    /// What writes the run's folder.
    pub disk: Arc<dyn Disk>,
    /// What the user may signal meanwhile.
    pub signals: Signals,
    /// This rank's place among those that train the run. The first writes the folder, evaluates and tells of it; of the others
    /// only warnings are heard.
    pub seat: Seat,
}

impl TrainOptions {
    /// A new run in the next free folder, without limits, evaluation or checkpoints inside stages, that only its
    /// folder hears of.
    pub fn new(compute: SelectedDevice) -> TrainOptions {
        TrainOptions {
            compute,
            out: None,
            resume: None,
            max_steps: None,
            overfit_one_batch: false,
            accept_changes: false,
            memory_budget: None,
            memory_limit: None,
            save_every: 0,
            spike_threshold: 10.0,
            recheck_every: 0,
            keep: 1,
            keep_every: 0,
            evaluation_size: 0,
            evaluate: false,
            held_out: None,
            image_cache: 0,
            observer: Arc::new(Silent),
            clock: Clock::default(),
            disk: Arc::new(LocalDisk),
            signals: Signals::default(),
            seat: Seat::default(),
        }
    }
}

/// Weights that a run begins from in the place of first values, and the stage that it begins with.
#[derive(Clone, Debug)]
pub struct InitialWeights {
    /// Index of the first stage that is run.
    pub stage: usize,
    /// All parameters in arena order.
    pub parameters: Vec<f32>,
}
