//! The engine of ranks on processors: MPI, whichever library this program was built against.
//!
//! One thread a rank speaks MPI, so that no library has to be safe for several, and moves one collective after the other in the
//! order in which they were begun. What is sent is copied when a collective begins and what is received when it is finished:
//! computing goes on meanwhile. An error of MPI's own ends the job in MPI's words.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::environment::Universe;
use ::mpi::request::{self, Request};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives};

use crate::control::Door;
use crate::launch::Place;
use crate::{Collective, Engine, Kind, Received, Sent, Ticket, World};
use keel_base::error::{Error, Result};

/// Looks at a collective under way before its thread sleeps between two.
const LOOKS: u32 = 1000;

/// Between two looks, once there were that many: libraries that wait by looking alone take a core from what computes.
const NAP: Duration = Duration::from_micros(50);

/// Bytes in which ranks tell each other where they are.
const CARD: usize = 512;

/// What the thread is asked for.
struct Job {
    collective: Collective,
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// One rank's MPI.
pub struct Mpi {
    world: World,
    jobs: Option<Sender<Job>>,
    done: Receiver<Job>,
    thread: Option<JoinHandle<()>>,
    begun: u64,
    /// What is under way, in order, and what has come before it was asked for.
    waiting: VecDeque<u64>,
    arrived: Vec<(u64, Job)>,
    /// Memory of collectives that are over.
    spare: Vec<Vec<u8>>,
}

impl Mpi {
    /// Starts MPI for the rank that `place` says this is.
    ///
    /// # Errors
    /// [`Error::Device`] when MPI knows other ranks than the launcher: then it is another library's.
    pub fn start(place: &Place) -> Result<Mpi> {
        let (jobs, asked) = mpsc::channel::<Job>();
        let (finished, done) = mpsc::channel();
        let (told, ready) = mpsc::channel();
        let speak = move || {
            let Some(universe) = universe() else {
                return;
            };
            let world = universe.world();
            let _ = told.send((world.rank() as usize, world.size() as usize));
            for job in asked {
                if finished.send(run(&world, job)).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("keel-mpi".to_owned())
            .spawn(speak);
        let thread = thread.map_err(|problem| failed(&problem.to_string()))?;
        let found = ready.recv().map_err(|_| failed("it does not start"))?;
        if found != (place.rank, place.ranks) {
            let (rank, ranks) = found;
            return Err(failed(&format!(
                "this is rank {} of {} by its launcher and rank {rank} of {ranks} by MPI",
                place.rank, place.ranks
            )));
        }
        Ok(Mpi {
            world: place.world(1),
            jobs: Some(jobs),
            done,
            thread: Some(thread),
            begun: 0,
            waiting: VecDeque::new(),
            arrived: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// The door at which the ranks meet for what is not the engine's, told over MPI. `host` is this rank's, and `address` what
    /// replaces rank 0's own idea of where it can be reached.
    ///
    /// # Errors
    /// Whatever opening the door or moving the address reports.
    pub fn door(&mut self, host: &str, address: Option<&str>) -> Result<Door> {
        let (door, port) = if self.world.is_first() {
            let (door, port) = Door::anywhere()?;
            (Some(door), port)
        } else {
            (None, 0)
        };
        let address = address
            .map(str::to_owned)
            .or_else(outside)
            .unwrap_or_else(|| host.to_owned());
        let mut card = format!("{host}\n{address}\n{port}").into_bytes();
        if card.len() > CARD {
            return Err(failed(&format!("the name of the host {host} is too long")));
        }
        card.resize(CARD, b'\n');
        let gather = Collective {
            kind: Kind::AllGather,
            slice: CARD,
        };
        let mut cards = vec![0; CARD * self.world.ranks];
        let ticket = self.begin(gather, Sent::Host(&card))?;
        self.finish(ticket, Received::Host(&mut cards))?;
        if let Some(door) = door {
            return Ok(door);
        }
        let read = |card: &[u8]| {
            let text = String::from_utf8_lossy(card).into_owned();
            let mut lines = text.lines().map(str::to_owned);
            [lines.next(), lines.next(), lines.next()].map(Option::unwrap_or_default)
        };
        let [first, address, port] = read(&cards[..CARD]);
        let port = port.parse().map_err(|_| failed("rank 0 named no port"))?;
        let is_one_host = cards.chunks(CARD).all(|card| read(card)[0] == first);
        let address = if is_one_host {
            "127.0.0.1".to_owned()
        } else {
            address
        };
        Ok(Door::At(address, port))
    }

    /// The engine of a rank that stands at `world`.
    pub fn engine(mut self, world: World) -> Box<dyn Engine> {
        self.world = world;
        Box::new(self)
    }
}

/// This host's address towards others, as its routes say; nothing is sent.
fn outside() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address for documentation (RFC 5737), which nobody has.
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

fn failed(problem: &str) -> Error {
    Error::Device {
        device: "MPI".to_owned(),
        problem: problem.to_owned(),
        remedy: "start with the mpirun of the library that this program was built against"
            .to_owned(),
    }
}

fn universe() -> Option<Universe> {
    ::mpi::initialize_with_threading(Threading::Funneled).map(|(universe, _)| universe)
}

/// Moves the bytes of one collective.
fn run(world: &SimpleCommunicator, mut job: Job) -> Job {
    let ranks = world.size() as usize;
    job.received.resize(job.collective.received(ranks), 0);
    if job.collective.slice == 0 {
        return job;
    }
    let (sent, received) = (&job.sent[..], &mut job.received[..]);
    request::scope(|scope| match job.collective.kind {
        Kind::AllGather => wait(world.immediate_all_gather_into(scope, sent, received)),
        Kind::Exchange => wait(world.immediate_all_to_all_into(scope, sent, received)),
    });
    job
}

/// Waits without taking a core from what computes.
fn wait<'a, D: ?Sized, S: request::Scope<'a>>(mut request: Request<'a, D, S>) {
    let mut looks = 0;
    loop {
        match request.test() {
            Ok(_) => return,
            Err(unfinished) => request = unfinished,
        }
        looks += 1;
        if looks < LOOKS {
            thread::yield_now();
        } else {
            thread::sleep(NAP);
        }
    }
}

impl Engine for Mpi {
    fn world(&self) -> World {
        self.world
    }

    fn name(&self) -> &'static str {
        "MPI"
    }

    fn begin(&mut self, collective: Collective, sent: Sent<'_>) -> Result<Ticket> {
        let Sent::Host(sent) = sent else {
            panic!("MPI moves host memory");
        };
        let want = collective.sent(self.world.ranks);
        assert_eq!(sent.len(), want, "{collective} sends so many bytes");
        if i32::try_from(want).is_err()
            || i32::try_from(collective.received(self.world.ranks)).is_err()
        {
            return Err(failed(&format!(
                "{collective} is more than its counts hold, 2 GiB in all"
            )));
        }
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(sent);
        let job = Job {
            collective,
            sent: copy,
            received: self.spare.pop().unwrap_or_default(),
        };
        let jobs = self.jobs.as_ref().expect("dropped with the engine alone");
        jobs.send(job).map_err(|_| failed("its thread has ended"))?;
        let number = self.begun;
        self.begun += 1;
        self.waiting.push_back(number);
        Ok(Ticket { number, collective })
    }

    fn finish(&mut self, ticket: Ticket, received: Received<'_>) -> Result<()> {
        let Received::Host(received) = received else {
            panic!("MPI moves host memory");
        };
        let job = loop {
            let found = self
                .arrived
                .iter()
                .position(|(number, _)| *number == ticket.number);
            if let Some(found) = found {
                break self.arrived.swap_remove(found).1;
            }
            let job = self
                .done
                .recv()
                .map_err(|_| failed("its thread has ended"))?;
            let number = self.waiting.pop_front().expect("what is done was begun");
            self.arrived.push((number, job));
        };
        received.copy_from_slice(&job.received);
        self.spare.extend([job.received, job.sent]);
        Ok(())
    }
}

impl Drop for Mpi {
    /// Ends MPI where nothing is under way. A collective that others may never come to is not awaited.
    fn drop(&mut self) {
        self.jobs = None;
        if self.waiting.is_empty()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
