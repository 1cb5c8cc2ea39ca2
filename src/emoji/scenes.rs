//! Scenes: one to four concepts on a plain background, laid out so that every statement about their places is clear.
//! A scene is a description in units of the frame's side; the same description renders at any image size.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::embedded::Vendor;
use super::emoji_set::{EmojiSet, Pool};
use super::sprite::Placement;
use super::variation;
use keel_base::random::Stream;
use keel_data::augment::Augmentation;
use keel_data::frame::{Drawing, Frame, Tint};
use keel_data::sample::View;

/// One concept in a scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Index in the set.
    pub concept: usize,
    /// Where and how it is drawn.
    pub placement: Placement,
}

/// An image to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Whose images are shown.
    pub vendor: Vendor,
    /// The colour behind the objects.
    pub background: [u8; 3],
    /// The colour change of the finished frame.
    pub tint: Tint,
    /// The objects, in reading order of their slots.
    pub objects: Vec<Object>,
    /// Where the slots are.
    pub arrangement: Arrangement,
}

impl Scene {
    /// The words for the place of the object `at`.
    pub fn place(&self, at: usize) -> &'static str {
        self.arrangement.slots()[at].1
    }

    /// Draws the scene as normalised planes `[3, side, side]` into `out`.
    pub fn render(&self, emoji: &EmojiSet, side: usize, out: &mut [f32]) {
        let mut frame = Frame::new(side, self.background);
        for object in &self.objects {
            let sprite = emoji.concept(object.concept).sprite(self.vendor);
            sprite.draw(&object.placement, &mut frame);
        }
        frame.write_normalised(self.tint, out);
    }

    /// The scene as a sample shows it, drawn from the concepts of `emoji`.
    pub fn view(self, emoji: &Arc<EmojiSet>) -> View {
        View::Drawn(Arc::new(DrawnScene {
            emoji: emoji.clone(),
            scene: self,
        }))
    }

    /// The scene that a view shows; nothing where it shows none.
    pub fn of(view: &View) -> Option<&Scene> {
        let View::Drawn(drawing) = view else {
            return None;
        };
        let drawing: &dyn Any = drawing.as_ref();
        let drawn = drawing.downcast_ref::<DrawnScene>()?;
        Some(&drawn.scene)
    }
}

/// A scene with the concepts that it is drawn from.
struct DrawnScene {
    emoji: Arc<EmojiSet>,
    scene: Scene,
}

impl fmt::Debug for DrawnScene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scene.fmt(f)
    }
}

impl Drawing for DrawnScene {
    fn draw(&self, side: usize, out: &mut [f32]) {
        self.scene.render(&self.emoji, side, out);
    }
}

/// Where one object lies as seen from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Side {
    Left,
    Right,
    Above,
    Below,
}

impl Side {
    /// All sides.
    pub const ALL: [Side; 4] = [Side::Left, Side::Right, Side::Above, Side::Below];

    /// The word of an answer.
    pub fn word(self) -> &'static str {
        match self {
            Side::Left => "left",
            Side::Right => "right",
            Side::Above => "above",
            Side::Below => "below",
        }
    }

    /// The words before a name: "left of", "above".
    pub fn relation(self) -> &'static str {
        match self {
            Side::Left => "left of",
            Side::Right => "right of",
            Side::Above => "above",
            Side::Below => "below",
        }
    }

    /// The side of `of` on which `what` lies, where that is clear: the centres differ by at least a quarter of the frame
    /// along one axis, and by at most half of that along the other.
    pub fn between(what: &Object, of: &Object) -> Option<Side> {
        let dx = what.placement.centre[0] - of.placement.centre[0];
        let dy = what.placement.centre[1] - of.placement.centre[1];
        // Far apart on one axis and close on the other: what lies diagonally is on no side, and nothing is asked of it.
        let clear = |long: f32, short: f32| long.abs() >= 0.25 && short.abs() <= long.abs() / 2.0;
        if clear(dx, dy) {
            Some(if dx < 0.0 { Side::Left } else { Side::Right })
        } else if clear(dy, dx) {
            Some(if dy < 0.0 { Side::Above } else { Side::Below })
        } else {
            None
        }
    }
}

/// How the objects of a scene are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Arrangement {
    Single,
    Row2,
    Column2,
    Row3,
    Column3,
    PointUp,
    PointDown,
    Square,
}

impl Arrangement {
    /// The arrangements of `count` objects.
    pub fn of_count(count: usize) -> &'static [Arrangement] {
        match count {
            0 | 1 => &[Arrangement::Single],
            2 => &[Arrangement::Row2, Arrangement::Column2],
            3 => &[
                Arrangement::Row3,
                Arrangement::Column3,
                Arrangement::PointUp,
                Arrangement::PointDown,
            ],
            _ => &[Arrangement::Square],
        }
    }

    /// The slots: centre (x, y) and the words for the place, empty where a place has no short name.
    pub fn slots(self) -> &'static [([f32; 2], &'static str)] {
        const Q: f32 = 0.26;
        const R: f32 = 1.0 - Q;
        const T: f32 = 0.175;
        const U: f32 = 1.0 - T;
        match self {
            Arrangement::Single => &[([0.5, 0.5], "in the middle")],
            Arrangement::Row2 => &[([Q, 0.5], "on the left"), ([R, 0.5], "on the right")],
            Arrangement::Column2 => &[([0.5, Q], "at the top"), ([0.5, R], "at the bottom")],
            Arrangement::Row3 => &[
                ([T, 0.5], "on the left"),
                ([0.5, 0.5], "in the middle"),
                ([U, 0.5], "on the right"),
            ],
            Arrangement::Column3 => &[
                ([0.5, T], "at the top"),
                ([0.5, 0.5], "in the middle"),
                ([0.5, U], "at the bottom"),
            ],
            Arrangement::PointUp => &[
                ([0.5, Q], "at the top"),
                ([Q, R], "at the bottom left"),
                ([R, R], "at the bottom right"),
            ],
            Arrangement::PointDown => &[
                ([Q, Q], "at the top left"),
                ([R, Q], "at the top right"),
                ([0.5, R], "at the bottom"),
            ],
            Arrangement::Square => &[
                ([Q, Q], "at the top left"),
                ([R, Q], "at the top right"),
                ([Q, R], "at the bottom left"),
                ([R, R], "at the bottom right"),
            ],
        }
    }

    /// Smallest and largest side of an object in its slot, and how far its centre may stray from the slot's.
    pub fn sizes(self) -> (f32, f32, f32) {
        match self {
            Arrangement::Single => (0.55, 0.95, 0.2),
            Arrangement::Row3 | Arrangement::Column3 => (0.26, 0.30, 0.01),
            _ => (0.36, 0.44, 0.02),
        }
    }
}

/// Puts `concepts` into the slots of `arrangement`. Objects stay inside the frame and do not overlap.
pub fn compose(
    emoji: &EmojiSet,
    pool: &Pool,
    arrangement: Arrangement,
    concepts: &[usize],
    augmentation: &Augmentation,
    look: &mut Stream,
) -> Scene {
    let (least, most, stray) = arrangement.sizes();
    let background = variation::background(augmentation, emoji, pool.vendor, concepts, look);
    let objects = arrangement
        .slots()
        .iter()
        .zip(concepts)
        .map(|(&(centre, _), &concept)| {
            let rotation = variation::rotation(augmentation, emoji.concept(concept), look);
            let mirrored = variation::mirrored(augmentation, emoji.concept(concept), look);
            let side = augmentation.side(least, most, look);
            let stray = augmentation.stray(stray);
            let centre = centre.map(|c| c + look.between(-stray, stray));
            let placement = Placement {
                centre,
                side,
                rotation,
                mirrored,
            };
            Object {
                concept,
                placement: variation::inside(emoji.concept(concept), pool.vendor, placement),
            }
        })
        .collect();
    Scene {
        vendor: pool.vendor,
        background,
        tint: augmentation.tint(look),
        objects,
        arrangement,
    }
}
