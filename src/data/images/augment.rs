//! Augmentation: how far images are shifted, scaled, turned, mirrored and recoloured. Every draw comes from the stream
//! of the sample's look.

use super::frame::Tint;
use keel_base::random::Stream;

/// How strongly the look of images varies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augmentation {
    /// How much of the range of shifts and sizes is used, 0..1; at 0 images are centred and as large as can be.
    pub geometry: f32,
    /// Largest turn in radians, of images that may be turned.
    pub turn: f32,
    /// Whether images may be mirrored, where that leaves them true.
    pub mirror: bool,
    /// Strength of the colour change: 0 none, 1 as trained.
    pub colour: f32,
    /// Share of images that get a coloured background instead of the plain one.
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

    /// The same with a coloured background on every image, for tasks that ask for it.
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

    /// A size between `least` and `most`, near the largest when augmentation is weak.
    pub fn side(&self, least: f32, most: f32, look: &mut Stream) -> f32 {
        most - (most - look.between(least, most)) * self.geometry
    }

    /// How far a centre may stray.
    pub fn stray(&self, most: f32) -> f32 {
        most * self.geometry
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
}
