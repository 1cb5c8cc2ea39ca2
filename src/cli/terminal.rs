//! What a run tells, on a terminal: its lines on standard output, and a progress bar under them where standard error is a
//! terminal.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use keel_base::error::Result;
use keel_base::units::bytes;
use keel_train::{Event, Observer, StepReport, StepsBegin};

/// Shows the events of a run.
#[derive(Debug, Default)]
pub(super) struct Terminal {
    /// The stage whose steps are under way.
    display: Mutex<Option<Display>>,
}

/// The progress of a stage.
#[derive(Debug)]
struct Display {
    bar: ProgressBar,
    /// Mean losses of the latest rows, for the curve.
    history: VecDeque<f64>,
    /// Bytes that the stage takes by its plan.
    memory: u64,
}

/// Rows that the curve shows.
const HISTORY: usize = 60;

impl Observer for Terminal {
    /// Never fails: a reader that has gone away must not end a run, whose log has every line.
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        let mut display = self.display.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::StepsBegin(begins) => *display = Some(Display::new(begins)),
            Event::StepsEnd => *display = None,
            Event::StepDone(done) => {
                if let Some(display) = &*display {
                    display.move_to(*done);
                }
            }
            Event::Metrics(report) => {
                if let Some(display) = &mut *display {
                    display.show(report);
                }
            }
            // The program says it when it ends.
            Event::Interrupted(_) => {}
            Event::Warning(text) => print(display.as_ref(), &shortened(text)),
            event => {
                if let Some(text) = event.text() {
                    print(display.as_ref(), &text);
                }
            }
        }
        Ok(())
    }
}

/// Characters of a warning that are shown.
const WARNING: usize = 400;

/// A warning without what a screen has no room for: of a bad step it names every sample.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(WARNING) {
        None => text.into(),
        Some((end, _)) => format!("{}… (log.txt has all of it)", &text[..end]).into(),
    }
}

/// Prints a text above the bar.
fn print(display: Option<&Display>, text: &str) {
    let print = || {
        let _ = writeln!(std::io::stdout(), "{text}");
    };
    match display {
        Some(display) => display.bar.suspend(print),
        None => print(),
    }
}

impl Display {
    fn new(begins: &StepsBegin<'_>) -> Display {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(begins.steps), target);
        let template = "{prefix} {wide_bar} {pos}/{len}, {eta} left\n{msg}";
        let style = ProgressStyle::with_template(template)
            .expect("the template's fields are indicatif's own");
        bar.set_style(style);
        bar.set_prefix(begins.stage.to_owned());
        bar.set_position(begins.done);
        Display {
            bar,
            history: VecDeque::new(),
            memory: begins.memory,
        }
    }

    fn move_to(&self, done: u64) {
        self.bar.set_position(done);
        if self.bar.length() == Some(done) {
            self.bar.finish_and_clear();
        }
    }

    /// Shows under the bar the loss of late as a curve, and how things stand.
    fn show(&mut self, report: &StepReport<'_>) {
        let averages = report.averages;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(averages.loss);
        let skipped = match report.skipped {
            0 => String::new(),
            some => format!(", {some} samples skipped"),
        };
        self.bar.set_message(format!(
            "loss {} {:.4}  grad {:.3}  lr {:.2e}\n{}, {} planned{skipped}",
            curve(self.history.make_contiguous()),
            averages.loss,
            averages.gradient_norm,
            averages.learning_rate,
            averages.rates(),
            bytes(self.memory),
        ));
    }
}

/// Numbers as a curve of one line of text, from the least at the bottom to the greatest at the top; nothing for numbers that
/// are not finite.
fn curve(values: &[f64]) -> String {
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
