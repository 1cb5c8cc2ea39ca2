//! The panels world: images that are drawn by code from a seed, so that every fact about them is known exactly. An image is
//! two rows of two panels, each with a shape, its colour and a digit on it. Captions leave a known part of that out, so that
//! what a tower was never taught is known too, and every question has its answer in a small closed set of single words: one
//! forward pass scores it, against a known chance.
//!
//! A tenth of all combinations of shape, colour and digit, and one style of drawing, occur in no training.
#![deny(unsafe_code)]

pub mod eval_sets;
pub mod held_out;
pub mod image;
pub mod question_kind;
pub mod questions;
pub mod scene;
pub mod sources;
pub mod stencils;
pub mod tasks;
pub mod texts;
pub mod words;
