//! Classifiers trained on frozen features with Keel's own ops: the two-layer probe of SAIL-VL2 on mean tokens, and the
//! attentive probe of AIM on all tokens.

use std::sync::Arc;

use rayon::prelude::*;

use keel_base::error::Result;
use keel_base::random::Permutation;
use keel_engine::executor::{Executor, SelectedDevice};
use keel_engine::ops::{
    self, Activation, Heads, OptimizerInput, ParameterGroups, StepSettings, UpdateOptions,
};
use keel_engine::program::{CompileOptions, Program};
use keel_engine::tape::{Init, ParameterLayout, Tape, Value};
use keel_engine::tensor::TensorType;
use keel_model::{ModelInput, Scope, initialise};

/// The form of a trained probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProbeForm {
    /// Mean of the tokens → Linear → GELU → Linear (SAIL-VL2 report, section 4.1).
    TwoLayer {
        /// Width between the layers.
        hidden: usize,
    },
    /// A learned query attends to the tokens, then Linear (El-Nouby et al. 2024, AIM).
    Attentive {
        /// Attention heads; the tokens' width over it is a multiple of 8.
        heads: usize,
    },
}

/// How a probe is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeSettings {
    /// Its form.
    pub form: ProbeForm,
    /// Passes over the training features.
    pub epochs: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Highest learning rate; it falls to zero along half a cosine.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Seed of first values and order.
    pub seed: u64,
}

impl ProbeSettings {
    /// Ten epochs, as SAIL-VL2 trains its probe.
    pub fn new(form: ProbeForm) -> ProbeSettings {
        ProbeSettings {
            form,
            epochs: 10,
            batch: 32,
            learning_rate: 2e-3,
            weight_decay: 0.05,
            seed: 0,
        }
    }
}

/// Features with their classes.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// [N, T, C]; T is 1 for mean tokens.
    pub features: &'a [f32],
    /// One for each of the N samples.
    pub labels: &'a [usize],
}

/// A trained probe.
pub struct TrainedProbe {
    settings: ProbeSettings,
    sizes: Sizes,
    layout: Arc<ParameterLayout>,
    executor: Box<dyn Executor>,
    /// Mean and 1 / deviation of each channel over the training features: BatchNorm without an affine part.
    scales: Vec<(f32, f32)>,
    /// The mean loss of each epoch.
    pub losses: Vec<f64>,
}

/// Sizes of a probe's inputs and output.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// T.
    tokens: usize,
    /// C.
    width: usize,
    classes: usize,
}

impl TrainedProbe {
    /// Trains a probe on `train`, features of `tokens` tokens of `width`, with labels below `classes`.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Shape`] when the heads do not divide the width into multiples of 8; whatever the executor
    /// reports.
    pub fn fit(
        settings: ProbeSettings,
        compute: &SelectedDevice,
        train: Labelled<'_>,
        (tokens, width, classes): (usize, usize, usize),
    ) -> Result<TrainedProbe> {
        let sizes = Sizes {
            tokens,
            width,
            classes,
        };
        assert_eq!(
            train.features.len(),
            train.labels.len() * tokens * width,
            "features [samples, {tokens}, {width}] for {} labels",
            train.labels.len()
        );
        let mut declaring = Tape::declaring();
        record_scores(&mut declaring, &settings, sizes)?;
        let layout = Arc::new(ParameterLayout::new(&declaring.specs()));
        let executor = compute.open(layout.elements())?;
        executor.write_parameters(0, &initialise(&layout, settings.seed))?;
        let mut probe = TrainedProbe {
            settings,
            sizes,
            layout,
            executor,
            // Channels are standardised by the training features, for training and test alike: one learning rate then
            // suits towers of any scale.
            scales: channel_scales(train.features, width),
            losses: Vec::new(),
        };
        probe.train(train)?;
        Ok(probe)
    }

    fn tape(&self, trains: bool) -> Tape {
        let compile_target = self.executor.compile_target();
        Tape::new(self.layout.clone(), move |_| trains).in_precision(compile_target.precision)
    }

    fn compile(&self, tape: Tape) -> Result<Arc<Program>> {
        let options = CompileOptions::new(self.executor.compile_target());
        Ok(Arc::new(Program::compile(tape, &options)?))
    }

    fn train(&mut self, train: Labelled<'_>) -> Result<()> {
        let batch = self.settings.batch;
        let mut tape = self.tape(true);
        let (hidden, head) = record_scores(&mut tape, &self.settings, self.sizes)?;
        let targets = tape.input(ModelInput::Targets, TensorType::i32([batch]));
        let weights = tape.input(ModelInput::Weights, TensorType::f32([batch]));
        let loss = ops::linear_cross_entropy(&mut tape, hidden, head, targets, weights)?;
        tape.output(loss, "loss");
        tape.backward(loss)?;
        let groups = ParameterGroups::decaying(self.settings.weight_decay);
        ops::record_update(&mut tape, &self.layout, &groups, &UpdateOptions::default())?;
        let mut session = self.executor.load(self.compile(tape)?)?;
        session.write_f32(ModelInput::Weights.name(), &vec![1.0; batch])?;

        let count = train.labels.len();
        let per_epoch = count.div_ceil(batch);
        let steps = (self.settings.epochs * per_epoch) as u64;
        for epoch in 0..self.settings.epochs {
            let order = Permutation::new(count as u64, self.settings.seed, 0, epoch as u64);
            let mut sum = 0.0;
            for index in 0..per_epoch {
                // The last batch of an epoch is filled up with the epoch's first samples.
                let rows: Vec<usize> = (0..batch)
                    .map(|row| order.at(((index * batch + row) % count) as u64) as usize)
                    .collect();
                let targets: Vec<i32> = rows.iter().map(|row| train.labels[*row] as i32).collect();
                session.write_f32(
                    ModelInput::Features.name(),
                    &self.rows(train.features, &rows),
                )?;
                session.write_i32(ModelInput::Targets.name(), &targets)?;
                let step = (epoch * per_epoch + index) as u64;
                let rate = self.learning_rate_at(step, steps);
                let scalars = self.optimizer_scalars(step);
                session.write_f32(OptimizerInput::Scalars.name(), &scalars)?;
                session.write_f32(OptimizerInput::GroupScalars.name(), &groups.scalars(rate))?;
                session.run()?;
                sum += session.read_f64("loss")?[0];
            }
            self.losses.push(sum / per_epoch.max(1) as f64);
        }
        Ok(())
    }

    /// Half a cosine from the highest learning rate to zero.
    fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        let part = step as f64 / steps as f64;
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * part).cos());
        self.settings.learning_rate * fall
    }

    fn optimizer_scalars(&self, step: u64) -> [f32; ops::OPTIMIZER_SCALARS] {
        let settings = StepSettings {
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            clip: 1.0,
            gradient_scale: 1.0,
        };
        settings.scalars(step)
    }

    /// The scaled features of these samples.
    fn rows(&self, features: &[f32], rows: &[usize]) -> Vec<f32> {
        let one = self.sizes.tokens * self.sizes.width;
        let mut out = Vec::with_capacity(rows.len() * one);
        for row in rows {
            let sample = &features[row * one..(row + 1) * one];
            let channels = self.scales.iter().cycle();
            out.extend(
                sample
                    .iter()
                    .zip(channels)
                    .map(|(x, (mean, scale))| (x - mean) * scale),
            );
        }
        out
    }

    /// The likeliest class of each sample of `features` [N, T, C].
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn classify(&self, features: &[f32]) -> Result<Vec<usize>> {
        let batch = self.settings.batch;
        let mut tape = self.tape(false);
        let (hidden, head) = record_scores(&mut tape, &self.settings, self.sizes)?;
        let class = ops::linear_argmax(&mut tape, hidden, head)?;
        tape.output(class, "class");
        let mut session = self.executor.load(self.compile(tape)?)?;
        let count = features.len() / (self.sizes.tokens * self.sizes.width);
        let mut classes = Vec::with_capacity(count);
        for from in (0..count).step_by(batch) {
            let rows: Vec<usize> = (from..from + batch).map(|row| row.min(count - 1)).collect();
            session.write_f32(ModelInput::Features.name(), &self.rows(features, &rows))?;
            session.run()?;
            let found = session.read_f64("class")?;
            let here = (count - from).min(batch);
            classes.extend(found[..here].iter().map(|class| *class as usize));
        }
        Ok(classes)
    }
}

/// Records a probe up to its last product: hidden [B, F] and the weight [classes, F] that makes scores of it.
fn record_scores(
    tape: &mut Tape,
    settings: &ProbeSettings,
    sizes: Sizes,
) -> Result<(Value, Value)> {
    let Sizes {
        tokens,
        width,
        classes,
    } = sizes;
    let scope = Scope::module("probe");
    let batch = settings.batch;
    let input = tape.input(
        ModelInput::Features,
        TensorType::f32([batch, tokens, width]),
    );
    let x = ops::cast(tape, input, tape.precision())?;
    let (hidden, columns) = match settings.form {
        ProbeForm::TwoLayer { hidden } => {
            let x = ops::mean_pool(tape, x, None)?;
            let weight = scope.matrix(tape, "fc1.weight", [hidden, width], Init::XavierUniform)?;
            let bias = scope.plain(tape, "fc1.bias", [hidden], Init::Constant(0.0))?;
            let x = ops::linear_activation(tape, x, weight, Some(bias), Activation::GeluErf)?;
            (x, hidden)
        }
        ProbeForm::Attentive { heads } => {
            let heads = Heads {
                query: heads,
                key_value: heads,
                dim: width / heads.max(1),
            };
            let query = scope.matrix(tape, "query", [1, width], Init::Normal(0.02))?;
            let weight = scope.matrix(
                tape,
                "key_value.weight",
                [2 * width, width],
                Init::XavierUniform,
            )?;
            let key_value = ops::linear(tape, x, weight, None)?;
            let x = ops::cross_attention(tape, query, key_value, heads)?;
            (tape.reshape(x, [batch, width])?, width)
        }
    };
    let head = scope.matrix(tape, "head.weight", [classes, columns], Init::XavierUniform)?;
    Ok((hidden, head))
}

/// Mean and 1 / deviation of each of the `width` channels over all rows.
fn channel_scales(rows: &[f32], width: usize) -> Vec<(f32, f32)> {
    let count = (rows.len() / width).max(1) as f64;
    (0..width)
        .into_par_iter()
        .map(|channel| {
            let values = || {
                rows.iter()
                    .skip(channel)
                    .step_by(width)
                    .map(|x| f64::from(*x))
            };
            let mean = values().sum::<f64>() / count;
            let variance = values().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            (mean as f32, (1.0 / (variance + 1e-6).sqrt()) as f32)
        })
        .collect()
}
