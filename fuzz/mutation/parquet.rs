//! Parquet files changed in their footer, in the headers of their pages and in what the pages hold.

use crate::thrift::Thrift;
use crate::{Choices, below, change_bytes, number, once_in, one_of};

macro_rules! goldens {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../verify/goldens/parquet/", $name, ".parquet")).as_slice())),*]
    };
}

/// Files as pyarrow and `datasets` write them (tools/golden_parquet.py).
const VALID: [(&str, &[u8]); 12] = goldens![
    "captions",
    "captions-lz4",
    "captions-v2",
    "captions-zstd",
    "conversations",
    "conversations-v2",
    "labels",
    "messages",
    "nulls",
    "numbers",
    "paths",
    "texts",
];

/// The files that are changed, by name.
pub fn valid_parquet() -> &'static [(&'static str, &'static [u8])] {
    &VALID
}

/// How a file begins and ends.
const MAGIC: &[u8] = b"PAR1";

/// A file in its parts: what lies before the footer, and the footer.
struct File {
    body: Vec<u8>,
    footer: Thrift,
}

fn parts(bytes: &[u8]) -> Option<File> {
    let end = bytes.len().checked_sub(8)?;
    let length = u32::from_le_bytes(bytes[end..end + 4].try_into().ok()?) as usize;
    let begin = end.checked_sub(length)?;
    let (footer, _) = Thrift::read(&bytes[begin..end])?;
    Some(File {
        body: bytes[..begin].to_vec(),
        footer,
    })
}

impl File {
    /// Where the first pages of columns begin.
    fn pages(&mut self) -> Vec<usize> {
        let mut places = Vec::new();
        self.each_chunk(|_, meta| {
            // Of data, and of a dictionary.
            for id in [9, 11] {
                places.extend(meta.int(id).map(|offset| *offset as usize));
            }
        });
        places.retain(|place| *place < self.body.len());
        places
    }

    /// Calls `with` on each column chunk and its metadata.
    fn each_chunk(&mut self, mut with: impl FnMut(Option<&mut i64>, &mut Thrift)) {
        let Some(groups) = self.footer.field(4) else {
            return;
        };
        for group in groups.items() {
            let Some(columns) = group.field(1) else {
                continue;
            };
            for chunk in columns.items() {
                let mut offset = chunk.int(2).map(|offset| *offset);
                if let Some(meta) = chunk.field(3) {
                    with(offset.as_mut(), meta);
                }
                if let (Some(place), Some(offset)) = (chunk.int(2), offset) {
                    *place = offset;
                }
            }
        }
    }

    /// Puts `new` in the place of `length` bytes at `place`, and sets the offsets and sizes that point past it right.
    fn replace(&mut self, place: usize, length: usize, new: Vec<u8>) {
        let moved = new.len() as i64 - length as i64;
        self.body.splice(place..place + length, new);
        let place = place as i64;
        let end = |begin: i64, size: i64| begin.saturating_add(size);
        self.each_chunk(|offset, meta| {
            let [data, index, dictionary] = [9, 10, 11].map(|id| meta.int(id).copied());
            let begin = [data, dictionary].into_iter().flatten().min().unwrap_or(0);
            if let Some(size) = meta.int(7)
                && (begin..end(begin, *size)).contains(&place)
            {
                *size += moved;
            }
            for (id, offset) in [(9, data), (10, index), (11, dictionary)] {
                if let Some(known) = meta.int(id)
                    && offset.is_some_and(|offset| offset > place)
                {
                    *known = end(*known, moved);
                }
            }
            if let Some(offset) = offset
                && *offset > place
            {
                *offset = end(*offset, moved);
            }
        });
    }

    /// Changes the header of a page, or what follows it.
    fn change_page(&mut self, choices: &mut Choices<'_>) {
        let pages = self.pages();
        if pages.is_empty() {
            return;
        }
        let place = one_of(choices, &pages);
        let Some((mut header, length)) = Thrift::read(&self.body[place..]) else {
            return;
        };
        if once_in(choices, 2) {
            header.change(choices);
            let mut new = Vec::new();
            header.write(&mut new);
            self.replace(place, length, new);
            return;
        }
        let size = header.int(3).map_or(0, |size| *size as usize);
        let begin = place + length;
        let end = (begin + size).min(self.body.len());
        let mut content = self.body[begin..end].to_vec();
        change_bytes(choices, &mut content);
        // The header goes on to tell the truth about its size.
        if let Some(size) = header.int(3) {
            *size = content.len() as i64;
        }
        let mut new = Vec::new();
        header.write(&mut new);
        new.extend(content);
        self.replace(place, end - place, new);
    }
}

/// One of the valid files with up to three changes inside.
pub fn parquet(choices: &mut Choices<'_>) -> Vec<u8> {
    let (name, valid) = one_of(choices, &VALID);
    let mut file = parts(valid).unwrap_or_else(|| panic!("{name} is a Parquet file"));
    for _ in 0..below(choices, 4) {
        if once_in(choices, 2) {
            file.change_page(choices);
        } else {
            file.footer.change(choices);
        }
    }
    let mut bytes = file.body;
    let begin = bytes.len();
    file.footer.write(&mut bytes);
    let mut length = (bytes.len() - begin) as u64;
    if once_in(choices, 12) {
        length = number(choices, length, 32);
    }
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend(MAGIC);
    bytes
}
