//! Tar archives as lists of entries: reads headers, checks them, and hands out where each file's bytes lie.
//!
//! Written for archives nobody vouches for. Nothing is ever unpacked to disk, names stay names, sizes are checked
//! against the bytes that are there, and an archive that was cut short is noticed even at an entry's border, where
//! only the missing end marker tells. Understands the ustar, GNU (long names) and PAX (path, size) forms; compressed
//! archives are read only from memory (those of the embedded concepts), because samples are read at random.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::open_file;
use super::remote;
use keel_base::error::{Error, Result};
use keel_stores::{Object, Windows};

/// The unit of the format: headers are one block, contents are padded to whole blocks.
const BLOCK: u64 = 512;

/// Largest long name or PAX header believed, bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Bytes that can be read from any place by any thread: a file, an object of a store, or memory.
#[derive(Debug)]
pub struct InputFile {
    /// What the bytes are called in messages.
    pub name: String,
    bytes: Bytes,
    len: u64,
}

#[derive(Debug)]
enum Bytes {
    /// A file, open or to be opened for every read.
    File(PathBuf, Option<File>),
    /// An object, and what is held of it while it is walked over.
    Remote(Arc<Object>, Option<Mutex<Windows>>),
    Memory(Vec<u8>),
}

impl InputFile {
    /// Opens a file or an object for reading.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Content`] when it is not a regular file, [`Error::Stopped`] when a
    /// store does not answer.
    pub fn open(path: &Path) -> Result<InputFile> {
        if let Some(address) = remote::address_of(path) {
            let object = remote::open(address)?;
            return Ok(InputFile {
                name: object.name().to_owned(),
                len: object.size(),
                bytes: Bytes::Remote(object, None),
            });
        }
        let (file, metadata) = open_file(path)?;
        Ok(InputFile {
            name: path.display().to_string(),
            len: metadata.len(),
            bytes: Bytes::File(path.to_owned(), Some(file)),
        })
    }

    /// Bytes already in memory, called `name`.
    pub fn memory(name: impl Into<String>, bytes: Vec<u8>) -> InputFile {
        InputFile {
            name: name.into(),
            len: bytes.len() as u64,
            bytes: Bytes::Memory(bytes),
        }
    }

    /// Gives the file handle back; later reads open the file for themselves. For more files than a process may hold.
    pub fn release_handle(&mut self) {
        if let Bytes::File(_, file) = &mut self.bytes {
            *file = None;
        }
    }

    /// Reads on from the beginning, with gaps, until [`InputFile::end_walk`]: of an object more is fetched than is asked for.
    pub fn begin_walk(&mut self) {
        if let Bytes::Remote(object, windows) = &mut self.bytes {
            *windows = Some(Mutex::new(Windows::new(object.clone())));
        }
    }

    /// Lets go of what was fetched ahead.
    pub fn end_walk(&mut self) {
        if let Bytes::Remote(_, windows) = &mut self.bytes {
            *windows = None;
        }
    }

    /// The object that these are the bytes of.
    pub fn object(&self) -> Option<&Object> {
        match &self.bytes {
            Bytes::Remote(object, _) => Some(object),
            _ => None,
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `size` bytes at `offset`.
    ///
    /// # Errors
    /// [`Error::Content`] when they lie outside (nothing is allocated then), [`Error::Io`] when reading fails, also
    /// because the file has become shorter since it was opened; [`Error::Stopped`] when an object cannot be read, or is not
    /// the one that was opened.
    pub fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        if offset.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(Error::content(
                &self.name,
                format!(
                    "{size} bytes at {offset} lie beyond its end at {}",
                    self.len
                ),
                "fetch the file again",
            ));
        }
        match &self.bytes {
            Bytes::Memory(bytes) => Ok(bytes[offset as usize..(offset + size) as usize].to_vec()),
            Bytes::Remote(object, windows) => {
                let read = match windows {
                    Some(windows) => {
                        // What is held is whole after every read.
                        let mut windows = windows.lock().unwrap_or_else(PoisonError::into_inner);
                        windows.read(offset, size)
                    }
                    None => object.read(offset, size),
                };
                read.map_err(|failure| remote::stopped(&self.name, failure))
            }
            Bytes::File(path, file) => {
                let mut bytes = vec![0; size as usize];
                let outcome = match file {
                    Some(file) => file.read_exact_at(&mut bytes, offset),
                    None => {
                        File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset))
                    }
                };
                outcome.map_err(|e| Error::io(path, "read", e))?;
                Ok(bytes)
            }
        }
    }
}

/// A regular file inside an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveEntry {
    /// Its whole name, with folders.
    pub name: String,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// What the walk over an archive meets.
#[derive(Debug)]
pub enum ArchiveItem {
    /// A regular file.
    File(ArchiveEntry),
    /// An entry that is not used, with its name and the reason; the entries after it can be.
    Refused(String, String),
}

/// Walks the entries of an archive in order; ends after the end marker or after the first error.
///
/// An error means that the rest of the archive is lost: it is damaged, cut short, or no archive.
pub struct Entries<'a> {
    source: &'a InputFile,
    position: u64,
    finished: bool,
}

impl<'a> Entries<'a> {
    /// Starts at the first entry.
    pub fn new(source: &'a InputFile) -> Entries<'a> {
        Entries {
            source,
            position: 0,
            finished: false,
        }
    }

    fn damaged(&self, problem: impl ToString, remedy: &str) -> Error {
        Error::content(&self.source.name, problem.to_string(), remedy)
    }

    /// The next entry that is not a folder, or nothing after a correct end.
    fn advance(&mut self) -> Result<Option<ArchiveItem>> {
        // An archive is a chain: each header says where the next one is, and some headers only say more about the one after
        // them. So entries are met one by one, and what was said ahead is kept until its entry comes.
        let mut extended = Extension::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let offset = self.position + BLOCK;
            let size = match header.kind {
                // Links, devices and folders have no content, whatever is claimed: as Python's tarfile has it.
                b'1'..=b'6' => 0,
                // What was said ahead is of the entry, not of another header before it.
                b'L' | b'x' | b'g' | b'K' => header.size,
                _ => extended.size.unwrap_or(header.size),
            };
            let name = extended.name.as_ref().unwrap_or(&header.name);
            let end = self.end_of(name, offset, size)?;
            // The padding of the last entry may be missing only together with the end marker.
            self.position = end.next_multiple_of(BLOCK);
            match header.kind {
                b'L' | b'x' | b'g' => self.extend(&mut extended, header.kind, offset, size)?,
                // GNU long link targets say nothing that is used here.
                b'K' => {}
                // A folder. Before ustar, it was a file whose name ends in a slash.
                b'5' => extended = Extension::default(),
                b'0' | 0 | b'7' if name.ends_with(b"/") => extended = Extension::default(),
                _ if extended.is_sparse => return Ok(Some(item(b'S', name, offset, size))),
                kind => return Ok(Some(item(kind, name, offset, size))),
            }
        }
    }

    /// The header at the present position; nothing at the end marker.
    fn header(&self) -> Result<Option<Header>> {
        if self.position + BLOCK > self.source.len() {
            let problem = match self.source.len() {
                0 => "the archive is empty".to_owned(),
                len if self.position < len => {
                    format!(
                        "the archive is cut short inside the header at byte {}",
                        self.position
                    )
                }
                len => format!("the archive is cut short: its {len} bytes have no end marker"),
            };
            return Err(self.damaged(problem, "fetch or pack it again"));
        }
        let block = self.source.read(self.position, BLOCK)?;
        if block.iter().all(|&byte| byte == 0) {
            self.check_nothing_follows()?;
            return Ok(None);
        }
        let header = Header::parse(&block).map_err(|problem| self.bad_header(&block, problem))?;
        Ok(Some(header))
    }

    /// Where the content of an entry ends, which must be inside the archive.
    fn end_of(&self, name: &[u8], offset: u64, size: u64) -> Result<u64> {
        let end = offset
            .checked_add(size)
            .filter(|&end| end <= self.source.len());
        end.ok_or_else(|| {
            self.damaged(
                format!(
                    "entry {} claims {size} bytes, {} are left in the archive",
                    shown(name),
                    self.source.len() - offset
                ),
                "the archive was cut short or altered: fetch or pack it again",
            )
        })
    }

    /// Takes in what a header of kind `L` or `x` says about the entry after it, or one of kind `g` about all of them. What
    /// readers would take differently is refused, or one of them would see other files than another.
    fn extend(&self, extended: &mut Extension, kind: u8, offset: u64, size: u64) -> Result<()> {
        let place = offset - BLOCK;
        if size > MAX_EXTENSION_BYTES {
            let problem = format!("a name of {size} bytes is claimed at byte {place}");
            return Err(self.damaged(problem, "pack it again with ordinary names"));
        }
        let bytes = self.source.read(offset, size)?;
        let mut said = Extension::default();
        let outcome = if kind == b'L' {
            said.name = Some(until_zero(&bytes).to_vec());
            Ok(())
        } else {
            said.add_pax(&bytes)
        };
        let outcome = outcome.and_then(|()| match kind {
            b'g' if said.is_of_one_entry() => Err("what only one entry can have is said of all"),
            b'g' => Ok(()),
            _ => extended.add(said),
        });
        outcome.map_err(|problem| {
            let problem = format!("{problem} in the extended header at byte {place}");
            self.damaged(problem, "pack it again")
        })
    }

    /// After the end marker only padding may come: anything else would be samples lost without a word.
    fn check_nothing_follows(&self) -> Result<()> {
        let mut position = self.position;
        while position < self.source.len() {
            let size = (self.source.len() - position).min(1 << 16);
            if self
                .source
                .read(position, size)?
                .iter()
                .any(|&byte| byte != 0)
            {
                return Err(self.damaged(
                    format!("there are data behind the end marker at byte {}", self.position),
                    "archives strung together or damaged cannot be read: pack them as one, or give each by itself",
                ));
            }
            position += size;
        }
        Ok(())
    }

    fn bad_header(&self, block: &[u8], problem: &str) -> Error {
        let is_tar = self.position > 0 || &block[257..262] == b"ustar";
        if is_tar {
            return self.damaged(
                format!(
                    "the header at byte {} is damaged ({problem})",
                    self.position
                ),
                "fetch or pack it again",
            );
        }
        let (found, remedy) = match block {
            [0x1f, 0x8b, ..] => (
                "gzip-compressed",
                "unpack it with gunzip: samples are read at random",
            ),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => (
                "zstd-compressed",
                "unpack it with unzstd: samples are read at random",
            ),
            [0xfd, b'7', b'z', ..] => (
                "xz-compressed",
                "unpack it with unxz: samples are read at random",
            ),
            [b'P', b'K', 3, 4, ..] => ("a zip archive", "pack it as tar"),
            _ if block.starts_with(b"version https://git-lfs") => (
                "a Git LFS pointer, not the archive itself",
                "fetch it with git lfs pull",
            ),
            _ => ("not a tar archive", "name a tar archive"),
        };
        self.damaged(format!("it is {found}"), remedy)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<ArchiveItem>;

    fn next(&mut self) -> Option<Result<ArchiveItem>> {
        if self.finished {
            return None;
        }
        let outcome = self.advance().transpose();
        self.finished = !matches!(outcome, Some(Ok(_)));
        outcome
    }
}

/// What an entry that is no folder and no extension comes to.
fn item(kind: u8, name: &[u8], offset: u64, size: u64) -> ArchiveItem {
    let what = match kind {
        b'0' | 0 | b'7' => {
            return match checked_name(name) {
                Ok(name) => ArchiveItem::File(ArchiveEntry { name, offset, size }),
                Err(problem) => ArchiveItem::Refused(shown(name), problem),
            };
        }
        b'1' | b'2' => "it is a link",
        b'3' | b'4' | b'6' => "it is a device",
        b'S' => "it is a sparse file",
        _ => "its kind is unknown",
    };
    ArchiveItem::Refused(shown(name), what.to_owned())
}

/// The fields of a header that are used.
struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    /// Reads a block of 512 bytes (POSIX.1-1988 ustar layout), checksum first.
    fn parse(block: &[u8]) -> Result<Header, &'static str> {
        let stored = number(&block[148..156]).ok_or("its checksum is not a number")?;
        // The checksum counts its own field as spaces.
        let (mut unsigned, mut signed) = (8 * u64::from(b' '), 8 * i64::from(b' '));
        for part in [&block[..148], &block[156..]] {
            for &byte in part {
                unsigned += u64::from(byte);
                // Some old archivers summed signed bytes.
                signed += i64::from(byte as i8);
            }
        }
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return Err("its checksum does not match");
        }
        let size = number(&block[124..136]).ok_or("its size is not a number")?;
        let mut name = until_zero(&block[..100]).to_vec();
        let prefix = until_zero(&block[345..500]);
        // GNU archives use the prefix field for other things.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = [prefix, b"/", name.as_slice()].concat();
        }
        Ok(Header {
            name,
            size,
            kind: block[156],
        })
    }
}

/// A name or size given ahead of the entry it belongs to.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Its content is a map of a file with holes, and what lies between them.
    is_sparse: bool,
}

impl Extension {
    fn is_of_one_entry(&self) -> bool {
        self.name.is_some() || self.size.is_some() || self.is_sparse
    }

    /// Takes in what another header says of the same entry.
    fn add(&mut self, other: Extension) -> Result<(), &'static str> {
        if self.name.is_some() && other.name.is_some() {
            return Err("a second name");
        }
        if self.size.is_some() && other.size.is_some() {
            return Err("a second size");
        }
        self.name = self.name.take().or(other.name);
        self.size = self.size.or(other.size);
        self.is_sparse |= other.is_sparse;
        Ok(())
    }

    /// Takes `path` and `size` from records of the form "length key=value\n" (POSIX.1-2001).
    fn add_pax(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !until_zero(bytes).is_empty() {
            let space = bytes
                .iter()
                .position(|&byte| byte == b' ')
                .ok_or("a record has no length")?;
            let length: usize = std::str::from_utf8(&bytes[..space])
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or("a record's length is not a number")?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err("a record's length is wrong");
            }
            let record = &bytes[space + 1..length - 1];
            let equals = record
                .iter()
                .position(|&byte| byte == b'=')
                .ok_or("a record has no value")?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => self.name = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value)
                        .ok()
                        .and_then(|digits| digits.parse().ok());
                    self.size = Some(size.ok_or("the size is not a number")?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

/// Octal digits between spaces and zero bytes, or GNU's big-endian binary form with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..].iter().try_fold(first, |value, &byte| {
            value.checked_mul(256)?.checked_add(u64::from(byte))
        });
    }
    let text = std::str::from_utf8(until_zero(field))
        .ok()?
        .trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    &bytes[..end]
}

/// The name without leading "./", when it stays inside the archive.
fn checked_name(name: &[u8]) -> Result<String, String> {
    let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8")?;
    if name.starts_with('/') {
        return Err("its name is an absolute path".to_owned());
    }
    if name.split('/').any(|part| part == "..") {
        return Err("its name climbs out of the archive".to_owned());
    }
    let name = name.trim_start_matches("./");
    if name.is_empty() {
        return Err("it has no name".to_owned());
    }
    Ok(name.to_owned())
}

/// A name for messages: at most 80 characters, control characters made visible.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}
