//! Keel trains visual backbones for multimodal language models by gradual feature refinement.
//!
//! Every folder beside this file is a package; this one is all of them under one name, for programs, tests and benchmarks.
#![deny(unsafe_code)]

pub use keel_base::{clock, error, files, mapped_file, random, units};
pub use keel_cli as cli;
pub use keel_cpu as cpu;
pub use keel_data as data;
pub use keel_emoji as emoji;
pub use keel_engine::{executor, launch, ops, plan, program, tape, tensor};
pub use keel_eval as eval;
pub use keel_model as model;
pub use keel_panels as panels;
pub use keel_ranks as ranks;
pub use keel_report as report;
pub use keel_serve as serve;
pub use keel_stores as stores;
pub use keel_train as train;
pub use keel_weights as weights;
