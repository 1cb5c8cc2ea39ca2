//! Augmentation: how far pictures are shifted, scaled, turned, mirrored and recoloured. Every draw comes from the stream
//! of the sample's look. Left and right are swapped only where the concept stays the same; things that are read are
//! barely turned; the result always lies inside the frame.

use super::colours::Colour;
use super::embedded::Artist;
use super::library::{Entry, Library};
use super::scenes::{PLAIN_BACKGROUND, background_of};
use super::sprite::{Placement, Tint};
use keel_base::random::Stream;

/// How strongly the look of pictures varies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augmentation {
    /// How much of the range of shifts and sizes is used, 0..1; at 0 pictures are centred and as large as can be.
    pub geometry: f32,
    /// Largest turn in radians; a quarter of it for things that are read.
    pub turn: f32,
    /// Whether pictures may be mirrored.
    pub mirror: bool,
    /// Strength of the colour change: 0 none, 1 as trained.
    pub colour: f32,
    /// Share of pictures that get a coloured background instead of the plain one.
    pub background: f32,
}

impl Augmentation {
    /// What training uses.
    pub const TRAINING: Augmentation = Augmentation {
        geometry: 1.0,
        turn: 0.25,
        mirror: true,
        colour: 1.0,
        background: 1.0,
    };

    /// Centred, upright, full size, on the plain background.
    pub const NONE: Augmentation = Augmentation {
        geometry: 0.0,
        turn: 0.0,
        mirror: false,
        colour: 0.0,
        background: 0.0,
    };

    /// Between [`Augmentation::NONE`] at 0 and [`Augmentation::TRAINING`] at 1; values outside are taken as the nearer
    /// end.
    pub fn of_strength(strength: f32) -> Augmentation {
        let strength = strength.clamp(0.0, 1.0);
        let full = Augmentation::TRAINING;
        Augmentation {
            geometry: strength,
            turn: full.turn * strength,
            mirror: strength > 0.0,
            colour: strength,
            background: strength,
        }
    }

    /// The same with a coloured background on every picture, for tasks that ask for it.
    pub fn coloured_background(self) -> Augmentation {
        Augmentation {
            background: 1.0,
            ..self
        }
    }

    /// The same without any colour change, for tasks that speak about colours.
    pub fn true_colours(self) -> Augmentation {
        Augmentation {
            colour: 0.0,
            ..self
        }
    }

    /// A turn for `concept`.
    pub fn rotation(&self, concept: &Entry, look: &mut Stream) -> f32 {
        let most = if concept.reading.is_some() {
            self.turn / 4.0
        } else {
            self.turn
        };
        look.between(-most, most)
    }

    /// Whether `concept` is mirrored this time.
    pub fn mirrored(&self, concept: &Entry, look: &mut Stream) -> bool {
        self.mirror & concept.mirror_safe & look.chance(0.5)
    }

    /// A size between `least` and `most`, near the largest when augmentation is weak.
    pub fn side(&self, least: f32, most: f32, look: &mut Stream) -> f32 {
        most - (most - look.between(least, most)) * self.geometry
    }

    /// How far a centre may stray.
    pub fn stray(&self, most: f32) -> f32 {
        most * self.geometry
    }

    /// The placement moved as little as needed to lie inside the frame.
    pub fn inside(&self, concept: &Entry, artist: Artist, mut placement: Placement) -> Placement {
        let [left, top, right, bottom] = concept.sprite(artist).covered(&placement);
        for (axis, (low, high)) in [(left, right), (top, bottom)].into_iter().enumerate() {
            placement.centre[axis] += (-low).max(0.0) - (high - 1.0).max(0.0);
        }
        placement
    }

    /// A colour change of the finished frame.
    pub fn tint(&self, look: &mut Stream) -> Tint {
        let mut vary = |reach: f32| look.between(-reach, reach) * self.colour;
        Tint {
            brightness: vary(16.0),
            contrast: 1.0 + vary(0.15),
            saturation: 1.0 + vary(0.2),
        }
    }

    /// A background that differs in colour from everything large in `concepts`.
    pub fn background(
        &self,
        library: &Library,
        artist: Artist,
        concepts: &[usize],
        look: &mut Stream,
    ) -> [u8; 3] {
        if !look.chance(self.background) {
            return PLAIN_BACKGROUND;
        }
        let mut colours: Vec<Colour> = Colour::ALL.to_vec();
        look.shuffle(&mut colours);
        let hidden = |colour: Colour| {
            concepts
                .iter()
                .map(|&index| library.concept(index).palette(artist).share(colour))
                .fold(0.0, f32::max)
        };
        let colour = colours
            .iter()
            .copied()
            .find(|&colour| hidden(colour) < 0.25)
            .unwrap_or_else(|| {
                let order = |x: &Colour, y: &Colour| hidden(*x).total_cmp(&hidden(*y));
                colours
                    .iter()
                    .copied()
                    .min_by(order)
                    .unwrap_or(Colour::White)
            });
        background_of(colour, look)
    }
}
