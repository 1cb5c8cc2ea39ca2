//! Counted kernels as a table, as the page of documentation, and as the file of agreed counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::Measured;
use super::counted::{CountedKernel, CountedWork, SPEEDS};
use keel_base::error::{Error, Result};
use keel_report::table::Table;

/// Share by which a count may exceed what was agreed: what nvcc's next choice of instructions may change without anyone
/// having changed a kernel.
const ALLOWANCE: f64 = 0.02;

/// Conflicts that a listing shows of a kernel.
const SHOWN: usize = 3;

/// What was agreed of a kernel in an example, in thousands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgreedCounts {
    /// Instructions of warps.
    pub instructions: f64,
    /// Tensor products.
    pub tensor: f64,
    /// Turns of shared memory.
    pub wavefronts: f64,
    /// Sectors between multiprocessors and cache.
    pub sectors: f64,
    /// Exponentials.
    pub exponentials: f64,
    /// Barriers.
    pub barriers: f64,
}

impl AgreedCounts {
    fn of(kernel: &CountedKernel) -> AgreedCounts {
        let thousands = |count: f64| (count / 1e3 * 10.0).round() / 10.0;
        AgreedCounts {
            instructions: thousands(kernel.sums.instructions),
            tensor: thousands(kernel.sums.tensor),
            wavefronts: thousands(kernel.sums.wavefronts),
            sectors: thousands(kernel.sums.sectors),
            exponentials: thousands(kernel.sums.exponentials),
            barriers: thousands(kernel.sums.barriers),
        }
    }

    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("instructions", self.instructions),
            ("tensor", self.tensor),
            ("wavefronts", self.wavefronts),
            ("sectors", self.sectors),
            ("exponentials", self.exponentials),
            ("barriers", self.barriers),
        ]
    }
}

/// The agreed counts by example, op and kernel: the file `cuda/counts.toml`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CountBudget(pub BTreeMap<String, AgreedCounts>);

const HEADER: &str = "\
# What each kernel executes at the shapes of the large examples, in thousands, counted by running its PTX. `cargo tool ptx
# --counts` fails on more; `cargo tool ptx --counts --write` writes this file anew. A line that changes is part of a review.

";

fn key(counted: &CountedWork, kernel: &CountedKernel) -> String {
    let work = &counted.work;
    format!(
        "{} {}, {}: {}",
        work.example, work.shape, work.op, kernel.name
    )
}

impl CountBudget {
    /// The counts as they are.
    pub fn of(all: &[CountedWork]) -> CountBudget {
        let mut agreed = BTreeMap::new();
        for counted in all {
            for kernel in &counted.kernels {
                agreed.insert(key(counted, kernel), AgreedCounts::of(kernel));
            }
        }
        CountBudget(agreed)
    }

    /// Reads the file's text; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Content`] when it is not of the form that [`CountBudget::write`] gives it.
    pub fn read(path: &str, text: &str) -> Result<CountBudget> {
        toml::from_str(text).map(CountBudget).map_err(|problem| {
            let remedy = "write it anew with cargo tool ptx --counts --write";
            Error::content(path, problem.message(), remedy)
        })
    }

    /// The file's text.
    pub fn write(&self) -> String {
        let mut text = HEADER.to_owned();
        for (key, agreed) in &self.0 {
            let counts: Vec<String> = agreed
                .named()
                .iter()
                .map(|(name, count)| format!("{name} = {count:?}"))
                .collect();
            writeln!(text, "{key:?} = {{ {} }}", counts.join(", "))
                .expect("writing to a string cannot fail");
        }
        text
    }

    /// Everything that breaks the agreement, one sentence each; empty when all is well.
    pub fn problems(&self, all: &[CountedWork]) -> Vec<String> {
        let found = CountBudget::of(all).0;
        let mut problems = Vec::new();
        for (key, counts) in &found {
            let Some(agreed) = self.0.get(key) else {
                problems.push(format!(
                    "{key}: it is not in the file; cargo tool ptx --counts --write adds it"
                ));
                continue;
            };
            for ((name, agreed), (_, found)) in agreed.named().iter().zip(counts.named()) {
                // A tenth of a thousand is how the file is rounded.
                if found > agreed * (1.0 + ALLOWANCE) + 0.1 {
                    problems.push(format!(
                        "{key}: {agreed} thousand {name} were agreed, but it executes {found}"
                    ));
                }
            }
        }
        for key in self.0.keys().filter(|key| !found.contains_key(*key)) {
            problems.push(format!(
                "{key}: the file names it, but no example launches it; cargo tool ptx --counts --write drops it"
            ));
        }
        problems
    }
}

/// A count in millions.
fn millions(count: f64) -> String {
    if count == 0.0 {
        "0".to_owned()
    } else {
        format!("{:.3}", count / 1e6)
    }
}

/// How many times the ideal.
fn times(counted: f64, ideal: f64) -> String {
    if ideal > 0.0 {
        format!("{:.2}", counted / ideal)
    } else {
        "–".to_owned()
    }
}

fn rows(all: &[CountedWork], measured: &[Measured]) -> Vec<Vec<String>> {
    let mut header: Vec<String> = [
        "example",
        "op, kernel",
        "launches",
        "blocks",
        "instr M",
        "tensor M",
        "smem M",
        "of ideal",
        "sectors M",
        "of ideal",
        "exp M",
        "barriers M",
    ]
    .map(str::to_owned)
    .to_vec();
    header.extend(SPEEDS.map(|speed| format!("{} µs", speed.name)));
    let devices = measured.iter().map(|measured| &measured.device);
    header.extend(devices.map(|device| format!("{device}, measured µs")));
    let columns = header.len();
    let mut rows = vec![header];
    for counted in all {
        let work = &counted.work;
        let mut row = vec![
            format!("{} {}", work.example, work.shape),
            work.op.to_owned(),
        ];
        row.resize(12, String::new());
        row.extend(SPEEDS.map(|speed| {
            let predicted = speed.predict(counted);
            format!(
                "{:.1} ({:.1}) {}",
                predicted.seconds * 1e6,
                predicted.least * 1e6,
                predicted.limit.name()
            )
        }));
        row.extend(measured.iter().map(|measured| measured.cell(counted)));
        rows.push(row);
        for kernel in &counted.kernels {
            let sums = &kernel.sums;
            let mut row = vec![
                String::new(),
                kernel.name.clone(),
                kernel.launches.to_string(),
                kernel.blocks.to_string(),
                millions(sums.instructions),
                millions(sums.tensor),
                millions(sums.wavefronts),
                times(sums.wavefronts, sums.ideal_wavefronts),
                millions(sums.sectors),
                times(sums.sectors, sums.ideal_sectors),
                millions(sums.exponentials),
                millions(sums.barriers),
            ];
            row.resize(columns, String::new());
            rows.push(row);
        }
    }
    rows
}

/// The table, and of each kernel the lines that meet banks twice.
pub fn counted_text(all: &[CountedWork], measured: &[Measured]) -> String {
    let rows = rows(all, measured);
    let mut text = Table { rows }.render();
    text.push_str("\n\npredicted µs, (least µs), and what binds; sums over all blocks\n");
    for counted in all {
        for kernel in counted.kernels.iter().filter(|k| !k.conflicts.is_empty()) {
            writeln!(text, "{}", key(counted, kernel)).expect("writing to a string cannot fail");
            for conflict in kernel.conflicts.iter().take(SHOWN) {
                writeln!(
                    text,
                    "    {}: {} million turns of shared memory, {} times the ideal",
                    conflict.place,
                    millions(conflict.wavefronts),
                    times(conflict.wavefronts, conflict.ideal)
                )
                .expect("writing to a string cannot fail");
            }
        }
    }
    text
}

const PAGE: &str = "\
# What the kernels execute

Written by `cargo tool ptx --counts --write`. Each kernel's PTX was executed for neighbouring blocks from the middle of the launch,
up to 64 and fewer where they execute much, at the shapes of the large examples in bf16, and counted; sums are scaled to all blocks.
So tiles of a head are met as often as they are there, but tiles at the edge of a large grid, which have less to do, count as full
ones. Predicted times are in microseconds, with the least that the counted work allows in brackets and the part of the chip that
binds. The model knows how much work each part of a multiprocessor has. It does not know how ptxas schedules and fuses
instructions, latency that too few warps leave uncovered, what the second-level cache keeps, or clocks under load. Kernels whose
way depends on values (`embedding`) are not counted.

";

/// The page `docs/reference/counts.md`.
pub fn counted_markdown(all: &[CountedWork], measured: &[Measured]) -> String {
    let mut text = PAGE.to_owned();
    text.push_str(match measured {
        [] => "**Nothing here was measured on a GPU.**\n\n",
        _ => "The last columns are what `tools/gpu-run.sh` measured, and how many times that is the prediction.\n\n",
    });
    let rows = rows(all, measured);
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        writeln!(text, "| {} |", cells.join(" | ")).expect("writing to a string cannot fail");
        if index == 0 {
            writeln!(text, "|{}", "---|".repeat(row.len()))
                .expect("writing to a string cannot fail");
        }
    }
    text
}
