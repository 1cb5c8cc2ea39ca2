//! The collectives of a session on a GPU: what its engine has under way, on addresses of the device.
//!
//! The engine orders its own work behind that of the computing stream when a collective begins, and has that stream wait when
//! it finishes; the host waits for neither. On a stream that is captured both become part of its graph. All ranks run a program as
//! a graph or none does, which they tell one another when it is loaded.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::super::resolved::range;
use super::gpu::Gpu;
use super::memory::DeviceMemory;
use super::session::Memory;
use crate::program::Program;
use crate::tape::{CollectivePart, Value};
use keel_base::error::{Error, Result};
use keel_ranks::{Collective, Kind, Received, Sent, SharedEngine, Ticket};

/// Bytes before what arrives of a vote: it begins where any type may.
const VOTE: usize = 256;

/// One part of a collective of the program, by the collective's number.
#[derive(Clone, Copy)]
enum Part {
    Begin {
        number: usize,
        collective: Collective,
        from: u64,
        to: u64,
    },
    Finish {
        number: usize,
    },
}

/// See the module's documentation.
pub(super) struct DeviceCollectives {
    engine: Option<SharedEngine>,
    ranks: usize,
    /// Of each op of the program.
    parts: Vec<Option<Part>>,
    under_way: Mutex<Vec<(usize, Ticket)>>,
}

impl DeviceCollectives {
    /// Readies the collectives of `program`, whose values lie in `memory`. The executor has held its engine to the program.
    ///
    /// # Errors
    /// [`Error::Kernel`] when what arrives has another place than where it is read.
    pub fn new(
        engine: Option<&SharedEngine>,
        program: &Program,
        memory: &Memory,
    ) -> Result<DeviceCollectives> {
        let address = |value: Value| {
            let ty = program.ty(value);
            let range = range(program.place(value), ty.dtype, ty.bytes());
            let range = range.expect("an op that runs has all its values placed");
            let range = memory.placed(range);
            memory.space(range.space).address() + range.offset as u64
        };
        let mut parts = Vec::with_capacity(program.ops().len());
        for op in program.ops() {
            let instruction = &op.instruction;
            let Some((number, part)) = instruction.op.collective() else {
                parts.push(None);
                continue;
            };
            parts.push(Some(match part {
                CollectivePart::Begin(_) => Part::Begin {
                    number,
                    collective: program.collective(op).expect("it begins one"),
                    from: address(instruction.inputs[0]),
                    to: address(instruction.outputs[0]),
                },
                CollectivePart::Finish => {
                    let [arrived, read] = [instruction.inputs[0], instruction.outputs[0]];
                    if address(arrived) != address(read) {
                        return Err(Error::kernel(format!(
                            "{}: what arrives has to be read where it arrives, and the plan has moved it",
                            instruction.origin()
                        )));
                    }
                    Part::Finish { number }
                }
            }));
        }
        Ok(DeviceCollectives {
            engine: engine.cloned(),
            ranks: program.world().ranks,
            parts,
            under_way: Mutex::new(Vec::new()),
        })
    }

    /// Whether the program has none.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Option::is_none)
    }

    /// Whether all ranks say yes. Of a program without collectives, its own answer.
    ///
    /// # Errors
    /// Whatever the engine or the device reports.
    pub fn all_agree(&self, gpu: &Arc<Gpu>, own: bool) -> Result<bool> {
        let Some(engine) = self.engine.as_ref().filter(|_| !self.is_empty()) else {
            return Ok(own);
        };
        let vote = DeviceMemory::new(gpu, "a vote of the ranks", VOTE + self.ranks, 0)?;
        vote.upload(0, &[u8::from(own)])?;
        let order = gpu.in_order();
        let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, stream) = (vote.address(), gpu.compute() as usize);
        let (to, kind) = (from + VOTE as u64, Kind::AllGather);
        let sent = Sent::Device { from, to, stream };
        let ticket = engine.begin(Collective { kind, slice: 1 }, sent)?;
        engine.finish(ticket, Received::Device { stream })?;
        drop((engine, order));
        let mut votes = vec![0; self.ranks];
        vote.download(VOTE, &mut votes)?;
        Ok(votes.iter().all(|vote| *vote != 0))
    }

    /// Hands op `index` to the engine, with the work of `stream`; returns whether it was for it.
    ///
    /// # Errors
    /// Whatever the engine reports.
    pub fn run_on(&self, index: usize, stream: sys::CUstream) -> Result<bool> {
        let Some(part) = self.parts[index] else {
            return Ok(false);
        };
        let engine = self.engine.as_ref();
        let engine = engine.expect("a program of several ranks is loaded with an engine alone");
        let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = self.under_way.lock();
        let mut under_way = under_way.unwrap_or_else(PoisonError::into_inner);
        let stream = stream as usize;
        match part {
            Part::Begin {
                number,
                collective,
                from,
                to,
            } => {
                let sent = Sent::Device { from, to, stream };
                under_way.push((number, engine.begin(collective, sent)?));
            }
            Part::Finish { number } => {
                let place = under_way.iter().position(|(known, _)| *known == number);
                let place = place.expect("a program begins what it finishes");
                let (_, ticket) = under_way.swap_remove(place);
                engine.finish(ticket, Received::Device { stream })?;
            }
        }
        Ok(true)
    }
}
