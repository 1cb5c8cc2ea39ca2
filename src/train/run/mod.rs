//! A run: its options, what is fixed about it, its folder and what it keeps there, and how it is asked to stop.

mod event_file;
mod folder;
mod inputs;
mod options;
mod progress_log;
mod recipe_changes;
mod recorder;
mod signals;
mod state;

pub use folder::{RunFolder, newest_checkpoint, recipe_in, recipe_of, stage_checkpoints};
pub(super) use folder::{
    TOKENIZER, best_label, evaluations_folder, held, inside_stage, newest_first, run_of,
    stage_label, step_label,
};
pub use inputs::RunInputs;
pub use options::{InitialWeights, TrainOptions};
pub use progress_log::StepAverages;
pub(super) use progress_log::{ProgressLog, StepNumbers, StepSize};
pub(super) use recipe_changes::{changes, moved_stages};
pub(super) use recorder::RunRecorder;
pub use signals::{Signals, Stop};
pub(super) use state::{Asked, Run, RunState, told_by_first};
