//! The kernels of `cuda/` as the build script found them: their names, their files, and the images nvcc made of them. It knows
//! nothing of how a kernel is launched; what its parameters are, the emulator knows ([`super::simt::Emulator::kernel`]).

/// A kernel and the stem of the file it stands in (`norm` for `cuda/norm.cu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelEntry {
    /// The entry point's name, the same on the GPU and in the emulator.
    pub name: &'static str,
    /// The file's stem, and the image's.
    pub stem: &'static str,
}

/// What nvcc built of one file.
#[derive(Clone, Copy)]
pub struct KernelImage {
    /// The file's stem.
    pub stem: &'static str,
    /// Machine code for sm_80 and sm_90a and PTX for newer chips.
    pub fatbin: &'static [u8],
    /// What the assembler reported: registers, shared memory, spills, warnings.
    pub ptxas: &'static str,
    /// How often each kernel holds each instruction (`kernels::sass`); empty without a disassembler.
    pub census: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/kernel_table.rs"));

/// Where the build script left the emulator's library, `libkeel_simt.a`; the tests link a driver of their own with it.
pub const BUILD_FOLDER: &str = env!("OUT_DIR");

/// The entry of `name`, if there is such a kernel.
pub fn entry(name: &str) -> Option<&'static KernelEntry> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// The image of the file `stem`, if nvcc was there when this program was built.
pub fn image(stem: &str) -> Option<&'static KernelImage> {
    IMAGES.iter().find(|image| image.stem == stem)
}
