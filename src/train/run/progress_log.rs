//! Averages over the steps of a stage under way: losses, rates, and when they are due.

use std::time::Duration;

use keel_base::clock::{Clock, Stopwatch, per_second};

/// What one optimiser step reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepNumbers {
    /// The weighted sum of the losses.
    pub loss: f64,
    /// The losses by name, for example `next_token`.
    pub terms: Vec<(&'static str, f64)>,
    /// Norm of the whole gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Seconds the step took, waiting for data included.
    pub seconds: f64,
}

/// Sizes and cost of one step, for rates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSize {
    /// Images of a batch.
    pub images: usize,
    /// Text tokens of a batch.
    pub tokens: usize,
    /// Floating-point operations, from the ops' own costs.
    pub flops: f64,
    /// Floating-point operations a second that the machine's multiply-add units reach; 0 when unknown.
    pub peak: f64,
}

/// Averages over the steps since the last report, with rates.
#[derive(Clone, Debug, Default)]
pub struct StepAverages {
    /// Steps averaged.
    pub steps: u64,
    /// Mean loss.
    pub loss: f64,
    /// Mean losses by name.
    pub terms: Vec<(&'static str, f64)>,
    /// Mean gradient norm.
    pub gradient_norm: f64,
    /// The last learning rate.
    pub learning_rate: f64,
    /// The least and the largest learning rate of each module at that time; nothing where all have one.
    pub module_rates: Vec<(String, [f64; 2])>,
    /// Images a second; 0 when unknown, as the other rates.
    pub images_per_second: f64,
    /// Text tokens a second.
    pub tokens_per_second: f64,
    /// Floating-point operations a second over the machine's peak, 0 to 1.
    pub share_of_peak: f64,
}

/// Averages steps between the reports that are due.
pub(crate) struct ProgressLog {
    size: StepSize,
    /// The least and the largest rate of each module, over the stage's; nothing where all have that.
    module_factors: Vec<(String, [f64; 2])>,
    /// Since the last row.
    for_row: Vec<StepNumbers>,
    /// Since the last line.
    for_line: Vec<StepNumbers>,
    since_row: Stopwatch,
    since_line: Stopwatch,
}

/// What is due after a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Due {
    /// For metrics.jsonl and event files.
    pub row: Option<StepAverages>,
    /// For people.
    pub line: Option<StepAverages>,
}

/// A line is due this often, and after the first and last step.
const LINES: Duration = Duration::from_secs(5);
/// A row of metrics.jsonl is due this often, and wherever a line is.
const ROWS: Duration = Duration::from_secs(1);
/// Steps after which both are due on a clock that stands still: their numbers are kept until then.
const MOST_STEPS: usize = 4096;

impl ProgressLog {
    /// A log of steps of this size, by the time of `clock`; none are in it. `module_factors` are the least and the largest learning
    /// rate of each module, over the stage's, where modules have rates of their own.
    pub fn new(
        size: StepSize,
        module_factors: Vec<(String, [f64; 2])>,
        clock: &Clock,
    ) -> ProgressLog {
        ProgressLog {
            size,
            module_factors,
            for_row: Vec::new(),
            for_line: Vec::new(),
            since_row: clock.start(),
            since_line: clock.start(),
        }
    }

    /// Adds the numbers of a step that was applied.
    pub fn add(&mut self, step: StepNumbers) {
        self.for_row.push(step.clone());
        self.for_line.push(step);
    }

    /// Takes the machine's peak as it is known now: a GPU's follows the clock that it runs at under load.
    pub fn set_peak(&mut self, peak: f64) {
        self.size.peak = peak;
    }

    /// What is due after step `done` (from 1). Nothing is due of steps that were not applied: they have no averages.
    pub fn due(&mut self, done: u64, is_last: bool) -> Due {
        let mut due = Due::default();
        let is_edge = done == 1 || is_last || self.for_line.len() >= MOST_STEPS;
        let line = (is_edge || self.since_line.elapsed() >= LINES) && !self.for_line.is_empty();
        let row = line || self.since_row.elapsed() >= ROWS;
        if row && !self.for_row.is_empty() {
            self.since_row.restart();
            due.row = Some(self.average(&self.for_row));
            self.for_row.clear();
        }
        if line {
            self.since_line.restart();
            due.line = Some(self.average(&self.for_line));
            self.for_line.clear();
        }
        due
    }

    fn average(&self, of_steps: &[StepNumbers]) -> StepAverages {
        let count = of_steps.len() as f64;
        let mean = |of: &dyn Fn(&StepNumbers) -> f64| of_steps.iter().map(of).sum::<f64>() / count;
        let Some(last) = of_steps.last() else {
            return StepAverages::default();
        };
        let seconds = mean(&|step| step.seconds);
        let terms = last
            .terms
            .iter()
            .enumerate()
            .map(|(index, (name, _))| (*name, mean(&|step| step.terms[index].1)))
            .collect();
        StepAverages {
            steps: of_steps.len() as u64,
            loss: mean(&|step| step.loss),
            terms,
            gradient_norm: mean(&|step| step.gradient_norm),
            learning_rate: last.learning_rate,
            module_rates: self
                .module_factors
                .iter()
                .map(|(module, ends)| (module.clone(), ends.map(|end| end * last.learning_rate)))
                .collect(),
            images_per_second: per_second(self.size.images as f64, seconds),
            tokens_per_second: per_second(self.size.tokens as f64, seconds),
            share_of_peak: match self.size.peak {
                0.0 => 0.0,
                peak => per_second(self.size.flops, seconds) / peak,
            },
        }
    }
}

impl StepAverages {
    /// Rates in a few words.
    pub fn rates(&self) -> String {
        let mut rates = Vec::new();
        if self.images_per_second > 0.0 {
            rates.push(format!("{:.0} images/s", self.images_per_second));
        }
        if self.tokens_per_second > 0.0 {
            rates.push(format!("{:.0} tokens/s", self.tokens_per_second));
        }
        if self.share_of_peak > 0.0 {
            rates.push(format!("{:.0} % of peak", 100.0 * self.share_of_peak));
        }
        rates.join(", ")
    }

    /// One readable line.
    pub fn line(&self, stage: &str, step: u64, steps: u64) -> String {
        let mut line = format!("{stage} {step}/{steps}  loss {:.4}", self.loss);
        if self.terms.len() > 1 {
            let terms: Vec<String> = self
                .terms
                .iter()
                .map(|(name, value)| format!("{name} {value:.4}"))
                .collect();
            line += &format!(" ({})", terms.join(", "));
        }
        let modules = self.module_rates.iter().map(|(module, [least, most])| {
            if least == most {
                format!("{module} {most:.2e}")
            } else {
                format!("{module} {least:.2e} to {most:.2e}")
            }
        });
        let modules: Vec<String> = modules.collect();
        let modules = match &modules[..] {
            [] => String::new(),
            modules => format!(" ({})", modules.join(", ")),
        };
        line + &format!(
            "  grad {:.3}  lr {:.2e}{modules}  {}",
            self.gradient_norm,
            self.learning_rate,
            self.rates()
        )
    }

    /// All numbers by name.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars: Vec<(String, f64)> = [
            ("loss", self.loss),
            ("gradient_norm", self.gradient_norm),
            ("learning_rate", self.learning_rate),
            ("images_per_second", self.images_per_second),
            ("tokens_per_second", self.tokens_per_second),
            ("share_of_peak", self.share_of_peak),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let terms = self.terms.iter();
        scalars.extend(terms.map(|(name, value)| (format!("loss.{name}"), *value)));
        for (module, [least, most]) in &self.module_rates {
            scalars.push((format!("learning_rate.{module}"), *most));
            if least != most {
                scalars.push((format!("learning_rate.{module}.least"), *least));
            }
        }
        scalars
    }

    /// The row of metrics.jsonl.
    pub fn row(&self, stage: &str, step: u64) -> serde_json::Value {
        let mut row = serde_json::json!({"kind": "step", "stage": stage, "step": step});
        for (name, value) in self.scalars() {
            row[name] = value.into();
        }
        row
    }
}
