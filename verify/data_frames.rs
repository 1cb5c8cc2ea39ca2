//! Files beside the plain kinds: animations, old formats, 16 bits a channel, photographs that were held aside. Each is what
//! Pillow shows of it, and none costs more memory than its limit.

use keel::data::image::{Image, ImageLimits};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use safetensors::SafeTensors;

use crate::allocations::measure;
use crate::data_image::{decode, goldens, message};

/// Made by tools/image_goldens.py with Pillow 12.2.
const FRAMES: &[u8] = include_bytes!("goldens/frames.safetensors");

/// Name, file, and the image that Pillow shows.
fn frames() -> Vec<(String, Vec<u8>, Image)> {
    let goldens = SafeTensors::deserialize(FRAMES).expect("the golden file is whole");
    let mut frames: Vec<_> = goldens
        .iter()
        .filter_map(|(name, view)| {
            let name = name.strip_prefix("file.")?;
            let pixels = goldens.tensor(&format!("pixels.{name}")).unwrap();
            let image = Image {
                width: pixels.shape()[1] as u32,
                height: pixels.shape()[0] as u32,
                rgba: pixels.data().to_vec(),
            };
            Some((name.to_owned(), view.data().to_vec(), image))
        })
        .collect();
    frames.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    assert_eq!(frames.len(), 57);
    frames
}

#[test]
fn what_is_shown_of_a_file_is_what_pillow_shows() {
    for (name, bytes, wanted) in frames() {
        let found = decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (found.width, found.height),
            (wanted.width, wanted.height),
            "{name}"
        );
        // As in verify/data_image.rs: only JPEG leaves a rounding open.
        let allowed = if name.starts_with("jpeg") { 4 } else { 0 };
        let pairs = found.rgba.iter().zip(&wanted.rgba);
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= allowed, "{name}: worst difference {worst}");
    }
}

#[test]
fn an_animation_is_its_first_frame_in_every_format() {
    let goldens = goldens();
    for kind in ["animated.png", "animated.webp"] {
        let image = decode(goldens.tensor(kind).unwrap().data()).unwrap();
        assert_eq!((image.width, image.height), (8, 8), "{kind}");
    }
}

#[test]
fn files_cut_short_anywhere_are_refused() {
    for (name, bytes, _) in frames() {
        // Behind the last page of a TIFF stands its directory, of which the last bytes are not needed.
        let whole = if name == "tiff_animated" {
            bytes.len() - 8
        } else {
            bytes.len()
        };
        for length in 0..whole {
            let outcome = decode(&bytes[..length]);
            assert!(
                outcome.is_err(),
                "{name} passes with {length} of {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn sizes_beyond_the_limit_are_refused_before_memory_is_taken() {
    let find = |wanted: &str| {
        let frames = frames();
        let found = frames.iter().find(|(name, ..)| name == wanted);
        found.unwrap().1.clone()
    };
    let mut gif = find("gif");
    gif[6..10].fill(0xff);
    let mut bmp = find("bmp_rgb");
    bmp[18..26].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0, 0]);
    let mut runs = find("bmp_runs_8");
    runs[18..26].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
    let mut tiff = find("tiff_raw");
    for tag in [256_u16, 257] {
        // Width and height are entries of one long or short number.
        let entry = [tag.to_le_bytes(), 4_u16.to_le_bytes()].concat();
        let short = [tag.to_le_bytes(), 3_u16.to_le_bytes()].concat();
        let mut places = tiff.windows(4);
        let at = places
            .position(|window| window == entry || window == short)
            .unwrap();
        tiff[at + 2] = 4;
        tiff[at + 8..at + 12].copy_from_slice(&60_000_u32.to_le_bytes());
    }
    for (name, bytes) in [("gif", gif), ("bmp", bmp), ("runs", runs), ("tiff", tiff)] {
        let (text, allocated) = measure(|| message(&bytes));
        assert!(
            text.contains("its header claims") && text.ends_with("scale it down"),
            "{name}: {text}"
        );
        assert!(allocated.peak_bytes < 1 << 20, "{name}: {allocated:?}");
    }
}

/// Pixels allowed below.
const MAX_PIXELS: u64 = 1 << 14;

/// 16 bytes a pixel, for what a TIFF of four channels of 16 bits is unpacked to and turned into; 18 MiB that the WebP decoder
/// and tables take; nothing that grows with what a file claims.
const MEMORY_CAP: i64 = 16 * MAX_PIXELS as i64 + (18 << 20);

proptest! {
    #![proptest_config(Config { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(20_250_703), ..Config::default() })]

    #[test]
    fn damaged_files_end_in_an_image_or_an_error_within_memory(
        kind in 0..46_usize,
        changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 0..8),
        keep in prop_oneof![3 => Just(1.0), 1 => 0.0..1.0_f64],
    ) {
        let (name, mut bytes, _) = frames().swap_remove(kind);
        for (place, value) in &changes {
            let place = (place * bytes.len() as f64) as usize;
            bytes[place] = *value;
        }
        bytes.truncate((keep * bytes.len() as f64) as usize);
        let limits = ImageLimits { max_pixels: MAX_PIXELS };
        let (outcome, allocated) = measure(|| Image::decode(&name, &bytes, &limits));
        prop_assert!(allocated.peak_bytes < MEMORY_CAP, "{}: {:?}", name, allocated);
        match outcome {
            Ok(image) => {
                let pixels = image.width as usize * image.height as usize;
                prop_assert_eq!(image.rgba.len(), 4 * pixels);
            }
            // A panic inside a decoder would be caught and reported in these words.
            Err(error) => prop_assert!(!error.to_string().contains("gave up"), "{}", error),
        }
    }
}

/// Found by tools/differential.py: libwebp passes over metadata that the file's first chunk does not announce.
#[test]
fn a_webp_is_turned_only_by_metadata_that_it_announces() {
    for (name, kind) in [("webp_turned", 0x08), ("webp_turned_xmp", 0x04)] {
        let frames = frames();
        let (_, file, turned) = frames.iter().find(|(known, ..)| known == name).unwrap();
        assert_eq!(&file[12..16], b"VP8X");
        let mut silent = file.clone();
        silent[20] &= !kind;
        let image = decode(&silent).unwrap();
        assert_eq!(
            [image.height, image.width],
            [turned.width, turned.height],
            "{name}"
        );
    }
}

/// Found by tools/differential.py: Pillow reads what is there of a directory that claims more entries, and passes over an
/// orientation that claims to be several.
#[test]
fn an_orientation_counts_where_it_is_one_number_also_before_entries_that_are_missing() {
    let frames = frames();
    let (_, file, turned) = frames
        .iter()
        .find(|(name, ..)| name == "png_turned")
        .unwrap();
    // A chunk `eXIf`: a big-endian TIFF header, then the count of the first directory's entries.
    let at = file
        .windows(6)
        .position(|bytes| bytes == b"eXIfMM")
        .unwrap();
    let length = u32::from_be_bytes(file[at - 4..at].try_into().unwrap()) as usize;
    let with = |place: usize, was: u8, value: u8| {
        let mut file = file.clone();
        assert_eq!(file[at + place], was);
        file[at + place] = value;
        let end = at + 4 + length;
        let mut crc = flate2::Crc::new();
        crc.update(&file[at..end]);
        file[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        decode(&file).unwrap()
    };
    assert_eq!(with(13, 1, 127), *turned);
    // The second byte of the tag's count.
    let image = with(19, 0, 1);
    assert_eq!([image.height, image.width], [turned.width, turned.height]);
}

/// Found by tools/differential.py: such a file was read as pixels from its first byte on.
#[test]
fn a_bmp_whose_pixels_begin_within_its_header_is_refused() {
    let frames = frames();
    for name in ["bmp_rgb", "bmp_runs_8"] {
        let (_, file, _) = frames.iter().find(|(known, ..)| known == name).unwrap();
        for offset in [0, 53] {
            let mut file = file.clone();
            file[10..14].copy_from_slice(&u32::to_le_bytes(offset));
            assert!(message(&file).contains("its pixels begin within its header"));
        }
    }
}

/// Found by libFuzzer: rows of no bytes could not be cut from the file.
#[test]
fn a_bmp_of_pixels_of_no_bits_is_refused() {
    let frames = frames();
    let (_, mut file, _) = frames.into_iter().find(|(n, ..)| n == "bmp_rgb").unwrap();
    file[28..30].copy_from_slice(&[0, 0]);
    let problem = message(&file);
    assert!(!problem.contains("gave up"), "{problem}");
}
