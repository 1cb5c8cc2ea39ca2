//! The kernels of `cuda/` as the build script found them: their names and parameters ([`crate::launch::kernels`]), their
//! files, and the images nvcc made of them. None of it needs the emulator.

pub use crate::launch::KernelEntry;
pub use crate::launch::kernels::KERNELS;

/// What nvcc built of one file.
#[derive(Clone, Copy)]
pub struct KernelImage {
    /// The file's stem.
    pub stem: &'static str,
    /// The version of CUDA that made it, for example 13000; 0 where that is not known, and no driver is too old.
    pub toolkit: i32,
    /// Machine code for sm_80 and sm_90a and PTX for newer chips.
    pub fatbin: &'static [u8],
    /// What the assembler reported: registers, shared memory, spills, warnings.
    pub ptxas: &'static str,
    /// How often each kernel holds each instruction (`keel_build::sass`); empty without a disassembler.
    pub census: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/kernel_table.rs"));

/// Where the build script left the emulator's library, `libkeel_simt.a`; the tests link a driver of their own with it.
pub const BUILD_FOLDER: &str = env!("OUT_DIR");
