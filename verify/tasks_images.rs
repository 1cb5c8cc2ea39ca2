//! Colours, sprites, scenes and augmentation, checked on pixels.

use keel::data::augment::Augmentation;
use keel::data::frame::{Frame, Tint};
use keel::data::prepare::PLAIN_BACKGROUND;
use keel::emoji::colours::{Colour, Palette};
use keel::emoji::embedded::Vendor;
use keel::emoji::emoji_set::{EmojiSet, Split};
use keel::emoji::scenes::{Arrangement, Object, Scene, Side, compose};
use keel::emoji::sprite::{Placement, Sprite};
use keel::emoji::variation::background_of;
use keel::random::{Permutation, Purpose, Stream};
use proptest::prelude::*;

fn stream(sample: u64) -> Stream {
    Stream::new(11, Purpose::Augment, 0, sample)
}

#[test]
fn typical_and_varied_colours_keep_their_names() {
    let mut look = stream(0);
    for colour in Colour::ALL {
        assert_eq!(Colour::of(colour.sample()), colour);
        for _ in 0..50 {
            assert_eq!(Colour::of(background_of(colour, &mut look)), colour);
        }
    }
}

#[test]
fn well_known_things_have_their_colours_in_both_styles() {
    let emoji = EmojiSet::embedded();
    let single = |name: &str, vendor| {
        let concept = emoji
            .concepts()
            .iter()
            .find(|concept| concept.name == name)
            .unwrap();
        concept.palette(vendor).single()
    };
    for (name, colour) in [
        ("red circle", Colour::Red),
        ("orange circle", Colour::Orange),
        ("yellow heart", Colour::Yellow),
        ("green heart", Colour::Green),
        ("blue circle", Colour::Blue),
        ("purple heart", Colour::Purple),
        ("pink heart", Colour::Pink),
        ("brown circle", Colour::Brown),
        ("black large square", Colour::Black),
    ] {
        for vendor in Vendor::ALL {
            assert_eq!(
                single(name, vendor),
                Some(colour),
                "{name} by {}",
                vendor.name()
            );
        }
    }
}

#[test]
fn a_palette_counts_by_alpha_and_ignores_what_is_not_there() {
    let red = Colour::Red.sample();
    let blue = Colour::Blue.sample();
    let pixel = |[r, g, b]: [u8; 3], alpha| ([r, g, b, alpha], 1);
    let palette = Palette::measure([pixel(red, 255), pixel(blue, 85), pixel([0, 255, 0], 0)]);
    assert!((palette.share(Colour::Red) - 0.75).abs() < 1e-6);
    assert!((palette.share(Colour::Blue) - 0.25).abs() < 1e-6);
    assert_eq!(palette.dominant(0.2, 2), [Colour::Red, Colour::Blue]);
    assert_eq!(
        palette.single(),
        None,
        "a second colour above 20 % spoils it"
    );
    assert_eq!(Palette::measure([]).dominant(0.1, 3), []);
}

proptest! {
    #[test]
    fn the_permutation_visits_every_item_once(len in 1u64..3000, seed in any::<u64>(), epoch in 0u64..9) {
        let order = Permutation::new(len, seed, 3, epoch);
        let mut seen = vec![false; len as usize];
        for position in 0..len {
            let item = order.at(position) as usize;
            prop_assert!(!std::mem::replace(&mut seen[item], true), "{} came twice", item);
        }
    }

    #[test]
    fn composed_objects_stay_inside_the_frame_and_apart(sample in any::<u64>(), count in 1usize..5) {
        let emoji = EmojiSet::embedded();
        let pool = emoji.pool(Vendor::Noto, Split::Train);
        let mut look = stream(sample);
        let arrangement = *look.pick(Arrangement::of_count(count));
        let concepts: Vec<usize> = (0..count).map(|_| *look.pick(&pool.all)).collect();
        let scene =
            compose(&emoji, &pool, arrangement, &concepts, &Augmentation::TRAINING, &mut look);
        let boxes: Vec<[f32; 4]> = scene.objects.iter().map(|object| {
            emoji.concept(object.concept).sprite(Vendor::Noto).covered(&object.placement)
        }).collect();
        for (index, [left, top, right, bottom]) in boxes.iter().enumerate() {
            prop_assert!(*left >= -1e-5 && *top >= -1e-5 && *right <= 1.00001 && *bottom <= 1.00001);
            for other in &boxes[..index] {
                let apart = *left >= other[2] - 1e-5 || other[0] >= *right - 1e-5
                    || *top >= other[3] - 1e-5 || other[1] >= *bottom - 1e-5;
                prop_assert!(apart, "{:?} overlaps {:?}", boxes[index], other);
            }
        }
    }
}

#[test]
fn permutations_differ_between_epochs_tasks_and_seeds() {
    let first: Vec<u64> = (0..100)
        .map(|p| Permutation::new(100, 1, 1, 0).at(p))
        .collect();
    for (seed, task, epoch) in [(2, 1, 0), (1, 2, 0), (1, 1, 1)] {
        let other: Vec<u64> = (0..100)
            .map(|p| Permutation::new(100, seed, task, epoch).at(p))
            .collect();
        assert_ne!(first, other);
    }
    assert_ne!(first, (0..100).collect::<Vec<u64>>());
}

#[test]
fn a_stream_is_uniform_below_a_bound() {
    let (n, draws) = (7, 70_000);
    let mut counts = vec![0i32; n];
    let mut look = stream(5);
    (0..draws).for_each(|_| counts[look.below(n)] += 1);
    // Five standard deviations of a binomial with p = 1/7.
    let bound = 5.0 * (draws as f64 * (1.0 / 7.0) * (6.0 / 7.0)).sqrt();
    for count in counts {
        assert!(
            (f64::from(count) - draws as f64 / 7.0).abs() < bound,
            "{count}"
        );
    }
}

/// A sprite of one colour, `side` pixels square.
fn plain(side: usize, rgba: [u8; 4]) -> Sprite {
    Sprite::new(side, side, &rgba.repeat(side * side))
}

fn upright(centre: [f32; 2], side: f32) -> Placement {
    Placement {
        centre,
        side,
        rotation: 0.0,
        mirrored: false,
    }
}

#[test]
fn a_drawn_square_covers_exactly_its_box() {
    let mut frame = keel::data::frame::Frame::new(32, [0, 0, 0]);
    plain(64, [255, 255, 255, 255]).draw(&upright([0.5, 0.25], 0.25), &mut frame);
    let mut out = vec![0.0; 3 * 32 * 32];
    frame.write_normalised(Tint::NONE, &mut out);
    for (index, &value) in out[..32 * 32].iter().enumerate() {
        let (x, y) = (index % 32, index / 32);
        let inside = (12..20).contains(&x) && (4..12).contains(&y);
        let want = if inside { 1.0 } else { -1.0 };
        assert!((value - want).abs() < 1e-5, "pixel {x},{y} is {value}");
    }
}

#[test]
fn mirroring_swaps_left_and_right_and_a_half_turn_swaps_both() {
    // Left half red, right half blue; top half opaque, bottom half darker.
    let mut rgba = Vec::new();
    for y in 0..64 {
        for x in 0..64 {
            let level = if y < 32 { 255 } else { 100 };
            rgba.extend(if x < 32 {
                [level, 0, 0, 255]
            } else {
                [0, 0, level, 255]
            });
        }
    }
    let sprite = Sprite::new(64, 64, &rgba);
    let corner = |rotation: f32, mirrored: bool| {
        let mut frame = keel::data::frame::Frame::new(16, [0, 0, 0]);
        let placement = Placement {
            rotation,
            mirrored,
            ..upright([0.5, 0.5], 1.0)
        };
        sprite.draw(&placement, &mut frame);
        let mut out = vec![0.0; 3 * 256];
        frame.write_normalised(Tint::NONE, &mut out);
        // Red and blue of the second pixel of the second row.
        [out[17], out[2 * 256 + 17]].map(|v| ((v + 1.0) * 127.5).round() as i32)
    };
    assert_eq!(corner(0.0, false), [255, 0]);
    assert_eq!(corner(0.0, true), [0, 255]);
    assert_eq!(corner(std::f32::consts::PI, false), [0, 100]);
    // A quarter turn clockwise brings the bottom left to the top left.
    assert_eq!(corner(std::f32::consts::FRAC_PI_2, false), [100, 0]);
}

#[test]
fn drawing_at_any_size_keeps_the_mean_colour() {
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    for &index in pool.all.iter().step_by(171) {
        let means: Vec<f32> = [64usize, 32, 24, 128]
            .map(|side| {
                let scene = Scene {
                    vendor: Vendor::Noto,
                    background: PLAIN_BACKGROUND,
                    tint: Tint::NONE,
                    arrangement: Arrangement::Single,
                    objects: vec![Object {
                        concept: index,
                        placement: upright([0.5, 0.5], 0.8),
                    }],
                };
                let mut out = vec![0.0; 3 * side * side];
                scene.render(&emoji, side, &mut out);
                out.iter().sum::<f32>() / out.len() as f32
            })
            .to_vec();
        for mean in &means {
            assert!(
                (mean - means[0]).abs() < 0.02,
                "{}: {means:?}",
                emoji.concept(index).name
            );
        }
    }
}

#[test]
fn an_empty_image_is_one_empty_pixel() {
    assert_eq!(Palette::measure([]).dominant(0.01, 3), []);
    let drawn = |sprite: Option<Sprite>| {
        let mut frame = Frame::new(8, [200, 100, 0]);
        let placement = Placement {
            centre: [0.5; 2],
            side: 0.5,
            rotation: 0.3,
            mirrored: false,
        };
        if let Some(sprite) = sprite {
            sprite.draw(&placement, &mut frame);
        }
        let mut pixels = vec![0.0; 3 * 8 * 8];
        frame.write_normalised(Tint::NONE, &mut pixels);
        pixels
    };
    assert_eq!(drawn(Some(Sprite::new(0, 0, &[]))), drawn(None));
}

#[test]
fn sides_are_told_only_where_they_are_clear() {
    let at = |x, y| Object {
        concept: 0,
        placement: upright([x, y], 0.2),
    };
    let middle = at(0.5, 0.5);
    assert_eq!(Side::between(&at(0.2, 0.5), &middle), Some(Side::Left));
    assert_eq!(Side::between(&at(0.8, 0.4), &middle), Some(Side::Right));
    assert_eq!(Side::between(&at(0.5, 0.1), &middle), Some(Side::Above));
    assert_eq!(Side::between(&at(0.6, 0.9), &middle), Some(Side::Below));
    assert_eq!(Side::between(&at(0.2, 0.2), &middle), None, "diagonal");
    assert_eq!(Side::between(&at(0.4, 0.5), &middle), None, "too near");
}

#[test]
fn nothing_that_is_read_or_named_by_a_side_is_mirrored() {
    for concept in EmojiSet::embedded().concepts() {
        if concept.ocr.is_some() || concept.country.is_some() {
            assert!(!concept.mirror_safe, "{}", concept.name);
        }
        for word in ["left", "right", "arrow", "clock", "button", "sign"] {
            let named = concept.name.split([' ', '-']).any(|part| part == word);
            assert!(!(named && concept.mirror_safe), "{}", concept.name);
        }
    }
}

#[test]
fn groups_and_names_are_unique_and_short() {
    let emoji = EmojiSet::embedded();
    let raw = &crate::data_embedded::CONCEPTS;
    let mut subcategories: Vec<&str> = raw.iter().map(|c| c.subcategory.as_str()).collect();
    subcategories.sort_unstable();
    subcategories.dedup();
    assert_eq!(
        emoji.subcategories().len(),
        subcategories.len(),
        "two groups share their words"
    );
    assert_eq!(emoji.categories().len(), 9);
    for concept in emoji.concepts() {
        assert!(
            !concept.name.contains('"') && concept.name.is_ascii(),
            "{}",
            concept.name
        );
    }
}

#[test]
fn backgrounds_differ_from_everything_large_in_the_scene() {
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    let mut look = stream(77);
    for &index in pool.all.iter().step_by(7) {
        let scene = compose(
            &emoji,
            &pool,
            Arrangement::Single,
            &[index],
            &Augmentation::TRAINING,
            &mut look,
        );
        let share = emoji
            .concept(index)
            .palette(Vendor::Noto)
            .share(Colour::of(scene.background));
        assert!(
            share < 0.25,
            "{} on {:?}",
            emoji.concept(index).name,
            scene.background
        );
    }
}

#[test]
fn augmentation_of_no_strength_is_plain_and_of_full_strength_is_trainings() {
    assert_eq!(Augmentation::of_strength(0.0), Augmentation::NONE);
    assert_eq!(Augmentation::of_strength(1.0), Augmentation::TRAINING);
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    let draw = |strength, sample| {
        let augmentation = Augmentation::of_strength(strength);
        let (index, mut look) = (pool.all[sample as usize], stream(sample));
        compose(
            &emoji,
            &pool,
            Arrangement::Single,
            &[index],
            &augmentation,
            &mut look,
        )
    };
    let plain: Vec<Scene> = (0..40).map(|sample| draw(0.0, sample)).collect();
    assert!(
        plain
            .iter()
            .all(|scene| scene.background == PLAIN_BACKGROUND)
    );
    assert!(
        plain
            .iter()
            .all(|scene| scene.objects[0].placement == upright([0.5, 0.5], 0.95))
    );
    let half: Vec<Scene> = (0..40).map(|sample| draw(0.5, sample)).collect();
    let coloured = half
        .iter()
        .filter(|scene| scene.background != PLAIN_BACKGROUND)
        .count();
    assert!((8..32).contains(&coloured), "{coloured} of 40");
    assert!(
        half.iter()
            .all(|scene| scene.objects[0].placement.side >= 0.74)
    );
}
