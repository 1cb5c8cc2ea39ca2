//! How long a step takes over many ranks, on paper: two streams and an α–β model of links.
//!
//! A rank computes on one stream and sends on another. What is sent waits for the computing that makes it and for what was
//! sent before; the computing waits where it needs what arrives. A message takes a latency α and its bytes over a bandwidth β.
//! Ranks are equal, so one stands for all: what the model leaves out is that some are slower than others.

use std::ops::Add;

use crate::{Collective, Kind};

/// The links of a cluster whose nodes are alike and equally filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// Ranks of a node.
    pub node: usize,
    /// Bytes per second that a rank sends to the others of its node.
    pub node_bandwidth: f64,
    /// Seconds that a message within a node takes besides.
    pub node_latency: f64,
    /// Bytes per second that a rank sends to other nodes.
    pub network_bandwidth: f64,
    /// Seconds that a message between nodes takes besides.
    pub network_latency: f64,
}

/// Something that a collective needs of both kinds of links.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Both {
    /// Within a node.
    pub node: f64,
    /// Between nodes.
    pub network: f64,
}

impl Add for Both {
    type Output = Both;

    fn add(self, other: Both) -> Both {
        Both {
            node: self.node + other.node,
            network: self.network + other.network,
        }
    }
}

impl Links {
    /// Bytes that a rank sends in a collective of `ranks` ranks, by the best algorithm for its kind.
    ///
    /// An exchange sends each slice to its rank: nothing can be shared on the way. What is gathered enters a node once, by
    /// the links of all its ranks, and goes on within it.
    pub fn bytes(&self, collective: &Collective, ranks: usize) -> Both {
        let slice = collective.slice as f64;
        let node = self.node.min(ranks) as f64;
        let others = ranks as f64 - node;
        match collective.kind {
            Kind::Exchange => Both {
                node: slice * (node - 1.0),
                network: slice * others,
            },
            Kind::AllGather => Both {
                // Of the ranks of a node, each brings its share of what comes from outside and hands it to the others.
                node: slice * (node - 1.0) * (1.0 + others / node),
                network: slice * others / node,
            },
        }
    }

    /// Messages that a rank sends one after the other.
    fn messages(&self, kind: Kind, ranks: usize) -> Both {
        let node = self.node.min(ranks) as f64;
        let others = ranks as f64 - node;
        Both {
            node: node - 1.0,
            network: match kind {
                Kind::Exchange => others,
                Kind::AllGather => others / node,
            },
        }
    }

    /// Seconds that each kind of links is busy with a collective. Both work at once.
    pub fn seconds(&self, collective: &Collective, ranks: usize) -> Both {
        let (bytes, messages) = (
            self.bytes(collective, ranks),
            self.messages(collective.kind, ranks),
        );
        Both {
            node: bytes.node / self.node_bandwidth + messages.node * self.node_latency,
            network: bytes.network / self.network_bandwidth
                + messages.network * self.network_latency,
        }
    }
}

/// What a rank does in a step, in its order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// Computes for so many seconds.
    Compute(f64),
    /// Begins a collective, whose parts are computed.
    Begin(Collective),
    /// Waits for the how-many-eth collective that was begun, from 0.
    Finish(usize),
}

/// A simulated step of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Simulated {
    /// The whole step.
    pub seconds: f64,
    /// Of these, computing.
    pub computing: f64,
    /// Of these, waiting: what is sent and not hidden behind computing.
    pub waiting: f64,
    /// Seconds in which something was under way, hidden or not.
    pub sending: f64,
    /// Bytes sent.
    pub bytes: Both,
}

impl Simulated {
    /// Seconds of sending that computing hides.
    pub fn hidden(&self) -> f64 {
        (self.sending - self.waiting).max(0.0)
    }

    /// The share of the step that computes: 1 where all sending is hidden.
    pub fn efficiency(&self) -> f64 {
        if self.seconds > 0.0 {
            self.computing / self.seconds
        } else {
            1.0
        }
    }
}

/// Runs the events of one of `ranks` equal ranks.
///
/// # Panics
/// When an event waits for a collective that was not begun before.
pub fn simulate(events: &[Event], links: &Links, ranks: usize) -> Simulated {
    let mut step = Simulated::default();
    // When each collective that was begun has arrived.
    let mut arrived: Vec<f64> = Vec::new();
    for event in events {
        match event {
            Event::Compute(seconds) => {
                step.computing += seconds;
                step.seconds += seconds;
            }
            Event::Begin(collective) => {
                let both = links.seconds(collective, ranks);
                let seconds = both.node.max(both.network);
                let free = arrived.last().copied().unwrap_or(0.0);
                arrived.push(free.max(step.seconds) + seconds);
                step.sending += seconds;
                step.bytes = step.bytes + links.bytes(collective, ranks);
            }
            Event::Finish(collective) => {
                let wait = (arrived[*collective] - step.seconds).max(0.0);
                step.waiting += wait;
                step.seconds += wait;
            }
        }
    }
    step
}
