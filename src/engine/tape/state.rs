//! Optimiser state: arenas of one number for each trained one, or for some of them, and where each lies on a rank.

use std::ops::Range;
use std::sync::Arc;

use super::{Arena, StateSlot, Tape};
use crate::tape::Value;
use crate::tensor::DType;
use keel_ranks::order::Cut;

/// An arena of optimiser state, as the op list that updates it declared it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizerState {
    /// What it holds, such as `first_moment`: also the first part of its tensors' names in a checkpoint.
    pub name: &'static str,
    /// Where it lies.
    pub arena: Arena,
    /// The elements of the gradient arena of which it keeps a number each, rising; all of them where it does not say.
    pub(crate) kept: Option<Arc<[Range<usize>]>>,
}

impl OptimizerState {
    /// Whether it keeps a number for each of these elements of the gradient arena.
    pub fn keeps(&self, gradients: &Range<usize>) -> bool {
        let inside =
            |kept: &Range<usize>| kept.start <= gradients.start && gradients.end <= kept.end;
        self.kept
            .as_ref()
            .is_none_or(|kept| kept.iter().any(inside))
    }

    /// What of it lies where, of `elements` elements of gradients; of a rank among several, of its own slices alone.
    pub(crate) fn pieces(&self, elements: usize, own: Option<(&Cut, usize)>) -> Vec<StatePiece> {
        let slices: Vec<Range<usize>> = match own {
            None => std::iter::once(0..elements).collect(),
            Some((cut, rank)) => (0..cut.buckets())
                .map(|bucket| cut.slice_of(bucket, rank))
                .collect(),
        };
        let everything: Arc<[Range<usize>]> = std::iter::once(0..usize::MAX).collect();
        let kept = self.kept.as_ref().unwrap_or(&everything);
        let mut pieces: Vec<StatePiece> = Vec::new();
        for slice in slices {
            for kept in kept.iter() {
                let (first, end) = (slice.start.max(kept.start), slice.end.min(kept.end));
                if first < end {
                    let at = pieces.last().map_or(0, StatePiece::end);
                    let gradients = first..end;
                    pieces.push(StatePiece { gradients, at });
                }
            }
        }
        pieces
    }
}

/// Neighbours in the gradient arena whose state lies side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePiece {
    /// The elements of the gradient arena.
    pub gradients: Range<usize>,
    /// Where that of the first one lies in the arena of state.
    pub at: usize,
}

impl StatePiece {
    /// The place behind the last of it.
    pub fn end(&self) -> usize {
        self.at + self.gradients.len()
    }
}

impl Tape {
    /// Declares an arena of the optimiser: zero when the program is loaded, laid out like the gradients, changed by the
    /// update alone. `name` says what it holds; executors and checkpoints know nothing else of it.
    ///
    /// # Panics
    /// When the tape has state of that name.
    pub fn optimizer_state(&mut self, name: &'static str, element: DType) -> Arena {
        self.declare_state(name, element, None)
    }

    /// As [`Tape::optimizer_state`], of the elements `kept` of the gradient arena alone, which lie side by side.
    ///
    /// # Panics
    /// When the tape has state of that name, or `kept` does not rise.
    pub fn partial_optimizer_state(
        &mut self,
        name: &'static str,
        element: DType,
        kept: Vec<Range<usize>>,
    ) -> Arena {
        let rises = kept.windows(2).all(|pair| pair[0].end <= pair[1].start);
        assert!(rises, "what {name} is kept of is told in order");
        let is_all = kept.len() == 1 && kept[0] == (0..self.gradient_elements);
        self.declare_state(name, element, (!is_all).then(|| kept.into()))
    }

    fn declare_state(
        &mut self,
        name: &'static str,
        element: DType,
        kept: Option<Arc<[Range<usize>]>>,
    ) -> Arena {
        let is_new = self.optimizer_state.iter().all(|known| known.name != name);
        assert!(is_new, "optimiser state {name} is declared once");
        let index = self.optimizer_state.len();
        let arena = Arena::OptimizerState(StateSlot { index, element });
        self.optimizer_state
            .push(OptimizerState { name, arena, kept });
        arena
    }

    /// What the optimiser keeps in `arena` of `elements` neighbours of the gradient arena from `first` on.
    ///
    /// # Panics
    /// When it does not keep all of them side by side on this rank.
    pub fn state_range(&mut self, arena: Arena, first: usize, elements: usize) -> Value {
        let declared = self.optimizer_state.iter();
        let mut declared = declared.filter(|state| state.arena == arena);
        let state = declared.next().expect("the tape declares its state");
        let own = self.shards.as_ref().map(|cut| (cut, self.world.rank));
        let pieces = state.pieces(self.gradient_elements, own);
        let holds = |piece: &&StatePiece| {
            piece.gradients.start <= first && first + elements <= piece.gradients.end
        };
        let piece = pieces.iter().find(holds);
        let piece = piece.expect("what is updated together is kept side by side");
        let at = piece.at + first - piece.gradients.start;
        self.arena_range(arena, at, elements)
    }
}
