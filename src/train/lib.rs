//! Training: recipes, stages, steps, checkpoints.
#![deny(unsafe_code)]

mod ablation;
mod adapters;
mod chat_template;
mod checkpoint;
mod evaluate;
mod from_weights;
mod gradient_accumulator;
mod guard;
mod masters;
mod memory_limit;
mod observer;
mod out_folder;
mod recipe;
mod run;
mod scaling;
mod stage;
mod stage_data;
mod step_program;
mod teacher;
mod trainer;
mod validation;
mod worlds;

pub use ablation::{
    Ablation, AblationOptions, AblationPlan, AblationResults, Arm, ArmSummary, BUILT_IN_PLANS,
    BenchmarkInputs, EqualArms, MetricSummary, PrimaryResult, PrimaryTest, Quick, Spend,
    TargetForm, Unit, UnitResult, UnitTarget, form_and_metric, step_flops, units, write_results,
};
pub use chat_template::{FolderChat, folder_chat_template};
pub use checkpoint::{
    Checkpoint, Disk, LocalDisk, OpenFile, Position, ShardFile, Snapshot, folder_inside,
    free_bytes, load, read_position, save, write_durably,
};
pub use evaluate::{
    AnsweredBenchmark, Chat, EvalRun, EvalTower, ExportOptions, ExportPart, Exported, LoraExport,
    Measured, Profile, ProfiledOp, TowerFeatures, export, write_measurements,
};
pub use from_weights::{Beginning, PublishedWeights};
pub use guard::{Guard, MOST_RETURNS, MOST_STRIKES, Verdict};
pub use memory_limit::largest_micro_batch;
pub use observer::{
    Evaluated, Event, Observer, Observers, RunBegins, Silent, StageBegins, StepReport, StepsBegin,
    UnitBegins, Validated,
};
pub use recipe::{
    BUILT_IN, ChatSettings, ContrastWith, DecayShape, INITIAL, MODULES, RENAMED_PLAN_KEYS,
    RENAMED_RECIPE_KEYS, Recipe, Renamed, Schedule, Stage, StageKind, ValidationMetric,
    ValidationSettings,
};
pub use run::{
    InitialWeights, RunFolder, RunInputs, Signals, StepAverages, Stop, TrainOptions,
    newest_checkpoint, recipe_in, recipe_of, stage_checkpoints,
};
pub use scaling::{Cluster, RankMemory, RankStep, Sharding, Sizes};
pub use stage::LeftOut;
pub use step_program::{
    OptimizerScalars, batch_inputs, compile_rank_step, compile_step, optimizer_scalars,
    record_rank_step, record_step, whole_step_flops,
};
pub use trainer::Trainer;
pub use validation::{
    GeneratedAnswer, HeldOutInputs, HeldOutPairs, ValidationHistory, ValidationMeasures,
    ValidationPlan,
};
pub use worlds::{TASKS, task_sources};
