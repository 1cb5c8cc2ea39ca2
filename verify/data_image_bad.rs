//! Images nobody should trust: each is refused with a sentence, and none costs more memory than its limit.

use keel::data::image::{Image, ImageLimits};

use crate::allocations::measure;
use crate::data_image::{decode, files, message};

/// A PNG chunk with a correct checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    [
        &(data.len() as u32).to_be_bytes(),
        kind.as_slice(),
        data,
        &crc.sum().to_be_bytes(),
    ]
    .concat()
}

/// A grey 8-bit PNG of any claimed size, around the given compressed stream.
fn png(width: u32, height: u32, extra: &[u8], stream: &[u8]) -> Vec<u8> {
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, 0, 0, 0, 0],
    ]
    .concat();
    [
        b"\x89PNG\r\n\x1a\n".as_slice(),
        &chunk(b"IHDR", &header),
        extra,
        &chunk(b"IDAT", stream),
        &chunk(b"IEND", &[]),
    ]
    .concat()
}

fn zeros_compressed(bytes: u64) -> Vec<u8> {
    let mut stream = Vec::new();
    let zeros = std::io::Read::take(std::io::repeat(0), bytes);
    let mut encoder = flate2::read::ZlibEncoder::new(zeros, flate2::Compression::best());
    std::io::Read::read_to_end(&mut encoder, &mut stream).unwrap();
    stream
}

#[test]
fn a_palette_that_ends_within_a_colour_is_refused() {
    let header = [
        &2u32.to_be_bytes()[..],
        &2u32.to_be_bytes(),
        &[8, 3, 0, 0, 0],
    ]
    .concat();
    for entries in [0, 1, 2, 16] {
        let bytes = [
            b"\x89PNG\r\n\x1a\n".as_slice(),
            &chunk(b"IHDR", &header),
            &chunk(b"PLTE", &vec![7; 3 * entries + 1]),
            &chunk(b"tRNS", &vec![9; entries + 1]),
            &chunk(b"IDAT", &zeros_compressed(6)),
            &chunk(b"IEND", &[]),
        ]
        .concat();
        let text = message(&bytes);
        assert!(!text.contains("gave up"), "{text}");
        assert!(text.starts_with("it.img: "), "{text}");
    }
}

#[test]
fn images_cut_short_anywhere_are_refused() {
    for (name, bytes) in files() {
        for length in 0..bytes.len() {
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
fn the_message_for_a_cut_image_names_the_file_and_says_what_to_do() {
    for (name, bytes) in files() {
        if name == "jpeg_stored_rgb" {
            continue;
        }
        let text = message(&bytes[..bytes.len() / 2]);
        assert!(
            text.starts_with("it.img: the image is damaged or cut short ("),
            "{name}: {text}"
        );
        assert!(
            text.ends_with("; fetch or export it again, or leave it out"),
            "{name}: {text}"
        );
    }
}

#[test]
fn a_flipped_bit_in_png_pixels_is_refused() {
    let (_, bytes) = files()
        .into_iter()
        .find(|(name, _)| name == "png_rgba")
        .unwrap();
    let start = bytes.windows(4).position(|kind| kind == b"IDAT").unwrap();
    let end = bytes.windows(4).position(|kind| kind == b"IEND").unwrap() - 4;
    for place in start..end {
        let mut flipped = bytes.clone();
        flipped[place] ^= 4;
        assert!(decode(&flipped).is_err(), "byte {place}");
    }
}

#[test]
fn corrupt_bodies_are_refused_in_every_format() {
    for (name, mut bytes) in files() {
        let third = bytes.len() / 3;
        bytes[16..16 + third].fill(0xff);
        let text = message(&bytes);
        assert!(text.starts_with("it.img: "), "{name}: {text}");
    }
}

#[test]
fn sizes_beyond_the_limit_are_refused_before_memory_is_taken() {
    let stream = zeros_compressed(1000);
    let mut jpeg = files()
        .into_iter()
        .find(|(name, _)| name == "jpeg")
        .unwrap()
        .1;
    let frame = jpeg
        .windows(2)
        .position(|marker| marker == [0xff, 0xc0])
        .unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    let mut webp = files()
        .into_iter()
        .find(|(name, _)| name == "webp_lossless_rgb")
        .unwrap()
        .1;
    let body = webp.windows(4).position(|kind| kind == b"VP8L").unwrap() + 9;
    // 14 bits of width less one, 14 of height less one, and 4 of other things, which stay.
    let other = webp[body + 3] & 0xf0;
    webp[body..body + 4].copy_from_slice(&(16_382_u32 | 16_382 << 14).to_le_bytes());
    webp[body + 3] |= other;
    // The container says 37 x 26 and the frame inside says more.
    let mut inner = files()
        .into_iter()
        .find(|(name, _)| name == "webp_lossy_rgba")
        .unwrap()
        .1;
    let body = inner.windows(4).position(|kind| kind == b"VP8 ").unwrap() + 8;
    inner[body + 6..body + 10].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    let cases = [
        (inner, "16383 x 16383"),
        (png(46_341, 46_341, &[], &stream), "46341 x 46341"),
        (
            png(u32::MAX >> 1, u32::MAX >> 1, &[], &stream),
            "2147483647 x 2147483647",
        ),
        (jpeg, "65535 x 65535"),
        (webp, "16383 x 16383"),
    ];
    for (bytes, size) in cases {
        let (text, allocated) = measure(|| message(&bytes));
        assert!(
            text.contains(&format!("its header claims {size} pixels")),
            "{text}"
        );
        assert!(
            text.ends_with("the limit is 67108864; scale it down"),
            "{text}"
        );
        assert!(allocated.peak_bytes < 1 << 20, "{size}: {allocated:?}");
    }
}

#[test]
fn small_files_that_inflate_do_not_take_memory() {
    let bomb = zeros_compressed(256 << 20);
    assert!(bomb.len() < 300_000);
    // Pixels: far more than the header asks for. Text and colour profile: chunks that are not needed at all.
    let text = chunk(b"zTXt", &[b"Comment\0\0".as_slice(), &bomb].concat());
    let profile = chunk(b"iCCP", &[b"profile\0\0".as_slice(), &bomb].concat());
    let one = zeros_compressed(2);
    for bytes in [
        png(1, 1, &[], &bomb),
        png(1, 1, &text, &one),
        png(1, 1, &profile, &one),
    ] {
        let (_, allocated) = measure(|| decode(&bytes));
        assert!(allocated.peak_bytes < 4 << 20, "{allocated:?}");
    }
    let (image, _) = measure(|| decode(&png(1, 1, &text, &one)));
    assert_eq!(image.unwrap().rgba, [0, 0, 0, 255]);
}

#[test]
fn images_without_pixels_are_refused() {
    for (width, height) in [(0, 0), (0, 5), (5, 0)] {
        assert!(decode(&png(width, height, &[], &zeros_compressed(10))).is_err());
    }
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let pictures: [(&[u8], &str); 7] = [
        (b"\xff\x0a........", "it is a JPEG XL"),
        (b"\0\0\0\x20ftypavif", "it is an AVIF"),
        (b"\0\0\0\x20ftypavis", "it is an AVIF"),
        (b"\0\0\0\x20ftypheic", "it is a HEIC"),
        (b"\0\0\0\x0cjP  ", "it is a JPEG 2000"),
        (b"II+\0", "it is a BigTIFF"),
        (b"8BPS", "it is a Photoshop file"),
    ];
    for (bytes, what) in pictures {
        let text = message(bytes);
        let forward = format!("{what}; convert it to PNG, JPEG or WebP");
        assert!(text.contains(&forward), "{text}");
    }
    let cases: [(&[u8], &str); 6] = [
        (b"", "an empty file"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (
            b"\0\x05\x16\x07\0\x02\0\0Mac OS X",
            "an AppleDouble file of macOS",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "a Git LFS pointer",
        ),
        (b"<!DOCTYPE html>", "text (HTML, XML or SVG)"),
        (b"hello", "no image that is known here"),
    ];
    for (bytes, what) in cases {
        let text = message(bytes);
        assert!(
            text.contains(what) && text.ends_with("give a PNG, JPEG, WebP, GIF, BMP or TIFF file"),
            "{text}"
        );
    }
}

#[test]
fn a_pixel_limit_is_exact() {
    let (_, bytes) = files()
        .into_iter()
        .find(|(name, _)| name == "png_rgb")
        .unwrap();
    let pixels = 37 * 26;
    let limited = |max_pixels| Image::decode("it.img", &bytes, &ImageLimits { max_pixels });
    assert!(limited(pixels).is_ok());
    assert!(limited(pixels - 1).is_err());
}
