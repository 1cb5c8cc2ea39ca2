//! WebP files.

use std::io::Cursor;

use super::{Decoded, Refusal, checked_pixels, still, to_rgba};
use crate::images::image::ImageLimits;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
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
    // The frame has a header of its own, and the decoder makes room for what that one claims.
    for (width, height) in frame_sizes(bytes) {
        checked_pixels(width, height, limits)?;
    }
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    if decoder.output_buffer_size() != Some(pixels * channels) {
        return Err(Refusal::damaged("its pixel format contradicts itself"));
    }
    let mut buffer = vec![0; pixels * channels];
    let is_animated = decoder.is_animated();
    if is_animated {
        // Its canvas begins transparent, as that of libwebp's own player, whatever the file hints at.
        decoder.read_frame(&mut buffer).map_err(Refusal::damaged)?;
    } else {
        decoder.read_image(&mut buffer).map_err(Refusal::damaged)?;
    }
    let rgba = match channels {
        4 => buffer,
        _ => to_rgba(&buffer, |p: &[u8; 3]| [p[0], p[1], p[2], 255]),
    };
    Ok(Decoded {
        is_animated,
        ..still(width, height, rgba)
    })
}

/// Width and height of every still frame in a WebP file (RFC 9649, sections 2.5 and 2.6).
fn frame_sizes(bytes: &[u8]) -> Vec<(u64, u64)> {
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
