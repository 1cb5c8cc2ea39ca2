//! Images: decoding and scaling agree with Pillow, and bad files are refused with a sentence.

use keel::data::image::{Image, ImageLimits};
use keel::data::resample::Filter;
use safetensors::SafeTensors;

/// Made by tools/image_goldens.py with Pillow 12.2.
pub const GOLDENS: &[u8] = include_bytes!("goldens/pictures.safetensors");

pub fn goldens() -> SafeTensors<'static> {
    SafeTensors::deserialize(GOLDENS).expect("the golden file is whole")
}

/// The encoded files among the goldens, by name.
pub fn files() -> Vec<(String, Vec<u8>)> {
    let goldens = goldens();
    let mut files: Vec<_> = goldens
        .iter()
        .filter_map(|(name, view)| {
            Some((name.strip_prefix("file.")?.to_owned(), view.data().to_vec()))
        })
        .collect();
    files.sort();
    assert_eq!(files.len(), 18);
    files
}

/// A PNG file of these pixels, 8 bits a sample.
pub fn png_file(width: u32, height: u32, colour: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(colour);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(pixels).unwrap();
    writer.finish().unwrap();
    file
}

fn image(name: &str) -> Image {
    let goldens = goldens();
    let view = goldens
        .tensor(name)
        .unwrap_or_else(|_| panic!("no golden {name}"));
    Image {
        width: view.shape()[1] as u32,
        height: view.shape()[0] as u32,
        rgba: view.data().to_vec(),
    }
}

pub fn decode(bytes: &[u8]) -> keel::error::Result<Image> {
    Image::decode("it.img", bytes, &ImageLimits::default())
}

pub fn message(bytes: &[u8]) -> String {
    decode(bytes)
        .expect_err("this file must be refused")
        .to_string()
}

#[test]
fn decoding_agrees_with_pillow_for_every_kind_of_file() {
    for (name, bytes) in files() {
        if name == "jpeg_stored_rgb" {
            assert!(message(&bytes).contains("stored in a form that is not read here"));
            continue;
        }
        let (found, wanted) = (decode(&bytes).unwrap(), image(&format!("pixels.{name}")));
        assert_eq!(
            (found.width, found.height),
            (wanted.width, wanted.height),
            "{name}"
        );
        // PNG and WebP define every bit. JPEG leaves the inverse transform a rounding of one level in each plane, which
        // the colour matrix (rows 1 + 1.772) and its own rounding turn into at most four.
        let allowed = if name.starts_with("jpeg") { 4 } else { 0 };
        let differences = found
            .rgba
            .iter()
            .zip(&wanted.rgba)
            .map(|(a, b)| a.abs_diff(*b));
        let worst = differences.max().unwrap();
        assert!(worst <= allowed, "{name}: worst difference {worst}");
    }
}

#[test]
fn scaling_is_pillows_bit_for_bit() {
    let goldens = goldens();
    let mut cases = 0;
    for (filter, kind) in [
        (Filter::Bilinear, "bilinear."),
        (Filter::Bicubic, "bicubic."),
    ] {
        for name in goldens.names() {
            let Some(case) = name.strip_prefix(kind) else {
                continue;
            };
            let wanted = image(name);
            let found = image(&format!("input.{case}")).resize(wanted.width, wanted.height, filter);
            assert_eq!(found, wanted, "{name}");
            cases += 1;
        }
    }
    assert_eq!(cases, 28);
}

#[test]
fn flattening_is_pillows_paste_bit_for_bit() {
    let goldens = goldens();
    let names = goldens
        .names()
        .into_iter()
        .filter_map(|name| name.strip_prefix("flattened."));
    let mut cases = 0;
    for case in names {
        let found = image(&format!("input.{case}")).flatten([250, 3, 100]);
        assert_eq!(found, image(&format!("flattened.{case}")));
        assert!(found.is_opaque());
        cases += 1;
    }
    assert_eq!(cases, 3);
}

/// An image in which every pixel differs.
fn numbered(width: u32, height: u32) -> Image {
    let pixels = (0..width * height).flat_map(|n| [n as u8, (n >> 8) as u8, 7, 255]);
    Image {
        width,
        height,
        rgba: pixels.collect(),
    }
}

#[test]
fn cropping_copies_what_is_inside_and_leaves_the_rest_transparent() {
    let whole = numbered(7, 5);
    for (left, top, width, height) in [
        (0, 0, 7, 5),
        (2, 1, 3, 3),
        (-2, -1, 4, 4),
        (5, 3, 6, 6),
        (-3, 0, 13, 1),
        (9, 9, 2, 2),
        (-9, 0, 3, 3),
    ] {
        let part = whole.crop(left, top, width, height);
        assert_eq!((part.width, part.height), (width, height));
        for (n, pixel) in part.rgba.chunks_exact(4).enumerate() {
            let x = left + n as i64 % i64::from(width);
            let y = top + n as i64 / i64::from(width);
            let inside = (0..7).contains(&x) && (0..5).contains(&y);
            let wanted = if inside {
                &whole.rgba[(y * 7 + x) as usize * 4..][..4]
            } else {
                &[0; 4]
            };
            assert_eq!(pixel, wanted, "{left} {top} {width} {height}: {x}, {y}");
        }
    }
    assert_eq!(whole.centre_crop(4, 3), whole.crop(1, 1, 4, 3));
    assert_eq!(whole.centre_crop(9, 5), whole.crop(-1, 0, 9, 5));
}

#[test]
fn the_shorter_edge_gets_the_size_and_the_longer_is_rounded_down() {
    for ((width, height), (wanted_width, wanted_height)) in [
        ((640, 480), (298, 224)),
        ((480, 640), (224, 298)),
        ((50, 50), (224, 224)),
        ((1, 9), (224, 2016)),
    ] {
        let found = Image::filled(width, height, [9; 4]).resize_shortest_edge(224, Filter::Bicubic);
        assert_eq!((found.width, found.height), (wanted_width, wanted_height));
    }
}

#[test]
fn normalised_values_are_planes_of_red_green_and_blue() {
    let image = Image {
        width: 2,
        height: 1,
        rgba: vec![0, 51, 255, 255, 102, 153, 204, 255],
    };
    let found = image.to_chw([0.5, 0.25, 0.0], [0.5, 1.0, 2.0]);
    let wanted = [-1.0, -0.2, -0.05, 0.35, 0.5, 0.4];
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
    }
    assert_eq!(found.len(), 6);
}
