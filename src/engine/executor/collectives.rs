//! The collectives of a session: what its engine has under way.

use std::sync::{MutexGuard, PoisonError};

use crate::program::Program;
use keel_base::error::{Error, Result};
use keel_ranks::{Collective, Engine, Kind, Received, Sent, SharedEngine, Ticket};

/// Holds an executor's engine to a program that it is to run.
///
/// # Errors
/// [`Error::Device`] when the program is of a rank among several and there is no engine, or that of another rank or for
/// another kind of memory.
pub(super) fn expect_engine(
    device: &str,
    engine: Option<&SharedEngine>,
    program: &Program,
    for_devices: bool,
) -> Result<()> {
    let world = program.world();
    let is_met = match engine {
        _ if world.ranks == 1 => true,
        Some(engine) => {
            let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.world() == world && engine.is_for_devices() == for_devices
        }
        None => false,
    };
    if is_met {
        return Ok(());
    }
    Err(Error::Device {
        device: device.to_owned(),
        problem: format!(
            "the program is of rank {} of {}, and nothing here reaches the other ranks",
            world.rank, world.ranks
        ),
        remedy: "give the executor the engine of that rank".to_owned(),
    })
}

/// Hands the collectives of one session's program to the engine of its executor, in host memory.
#[derive(Default)]
pub struct Collectives {
    engine: Option<SharedEngine>,
    ranks: usize,
    /// What was begun, by the collective's number in the program.
    under_way: Vec<(usize, Ticket)>,
}

impl Collectives {
    /// The collectives of one session of `program` on `device`, by `engine` where the program is of a rank among several.
    ///
    /// # Errors
    /// [`Error::Device`] when the program is of a rank among several and there is no engine, or that of another rank or one
    /// for memory of devices.
    pub fn new(
        device: &str,
        engine: Option<&SharedEngine>,
        program: &Program,
    ) -> Result<Collectives> {
        expect_engine(device, engine, program, false)?;
        Ok(Collectives {
            engine: engine.cloned(),
            ranks: program.world().ranks,
            under_way: Vec::new(),
        })
    }

    /// Begins collective `number` with what this rank sends.
    ///
    /// # Errors
    /// Whatever the engine reports.
    pub fn begin(&mut self, number: usize, kind: Kind, sent: &[u8]) -> Result<()> {
        let slice = match kind {
            Kind::AllGather => sent.len(),
            Kind::Exchange => sent.len() / self.ranks,
        };
        let mut engine = self.engine();
        let ticket = engine.begin(Collective { kind, slice }, Sent::Host(sent))?;
        drop(engine);
        self.under_way.push((number, ticket));
        Ok(())
    }

    /// Waits for collective `number`.
    ///
    /// # Errors
    /// Whatever the engine reports.
    ///
    /// # Panics
    /// When it was not begun.
    pub fn finish(&mut self, number: usize, received: &mut [u8]) -> Result<()> {
        let is_it = |(known, _): &(usize, Ticket)| *known == number;
        let place = self.under_way.iter().position(is_it);
        let (_, ticket) = self
            .under_way
            .swap_remove(place.expect("a program begins what it finishes"));
        self.engine().finish(ticket, Received::Host(received))
    }

    fn engine(&self) -> MutexGuard<'_, Box<dyn Engine>> {
        let engine = self.engine.as_ref();
        let engine = engine.expect("a program of several ranks is loaded with an engine alone");
        engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
