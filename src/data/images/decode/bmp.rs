//! BMP files: pixels of 1, 4, 8, 16, 24 and 32 bits, stored as they are, by masks, or in run lengths.
//!
//! Written here because the format is small, and the readers that could be depended on get two of its kinds wrong.

use super::{Decoded, Refusal, checked_pixels, still};
use crate::images::image::ImageLimits;

/// Values of `biCompression`.
mod compression {
    pub const NONE: u32 = 0;
    pub const RUNS_OF_8: u32 = 1;
    pub const RUNS_OF_4: u32 = 2;
    pub const MASKS: u32 = 3;
    pub const MASKS_WITH_ALPHA: u32 = 6;
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
    let header = Header::of(bytes).ok_or_else(|| Refusal::damaged("its header is cut short"))?;
    let (width, height) = (header.width, header.height);
    let pixels = checked_pixels(width.into(), height.into(), limits)?;
    if header.offset < header.end {
        return Err(Refusal::damaged("its pixels begin within its header"));
    }
    let stored = bytes.get(header.offset..).unwrap_or_default();
    let rows = match header.compression {
        compression::RUNS_OF_8 if header.bits == 8 => header.coloured(&runs(&header, stored)?),
        compression::RUNS_OF_4 if header.bits == 4 => header.coloured(&runs(&header, stored)?),
        compression::NONE | compression::MASKS | compression::MASKS_WITH_ALPHA => {
            header.plain(stored)?
        }
        _ => return Err(Refusal::unread_colours()),
    };
    let mut rgba = Vec::with_capacity(4 * pixels);
    let rows = rows.chunks_exact(4 * width as usize);
    // Rows stand from the bottom up unless the header turns them.
    if header.is_from_top {
        rows.for_each(|row| rgba.extend(row));
    } else {
        rows.rev().for_each(|row| rgba.extend(row));
    }
    Ok(still(width, height, rgba))
}

/// The fields of BITMAPFILEHEADER and of what follows it: BITMAPCOREHEADER, or BITMAPINFOHEADER and its successors.
struct Header {
    /// Where the pixels begin.
    offset: usize,
    /// Where the header ends.
    end: usize,
    width: u32,
    height: u32,
    is_from_top: bool,
    bits: u16,
    compression: u32,
    /// Bits of red, green, blue and opacity in a pixel of 16 or 32 bits; no bits of opacity where there is none.
    masks: [u32; 4],
    /// The table of colours, for pixels of 8 bits and fewer.
    colours: Vec<[u8; 4]>,
}

impl Header {
    fn of(bytes: &[u8]) -> Option<Header> {
        const CORE: usize = 12;
        let word = |at: usize| {
            bytes
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u32::from_le_bytes)
        };
        let half = |at: usize| {
            bytes
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u16::from_le_bytes)
        };
        let (offset, size) = (word(10)? as usize, word(14)? as usize);
        let is_core = size == CORE;
        let (width, height, bits, compression) = if is_core {
            (half(18)?.into(), half(20)?.into(), half(24)?, 0)
        } else {
            (word(18)?, word(22)? as i32, half(28)?, word(30)?)
        };
        // Masks follow the first 40 bytes of the header, as part of longer ones. Opacity has one of 52 bytes on.
        let masks = match (compression, bits) {
            (compression::MASKS | compression::MASKS_WITH_ALPHA, _) => {
                let has_alpha = size > 52 || compression == compression::MASKS_WITH_ALPHA;
                let alpha = if has_alpha { word(66)? } else { 0 };
                [word(54)?, word(58)?, word(62)?, alpha]
            }
            (_, 16) => [0x7c00, 0x03e0, 0x001f, 0],
            // The fourth byte of pixels without masks means nothing, and most programs leave it 0.
            _ => [0x00ff_0000, 0xff00, 0xff, 0],
        };
        let mut colours = Vec::new();
        if bits <= 8 {
            let entry = if is_core { 3 } else { 4 };
            let used = if is_core { 0 } else { word(46)? as usize };
            let count = if used == 0 { 1 << bits } else { used.min(256) };
            let table = bytes.get(14 + size..)?.chunks_exact(entry).take(count);
            colours.extend(table.map(|colour| [colour[2], colour[1], colour[0], 255]));
        }
        Some(Header {
            offset,
            end: 14 + size,
            width,
            height: height.unsigned_abs(),
            is_from_top: height < 0,
            bits,
            compression,
            masks,
            colours,
        })
    }

    /// A colour of the table; black beyond its end, as Pillow fills it.
    fn colour(&self, index: u8) -> [u8; 4] {
        let colour = self.colours.get(usize::from(index)).copied();
        colour.unwrap_or([0, 0, 0, 255])
    }

    /// Indices as pixels.
    fn coloured(&self, indices: &[u8]) -> Vec<u8> {
        indices
            .iter()
            .flat_map(|index| self.colour(*index))
            .collect()
    }

    /// Rows of pixels that are stored without run lengths, each padded to four bytes.
    fn plain(&self, stored: &[u8]) -> Result<Vec<u8>, Refusal> {
        if ![1, 4, 8, 16, 24, 32].contains(&self.bits) {
            return Err(Refusal::unread_colours());
        }
        let padded = (u64::from(self.width) * u64::from(self.bits)).div_ceil(32) * 4;
        let size = padded.checked_mul(self.height.into());
        let stored = size.and_then(|size| stored.get(..usize::try_from(size).ok()?));
        let Some(stored) = stored else {
            return Err(Refusal::damaged("its pixels end early"));
        };
        let width = self.width as usize;
        let mut rgba = Vec::with_capacity(4 * width * self.height as usize);
        for row in stored.chunks_exact(padded as usize) {
            match self.bits {
                bits @ (1 | 4 | 8) => {
                    let per_byte = usize::from(8 / bits);
                    let mask = (1u16 << bits) as u8;
                    for x in 0..width {
                        // The first pixel is in the highest bits.
                        let shift = usize::from(bits) * (per_byte - 1 - x % per_byte);
                        rgba.extend(self.colour(row[x / per_byte] >> shift & mask.wrapping_sub(1)));
                    }
                }
                16 => {
                    let (pixels, _) = row.as_chunks::<2>();
                    let pixels = pixels.iter().take(width);
                    rgba.extend(pixels.flat_map(|p| self.masked(u16::from_le_bytes(*p).into())));
                }
                24 => {
                    let (pixels, _) = row.as_chunks::<3>();
                    let pixels = pixels.iter().take(width);
                    rgba.extend(pixels.flat_map(|[b, g, r]| [*r, *g, *b, 255]));
                }
                _ => {
                    let (pixels, _) = row.as_chunks::<4>();
                    rgba.extend(
                        pixels
                            .iter()
                            .flat_map(|p| self.masked(u32::from_le_bytes(*p))),
                    );
                }
            }
        }
        Ok(rgba)
    }

    /// A pixel whose channels are under masks, each widened to 0..=255.
    fn masked(&self, pixel: u32) -> [u8; 4] {
        let [red, green, blue, opacity] = self.masks;
        let channel = |mask: u32| {
            let most = u64::from(mask >> mask.trailing_zeros().min(31));
            let value = u64::from((pixel & mask) >> mask.trailing_zeros().min(31));
            (value * 255).checked_div(most).unwrap_or_default() as u8
        };
        let opacity = if opacity == 0 { 255 } else { channel(opacity) };
        [channel(red), channel(green), channel(blue), opacity]
    }
}

/// The indices of run-length codes, row by row from the first stored one. What is passed over has the first colour.
fn runs(header: &Header, stored: &[u8]) -> Result<Vec<u8>, Refusal> {
    let cut = || Refusal::damaged("its run lengths end early");
    let (width, height) = (header.width as usize, header.height as usize);
    let mut indices = vec![0; width * height];
    let (mut x, mut y) = (0, 0);
    let mut rest = stored;
    let mut put = |x: usize, y: usize, index: u8| {
        // What would stand beside the image is left out, as all readers do.
        if x < width && y < height {
            indices[y * width + x] = index;
        }
    };
    // Two indices of four bits, or one of eight, in a byte.
    let is_narrow = header.bits == 4;
    let index = |byte: u8, number: usize| match (is_narrow, number % 2) {
        (false, _) => byte,
        (true, 0) => byte >> 4,
        (true, _) => byte & 15,
    };
    loop {
        let [count, value, after @ ..] = rest else {
            return Err(cut());
        };
        rest = after;
        match (*count, *value) {
            // End of a row, of the image, and a step to the right and up.
            (0, 0) => (x, y) = (0, y + 1),
            (0, 1) => return Ok(indices),
            (0, 2) => {
                let [right, up, after @ ..] = rest else {
                    return Err(cut());
                };
                (x, y) = (x + usize::from(*right), y + usize::from(*up));
                rest = after;
            }
            // So many indices one by one, padded to an even number of bytes.
            (0, count) => {
                let count = usize::from(count);
                let bytes = if is_narrow { count.div_ceil(2) } else { count };
                let padded = bytes.next_multiple_of(2);
                let (literal, after) = rest.split_at_checked(padded).ok_or_else(cut)?;
                for number in 0..count {
                    let byte = literal[if is_narrow { number / 2 } else { number }];
                    put(x + number, y, index(byte, number));
                }
                x += count;
                rest = after;
            }
            (count, value) => {
                let count = usize::from(count);
                (0..count).for_each(|number| put(x + number, y, index(value, number)));
                x += count;
            }
        }
    }
}
