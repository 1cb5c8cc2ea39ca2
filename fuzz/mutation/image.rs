//! Images changed in their headers, in the order of their parts and in what these hold; PNG's checksums, WebP's and BMP's
//! sizes are set right again.

use std::io::{Read, Write};
use std::ops::Range;

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use safetensors::SafeTensors;

use crate::{Choices, below, change_bytes, change_order, number, once_in};

/// Encoded images of every kind that is read, by name (tools/image_goldens.py).
pub fn valid_images() -> Vec<(String, Vec<u8>)> {
    let goldens: [&[u8]; 2] = [
        include_bytes!("../../verify/goldens/pictures.safetensors"),
        include_bytes!("../../verify/goldens/frames.safetensors"),
    ];
    let mut images = Vec::new();
    for golden in goldens {
        let tensors = SafeTensors::deserialize(golden).expect("the goldens are whole");
        for (name, view) in tensors.iter() {
            if let Some(name) = name.strip_prefix("file.") {
                images.push((name.to_owned(), view.data().to_vec()));
            }
        }
    }
    images.sort();
    images
}

/// A number in a file: where, how many bytes, and whether the first is the greatest.
#[derive(Clone, Copy, Debug)]
struct Field {
    at: usize,
    bytes: usize,
    is_big: bool,
}

impl Field {
    fn get(&self, file: &[u8]) -> Option<u64> {
        let bytes = file.get(self.at..self.at + self.bytes)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.is_big {
            bytes.iter().fold(0, add)
        } else {
            bytes.iter().rev().fold(0, add)
        })
    }

    fn set(&self, file: &mut [u8], number: u64) {
        let bytes = number.to_be_bytes();
        let bytes = &bytes[8 - self.bytes..];
        let place = &mut file[self.at..self.at + self.bytes];
        place.copy_from_slice(bytes);
        if !self.is_big {
            place.reverse();
        }
    }
}

/// The parts of a file in order, whose order can be changed, and the numbers in them.
#[derive(Debug, Default)]
struct Anatomy {
    /// What stands before the first part and stays.
    begin: usize,
    parts: Vec<Range<usize>>,
    fields: Vec<Field>,
}

impl Anatomy {
    fn field(&mut self, at: usize, bytes: usize, is_big: bool) {
        self.fields.push(Field { at, bytes, is_big });
    }
}

fn number_at(file: &[u8], at: usize, bytes: usize, is_big: bool) -> Option<usize> {
    let field = Field { at, bytes, is_big };
    field.get(file).and_then(|number| number.try_into().ok())
}

/// Chunks with a length of four bytes before the name, and `after` bytes of a checksum.
fn png(file: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy {
        begin: 8,
        ..Anatomy::default()
    };
    let mut at = 8;
    while let Some(length) = number_at(file, at, 4, true) {
        let Some(end) = at.checked_add(length + 12).filter(|end| *end <= file.len()) else {
            break;
        };
        anatomy.parts.push(at..end);
        anatomy.field(at, 4, true);
        match &file[at + 4..at + 8] {
            b"IHDR" => {
                [(8, 4), (12, 4)]
                    .into_iter()
                    .for_each(|(place, bytes)| anatomy.field(at + place, bytes, true));
                (16..21).for_each(|place| anatomy.field(at + place, 1, true));
            }
            b"acTL" | b"fcTL" => {
                let words = (at + 8..end - 7).step_by(4);
                words.for_each(|place| anatomy.field(place, 4, true));
            }
            b"eXIf" | b"gAMA" | b"PLTE" | b"tRNS" => {
                (at + 8..end - 4).for_each(|place| anatomy.field(place, 1, true));
            }
            _ => {}
        }
        at = end;
    }
    anatomy
}

/// Segments up to the scan, each a marker and a length of two bytes; then the scan as one.
fn jpeg(file: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy {
        begin: 2,
        ..Anatomy::default()
    };
    let mut at = 2;
    while let Some(length) = number_at(file, at + 2, 2, true) {
        let end = at + 2 + length;
        if end > file.len() || file[at] != 0xff {
            break;
        }
        anatomy.field(at + 1, 1, true);
        anatomy.field(at + 2, 2, true);
        let marker = file[at + 1];
        if marker == 0xc0 || marker == 0xc2 {
            anatomy.field(at + 5, 2, true);
            anatomy.field(at + 7, 2, true);
        }
        // Precision, components, tables and their counts; Exif's directory.
        let inner = (at + 4..end).take(40);
        inner.for_each(|place| anatomy.field(place, 1, true));
        if marker == 0xda {
            anatomy.parts.push(at..file.len());
            break;
        }
        anatomy.parts.push(at..end);
        at = end;
    }
    anatomy
}

/// The screen, and then blocks: extensions and images, each with sub-blocks of a byte's length.
fn gif(file: &[u8]) -> Anatomy {
    let table = |flags: u8| match flags & 0x80 {
        0 => 0,
        _ => 3 << ((flags & 7) + 1),
    };
    let mut anatomy = Anatomy::default();
    [(6, 2), (8, 2), (10, 1), (11, 1)]
        .into_iter()
        .for_each(|(at, bytes)| anatomy.field(at, bytes, false));
    let mut at = 13 + table(file.get(10).copied().unwrap_or(0));
    anatomy.begin = at.min(file.len());
    while let Some(kind) = file.get(at) {
        let begin = at;
        at += match kind {
            0x21 => 2,
            0x2c => {
                let flags = file.get(at + 9).copied().unwrap_or(0);
                let words = [1, 3, 5, 7].map(|place| (at + place, 2));
                words
                    .into_iter()
                    .for_each(|(place, bytes)| anatomy.field(place, bytes, false));
                anatomy.field(at + 9, 1, false);
                let codes = at + 10 + table(flags);
                // The width of the first codes.
                anatomy.field(codes, 1, false);
                codes + 1 - at
            }
            _ => break,
        };
        while let Some(length) = file.get(at) {
            anatomy.field(at, 1, false);
            at += 1 + usize::from(*length);
            if *length == 0 {
                break;
            }
        }
        anatomy.parts.push(begin..at.min(file.len()));
    }
    anatomy
}

fn bmp(file: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy {
        begin: 54.min(file.len()),
        ..Anatomy::default()
    };
    // Where the pixels begin, the size of the header, width, height, compression, bytes, colours; planes and bits.
    [10, 14, 18, 22, 30, 34, 46, 50]
        .into_iter()
        .for_each(|at| anatomy.field(at, 4, false));
    [26, 28]
        .into_iter()
        .for_each(|at| anatomy.field(at, 2, false));
    // Masks, palette, runs.
    let rest = (54..file.len()).take(60);
    rest.for_each(|at| anatomy.field(at, 1, false));
    anatomy
}

/// Directories of entries of twelve bytes: tag, type, count, value or where it lies.
fn tiff(file: &[u8]) -> Anatomy {
    let is_big = file.first() == Some(&b'M');
    let mut anatomy = Anatomy::default();
    anatomy.field(4, 4, is_big);
    let mut next = number_at(file, 4, 4, is_big);
    for _ in 0..4 {
        let Some(at) = next.filter(|at| *at > 0) else {
            break;
        };
        let Some(count) = number_at(file, at, 2, is_big) else {
            break;
        };
        anatomy.field(at, 2, is_big);
        let inside = (file.len() - at) / 12;
        for entry in 0..count.min(inside) {
            let at = at + 2 + 12 * entry;
            let parts = [(0, 2), (2, 2), (4, 4), (8, 4), (8, 2)];
            parts
                .into_iter()
                .for_each(|(place, bytes)| anatomy.field(at + place, bytes, is_big));
        }
        next = number_at(file, at + 2 + 12 * count, 4, is_big);
        anatomy.field(at + 2 + 12 * count, 4, is_big);
    }
    anatomy
}

/// RIFF: chunks of a name and a length of four bytes.
fn webp(file: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy {
        begin: 12.min(file.len()),
        ..Anatomy::default()
    };
    let mut at = 12;
    while let Some(length) = number_at(file, at + 4, 4, false) {
        let end = at
            .saturating_add(8)
            .saturating_add(length.next_multiple_of(2));
        if end > file.len() {
            break;
        }
        anatomy.parts.push(at..end);
        anatomy.field(at + 4, 4, false);
        let inner = (at + 8..end).take(24);
        inner.for_each(|place| anatomy.field(place, 1, false));
        at = end;
    }
    anatomy
}

fn anatomy(file: &[u8]) -> Anatomy {
    let mut anatomy = match file {
        [0x89, b'P', ..] => png(file),
        [0xff, 0xd8, ..] => jpeg(file),
        [b'G', b'I', b'F', ..] => gif(file),
        [b'B', b'M', ..] => bmp(file),
        [b'R', b'I', b'F', b'F', ..] => webp(file),
        _ => tiff(file),
    };
    anatomy
        .fields
        .retain(|field| field.at + field.bytes <= file.len());
    anatomy
}

/// Sets right what a reader checks before anything else.
fn seal(file: &mut [u8]) {
    match file {
        [0x89, b'P', ..] => {
            for chunk in png(file).parts {
                let end = chunk.end - 4;
                let mut crc = flate2::Crc::new();
                crc.update(&file[chunk.start + 4..end]);
                file[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
            }
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, ..] => {
            let length = (file.len() - 8) as u32;
            file[4..8].copy_from_slice(&length.to_le_bytes());
        }
        [b'B', b'M', _, _, _, _, ..] => {
            let length = file.len() as u32;
            file[2..6].copy_from_slice(&length.to_le_bytes());
        }
        _ => {}
    }
}

/// Changes what a chunk of a PNG holds once it is unpacked: rows of pixels behind their filters.
fn change_pixels(choices: &mut Choices<'_>, file: &mut Vec<u8>) {
    let parts = png(file).parts;
    let Some(chunk) = parts
        .iter()
        .find(|chunk| &file[chunk.start + 4..chunk.start + 8] == b"IDAT")
    else {
        return;
    };
    let mut rows = Vec::new();
    let packed = &file[chunk.start + 8..chunk.end - 4];
    if ZlibDecoder::new(packed)
        .take(1 << 20)
        .read_to_end(&mut rows)
        .is_err()
    {
        return;
    }
    change_bytes(choices, &mut rows);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(&rows).and_then(|()| encoder.finish());
    let packed = packed.expect("memory takes everything");
    let length = (packed.len() as u32).to_be_bytes();
    let new = [&length, b"IDAT".as_slice(), &packed, &[0; 4]].concat();
    file.splice(chunk.clone(), new);
}

/// Changes the order of a file's parts.
fn change_parts(choices: &mut Choices<'_>, file: &mut Vec<u8>) {
    let Anatomy { begin, parts, .. } = anatomy(file);
    let end = parts.last().map_or(begin, |part| part.end);
    let mut parts: Vec<Vec<u8>> = parts.into_iter().map(|part| file[part].to_vec()).collect();
    change_order(choices, &mut parts);
    let rest = file.split_off(end.min(file.len()));
    file.truncate(begin);
    file.extend(parts.concat());
    file.extend(rest);
}

/// One of the images `valid` with up to four changes inside.
pub fn image(choices: &mut Choices<'_>, valid: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut file = valid[below(choices, valid.len())].1.clone();
    for _ in 0..below(choices, 5) {
        let fields = anatomy(&file).fields;
        match below(choices, 8) {
            0 => change_bytes(choices, &mut file),
            1 => change_parts(choices, &mut file),
            2 => change_pixels(choices, &mut file),
            _ if fields.is_empty() => {}
            _ => {
                let field = fields[below(choices, fields.len())];
                let was = field.get(&file).unwrap_or(0);
                let new = number(choices, was, 8 * field.bytes as u32);
                field.set(&mut file, new);
            }
        }
    }
    // A checksum that is wrong is a case too.
    if !once_in(choices, 16) {
        seal(&mut file);
    }
    file
}
