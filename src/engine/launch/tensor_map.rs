//! A tensor map: how the Tensor Memory Accelerator (TMA) of sm_90 and later finds boxes of a tensor in memory. Here it is plain
//! data, checked against the rules by which the driver encodes one (`cuTensorMapEncodeTiled` in the CUDA driver API), so that
//! a wrong one is refused with names and values on every machine, and not by a code from a driver.

use std::fmt;

use super::KernelEntry;
use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// The most dimensions of a tensor map.
pub const MAX_DIMS: usize = 5;

/// What addresses and strides are multiples of, in bytes.
const ALIGNMENT: u64 = 16;

/// The largest extent of a dimension, in elements.
const LARGEST_DIM: u64 = 1 << 32;

/// Strides stay below this many bytes.
const STRIDE_LIMIT: u64 = 1 << 40;

/// The largest extent of a box, in elements.
const LARGEST_BOX: u32 = 256;

/// Which memory of the op a tensor map describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// An input.
    Input(usize),
    /// An output.
    Output(usize),
    /// The workspace.
    Workspace,
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mapped::Input(index) => write!(f, "input {index}"),
            Mapped::Output(index) => write!(f, "output {index}"),
            Mapped::Workspace => f.write_str("the workspace"),
        }
    }
}

/// How TMA permutes 16-byte pieces of a box in shared memory, so that columns meet different banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    Span32,
    /// Within 64 bytes.
    Span64,
    /// Within 128 bytes.
    Span128,
}

impl Swizzle {
    /// The bytes it permutes within, which a box's rows may not exceed.
    pub const fn span(self) -> Option<u64> {
        match self {
            Swizzle::None => None,
            Swizzle::Span32 => Some(32),
            Swizzle::Span64 => Some(64),
            Swizzle::Span128 => Some(128),
        }
    }
}

/// A tensor in the op's memory and the box that one copy moves; what lies past the tensor's edges reads as zero. Element
/// strides within a box are 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    of: Mapped,
    offset: usize,
    element: DType,
    rank: usize,
    dims: [u64; MAX_DIMS],
    strides: [u64; MAX_DIMS],
    box_dims: [u32; MAX_DIMS],
    swizzle: Swizzle,
}

/// What a tensor map is made of; the innermost dimension first.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapShape<'a> {
    /// Elements along each dimension.
    pub dims: &'a [u64],
    /// Bytes from one place to the next of each dimension but the innermost, whose elements lie side by side.
    pub strides: &'a [u64],
    /// Elements of a box along each dimension.
    pub box_dims: &'a [u32],
    /// See [`Swizzle`].
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// A map of `shape` over the memory of `of` from byte `offset` on, for `kernel`.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the kernel, the map, the limit and the value, for whatever the driver would refuse.
    pub fn new(
        kernel: &KernelEntry,
        of: Mapped,
        offset: usize,
        element: DType,
        shape: TensorMapShape<'_>,
    ) -> Result<TensorMap> {
        let TensorMapShape {
            dims,
            strides,
            box_dims,
            swizzle,
        } = shape;
        let refuse = |problem: String| {
            Err(Error::kernel(format!(
                "kernel {kernel}, tensor map of {of}: {problem}"
            )))
        };
        let rank = dims.len();
        if !(1..=MAX_DIMS).contains(&rank) {
            return refuse(format!(
                "it has 1 to {MAX_DIMS} dimensions, but {rank} are given"
            ));
        }
        if strides.len() != rank - 1 || box_dims.len() != rank {
            return refuse(format!(
                "{rank} dimensions need {} strides and {rank} extents of the box, but {} and {} are given",
                rank - 1,
                strides.len(),
                box_dims.len()
            ));
        }
        if !(offset as u64).is_multiple_of(ALIGNMENT) {
            return refuse(format!(
                "its address is a multiple of {ALIGNMENT} bytes, but it starts at byte {offset}"
            ));
        }
        for (axis, dim) in dims.iter().enumerate() {
            if !(1..=LARGEST_DIM).contains(dim) {
                return refuse(format!(
                    "dimension {axis} has 1 to {LARGEST_DIM} elements, but {dim} are given"
                ));
            }
        }
        for (axis, stride) in (1..).zip(strides) {
            if !stride.is_multiple_of(ALIGNMENT) || *stride >= STRIDE_LIMIT {
                return refuse(format!(
                    "the stride of dimension {axis} is a multiple of {ALIGNMENT} bytes below {STRIDE_LIMIT}, but {stride} \
                     is given"
                ));
            }
        }
        for (axis, extent) in box_dims.iter().enumerate() {
            if !(1..=LARGEST_BOX).contains(extent) {
                return refuse(format!(
                    "the box has 1 to {LARGEST_BOX} elements along dimension {axis}, but {extent} are given"
                ));
            }
        }
        // Rows of the box lie one after the other in shared memory, so an unaligned row would leave all later ones
        // unaligned.
        let row = u64::from(box_dims[0]) * element.size() as u64;
        if !row.is_multiple_of(ALIGNMENT) {
            return refuse(format!(
                "a row of the box is a multiple of {ALIGNMENT} bytes, but {} elements of {element} are {row}",
                box_dims[0]
            ));
        }
        if let Some(span) = swizzle.span().filter(|span| row > *span) {
            return refuse(format!(
                "a row of the box is at most the {span} bytes that the swizzle permutes, but {} elements of {element} are \
                 {row}",
                box_dims[0]
            ));
        }
        // Fixed arrays, so that a map is plain data that an argument can hold by value.
        let mut map = TensorMap {
            of,
            offset,
            element,
            rank,
            dims: [1; MAX_DIMS],
            strides: [0; MAX_DIMS],
            box_dims: [1; MAX_DIMS],
            swizzle,
        };
        map.dims[..rank].copy_from_slice(dims);
        map.strides[..rank - 1].copy_from_slice(strides);
        map.box_dims[..rank].copy_from_slice(box_dims);
        Ok(map)
    }

    /// Which memory it describes.
    pub fn of(&self) -> Mapped {
        self.of
    }

    /// Bytes past that memory's start.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// What the tensor holds.
    pub fn element(&self) -> DType {
        self.element
    }

    /// Its dimensions, strides, box and swizzle.
    pub fn shape(&self) -> TensorMapShape<'_> {
        TensorMapShape {
            dims: &self.dims[..self.rank],
            strides: &self.strides[..self.rank - 1],
            box_dims: &self.box_dims[..self.rank],
            swizzle: self.swizzle,
        }
    }

    /// Bytes from its first element to past its last; copies read and write nothing beyond. `None` beyond 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let shape = self.shape();
        let row = shape.dims[0].checked_mul(self.element.size() as u64)?;
        // To the end of the last row: strides count between rows, and behind the last there is none.
        let mut outer = shape.dims[1..].iter().zip(shape.strides);
        outer.try_fold(row, |bytes, (dim, stride)| {
            bytes.checked_add((dim - 1).checked_mul(*stride)?)
        })
    }
}

impl fmt::Display for TensorMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.shape();
        write!(
            f,
            "a tensor map of {} ({} {:?}, box {:?})",
            self.of, self.element, shape.dims, shape.box_dims
        )
    }
}
