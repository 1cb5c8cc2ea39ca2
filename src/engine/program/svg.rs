//! The activations of a step drawn: address upwards, time to the right, one rectangle a value.

use std::fmt::Write;

use super::{Class, Program};
use keel_base::units::bytes;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 84.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 56.0;
const RIGHT: f64 = 24.0;

/// Colours of the classes, legible on light and dark ground.
fn colour(class: Class) -> &'static str {
    match class {
        Class::Input => "#8a8f98",
        Class::Saved => "#3b82c4",
        Class::Transient => "#e0913a",
        Class::Workspace => "#b05cc6",
    }
}

/// `text` as it may stand between tags and inside quoted attributes. Marks that change the direction of what follows them are
/// written out: left as they are, they let a text show itself, and what stands beside it, in another order.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                let _ = write!(escaped, "[U+{:04X}]", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// The arena of `program` as a self-contained SVG titled `title`.
pub fn draw_memory(program: &Program, title: &str) -> String {
    let mut svg = String::new();
    draw_ground(&mut svg, program, title);
    let scales = Scales::of(program);
    draw_addresses(&mut svg, &scales);
    draw_values(&mut svg, &scales, program);
    draw_border(&mut svg, &scales, program);
    draw_legend(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

/// How ops and addresses map to the drawing.
struct Scales {
    ops: f64,
    arena: f64,
}

impl Scales {
    fn of(program: &Program) -> Scales {
        Scales {
            ops: program.ops().len().max(1) as f64,
            arena: (program.arena_bytes() as f64).max(1.0),
        }
    }

    fn x(&self, op: f64) -> f64 {
        LEFT + op / self.ops * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, address: f64) -> f64 {
        HEIGHT - BOTTOM - address / self.arena * (HEIGHT - TOP - BOTTOM)
    }
}

/// The head of the file, the ground, and what the drawing is of.
fn draw_ground(svg: &mut String, program: &Program, title: &str) {
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{0}">
<style>.ground{{fill:#fff}}.ink{{fill:#1d2330}}.faint{{fill:#667}}.line{{stroke:#99a;stroke-width:1}}rect.v{{stroke:#fff;stroke-width:.4;stroke-opacity:.7}}@media(prefers-color-scheme:dark){{.ground{{fill:#14171d}}.ink{{fill:#e8eaf0}}.faint{{fill:#9aa}}rect.v{{stroke:#14171d}}}}</style>
<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>
<text class="ink" x="{LEFT}" y="26" font-size="17" font-weight="600">{0}</text>
"##,
        escape(title)
    );
    let _ = writeln!(
        svg,
        r#"<text class="faint" x="{LEFT}" y="46">{} ops; arena {}, lower bound {}, ratio {:.3}</text>"#,
        program.ops().len(),
        bytes(program.arena_bytes() as u64),
        bytes(program.lower_bound()),
        program.arena_bytes() as f64 / (program.lower_bound() as f64).max(1.0),
    );
}

/// Addresses on the left, with a line across at each.
fn draw_addresses(svg: &mut String, scales: &Scales) {
    for part in 0..=4 {
        let address = scales.arena * f64::from(part) / 4.0;
        let _ = writeln!(
            svg,
            r#"<line class="line" x1="{:.1}" x2="{:.1}" y1="{2:.1}" y2="{2:.1}" stroke-opacity=".35"/><text class="faint" x="{3:.1}" y="{4:.1}" text-anchor="end">{5}</text>"#,
            LEFT,
            WIDTH - RIGHT,
            scales.y(address),
            LEFT - 8.0,
            scales.y(address) + 4.0,
            bytes(address as u64),
        );
    }
}

/// A rectangle for every value: over the ops at which it lives, at its place.
fn draw_values(svg: &mut String, scales: &Scales, program: &Program) {
    for value in program.planned() {
        let (left, right) = (
            scales.x(f64::from(value.lower)),
            scales.x(f64::from(value.upper)),
        );
        let (top, bottom) = (
            scales.y((value.offset + value.bytes) as f64),
            scales.y(value.offset as f64),
        );
        // Thinner than can be seen: leaving these out keeps the drawing of a long step small.
        if bottom - top < 0.15 {
            continue;
        }
        let _ = writeln!(
            svg,
            r#"<rect class="v" x="{left:.2}" y="{top:.2}" width="{:.2}" height="{:.2}" fill="{}"><title>{}: {}, ops {}–{}</title></rect>"#,
            (right - left).max(0.3),
            bottom - top,
            colour(value.class),
            escape(&value.name),
            bytes(value.bytes),
            value.lower,
            value.upper - 1,
        );
    }
}

/// A line between the forward part and the rest.
fn draw_border(svg: &mut String, scales: &Scales, program: &Program) {
    let backward = program
        .ops()
        .iter()
        .position(|op| op.instruction.is_backward);
    if let Some(first) = backward {
        let at = scales.x(first as f64);
        let _ = writeln!(
            svg,
            r#"<line class="line" x1="{at:.1}" x2="{at:.1}" y1="{:.1}" y2="{:.1}" stroke-dasharray="4 4"/><text class="faint" x="{:.1}" y="{3:.1}" text-anchor="end">forward</text><text class="faint" x="{4:.1}" y="{3:.1}">backward, update</text>"#,
            TOP - 8.0,
            HEIGHT - BOTTOM,
            at - 8.0,
            HEIGHT - BOTTOM + 18.0,
            at + 8.0,
        );
    }
}

/// The classes and their colours.
fn draw_legend(svg: &mut String) {
    let mut at = LEFT;
    for class in [
        Class::Input,
        Class::Saved,
        Class::Transient,
        Class::Workspace,
    ] {
        let _ = writeln!(
            svg,
            r#"<rect x="{at:.1}" y="{:.1}" width="12" height="12" fill="{}"/><text class="ink" x="{:.1}" y="{:.1}">{}</text>"#,
            HEIGHT - 22.0,
            colour(class),
            at + 18.0,
            HEIGHT - 11.5,
            class.name(),
        );
        at += 18.0 + 8.0 * class.name().len() as f64 + 24.0;
    }
}
