//! How an augmentation varies the look of concepts. Left and right are swapped only where the concept stays the same;
//! things that are read are barely turned; the result always lies inside the frame.

use super::colours::Colour;
use super::embedded::Vendor;
use super::emoji_set::{Concept, EmojiSet};
use super::sprite::Placement;
use keel_base::random::Stream;
use keel_data::augment::Augmentation;
use keel_data::prepare::PLAIN_BACKGROUND;

/// A turn for `concept`, in radians.
pub fn rotation(augmentation: &Augmentation, concept: &Concept, look: &mut Stream) -> f32 {
    let most = if concept.ocr.is_some() {
        augmentation.turn / 4.0
    } else {
        augmentation.turn
    };
    look.between(-most, most)
}

/// Whether `concept` is mirrored this time.
pub fn mirrored(augmentation: &Augmentation, concept: &Concept, look: &mut Stream) -> bool {
    // Drawn whatever comes of it, so that the draws that follow are the same for every concept.
    let is_drawn = look.chance(0.5);
    augmentation.mirror && concept.mirror_safe && is_drawn
}

/// The placement moved as little as needed to lie inside the frame.
pub fn inside(concept: &Concept, vendor: Vendor, mut placement: Placement) -> Placement {
    let [left, top, right, bottom] = concept.sprite(vendor).covered(&placement);
    for (axis, (low, high)) in [(left, right), (top, bottom)].into_iter().enumerate() {
        placement.centre[axis] += (-low).max(0.0) - (high - 1.0).max(0.0);
    }
    placement
}

/// A background that differs in colour from everything large in `concepts`, or the plain one.
pub fn background(
    augmentation: &Augmentation,
    emoji: &EmojiSet,
    vendor: Vendor,
    concepts: &[usize],
    look: &mut Stream,
) -> [u8; 3] {
    if !look.chance(augmentation.background) {
        return PLAIN_BACKGROUND;
    }
    let mut colours: Vec<Colour> = Colour::ALL.to_vec();
    // A random order and the first that hides nothing, rather than the best: the best would nearly always be the same.
    look.shuffle(&mut colours);
    let hidden = |colour: Colour| {
        concepts
            .iter()
            .map(|&index| emoji.concept(index).palette(vendor).share(colour))
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

/// A background of the given colour, a little off its typical value but never another colour by name.
pub fn background_of(colour: Colour, look: &mut Stream) -> [u8; 3] {
    let typical = colour.sample();
    // All channels together and a little each: a uniform change of brightness keeps the colour's name, large single
    // ones do not.
    let lighter = look.between(-12.0, 12.0);
    let varied = typical.map(|channel| {
        let moved = f32::from(channel) + lighter + look.between(-5.0, 5.0);
        moved.clamp(0.0, 255.0) as u8
    });
    if Colour::of(varied) == colour {
        varied
    } else {
        typical
    }
}
