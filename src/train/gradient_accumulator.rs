//! The loss and the gradients of one optimiser step, accumulated over its micro-batches.
//!
//! A step minimises Σₘ Wₘ Lₘ / Σₘ Wₘ over its micro-batches m, with Wₘ the sum of the token weights in m. The next-token
//! loss of a micro-batch is already a mean by those weights, so its part is that of the whole batch at once, however the
//! batch is divided. The contrastive loss sees the pairs of its micro-batch alone. Each run adds Wₘ ∇Lₘ to the gradient arena; the
//! division by Σ Wₘ is the gradient scale of the update.
//!
//! Over several ranks the sums are over the micro-batches of all of them. The contrastive loss is then over the pairs of all
//! micro-batches that ranks compute at the same time, of which each rank has a part, and these weigh as much as their next
//! tokens together.
//!
//! Where gradients are added in a tree (`reproducible_across_ranks`), the contrastive loss is over the pairs of one micro-batch on
//! any number of ranks, and weights and losses are added in the order of the micro-batches, so that they have the same bits too.

use super::recipe::{Dealing, Stage};
use super::run::StepNumbers;
use super::stage::MicroWeight;
use super::step_program::parts_of_distillation;
use keel_base::clock::Stopwatch;
use keel_base::error::Result;
use keel_data::batch::{Batch, SampleInfo};
use keel_engine::executor::Session;
use keel_ranks::Votes;

/// The weight Wₘ of a micro-batch; 1 where the batch is not divided, over time or `ranks`, or predicts no tokens.
pub(super) fn weight(stage: &Stage, batch: &Batch, ranks: usize) -> f32 {
    if stage.micro_batches() * ranks > 1 && stage.next_token_weight > 0.0 {
        batch.weights.iter().map(|w| f64::from(*w)).sum::<f64>() as f32
    } else {
        1.0
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct GradientAccumulator {
    /// Where gradients are added in a tree.
    parts: Option<Parts>,
    /// Σ Wₘ.
    weight: f64,
    /// Σ Wₘ Lₘ.
    loss: f64,
    /// The same of each term of the loss.
    terms: Vec<(&'static str, f64)>,
    /// Names of the samples.
    pub keys: Vec<String>,
}

/// What each micro-batch of a step adds.
#[derive(Debug)]
struct Parts {
    dealing: Dealing,
    /// Weights by this rank's run, of the micro-batches that all ranks compute in it.
    weights: Vec<Vec<f32>>,
    /// This rank's, by run: the loss and its terms.
    losses: Vec<Vec<f64>>,
}

impl Parts {
    /// Σ Wₘ so far.
    fn weight(&self) -> f64 {
        let ranks = self.weights.first().map_or(0, Vec::len);
        let order = self.dealing.order(ranks, self.weights.len());
        order
            .map(|(rank, run)| f64::from(self.weights[run][rank]))
            .sum()
    }

    /// Losses and terms, added over all micro-batches of all ranks.
    fn losses(&self, votes: &dyn Votes) -> Result<Vec<f64>> {
        let told = self.losses.concat();
        let width = self.losses.first().map_or(0, Vec::len);
        let of_ranks = gathered(votes, &told)?;
        let mut sums = vec![0.0; width];
        for (rank, run) in self.dealing.order(of_ranks.len(), self.losses.len()) {
            for (sum, part) in sums.iter_mut().zip(&of_ranks[rank][run * width..]) {
                *sum += part;
            }
        }
        Ok(sums)
    }
}

/// The numbers that each rank tells.
fn gathered(votes: &dyn Votes, own: &[f64]) -> Result<Vec<Vec<f64>>> {
    if votes.world().ranks == 1 {
        return Ok(vec![own.to_vec()]);
    }
    let told: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
    let heard = votes.gather("the losses of a step", &told)?;
    let numbers = |bytes: &Vec<u8>| {
        let numbers = bytes.as_chunks().0.iter();
        numbers.map(|bytes| f64::from_le_bytes(*bytes)).collect()
    };
    Ok(heard.iter().map(numbers).collect())
}

impl GradientAccumulator {
    /// Of a step whose micro-batches are handed out by `dealing` where `in_tree` their gradients are added in a tree.
    pub fn new(in_tree: bool, dealing: Dealing) -> GradientAccumulator {
        let parts = || Parts {
            dealing,
            weights: Vec::new(),
            losses: Vec::new(),
        };
        GradientAccumulator {
            parts: in_tree.then(parts),
            weight: 0.0,
            loss: 0.0,
            terms: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Takes in the weight and the samples of a micro-batch that is about to run.
    pub fn take(&mut self, weight: &MicroWeight, samples: Vec<SampleInfo>) {
        match &mut self.parts {
            Some(parts) => {
                parts.weights.push(weight.each.clone());
                self.weight = parts.weight();
            }
            None => self.weight += f64::from(weight.all),
        }
        self.keys
            .extend(samples.into_iter().map(|sample| sample.key));
    }

    /// 1 / Σ Wₘ; 1 where nothing has weight, and with it no gradient.
    pub fn gradient_scale(&self) -> f64 {
        if self.weight > 0.0 {
            1.0 / self.weight
        } else {
            1.0
        }
    }

    /// Reads what the run of a micro-batch of this weight left.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn read(
        &mut self,
        session: &dyn Session,
        stage: &Stage,
        weight: &MicroWeight,
    ) -> Result<()> {
        let scalar = |name: &str| -> Result<f64> { Ok(session.read_f64(name)?[0]) };
        let is_alone = session.program().world().ranks == 1 && self.parts.is_none();
        let mut part = vec![0.0];
        if is_alone {
            self.loss += f64::from(weight.own) * scalar("loss")?;
        }
        let parts = parts_of_distillation(session.program().world(), self.parts.is_some());
        let of_images = weight.contrastive / parts;
        for (name, factor, weight) in [
            ("next_token", stage.next_token_weight, weight.own),
            ("contrastive", stage.contrastive_weight, weight.contrastive),
            ("distillation", stage.distillation_weight, of_images),
        ] {
            if factor > 0.0 {
                let term = f64::from(weight) * scalar(&format!("loss.{name}"))?;
                if !is_alone {
                    self.loss += f64::from(factor) * term;
                }
                part[0] += f64::from(factor) * term;
                part.push(term);
                match self.terms.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += term,
                    None => self.terms.push((name, term)),
                }
            }
        }
        if let Some(parts) = &mut self.parts {
            parts.losses.push(part);
        }
        Ok(())
    }

    /// Adds up what all ranks have accumulated, in their order: losses and terms are those of the whole step then, the same
    /// bits on every rank.
    ///
    /// # Errors
    /// Whatever the votes report.
    pub fn add_ranks(&mut self, votes: &dyn Votes) -> Result<()> {
        let summed = match &self.parts {
            Some(parts) => parts.losses(votes)?,
            None if votes.world().ranks == 1 => return Ok(()),
            None => {
                let terms = self.terms.iter().map(|(_, sum)| *sum);
                let own: Vec<f64> = std::iter::once(self.loss).chain(terms).collect();
                let of_ranks = gathered(votes, &own)?;
                let sum = |index: usize| of_ranks.iter().map(|of_rank| of_rank[index]).sum();
                (0..own.len()).map(sum).collect()
            }
        };
        let terms = self.terms.iter_mut().map(|(_, sum)| sum);
        let sums = std::iter::once(&mut self.loss).chain(terms);
        for (sum, summed) in sums.zip(summed) {
            *sum = summed;
        }
        Ok(())
    }

    /// The numbers of the step that `under_way` has measured, after its last run.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn numbers(
        &self,
        session: &dyn Session,
        stage: &Stage,
        [step, steps]: [u64; 2],
        under_way: &Stopwatch,
    ) -> Result<StepNumbers> {
        let scale = self.gradient_scale();
        let terms = self.terms.iter();
        Ok(StepNumbers {
            loss: scale * self.loss,
            terms: terms.map(|(name, sum)| (*name, scale * sum)).collect(),
            gradient_norm: session.read_f64("gradient_norm")?[0],
            learning_rate: stage.learning_rate_at(step, steps),
            seconds: under_way.seconds(),
        })
    }
}
