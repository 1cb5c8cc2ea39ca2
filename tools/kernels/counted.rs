//! What the examples' kernels execute, counted by running their PTX block by block (`keel_ptx::count`), and from that the time
//! a chip needs at least, and the time it is predicted to need.
//!
//! Each part of a multiprocessor has so many turns of work, and takes so many a cycle; the part that takes longest binds. That
//! is all the model knows. What it cannot know: how ptxas schedules and fuses instructions, latency that too few warps leave
//! uncovered, what the second-level cache keeps, and clocks under load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use keel_base::error::{Error, Result};
use keel_engine::program::{CompileOptions, Program};
use keel_engine::tape::{Tape, Target};
use keel_engine::tensor::DType;
use keel_ptx::Counted;
use keel_ptx::form::{Class, Op};

use super::Size;
use super::roofline::{Recorded, Work, record_all, works_of};

/// Examples whose kernels go other ways for other values, which counting on zeros would not show.
const BY_VALUE: [&str; 1] = ["embedding"];

/// What a launch executes, all its blocks together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Instructions of warps, without moves between registers.
    pub instructions: f64,
    /// Those on f32.
    pub floats: f64,
    /// Those on integers and predicates.
    pub integers: f64,
    /// Those of the special function unit.
    pub special: f64,
    /// Exponentials among them.
    pub exponentials: f64,
    /// Tensor products of 16 × 8 × 16.
    pub tensor: f64,
    /// Turns of shared memory.
    pub wavefronts: f64,
    /// Turns that the same bytes would take without bank conflicts.
    pub ideal_wavefronts: f64,
    /// Sectors of 32 bytes that went between the multiprocessors and the second-level cache.
    pub sectors: f64,
    /// Sectors that the bytes asked for would fill.
    pub ideal_sectors: f64,
    /// Barriers of a block, by its warps.
    pub barriers: f64,
}

impl Sums {
    /// Of a launch, from the blocks that were run.
    fn of(counted: &Counted) -> Sums {
        let mut sums = Sums::default();
        let counts = &counted.counts;
        for (index, instruction) in counted.code.instructions.iter().enumerate() {
            let executed = counts.executed[index] as f64;
            let class = instruction.op.class();
            if class != Class::Move {
                sums.instructions += executed;
            }
            match class {
                Class::Float => sums.floats += executed,
                Class::Integer => sums.integers += executed,
                Class::Special => sums.special += executed,
                Class::Tensor => sums.tensor += executed,
                _ => {}
            }
            match instruction.op {
                Op::Exp2ApproximateF32 => sums.exponentials += executed,
                Op::Barrier => sums.barriers += executed,
                _ => {}
            }
            sums.wavefronts += counts.wavefronts[index] as f64;
            sums.ideal_wavefronts += counts.ideal_wavefronts[index] as f64;
            sums.sectors += counts.sectors[index] as f64;
            sums.ideal_sectors += counts.bytes[index] as f64 / 32.0;
        }
        sums.scaled(counted.blocks() as f64 * counted.times as f64 / counted.sampled as f64)
    }

    fn scaled(mut self, by: f64) -> Sums {
        for value in self.values_mut() {
            *value *= by;
        }
        self
    }

    fn values_mut(&mut self) -> [&mut f64; 11] {
        [
            &mut self.instructions,
            &mut self.floats,
            &mut self.integers,
            &mut self.special,
            &mut self.exponentials,
            &mut self.tensor,
            &mut self.wavefronts,
            &mut self.ideal_wavefronts,
            &mut self.sectors,
            &mut self.ideal_sectors,
            &mut self.barriers,
        ]
    }
}

/// A line of a source file and the turns of shared memory that conflicts cost there, all blocks together.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// File and line.
    pub place: String,
    /// Turns taken.
    pub wavefronts: f64,
    /// Turns without conflicts.
    pub ideal: f64,
}

/// One kernel of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedKernel {
    /// Its name.
    pub name: String,
    /// Launches.
    pub launches: u64,
    /// Blocks of all launches.
    pub blocks: u64,
    /// Blocks and instructions of each launch that differs from the others.
    grids: Vec<(u64, f64)>,
    /// What it executes.
    pub sums: Sums,
    /// Where it meets banks twice, worst first.
    pub conflicts: Vec<Conflict>,
}

/// An op of an example, counted.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedWork {
    /// The op and its bytes.
    pub work: Work,
    /// Its kernels.
    pub kernels: Vec<CountedKernel>,
}

/// What binds a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The tensor cores.
    Tensor,
    /// The bandwidth of shared memory.
    Shared,
    /// Issuing instructions.
    Issue,
    /// f32 arithmetic.
    Float,
    /// Integer arithmetic.
    Integer,
    /// The special function unit.
    Special,
    /// Bytes from the second-level cache.
    Cache,
    /// Bytes from device memory.
    Memory,
}

impl Limit {
    /// The word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Tensor => "tensor",
            Limit::Shared => "shared",
            Limit::Issue => "issue",
            Limit::Float => "f32",
            Limit::Integer => "integer",
            Limit::Special => "special",
            Limit::Cache => "L2",
            Limit::Memory => "memory",
        }
    }
}

/// What a multiprocessor of a chip does in a cycle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// The chip.
    pub name: &'static str,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Cycles a second, at which the data sheet's peak holds.
    pub clock: f64,
    /// Dense bf16 operations of its tensor cores.
    pub tensor: f64,
    /// Share of that which `mma.sync` reaches.
    pub mma_share: f64,
    /// Lanes of f32 arithmetic.
    pub floats: f64,
    /// Lanes of integer arithmetic.
    pub integers: f64,
    /// Bytes from the second-level cache.
    pub cache: f64,
    /// Bytes of device memory a second, the whole chip.
    pub bandwidth: f64,
}

/// Lanes of the special function unit, on every chip here.
const SPECIAL: f64 = 16.0;
/// Instructions that start in a cycle, on every chip here.
const ISSUE: f64 = 4.0;
/// Operations of one tensor product of 16 × 8 × 16.
const PRODUCT: f64 = 2.0 * 16.0 * 8.0 * 16.0;

/// The chips that times are predicted for.
///
/// Sources: NVIDIA's data sheets and white papers of the A100 (80 GB SXM), H100 (SXM5), H200 and Ada (RTX 4090); lanes from the
/// CUDA C++ Programming Guide 13.0, "Arithmetic Instructions"; the second-level cache of the A100 from its white paper
/// (5120 bytes a cycle), of the others 64 bytes a multiprocessor; the share of `mma.sync` on Hopper from Luo et al. 2024,
/// "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", table 7.
pub const SPEEDS: [Speed; 4] = [
    Speed {
        name: "A100",
        multiprocessors: 108,
        clock: 1.41e9,
        tensor: 2048.0,
        mma_share: 1.0,
        floats: 64.0,
        integers: 64.0,
        cache: 5120.0 / 108.0,
        bandwidth: 2039e9,
    },
    HOPPER,
    Speed {
        name: "H200",
        bandwidth: 4800e9,
        ..HOPPER
    },
    Speed {
        name: "RTX 4090",
        multiprocessors: 128,
        clock: 2.52e9,
        tensor: 512.0,
        mma_share: 1.0,
        floats: 128.0,
        integers: 64.0,
        cache: 64.0,
        bandwidth: 1008e9,
    },
];

const HOPPER: Speed = Speed {
    name: "H100",
    multiprocessors: 132,
    clock: 1.83e9,
    tensor: 4096.0,
    mma_share: 0.62,
    floats: 128.0,
    integers: 64.0,
    cache: 64.0,
    bandwidth: 3350e9,
};

/// A predicted time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Seconds that no schedule could go below: tensor cores at their peak, no conflicts, every multiprocessor busy.
    pub least: f64,
    /// Seconds as counted: with conflicts, the speed of `mma.sync`, and multiprocessors that stand by at the end.
    pub seconds: f64,
    /// What binds.
    pub limit: Limit,
}

impl Speed {
    /// Cycles of a multiprocessor that a kernel's work takes in each part, and what they would be at the least.
    fn parts(&self, sums: &Sums) -> [(Limit, f64, f64); 7] {
        let tensor = sums.tensor * PRODUCT / self.tensor;
        let even = |cycles: f64| (cycles, cycles);
        let warps = 32.0;
        [
            (Limit::Tensor, (tensor / self.mma_share, tensor)),
            (Limit::Shared, (sums.wavefronts, sums.ideal_wavefronts)),
            (Limit::Issue, even(sums.instructions / ISSUE)),
            (Limit::Float, even(sums.floats * warps / self.floats)),
            (Limit::Integer, even(sums.integers * warps / self.integers)),
            (Limit::Special, even(sums.special * warps / SPECIAL)),
            (
                Limit::Cache,
                (
                    sums.sectors * 32.0 / self.cache,
                    sums.ideal_sectors * 32.0 / self.cache,
                ),
            ),
        ]
        .map(|(limit, (counted, least))| (limit, counted, least))
    }

    /// The time for an op.
    pub fn predict(&self, counted: &CountedWork) -> Predicted {
        let all = f64::from(self.multiprocessors) * self.clock;
        let (mut least, mut seconds, mut limits) = (0.0, 0.0, BTreeMap::new());
        for kernel in &counted.kernels {
            let parts = self.parts(&kernel.sums);
            let longest = |of: fn(&(Limit, f64, f64)) -> f64| {
                let mut parts = parts.to_vec();
                parts.sort_by(|a, b| of(b).total_cmp(&of(a)));
                parts[0]
            };
            let (limit, cycles, _) = longest(|part| part.1);
            let (.., fewest) = longest(|part| part.2);
            let taken = cycles / all * kernel.unevenness(self.multiprocessors);
            least += fewest / all;
            seconds += taken;
            let entry = limits.entry(limit as usize).or_insert((limit, 0.0));
            entry.1 += taken;
        }
        let cost = &counted.work.cost;
        let memory = (cost.bytes_read + cost.bytes_written) / self.bandwidth;
        let slowest = limits.into_values().max_by(|a, b| a.1.total_cmp(&b.1));
        let limit = match slowest {
            Some((limit, _)) if seconds > memory => limit,
            _ => Limit::Memory,
        };
        Predicted {
            least: f64::max(least, memory),
            seconds: f64::max(seconds, memory),
            limit,
        }
    }
}

impl CountedKernel {
    /// How much longer the fullest multiprocessor works than an even share: whole blocks go to each.
    fn unevenness(&self, multiprocessors: u32) -> f64 {
        let share: f64 = self.grids.iter().map(|(_, share)| share).sum();
        let uneven: f64 = self
            .grids
            .iter()
            .map(|(blocks, share)| {
                let even = *blocks as f64 / f64::from(multiprocessors);
                share * even.ceil() / even
            })
            .sum();
        if share > 0.0 { uneven / share } else { 1.0 }
    }
}

/// Counts every example of a size in `precision`.
///
/// # Errors
/// [`Error::Device`] without the kernels' PTX; [`Error::Kernel`] when one of them cannot be executed; whatever recording
/// reports.
pub fn count(size: Size, precision: DType) -> Result<Vec<CountedWork>> {
    keel_ptx::texts().map_err(|problem| Error::Device {
        device: "ptx".into(),
        problem,
        remedy: "run cargo tool nvcc and build again".into(),
    })?;
    let options = CompileOptions {
        share_memory: false,
        ..CompileOptions::new(Target::Cuda)
    };
    let recorded = record_all(size, precision)?;
    let recorded = recorded.into_iter();
    let recorded = recorded.filter(|recorded| !BY_VALUE.contains(&recorded.example));
    let recorded: Vec<Mutex<Recorded>> = recorded.map(Mutex::new).collect();
    let counted: Vec<Mutex<Vec<CountedWork>>> = recorded.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(recorded) = recorded.get(index) else {
                return Ok(());
            };
            let mut recorded = recorded.lock().unwrap_or_else(PoisonError::into_inner);
            let found = count_example(&mut recorded, &options)?;
            *counted[index]
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = found;
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut ended = workers.into_iter().map(|worker| worker.join());
        ended.try_for_each(|ended| ended.expect("counting reports what goes wrong"))
    })?;
    let mut all: Vec<CountedWork> = Vec::new();
    for counted in counted {
        for counted in counted.into_inner().unwrap_or_else(PoisonError::into_inner) {
            // A layer of another form has the same backward.
            if all.iter().all(|known| known.work != counted.work) {
                all.push(counted);
            }
        }
    }
    Ok(all)
}

/// Counts the ops of one example.
fn count_example(recorded: &mut Recorded, options: &CompileOptions) -> Result<Vec<CountedWork>> {
    let tape = std::mem::replace(&mut recorded.tape, Tape::declaring());
    let program = Program::compile(tape, options)?;
    let works = works_of(recorded, &program);
    let counted = keel_ptx::count(&program).map_err(Error::kernel)?;
    let counted = works
        .into_iter()
        .zip(counted)
        .filter_map(|(work, launches)| {
            Some(CountedWork {
                work: work.filter(|_| !launches.is_empty())?,
                kernels: kernels(&launches),
            })
        });
    Ok(counted.collect())
}

/// The launches of an op by kernel.
fn kernels(launches: &[Counted]) -> Vec<CountedKernel> {
    let mut kernels: Vec<CountedKernel> = Vec::new();
    for launch in launches {
        let mut sums = Sums::of(launch);
        let grid = (launch.blocks(), sums.instructions);
        let name = &launch.code.name;
        match kernels.iter_mut().find(|kernel| kernel.name == *name) {
            Some(kernel) => {
                kernel.launches += launch.times;
                kernel.blocks += launch.times * launch.blocks();
                kernel.grids.push(grid);
                for (sum, added) in kernel.sums.values_mut().into_iter().zip(sums.values_mut()) {
                    *sum += *added;
                }
            }
            None => kernels.push(CountedKernel {
                name: name.clone(),
                launches: launch.times,
                blocks: launch.times * launch.blocks(),
                grids: vec![grid],
                sums,
                conflicts: conflicts(launch),
            }),
        }
    }
    kernels
}

/// The lines at which banks are met twice.
fn conflicts(launch: &Counted) -> Vec<Conflict> {
    let scale = launch.blocks() as f64 / launch.sampled as f64;
    let mut lines: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (index, (_, place)) in launch.code.statements.iter().enumerate() {
        let (taken, ideal) = (
            launch.counts.wavefronts[index] as f64,
            launch.counts.ideal_wavefronts[index] as f64,
        );
        if taken > 0.0 {
            let line = lines.entry(launch.code.show(*place)).or_default();
            *line = (line.0 + taken * scale, line.1 + ideal * scale);
        }
    }
    let mut conflicts: Vec<Conflict> = lines
        .into_iter()
        .map(|(place, (wavefronts, ideal))| Conflict {
            place,
            wavefronts,
            ideal,
        })
        .filter(|line| line.wavefronts > line.ideal)
        .collect();
    conflicts.sort_by(|a, b| (b.wavefronts - b.ideal).total_cmp(&(a.wavefronts - a.ideal)));
    conflicts
}
