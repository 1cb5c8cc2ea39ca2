//! One pass over the held-out samples of a stage.

use std::sync::Arc;

use super::measures::{GeneratedAnswer, ValidationMeasures};
use super::plan::ValidationPlan;
use crate::recipe::{Recipe, Stage, ValidationMetric};
use keel_base::error::Result;
use keel_data::batch::Batch;
use keel_data::chat::ChatTokenizer;
use keel_data::held_out::{HeldOut, HeldOutBatch, HeldOutKind, HeldOutSettings, HeldOutSkips};
use keel_data::image_view::ImageCache;
use keel_data::pairs::PairSource;
use keel_data::sample::Sample;
use keel_engine::executor::Session;
use keel_eval::{
    EvalContext, GenerationPrograms, Generator, PromptImage, normalise_rows, rank_positives,
};
use keel_model::{BatchInputs, contrasted_features};

/// Validates one stage.
pub(crate) struct Validator {
    plan: ValidationPlan,
    samples: HeldOut,
    /// Weights of the two losses.
    weights: [f64; 2],
}

impl Validator {
    /// A validator of `stage` on `pairs`.
    ///
    /// # Errors
    /// What is wrong with a pair whose key has to be read.
    pub fn new(
        plan: ValidationPlan,
        (recipe, stage): (&Recipe, &Stage),
        pairs: &Arc<dyn PairSource>,
        tokenizer: Arc<ChatTokenizer>,
        kept: Arc<ImageCache>,
    ) -> Result<Validator> {
        let settings = HeldOutSettings {
            shape: plan.shape,
            weighting: stage.token_weighting,
            images: stage.max_images,
            most: stage.validated().unwrap_or_default().samples,
        };
        assert_eq!(plan.shape.pixels, recipe.pixels(), "planned for this model");
        Ok(Validator {
            samples: HeldOut::new(pairs, settings, tokenizer, kept)?,
            plan,
            weights: [stage.next_token_weight, stage.contrastive_weight].map(f64::from),
        })
    }

    /// Measures the model as it stands. Nothing of it is changed.
    ///
    /// # Errors
    /// Whatever the data, loading or the device report.
    pub fn measure(&self, model: EvalContext<'_>) -> Result<(ValidationMeasures, HeldOutSkips)> {
        let mut session = model.executor.load(self.plan.losses.clone())?;
        let inputs = BatchInputs::of(session.program(), &[])?;
        let mut sums = Sums::default();
        let skips = self.samples.batches(|batch| {
            inputs.write(session.as_mut(), &batch.batch)?;
            session.run()?;
            sums.take(session.as_ref(), &self.plan, &batch)
        })?;
        drop(session);
        let generated = match &self.plan.generation {
            Some(programs) => self.generate(model, programs)?,
            None => Vec::new(),
        };
        let measures = ValidationMeasures {
            samples: sums.samples,
            left_out: skips.count,
            values: sums.values(self.weights),
            generated,
        };
        Ok((measures, skips))
    }

    /// What the model says of the first samples of one image.
    fn generate(
        &self,
        model: EvalContext<'_>,
        programs: &GenerationPrograms,
    ) -> Result<Vec<GeneratedAnswer>> {
        let shape = programs.shape();
        let prompt = |sample: &Sample| {
            model
                .tokenizer
                .prompt(&sample.conversation(shape.image_tokens))
        };
        let leaves_room = |sample: &Sample| {
            let length = prompt(sample).len();
            sample.unsupervised.is_empty() && length > 0 && length < shape.tokens
        };
        let samples = self.samples.first_with_image(shape.batch, leaves_room)?;
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let mut shown = Vec::new();
        for sample in &samples {
            let mut whole = vec![0.0; 3 * shape.image_size * shape.image_size];
            sample
                .view
                .render((shape.image_size, &shape.pixels), &mut whole)?;
            shape.pixels.apply(&mut whole);
            shown.push(PromptImage {
                whole,
                tiles: Vec::new(),
            });
        }
        let prompts: Vec<Vec<i32>> = samples.iter().map(prompt).collect();
        let answers = Generator::of(model, programs)?.generate_shown(&shown, &prompts)?;
        let answered = samples.into_iter().zip(answers);
        let answered = answered.map(|(sample, answer)| GeneratedAnswer {
            key: sample.key,
            question: sample.question,
            expected: sample.answer,
            answer: model.tokenizer.decode(&answer),
        });
        Ok(answered.collect())
    }
}

/// A mean under way.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    weight: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, weight: f64, value: f64) {
        if weight > 0.0 {
            self.weight += weight;
            self.sum += weight * value;
        }
    }

    fn value(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// What batches add up to.
#[derive(Default)]
struct Sums {
    samples: u64,
    /// By kind, each token by its weight.
    next_token: [Mean; 3],
    /// Of full batches, by pairs…
    contrastive: Mean,
    /// … or of the fullest other one, where no batch is full: fewer pairs are told apart more easily.
    partial: Option<(usize, f64)>,
    /// Features of all pairs, images and texts, and what tells their images and captions apart.
    features: [Vec<f32>; 2],
    contents: Vec<[u64; 2]>,
}

impl Sums {
    fn take(
        &mut self,
        session: &dyn Session,
        plan: &ValidationPlan,
        held_out: &HeldOutBatch,
    ) -> Result<()> {
        let HeldOutBatch { kind, batch, count } = held_out;
        self.samples += *count as u64;
        let has = |name: &str| session.program().output_names().any(|known| known == name);
        if has("loss.next_token") {
            let weight = batch.weights.iter().map(|w| f64::from(*w)).sum();
            let loss = session.read_f64("loss.next_token")?[0];
            self.next_token[*kind as usize].add(weight, loss);
        }
        if let Some(pair) = plan.pair {
            self.take_pairs(session, batch, contrasted_features(pair))?;
        }
        Ok(())
    }

    fn take_pairs(
        &mut self,
        session: &dyn Session,
        batch: &Batch,
        names: [String; 2],
    ) -> Result<()> {
        let (pairs, rows) = (batch.pairs, batch.contents.len());
        if pairs >= 2 {
            let loss = session.read_f64("loss.contrastive")?[0];
            if pairs == rows {
                self.contrastive.add(pairs as f64, loss);
            } else if self.partial.is_none_or(|(before, _)| pairs > before) {
                self.partial = Some((pairs, loss));
            }
        }
        for (name, all) in names.iter().zip(&mut self.features) {
            let values = session.read_f32(name)?;
            all.extend(&values[..pairs * (values.len() / rows)]);
        }
        self.contents.extend(&batch.contents[..pairs]);
        Ok(())
    }

    /// All numbers, in the order of [`ValidationMetric::ALL`]; `weights` are those of the two losses.
    fn values(mut self, weights: [f64; 2]) -> Vec<(ValidationMetric, f64)> {
        let mut next_token = Mean::default();
        for of_kind in self.next_token {
            next_token.weight += of_kind.weight;
            next_token.sum += of_kind.sum;
        }
        let next_token = next_token.value();
        let partial = self.partial.map(|(_, loss)| loss);
        let contrastive = self.contrastive.value().or(partial);
        let terms = [next_token, contrastive].into_iter().zip(weights);
        let terms = terms.filter_map(|(loss, weight)| Some(weight * loss?));
        let terms: Vec<f64> = terms.collect();
        let loss = (!terms.is_empty()).then(|| terms.iter().sum());
        let by_kind = HeldOutKind::ALL.into_iter().zip(self.next_token);
        let by_kind = by_kind.map(|(kind, mean)| (ValidationMetric::of_kind(kind), mean.value()));
        let mut all = vec![
            (ValidationMetric::Loss, loss),
            (ValidationMetric::NextToken, next_token),
            (ValidationMetric::Contrastive, contrastive),
        ];
        all.extend(by_kind);
        all.extend(self.retrieval());
        let measured = all.into_iter();
        measured
            .filter_map(|(metric, value)| Some((metric, value?)))
            .collect()
    }

    /// Recall among all pairs. Pairs of an equal image, or of an equal caption, are right answers of each other.
    fn retrieval(&mut self) -> Vec<(ValidationMetric, Option<f64>)> {
        let count = self.contents.len();
        if count < 2 {
            return Vec::new();
        }
        let widths = [0, 1].map(|side| self.features[side].len() / count);
        for (rows, width) in self.features.iter_mut().zip(widths) {
            normalise_rows(rows, width);
        }
        let is_right = |one: &[u64; 2], other: &[u64; 2]| one[0] == other[0] || one[1] == other[1];
        let right = self.contents.iter().map(|own| {
            let all = self.contents.iter().enumerate();
            let right = all.filter(|(_, other)| is_right(own, other));
            right.map(|(index, _)| index).collect()
        });
        let right: Vec<Vec<usize>> = right.collect();
        let [images, texts] = &self.features;
        let forward = rank_positives(images, texts, widths[0], &right).recall;
        let backward = rank_positives(texts, images, widths[1], &right).recall;
        vec![
            (ValidationMetric::ImageToText1, Some(forward[0])),
            (ValidationMetric::ImageToText5, Some(forward[1])),
            (ValidationMetric::TextToImage1, Some(backward[0])),
            (ValidationMetric::TextToImage5, Some(backward[1])),
        ]
    }
}
