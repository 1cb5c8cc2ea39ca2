//! Ops.

mod attention;

pub use attention::{Heads, Mask, attention, cross_attention};
