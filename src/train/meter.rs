//! Throughput, smoothed losses and the display of a stage under way.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use keel_engine::program::bytes;

/// What one optimiser step reported.
#[derive(Clone, Debug, Default)]
pub struct StepNumbers {
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
pub struct StepSize {
    /// Images of a batch.
    pub images: usize,
    /// Text tokens of a batch.
    pub tokens: usize,
    /// Floating-point operations, from the ops' own costs.
    pub flops: f64,
    /// Floating-point operations a second that the machine's multiply-add units reach; 0 when unknown.
    pub peak: f64,
    /// Bytes that the stage takes by its plan.
    pub memory: u64,
}

/// Averages over the steps since the last line, with rates.
#[derive(Clone, Debug, Default)]
pub struct Interval {
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
    /// Images a second.
    pub images_per_second: f64,
    /// Text tokens a second.
    pub tokens_per_second: f64,
    /// Floating-point operations a second over the machine's peak, 0 to 1.
    pub share_of_peak: f64,
}

/// Gathers steps into intervals and shows a progress bar where the output is a terminal.
pub struct Meter {
    size: StepSize,
    /// Since the last row.
    for_row: Vec<StepNumbers>,
    /// Since the last line.
    for_line: Vec<StepNumbers>,
    /// Mean losses of the latest rows, for the display.
    history: VecDeque<f64>,
    bar: ProgressBar,
    last_row: Instant,
    last_line: Instant,
}

/// Rows that the display's curve shows.
const HISTORY: usize = 60;

/// Numbers as a curve of one line of text, from the least at the bottom to the greatest at the top; nothing for numbers that
/// are not finite.
pub fn curve(values: &[f64]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let finite = values.iter().filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(*value), high.max(*value))
    });
    let height = |value: &f64| match (value.is_finite(), high > low) {
        (false, _) => ' ',
        (true, false) => HEIGHTS[0],
        (true, true) => HEIGHTS[((value - low) / (high - low) * 7.0).round() as usize],
    };
    values.iter().map(height).collect()
}

/// What is due after a step.
#[derive(Clone, Debug, Default)]
pub struct Due {
    /// For metrics.jsonl and event files.
    pub row: Option<Interval>,
    /// For people.
    pub line: Option<Interval>,
}

/// A line is due this often, and after the first and last step.
const LINES: Duration = Duration::from_secs(5);
/// A row of metrics.jsonl is due this often, and wherever a line is.
const ROWS: Duration = Duration::from_secs(1);

impl Meter {
    /// A meter for `steps` steps of which `done` are behind us.
    pub fn new(stage: &str, size: StepSize, steps: u64, done: u64) -> Meter {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let template = "{prefix} {wide_bar} {pos}/{len}, {eta} left\n{msg}";
        let style = ProgressStyle::with_template(template)
            .expect("the template's fields are indicatif's own");
        bar.set_style(style);
        bar.set_prefix(stage.to_owned());
        bar.set_position(done);
        Meter {
            size,
            for_row: Vec::new(),
            for_line: Vec::new(),
            history: VecDeque::new(),
            bar,
            last_row: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// Adds the numbers of a step that was applied.
    pub fn add(&mut self, step: StepNumbers) {
        self.for_row.push(step.clone());
        self.for_line.push(step);
    }

    /// Moves on after step `done` (from 1); returns what is due where there is something to say. `skipped` samples have been
    /// left out so far.
    pub fn due(&mut self, done: u64, is_last: bool, skipped: u64) -> Due {
        self.bar.set_position(done);
        if is_last {
            self.bar.finish_and_clear();
        }
        let mut due = Due::default();
        let is_edge = done == 1 || is_last;
        let line = (is_edge || self.last_line.elapsed() >= LINES) && !self.for_line.is_empty();
        let row = line || self.last_row.elapsed() >= ROWS;
        if row && !self.for_row.is_empty() {
            self.last_row = Instant::now();
            let interval = self.summarise(&self.for_row);
            self.for_row.clear();
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(interval.loss);
            self.bar.set_message(self.display(&interval, skipped));
            due.row = Some(interval);
        }
        if line {
            self.last_line = Instant::now();
            let interval = self.summarise(&self.for_line);
            self.for_line.clear();
            due.line = Some(interval);
        }
        due
    }

    /// What stands under the bar on a terminal: the loss of late as a curve, and how things stand.
    fn display(&self, interval: &Interval, skipped: u64) -> String {
        let history: Vec<f64> = self.history.iter().copied().collect();
        let skipped = match skipped {
            0 => String::new(),
            some => format!(", {some} samples skipped"),
        };
        format!(
            "loss {} {:.4}  grad {:.3}  lr {:.2e}\n{}, {} planned{skipped}",
            curve(&history),
            interval.loss,
            interval.gradient_norm,
            interval.learning_rate,
            interval.rates(),
            bytes(self.size.memory),
        )
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        // A reader that has gone away must not end a run: the log has every line.
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stdout(), "{line}");
        });
    }

    fn summarise(&self, gathered: &[StepNumbers]) -> Interval {
        let count = gathered.len() as f64;
        let mean = |of: &dyn Fn(&StepNumbers) -> f64| gathered.iter().map(of).sum::<f64>() / count;
        let Some(last) = gathered.last() else {
            return Interval::default();
        };
        let seconds = mean(&|step| step.seconds);
        let terms = last
            .terms
            .iter()
            .enumerate()
            .map(|(index, (name, _))| (*name, mean(&|step| step.terms[index].1)))
            .collect();
        Interval {
            steps: gathered.len() as u64,
            loss: mean(&|step| step.loss),
            terms,
            gradient_norm: mean(&|step| step.gradient_norm),
            learning_rate: last.learning_rate,
            images_per_second: self.size.images as f64 / seconds,
            tokens_per_second: self.size.tokens as f64 / seconds,
            share_of_peak: match self.size.peak {
                0.0 => 0.0,
                peak => self.size.flops / seconds / peak,
            },
        }
    }
}

impl Interval {
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
        line + &format!(
            "  grad {:.3}  lr {:.2e}  {}",
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
