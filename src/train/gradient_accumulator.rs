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

use super::recipe::Stage;
use super::run::StepNumbers;
use super::stage::MicroWeight;
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
#[derive(Debug, Default)]
pub(super) struct GradientAccumulator {
    /// Σ Wₘ.
    weight: f64,
    /// Σ Wₘ Lₘ.
    loss: f64,
    /// The same of each term of the loss.
    terms: Vec<(&'static str, f64)>,
    /// Names of the samples.
    pub keys: Vec<String>,
}

impl GradientAccumulator {
    /// Takes in the weight and the samples of a micro-batch that is about to run.
    pub fn take(&mut self, weight: MicroWeight, samples: Vec<SampleInfo>) {
        self.weight += f64::from(weight.all);
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
        weight: MicroWeight,
    ) -> Result<()> {
        let scalar = |name: &str| -> Result<f64> { Ok(session.read_f64(name)?[0]) };
        let is_alone = session.program().world().ranks == 1;
        if is_alone {
            self.loss += f64::from(weight.own) * scalar("loss")?;
        }
        for (name, factor, weight) in [
            ("next_token", stage.next_token_weight, weight.own),
            ("contrastive", stage.contrastive_weight, weight.all),
        ] {
            if factor > 0.0 {
                let term = f64::from(weight) * scalar(&format!("loss.{name}"))?;
                if !is_alone {
                    self.loss += f64::from(factor) * term;
                }
                match self.terms.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += term,
                    None => self.terms.push((name, term)),
                }
            }
        }
        Ok(())
    }

    /// Adds up what all ranks have accumulated, in their order: losses and terms are those of the whole step then, the same
    /// bits on every rank.
    ///
    /// # Errors
    /// Whatever the votes report.
    pub fn add_ranks(&mut self, votes: &dyn Votes) -> Result<()> {
        if votes.world().ranks == 1 {
            return Ok(());
        }
        let terms = self.terms.iter_mut().map(|(_, sum)| sum);
        let mut sums: Vec<&mut f64> = std::iter::once(&mut self.loss).chain(terms).collect();
        let told: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let heard = votes.gather("the losses of a step", &told)?;
        for (index, sum) in sums.iter_mut().enumerate() {
            let of_rank = heard.iter().map(|bytes| bytes.as_chunks().0[index]);
            **sum = of_rank.map(f64::from_le_bytes).sum();
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
