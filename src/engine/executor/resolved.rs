//! What the emulator and the CUDA executor share: a program's launches with every argument resolved to a range of an
//! arena and held to what its kernel takes, and host values in the storage type of a program's value.

use std::fmt;

use half::bf16;

use crate::launch::{
    Argument, KernelEntry, Launch, Mapped, Parameter, Passed, TensorMap, check_arguments,
};
use crate::program::{Place, PlannedOp, Program};
use crate::tape::Arena;
use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// The most blocks of a grid in x, y, z.
const GRID_LIMITS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A range of memory that belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// What lives within a run, at its planned place.
    Activations,
    /// A fixed arena.
    Fixed(Arena),
}

/// Bytes of a space that hold elements of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Where.
    pub space: Space,
    /// First byte.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
    /// What it holds.
    pub element: DType,
}

/// One argument of a launch, ready for any device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ResolvedArgument {
    /// A pointer.
    ByteRange(ByteRange),
    /// A null pointer.
    Null,
    /// A 32-bit signed integer.
    I32(i32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A single-precision number.
    F32(f32),
    /// A tensor map over a range.
    TensorMap(ByteRange, TensorMap),
}

impl Passed for ResolvedArgument {
    fn fits(&self, parameter: Parameter) -> bool {
        match (self, parameter) {
            (ResolvedArgument::ByteRange(range), Parameter::Pointer { element, .. }) => {
                element == Some(range.element.into())
            }
            (ResolvedArgument::Null, Parameter::Pointer { .. })
            | (ResolvedArgument::I32(_), Parameter::Signed(4))
            | (ResolvedArgument::I64(_), Parameter::Signed(8))
            | (ResolvedArgument::F32(_), Parameter::Float(4))
            | (ResolvedArgument::TensorMap(..), Parameter::TensorMap) => true,
            _ => false,
        }
    }
}

impl fmt::Display for ResolvedArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResolvedArgument::ByteRange(range) => {
                let elements = range.bytes / range.element.size();
                write!(f, "{}[{elements}]", range.element)
            }
            ResolvedArgument::Null => f.write_str("a null pointer"),
            ResolvedArgument::I32(value) => write!(f, "{value}i32"),
            ResolvedArgument::I64(value) => write!(f, "{value}i64"),
            ResolvedArgument::F32(value) => write!(f, "{value}f32"),
            ResolvedArgument::TensorMap(_, map) => map.fmt(f),
        }
    }
}

/// A launch, ready for any device.
#[derive(Clone, Debug)]
pub struct ResolvedLaunch {
    /// Which kernel.
    pub kernel: &'static KernelEntry,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// See [`Launch::cluster`].
    pub cluster: u32,
    /// See [`Launch::shared_bytes`].
    pub shared_bytes: Option<u32>,
    /// The arguments, in the kernel's order.
    pub arguments: Vec<ResolvedArgument>,
}

impl ResolvedLaunch {
    /// Refuses what no device could launch: a grid beyond every chip's, a cluster that does not divide it, arguments that
    /// are not the entry point's.
    fn check(&self) -> Result<()> {
        let KernelEntry {
            name, parameters, ..
        } = self.kernel;
        let mut limits = self.grid.iter().zip(GRID_LIMITS);
        if limits.any(|(blocks, most)| *blocks == 0 || *blocks > most) {
            let [x, y, z] = self.grid;
            return Err(Error::kernel(format!(
                "kernel {name}: the grid ({x},{y},{z}) must have 1..{} × 1..65535 × 1..65535 blocks; use a smaller batch",
                GRID_LIMITS[0]
            )));
        }
        if self.cluster == 0 || !self.grid[0].is_multiple_of(self.cluster) {
            return Err(Error::kernel(format!(
                "kernel {name}: a grid of {} blocks in x does not divide into clusters of {}",
                self.grid[0], self.cluster
            )));
        }
        check_arguments(name, parameters, &self.arguments)
    }

    /// Refuses what `device` cannot launch yet: clusters, shared memory beyond the kernel's own, tensor maps.
    ///
    /// # Errors
    /// [`Error::Device`] that names the kernel and what it wants.
    pub fn require_plain(&self, device: &str) -> Result<()> {
        let wants = if self.cluster > 1 {
            format!("clusters of {} blocks", self.cluster)
        } else if let Some(bytes) = self.shared_bytes {
            format!("{bytes} bytes of shared memory beside those of its source")
        } else if let Some(map) = self
            .arguments
            .iter()
            .find(|argument| matches!(argument, ResolvedArgument::TensorMap(..)))
        {
            map.to_string()
        } else {
            return Ok(());
        };
        Err(Error::Device {
            device: device.to_owned(),
            problem: format!(
                "kernel {} wants {wants}, which this device does not launch",
                self.kernel
            ),
            remedy: "compile the program for the portable tier".to_owned(),
        })
    }
}

/// One op of a program: its launches and the ranges it writes that no input lies in.
#[derive(Clone, Debug)]
pub struct ResolvedStep {
    /// In order.
    pub launches: Vec<ResolvedLaunch>,
    /// Outputs without an input in their place, and the workspace: they hold nothing before the op.
    pub undefined: Vec<ByteRange>,
}

/// Where `place` lies, for a value of `bytes` bytes of `element`.
pub fn range(place: Place, element: DType, bytes: usize) -> Option<ByteRange> {
    let (space, offset) = match place {
        Place::Activations(offset) => (Space::Activations, offset),
        Place::Fixed(arena, first) => (Space::Fixed(arena), first * arena.element().size()),
        Place::Dropped => return None,
    };
    Some(ByteRange {
        space,
        offset,
        bytes,
        element,
    })
}

/// The launches of every op of `program`, in order.
///
/// # Errors
/// What [`crate::tape::Op::launches`] reports; [`Error::Kernel`] when a launch names an input, output or byte that the op
/// does not have, or is not what its kernel takes.
pub fn resolve(program: &Program) -> Result<Vec<ResolvedStep>> {
    program
        .ops()
        .iter()
        .map(|op| resolve_op(program, op))
        .collect()
}

fn resolve_op(program: &Program, op: &PlannedOp) -> Result<ResolvedStep> {
    let instruction = &op.instruction;
    if instruction.op.is_view() {
        return Ok(ResolvedStep {
            launches: Vec::new(),
            undefined: Vec::new(),
        });
    }
    let types = |values: &[crate::tape::Value]| -> Vec<_> {
        values.iter().map(|value| program.ty(*value)).collect()
    };
    let (inputs, outputs) = (types(&instruction.inputs), types(&instruction.outputs));
    let place = |values: &[crate::tape::Value], index: usize| {
        let value = *values.get(index)?;
        let ty = program.ty(value);
        range(program.place(value), ty.dtype, ty.bytes())
    };
    let (workspace, workspace_bytes) = op.workspace;
    let in_workspace = |element| ByteRange {
        space: Space::Activations,
        offset: workspace,
        bytes: workspace_bytes,
        element,
    };
    let resolve_argument = |launch: &Launch, argument: &Argument| {
        let (what, found, offset) = match *argument {
            Argument::Null => return Ok(ResolvedArgument::Null),
            Argument::I32(value) => return Ok(ResolvedArgument::I32(value)),
            Argument::I64(value) => return Ok(ResolvedArgument::I64(value)),
            Argument::F32(value) => return Ok(ResolvedArgument::F32(value)),
            Argument::Input { index, offset } => (
                format!("input {index}"),
                place(&instruction.inputs, index),
                offset,
            ),
            Argument::Output { index, offset } => (
                format!("output {index}"),
                place(&instruction.outputs, index),
                offset,
            ),
            Argument::Workspace { offset, element } => (
                "the workspace".to_owned(),
                Some(in_workspace(element)),
                offset,
            ),
            Argument::TensorMap(map) => {
                let found = match map.of() {
                    Mapped::Input(index) => place(&instruction.inputs, index),
                    Mapped::Output(index) => place(&instruction.outputs, index),
                    Mapped::Workspace => Some(in_workspace(map.element())),
                };
                (map.of().to_string(), found, map.offset())
            }
        };
        let refuse = |problem: String| {
            Err(Error::kernel(format!(
                "kernel {} of op {}: {problem}",
                launch.kernel,
                instruction.op.name()
            )))
        };
        let Some(found) = found else {
            return refuse(format!("{what} is wanted, which the op does not have"));
        };
        if offset > found.bytes {
            return refuse(format!(
                "byte {offset} of {what} is wanted, which has {} bytes",
                found.bytes
            ));
        }
        let range = ByteRange {
            offset: found.offset + offset,
            bytes: found.bytes - offset,
            ..found
        };
        let Argument::TensorMap(map) = *argument else {
            return Ok(ResolvedArgument::ByteRange(range));
        };
        if map.element() != range.element {
            return refuse(format!(
                "a tensor map of {} is given of {what}, which holds {}",
                map.element(),
                range.element
            ));
        }
        match map.bytes() {
            Some(bytes) if bytes <= range.bytes as u64 => {
                Ok(ResolvedArgument::TensorMap(range, map))
            }
            bytes => refuse(format!(
                "the tensor map reaches over {} bytes of {what}, which has {} from byte {offset} on",
                bytes.map_or("more than 2^64".to_owned(), |bytes| bytes.to_string()),
                range.bytes
            )),
        }
    };
    let mut launches = Vec::new();
    for launch in instruction
        .op
        .launches(&inputs, &outputs, program.compile_target())?
    {
        let arguments = launch
            .arguments
            .iter()
            .map(|argument| resolve_argument(&launch, argument))
            .collect::<Result<Vec<_>>>()?;
        let launch = ResolvedLaunch {
            kernel: launch.kernel,
            grid: launch.grid,
            cluster: launch.cluster,
            shared_bytes: launch.shared_bytes,
            arguments,
        };
        launch
            .check()
            .map_err(|problem| Error::kernel(format!("op {}: {problem}", instruction.op.name())))?;
        launches.push(launch);
    }
    let mut undefined: Vec<ByteRange> = (0..outputs.len())
        .filter(|output| !op.in_place.contains(&Some(*output)))
        .filter_map(|output| place(&instruction.outputs, output))
        .filter(|range| range.space == Space::Activations)
        .collect();
    if workspace_bytes > 0 {
        undefined.push(ByteRange {
            space: Space::Activations,
            offset: workspace,
            bytes: workspace_bytes,
            element: DType::F32,
        });
    }
    Ok(ResolvedStep {
        launches,
        undefined,
    })
}

/// `values` as the bytes of elements of `dtype`; bf16 rounds to nearest, ties to even.
pub fn to_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => {
            let rounded: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            bytemuck::cast_slice(&rounded).to_vec()
        }
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

/// The elements of type `dtype` that `bytes` hold, as doubles.
pub fn to_doubles(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes
            .chunks_exact(4)
            .map(|b| f64::from(bytemuck::pod_read_unaligned::<f32>(b)))
            .collect(),
        DType::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| f64::from(bytemuck::pod_read_unaligned::<bf16>(b)))
            .collect(),
        DType::I32 => bytes
            .chunks_exact(4)
            .map(|b| f64::from(bytemuck::pod_read_unaligned::<i32>(b)))
            .collect(),
    }
}
