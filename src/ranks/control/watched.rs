//! An engine whose waits the control channel sees.

use std::sync::Arc;

use super::{Control, Wait};
use crate::{Collective, Engine, Received, Sent, Ticket, World};
use keel_base::error::Result;

/// See the module's documentation.
struct Watched {
    engine: Box<dyn Engine>,
    control: Arc<Control>,
}

impl Control {
    /// `engine`, with what it waits in written where the others see it, and its errors told by this channel where another rank
    /// is their cause.
    pub fn watch(self: &Arc<Control>, engine: Box<dyn Engine>) -> Box<dyn Engine> {
        Box::new(Watched {
            engine,
            control: self.clone(),
        })
    }

    fn or_first_cause<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.hear_first();
            if let Some(cause) = self.cause() {
                return Err(cause.error());
            }
        }
        result
    }
}

impl Engine for Watched {
    fn world(&self) -> World {
        self.engine.world()
    }

    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn is_for_devices(&self) -> bool {
        self.engine.is_for_devices()
    }

    fn begin(&mut self, collective: Collective, sent: Sent<'_>) -> Result<Ticket> {
        let begun = self.engine.begin(collective, sent);
        self.control.progress().moved();
        self.control.or_first_cause(begun)
    }

    fn finish(&mut self, ticket: Ticket, received: Received<'_>) -> Result<()> {
        let progress = self.control.progress().clone();
        let place = Wait::Collective(ticket.number + 1);
        let finished = progress.waiting(place, || self.engine.finish(ticket, received));
        self.control.or_first_cause(finished)
    }
}
