//! Blocks: warps that run until they wait for each other, barriers between them, and faults with their place.

use std::collections::BTreeMap;
use std::fmt;

pub use super::arithmetic::Approximation;
use super::code::Code;
pub use super::copies::CopyTiming;
use super::counts::Counts;
use super::execute::{Environment, Flow};
use super::memory::{Extent, Global, Memory};
use super::shared::Shared;
use super::warp::{Group, Surroundings, Warp};

/// Instructions of a warp after which a block is given up: no kernel of the project runs a hundredth of it on the shapes of
/// a test.
const LONGEST: u64 = 1 << 32;

/// How launches are run. The same options give the same run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// When asynchronous copies arrive.
    pub copies: CopyTiming,
    /// Whether the last warp and the last block run first. A warp runs until it waits, then the next.
    pub runs_backwards: bool,
    /// What approximate instructions give.
    pub approximation: Approximation,
    /// Whether matrices are multiplied. Where memory holds nothing, their products are left as they are.
    pub multiplies: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            copies: CopyTiming::Late,
            runs_backwards: false,
            approximation: Approximation::Nearest,
            multiplies: true,
        }
    }
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub code: &'a Code,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// The bits of each argument.
    pub arguments: &'a [u64],
    /// What its pointers may touch.
    pub extents: &'a [Extent],
}

impl Launch<'_> {
    /// How many blocks it has.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|axis| u64::from(*axis)).product()
    }

    /// The place of a block in the grid.
    fn place(&self, block: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [block % x, block / x % y, block / x / y].map(|axis| axis as u32)
    }
}

/// Runs a launch over `blocks`, each a number below [`Launch::blocks`], in the order that the options say. What the blocks
/// execute is added to `counts`.
///
/// # Errors
/// The first thing that a thread did wrong, with its block, warp, source line and instruction.
pub fn launch(
    launch: &Launch<'_>,
    blocks: impl IntoIterator<Item = u64>,
    memory: &mut Memory,
    options: &Options,
    mut counts: Option<&mut Counts>,
) -> Result<(), String> {
    let code = launch.code;
    if launch.arguments.len() != code.parameters.len() {
        return Err(format!(
            "kernel {}: it takes {} arguments, but the launch passes {}",
            code.name,
            code.parameters.len(),
            launch.arguments.len()
        ));
    }
    if code.threads != 0 && code.threads != launch.threads {
        return Err(format!(
            "kernel {}: it is written for {} threads a block, but the launch has {}",
            code.name, code.threads, launch.threads
        ));
    }
    let mut order: Vec<u64> = blocks.into_iter().collect();
    if options.runs_backwards {
        order.reverse();
    }
    let mut global = Global::new(memory, launch.extents);
    for block in order {
        let place = launch.place(block);
        let mut shared = Shared::new(code.shared_bytes as usize);
        let mut environment = Environment {
            code,
            global: &mut global,
            shared: &mut shared,
            timing: options.copies,
            approximation: options.approximation,
            multiplies: options.multiplies,
            counts: counts.as_deref_mut(),
        };
        let around = Surroundings {
            threads: launch.threads,
            block: place,
            blocks: launch.grid,
        };
        let warps = (0..launch.threads).step_by(32);
        let mut running = Block {
            warps: warps
                .map(|first| Warp::new(code, first, launch.arguments, &around))
                .collect(),
            arrived: BTreeMap::new(),
            steps: 0,
        };
        running
            .run(&mut environment, options.runs_backwards)
            .map_err(|fault| format!("kernel {}, block {place:?}, {fault}", code.name))?;
    }
    Ok(())
}

/// What went wrong, and where.
struct Fault {
    warp: usize,
    instruction: Option<String>,
    problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "warp {}: {}", self.warp, self.problem)?;
        match &self.instruction {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

struct Block {
    warps: Vec<Warp>,
    /// Threads that were counted at a barrier, for so many threads, and went on.
    arrived: BTreeMap<(u32, u32), u32>,
    steps: u64,
}

impl Block {
    /// Runs to the end.
    fn run(&mut self, env: &mut Environment<'_, '_>, backwards: bool) -> Result<(), Fault> {
        let count = self.warps.len();
        loop {
            for turn in 0..count {
                let warp = if backwards { count - 1 - turn } else { turn };
                self.run_warp(warp, env)?;
            }
            if self.warps.iter().all(|warp| warp.groups.is_empty()) {
                return Ok(());
            }
            // An arrival may have let a warp go on whose turn was over.
            let can_run = |warp: &Warp| !warp.groups.is_empty() && warp.barrier.is_none();
            if !self.warps.iter().any(can_run) {
                self.release()?;
            }
        }
    }

    /// Lets those go on who wait at a barrier for `threads` threads (0: all), if these have come.
    fn complete(&mut self, barrier: u32, threads: u32) -> bool {
        let here = Some((barrier, threads));
        let waiting = self.warps.iter().filter(|warp| warp.barrier == here);
        let waiting: u32 = waiting.map(|warp| warp.live().count_ones()).sum();
        let passed = self.arrived.get(&(barrier, threads)).copied().unwrap_or(0);
        let all: u32 = self.warps.iter().map(|warp| warp.lanes.count_ones()).sum();
        let wanted = if threads == 0 { all } else { threads };
        if waiting + passed != wanted {
            return false;
        }
        self.arrived.remove(&(barrier, threads));
        for warp in self.warps.iter_mut().filter(|warp| warp.barrier == here) {
            warp.barrier = None;
        }
        true
    }

    /// Lets those go on whose barrier is complete.
    fn release(&mut self) -> Result<(), Fault> {
        let mut waiting: Vec<(u32, u32)> = self.warps.iter().filter_map(|w| w.barrier).collect();
        waiting.sort_unstable();
        waiting.dedup();
        let mut has_released = false;
        for (barrier, threads) in &waiting {
            has_released |= self.complete(*barrier, *threads);
        }
        if has_released {
            return Ok(());
        }
        let stuck = self.warps.iter().position(|warp| warp.barrier.is_some());
        let returned: u32 = self
            .warps
            .iter()
            .map(|w| (w.lanes & !w.live()).count_ones())
            .sum();
        Err(Fault {
            warp: stuck.unwrap_or(0),
            instruction: None,
            problem: format!(
                "it waits at barrier {}, to which others never come: {returned} threads of the block have returned, and the \
                 others wait",
                waiting.first().map_or(0, |(barrier, _)| *barrier)
            ),
        })
    }

    /// Runs a warp until it waits at a barrier or its lanes have returned.
    fn run_warp(&mut self, number: usize, env: &mut Environment<'_, '_>) -> Result<(), Fault> {
        loop {
            let warp = &mut self.warps[number];
            if warp.groups.is_empty() || warp.barrier.is_some() {
                return Ok(());
            }
            let Some(selected) = warp.select() else {
                let waiting: Vec<String> = warp
                    .groups
                    .iter()
                    .map(|group| {
                        format!(
                            "lanes {:#010x} at {}",
                            group.lanes,
                            text(env.code, group.at)
                        )
                    })
                    .collect();
                return Err(Fault {
                    warp: number,
                    instruction: None,
                    problem: format!("its lanes wait for each other: {}", waiting.join("; ")),
                });
            };
            let group = warp.groups[selected];
            let fault = |problem: String| Fault {
                warp: number,
                instruction: Some(text(env.code, group.at)),
                problem,
            };
            if group.at as usize >= env.code.instructions.len() {
                return Err(fault("it runs past the last instruction".to_owned()));
            }
            self.steps += 1;
            if self.steps > LONGEST {
                return Err(fault("the block does not end".to_owned()));
            }
            let code = env.code;
            let flow = warp
                .execute(group.at, group.lanes, env)
                .map_err(|problem| Fault {
                    warp: number,
                    instruction: Some(text(code, group.at)),
                    problem,
                })?;
            advance(warp, selected, group, flow).map_err(|problem| Fault {
                warp: number,
                instruction: Some(text(code, group.at)),
                problem,
            })?;
            if let Flow::Arrival(barrier, threads) = flow {
                let lanes = group.lanes.count_ones();
                *self.arrived.entry((barrier, threads)).or_default() += lanes;
                self.complete(barrier, threads);
            }
        }
    }
}

/// The instruction at `at` and its source line.
fn text(code: &Code, at: u32) -> String {
    match code.statements.get(at as usize) {
        Some((text, place)) => format!("{} in {text}", code.show(*place)),
        None => "the end of the kernel".to_owned(),
    }
}

/// Moves the lanes of a group to where they go.
fn advance(warp: &mut Warp, selected: usize, group: Group, flow: Flow) -> Result<(), String> {
    let slot = &mut warp.groups[selected];
    match flow {
        Flow::Next | Flow::Arrival(..) => slot.at += 1,
        Flow::Wait => slot.waits = true,
        Flow::Barrier(barrier, threads) => {
            slot.at += 1;
            warp.barrier = Some((barrier, threads));
        }
        Flow::Branch(target, taken) => {
            let stay = group.lanes & !taken;
            if taken == 0 {
                slot.at += 1;
            } else if stay == 0 {
                slot.at = target;
            } else {
                *slot = Group {
                    at: target,
                    lanes: taken,
                    waits: false,
                };
                warp.groups.push(Group {
                    at: group.at + 1,
                    lanes: stay,
                    waits: false,
                });
            }
        }
        Flow::Return(lanes) => {
            for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
                let open = warp.copies[lane].unfinished();
                if open > 0 {
                    return Err(format!(
                        "thread {} returns with {open} copies that no wait covers",
                        warp.first as usize + lane
                    ));
                }
            }
            slot.at += 1;
            slot.lanes &= !lanes;
            if slot.lanes == 0 {
                warp.groups.remove(selected);
            }
        }
    }
    Ok(())
}
