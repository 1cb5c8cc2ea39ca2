//! Large images in tiles: a grid of squares of the tower's size whose proportions are nearest to the image's, and the
//! whole image beside them.
//!
//! Source: InternVL 1.5 (Chen et al. 2024, §3.2), dynamic resolution with a thumbnail; SAIL-VL tiles the same way.

use serde::{Deserialize, Serialize};

use super::image::Image;
use super::pixels::{Fit, Pixels};
use super::prepare::on_plain_background;

/// Into how many tiles images are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiling {
    /// Tiles of one image, at most.
    pub most: usize,
    /// Tiles of a batch and images of samples that show several, N; 0 leaves no room for any.
    pub slots: usize,
}

impl Tiling {
    /// Images stay whole.
    pub const NONE: Tiling = Tiling { most: 0, slots: 0 };

    /// Whether images are cut.
    pub fn is_on(&self) -> bool {
        self.slots > 0
    }
}

/// Columns and rows of the grid for an image: at most `most` tiles of `side` pixels. [1, 1] leaves it whole.
///
/// Of all grids the one whose proportions differ least from the image's; of several that differ alike a larger one, as
/// long as the image has more than half the pixels of the grid.
pub fn grid([width, height]: [u32; 2], most: usize, side: u32) -> [u32; 2] {
    let most = most as u32;
    let mut grids: Vec<[u32; 2]> = (1..=most)
        .flat_map(|columns| (1..=most / columns).map(move |rows| [columns, rows]))
        .collect();
    grids.sort_by_key(|[columns, rows]| (columns * rows, *columns));
    let proportion = f64::from(width) / f64::from(height);
    let area = f64::from(width) * f64::from(height);
    let (mut best, mut least) = ([1, 1], f64::INFINITY);
    for [columns, rows] in grids {
        let difference = (proportion - f64::from(columns) / f64::from(rows)).abs();
        let pixels = f64::from(side) * f64::from(side) * f64::from(columns * rows);
        if difference < least || (difference == least && area > 0.5 * pixels) {
            (best, least) = ([columns, rows], difference);
        }
    }
    best
}

/// Tiles of a grid: none where it leaves an image whole.
pub fn tiles_of([columns, rows]: [u32; 2]) -> usize {
    match columns * rows {
        1 => 0,
        tiles => tiles as usize,
    }
}

impl Pixels {
    /// An image's tiles, row by row, each `side` pixels square: it is scaled to the grid whatever that does to its
    /// proportions. None where the grid leaves it whole.
    pub fn tiles(&self, image: &Image, [columns, rows]: [u32; 2], side: u32) -> Vec<Image> {
        if tiles_of([columns, rows]) == 0 {
            return Vec::new();
        }
        let image = on_plain_background(image);
        let scaled = image.resize(columns * side, rows * side, self.filter);
        let corners = (0..rows).flat_map(|row| (0..columns).map(move |column| [column, row]));
        let tile = |[column, row]: [u32; 2]| {
            let [left, top] = [column * side, row * side].map(i64::from);
            scaled.crop(left, top, side, side)
        };
        corners.map(tile).collect()
    }

    /// As they are beside tiles: whole images are stretched to the square, as tiles are to their grid.
    pub fn beside_tiles(&self) -> Pixels {
        Pixels {
            fit: Fit::Stretch,
            ..*self
        }
    }
}
