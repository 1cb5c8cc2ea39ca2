//! The machine that executes the kernels' PTX: what it refuses, that every kernel agrees with the emulator on it, and that it
//! notices changes of the text; and each wrapper of cuda/ptx by itself. Op cases run on it from the harness.

mod coverage;
mod hopper;
mod machine;
mod mutations;
mod wrappers;
