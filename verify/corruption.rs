//! Corrupted images: blur and JPEG against SciPy and Pillow, the others by what they claim.

use keel::data::corruption::{Corruption, SEVERITIES};

use crate::harness::Golden;

const SIDE: usize = 40;

fn image() -> Vec<f32> {
    Golden::open("metrics").f32s("input.picture")
}

fn corrupted(corruption: Corruption, severity: usize) -> Vec<f32> {
    let mut image = image();
    corruption.apply(&mut image, SIDE, severity);
    image
}

fn mean_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32
}

#[test]
fn severity_0_changes_nothing_and_each_further_one_changes_more() {
    let before = image();
    for corruption in Corruption::ALL {
        assert_eq!(corrupted(corruption, 0), before, "{}", corruption.name());
        let mut last = 0.0;
        for severity in 1..=SEVERITIES {
            let after = corrupted(corruption, severity);
            assert_eq!(
                after,
                corrupted(corruption, severity),
                "the same draws again"
            );
            assert!(
                after.iter().all(|x| (-1.0..=1.0).contains(x)),
                "{}",
                corruption.name()
            );
            let difference = mean_difference(&before, &after);
            // Where a square lies is drawn, and what it hides differs from place to place.
            let floor = if corruption == Corruption::Occlusion {
                0.5 * last
            } else {
                last
            };
            assert!(difference > floor, "{} {severity}", corruption.name());
            last = difference;
        }
    }
}

#[test]
fn blur_is_scipys_gaussian_filter() {
    let golden = Golden::open("metrics");
    for (severity, want) in [2, 5]
        .into_iter()
        .zip(golden.floats("value.blurred").chunks(3 * SIDE * SIDE))
    {
        let got = corrupted(Corruption::Blur, severity);
        for (got, want) in got.iter().zip(want) {
            // Sums of weights in f32.
            assert!(
                (f64::from(*got) - want).abs() < 2e-6,
                "{got} instead of {want}"
            );
        }
    }
}

#[test]
fn jpeg_loses_what_a_file_written_by_pillow_loses() {
    let golden = Golden::open("metrics");
    let before = image();
    for (severity, want) in [1, 5]
        .into_iter()
        .zip(golden.floats("value.jpeg_levels").chunks(3 * SIDE * SIDE))
    {
        let want: Vec<f32> = want
            .iter()
            .map(|level| *level as f32 / 127.5 - 1.0)
            .collect();
        let got = corrupted(Corruption::Jpeg, severity);
        let level = 1.0 / 127.5;
        let off = mean_difference(&got, &want);
        let lost = mean_difference(&before, &want);
        // libjpeg transforms and converts in whole numbers: a level here and there, against a loss of many.
        assert!(
            off < 0.6 * level && lost > 4.0 * off,
            "{} levels of {}",
            off / level,
            lost / level
        );
        let far = got
            .iter()
            .zip(&want)
            .filter(|(a, b)| (*a - *b).abs() > 3.0 * level)
            .count();
        assert!(far < got.len() / 50, "{far} of {}", got.len());
    }
}

#[test]
fn noise_contrast_and_occlusion_have_the_strength_they_say() {
    let plane = SIDE * SIDE;
    // Mid grey does not clip at the first severity: 0.08 of the range 2 is six deviations from the ends.
    let mut grey = vec![0.0; 3 * plane];
    Corruption::Noise.apply(&mut grey, SIDE, 1);
    let deviation = (grey.iter().map(|x| x * x).sum::<f32>() / grey.len() as f32).sqrt();
    // The deviation of 4800 draws is known to 1 %; four of those.
    assert!((deviation / 0.16 - 1.0).abs() < 0.04, "{deviation}");

    let (before, after) = (image(), corrupted(Corruption::Contrast, 3));
    for (before, after) in before.chunks(plane).zip(after.chunks(plane)) {
        let mean = |values: &[f32]| values.iter().sum::<f32>() / plane as f32;
        assert!((mean(before) - mean(after)).abs() < 1e-5);
        let (first, second) = (before[0] - mean(before), after[0] - mean(after));
        assert!((second - 0.2 * first).abs() < 1e-5);
    }

    let mut white = vec![1.0; 3 * plane];
    Corruption::Occlusion.apply(&mut white, SIDE, 4);
    assert_eq!(white.iter().filter(|x| **x == 0.0).count(), 3 * 20 * 20);
}

#[test]
fn rotation_and_scale_keep_the_centre_and_fill_with_the_corners_colour() {
    // A white dot 12 pixels right of the centre of a black image.
    let odd = 41;
    let mut dot = vec![-1.0; 3 * odd * odd];
    dot[20 * odd + 32] = 1.0;
    let brightest = |image: &[f32]| {
        let red = &image[..odd * odd];
        let at = (0..red.len())
            .max_by(|i, j| red[*i].total_cmp(&red[*j]))
            .unwrap();
        ((at % odd) as f32 - 20.0, (at / odd) as f32 - 20.0)
    };
    let mut turned = dot.clone();
    Corruption::Rotation.apply(&mut turned, odd, 3);
    let (x, y) = brightest(&turned);
    let (want_x, want_y) = (
        12.0 * 30.0f32.to_radians().cos(),
        12.0 * 30.0f32.to_radians().sin(),
    );
    assert!(
        (x - want_x).abs() <= 1.0 && (y.abs() - want_y).abs() <= 1.0,
        "{x}, {y}"
    );
    let mut small = dot.clone();
    Corruption::Scale.apply(&mut small, odd, 3);
    let (x, y) = brightest(&small);
    assert_eq!((x, y), (6.0, 0.0));
    assert!(
        small[odd * odd..].iter().all(|x| *x == -1.0),
        "the other planes stay black"
    );
}
