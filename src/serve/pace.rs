//! How long a connection may take over each part of a request: whoever sends or reads a byte a second must not hold its place
//! for ever.

use std::time::Duration;

use tokio::sync::watch;

/// Patience with the body of a request, and with its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(pub Duration);

impl Patience {
    /// Time to read what is left of a reply once it is whole, and to send the next request.
    fn with_readers(self) -> Duration {
        2 * self.0
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting for a request.
    Waiting,
    /// Taking in a body.
    Receiving,
    /// Making an answer, which takes what it takes.
    Working,
    /// Sending what is whole.
    Sending,
}

impl Phase {
    /// How long it may last.
    pub fn limit(self, patience: Patience) -> Option<Duration> {
        match self {
            // The head has its own limit in the HTTP library, which knows when it begins.
            Phase::Waiting => Some(patience.with_readers()),
            // The reading of the body has its own, and is answered by a status.
            Phase::Receiving | Phase::Working => None,
            Phase::Sending => Some(patience.with_readers()),
        }
    }
}

/// Tells a connection's watch what it is doing.
#[derive(Clone, Debug)]
pub(crate) struct Pace(watch::Sender<Phase>);

impl Pace {
    /// Of a connection that waits for its first request, and its watch.
    pub fn new() -> (Pace, watch::Receiver<Phase>) {
        let (sender, receiver) = watch::channel(Phase::Waiting);
        (Pace(sender), receiver)
    }

    pub fn set(&self, phase: Phase) {
        self.0.send_replace(phase);
    }
}
