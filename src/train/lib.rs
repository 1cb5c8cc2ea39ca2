//! Training: recipes, stages, steps, checkpoints.
#![deny(unsafe_code)]

mod ablation;
mod benchmark;
mod changes;
mod checkpoint;
mod disk;
mod evaluation;
mod events;
mod export;
mod from_weights;
mod gathered;
mod guard;
mod loaded_run;
mod loaded_tower;
mod locate;
mod measuring;
mod memory_limit;
mod meter;
mod profile;
mod recipe;
mod record;
mod run_folder;
mod saver;
mod saving;
mod signals;
mod stage_data;
mod stage_loop;
mod step_program;
mod stored;
mod trainer;
mod validate;
mod words;

pub use ablation::{
    Ablation, AblationOptions, AblationPlan, AblationResults, Arm, ArmSummary, BUILT_IN_PLANS,
    MetricSummary, Quick, Spend, Unit, UnitResult, step_flops, units, write_results,
};
pub use checkpoint::{Checkpoint, Position, Snapshot, load, read_position, save};
pub use disk::{Disk, LocalDisk, OpenFile, free_bytes, write_durably};
pub use export::{ExportOptions, ExportPart, Exported, export};
pub use from_weights::PublishedWeights;
pub use guard::{Guard, MOST_RETURNS, MOST_STRIKES, Verdict};
pub use loaded_run::LoadedRun;
pub use loaded_tower::LoadedTower;
pub use measuring::{Measured, write_measurements};
pub use memory_limit::largest_micro_batch;
pub use meter::{Due, Interval, Meter, StepNumbers, StepSize, curve};
pub use profile::{Profile, ProfiledOp};
pub use recipe::{
    BUILT_IN, ChatSettings, ContrastiveForm, MODULES, Recipe, Schedule, Stage, StageKind,
    TokenWeighting,
};
pub use run_folder::{RunFolder, newest_checkpoint, recipe_of, stage_checkpoints};
pub use signals::{Signals, Stop};
pub use step_program::{compile_step, hyper, record_step, step_shape, whole_step_flops};
pub use trainer::{Beginning, TrainOptions, Trainer};
