//! What is done with a model between and after its stages: evaluating, measuring, asking, profiling and exporting it.

mod benchmark;
mod chat;
mod eval_run;
mod eval_tower;
mod export;
mod export_chat;
mod export_folder;
mod measuring;
mod model_card;
mod profile;
mod reader;
mod settings;
mod tower_features;

pub use benchmark::AnsweredBenchmark;
pub use chat::Chat;
pub use eval_run::EvalRun;
pub use eval_tower::EvalTower;
pub use export::{ExportOptions, ExportPart, Exported, LoraExport, export};
pub(super) use measuring::measure_after;
pub use measuring::{Measured, write_measurements};
pub use profile::{Profile, ProfiledOp};
pub(super) use reader::{text_ceilings, tower_change};
pub(super) use settings::{eval_context, evaluation_settings};
pub use tower_features::TowerFeatures;
