//! The one test binary.

mod allocations;
mod bad_input;
mod command;
mod cpu_math;
mod data_embedded;
mod data_mutation;
mod data_pairs;
mod data_pairs_bad;
mod data_picture;
mod data_picture_bad;
mod data_webdataset;
mod harness;
mod ops;
mod plan;
mod recipes;
mod runs;
mod simt;
mod tasks_batches;
mod tasks_eval_sets;
mod tasks_mixture;
mod tasks_pictures;
mod tasks_questions;
mod tasks_tokenizer;
