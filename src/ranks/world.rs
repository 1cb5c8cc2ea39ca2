//! Where a rank stands among all.

/// One rank among all that train a run. Ranks are numbered host by host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// This rank, from 0.
    pub rank: usize,
    /// All ranks; at least 1.
    pub ranks: usize,
    /// This rank among those of its host, from 0.
    pub local_rank: usize,
    /// Ranks of its host.
    pub local_ranks: usize,
}

impl World {
    /// The one rank of a run that has no others.
    pub const ALONE: World = World {
        rank: 0,
        ranks: 1,
        local_rank: 0,
        local_ranks: 1,
    };

    /// Rank `rank` of `ranks`, all of one host.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn of_one_host(rank: usize, ranks: usize) -> World {
        assert!(rank < ranks, "rank {rank} of {ranks}");
        World {
            rank,
            ranks,
            local_rank: rank,
            local_ranks: ranks,
        }
    }

    /// Whether it speaks for all: it prints, writes and evaluates.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }
}
