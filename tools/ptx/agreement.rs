//! Whether the machine and the emulator agree on a launch: both are given the same bytes, and what they write is compared.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use keel_engine::executor::resolved::{ByteRange, ResolvedArgument, ResolvedLaunch, to_doubles};
use keel_engine::executor::simt::{Argument, Buffer, Element, Emulator, Options};
use keel_engine::launch::Mapped;
use keel_engine::tensor::DType;

use super::code::Code;
use super::counts::Counts;
use super::form::Op;
use super::memory::Memory;

/// How far the two may be apart in f32 where a launch executed an inexact instruction, as a share of the largest magnitude that
/// it wrote in the same place: rounding of single operations that nvcc fuses or approximates, amplified by no more than the
/// sums of a kernel do.
const INEXACT_SHARE: f64 = 1.0 / (1 << 18) as f64;

/// What is allowed besides: differences of terms that cancel may leave nothing else.
const CANCELLED: f64 = 1.0 / (1 << 16) as f64;

/// The same in bf16: where two f32 fall to different sides of a rounding boundary, the result or an operand that the kernel
/// rounds on its way is a unit of bf16 apart.
const INEXACT_SHARE_BF16: f64 = 1.0 / 128.0;

/// Bytes that a launch may write.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub allocation: usize,
    pub offset: usize,
    pub bytes: usize,
    pub element: DType,
}

/// What the emulator left in each allocation that a launch touches.
pub type Emulated = BTreeMap<usize, Vec<u8>>;

/// What comparing one launch found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Whether the machine executed nothing that the emulator may compute otherwise.
    pub is_exact: bool,
    /// Whether all bits were the same.
    pub has_same_bits: bool,
    /// The largest difference, as a share of what is allowed.
    pub share: f64,
}

/// What is known of a kernel after all its launches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Launches.
    pub launches: u64,
    /// Those of them that were compared with the emulator.
    pub compared: u64,
    /// Those of the compared that had the same bits.
    pub same_bits: u64,
    /// Those of the compared that executed nothing inexact, and so had to have the same bits.
    pub exact: u64,
    /// The largest difference, as a share of what is allowed.
    pub largest_share: f64,
    /// Instructions of warps.
    pub instructions: u64,
}

/// What all kernels did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// By kernel.
    pub kernels: BTreeMap<String, Agreement>,
    /// The forms that some launch executed.
    pub forms: BTreeSet<String>,
}

impl Record {
    /// Adds what another record holds.
    pub fn merge(&mut self, other: &Record) {
        for (name, added) in &other.kernels {
            let kernel = self.kernels.entry(name.clone()).or_default();
            kernel.launches += added.launches;
            kernel.compared += added.compared;
            kernel.same_bits += added.same_bits;
            kernel.exact += added.exact;
            kernel.largest_share = kernel.largest_share.max(added.largest_share);
            kernel.instructions += added.instructions;
        }
        self.forms.extend(other.forms.iter().cloned());
    }

    pub(super) fn enter(&mut self, code: &Code, counts: &Counts, compared: Option<Compared>) {
        for ((text, _), executed) in code.statements.iter().zip(&counts.executed) {
            if *executed > 0 {
                let form = opcode(text);
                if !self.forms.contains(form) {
                    self.forms.insert(form.to_owned());
                }
            }
        }
        let kernel = self.kernels.entry(code.name.clone()).or_default();
        kernel.launches += 1;
        kernel.instructions += counts.executed.iter().sum::<u64>();
        if let Some(compared) = compared {
            kernel.compared += 1;
            kernel.exact += u64::from(compared.is_exact);
            kernel.same_bits += u64::from(compared.has_same_bits);
            kernel.largest_share = kernel.largest_share.max(compared.share);
        }
    }
}

/// The opcode of an instruction's text.
fn opcode(text: &str) -> &str {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or("");
    match first.starts_with('@') {
        true => words.next().unwrap_or(""),
        false => first,
    }
}

/// Runs a launch on the emulator, on copies of the allocations that it touches.
pub fn emulate(
    emulator: &Emulator,
    launch: &ResolvedLaunch,
    memory: &Memory,
    locate: impl Fn(ByteRange) -> (usize, usize),
) -> Result<Emulated, String> {
    let said = |problem: keel_base::error::Error| format!("the emulator: {problem}");
    let mut buffers: BTreeMap<usize, Buffer> = BTreeMap::new();
    for argument in &launch.arguments {
        if let ResolvedArgument::ByteRange(range) | ResolvedArgument::TensorMap(range, _) = argument
            && let Entry::Vacant(place) = buffers.entry(locate(*range).0)
        {
            let held = memory.get(*place.key());
            let mut buffer = emulator.allocate(Element::U8, held.bytes).map_err(said)?;
            buffer.write_bytes(0, &held.data).map_err(said)?;
            place.insert(buffer);
        }
    }
    let arguments: Vec<Argument<'_>> = launch
        .arguments
        .iter()
        .map(|argument| match *argument {
            ResolvedArgument::ByteRange(range) => {
                let (allocation, offset) = locate(range);
                Argument::Slice {
                    buffer: &buffers[&allocation],
                    element: range.element.into(),
                    offset,
                    bytes: range.bytes,
                }
            }
            ResolvedArgument::I32(value) => Argument::I32(value),
            ResolvedArgument::I64(value) => Argument::I64(value),
            ResolvedArgument::F32(value) => Argument::F32(value),
            ResolvedArgument::TensorMap(range, map) => {
                let (allocation, offset) = locate(range);
                Argument::TensorMap {
                    buffer: &buffers[&allocation],
                    offset,
                    bytes: range.bytes,
                    map,
                    is_writable: !matches!(map.of(), Mapped::Input(_)),
                }
            }
            ResolvedArgument::Null => Argument::Null,
        })
        .collect();
    let kernel = emulator.kernel(launch.kernel.name).map_err(said)?;
    let block = [kernel.threads.unwrap_or(32), 1, 1];
    emulator
        .launch(
            &kernel,
            launch.grid,
            block,
            kernel.shared_bytes,
            &arguments,
            &Options::for_kernel(launch.kernel),
        )
        .map_err(said)?;
    drop(arguments);
    buffers
        .into_iter()
        .map(|(allocation, buffer)| Ok((allocation, buffer.read::<u8>().map_err(said)?)))
        .collect()
}

/// Instructions whose result the host's compiler need not give to the last bit: fused where the emulator rounds twice, or
/// approximate.
fn is_inexact(op: Op) -> bool {
    matches!(
        op,
        Op::FmaF32
            | Op::FmaDownF32
            | Op::FmaF64
            | Op::RcpApproximateF32
            | Op::Exp2ApproximateF32
            | Op::AddZeroF32
    )
}

/// Holds what the machine wrote against what the emulator did: a launch that executed nothing inexact must have left the same
/// bits, and, where `is_bounded`, another values within the bound. Without, the inputs may be such that rounding once more
/// moves a result further, and whoever runs the launch holds it to a budget of its own.
///
/// # Errors
/// A sentence that names the kernel, the place and both values, where they are further apart.
pub fn compare(
    code: &Code,
    counts: &Counts,
    memory: &Memory,
    written: &[Written],
    emulated: &Emulated,
    is_bounded: bool,
) -> Result<Compared, String> {
    let executed = code.instructions.iter().zip(&counts.executed);
    let is_exact = !executed
        .clone()
        .any(|(i, times)| *times > 0 && is_inexact(i.op));
    let mut result = Compared {
        is_exact,
        has_same_bits: true,
        share: 0.0,
    };
    for written in written {
        let held = memory.get(written.allocation);
        let range = written.offset..written.offset + written.bytes;
        let (mine, theirs) = (
            &held.data[range.clone()],
            &emulated[&written.allocation][range.clone()],
        );
        if mine == theirs {
            continue;
        }
        result.has_same_bits = false;
        if !is_exact && !is_bounded {
            continue;
        }
        let size = written.element.size();
        let whole = written.bytes / size * size;
        let (mine, theirs) = (
            to_doubles(&mine[..whole], written.element),
            to_doubles(&theirs[..whole], written.element),
        );
        let is_written = &held.is_written[range];
        let largest =
            mine.iter()
                .zip(is_written.iter().step_by(size))
                .fold(0.0f64, |largest, (x, w)| {
                    if *w && x.is_finite() {
                        largest.max(x.abs())
                    } else {
                        largest
                    }
                });
        for (at, (mine, theirs)) in mine.iter().zip(&theirs).enumerate() {
            let both_nan = mine.is_nan() && theirs.is_nan();
            if both_nan || mine == theirs {
                continue;
            }
            let allowed = match written.element {
                _ if is_exact => 0.0,
                DType::Bf16 => largest * INEXACT_SHARE_BF16 + CANCELLED,
                DType::F32 => largest * INEXACT_SHARE + CANCELLED,
                DType::I32 => 0.0,
            };
            let difference = (mine - theirs).abs();
            if difference.is_nan() || difference > allowed {
                return Err(format!(
                    "kernel {}: element {at} of {} {} is {mine:e}, but the emulator has {theirs:e}, which is {difference:.2e} \
                     away where {allowed:.2e} is allowed",
                    code.name,
                    written.bytes / size,
                    written.element
                ));
            }
            result.share = result.share.max(difference / allowed);
        }
    }
    Ok(result)
}
