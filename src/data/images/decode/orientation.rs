//! How a photograph is turned, wherever its file says so, and the turn itself.
//!
//! Cameras store the rows of the sensor and note how the camera was held: in Exif (a TIFF directory, tag 0x0112), or in XMP
//! (`tiff:Orientation`) where Exif does not say. Both stand in JPEG, PNG, WebP and TIFF files, each in its own place. The order
//! of places is that of Pillow's `Image.getexif`.

use std::io::Read;

use super::tiff_directory::Directory;
use crate::images::image::Image;

/// The tag of the orientation in a TIFF directory.
const ORIENTATION: u16 = 0x0112;

/// The tag of XMP in a TIFF directory.
const XMP: u16 = 0x02bc;

/// Largest Exif text of a PNG, unpacked, bytes.
const MAX_PROFILE_BYTES: u64 = 1 << 20;

/// Exif and XMP of a file, as far as found.
#[derive(Default)]
struct Metadata {
    exif: Option<u8>,
    xmp: Option<u8>,
}

impl Metadata {
    fn add_exif(&mut self, tiff: &[u8]) {
        let tiff = tiff.strip_prefix(b"Exif\0\0").unwrap_or(tiff);
        self.exif = self.exif.or(in_directory(tiff));
    }

    fn add_xmp(&mut self, text: &[u8]) {
        self.xmp = self.xmp.or(in_xmp(text));
    }

    /// Orientation 1 is upright, and others are not known.
    fn orientation(self) -> Option<u8> {
        self.exif
            .or(self.xmp)
            .filter(|value| (2..=8).contains(value))
    }
}

/// Exif and XMP stand in segments APP1 before the first scan.
pub(super) fn in_jpeg(bytes: &[u8]) -> Option<u8> {
    const APP1: u8 = 0xe1;
    const START_OF_SCAN: u8 = 0xda;
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(2..)?;
    while let [0xff, marker, tail @ ..] = rest {
        // A marker may be preceded by any number of 0xff.
        if *marker == 0xff {
            rest = &rest[1..];
            continue;
        }
        if *marker == START_OF_SCAN {
            break;
        }
        let size = tail.first_chunk().copied().map(u16::from_be_bytes);
        let Some((segment, after)) =
            size.and_then(|size| tail.split_at_checked(usize::from(size.max(2))))
        else {
            break;
        };
        if *marker == APP1 {
            let content = &segment[2..];
            if content.starts_with(b"Exif\0\0") {
                metadata.add_exif(content);
            } else if let Some(xmp) = content.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                metadata.add_xmp(xmp);
            }
        }
        rest = after;
    }
    metadata.orientation()
}

/// Exif stands in a chunk of its own or, written by ImageMagick, as hexadecimal digits in a text; XMP in a text.
pub(super) fn in_png(bytes: &[u8]) -> Option<u8> {
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(8..)?;
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = u32::from_be_bytes(*size) as usize;
        let Some((kind, tail)) = tail.split_first_chunk::<4>() else {
            break;
        };
        let Some(content) = tail.get(..size) else {
            break;
        };
        match kind {
            b"eXIf" => metadata.add_exif(content),
            b"iTXt" => {
                if let Some(xmp) = content.strip_prefix(b"XML:com.adobe.xmp\0") {
                    metadata.add_xmp(xmp);
                }
            }
            b"tEXt" | b"zTXt" => {
                if let Some(profile) = content.strip_prefix(b"Raw profile type exif\0") {
                    metadata.add_exif(&raw_profile(profile, kind == b"zTXt"));
                }
            }
            _ => {}
        }
        // Behind the content stands its checksum, which the decoder has held it to.
        rest = tail.get(size + 4..).unwrap_or_default();
    }
    metadata.orientation()
}

/// The bytes of a "Raw profile": a name, a length, and hexadecimal digits in lines; empty where it is no such text.
fn raw_profile(text: &[u8], is_packed: bool) -> Vec<u8> {
    let mut unpacked = Vec::new();
    let text = match text {
        // The first byte names the only way of packing there is.
        [_, packed @ ..] if is_packed => {
            let unpacking = flate2::read::ZlibDecoder::new(packed);
            let read = unpacking.take(MAX_PROFILE_BYTES).read_to_end(&mut unpacked);
            if read.is_err() {
                return Vec::new();
            }
            &unpacked[..]
        }
        text => text,
    };
    let mut lines = text.trim_ascii_start().splitn(3, |byte| *byte == b'\n');
    let digits = lines.nth(2).unwrap_or_default().iter();
    let digits: Vec<u8> = digits
        .filter_map(|byte| (*byte as char).to_digit(16).map(|digit| digit as u8))
        .collect();
    let (pairs, _) = digits.as_chunks::<2>();
    pairs.iter().map(|[high, low]| high << 4 | low).collect()
}

/// Exif and XMP stand in chunks of their own (RFC 9649, section 2.7.1.5). Only files that begin with a VP8X have them, and only
/// the kinds that it announces: libwebp passes over others.
pub(super) fn in_webp(bytes: &[u8]) -> Option<u8> {
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(12..)?;
    let announced = match rest.get(..4)? {
        b"VP8X" => *rest.get(8)?,
        _ => return None,
    };
    while let Some((kind, tail)) = rest.split_first_chunk::<4>()
        && let Some((size, body)) = tail.split_first_chunk::<4>()
    {
        let size = u32::from_le_bytes(*size) as usize;
        let content = body.get(..size).unwrap_or_default();
        match kind {
            b"EXIF" if announced & 0x08 != 0 => metadata.add_exif(content),
            b"XMP " if announced & 0x04 != 0 => metadata.add_xmp(content),
            _ => {}
        }
        rest = body.get(size.next_multiple_of(2)..).unwrap_or_default();
    }
    metadata.orientation()
}

/// The file is itself such a directory.
pub(super) fn in_tiff(bytes: &[u8]) -> Option<u8> {
    let mut metadata = Metadata::default();
    metadata.add_exif(bytes);
    if let Some(xmp) = Directory::of(bytes).and_then(|directory| directory.bytes(XMP)) {
        metadata.add_xmp(xmp);
    }
    metadata.orientation()
}

/// The orientation in the first directory of a TIFF stream.
fn in_directory(tiff: &[u8]) -> Option<u8> {
    let (directory, _) = Directory::begun(tiff)?;
    let value = directory.number(ORIENTATION)?;
    u8::try_from(value).ok()
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
fn in_xmp(text: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut places = text.windows(NAME.len()).enumerate();
    let value = |(at, window): (usize, &[u8])| {
        let after = &text[at + NAME.len()..];
        let digit = after
            .strip_prefix(b"=\"")
            .or_else(|| after.strip_prefix(b">"))?
            .first()?;
        (window == NAME && digit.is_ascii_digit()).then(|| digit - b'0')
    };
    places.find_map(value)
}

/// The image as it is to be seen. `orientation` names where the first row and column are stored (Exif 2.3, table 6).
pub(super) fn upright(image: Image, orientation: u8) -> Image {
    let [width, height] = [image.width as usize, image.height as usize];
    // From 5 on rows and columns are exchanged.
    let [across, down] = if orientation >= 5 {
        [height, width]
    } else {
        [width, height]
    };
    let (pixels, _) = image.rgba.as_chunks::<4>();
    let mut rgba = Vec::with_capacity(image.rgba.len());
    for y in 0..down {
        for x in 0..across {
            let [column, row] = match orientation {
                2 => [width - 1 - x, y],
                3 => [width - 1 - x, height - 1 - y],
                4 => [x, height - 1 - y],
                5 => [y, x],
                6 => [y, height - 1 - x],
                7 => [width - 1 - y, height - 1 - x],
                8 => [width - 1 - y, x],
                _ => [x, y],
            };
            rgba.extend(pixels[row * width + column]);
        }
    }
    Image {
        width: across as u32,
        height: down as u32,
        rgba,
    }
}
