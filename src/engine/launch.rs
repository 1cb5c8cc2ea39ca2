//! A kernel launch as plain data: the emulator and the CUDA executor read the same one.
//!
//! How many threads a block has and how much shared memory is the kernel's own affair (its KERNEL line in `cuda/`), so a
//! launch says neither.

use keel_base::error::{Error, Result};
use crate::tensor::{DType, TensorType};

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// The address of an input of the op, moved by `offset` bytes.
    Input {
        /// Which input.
        index: usize,
        /// Bytes past its start.
        offset: usize,
    },
    /// The address of an output of the op, moved by `offset` bytes.
    Output {
        /// Which output.
        index: usize,
        /// Bytes past its start.
        offset: usize,
    },
    /// The address of the op's workspace, moved by `offset` bytes.
    Workspace {
        /// Bytes past its start.
        offset: usize,
        /// What the kernel keeps there.
        element: DType,
    },
    /// A null pointer, for an optional tensor that is absent.
    Null,
    /// A 32-bit signed integer.
    I32(i32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A single-precision number.
    F32(f32),
}

impl Argument {
    /// The whole input `index`.
    pub const fn input(index: usize) -> Argument {
        Argument::Input { index, offset: 0 }
    }

    /// The whole output `index`.
    pub const fn output(index: usize) -> Argument {
        Argument::Output { index, offset: 0 }
    }

    /// The workspace from its start on, holding `element`s.
    pub const fn workspace(element: DType) -> Argument {
        Argument::Workspace { offset: 0, element }
    }
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The entry point's name, for example `layer_norm_forward_bf16`.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// The arguments, in the kernel's order.
    pub arguments: Vec<Argument>,
}

impl Launch {
    /// A launch of `kernel` on `blocks` blocks in x.
    pub fn new(kernel: impl Into<String>, blocks: u32, arguments: Vec<Argument>) -> Launch {
        Launch {
            kernel: kernel.into(),
            grid: [blocks, 1, 1],
            arguments,
        }
    }
}

/// `<kernel>_<f32|bf16>`.
pub fn kernel_name(kernel: &str, dtype: DType) -> String {
    format!("{kernel}_{}", dtype.name())
}

/// Blocks for `work` items of which a block does `each`; at least one, so that an empty op is a launch that does nothing.
///
/// # Errors
/// [`Error::Kernel`] when that is more than a grid may have in x.
pub fn blocks(kernel: &str, work: usize, each: usize) -> Result<u32> {
    let blocks = work.div_ceil(each).max(1);
    if blocks > i32::MAX as usize {
        return Err(Error::kernel(format!(
            "kernel {kernel}: at most {} blocks make a grid, but {work} items of {each} a block take {blocks}; use a \
             smaller batch",
            i32::MAX
        )));
    }
    Ok(blocks as u32)
}

/// A size as a 32-bit argument.
///
/// # Errors
/// [`Error::Kernel`] when it is beyond 32 bits.
pub fn index(kernel: &str, what: &str, size: usize) -> Result<Argument> {
    match i32::try_from(size) {
        Ok(size) => Ok(Argument::I32(size)),
        Err(_) => Err(Error::kernel(format!(
            "kernel {kernel}: {what} is at most {}, but {size} is wanted; use a smaller batch",
            i32::MAX
        ))),
    }
}

/// Elements of 16 bytes of `ty`.
pub fn vector(ty: TensorType) -> usize {
    16 / ty.dtype.size()
}

/// Blocks of 256 threads for a thread to each 16-byte vector of a tensor of `ty`'s type, rows and columns
/// (`cuda/moves.cuh`).
///
/// # Errors
/// As [`blocks`].
pub fn move_blocks(kernel: &str, ty: TensorType) -> Result<u32> {
    let across = ty.shape.columns().div_ceil(vector(ty));
    blocks(kernel, ty.shape.rows() * across, 256)
}
