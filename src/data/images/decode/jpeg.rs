//! JPEG files.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Decoded, Refusal, checked_pixels, still, to_rgba};
use crate::images::image::ImageLimits;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
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
        return Err(Refusal::unread_colours());
    }
    if !reaches_its_end(bytes) {
        return Err(Refusal::damaged("it has no end marker"));
    }
    let rgb = decoder.decode().map_err(Refusal::damaged)?;
    if rgb.len() != pixels * 3 {
        return Err(Refusal::damaged("its size contradicts itself"));
    }
    let rgba = to_rgba(&rgb, |p: &[u8; 3]| [p[0], p[1], p[2], 255]);
    Ok(still(width as u32, height as u32, rgba))
}

/// Whether the end marker follows the last scan: the decoder is content with a file whose very last bytes are missing.
fn reaches_its_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let mut rest = &bytes[2..];
    let mut in_scan = false;
    // By markers and not from the file's end: cameras append a preview with an end marker of its own.
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
