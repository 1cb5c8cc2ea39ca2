//! What a kernel is, before anything is known of the device: its name, its file and what its entry point takes; and the
//! check of a launch's arguments against that.

use std::fmt;

use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// What a pointer points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Signed 32-bit integers.
    I32,
    /// Unsigned 32-bit integers.
    U32,
    /// Bytes.
    U8,
    /// Unsigned 64-bit integers.
    U64,
}

impl Element {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::Bf16 => 2,
            Element::U8 => 1,
            Element::U64 => 8,
        }
    }
}

impl From<DType> for Element {
    fn from(dtype: DType) -> Element {
        match dtype {
            DType::F32 => Element::F32,
            DType::Bf16 => Element::Bf16,
            DType::I32 => Element::I32,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
            Element::I32 => "i32",
            Element::U32 => "u32",
            Element::U8 => "u8",
            Element::U64 => "u64",
        })
    }
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// A pointer to global memory; one to const is only read through.
    Pointer {
        /// What it points to; `None` for a type launches cannot pass.
        element: Option<Element>,
        /// Whether the kernel only reads.
        is_const: bool,
    },
    /// A signed integer of so many bytes.
    Signed(u8),
    /// An unsigned integer of so many bytes.
    Unsigned(u8),
    /// A float of so many bytes.
    Float(u8),
    /// A structure of so many bytes, by value.
    Struct(u8),
    /// A tensor map, by value ([`super::TensorMap`]).
    TensorMap,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Parameter::Pointer { element, is_const } => {
                let kind = if is_const { "const " } else { "" };
                match element {
                    Some(element) => write!(f, "{kind}{element}*"),
                    None => write!(f, "{kind}void*"),
                }
            }
            Parameter::Signed(bytes) => write!(f, "i{}", 8 * u32::from(bytes)),
            Parameter::Unsigned(bytes) => write!(f, "u{}", 8 * u32::from(bytes)),
            Parameter::Float(bytes) => write!(f, "f{}", 8 * u32::from(bytes)),
            Parameter::Struct(bytes) => write!(f, "a structure of {bytes} bytes"),
            Parameter::TensorMap => f.write_str("a tensor map"),
        }
    }
}

/// A kernel of `cuda/`, as the build script read it from its source: the same on every machine, whichever compilers it has.
///
/// How many threads a block has and how much shared memory, only a compiler knows: the emulator's table and each GPU image
/// say so themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelEntry {
    /// The entry point's name, the same on the GPU and in the emulator.
    pub name: &'static str,
    /// The stem of the file it stands in (`norm` for `cuda/norm.cu`), and of its image.
    pub stem: &'static str,
    /// What it takes, in order.
    pub parameters: &'static [Parameter],
    /// Blocks of its clusters in x; 1 where it has none.
    pub cluster: u32,
}

impl KernelEntry {
    /// Whether it is written in instructions that only sm_90a has, as the name of its file says.
    pub fn is_of_hopper(&self) -> bool {
        self.stem.ends_with("_sm90")
    }
}

impl fmt::Display for KernelEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Kernels that do the same work for several storage types.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Their names up to the storage type: `swiglu_forward` for `swiglu_forward_f32` and `swiglu_forward_bf16`.
    pub name: &'static str,
    /// The kernel for each storage type there is one for.
    pub members: &'static [(DType, &'static KernelEntry)],
}

impl Family {
    /// The kernel for values of `dtype`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is none.
    pub fn of(&self, dtype: DType) -> Result<&'static KernelEntry> {
        let found = self.members.iter().find(|(known, _)| *known == dtype);
        found.map(|(_, kernel)| *kernel).ok_or_else(|| {
            let known: Vec<&str> = self.members.iter().map(|(known, _)| known.name()).collect();
            Error::kernel(format!(
                "kernel {}: it is written for {}, but the values are {dtype}; cast them first",
                self.name,
                known.join(" and ")
            ))
        })
    }
}

/// Kernels of one matrix product by the size of their tiles (`ProductShapes` in `cuda/product.cuh`).
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Tiles that reuse more of what they load.
    pub large: Family,
    /// Smaller ones, of which there are enough for all multiprocessors where the product is small.
    pub small: Family,
}

/// Kernels of one work by the width of the rows they hold in registers (`cuda/rows.cuh`).
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Several rows a block, each held by one warp.
    pub narrow: Family,
    /// A row a block of two warps.
    pub middle: Family,
    /// A row a block of the usual size.
    pub usual: Family,
    /// A row a block of twice that.
    pub broad: Family,
    /// A row a block of the largest size.
    pub wide: Family,
}

/// An argument that an entry point may be passed.
pub trait Passed: fmt::Display {
    /// Whether `parameter` takes it.
    fn fits(&self, parameter: Parameter) -> bool;
}

/// Holds a launch's arguments to what the entry point takes: their number, order and types.
///
/// # Errors
/// [`Error::Kernel`] with the kernel's name, the parameter and the argument.
pub fn check_arguments(
    kernel: &str,
    parameters: &[Parameter],
    arguments: &[impl Passed],
) -> Result<()> {
    let (want, got) = (parameters.len(), arguments.len());
    // The count first: a missing argument would otherwise show as a wrong type further on.
    if want != got {
        return Err(Error::kernel(format!(
            "kernel {kernel}: it takes {want} arguments, but the launch passes {got}"
        )));
    }
    for (index, (argument, parameter)) in arguments.iter().zip(parameters).enumerate() {
        if !argument.fits(*parameter) {
            return Err(Error::kernel(format!(
                "kernel {kernel}, argument {index}: the entry point takes {parameter}, but the launch passes {argument}"
            )));
        }
    }
    Ok(())
}
