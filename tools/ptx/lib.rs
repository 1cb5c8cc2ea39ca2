//! A machine for the PTX that nvcc makes of the kernels: it parses the text of an image, decodes each kernel once, and
//! executes blocks by the rules of the PTX ISA 9.0, on memory that knows its bounds and what was written to it.
//!
//! The emulator runs the same C++ through another compiler, so nothing in it proves what nvcc made: the order of operands in
//! inline assembly, the layouts of matrix instructions, the bytes and waits of copies. Here the text itself runs. What the
//! machine does not know is refused by name ([`form`]), never skipped.
//!
//! It says nothing of ptxas, which makes machine code of this text, nor of races between warps, which the checked emulator
//! finds. Approximate instructions are computed in f32 to the nearest value the host's mathematics gives, or moved within
//! the error that the PTX ISA allows them ([`Approximation`]).
//!
//! A form of a newer chip needs a line in [`form`], a case in the execution of a warp, and, where it works asynchronously, an
//! agent beside that of asynchronous copies. Of Hopper's instructions those of single blocks are executed; clusters are not.
#![deny(unsafe_code)]

mod agents;
mod agreement;
mod arithmetic;
mod block;
mod code;
mod copies;
mod counts;
mod execute;
mod executor;
pub mod form;
mod hopper;
mod image;
mod matrix;
mod memory;
mod program;
mod shared;
mod source;
mod warp;

pub use agents::TensorArgument;
pub use agreement::{Agreement, Record};
pub use block::{Approximation, CopyTiming, Launch, Options, launch};
pub use code::Code;
pub use counts::Counts;
pub use executor::PtxExecutor;
pub use image::{Kernels, texts, wrappers_text};
pub use memory::{Allocation, Extent, Memory};
pub use program::{Counted, count};
pub use source::{Entry, Module, Place};
