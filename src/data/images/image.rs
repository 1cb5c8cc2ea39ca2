//! Images: decoding PNG, JPEG and WebP files that nobody vouches for, and the few operations training needs on them.
//!
//! Decoding is strict: a file that ends early is an error, the size is checked before a pixel is allocated, and a panic
//! inside a decoder counts as one more bad file. What it cannot do is notice a flipped bit that still decodes: only a
//! checksum of the whole shard finds those. Colour profiles and EXIF orientation are ignored, as training code in
//! Python commonly does; files of several frames are refused. Scaling is in [`super::resample`].

use std::io::Cursor;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::catch_decoder_panic::catch_decoder_panic;
use keel_base::error::{Error, Result};
use keel_base::random::scramble;

/// Bounds on what one file may ask for.
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    /// Largest width × height accepted; decoding needs about 7 bytes a pixel, 13 for a progressive JPEG.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    /// 67 million pixels: a 64-megapixel photograph passes.
    fn default() -> ImageLimits {
        ImageLimits {
            max_pixels: 1 << 26,
        }
    }
}

/// An image in memory: straight (not premultiplied) RGBA, 8 bits a channel, rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// [height, width, 4] channel values.
    pub rgba: Vec<u8>,
}

impl Image {
    /// An image of one colour.
    pub fn filled(width: u32, height: u32, colour: [u8; 4]) -> Image {
        let pixels = width as usize * height as usize;
        Image {
            width,
            height,
            rgba: colour.repeat(pixels),
        }
    }

    /// Decodes a PNG, JPEG or WebP file held in memory; its kind is read from its first bytes.
    ///
    /// # Errors
    /// [`Error::Content`] calling the file `name` when it is of no known kind, is damaged or ends early, has several
    /// frames, or holds more pixels than `limits` allow.
    pub fn decode(name: &str, bytes: &[u8], limits: &ImageLimits) -> Result<Image> {
        // The decoders hold no state of ours.
        let outcome = catch_decoder_panic(|| match FileFormat::of(bytes) {
            Some(FileFormat::Png) => decode_png(bytes, limits),
            Some(FileFormat::Jpeg) => decode_jpeg(bytes, limits),
            Some(FileFormat::Webp) => decode_webp(bytes, limits),
            None => Err(Refusal::new(
                unknown_kind(bytes),
                "give a PNG, JPEG or WebP file",
            )),
        });
        let refusal = match outcome {
            Some(Ok(image)) => return Ok(image),
            Some(Err(refusal)) => refusal,
            None => Refusal::damaged("the decoder gave up on it"),
        };
        Err(Error::content(name, refusal.problem, refusal.remedy))
    }

    /// A number that tells images apart by their size and pixels. Equal images have equal ones, whatever files they came
    /// from; that two others agree by chance is a matter of one in 2⁶⁴.
    pub fn content(&self) -> u64 {
        // Four chains of mixing instead of one: each step waits for the one before it, and the chains do not wait for each
        // other. A photograph takes a hundredth of the time of decoding it.
        let mut chains = [u64::from(self.width), u64::from(self.height), 2, 3].map(scramble);
        let (blocks, rest) = self.rgba.as_chunks::<32>();
        for block in blocks {
            for (chain, word) in chains.iter_mut().zip(block.as_chunks::<8>().0) {
                *chain = scramble(*chain ^ u64::from_le_bytes(*word));
            }
        }
        for (index, byte) in rest.iter().enumerate() {
            let chain = &mut chains[index % 4];
            *chain = scramble(*chain ^ u64::from(*byte));
        }
        // In a row and not by exclusive or, in which two equal chains would vanish.
        chains
            .into_iter()
            .fold(0, |all, chain| scramble(all.rotate_left(1) ^ chain))
    }

    /// Whether every pixel hides what is behind it.
    pub fn is_opaque(&self) -> bool {
        self.rgba.chunks_exact(4).all(|pixel| pixel[3] == 255)
    }

    /// The image laid over a background colour: every pixel opaque, rounded as Pillow's `paste` with a mask does.
    pub fn flatten(&self, background: [u8; 3]) -> Image {
        let mut rgba = self.rgba.clone();
        for pixel in rgba.chunks_exact_mut(4) {
            let opacity = u32::from(pixel[3]);
            for (channel, &behind) in pixel.iter_mut().zip(&background) {
                let sum = u32::from(*channel) * opacity + u32::from(behind) * (255 - opacity) + 128;
                *channel = (((sum >> 8) + sum) >> 8) as u8;
            }
            pixel[3] = 255;
        }
        Image { rgba, ..*self }
    }

    /// The part `width` × `height` whose corner is at column `left`, row `top`; outside the image it is transparent.
    pub fn crop(&self, left: i64, top: i64, width: u32, height: u32) -> Image {
        let mut part = Image::filled(width, height, [0; 4]);
        // The columns of the part that lie inside the image.
        let first = (-left).clamp(0, i64::from(width)) as usize;
        let last = (i64::from(self.width) - left).clamp(first as i64, i64::from(width)) as usize;
        for y in 0..height as usize {
            let row = top + y as i64;
            if row < 0 || row >= i64::from(self.height) || first == last {
                continue;
            }
            let from = (row as usize * self.width as usize + (left + first as i64) as usize) * 4;
            let to = (y * width as usize + first) * 4;
            let length = (last - first) * 4;
            part.rgba[to..to + length].copy_from_slice(&self.rgba[from..from + length]);
        }
        part
    }

    /// The middle `width` × `height`, the odd pixel left at the right and bottom; padded where the image is smaller.
    pub fn centre_crop(&self, width: u32, height: u32) -> Image {
        let left = (i64::from(self.width) - i64::from(width)).div_euclid(2);
        let top = (i64::from(self.height) - i64::from(height)).div_euclid(2);
        self.crop(left, top, width, height)
    }

    /// Colours as [3, height, width], each channel over 255, less its mean, over its standard deviation.
    ///
    /// Opacity is not looked at: flatten first.
    pub fn to_chw(&self, mean: [f32; 3], standard_deviation: [f32; 3]) -> Vec<f32> {
        let mut values = Vec::with_capacity(3 * self.width as usize * self.height as usize);
        for channel in 0..3 {
            values.extend(self.rgba.chunks_exact(4).map(|pixel| {
                (f32::from(pixel[channel]) / 255.0 - mean[channel]) / standard_deviation[channel]
            }));
        }
        values
    }
}

/// The kinds of file that can be decoded.
enum FileFormat {
    Png,
    Jpeg,
    Webp,
}

impl FileFormat {
    fn of(bytes: &[u8]) -> Option<FileFormat> {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(FileFormat::Png)
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            Some(FileFormat::Jpeg)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(FileFormat::Webp)
        } else {
            None
        }
    }
}

/// What a file without a known beginning most likely is.
fn unknown_kind(bytes: &[u8]) -> String {
    let guess = match bytes {
        [] => "an empty file",
        _ if bytes.starts_with(b"GIF8") => "a GIF",
        _ if bytes.starts_with(b"BM") => "a BMP",
        _ if bytes.starts_with(b"II*\0") || bytes.starts_with(b"MM\0*") => "a TIFF",
        _ if bytes.get(4..8) == Some(b"ftyp") => "an AVIF or HEIC",
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "a Git LFS pointer, not the image itself"
        }
        _ if bytes.starts_with(b"<") => "text (HTML, XML or SVG)",
        _ => "no image that is known here",
    };
    format!("it is {guess}")
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

    fn animated() -> Refusal {
        Refusal::new(
            "the image has several frames",
            "export one of them as a still image",
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

fn decode_png(bytes: &[u8], limits: &ImageLimits) -> Result<Image, Refusal> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let (width, height) = decoder.read_header_info().map_err(Refusal::damaged)?.size();
    let pixels = checked_pixels(width.into(), height.into(), limits)?;
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(Refusal::damaged)?;
    if reader.info().animation_control.is_some() {
        return Err(Refusal::animated());
    }
    let palette = reader.info().palette.as_deref().unwrap_or_default();
    if !palette.len().is_multiple_of(3) {
        // The decoder takes colours of three bytes for granted.
        return Err(Refusal::damaged("its palette ends within a colour"));
    }
    let (colour, depth) = reader.output_color_type();
    let channels = colour.samples();
    if depth != png::BitDepth::Eight || reader.output_buffer_size() != Some(pixels * channels) {
        return Err(Refusal::damaged("its pixel format contradicts itself"));
    }
    let mut buffer = vec![0; pixels * channels];
    reader.next_frame(&mut buffer).map_err(Refusal::damaged)?;
    // Reads on to the end chunk, so that a file cut after its last row does not pass.
    reader.finish().map_err(Refusal::damaged)?;
    let rgba = match colour {
        png::ColorType::Rgba => buffer,
        png::ColorType::Rgb => to_rgba(&buffer, |p: &[u8; 3]| [p[0], p[1], p[2], 255]),
        png::ColorType::GrayscaleAlpha => to_rgba(&buffer, |p: &[u8; 2]| [p[0], p[0], p[0], p[1]]),
        png::ColorType::Grayscale => to_rgba(&buffer, |p: &[u8; 1]| [p[0], p[0], p[0], 255]),
        png::ColorType::Indexed => {
            return Err(Refusal::damaged("its palette could not be expanded"));
        }
    };
    Ok(Image {
        width,
        height,
        rgba,
    })
}

fn decode_jpeg(bytes: &[u8], limits: &ImageLimits) -> Result<Image, Refusal> {
    // 65,535 is the format's own limit; the product of both sides is checked below, before the pixels are decoded.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(Refusal::damaged)?;
    let (Some((width, height)), Some(info)) = (decoder.dimensions(), decoder.info()) else {
        return Err(Refusal::damaged("its header gives no size"));
    };
    let pixels = checked_pixels(width as u64, height as u64, limits)?;
    // The decoder takes RGB stored without conversion for CMYK, and two channels for RGB.
    let stored_channels = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => 1,
        Some(ColorSpace::YCbCr) => 3,
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => 4,
        _ => 0,
    };
    if stored_channels != info.components {
        return Err(Refusal::new(
            "its colours are stored in a form that is not read here",
            "save it again as an ordinary (YCbCr) JPEG or a PNG",
        ));
    }
    if !jpeg_reaches_its_end(bytes) {
        return Err(Refusal::damaged("it has no end marker"));
    }
    let rgb = decoder.decode().map_err(Refusal::damaged)?;
    if rgb.len() != pixels * 3 {
        return Err(Refusal::damaged("its size contradicts itself"));
    }
    Ok(Image {
        width: width as u32,
        height: height as u32,
        rgba: to_rgba(&rgb, |p: &[u8; 3]| [p[0], p[1], p[2], 255]),
    })
}

/// Whether the end marker follows the last scan: the decoder is content with a file whose very last bytes are missing.
fn jpeg_reaches_its_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let mut rest = &bytes[2..];
    let mut in_scan = false;
    // Markers are two bytes, the first of them 0xff, which may be repeated.
    while let [first, tail @ ..] = rest {
        match (*first, tail) {
            (0xff, [END, ..]) => return true,
            (0xff, [0xff, ..]) => rest = tail,
            // Inside a scan, a zero marks a plain 0xff and 0xd0..=0xd7 are restart points.
            (0xff, [0 | 0xd0..=0xd7, tail @ ..]) if in_scan => rest = tail,
            (0xff, [marker, high, low, ..]) => {
                in_scan = *marker == START_OF_SCAN;
                let length = usize::from(*high) << 8 | usize::from(*low);
                rest = tail.get(1 + length..).unwrap_or_default();
            }
            _ if in_scan => rest = tail,
            _ => return false,
        }
    }
    false
}

fn decode_webp(bytes: &[u8], limits: &ImageLimits) -> Result<Image, Refusal> {
    let claimed = bytes[4..8]
        .iter()
        .rev()
        .fold(0, |size, &byte| size << 8 | u64::from(byte));
    if claimed + 8 > bytes.len() as u64 {
        return Err(Refusal::damaged(format!(
            "its header claims {} bytes, {} are there",
            claimed + 8,
            bytes.len()
        )));
    }
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(Refusal::damaged)?;
    let (width, height) = decoder.dimensions();
    let pixels = checked_pixels(width.into(), height.into(), limits)?;
    if decoder.is_animated() {
        return Err(Refusal::animated());
    }
    // The frame has a header of its own, and the decoder makes room for what that one claims.
    for (width, height) in webp_frames(bytes) {
        checked_pixels(width, height, limits)?;
    }
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    if decoder.output_buffer_size() != Some(pixels * channels) {
        return Err(Refusal::damaged("its pixel format contradicts itself"));
    }
    let mut buffer = vec![0; pixels * channels];
    decoder.read_image(&mut buffer).map_err(Refusal::damaged)?;
    let rgba = match channels {
        4 => buffer,
        _ => to_rgba(&buffer, |p: &[u8; 3]| [p[0], p[1], p[2], 255]),
    };
    Ok(Image {
        width,
        height,
        rgba,
    })
}

/// Width and height of every still frame in a WebP file (RFC 9649, sections 2.5 and 2.6).
fn webp_frames(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut frames = Vec::new();
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let [a, b, c, d, size @ ..] = rest
        && let Some((&size, body)) = size.split_first_chunk::<4>()
    {
        let size = u32::from_le_bytes(size) as usize;
        let sides = match (&[*a, *b, *c, *d], body) {
            // Three bytes of flags, three of signature, two sides of 14 bits in 16.
            (b"VP8 ", [_, _, _, _, _, _, sides @ ..]) => sides.first_chunk().map(|sides| {
                let sides = u64::from(u32::from_le_bytes(*sides));
                (sides & 0x3fff, sides >> 16 & 0x3fff)
            }),
            // One byte of signature, two sides less one of 14 bits.
            (b"VP8L", [_, sides @ ..]) => sides.first_chunk().map(|sides| {
                let sides = u64::from(u32::from_le_bytes(*sides));
                ((sides & 0x3fff) + 1, (sides >> 14 & 0x3fff) + 1)
            }),
            _ => None,
        };
        frames.extend(sides);
        rest = body.get(size.next_multiple_of(2)..).unwrap_or_default();
    }
    frames
}

/// Widens every group of N channels to RGBA.
fn to_rgba<const N: usize>(values: &[u8], widen: impl Fn(&[u8; N]) -> [u8; 4]) -> Vec<u8> {
    let (groups, _) = values.as_chunks::<N>();
    groups.iter().flat_map(widen).collect()
}
