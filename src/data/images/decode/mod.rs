//! Image files that nobody vouches for, decoded: one file of code for each format.
//!
//! Decoding is strict: a file that ends early is an error, the size is checked before a pixel is allocated, and a panic
//! inside a decoder counts as one more bad file. What it cannot do is notice a flipped bit that still decodes: only a
//! checksum of the whole shard finds those. Pixels are those of Pillow's `convert("RGBA")`, because published processors
//! were written around Pillow: an animation is its first frame, and colour profiles are ignored. An orientation is applied,
//! as `datasets` and transformers' `load_image` do.

mod bmp;
mod gif;
mod jpeg;
mod orientation;
mod png;
mod tiff;
mod tiff_directory;
mod webp;

use std::path::Path;

use super::catch_decoder_panic::catch_decoder_panic;
use super::image::{Image, ImageLimits};
use keel_base::error::{Error, Result};

/// What a file holds.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// Its image, or its first frame, upright.
    pub image: Image,
    /// Whether there are further frames, which are not shown.
    pub is_animated: bool,
}

impl Image {
    /// Decodes a PNG, JPEG, WebP, GIF, BMP or TIFF file held in memory; its kind is read from its first bytes. Of an
    /// animation it gives the first frame, and an image is turned upright where its metadata ask for that.
    ///
    /// # Errors
    /// [`Error::Content`] calling the file `name` when it is of no known kind, is damaged or
    /// ends early, or holds more pixels than `limits` allow.
    pub fn decode(name: &str, bytes: &[u8], limits: &ImageLimits) -> Result<Image> {
        decode(name, bytes, limits).map(|decoded| decoded.image)
    }

    /// Reads and decodes an image file.
    ///
    /// # Errors
    /// [`Error::Io`] naming a file that cannot be read; as [`Image::decode`].
    pub fn open(path: &Path, limits: &ImageLimits) -> Result<Image> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read the image", e))?;
        Image::decode(&path.display().to_string(), &bytes, limits)
    }
}

/// As [`Image::decode`], with what else is known of the file.
pub(crate) fn decode(name: &str, bytes: &[u8], limits: &ImageLimits) -> Result<Decoded> {
    // The decoders hold no state of ours.
    let outcome = catch_decoder_panic(|| match FileFormat::of(bytes) {
        Some(format) => {
            let decoded = format.decode(bytes, limits)?;
            let image = match format.orientation(bytes) {
                Some(orientation) => orientation::upright(decoded.image, orientation),
                None => decoded.image,
            };
            Ok(Decoded { image, ..decoded })
        }
        None => Err(unknown_kind(bytes)),
    });
    let refusal = match outcome {
        Some(Ok(decoded)) => return Ok(decoded),
        Some(Err(refusal)) => refusal,
        None => Refusal::damaged("the decoder gave up on it"),
    };
    Err(Error::content(name, refusal.problem, refusal.remedy))
}

/// Whether a file begins as one of a kind that can be decoded.
pub(crate) fn is_image(bytes: &[u8]) -> bool {
    FileFormat::of(bytes).is_some()
}

/// The kinds of file that can be decoded.
#[derive(Clone, Copy)]
enum FileFormat {
    Png,
    Jpeg,
    Webp,
    Gif,
    Bmp,
    Tiff,
}

impl FileFormat {
    fn of(bytes: &[u8]) -> Option<FileFormat> {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(FileFormat::Png)
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            Some(FileFormat::Jpeg)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(FileFormat::Webp)
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Some(FileFormat::Gif)
        } else if bytes.starts_with(b"BM") {
            Some(FileFormat::Bmp)
        } else if bytes.starts_with(b"II*\0") || bytes.starts_with(b"MM\0*") {
            Some(FileFormat::Tiff)
        } else {
            None
        }
    }

    fn decode(self, bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
        match self {
            FileFormat::Png => png::decode(bytes, limits),
            FileFormat::Jpeg => jpeg::decode(bytes, limits),
            FileFormat::Webp => webp::decode(bytes, limits),
            FileFormat::Gif => gif::decode(bytes, limits),
            FileFormat::Bmp => bmp::decode(bytes, limits),
            FileFormat::Tiff => tiff::decode(bytes, limits),
        }
    }

    /// How the image of a file is turned, 2 to 8, where its metadata say so.
    fn orientation(self, bytes: &[u8]) -> Option<u8> {
        match self {
            FileFormat::Png => orientation::in_png(bytes),
            FileFormat::Jpeg => orientation::in_jpeg(bytes),
            FileFormat::Webp => orientation::in_webp(bytes),
            FileFormat::Tiff => orientation::in_tiff(bytes),
            FileFormat::Gif | FileFormat::Bmp => None,
        }
    }
}

/// What to do with a picture of a kind that is not read.
pub(crate) const CONVERT: &str =
    "convert it to PNG, JPEG or WebP (Pillow and ImageMagick read it and write those)";

/// Refuses a file without a known beginning by what it most likely is.
fn unknown_kind(bytes: &[u8]) -> Refusal {
    let picture = match bytes {
        _ if bytes.get(4..8) == Some(b"ftyp") => match bytes.get(8..12) {
            Some(b"avif" | b"avis") => Some("an AVIF"),
            Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1") => Some("a HEIC"),
            _ => None,
        },
        _ if bytes.starts_with(b"\xff\x0a") || bytes.starts_with(b"\0\0\0\x0cJXL ") => {
            Some("a JPEG XL")
        }
        _ if bytes.starts_with(b"\0\0\0\x0cjP  ") => Some("a JPEG 2000"),
        _ if bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+") => Some("a BigTIFF"),
        _ if bytes.starts_with(b"8BPS") => Some("a Photoshop file"),
        _ => None,
    };
    if let Some(picture) = picture {
        return Refusal::new(format!("it is {picture}"), CONVERT);
    }
    let guess = match bytes {
        [] => "an empty file",
        _ if bytes.get(4..8) == Some(b"ftyp") => "a video (MP4 or one of its kind)",
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "a Git LFS pointer, not the image itself"
        }
        // What the Finder leaves beside each file (`._name`).
        _ if bytes.starts_with(b"\0\x05\x16\x07") => "an AppleDouble file of macOS, not an image",
        _ if bytes.starts_with(b"<") => "text (HTML, XML or SVG)",
        _ => "no image that is known here",
    };
    Refusal::new(
        format!("it is {guess}"),
        "give a PNG, JPEG, WebP, GIF, BMP or TIFF file",
    )
}

/// Why a file is refused, before it is known what the file is called.
struct Refusal {
    problem: String,
    remedy: &'static str,
}

impl Refusal {
    fn new(problem: impl ToString, remedy: &'static str) -> Refusal {
        Refusal {
            problem: problem.to_string(),
            remedy,
        }
    }

    fn damaged(reason: impl ToString) -> Refusal {
        Refusal::new(
            format!("the image is damaged or cut short ({})", reason.to_string()),
            "fetch or export it again, or leave it out",
        )
    }

    /// Its colours are of a kind that no reader here knows.
    fn unread_colours() -> Refusal {
        Refusal::new(
            "its colours are stored in a form that is not read here",
            "save it again as an ordinary (YCbCr) JPEG or a PNG",
        )
    }
}

/// The number of pixels, when it is neither zero nor above the limit.
fn checked_pixels(width: u64, height: u64, limits: &ImageLimits) -> Result<usize, Refusal> {
    match width.checked_mul(height) {
        Some(0) => Err(Refusal::damaged("it has no pixels")),
        Some(pixels) if pixels <= limits.max_pixels => Ok(pixels as usize),
        _ => Err(Refusal::new(
            format!(
                "its header claims {width} x {height} pixels, the limit is {}",
                limits.max_pixels
            ),
            "scale it down",
        )),
    }
}

/// A still image of these pixels.
fn still(width: u32, height: u32, rgba: Vec<u8>) -> Decoded {
    Decoded {
        image: Image {
            width,
            height,
            rgba,
        },
        is_animated: false,
    }
}

/// Widens every group of N channels to RGBA.
fn to_rgba<const N: usize>(values: &[u8], widen: impl Fn(&[u8; N]) -> [u8; 4]) -> Vec<u8> {
    let (groups, _) = values.as_chunks::<N>();
    groups.iter().flat_map(widen).collect()
}

/// Grey of 16 bits as Pillow shows it: values above 255 are white, not scaled down. Published processors see such files so.
fn grey_of_16_bits(value: u16) -> u8 {
    value.min(255) as u8
}
