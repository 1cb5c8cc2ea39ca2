//! The emoji world: 1,906 concepts that come with the program, drawn by two vendors, and everything that is said and asked
//! about them. It is what Keel trains on, and evaluates on, where a user brings nothing.
//!
//! It stands on [`data`](keel_data), which knows nothing of it: its tasks are [`TaskSource`](keel_data::source::TaskSource)s,
//! its images [`Drawing`](keel_data::frame::Drawing)s, its evaluation sets
//! [`EvalSet`](keel_data::eval_set::EvalSet)s.

pub mod captions;
pub mod colours;
pub mod corpus;
pub mod embedded;
pub mod emoji_set;
pub mod eval_sets;
pub mod facts;
pub mod names;
pub mod ocr;
pub mod question_kind;
pub mod questions;
pub mod scenes;
pub mod sources;
pub mod sprite;
pub mod tasks;
pub mod variation;
