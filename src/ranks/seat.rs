//! What one rank of a run works with.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::{Engine, SharedEngine, Votes, World};
use keel_base::error::Result;

/// One rank's place in a run: where it stands, and what reaches the others. The default is the one rank of a run that has no
/// others.
#[derive(Clone)]
pub struct Seat {
    engine: Option<SharedEngine>,
    votes: Arc<dyn Votes>,
}

impl Seat {
    /// A seat among several.
    ///
    /// # Panics
    /// When engine and votes stand at different places.
    pub fn new(engine: Box<dyn Engine>, votes: Arc<dyn Votes>) -> Seat {
        let (moves, tells) = (engine.world(), votes.world());
        assert_eq!(moves, tells, "engine and votes are of one rank");
        Seat {
            engine: Some(Arc::new(Mutex::new(engine))),
            votes,
        }
    }

    /// Where it stands.
    pub fn world(&self) -> World {
        self.votes.world()
    }

    /// What moves the bytes of programs; nothing where there is one rank.
    pub fn engine(&self) -> Option<&SharedEngine> {
        self.engine.as_ref()
    }

    /// What ranks tell one another on the host.
    pub fn votes(&self) -> &dyn Votes {
        self.votes.as_ref()
    }
}

impl Default for Seat {
    fn default() -> Seat {
        Seat {
            engine: None,
            votes: Arc::new(Alone),
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("world", &self.world())
            .finish()
    }
}

/// The votes of one rank without others.
struct Alone;

impl Votes for Alone {
    fn world(&self) -> World {
        World::ALONE
    }

    fn gather(&self, _: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn give_up(&self, _: &str) {}
}
