//! The cases of every op, one file an op.

mod attention;
mod basic;
mod linear;
mod norm;
