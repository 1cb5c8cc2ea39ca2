//! The engine of ranks on GPUs: NCCL, loaded at run time, on a stream of its own.
//!
//! A collective waits, on its stream, for the work that makes what it sends, and the stream that computes waits for it where it is
//! finished. Both orders are events, so the same calls can be captured into a graph with the step's launches. Nothing here
//! touches what is sent: sums are kernels of the program.
#![allow(unsafe_code)]

mod driver;
mod library;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use self::driver::{Driver, Handle};
pub use self::library::Library;
use self::library::{Comm, UniqueId};
use crate::control::{Fact, check_alike};
use crate::{Collective, Engine, Kind, Received, Sent, Ticket, Votes, World};
use keel_base::error::{Error, Result};

/// Bytes of a slice by which connections are made before anything is captured: making them cannot be captured.
const FIRST: usize = 256;

/// One rank's communicator, with the stream that it works on.
struct Nccl {
    world: World,
    library: Library,
    driver: Driver,
    device: i32,
    context: Handle,
    comm: Comm,
    stream: Handle,
    /// Recorded where what is sent is ready.
    ready: Handle,
    /// Recorded where what was begun has arrived, by the number of its ticket.
    arrived: HashMap<u64, Handle>,
    /// Events that nothing waits for any more.
    spare: Vec<Handle>,
    begun: u64,
    /// Whether every call so far did what it should. A communicator that failed is left as it is: ending it can hang.
    is_sound: bool,
}

// SAFETY: NCCL and the driver may be called from any thread that has made the context its own, one at a time for one
// communicator, which `&mut self` sees to; nothing of this program reads or writes behind the addresses.
unsafe impl Send for Nccl {}

/// Which GPU a rank has.
#[derive(Serialize, Deserialize)]
struct Card {
    host: String,
    ordinal: i32,
    uuid: Vec<u8>,
}

/// Makes the engine of the rank that computes on the GPU of this ordinal, together with all others; `hosts` names their places. The
/// GPU's context is current afterwards on the thread that calls.
///
/// # Errors
/// [`Error::Setting`] when two ranks have one GPU; [`Error::Content`] when ranks have different versions of NCCL;
/// [`Error::Device`] when the GPU cannot be used; [`Error::Stopped`] in NCCL's words for what goes wrong there.
pub fn engine(
    library: Library,
    votes: &dyn Votes,
    hosts: &[String],
    ordinal: i32,
) -> Result<Box<dyn Engine>> {
    let world = votes.world();
    check_alike(
        votes,
        hosts,
        &[Fact::new("version of NCCL", library.version())],
    )?;
    let driver = Driver::load()?;
    let device = driver.device(ordinal)?;
    let card = Card {
        host: hosts[world.rank].clone(),
        ordinal,
        uuid: driver.uuid(device)?.to_vec(),
    };
    check_cards(votes, &card)?;
    let id = if world.is_first() {
        library.unique_id()?.0
    } else {
        [0; 128]
    };
    let ids = votes.gather("where NCCL meets", &id)?;
    let id = <[u8; 128]>::try_from(ids[0].as_slice())
        .map_err(|_| Error::stopped("NCCL", "rank 0 told no address", "start again"))?;
    let context = driver.retain(device)?;
    let (stream, ready) = (driver.stream()?, driver.event()?);
    let comm = library.join(UniqueId(id), world.rank, world.ranks)?;
    let mut engine = Nccl {
        world,
        library,
        driver,
        device,
        context,
        comm,
        stream,
        ready,
        arrived: HashMap::new(),
        spare: Vec::new(),
        begun: 0,
        is_sound: false,
    };
    engine.connect()?;
    engine.is_sound = true;
    Ok(Box::new(engine))
}

/// Refuses two ranks with one GPU, which NCCL would refuse later and in other words.
fn check_cards(votes: &dyn Votes, own: &Card) -> Result<()> {
    let own = serde_json::to_vec(own).expect("text and numbers are written to memory");
    let cards = votes.gather("which GPUs they have", &own)?;
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
    for (rank, card) in cards.iter().enumerate() {
        let Ok(card) = serde_json::from_slice::<Card>(card) else {
            continue;
        };
        if let Some(other) = seen.insert(card.uuid, rank) {
            return Err(Error::setting(
                "the GPUs of the ranks",
                "one for each",
                format!(
                    "GPU {} of {} for ranks {other} and {rank}",
                    card.ordinal, card.host
                ),
            ));
        }
    }
    Ok(())
}

impl Nccl {
    /// Runs every kind of collective once, so that all connections are made.
    fn connect(&mut self) -> Result<()> {
        let bytes = FIRST * self.world.ranks;
        let memory = self.driver.allocate(2 * bytes)?;
        for kind in [Kind::AllGather, Kind::Exchange] {
            let collective = Collective { kind, slice: FIRST };
            self.queue(collective, [memory, memory + bytes as u64])?;
        }
        self.driver.synchronize(self.stream)?;
        self.driver.free(memory)
    }

    /// Queues a collective on the engine's stream.
    fn queue(&self, collective: Collective, places: [u64; 2]) -> Result<()> {
        let (slice, stream) = (collective.slice, self.stream);
        // SAFETY: `Sent::Device` promises as many bytes at both places as the collective sends and receives, left alone until it is
        // finished on the device; `connect` passes its own.
        unsafe {
            match collective.kind {
                Kind::AllGather => self.library.all_gather(places, slice, self.comm, stream),
                Kind::Exchange => {
                    let ranks = self.world.ranks;
                    self.library
                        .exchange(places, slice, ranks, self.comm, stream)
                }
            }
        }
    }

    fn begin_on(&mut self, collective: Collective, places: [u64; 2], stream: Handle) -> Result<()> {
        self.driver.record(self.ready, stream)?;
        self.driver.wait_for(self.ready, self.stream)?;
        if collective.slice > 0 {
            self.queue(collective, places)?;
        }
        let event = match self.spare.pop() {
            Some(event) => event,
            None => self.driver.event()?,
        };
        self.arrived.insert(self.begun, event);
        self.driver.record(event, self.stream)
    }

    fn finish_on(&mut self, number: u64, stream: Handle) -> Result<()> {
        let event = self
            .arrived
            .remove(&number)
            .expect("a ticket is finished once");
        self.spare.push(event);
        self.driver.wait_for(event, stream)?;
        self.library.check_later(self.comm)
    }

    /// Notes a failure, and says in which collective it came.
    fn noted<T>(&mut self, result: Result<T>, collective: &Collective, number: u64) -> Result<T> {
        result.map_err(|problem| {
            self.is_sound = false;
            Error::stopped(
                format!("collective {} ({collective})", number + 1),
                problem,
                "all ranks end",
            )
        })
    }
}

impl Engine for Nccl {
    fn world(&self) -> World {
        self.world
    }

    fn name(&self) -> &'static str {
        "NCCL"
    }

    fn is_for_devices(&self) -> bool {
        true
    }

    fn begin(&mut self, collective: Collective, sent: Sent<'_>) -> Result<Ticket> {
        let Sent::Device { from, to, stream } = sent else {
            panic!("NCCL moves device memory");
        };
        let number = self.begun;
        let begun = self.begin_on(collective, [from, to], stream as Handle);
        self.noted(begun, &collective, number)?;
        self.begun += 1;
        Ok(Ticket { number, collective })
    }

    fn finish(&mut self, ticket: Ticket, received: Received<'_>) -> Result<()> {
        let Received::Device { stream } = received else {
            panic!("NCCL moves device memory");
        };
        let finished = self.finish_on(ticket.number, stream as Handle);
        self.noted(finished, &ticket.collective, ticket.number)
    }
}

impl Drop for Nccl {
    /// Ends the communicator, where nothing went wrong and nothing is under way: otherwise ending it may never return, and
    /// the process is about to end anyway.
    fn drop(&mut self) {
        if !self.is_sound || !self.arrived.is_empty() {
            return;
        }
        let driver = &self.driver;
        let is_over = driver.bind(self.context).is_ok()
            && driver.synchronize(self.stream).is_ok()
            && self.library.leave(self.comm).is_ok();
        if is_over {
            for event in self.spare.drain(..).chain([self.ready]) {
                let _ = driver.end_event(event);
            }
            let _ = driver.end_stream(self.stream);
            let _ = driver.release(self.device);
        }
    }
}
