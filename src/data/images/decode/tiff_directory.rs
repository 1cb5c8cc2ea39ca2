//! The directory that a TIFF stream begins with: of TIFF files, and of Exif in all others.

/// The types of one short and of one long number.
const SHORT: u16 = 3;
const LONG: u16 = 4;

/// Bytes of a value of each type; the first is none.
const SIZES: [u64; 14] = [1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4];

/// The first directory of a TIFF stream (TIFF 6.0, section 2).
pub(super) struct Directory<'a> {
    stream: &'a [u8],
    /// Twelve bytes each: tag, type, count, value or its place.
    entries: &'a [u8],
    /// Where they begin in the stream.
    first: usize,
    is_big_endian: bool,
}

impl<'a> Directory<'a> {
    /// Reads where the entries are; nothing where the stream is no TIFF, or has fewer than it claims.
    pub fn of(stream: &'a [u8]) -> Option<Directory<'a>> {
        let (directory, is_whole) = Directory::begun(stream)?;
        is_whole.then_some(directory)
    }

    /// As [`Directory::of`], with those entries that are there where more are claimed, and whether all are: metadata are read as
    /// far as they go.
    pub fn begun(stream: &'a [u8]) -> Option<(Directory<'a>, bool)> {
        let is_big_endian = match stream.get(..4)? {
            b"II*\0" => false,
            b"MM\0*" => true,
            _ => return None,
        };
        let mut directory = Directory {
            stream,
            entries: &[],
            first: 0,
            is_big_endian,
        };
        let start = directory.word(stream.get(4..)?)? as usize;
        let body = stream.get(start..)?;
        let size = 12 * usize::from(directory.half(body)?);
        directory.first = start + 2;
        let entries = body.get(2..)?;
        directory.entries = &entries[..size.min(entries.len())];
        Some((directory, size <= entries.len()))
    }

    fn half(&self, bytes: &[u8]) -> Option<u16> {
        let bytes = *bytes.first_chunk()?;
        Some(if self.is_big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    }

    fn word(&self, bytes: &[u8]) -> Option<u32> {
        let bytes = *bytes.first_chunk()?;
        Some(if self.is_big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn entry(&self, tag: u16) -> Option<&'a [u8]> {
        let mut entries = self.entries.chunks_exact(12);
        entries.find(|entry| self.half(entry) == Some(tag))
    }

    /// The value of a tag of one number, short or long.
    pub fn number(&self, tag: u16) -> Option<u32> {
        let entry = self.entry(tag)?;
        if self.word(&entry[4..])? != 1 {
            return None;
        }
        match self.half(&entry[2..])? {
            SHORT => self.half(&entry[8..]).map(u32::from),
            LONG => self.word(&entry[8..]),
            _ => None,
        }
    }

    /// Whether no tag claims more values than the stream has bytes for.
    pub fn is_inside(&self) -> bool {
        let mut entries = self.entries.chunks_exact(12);
        entries.all(|entry| {
            let kind = self.half(&entry[2..]).unwrap_or_default();
            let count = self.word(&entry[4..]).unwrap_or_default();
            let size = SIZES.get(usize::from(kind)).copied().unwrap_or(1);
            u64::from(count) * size <= self.stream.len() as u64
        })
    }

    /// The bytes of a tag that keeps more than four of them.
    pub fn bytes(&self, tag: u16) -> Option<&'a [u8]> {
        let entry = self.entry(tag)?;
        let size = self.word(&entry[4..])? as usize;
        let start = self.word(&entry[8..])? as usize;
        self.stream.get(start..)?.get(..size)
    }

    /// Whether the larger byte of a number comes first.
    pub fn is_big_endian(&self) -> bool {
        self.is_big_endian
    }

    /// Where in the stream the value of a tag of one short number stands.
    pub fn value_place(&self, tag: u16) -> Option<usize> {
        let mut entries = self.entries.chunks_exact(12);
        let index = entries.position(|entry| self.half(entry) == Some(tag))?;
        let is_short = self.half(&self.entries[12 * index + 2..]) == Some(SHORT);
        is_short.then_some(self.first + 12 * index + 8)
    }

    /// The short numbers of a tag that keeps more than two of them.
    pub fn shorts(&self, tag: u16) -> Option<Vec<u16>> {
        let entry = self.entry(tag)?;
        let count = self.word(&entry[4..])? as usize;
        if self.half(&entry[2..])? != SHORT || count < 3 {
            return None;
        }
        let start = self.word(&entry[8..])? as usize;
        let bytes = self.stream.get(start..)?.get(..count.checked_mul(2)?)?;
        bytes.chunks_exact(2).map(|pair| self.half(pair)).collect()
    }
}
