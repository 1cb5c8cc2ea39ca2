//! What ranks do together, and who does it for them.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::World;
use crate::control::{Phase, named};
use keel_base::error::Result;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Each rank sends one slice to all; every rank receives the slices of all, in the order of the ranks.
    AllGather,
    /// Each rank has a slice for every rank, in their order, and receives the one for it from each, in their order
    /// (all-to-all).
    Exchange,
}

impl Kind {
    /// The kind's name in plans, errors and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::AllGather => "all_gather",
            Kind::Exchange => "exchange",
        }
    }
}

/// One collective as plain data. All ranks begin the same ones in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Collective {
    /// Which way bytes go.
    pub kind: Kind,
    /// Bytes of one slice.
    pub slice: usize,
}

impl Collective {
    /// Bytes that each rank hands over.
    pub fn sent(&self, ranks: usize) -> usize {
        match self.kind {
            Kind::AllGather => self.slice,
            Kind::Exchange => self.slice * ranks,
        }
    }

    /// Bytes that each rank gets, its own among them.
    pub fn received(&self, ranks: usize) -> usize {
        self.slice * ranks
    }

    /// Bytes that leave a rank at least, whatever the algorithm: what is for itself stays.
    pub fn on_the_wire(&self, ranks: usize) -> usize {
        self.slice * (ranks - 1)
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes a slice", self.kind.name(), self.slice)
    }
}

/// What a rank hands to its engine.
#[derive(Debug)]
pub enum Sent<'a> {
    /// Bytes in host memory, [`Collective::sent`] of them. The engine has read them when `begin` returns.
    Host(&'a [u8]),
    /// Addresses in the device's memory. Both ranges stay as they are until the ticket is finished on the device.
    Device {
        /// What is sent.
        from: u64,
        /// Where what is received goes. In an all-gather, `from` may be this rank's slice of it.
        to: u64,
        /// The stream (a `CUstream`) whose work so far makes what is sent.
        stream: usize,
    },
}

/// Where what a rank receives goes.
#[derive(Debug)]
pub enum Received<'a> {
    /// Host memory, [`Collective::received`] bytes; written when `finish` returns.
    Host(&'a mut [u8]),
    /// The stream whose further work waits for what `begin` was told to receive.
    Device {
        /// A `CUstream`.
        stream: usize,
    },
}

/// A collective under way. Each is finished once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The how-many-eth collective of its engine it is, from 0: the same number on all ranks.
    pub number: u64,
    /// What was begun.
    pub collective: Collective,
}

/// Moves the bytes of collectives between ranks. One thread a rank begins them, in the same order on all ranks.
pub trait Engine: Send {
    /// Where this rank stands.
    fn world(&self) -> World;

    /// A short name for logs and errors.
    fn name(&self) -> &'static str;

    /// Whether it takes addresses of device memory ([`Sent::Device`]); otherwise it takes host memory.
    fn is_for_devices(&self) -> bool {
        false
    }

    /// Begins a collective. It may go on while the caller computes.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Stopped`] when a rank is gone, or began another collective.
    fn begin(&mut self, collective: Collective, sent: Sent<'_>) -> Result<Ticket>;

    /// Waits for a collective, or has the device wait.
    ///
    /// # Errors
    /// As [`Engine::begin`].
    fn finish(&mut self, ticket: Ticket, received: Received<'_>) -> Result<()>;
}

/// An engine that an executor and its sessions share.
pub type SharedEngine = Arc<Mutex<Box<dyn Engine>>>;

/// What ranks tell one another on the host, beside the engine: counts, verdicts, what one of them read.
///
/// All ranks call it for the same things in the same order.
pub trait Votes: Send + Sync {
    /// Where this rank stands.
    fn world(&self) -> World;

    /// Hands in this rank's bytes for `what` and returns those of all ranks, in their order; they may differ in length.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Stopped`] when a rank is gone or asks for something else.
    fn gather(&self, what: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Tells all others that this rank ends with `problem`; they end with a sentence that names both. Nothing is awaited.
    fn give_up(&self, problem: &str);

    /// Notes which part of a run this rank is in, for the others to know when it does not go on; no step leaves it as it was.
    fn note(&self, _phase: Phase, _step: Option<u64>) {}

    /// These ranks in words, with their hosts where ranks have hosts of their own: `ranks 0, 1 (node-a)`.
    fn named(&self, ranks: &[usize]) -> String {
        named(ranks)
    }

    /// What is worth a warning of how the ranks go on, each once.
    fn take_warnings(&self) -> Vec<String> {
        Vec::new()
    }
}
