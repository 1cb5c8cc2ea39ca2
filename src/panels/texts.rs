//! What is said of a scene.

use super::scene::{PANELS, Scene, column, row};
use super::words::{COLOURS, COLUMNS, DIGITS, ROWS, SHAPES};

/// The shapes in the order of their list: no colour, no place, no digit. Scenes with the same shapes have the same.
pub fn short_caption(scene: &Scene) -> String {
    let mut shapes = scene.panels.map(|panel| panel.shape);
    shapes.sort_unstable();
    shapes.map(|shape| SHAPES[shape]).concat()
}

/// Everything, panel by panel in reading order.
pub fn dense_caption(scene: &Scene) -> String {
    facts(scene, std::array::from_fn(|at| at))
}

/// Everything, panel by panel in the given order of places.
pub fn facts(scene: &Scene, order: [usize; PANELS]) -> String {
    let panels = order.map(|place| {
        let panel = scene.panels[place];
        format!(
            "{}{}{}{} {}",
            ROWS[row(place)],
            COLUMNS[column(place)],
            COLOURS[panel.colour],
            SHAPES[panel.shape],
            DIGITS[panel.digit]
        )
    });
    panels.join(",")
}
