//! Line charts and clouds of points as SVG: light and dark by the page's colours, every number also in a table.

use std::fmt::Write as _;

use super::html::{details, table};
use crate::table::Table;
use keel_engine::program::escape;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 34.0;
/// Colours of the page's style.
const COLOURS: usize = 6;
/// Rows of the table beside a chart, about.
const TABLE_ROWS: usize = 24;

/// One line of a chart.
pub(super) struct Line {
    pub name: String,
    /// In pieces, each drawn without a gap.
    pub pieces: Vec<Vec<[f64; 2]>>,
}

/// Lines over one axis.
pub(super) struct Chart {
    pub title: String,
    /// What is up.
    pub unit: String,
    /// What is to the right.
    pub along: String,
    pub lines: Vec<Line>,
    /// Named stretches to the right, with first and last place.
    pub bands: Vec<(String, [f64; 2])>,
    /// Names of places to the right, instead of numbers.
    pub places: Vec<String>,
    /// Whether up is a logarithm.
    pub is_log: bool,
}

/// A number with few digits.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "not finite".into(),
        0.0 => "0".into(),
        s if s < 1e-3 => format!("{value:.1e}"),
        s if s < 1.0 => trimmed(format!("{value:.4}")),
        s if s < 100.0 => trimmed(format!("{value:.2}")),
        s if s < 1e4 => trimmed(format!("{value:.0}")),
        s if s < 1e6 => format!("{:.0}k", value / 1e3),
        _ => format!("{value:.1e}"),
    }
}

fn trimmed(text: String) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// About four round numbers from `low` to `high`.
fn ticks(low: f64, high: f64, is_log: bool) -> Vec<f64> {
    if is_log {
        let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let all = (from..=to).map(|power| 10f64.powi(power));
        return all.filter(|t| (low..=high).contains(t)).collect();
    }
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|k| k as f64 * step).collect()
}

impl Chart {
    fn points(&self) -> impl Iterator<Item = &[f64; 2]> {
        let pieces = self.lines.iter().flat_map(|line| &line.pieces);
        pieces.flatten().filter(|point| self.is_drawn(point))
    }

    fn is_drawn(&self, point: &[f64; 2]) -> bool {
        point[1].is_finite() && (!self.is_log || point[1] > 0.0)
    }

    /// The extent along `axis`, never empty.
    fn extent(&self, axis: usize) -> [f64; 2] {
        let values = self.points().map(|point| point[axis]);
        let bands = self.bands.iter().flat_map(|(_, band)| *band);
        let all = values.chain(bands.filter(|_| axis == 0));
        let [low, high] = all.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], x| {
            [low.min(x), high.max(x)]
        });
        match (low.is_finite(), axis, self.is_log) {
            (false, ..) => [0.0, 1.0],
            _ if low == high => [low - 0.5, high + 0.5],
            (_, 0, _) => [low, high],
            (_, _, true) => [low / 1.2, high * 1.2],
            (_, _, false) => {
                let margin = 0.06 * (high - low);
                // Nothing is made to look large by cutting its foot off where zero is near.
                let floor = if low >= 0.0 && low < 0.4 * high {
                    0.0
                } else {
                    low - margin
                };
                [floor, high + margin]
            }
        }
    }

    /// A figure with the chart, its legend and its numbers; nothing without points.
    pub fn figure(&self) -> String {
        if self.points().next().is_none() {
            return String::new();
        }
        let mut html = format!(
            "<figure><h3>{}</h3>\n<div class=\"scroll\">{}</div>\n",
            escape(&self.title),
            self.svg()
        );
        if self.lines.len() > 1 {
            html += "<ul class=\"legend\">";
            for (index, line) in self.lines.iter().enumerate() {
                let _ = write!(
                    html,
                    "<li><i style=\"background:var(--c{})\"></i>{}</li>",
                    index % COLOURS,
                    escape(&line.name)
                );
            }
            html += "</ul>\n";
        }
        html + &details("Numbers", &self.numbers()) + "</figure>\n"
    }

    fn svg(&self) -> String {
        let ([x0, x1], [y0, y1]) = (self.extent(0), self.extent(1));
        let across = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let share = |y: f64| {
            if self.is_log {
                (y / y0).ln() / (y1 / y0).ln()
            } else {
                (y - y0) / (y1 - y0)
            }
        };
        let up = |y: f64| HEIGHT - BOTTOM - share(y) * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(&self.described())
        );
        for (index, (name, [from, to])) in self.bands.iter().enumerate() {
            let (left, right) = (across(*from), across(*to));
            if index % 2 == 0 {
                let _ = write!(
                    svg,
                    "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                    right - left,
                    HEIGHT - TOP - BOTTOM
                );
            }
            // A name that does not fit is cut: the table and the hover text have it whole.
            let room = ((right - left) / 6.6) as usize;
            let shown: String = name.chars().take(room.max(1)).collect();
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"15\" text-anchor=\"middle\">{}<title>{}</title></text>",
                (left + right) / 2.0,
                escape(&shown),
                escape(name)
            );
        }
        for tick in ticks(y0, y1, self.is_log) {
            let y = up(tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(tick)
            );
        }
        let places: Vec<(f64, String)> = if self.places.is_empty() {
            ticks(x0, x1, false)
                .into_iter()
                .map(|tick| (tick, short(tick)))
                .collect()
        } else {
            self.places
                .iter()
                .enumerate()
                .map(|(index, name)| (index as f64, name.clone()))
                .collect()
        };
        for (at, name) in places {
            let anchor = match () {
                () if at <= x0 && !self.places.is_empty() => "start",
                () if at >= x1 => "end",
                () => "middle",
            };
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                across(at),
                HEIGHT - BOTTOM + 16.0,
                escape(&name)
            );
        }
        for (index, line) in self.lines.iter().enumerate() {
            for piece in &line.pieces {
                self.draw_piece(&mut svg, piece, (index, &line.name), &across, &up);
            }
        }
        svg + "</svg>"
    }

    fn draw_piece(
        &self,
        svg: &mut String,
        piece: &[[f64; 2]],
        (index, name): (usize, &str),
        across: &dyn Fn(f64) -> f64,
        up: &dyn Fn(f64) -> f64,
    ) {
        let drawn = piece.iter().filter(|point| self.is_drawn(point));
        let at: Vec<[f64; 2]> = drawn.map(|[x, y]| [across(*x), up(*y)]).collect();
        let colour = index % COLOURS;
        let marks = at.len() == 1 || !self.places.is_empty();
        if at.len() > 1 {
            let points: Vec<String> = at.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                svg,
                "<polyline stroke=\"var(--c{colour})\" points=\"{}\"><title>{}</title></polyline>",
                points.join(" "),
                escape(name)
            );
        }
        if marks {
            for ([x, y], [_, value]) in at.iter().zip(piece.iter().filter(|p| self.is_drawn(p))) {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" fill=\"var(--c{colour})\"><title>{}: {}</title></circle>",
                    escape(name),
                    short(*value)
                );
            }
        }
    }

    /// The chart in a sentence.
    fn described(&self) -> String {
        let ends = self.lines.iter().filter_map(|line| {
            let mut points = line.pieces.iter().flatten().filter(|p| self.is_drawn(p));
            let first = points.next()?[1];
            let last = points.next_back().map_or(first, |point| point[1]);
            Some(format!(
                "{} from {} to {}",
                line.name,
                short(first),
                short(last)
            ))
        });
        format!(
            "{} ({}) over {}: {}",
            self.title,
            self.unit,
            self.along,
            ends.collect::<Vec<_>>().join("; ")
        )
    }

    fn numbers(&self) -> String {
        let mut places: Vec<f64> = self.points().map(|point| point[0]).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let each = places.len().div_ceil(TABLE_ROWS).max(1);
        let last = places.len() - 1;
        let mut rows = vec![vec![self.along.clone()]];
        rows[0].extend(self.lines.iter().map(|line| line.name.clone()));
        let shown = places.iter().enumerate();
        for (_, place) in shown.filter(|(index, _)| index % each == 0 || *index == last) {
            let name = match self.places.get(*place as usize) {
                Some(name) => name.clone(),
                None => short(*place),
            };
            let value = |line: &Line| {
                let mut points = line.pieces.iter().flatten();
                let found = points.find(|point| point[0] == *place && self.is_drawn(point));
                found.map_or("–".to_owned(), |point| short(point[1]))
            };
            let mut row = vec![name];
            row.extend(self.lines.iter().map(value));
            rows.push(row);
        }
        table(&format!("{}, {}", self.title, self.unit), &Table { rows })
    }
}
