//! A step taken apart: tables, a trace for browsers, a drawing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::table::Table;
use keel_base::units::{counted, flops};
use keel_engine::program::escape;
use keel_engine::tape::UPDATE;
use keel_train::{Profile, ProfiledOp};

/// Kinds of op in the table, at most; the rest are summed.
const KINDS: usize = 24;

/// Several ops together.
#[derive(Clone, Copy, Default)]
struct Sum {
    seconds: f64,
    bound: f64,
    flops: f64,
    bytes: f64,
    count: usize,
}

impl Sum {
    fn add(&mut self, op: &ProfiledOp, profile: &Profile) {
        self.seconds += op.seconds;
        self.bound += op.bound(profile.peak_flops, profile.peak_bandwidth);
        self.flops += op.cost.flops;
        self.bytes += op.cost.bytes_read + op.cost.bytes_written;
        self.count += 1;
    }

    fn merge(&mut self, other: &Sum) {
        self.seconds += other.seconds;
        self.bound += other.bound;
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.count += other.count;
    }

    fn cells(&self, name: &str, all: f64) -> Vec<String> {
        let rate = |amount: f64| {
            if self.seconds > 0.0 {
                format!("{:.1}", amount / self.seconds / 1e9)
            } else {
                "–".to_owned()
            }
        };
        let share = |part: f64, whole: f64| {
            if whole > 0.0 && part > 0.0 {
                format!("{:.1} %", 100.0 * part / whole)
            } else {
                "–".to_owned()
            }
        };
        vec![
            name.to_owned(),
            self.count.to_string(),
            format!("{:.2}", self.seconds * 1e3),
            share(self.seconds, all),
            rate(self.flops),
            rate(self.bytes),
            share(self.bound, self.seconds),
        ]
    }
}

const HEADER: [&str; 6] = ["ops", "ms", "of step", "GFLOP/s", "GB/s", "of roofline"];

fn sorted(sums: BTreeMap<String, Sum>) -> Vec<(String, Sum)> {
    let mut sums: Vec<(String, Sum)> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    sums
}

fn table(first: &str, sums: Vec<(String, Sum)>, all: f64) -> String {
    let mut rows = vec![vec![first.to_owned()]];
    rows[0].extend(HEADER.map(str::to_owned));
    let mut rest = Sum::default();
    for (index, (name, sum)) in sums.iter().enumerate() {
        if index < KINDS {
            rows.push(sum.cells(name, all))
        } else {
            rest.merge(sum)
        }
    }
    if rest.count > 0 {
        rows.push(rest.cells("others", all));
    }
    Table { rows }.render()
}

/// The direction an op works in.
fn direction(op: &ProfiledOp) -> &'static str {
    match (op.is_backward, op.name.as_str()) {
        _ if op.scope == UPDATE => "update",
        (true, _) => "backward",
        (false, _) => "forward",
    }
}

/// The part of the model an op belongs to.
fn module(op: &ProfiledOp) -> &str {
    match op.scope.split('.').next() {
        Some("") | None => "step",
        Some(module) => module,
    }
}

/// Time by kind of op and by part of the model, with rates and the share of the roofline: the least time that work and
/// traffic take at the machine's peaks, over the time taken. Traffic counts every input and output once, from memory: what
/// stays in caches can be faster than that.
pub fn profile_table(profile: &Profile) -> String {
    let all = profile.seconds();
    let mut kinds: BTreeMap<String, Sum> = BTreeMap::new();
    let mut parts: BTreeMap<String, Sum> = BTreeMap::new();
    let mut total = Sum::default();
    for op in &profile.ops {
        kinds.entry(op.name.clone()).or_default().add(op, profile);
        let part = match direction(op) {
            "update" => "update".to_owned(),
            direction => format!("{}, {direction}", module(op)),
        };
        parts.entry(part).or_default().add(op, profile);
        total.add(op, profile);
    }
    let mut peaks = Vec::new();
    if profile.peak_flops > 0.0 {
        peaks.push(format!("{}/s", flops(profile.peak_flops)));
    }
    if profile.peak_bandwidth > 0.0 {
        peaks.push(format!("{:.1} GB/s", profile.peak_bandwidth / 1e9));
    }
    let of_peak = if profile.peak_flops > 0.0 && all > 0.0 {
        format!(
            ", {:.0} % of peak",
            100.0 * total.flops / all / profile.peak_flops
        )
    } else {
        String::new()
    };
    let peaks = if peaks.is_empty() {
        "peaks unknown".to_owned()
    } else {
        format!("at most {}", peaks.join(" and "))
    };
    format!(
        "\nstage {}, batch {}, {}: {:.2} ms a step ({}, median of {}), {}{of_peak}; {peaks}\n\n{}\n\n{}\n",
        profile.stage,
        profile.batch,
        profile.device,
        all * 1e3,
        counted(profile.ops.len() as u64, "op"),
        counted(profile.runs as u64, "run"),
        flops(total.flops),
        table("kind of op", sorted(kinds), all),
        table("part of the model", sorted(parts), all),
    )
}

/// The step in the trace-event format that chrome://tracing and ui.perfetto.dev open; one row each for forward, backward
/// and update.
pub fn profile_trace(profile: &Profile) -> String {
    let rows = ["forward", "backward", "update"];
    let mut events: Vec<serde_json::Value> = rows
        .iter()
        .enumerate()
        .map(|(row, name)| {
            serde_json::json!({
                "ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name},
            })
        })
        .collect();
    let mut at = 0.0;
    for op in &profile.ops {
        let row = rows.iter().position(|name| *name == direction(op));
        let bound = op.bound(profile.peak_flops, profile.peak_bandwidth);
        events.push(serde_json::json!({
            "ph": "X", "name": op.name, "cat": module(op), "pid": 1, "tid": row, "ts": at * 1e6, "dur": op.seconds * 1e6,
            "args": {
                "scope": op.scope,
                "flops": op.cost.flops,
                "bytes": op.cost.bytes_read + op.cost.bytes_written,
                "share_of_roofline": if op.seconds > 0.0 { bound / op.seconds } else { 0.0 },
            },
        }));
        at += op.seconds;
    }
    let trace = serde_json::json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"stage": profile.stage, "device": profile.device, "batch": profile.batch},
    });
    trace.to_string()
}

const WIDTH: f64 = 1000.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;
const COLOURS: [&str; 6] = [
    "#3b82c4", "#e0913a", "#2f9e77", "#b05cc6", "#c9566b", "#8a8f98",
];

/// A box of the drawing and those above it.
#[derive(Default)]
struct Branch {
    seconds: f64,
    inner: BTreeMap<String, Branch>,
}

impl Branch {
    fn add(&mut self, path: &[&str], seconds: f64) {
        self.seconds += seconds;
        if let Some((first, rest)) = path.split_first() {
            let inner = self.inner.entry((*first).to_owned()).or_default();
            inner.add(rest, seconds);
        }
    }

    fn depth(&self) -> usize {
        1 + self.inner.values().map(Branch::depth).max().unwrap_or(0)
    }
}

/// The step as a self-contained SVG: direction, part, block and op on top of each other, each as wide as its time.
pub fn profile_drawing(profile: &Profile) -> String {
    let mut root = Branch::default();
    for op in &profile.ops {
        let mut path = vec![direction(op)];
        if path[0] != "update" {
            path.push(module(op));
            let rest = op.scope.split_once('.').map_or("", |(_, rest)| rest);
            if !rest.is_empty() {
                path.push(rest);
            }
        }
        path.push(&op.name);
        root.add(&path, op.seconds);
    }
    let height = TOP + ROW * root.depth() as f64 + 8.0;
    let title = format!(
        "One step of {}, {:.1} ms on {}",
        profile.stage,
        profile.seconds() * 1e3,
        profile.device
    );
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{0}">
<style>.ground{{fill:#fff}}.ink{{fill:#1d2330}}rect.b{{stroke:#fff;stroke-width:.7}}@media(prefers-color-scheme:dark){{.ground{{fill:#14171d}}.ink{{fill:#e8eaf0}}rect.b{{stroke:#14171d}}}}</style>
<rect class="ground" width="{WIDTH}" height="{height}"/>
<text class="ink" x="8" y="26" font-size="16" font-weight="600">{0}</text>
"##,
        escape(&title)
    );
    draw(&mut svg, &root, "step", [8.0, WIDTH - 16.0], 0, 5);
    svg + "</svg>\n"
}

/// Draws one box and what is inside it, the widest first.
fn draw(
    svg: &mut String,
    branch: &Branch,
    name: &str,
    [left, width]: [f64; 2],
    row: usize,
    colour: usize,
) {
    if width < 0.4 || branch.seconds <= 0.0 {
        return;
    }
    let y = TOP + ROW * row as f64;
    let label = format!("{name}, {:.2} ms", branch.seconds * 1e3);
    let _ = write!(
        svg,
        r#"<g><title>{0}</title><rect class="b" x="{left:.1}" y="{y:.1}" width="{width:.1}" height="{ROW}" fill="{1}" fill-opacity="{2}"/>"#,
        escape(&label),
        COLOURS[colour % COLOURS.len()],
        if row.is_multiple_of(2) { 0.95 } else { 0.8 }
    );
    let room = (width / 6.4) as usize;
    if room > 4 {
        let shown: String = label.chars().take(room - 1).collect();
        let _ = write!(
            svg,
            r##"<text x="{:.1}" y="{:.1}" fill="#fff">{}</text>"##,
            left + 4.0,
            y + 17.0,
            escape(&shown)
        );
    }
    svg.push_str("</g>\n");
    let mut inner: Vec<(&String, &Branch)> = branch.inner.iter().collect();
    inner.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let mut at = left;
    for (index, (name, part)) in inner.into_iter().enumerate() {
        let part_width = width * part.seconds / branch.seconds;
        let colour = if row == 0 { index } else { colour };
        draw(svg, part, name, [at, part_width], row + 1, colour);
        at += part_width;
    }
}
