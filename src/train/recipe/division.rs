//! A recipe as one of several ranks computes it: its share of every step.
//!
//! A step's samples are numbered over the run, whatever the number of ranks. Its micro-batches are handed out in turn: of W
//! ranks, rank r computes micro-batches r, W + r, 2W + r, … Those that ranks compute at the same time are W neighbours, and
//! their pairs are compared together by a contrastive loss. Where the recipe leaves the micro-batch open, it is a W-th of the
//! batch, so that the losses of a step do not depend on W; where it is given, it is what a rank computes at once.

use super::{Recipe, Stage};
use keel_base::error::{Error, Result};
use keel_ranks::World;
use keel_ranks::order::{MOST_RANKS, blocks_are_subtrees};

impl Recipe {
    /// The recipe with every stage's batch and micro-batch as one of `ranks` ranks computes them; the recipe itself for one.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the stage that they do not divide, and the counts that do.
    pub fn of_rank(&self, ranks: usize) -> Result<Recipe> {
        let mut share = self.clone();
        if !(1..=MOST_RANKS).contains(&ranks) {
            return Err(Error::setting(
                "--ranks",
                format!("1 to {MOST_RANKS}"),
                ranks,
            ));
        }
        if ranks > 1 {
            for stage in &mut share.stages {
                *stage = stage_of_rank(stage, ranks, |ranks, of| self.keeps_bits(ranks, of))?;
            }
        }
        Ok(share)
    }

    /// How the micro-batches of a step are handed out to ranks.
    pub(crate) fn dealing(&self) -> Dealing {
        if self.reproducible_across_ranks && self.zero_stage == 1 {
            Dealing::Blocks
        } else {
            Dealing::Turns
        }
    }

    /// Whether `ranks` ranks add the gradients of `of` micro-batches to the bits of one rank, or need not.
    fn keeps_bits(&self, ranks: usize, of: usize) -> bool {
        let each = of / ranks;
        !self.reproducible_across_ranks
            || match self.dealing() {
                Dealing::Blocks => blocks_are_subtrees(ranks, each),
                Dealing::Turns => blocks_are_subtrees(each, ranks),
            }
    }
}

/// Which of a step's micro-batches a rank computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dealing {
    /// Ranks take turns: those that are computed at the same time are neighbours.
    Turns,
    /// Each rank has neighbours, one after the other: it adds their gradients itself, as a subtree of the step's.
    Blocks,
}

impl Dealing {
    /// The number among those of all ranks of micro-batch `own` of one of them, which has `count` in a step. Both are counted
    /// over the stage.
    pub fn number(self, world: World, count: u64, own: u64) -> u64 {
        let (rank, ranks) = (world.rank as u64, world.ranks as u64);
        match self {
            Dealing::Turns => own * ranks + rank,
            Dealing::Blocks => (own / count * ranks + rank) * count + own % count,
        }
    }

    /// Rank and place there of each micro-batch of a step of which each of `ranks` ranks has `count`, in the order of their
    /// numbers.
    pub fn order(self, ranks: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..ranks * count).map(move |index| match self {
            Dealing::Turns => (index % ranks, index / ranks),
            Dealing::Blocks => (index / count, index % count),
        })
    }

    /// Which of its rank's micro-batches of a step micro-batch `number` is, from 0.
    pub fn place(self, ranks: usize, count: u64, number: u64) -> u64 {
        match self {
            Dealing::Turns => number / ranks as u64 % count,
            Dealing::Blocks => number % count,
        }
    }
}

/// The divisors of `count` that `fit`.
fn divisors(count: usize, fit: impl Fn(usize) -> bool) -> String {
    let all = (1..=count).filter(|ranks| count.is_multiple_of(*ranks) && fit(*ranks));
    let all: Vec<String> = all.map(|ranks| ranks.to_string()).collect();
    all.join(", ")
}

/// `keeps_bits` says whether a number of ranks and a number of micro-batches go together where they divide.
fn stage_of_rank(
    stage: &Stage,
    ranks: usize,
    keeps_bits: impl Fn(usize, usize) -> bool,
) -> Result<Stage> {
    let (what, of) = match stage.micro_batch_size {
        Some(_) => ("micro-batches", stage.micro_batches()),
        None => ("sequences", stage.batch_size / stage.samples_per_sequence),
    };
    if !of.is_multiple_of(ranks) {
        let mut want = format!(
            "a divisor of the {of} {what} of a step of stage {}: {}",
            stage.name,
            divisors(of, |ranks| keeps_bits(ranks, of))
        );
        // With other micro-batches more ranks may do.
        let sequences = stage.batch_size / stage.samples_per_sequence;
        if stage.micro_batch_size.is_some() && sequences.is_multiple_of(ranks) {
            let each = stage.batch_size / ranks;
            let fits = |size: &usize| {
                each.is_multiple_of(*size) && size.is_multiple_of(stage.samples_per_sequence)
            };
            if let Some(size) = (1..=stage.micro_batch()).rev().find(fits) {
                want += &format!("; or --set stage.{}.micro_batch_size={size}", stage.name);
            }
        }
        return Err(Error::setting("--ranks", want, ranks));
    }
    if !keeps_bits(ranks, of) {
        let want = format!(
            "a number by which the tree over the {of} micro-batches of a step of stage {} is cut into subtrees, with \
             reproducible_across_ranks: {}",
            stage.name,
            divisors(of, |ranks| keeps_bits(ranks, of))
        );
        return Err(Error::setting("--ranks", want, ranks));
    }
    let batch_size = stage.batch_size / ranks;
    Ok(Stage {
        batch_size,
        micro_batch_size: Some(stage.micro_batch_size.unwrap_or(batch_size)),
        ..stage.clone()
    })
}
