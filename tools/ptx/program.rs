//! Counting what a program's launches execute, at shapes that nobody could compute: blocks are sampled, and memory has
//! addresses alone. What a kernel reads is then zero, so counts hold for kernels whose way does not depend on values.

use std::collections::BTreeMap;
use std::sync::Arc;

use keel_engine::executor::resolved::{
    ByteRange, ResolvedArgument, ResolvedLaunch, Space, resolve,
};
use keel_engine::launch::{Mapped, Parameter};
use keel_engine::program::Program;

use super::agents::TensorArgument;
use super::block::{Launch, Options, launch};
use super::code::Code;
use super::counts::Counts;
use super::image::Kernels;
use super::memory::{Extent, Memory};

/// Blocks of a launch that are run at the most: whole heads of up to 32 tiles.
const NEIGHBOURS: u64 = 64;

/// Blocks that are run at the least.
const FEWEST: u64 = 4;

/// Instructions of warps after which the blocks so far are enough: not before the 32 tiles of a head of the attention kernel that
/// executes most a block.
const ENOUGH: u64 = 12_800_000;

/// What one launch of an op executes.
pub struct Counted {
    /// The kernel.
    pub code: Arc<Code>,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// What the sampled blocks executed.
    pub counts: Counts,
    /// How many blocks those were.
    pub sampled: u64,
    /// How often the op launches it like this.
    pub times: u64,
}

impl Counted {
    /// Blocks of one launch.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|axis| u64::from(*axis)).product()
    }
}

/// Addresses for everything a program touches.
struct Addresses {
    memory: Memory,
    activations: BTreeMap<usize, usize>,
    fixed: BTreeMap<String, usize>,
}

impl Addresses {
    fn new(program: &Program) -> Addresses {
        let mut memory = Memory::default();
        let activations = super::executor::allocate(program, |bytes| memory.reserve(bytes));
        Addresses {
            memory,
            activations,
            fixed: BTreeMap::new(),
        }
    }

    fn extent(&mut self, range: ByteRange, is_writable: bool) -> Extent {
        let (allocation, offset) = match range.space {
            Space::Activations => {
                let before = self.activations.range(..=range.offset).next_back();
                let (start, allocation) = before.expect("the plan places every value");
                (*allocation, range.offset - start)
            }
            // Of an arena that sessions make or share, only where things lie to each other matters.
            Space::Fixed(arena) => {
                let memory = &mut self.memory;
                let fixed = self.fixed.entry(format!("{arena:?}"));
                (
                    *fixed.or_insert_with(|| memory.reserve(1 << 40)),
                    range.offset,
                )
            }
        };
        Extent {
            start: self.memory.get(allocation).start + offset as u64,
            bytes: range.bytes as u64,
            is_writable,
            allocation,
        }
    }
}

/// The blocks that are looked at: neighbours from the middle of the grid, so that tiles of a head, of which some are short or see
/// less, are met as often as they are there.
fn sample(blocks: u64) -> std::ops::Range<u64> {
    let first = if blocks <= NEIGHBOURS {
        0
    } else {
        blocks / 2 / NEIGHBOURS * NEIGHBOURS
    };
    first..blocks.min(first + NEIGHBOURS)
}

/// What each op of `program` launches, with up to 64 blocks of each launch executed, fewer where they execute much.
/// Launches of an op that differ in their pointers alone are one, with how many there are.
///
/// # Errors
/// A sentence that says what is missing, or what a kernel did wrong.
pub fn count(program: &Program) -> Result<Vec<Vec<Counted>>, String> {
    let mut addresses = Addresses::new(program);
    let steps = resolve(program).map_err(|problem| problem.to_string())?;
    steps
        .iter()
        .map(|step| {
            let mut known: Vec<(&ResolvedLaunch, Counted)> = Vec::new();
            for resolved in &step.launches {
                match known
                    .iter_mut()
                    .find(|(other, _)| is_alike(other, resolved))
                {
                    Some((_, counted)) => counted.times += 1,
                    None => known.push((resolved, count_launch(resolved, &mut addresses)?)),
                }
            }
            Ok(known.into_iter().map(|(_, counted)| counted).collect())
        })
        .collect()
}

/// Whether two launches differ in their pointers alone.
fn is_alike(one: &ResolvedLaunch, other: &ResolvedLaunch) -> bool {
    let is_alike = |(one, other): (&ResolvedArgument, &ResolvedArgument)| match (one, other) {
        (ResolvedArgument::ByteRange(_), ResolvedArgument::ByteRange(_)) => true,
        (one, other) => one == other,
    };
    one.kernel == other.kernel
        && one.grid == other.grid
        && one.arguments.iter().zip(&other.arguments).all(is_alike)
}

fn count_launch(resolved: &ResolvedLaunch, addresses: &mut Addresses) -> Result<Counted, String> {
    let code = Kernels::shared().code(resolved.kernel.name)?;
    let (mut arguments, mut extents, mut maps) = (Vec::new(), Vec::new(), Vec::new());
    for (argument, parameter) in resolved.arguments.iter().zip(resolved.kernel.parameters) {
        arguments.push(match *argument {
            ResolvedArgument::ByteRange(range) => {
                let is_writable = matches!(
                    parameter,
                    Parameter::Pointer {
                        is_const: false,
                        ..
                    }
                );
                let extent = addresses.extent(range, is_writable);
                extents.push(extent);
                extent.start
            }
            ResolvedArgument::Null => 0,
            ResolvedArgument::I32(value) => u64::from(value as u32),
            ResolvedArgument::I64(value) => value as u64,
            ResolvedArgument::F32(value) => u64::from(value.to_bits()),
            ResolvedArgument::TensorMap(range, map) => {
                let extent = addresses.extent(range, !matches!(map.of(), Mapped::Input(_)));
                extents.push(extent);
                maps.push(TensorArgument {
                    address: extent.start,
                    map,
                });
                TensorArgument::bits(maps.len() - 1)
            }
        });
    }
    let threads = if code.threads == 0 { 32 } else { code.threads };
    let launched = Launch {
        code: &code,
        grid: resolved.grid,
        threads,
        arguments: &arguments,
        extents: &extents,
        maps: &maps,
    };
    let options = Options {
        multiplies: false,
        ..Options::default()
    };
    let mut counts = Counts::of(&code);
    let mut sampled = 0;
    for block in sample(launched.blocks()) {
        let memory = &mut addresses.memory;
        launch(&launched, [block], memory, &options, Some(&mut counts))?;
        sampled += 1;
        let executed: u64 = counts.executed.iter().sum();
        if sampled >= FEWEST && executed >= ENOUGH {
            break;
        }
    }
    Ok(Counted {
        grid: resolved.grid,
        threads,
        counts,
        sampled,
        times: 1,
        code,
    })
}
