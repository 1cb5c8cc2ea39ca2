//! Pictures: decoding and scaling agree with Pillow, and bad files are refused with a sentence.

use keel::data::picture::{Picture, PictureLimits};
use keel::data::resample::Filter;
use safetensors::SafeTensors;

/// Made by tools/picture_goldens.py with Pillow 12.2.
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

fn picture(name: &str) -> Picture {
    let goldens = goldens();
    let view = goldens
        .tensor(name)
        .unwrap_or_else(|_| panic!("no golden {name}"));
    Picture {
        width: view.shape()[1] as u32,
        height: view.shape()[0] as u32,
        rgba: view.data().to_vec(),
    }
}

pub fn decode(bytes: &[u8]) -> keel::error::Result<Picture> {
    Picture::decode("it.img", bytes, &PictureLimits::default())
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
        let (found, wanted) = (decode(&bytes).unwrap(), picture(&format!("pixels.{name}")));
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
            let wanted = picture(name);
            let found =
                picture(&format!("input.{case}")).resize(wanted.width, wanted.height, filter);
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
        let found = picture(&format!("input.{case}")).flatten([250, 3, 100]);
        assert_eq!(found, picture(&format!("flattened.{case}")));
        assert!(found.is_opaque());
        cases += 1;
    }
    assert_eq!(cases, 3);
}
