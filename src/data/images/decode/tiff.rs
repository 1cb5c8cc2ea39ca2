//! TIFF files: the first page.

use std::io::Cursor;

use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::tiff_directory::Directory;
use super::{Decoded, Refusal, checked_pixels, grey_of_16_bits, still, to_rgba};
use crate::images::image::ImageLimits;

/// Largest value of a tag, bytes: a table of colours or of strips.
const MAX_TAG_BYTES: usize = 1 << 20;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
    // The reader sets aside memory for all that the tags claim, so they are looked at before.
    let directory = Directory::of(bytes).filter(Directory::is_inside);
    let directory = directory.ok_or_else(|| Refusal::damaged("its directory ends early"))?;
    let side = |tag: Tag| {
        let side = directory.number(tag.to_u16());
        side.ok_or_else(|| Refusal::damaged("its directory gives no size"))
    };
    let (width, height) = (side(Tag::ImageWidth)?, side(Tag::ImageLength)?);
    let pixels = checked_pixels(width.into(), height.into(), limits)?;
    // The reader knows no tables of colours: it is shown numbers of colours as if they were grey.
    let palette = Palette::of(&directory)?;
    let as_grey = palette.as_ref().map(|palette| palette.as_grey(bytes));
    let mut decoder =
        Decoder::new(Cursor::new(as_grey.as_deref().unwrap_or(bytes))).map_err(said)?;
    if decoder.dimensions().ok() != Some((width, height)) {
        return Err(Refusal::damaged("its size contradicts itself"));
    }
    let colours = decoder.colortype().map_err(said)?;
    let mut allowed = Limits::default();
    // Eight bytes a pixel are those of four channels of 16 bits.
    allowed.decoding_buffer_size = 8 * pixels + BLOCK;
    allowed.intermediate_buffer_size = 8 * pixels + BLOCK;
    allowed.ifd_value_size = MAX_TAG_BYTES;
    let mut decoder = decoder.with_limits(allowed);
    let values = decoder.read_image().map_err(said)?;
    let (narrow, wide) = match values {
        DecodingResult::U8(values) => (values, Vec::new()),
        DecodingResult::U16(values) => (Vec::new(), values),
        _ => return Err(Refusal::unread_colours()),
    };
    let high = |value: u16| (value >> 8) as u8;
    let rgba = match colours {
        ColorType::Gray(bits) if palette.is_some() => {
            let palette = palette.expect("it was just looked at");
            palette.colours(&narrow, bits, width)?
        }
        ColorType::Gray(bits @ (1 | 2 | 4)) => {
            let most = (1u16 << bits) - 1;
            let greys = spread(&narrow, bits, width);
            let greys = greys.map(|value| (u16::from(value) * (255 / most)) as u8);
            greys.flat_map(|grey| [grey, grey, grey, 255]).collect()
        }
        ColorType::Gray(8) => to_rgba(&narrow, |p: &[u8; 1]| [p[0], p[0], p[0], 255]),
        ColorType::Gray(16) => {
            let grey = |value: &u16| [grey_of_16_bits(*value); 3];
            let greys = wide.iter().map(grey);
            greys.flat_map(|[r, g, b]| [r, g, b, 255]).collect()
        }
        ColorType::GrayA(8) => to_rgba(&narrow, |p: &[u8; 2]| [p[0], p[0], p[0], p[1]]),
        ColorType::RGB(8) => to_rgba(&narrow, |p: &[u8; 3]| [p[0], p[1], p[2], 255]),
        ColorType::RGBA(8) => narrow,
        ColorType::RGB(16) => {
            let narrow: Vec<u8> = wide.into_iter().map(high).collect();
            to_rgba(&narrow, |p: &[u8; 3]| [p[0], p[1], p[2], 255])
        }
        ColorType::RGBA(16) => wide.into_iter().map(high).collect(),
        // As Pillow: ink of all colours taken off black's paper, without a profile.
        ColorType::CMYK(8) => to_rgba(&narrow, |&[c, m, y, k]: &[u8; 4]| {
            let [r, g, b] = [c, m, y].map(|ink| on_black(ink, k));
            [r, g, b, 255]
        }),
        _ => return Err(Refusal::unread_colours()),
    };
    if rgba.len() != 4 * pixels {
        return Err(Refusal::damaged("its size contradicts itself"));
    }
    Ok(Decoded {
        is_animated: check_pages(&mut decoder, bytes.len())?,
        ..still(width, height, rgba)
    })
}

/// Room for what a decoder holds of a file at once beside its pixels.
const BLOCK: usize = 1 << 16;

/// What is left of a colour by its ink and black's, rounded as Pillow does.
fn on_black(ink: u8, black: u8) -> u8 {
    let paper = u32::from(255 - black);
    let product = u32::from(ink) * paper + 128;
    (paper as u8).saturating_sub((((product >> 8) + product) >> 8) as u8)
}

/// Holds later pages to the file's length and says whether there are any: a file cut within them must not pass.
fn check_pages(decoder: &mut Decoder<Cursor<&[u8]>>, bytes: usize) -> Result<bool, Refusal> {
    let mut pages = 1;
    while decoder.more_images() {
        decoder.next_image().map_err(Refusal::damaged)?;
        pages += 1;
        for (starts, sizes) in [
            (Tag::StripOffsets, Tag::StripByteCounts),
            (Tag::TileOffsets, Tag::TileByteCounts),
        ] {
            let mut values = |tag| decoder.find_tag_unsigned_vec::<u64>(tag);
            let starts = values(starts).map_err(Refusal::damaged)?;
            let sizes = values(sizes).map_err(Refusal::damaged)?;
            let mut pieces = starts
                .into_iter()
                .flatten()
                .zip(sizes.into_iter().flatten());
            let is_inside = |(start, size): (u64, u64)| {
                start
                    .checked_add(size)
                    .is_some_and(|end| end <= bytes as u64)
            };
            if !pieces.all(is_inside) {
                return Err(Refusal::damaged("a later page of it ends early"));
            }
        }
    }
    Ok(pages > 1)
}

/// What is not read here is told apart from what is damaged.
fn said(problem: TiffError) -> Refusal {
    match problem {
        TiffError::UnsupportedError(problem) => Refusal::new(
            format!("its colours are stored in a form that is not read here ({problem})"),
            "save it again as a PNG",
        ),
        problem => Refusal::damaged(problem),
    }
}

/// Values of fewer than 8 bits, each a byte; rows are padded to whole bytes.
fn spread(packed: &[u8], bits: u8, width: u32) -> impl Iterator<Item = u8> {
    let (per_byte, most) = (8 / u32::from(bits), (1u16 << bits) - 1);
    let row = width.div_ceil(per_byte).max(1) as usize;
    let value = move |row: &[u8], x: u32| {
        let shift = 8 - u32::from(bits) * (x % per_byte + 1);
        (u16::from(row[(x / per_byte) as usize]) >> shift & most) as u8
    };
    let rows = packed.chunks_exact(row);
    rows.flat_map(move |row| (0..width).map(move |x| value(row, x)))
}

/// Of a file whose pixels are numbers in a table of colours.
struct Palette {
    /// Where the file says so.
    place: usize,
    is_big_endian: bool,
    /// All red values, all green ones, all blue ones.
    values: Vec<u16>,
}

/// What the tag of a file's colours says of such a file, and of a grey one.
const BY_NUMBER: u32 = 3;
const GREY: u16 = 1;

impl Palette {
    /// The table of a file that has one.
    fn of(directory: &Directory) -> Result<Option<Palette>, Refusal> {
        let kind = Tag::PhotometricInterpretation.to_u16();
        if directory.number(kind) != Some(BY_NUMBER) {
            return Ok(None);
        }
        let place = directory.value_place(kind);
        let values = directory.shorts(Tag::ColorMap.to_u16());
        let found = place.zip(values).map(|(place, values)| Palette {
            place,
            is_big_endian: directory.is_big_endian(),
            values,
        });
        let missing = || Refusal::damaged("it has no table of colours");
        found.map(Some).ok_or_else(missing)
    }

    /// The file as one of grey values.
    fn as_grey(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let grey = if self.is_big_endian {
            GREY.to_be_bytes()
        } else {
            GREY.to_le_bytes()
        };
        bytes[self.place..self.place + 2].copy_from_slice(&grey);
        bytes
    }

    /// The colours of pixels, by the upper bytes of the table's values, as Pillow takes them.
    fn colours(&self, numbers: &[u8], bits: u8, width: u32) -> Result<Vec<u8>, Refusal> {
        let count = self.values.len() / 3;
        if !matches!(bits, 1 | 2 | 4 | 8) || self.values.len() != 3 << bits {
            let problem =
                format!("its table of {count} colours is not one for pixels of {bits} bits");
            return Err(Refusal::new(problem, "save it again as a PNG"));
        }
        let of = |number: u8| {
            let channel =
                |channel: usize| (self.values[channel * count + usize::from(number)] >> 8) as u8;
            [channel(0), channel(1), channel(2), 255]
        };
        Ok(if bits == 8 {
            numbers.iter().flat_map(|number| of(*number)).collect()
        } else {
            spread(numbers, bits, width).flat_map(of).collect()
        })
    }
}
