//! Ranks that are threads of one process: for tests, for trying things out, and for the f64 reference.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::board::Board;
use crate::{Collective, Engine, Kind, Received, Seat, Sent, Ticket, Votes, World};
use keel_base::error::Result;

/// The seats of `ranks` threads of one process, in their order, each for a thread of its own.
///
/// A rank that drops its engine while others still wait for it ends them with an error: nothing hangs.
///
/// # Panics
/// When there are none.
pub fn seats(ranks: usize) -> Vec<Seat> {
    assert!(ranks > 0, "a run has at least one rank");
    let (collectives, votes) = (Arc::new(Board::new(ranks)), Arc::new(Board::new(ranks)));
    let seat = |rank| {
        let world = World::of_one_host(rank, ranks);
        let engine = Local {
            world,
            board: collectives.clone(),
            begun: 0,
        };
        let votes = LocalVotes {
            world,
            votes: votes.clone(),
            collectives: collectives.clone(),
            asked: AtomicU64::new(0),
        };
        Seat::new(Box::new(engine), Arc::new(votes))
    };
    (0..ranks).map(seat).collect()
}

/// The engine of one thread among several.
struct Local {
    world: World,
    board: Arc<Board<Collective>>,
    begun: u64,
}

/// What a rank that ends without a reason of its own is said to have done.
const ENDED: &str = "it has ended";

impl Engine for Local {
    fn world(&self) -> World {
        self.world
    }

    fn name(&self) -> &'static str {
        "threads of one process"
    }

    fn begin(&mut self, collective: Collective, sent: Sent<'_>) -> Result<Ticket> {
        let Sent::Host(sent) = sent else {
            panic!("threads of one process exchange host memory");
        };
        let want = collective.sent(self.world.ranks);
        assert_eq!(sent.len(), want, "{collective} sends so many bytes");
        let number = self.begun;
        self.begun += 1;
        self.board
            .hand_in(self.world.rank, number, collective, sent.into())?;
        Ok(Ticket { number, collective })
    }

    fn finish(&mut self, ticket: Ticket, received: Received<'_>) -> Result<()> {
        let Received::Host(received) = received else {
            panic!("threads of one process exchange host memory");
        };
        let Collective { kind, slice } = ticket.collective;
        let want = slice * self.world.ranks;
        assert_eq!(received.len(), want, "a collective receives so many bytes");
        let parts = self.board.take(ticket.number)?;
        for (place, part) in received.chunks_mut(slice.max(1)).zip(&parts) {
            place.copy_from_slice(match kind {
                Kind::AllGather => part,
                Kind::Exchange => &part[slice * self.world.rank..][..slice],
            });
        }
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.board.leave(self.world.rank, ENDED);
    }
}

/// The votes of one thread among several.
struct LocalVotes {
    world: World,
    votes: Arc<Board<&'static str>>,
    /// Told too when the rank gives up: others may wait for it there.
    collectives: Arc<Board<Collective>>,
    asked: AtomicU64,
}

impl Votes for LocalVotes {
    fn world(&self) -> World {
        self.world
    }

    fn gather(&self, what: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.votes
            .hand_in(self.world.rank, number, what, own.into())?;
        let parts = self.votes.take(number)?;
        Ok(parts.iter().map(|part| part.to_vec()).collect())
    }

    fn give_up(&self, problem: &str) {
        self.votes.leave(self.world.rank, problem);
        self.collectives.leave(self.world.rank, problem);
    }
}

impl Drop for LocalVotes {
    fn drop(&mut self) {
        self.votes.leave(self.world.rank, ENDED);
    }
}
