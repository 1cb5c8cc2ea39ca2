//! What an image shows: the facts, before anything is drawn or said.

use super::held_out::held_out_digit;
use super::words::{COLOURS, DIGITS, SHAPES};
use keel_base::random::{Purpose, Stream};

/// Panels of an image.
pub const PANELS: usize = 4;

/// Names the draws of scenes among all draws of their purpose.
const SCENES: u64 = 0x7061_6e65_6c73;

/// Which combinations a scene is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Those that are trained on.
    Train,
    /// Those that never are, in every panel.
    HeldOut,
}

impl Split {
    /// The name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::HeldOut => "held-out",
        }
    }
}

/// One panel. Each number is an index into the words of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Panel {
    /// Into [`SHAPES`].
    pub shape: usize,
    /// Into [`COLOURS`].
    pub colour: usize,
    /// Into [`DIGITS`]: the digit itself.
    pub digit: usize,
}

/// The panels of an image in reading order: top left, top right, bottom left, bottom right. No two have the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    /// The panels.
    pub panels: [Panel; PANELS],
}

impl Scene {
    /// The scene `number` of the run's `seed`, of combinations that are trained on: a pure function of both. Every task of a
    /// run makes its samples of these scenes.
    pub fn of_training(seed: u64, number: u64) -> Scene {
        let mut stream = Stream::new(seed, Purpose::Text, SCENES, number);
        Scene::draw(&mut stream, Split::Train)
    }

    /// A scene: shapes without repetition, colours and digits independent of everything, as far as the split allows.
    pub fn draw(stream: &mut Stream, split: Split) -> Scene {
        let mut shapes: Vec<usize> = (0..SHAPES.len()).collect();
        stream.shuffle(&mut shapes);
        let panels = std::array::from_fn(|at| {
            let (shape, colour) = (shapes[at], stream.below(COLOURS.len()));
            let held_out = held_out_digit(shape, colour);
            let digit = match split {
                Split::HeldOut => held_out,
                Split::Train => {
                    let other = 1 + stream.below(DIGITS.len() - 1);
                    (held_out + other) % DIGITS.len()
                }
            };
            Panel {
                shape,
                colour,
                digit,
            }
        });
        Scene { panels }
    }

    /// The place of a shape, where it is there.
    pub fn place_of(&self, shape: usize) -> Option<usize> {
        self.panels.iter().position(|panel| panel.shape == shape)
    }

    /// How many panels have a colour.
    pub fn count_of(&self, colour: usize) -> usize {
        let panels = self.panels.iter();
        panels.filter(|panel| panel.colour == colour).count()
    }
}

/// The row of a place, from above.
pub fn row(place: usize) -> usize {
    place / 2
}

/// The column of a place, from the left.
pub fn column(place: usize) -> usize {
    place % 2
}
