//! PNG files.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Transformations};

use super::{Decoded, Refusal, checked_pixels, grey_of_16_bits, still, to_rgba};
use crate::images::image::ImageLimits;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(Refusal::damaged)?;
    let (width, height) = header.size();
    let is_wide_grey =
        header.bit_depth == BitDepth::Sixteen && header.color_type == ColorType::Grayscale;
    let pixels = checked_pixels(width.into(), height.into(), limits)?;
    // Colours lose their low bytes; grey keeps them, because Pillow treats the two differently.
    let wanted = if is_wide_grey {
        Transformations::EXPAND
    } else {
        Transformations::EXPAND | Transformations::STRIP_16
    };
    decoder.set_transformations(wanted);
    let mut reader = decoder.read_info().map_err(Refusal::damaged)?;
    // What stands before the first frame is shown where it is no frame itself: Pillow does the same.
    let is_animated = reader.info().animation_control.is_some();
    let palette = reader.info().palette.as_deref().unwrap_or_default();
    if !palette.len().is_multiple_of(3) {
        // The decoder takes colours of three bytes for granted.
        return Err(Refusal::damaged("its palette ends within a colour"));
    }
    let (colour, depth) = reader.output_color_type();
    let bytes_per_pixel = colour.samples() * if is_wide_grey { 2 } else { 1 };
    let wanted_depth = if is_wide_grey {
        BitDepth::Sixteen
    } else {
        BitDepth::Eight
    };
    if depth != wanted_depth || reader.output_buffer_size() != Some(pixels * bytes_per_pixel) {
        return Err(Refusal::damaged("its pixel format contradicts itself"));
    }
    let mut buffer = vec![0; pixels * bytes_per_pixel];
    reader.next_frame(&mut buffer).map_err(Refusal::damaged)?;
    // Reads on to the end chunk, so that a file cut after its last row does not pass.
    reader.finish().map_err(Refusal::damaged)?;
    let grey = |high: u8, low: u8| grey_of_16_bits(u16::from_be_bytes([high, low]));
    let rgba = match (colour, is_wide_grey) {
        (ColorType::Grayscale, true) => to_rgba(&buffer, |p: &[u8; 2]| {
            let grey = grey(p[0], p[1]);
            [grey, grey, grey, 255]
        }),
        (ColorType::GrayscaleAlpha, true) => to_rgba(&buffer, |p: &[u8; 4]| {
            let grey = grey(p[0], p[1]);
            [grey, grey, grey, p[2]]
        }),
        (ColorType::Rgba, _) => buffer,
        (ColorType::Rgb, _) => to_rgba(&buffer, |p: &[u8; 3]| [p[0], p[1], p[2], 255]),
        (ColorType::GrayscaleAlpha, _) => to_rgba(&buffer, |p: &[u8; 2]| [p[0], p[0], p[0], p[1]]),
        (ColorType::Grayscale, _) => to_rgba(&buffer, |p: &[u8; 1]| [p[0], p[0], p[0], 255]),
        (ColorType::Indexed, _) => {
            return Err(Refusal::damaged("its palette could not be expanded"));
        }
    };
    Ok(Decoded {
        is_animated,
        ..still(width, height, rgba)
    })
}
