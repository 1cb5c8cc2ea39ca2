//! A kernel launch as plain data: the emulator and the CUDA executor read the same one.

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

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The entry point's name.
    pub kernel: &'static str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The arguments, in the kernel's order.
    pub arguments: Vec<Argument>,
}
