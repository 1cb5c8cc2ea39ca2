//! Where the threads of one process leave what others of them wait for.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use keel_base::error::{Error, Result};

/// Parts of rounds, one from each rank. Handing in never waits; taking waits for all.
#[derive(Debug)]
pub(crate) struct Board<K> {
    ranks: usize,
    state: Mutex<State<K>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<K> {
    rounds: HashMap<u64, Round<K>>,
    /// The first rank that left, and why.
    gone: Option<(usize, String)>,
}

#[derive(Debug)]
struct Round<K> {
    /// What the round is about, by the first rank that came.
    about: (usize, K),
    parts: Vec<Option<Arc<[u8]>>>,
    taken: usize,
}

impl<K: Debug + Clone + PartialEq> Board<K> {
    pub fn new(ranks: usize) -> Board<K> {
        Board {
            ranks,
            state: Mutex::new(State {
                rounds: HashMap::new(),
                gone: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in the part of `rank` in round `number`.
    pub fn hand_in(&self, rank: usize, number: u64, about: K, part: Arc<[u8]>) -> Result<()> {
        let mut state = self.lock();
        let round = state.rounds.entry(number).or_insert_with(|| Round {
            about: (rank, about.clone()),
            parts: vec![None; self.ranks],
            taken: 0,
        });
        if round.about.1 != about {
            let (other, known) = (round.about.0, &round.about.1);
            let problem = format!("it came to {about:?} where rank {other} came to {known:?}");
            let error = apart(rank, &problem);
            state.gone.get_or_insert((rank, problem));
            self.changed.notify_all();
            return Err(error);
        }
        assert!(round.parts[rank].is_none(), "a rank hands in once a round");
        round.parts[rank] = Some(part);
        self.changed.notify_all();
        Ok(())
    }

    /// All parts of round `number`, in the order of the ranks. Each rank takes them once.
    pub fn take(&self, number: u64) -> Result<Vec<Arc<[u8]>>> {
        let mut state = self.lock();
        loop {
            let round = state.rounds.get(&number);
            let round = round.expect("a rank takes what it handed in to");
            if round.parts.iter().all(Option::is_some) {
                break;
            }
            if let Some((rank, why)) = &state.gone {
                return Err(apart(*rank, why));
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let round = state.rounds.get_mut(&number).expect("seen above");
        let parts = round.parts.iter().flatten().cloned().collect();
        round.taken += 1;
        if round.taken == self.ranks {
            state.rounds.remove(&number);
        }
        Ok(parts)
    }

    /// Marks that `rank` hands in nothing any more. The first reason stays.
    pub fn leave(&self, rank: usize, why: &str) {
        let mut state = self.lock();
        state.gone.get_or_insert((rank, why.to_owned()));
        self.changed.notify_all();
    }
}

/// What ranks end with that wait for one that is gone.
fn apart(rank: usize, why: &str) -> Error {
    Error::stopped(
        format!("rank {rank}"),
        format!("it is gone: {why}"),
        "mend its cause and go on from the newest checkpoint with --resume",
    )
}
