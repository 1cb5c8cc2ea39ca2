//! What the emulator and the CUDA executor share: a program's launches with every argument resolved to a range of an
//! arena and held to what its kernel takes, and host values in the storage type of a program's value.

use std::borrow::Cow;
use std::fmt;

use half::bf16;

use crate::launch::{
    Argument, KernelEntry, Launch, Mapped, Parameter, Passed, TensorMap, check_arguments,
};
use crate::program::{Place, PlannedOp, Program};
use crate::tape::{Arena, Value};
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
    /// Refuses what no device could launch: a grid beyond every chip's, a cluster that is not the kernel's or does not divide
    /// it, arguments that are not the entry point's.
    fn check(&self) -> Result<()> {
        let KernelEntry {
            name, parameters, ..
        } = self.kernel;
        // Checked here and not by the driver: the emulator has no such limits, and what passes there must pass on a
        // GPU.
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
        if self.cluster != self.kernel.cluster {
            return Err(Error::kernel(format!(
                "kernel {name}: it is written for clusters of {} blocks, but the launch has clusters of {}",
                self.kernel.cluster, self.cluster
            )));
        }
        check_arguments(name, parameters, &self.arguments)
    }

    /// Refuses what `device` cannot launch: shared memory beyond the kernel's own, and of clusters and tensor maps what it
    /// does not say that it can.
    ///
    /// # Errors
    /// [`Error::Device`] that names the kernel and what it wants.
    pub fn require(&self, device: &str, can: Abilities) -> Result<()> {
        let wants = if self.cluster > 1 && !can.launches_clusters {
            format!("clusters of {} blocks", self.cluster)
        } else if let Some(bytes) = self.shared_bytes {
            format!("{bytes} bytes of shared memory beside those of its source")
        } else if let Some(map) = self
            .arguments
            .iter()
            .find(|argument| matches!(argument, ResolvedArgument::TensorMap(..)))
            .filter(|_| !can.passes_maps)
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

/// What a device can launch beyond kernels for every chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Blocks in clusters.
    pub launches_clusters: bool,
    /// Tensor maps as arguments.
    pub passes_maps: bool,
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
    // A view's output is its input's bytes: nothing runs, and nothing is undefined before it.
    if instruction.op.is_view() {
        return Ok(ResolvedStep {
            launches: Vec::new(),
            undefined: Vec::new(),
        });
    }
    let [inputs, outputs] = instruction.types(program.values());
    let resolver = Resolver { program, op };
    let launches = instruction
        .op
        .launches(&inputs, &outputs, program.compile_target())?
        .iter()
        .map(|launch| resolver.launch(launch))
        .collect::<Result<Vec<_>>>()?;
    Ok(ResolvedStep {
        launches,
        undefined: resolver.undefined(),
    })
}

/// Resolves the launches of one op.
struct Resolver<'a> {
    program: &'a Program,
    op: &'a PlannedOp,
}

/// What an argument points into: its name in errors, its range where the op has it, and the first byte that is meant.
struct Pointed {
    what: String,
    range: Option<ByteRange>,
    offset: usize,
}

impl Resolver<'_> {
    fn launch(&self, launch: &Launch) -> Result<ResolvedLaunch> {
        let arguments = launch
            .arguments
            .iter()
            .map(|argument| self.argument(launch, argument))
            .collect::<Result<Vec<_>>>()?;
        let resolved = ResolvedLaunch {
            kernel: launch.kernel,
            grid: launch.grid,
            cluster: launch.cluster,
            shared_bytes: launch.shared_bytes,
            arguments,
        };
        let op = self.op.instruction.op.name();
        resolved
            .check()
            .map_err(|problem| Error::kernel(format!("op {op}: {problem}")))?;
        Ok(resolved)
    }

    fn argument(&self, launch: &Launch, argument: &Argument) -> Result<ResolvedArgument> {
        let pointed = match *argument {
            Argument::Null => return Ok(ResolvedArgument::Null),
            Argument::I32(value) => return Ok(ResolvedArgument::I32(value)),
            Argument::I64(value) => return Ok(ResolvedArgument::I64(value)),
            Argument::F32(value) => return Ok(ResolvedArgument::F32(value)),
            Argument::Input { index, offset } => self.input(index, offset),
            Argument::Output { index, offset } => self.output(index, offset),
            Argument::Workspace { offset, element } => self.workspace(element, offset),
            Argument::TensorMap(map) => match map.of() {
                Mapped::Input(index) => self.input(index, map.offset()),
                Mapped::Output(index) => self.output(index, map.offset()),
                Mapped::Workspace => self.workspace(map.element(), map.offset()),
            },
        };
        let range = self.range_of(launch, &pointed)?;
        match *argument {
            Argument::TensorMap(map) => {
                self.check_map(launch, &pointed, &map, range)?;
                Ok(ResolvedArgument::TensorMap(range, map))
            }
            _ => Ok(ResolvedArgument::ByteRange(range)),
        }
    }

    fn input(&self, index: usize, offset: usize) -> Pointed {
        Pointed {
            what: format!("input {index}"),
            range: self.place(&self.op.instruction.inputs, index),
            offset,
        }
    }

    fn output(&self, index: usize, offset: usize) -> Pointed {
        Pointed {
            what: format!("output {index}"),
            range: self.place(&self.op.instruction.outputs, index),
            offset,
        }
    }

    /// The workspace has no type of its own: each argument says what its kernel keeps there.
    fn workspace(&self, element: DType, offset: usize) -> Pointed {
        Pointed {
            what: "the workspace".to_owned(),
            range: Some(self.whole_workspace(element)),
            offset,
        }
    }

    fn whole_workspace(&self, element: DType) -> ByteRange {
        let (offset, bytes) = self.op.workspace;
        ByteRange {
            space: Space::Activations,
            offset,
            bytes,
            element,
        }
    }

    fn place(&self, values: &[Value], index: usize) -> Option<ByteRange> {
        let value = *values.get(index)?;
        let ty = self.program.ty(value);
        range(self.program.place(value), ty.dtype, ty.bytes())
    }

    /// The bytes from where an argument points to the end of what it points into.
    fn range_of(&self, launch: &Launch, pointed: &Pointed) -> Result<ByteRange> {
        let Pointed {
            what,
            range,
            offset,
        } = pointed;
        let Some(range) = range else {
            let problem = format!("{what} is wanted, which the op does not have");
            return Err(self.refusal(launch, &problem));
        };
        if *offset > range.bytes {
            let problem = format!(
                "byte {offset} of {what} is wanted, which has {} bytes",
                range.bytes
            );
            return Err(self.refusal(launch, &problem));
        }
        Ok(ByteRange {
            offset: range.offset + offset,
            bytes: range.bytes - offset,
            ..*range
        })
    }

    /// Refuses a tensor map that is not of what the range holds, or that reaches beyond it. TMA checks neither:
    /// it would read a neighbour's bytes.
    fn check_map(
        &self,
        launch: &Launch,
        pointed: &Pointed,
        map: &TensorMap,
        range: ByteRange,
    ) -> Result<()> {
        let what = &pointed.what;
        if map.element() != range.element {
            let problem = format!(
                "a tensor map of {} is given of {what}, which holds {}",
                map.element(),
                range.element
            );
            return Err(self.refusal(launch, &problem));
        }
        match map.bytes() {
            Some(bytes) if bytes <= range.bytes as u64 => Ok(()),
            bytes => {
                let reach = bytes.map_or("more than 2^64".to_owned(), |bytes| bytes.to_string());
                let problem = format!(
                    "the tensor map reaches over {reach} bytes of {what}, which has {} from byte {} on",
                    range.bytes, pointed.offset
                );
                Err(self.refusal(launch, &problem))
            }
        }
    }

    fn refusal(&self, launch: &Launch, problem: &str) -> Error {
        Error::kernel(format!(
            "kernel {} of op {}: {problem}",
            launch.kernel,
            self.op.instruction.op.name()
        ))
    }

    /// See [`ResolvedStep::undefined`]. Fixed arenas are left out: what they hold outlives the step, so it is always defined.
    fn undefined(&self) -> Vec<ByteRange> {
        let outputs = &self.op.instruction.outputs;
        let mut undefined: Vec<ByteRange> = (0..outputs.len())
            .filter(|output| !self.op.in_place.contains(&Some(*output)))
            .filter_map(|output| self.place(outputs, output))
            .filter(|range| range.space == Space::Activations)
            .collect();
        let workspace = self.whole_workspace(DType::F32);
        if workspace.bytes > 0 {
            undefined.push(workspace);
        }
        undefined
    }
}

/// `values` as the bytes of elements of `dtype`, those of f32 where they lie; bf16 rounds to nearest, ties to even.
pub fn to_bytes(values: &[f32], dtype: DType) -> Cow<'_, [u8]> {
    match dtype {
        DType::Bf16 => {
            let mut rounded = vec![0; values.len() * dtype.size()];
            for (bytes, value) in rounded.chunks_exact_mut(dtype.size()).zip(values) {
                bytes.copy_from_slice(bytemuck::bytes_of(&bf16::from_f32(*value)));
            }
            Cow::Owned(rounded)
        }
        _ => Cow::Borrowed(bytemuck::cast_slice(values)),
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

/// `elements` elements of type `dtype` as single-precision numbers. `read` fills memory with their bytes: for f32 that of
/// the numbers themselves.
///
/// # Errors
/// What `read` reports.
pub fn read_singles(
    elements: usize,
    dtype: DType,
    read: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<Vec<f32>> {
    if dtype == DType::F32 {
        let mut values = vec![0.0; elements];
        read(bytemuck::cast_slice_mut(&mut values))?;
        return Ok(values);
    }
    let mut bytes = vec![0; elements * dtype.size()];
    read(&mut bytes)?;
    Ok(match dtype {
        DType::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f32())
            .collect(),
        _ => bytes
            .chunks_exact(4)
            .map(|b| bytemuck::pod_read_unaligned::<i32>(b) as f32)
            .collect(),
    })
}
