//! A recipe as one of several ranks computes it: its share of every step.
//!
//! A step's samples are numbered over the run, whatever the number of ranks. Its micro-batches are handed out in turn: of W
//! ranks, rank r computes micro-batches r, W + r, 2W + r, … Those that ranks compute at the same time are W neighbours, and
//! their pairs are compared together by a contrastive loss. Where the recipe leaves the micro-batch open, it is a W-th of the
//! batch, so that the losses of a step do not depend on W; where it is given, it is what a rank computes at once.

use super::{Recipe, Stage};
use keel_base::error::{Error, Result};
use keel_ranks::order::MOST_RANKS;

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
                *stage = stage_of_rank(stage, ranks)?;
            }
        }
        Ok(share)
    }
}

/// The divisors of `count`.
fn divisors(count: usize) -> String {
    let all = (1..=count).filter(|ranks| count.is_multiple_of(*ranks));
    let all: Vec<String> = all.map(|ranks| ranks.to_string()).collect();
    all.join(", ")
}

fn stage_of_rank(stage: &Stage, ranks: usize) -> Result<Stage> {
    let (what, of) = match stage.micro_batch_size {
        Some(_) => ("micro-batches", stage.micro_batches()),
        None => ("sequences", stage.batch_size / stage.samples_per_sequence),
    };
    if !of.is_multiple_of(ranks) {
        let mut want = format!(
            "a divisor of the {of} {what} of a step of stage {}: {}",
            stage.name,
            divisors(of)
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
    let batch_size = stage.batch_size / ranks;
    Ok(Stage {
        batch_size,
        micro_batch_size: Some(stage.micro_batch_size.unwrap_or(batch_size)),
        ..stage.clone()
    })
}
