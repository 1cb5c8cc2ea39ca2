//! Instructions of sm_90a over the lanes of a warp: stores of matrices, barriers in shared memory, copies by tensor maps, and what a
//! warp gives to a product of its warpgroup.

use super::agents::{Boxed, map_at};
use super::code::{Instruction, NONE};
use super::execute::{Environment, Flow, each};
use super::form::Op;
use super::matrix;
use super::warp::{ALL, Warp};

impl Warp {
    pub(super) fn store_matrices(
        &mut self,
        index: u32,
        i: &Instruction,
        is_transposed: bool,
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let addresses = self.shared_addresses(i);
        let list = env.code.list(i, 4);
        for (matrix, register) in list.iter().enumerate() {
            let rows = matrix::gather(self.word(*register), is_transposed);
            for (row, bytes) in rows.iter().enumerate() {
                env.shared
                    .write(addresses[8 * matrix + row], bytes)
                    .map_err(|problem| format!("row {row} of matrix {matrix}: {problem}"))?;
            }
            if let Some(counts) = &mut env.counts {
                counts.shared(index, &addresses, 0xff << (8 * matrix), 16);
            }
        }
        Ok(())
    }

    /// Barriers in shared memory and copies by tensor maps, lane by lane.
    pub(super) fn agent(
        &mut self,
        i: &Instruction,
        active: u32,
        env: &mut Environment<'_, '_>,
    ) -> Result<Flow, String> {
        let addresses = match i.op {
            Op::BulkCommit | Op::BulkWait => [0; 32],
            _ => self.shared_addresses(i),
        };
        if i.op == Op::BarrierTest {
            let mut done = 0;
            for lane in each(active) {
                let parity = self.word(i.b)[lane];
                done |= u32::from(env.agents.has_ended(addresses[lane], parity)?) << lane;
            }
            // A try that fails is made again, so that all lanes leave the loop together.
            if done != active {
                return Ok(Flow::Stall);
            }
            self.set_predicate(i.to, done, active);
            return Ok(Flow::Next);
        }
        for lane in each(active) {
            let thread = self.first + lane as u32;
            self.agent_of(i, lane, thread, addresses[lane], env)
                .map_err(|problem| self.of_lane(lane, problem))?;
        }
        Ok(Flow::Next)
    }

    fn agent_of(
        &self,
        i: &Instruction,
        lane: usize,
        thread: u32,
        address: u32,
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let boxed = |env: &Environment<'_, '_>| -> Result<Boxed, String> {
            let list = env.code.list(i, usize::from(i.d));
            Ok(Boxed {
                argument: *map_at(env.maps, self.double(i.b)[lane])?,
                coordinates: list.iter().map(|r| self.word(*r)[lane] as i32).collect(),
                shared: address,
            })
        };
        match i.op {
            Op::BarrierInit => env.agents.init(address, self.word(i.b)[lane]),
            Op::BarrierInvalidate => env.agents.invalidate(address),
            Op::BarrierCount => {
                let bytes = match i.b {
                    NONE => 0,
                    register => self.word(register)[lane],
                };
                env.agents.arrive(address, bytes)
            }
            Op::TensorLoad => {
                let asked = boxed(env)?;
                let barrier = self.word(i.c)[lane].wrapping_add(i.source_offset as u32);
                env.agents
                    .load(asked, barrier, env.timing, env.global, env.shared)
            }
            Op::TensorStore => {
                let asked = boxed(env)?;
                env.agents
                    .store(thread, asked, env.timing, env.global, env.shared)
            }
            Op::BulkCommit => {
                env.agents.commit_stores(thread);
                Ok(())
            }
            _ => {
                env.agents
                    .wait_stores(thread, i.value as usize, env.timing, env.global, env.shared)
            }
        }
    }

    /// The descriptors and the predicate of a product, which all lanes have alike.
    pub fn group_operands(&self, i: &Instruction) -> Result<([u64; 2], bool), String> {
        let one = |register: u16| -> Result<u64, String> {
            let lanes = self.double(register);
            match lanes.iter().all(|value| *value == lanes[0]) {
                true => Ok(lanes[0]),
                false => Err("the lanes of a warp give different descriptors".to_owned()),
            }
        };
        let a = if i.a == NONE { 0 } else { one(i.a)? };
        let accumulates = match self.predicate(i.c) {
            0 => false,
            ALL => true,
            _ => return Err("some lanes add to d and some do not".to_owned()),
        };
        Ok(([a, one(i.b)?], accumulates))
    }
}
