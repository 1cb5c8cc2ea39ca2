//! The outlines of shapes and digits in pixels. They are computed once for each size of a panel; drawing copies them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};

use super::words::SHAPES;

/// Share of a panel's side that a shape takes; what is left is room for its shift.
const SHAPE_SHARE: (usize, usize) = (7, 8);

/// Samples along a pixel's side, of which those inside the outline are counted.
const SAMPLES: usize = 4;

/// Sizes whose stencils are kept. A run draws one.
const KEPT: usize = 64;

/// Rows of the digits' font, three dots each, the left one in the highest of three bits.
const FONT: [[u8; 5]; 10] = [
    [0b111, 0b101, 0b101, 0b101, 0b111],
    [0b010, 0b110, 0b010, 0b010, 0b111],
    [0b111, 0b001, 0b111, 0b100, 0b111],
    [0b111, 0b001, 0b111, 0b001, 0b111],
    [0b101, 0b101, 0b111, 0b001, 0b001],
    [0b111, 0b100, 0b111, 0b001, 0b111],
    [0b111, 0b100, 0b111, 0b101, 0b111],
    [0b111, 0b001, 0b010, 0b010, 0b010],
    [0b111, 0b101, 0b111, 0b101, 0b111],
    [0b111, 0b101, 0b111, 0b001, 0b111],
];

/// Dots of a digit, across and down.
pub const DOTS: [usize; 2] = [3, 5];

/// Every shape and digit at the size of one panel.
#[derive(Debug)]
pub struct Stencils {
    /// Pixels along the side of a shape.
    pub side: usize,
    /// Pixels along the side of a digit's dot.
    pub dot: usize,
    /// Pixels that a shape can be shifted by from the middle of its panel.
    pub room: usize,
    /// For each shape the share of each pixel that it covers, [side, side].
    coverage: Vec<Vec<f32>>,
}

impl Stencils {
    /// Those for panels of `panel` pixels.
    pub fn of(panel: usize) -> Arc<Stencils> {
        static MADE: OnceLock<RwLock<HashMap<usize, Arc<Stencils>>>> = OnceLock::new();
        let made = MADE.get_or_init(RwLock::default);
        if let Some(known) = made.read().expect("no holder panics").get(&panel) {
            return known.clone();
        }
        let new = Arc::new(Stencils::new(panel));
        let mut made = made.write().expect("no holder panics");
        if made.len() < KEPT {
            made.insert(panel, new.clone());
        }
        new
    }

    fn new(panel: usize) -> Stencils {
        let side = panel * SHAPE_SHARE.0 / SHAPE_SHARE.1;
        let coverage = (0..SHAPES.len())
            .map(|shape| covered(shape, side))
            .collect();
        Stencils {
            side,
            // At the 28 pixels of an image of 64 a dot has three, and the digit stays inside of every shape.
            dot: (3 * side / 28).max(1),
            room: (panel - side) / 2,
            coverage,
        }
    }

    /// The share of each pixel that a shape covers, [side, side].
    pub fn shape(&self, shape: usize) -> &[f32] {
        &self.coverage[shape]
    }

    /// The corner of the digit on a shape, in pixels from the shape's own.
    pub fn digit_corner(&self, shape: usize) -> [usize; 2] {
        let middle = digit_middle(shape);
        std::array::from_fn(|axis| {
            let centre = 0.5 * self.side as f32 * (1.0 + middle[axis]);
            let corner = centre - 0.5 * (DOTS[axis] * self.dot) as f32;
            corner.round().max(0.0) as usize
        })
    }

    /// Whether a digit has ink at a pixel from its corner.
    pub fn has_ink(&self, digit: usize, [x, y]: [usize; 2]) -> bool {
        let (column, row) = (x / self.dot, y / self.dot);
        FONT[digit][row] >> (DOTS[0] - 1 - column) & 1 == 1
    }
}

fn covered(shape: usize, side: usize) -> Vec<f32> {
    let step = 1.0 / (SAMPLES as f32);
    let place = |pixel: usize, sample: usize| {
        let at = pixel as f32 + (sample as f32 + 0.5) * step;
        2.0 * at / side as f32 - 1.0
    };
    let mut coverage = Vec::with_capacity(side * side);
    for y in 0..side {
        for x in 0..side {
            let samples = (0..SAMPLES).flat_map(|j| (0..SAMPLES).map(move |i| [i, j]));
            let inside = samples.filter(|[i, j]| is_inside(shape, place(x, *i), place(y, *j)));
            coverage.push(inside.count() as f32 / (SAMPLES * SAMPLES) as f32);
        }
    }
    coverage
}

fn in_box(x: f32, y: f32, [left, right]: [f32; 2], [top, bottom]: [f32; 2]) -> bool {
    (left..=right).contains(&x) && (top..=bottom).contains(&y)
}

fn in_disc(x: f32, y: f32, [cx, cy]: [f32; 2], radius: f32) -> bool {
    (x - cx).powi(2) + (y - cy).powi(2) <= radius * radius
}

/// Whether a point of the square from −1 to 1, y downward, lies in a shape.
fn is_inside(shape: usize, x: f32, y: f32) -> bool {
    match SHAPES[shape].trim_start() {
        "arrow" => {
            let head = (-1.0..=-0.1).contains(&y) && x.abs() <= (y + 1.0) * 1.05;
            head || in_box(x, y, [-0.45, 0.45], [-0.1, 1.0])
        }
        "button" => {
            let beyond = [x, y].map(|at| (at.abs() - 0.5).max(0.0));
            in_disc(beyond[0], beyond[1], [0.0, 0.0], 0.42)
        }
        "face" => {
            let ear = in_disc(x.abs(), y, [0.66, -0.66], 0.32);
            ear || in_disc(x, y, [0.0, 0.08], 0.9)
        }
        "flag" => {
            let notch = x > 1.0 - 0.45 * (1.0 - (y + 0.275).abs() / 0.625);
            let cloth = in_box(x, y, [-0.84, 1.0], [-0.9, 0.35]) && !notch;
            cloth || in_box(x, y, [-1.0, -0.82], [-1.0, 1.0])
        }
        "hand" => {
            let palm = in_box(x, y, [-0.6, 0.6], [-0.15, 1.0]);
            let to_finger = [0.15, 0.45].map(|middle: f32| (x.abs() - middle).abs());
            let finger = to_finger[0].min(to_finger[1]) <= 0.1 && (-1.0..=0.0).contains(&y);
            let along = (x - 0.5) - 0.9 * (0.45 - y);
            let thumb = along.abs() <= 0.2 && (0.5..=0.98).contains(&x);
            palm || finger || thumb
        }
        "heart" => {
            let (x, y) = (1.2 * x, 0.15 - 1.2 * y);
            (x * x + y * y - 1.0).powi(3) <= x * x * y.powi(3)
        }
        "key" => {
            let bow = in_disc(x, y, [0.0, -0.32], 0.68);
            let shaft = in_box(x, y, [-0.16, 0.16], [0.3, 1.0]);
            let teeth = in_box(x, y, [0.1, 0.5], [0.5, 0.68]);
            bow || shaft || teeth || in_box(x, y, [0.1, 0.5], [0.82, 1.0])
        }
        "person" => {
            let shoulders = (x / 0.64).powi(2) + (y.min(0.0) / 0.42).powi(2) <= 1.0;
            let body = shoulders && (-0.42..=1.0).contains(&y);
            body || in_disc(x, y, [0.0, -0.71], 0.28)
        }
        "picture" => in_box(x, y, [-1.0, 1.0], [-0.66, 0.66]),
        "sign" => x.abs() + y.abs() <= 1.0,
        "stand" => {
            let slope = x.abs() <= 0.5 + 0.5 * (y + 0.75) / 1.7;
            let foot = slope && (-0.75..=0.95).contains(&y);
            foot || in_box(x, y, [-0.8, 0.8], [-0.95, -0.74])
        }
        "v" => (-0.95..=1.0).contains(&y) && x.abs() <= 0.5 * (1.0 - y),
        other => unreachable!("{other} has no outline"),
    }
}

/// The middle of the digit on a shape, in the same square: where there is room for it.
fn digit_middle(shape: usize) -> [f32; 2] {
    match SHAPES[shape].trim_start() {
        "arrow" => [0.0, 0.36],
        "flag" => [-0.15, -0.275],
        "hand" => [0.0, 0.4],
        "heart" => [0.0, -0.1],
        "key" => [0.0, -0.32],
        "person" => [0.0, 0.36],
        "stand" => [0.0, 0.1],
        "v" => [0.0, -0.36],
        _ => [0.0, 0.0],
    }
}
