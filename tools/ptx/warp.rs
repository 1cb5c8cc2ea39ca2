//! A warp: the registers of 32 lanes, and which of them stand where.

use super::code::{Code, Initial, Special};
use super::copies::Copies;
use super::form::Bank;
use super::matrix::Lanes;

/// All lanes.
pub const ALL: u32 = u32::MAX;

/// Lanes that stand at the same instruction.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Which instruction.
    pub at: u32,
    /// Which lanes.
    pub lanes: u32,
    /// Whether they wait there for other lanes of their warp.
    pub waits: bool,
}

/// What a thread of a block knows of its place.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    pub threads: u32,
    pub block: [u32; 3],
    pub blocks: [u32; 3],
}

pub struct Warp {
    /// Its first thread.
    pub first: u32,
    /// The lanes it has: fewer than 32 in the last warp of an odd block.
    pub lanes: u32,
    pub words: Vec<Lanes>,
    pub doubles: Vec<[u64; 32]>,
    pub predicates: Vec<u32>,
    /// Lanes that have not returned, by where they stand.
    pub groups: Vec<Group>,
    pub copies: Vec<Copies>,
    /// The barrier that it waits at, and the threads that are to come there; 0: the whole block.
    pub barrier: Option<(u32, u32)>,
    /// The product at which it waits for the other warps of its warpgroup.
    pub meets: Option<u32>,
}

impl Warp {
    pub fn new(code: &Code, first: u32, parameters: &[u64], around: &Surroundings) -> Warp {
        let count = (around.threads - first).min(32);
        let mut warp = Warp {
            first,
            lanes: ALL >> (32 - count),
            words: vec![[0; 32]; code.registers[Bank::Word as usize]],
            doubles: vec![[0; 32]; code.registers[Bank::Double as usize]],
            predicates: vec![0; code.registers[Bank::Predicate as usize]],
            groups: Vec::new(),
            copies: vec![Copies::default(); 32],
            barrier: None,
            meets: None,
        };
        for (bank, register, initial) in &code.initial {
            let value = |lane: u32| match *initial {
                Initial::Bits(bits) => bits,
                Initial::Parameter(index) => parameters[usize::from(index)],
                Initial::Special(special) => u64::from(match special {
                    Special::Thread => first + lane,
                    Special::Lane => lane,
                    Special::Threads => around.threads,
                    Special::Block(axis) => around.block[usize::from(axis)],
                    Special::Blocks(axis) => around.blocks[usize::from(axis)],
                    Special::Fixed(value) => u32::from(value),
                }),
            };
            let register = usize::from(*register);
            match bank {
                Bank::Word => {
                    warp.words[register] = std::array::from_fn(|l| value(l as u32) as u32)
                }
                Bank::Double => warp.doubles[register] = std::array::from_fn(|l| value(l as u32)),
                Bank::Predicate => {
                    warp.predicates[register] = if value(0) != 0 { ALL } else { 0 };
                }
            }
        }
        warp.groups.push(Group {
            at: 0,
            lanes: warp.lanes,
            waits: false,
        });
        warp
    }

    /// Lanes that have not returned.
    pub fn live(&self) -> u32 {
        self.groups
            .iter()
            .fold(0, |lanes, group| lanes | group.lanes)
    }

    /// The group to run next: the one furthest back that does not wait. Groups that meet there become one, so that lanes run
    /// together again as soon as they can.
    pub fn select(&mut self) -> Option<usize> {
        if self.groups.len() == 1 {
            return (!self.groups[0].waits).then_some(0);
        }
        let running = self.groups.iter().filter(|group| !group.waits);
        let at = running.map(|group| group.at).min()?;
        let mut lanes = 0;
        self.groups.retain(|group| {
            if group.at == at {
                lanes |= group.lanes;
            }
            group.at != at
        });
        self.groups.push(Group {
            at,
            lanes,
            waits: false,
        });
        Some(self.groups.len() - 1)
    }

    pub fn set_word(&mut self, to: u16, values: Lanes, lanes: u32) {
        let register = &mut self.words[usize::from(to)];
        if lanes == ALL {
            *register = values;
        } else {
            for lane in 0..32 {
                if lanes >> lane & 1 != 0 {
                    register[lane] = values[lane];
                }
            }
        }
    }

    pub fn set_double(&mut self, to: u16, values: [u64; 32], lanes: u32) {
        let register = &mut self.doubles[usize::from(to)];
        if lanes == ALL {
            *register = values;
        } else {
            for lane in 0..32 {
                if lanes >> lane & 1 != 0 {
                    register[lane] = values[lane];
                }
            }
        }
    }

    pub fn set_predicate(&mut self, to: u16, values: u32, lanes: u32) {
        let register = &mut self.predicates[usize::from(to)];
        *register = *register & !lanes | values & lanes;
    }
}
