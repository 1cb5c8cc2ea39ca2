//! A kernel launch as plain data: the emulator and the CUDA executor read the same one.
//!
//! How many threads a block has and how much shared memory is the kernel's own affair (its KERNEL line in `cuda/`), so a
//! launch says neither. Kernels are named by the constants of [`kernels`], which the build script writes from the sources of
//! `cuda/`: a name that no source has does not compile.

mod kernel;
mod tensor_map;

pub use kernel::{Element, Family, KernelEntry, Parameter, Passed, Sizes, Widths, check_arguments};
pub use tensor_map::{MAX_DIMS, Mapped, Swizzle, TensorMap, TensorMapShape};

/// The kernels of `cuda/`, each by its name in capitals, the families of those that differ in the storage type alone, and
/// the constants that kernels and engine share.
pub mod kernels {
    use super::{Element, Family, KernelEntry, Parameter, Sizes, Widths};
    use crate::tensor::DType;

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

use kernels::constants::moves::MOVE_THREADS;

use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

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
    /// A tensor map, by value.
    TensorMap(TensorMap),
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
    /// Which kernel: a constant of [`kernels`].
    pub kernel: &'static KernelEntry,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Blocks in x that run at the same time on neighbouring multiprocessors and see each other's shared memory (sm_90);
    /// 1 where every block is on its own. It divides the grid, and is what the kernel is written for.
    pub cluster: u32,
    /// Bytes of dynamic shared memory; `None` for those of the kernel's shared storage.
    pub shared_bytes: Option<u32>,
    /// The arguments, in the kernel's order.
    pub arguments: Vec<Argument>,
}

impl Launch {
    /// A launch of `kernel` on `blocks` blocks in x.
    pub fn new(kernel: &'static KernelEntry, blocks: u32, arguments: Vec<Argument>) -> Launch {
        Launch::on_grid(kernel, [blocks, 1, 1], arguments)
    }

    /// A launch of `kernel` on a grid of blocks in x, y, z.
    pub fn on_grid(
        kernel: &'static KernelEntry,
        grid: [u32; 3],
        arguments: Vec<Argument>,
    ) -> Launch {
        Launch {
            kernel,
            grid,
            cluster: kernel.cluster,
            shared_bytes: None,
            arguments,
        }
    }
}

/// Blocks for `work` items of which a block does `each`; at least one, so that an empty op is a launch that does nothing.
///
/// # Errors
/// [`Error::Kernel`] when that is more than a grid may have in x.
pub fn blocks(kernel: &KernelEntry, work: usize, each: usize) -> Result<u32> {
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
pub fn index(kernel: &KernelEntry, what: &str, size: usize) -> Result<Argument> {
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

/// Blocks for a thread to each 16-byte vector of a tensor of `ty`'s type, rows and columns
/// (`cuda/moves.cuh`).
///
/// # Errors
/// As [`blocks`].
pub fn move_blocks(kernel: &KernelEntry, ty: TensorType) -> Result<u32> {
    let across = ty.shape.columns().div_ceil(vector(ty));
    blocks(kernel, ty.shape.rows() * across, MOVE_THREADS)
}
