//! Blocks: warps that run until they wait for each other, barriers between them, and faults with their place.

use std::collections::BTreeMap;
use std::fmt;

use super::agents::{self, Agents, GROUP, Product, TensorArgument};
pub use super::arithmetic::Approximation;
use super::code::{Code, NONE};
pub use super::copies::CopyTiming;
use super::counts::Counts;
use super::execute::{Environment, Flow};
use super::form::Op;
use super::matrix;
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
    /// Its tensor maps; an argument that is one has the bits of [`TensorArgument::bits`].
    pub maps: &'a [TensorArgument],
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
        let mut agents = Agents::default();
        let mut environment = Environment {
            code,
            global: &mut global,
            shared: &mut shared,
            agents: &mut agents,
            maps: launch.maps,
            backwards: options.runs_backwards,
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
        if let Some(left) = agents.unfinished() {
            return Err(format!(
                "kernel {}, block {place:?}: it ends with {left}",
                code.name
            ));
        }
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
            let before = self.steps;
            for turn in 0..count {
                let warp = if backwards { count - 1 - turn } else { turn };
                self.run_warp(warp, env)?;
            }
            if self.warps.iter().all(|warp| warp.groups.is_empty()) {
                return Ok(());
            }
            // An arrival may have let a warp go on whose turn was over.
            if self.steps != before || self.meet_at_barriers() {
                continue;
            }
            // The latest that a copy may land is when nobody can go on without it.
            let landed = env.agents.land(env.global, env.shared);
            if !landed.map_err(|problem| Fault {
                warp: 0,
                instruction: None,
                problem,
            })? {
                return Err(self.stuck(env.code));
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

    /// Lets those go on whose barrier is complete; whether there are any.
    fn meet_at_barriers(&mut self) -> bool {
        let mut waiting: Vec<(u32, u32)> = self.warps.iter().filter_map(|w| w.barrier).collect();
        waiting.sort_unstable();
        waiting.dedup();
        let mut has_released = false;
        for (barrier, threads) in waiting {
            has_released |= self.complete(barrier, threads);
        }
        has_released
    }

    /// Nobody can go on: who waits for what.
    fn stuck(&self, code: &Code) -> Fault {
        let at_barrier = self.warps.iter().position(|warp| warp.barrier.is_some());
        let returned: u32 = self
            .warps
            .iter()
            .map(|w| (w.lanes & !w.live()).count_ones())
            .sum();
        let stalled = self.warps.iter().position(|warp| !warp.groups.is_empty());
        match (at_barrier, stalled) {
            (Some(warp), _) => Fault {
                warp,
                instruction: None,
                problem: format!(
                    "it waits at barrier {}, to which others never come: {returned} threads of the block have returned, and the \
                     others wait",
                    self.warps[warp].barrier.map_or(0, |(barrier, _)| barrier)
                ),
            },
            (None, stalled) => {
                let warp = stalled.unwrap_or(0);
                let at = self.warps[warp].groups.first().map_or(0, |group| group.at);
                Fault {
                    warp,
                    instruction: Some(text(code, at)),
                    problem: "it waits for what never comes: nobody in the block can go on"
                        .to_owned(),
                }
            }
        }
    }

    /// The warpgroup of a warp has come to a product: once all four warps have, it is asked for.
    fn ask_product(
        &mut self,
        number: usize,
        at: u32,
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        self.warps[number].meets = Some(at);
        let first = number / GROUP * GROUP;
        let group = self.warps.get(first..first + GROUP);
        let group = group.ok_or("a warpgroup is four warps, and the block ends before that")?;
        if group.iter().any(|warp| warp.meets != Some(at)) {
            return Ok(());
        }
        let i = &env.code.instructions[at as usize];
        let (descriptors, accumulates) = group[0].group_operands(i)?;
        for warp in group {
            if warp.group_operands(i)? != (descriptors, accumulates) {
                return Err("the warps of a warpgroup multiply different operands".to_owned());
            }
        }
        let open = env.agents.groups.entry(first).or_default();
        if open
            .commits
            .iter()
            .any(|commits| *commits != open.commits[0])
        {
            return Err("the warps of a warpgroup have committed different groups".to_owned());
        }
        open.open.push_back(Product {
            index: at,
            descriptors,
            accumulates,
        });
        if env.timing == CopyTiming::Early {
            self.multiply(first, env)?;
        }
        for warp in &mut self.warps[first..first + GROUP] {
            warp.meets = None;
            for group in &mut warp.groups {
                group.at += 1;
            }
        }
        Ok(())
    }

    /// The oldest product of a warpgroup happens.
    fn multiply(&mut self, first: usize, env: &mut Environment<'_, '_>) -> Result<(), String> {
        let open = env.agents.groups.entry(first).or_default();
        let product = open.open.pop_front().expect("it was asked for");
        open.finished += 1;
        let i = &env.code.instructions[product.index as usize];
        let Op::GroupMultiply { columns } = i.op else {
            return Err("only products are asked for".to_owned());
        };
        if !env.multiplies {
            return Ok(());
        }
        let columns = usize::from(columns);
        let is_fragment = i.a == NONE;
        let b = agents::tile(
            env.shared,
            product.descriptors[1],
            i.value & 2 != 0,
            columns,
        )?;
        let a = match is_fragment {
            true => Vec::new(),
            false => agents::tile(env.shared, product.descriptors[0], i.value & 1 != 0, 64)?,
        };
        let count = columns / 2 + if is_fragment { 4 } else { 0 };
        let list = env.code.list(i, count);
        let (d, fragments) = list.split_at(columns / 2);
        for (number, warp) in self.warps[first..first + GROUP].iter_mut().enumerate() {
            let mut left = [[0f32; 16]; 16];
            match fragments {
                [] => left.copy_from_slice(&a[16 * number..][..16]),
                registers => {
                    left = matrix::fragment(
                        [0, 1, 2, 3].map(|n| &warp.words[usize::from(registers[n])]),
                    );
                }
            }
            for (register, name) in d.iter().enumerate() {
                let values = &mut warp.words[usize::from(*name)];
                for (lane, value) in values.iter_mut().enumerate() {
                    let (row, column) = matrix::accumulator(lane, register);
                    let before = if product.accumulates {
                        f32::from_bits(*value)
                    } else {
                        0.0
                    };
                    // k upwards, as the emulator has it; products of bf16 are exact.
                    let sum = (0..16).fold(before, |sum, k| sum + left[row][k] * b[column][k]);
                    *value = sum.to_bits();
                }
            }
        }
        Ok(())
    }

    /// Finishes all but the youngest `open` groups that a warp's warpgroup has committed.
    fn wait_products(
        &mut self,
        number: usize,
        open: usize,
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let first = number / GROUP * GROUP;
        let group = env.agents.groups.entry(first).or_default();
        let committed = group.commits[number - first];
        let Some(last) = committed.checked_sub(open + 1) else {
            return Ok(());
        };
        let end = group.ends[last];
        while env.agents.groups[&first].finished < end {
            self.multiply(first, env)?;
        }
        Ok(())
    }

    /// Runs a warp until it waits at a barrier or its lanes have returned.
    fn run_warp(&mut self, number: usize, env: &mut Environment<'_, '_>) -> Result<(), Fault> {
        loop {
            let warp = &mut self.warps[number];
            if warp.groups.is_empty() || warp.barrier.is_some() || warp.meets.is_some() {
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
            let named = |problem| Fault {
                warp: number,
                instruction: Some(text(code, group.at)),
                problem,
            };
            match flow {
                Flow::Stall => {
                    // Tried again in the warp's next turn.
                    self.steps -= 1;
                    return Ok(());
                }
                Flow::GroupProduct => {
                    self.ask_product(number, group.at, env).map_err(named)?;
                    continue;
                }
                Flow::GroupCommit => {
                    let first = number / GROUP * GROUP;
                    let open = env.agents.groups.entry(first).or_default();
                    open.commits[number - first] += 1;
                    if open.commits[number - first] > open.ends.len() {
                        open.ends.push(open.finished + open.open.len());
                    }
                }
                Flow::GroupWait(open) => self.wait_products(number, open, env).map_err(named)?,
                _ => {}
            }
            let warp = &mut self.warps[number];
            advance(warp, selected, group, flow).map_err(named)?;
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
        Flow::Next | Flow::Arrival(..) | Flow::GroupCommit | Flow::GroupWait(_) => slot.at += 1,
        // Neither moves its warp: the first is tried again, and the second moves four.
        Flow::Stall | Flow::GroupProduct => {}
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
