//! WebDataset shards: tar archives in which neighbouring files with one name and different endings form a sample.
//!
//! The key of a file is its name up to the first dot of the last part (`a/001` of `a/001.caption.txt`), the rest is the
//! member's ending. Files without a key (`.DS_Store`, `README`) and what macOS adds (`__MACOSX`) belong to no sample and are passed
//! over. Only places are
//! handed out, bytes are read on demand, so that a shard of any size costs no memory.

use std::collections::HashSet;
use std::path::Path;

use super::archive::{ArchiveEntry, ArchiveItem, Entries, InputFile};
use super::files::is_passed_over;
use keel_base::error::{Error, Result};
use keel_stores::Object;

/// Bounds on what one shard may ask for.
#[derive(Debug, Clone, Copy)]
pub struct ShardLimits {
    /// Largest member, bytes.
    pub member_bytes: u64,
    /// Largest sum over a sample's members, bytes.
    pub sample_bytes: u64,
}

impl Default for ShardLimits {
    /// 64 MiB a member, 256 MiB a sample.
    fn default() -> ShardLimits {
        ShardLimits {
            member_bytes: 64 << 20,
            sample_bytes: 256 << 20,
        }
    }
}

/// One file of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What follows the key and its dot, in lower case: "jpg", "caption.txt".
    pub ending: String,
    /// Where its bytes begin in the shard.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// Files with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSample {
    /// The name they share.
    pub key: String,
    /// In the order of the archive.
    pub members: Vec<Member>,
}

impl ShardSample {
    /// The first member whose ending is one of these.
    pub fn member(&self, endings: &[&str]) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| endings.contains(&member.ending.as_str()))
    }
}

/// Why a sample is left out although the shard can be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Its key came before, or one of its endings came twice.
    DuplicateKey,
    /// A member, or all of them together, is larger than the limit.
    TooLarge,
    /// An entry was refused: a link, a device, a name that climbs out.
    RefusedEntry,
}

/// What the walk over a shard yields.
#[derive(Debug)]
pub enum ShardItem {
    /// A usable sample.
    Sample(ShardSample),
    /// A sample left out, its key or entry, and the reason in words.
    Skipped(Defect, String, String),
}

/// One shard, readable at random by any thread.
#[derive(Debug)]
pub struct Shard {
    source: InputFile,
}

impl Shard {
    /// Opens an uncompressed tar file or object; its entries are looked at by [`Shard::samples`].
    ///
    /// # Errors
    /// As [`InputFile::open`].
    pub fn open(path: &Path) -> Result<Shard> {
        InputFile::open(path).map(|source| Shard { source })
    }

    /// A shard held in memory, called `name` in messages.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Shard {
        Shard {
            source: InputFile::memory(name, bytes),
        }
    }

    /// As [`InputFile::release_handle`].
    pub fn release_handle(&mut self) {
        self.source.release_handle();
    }

    /// As [`InputFile::begin_walk`].
    pub fn begin_walk(&mut self) {
        self.source.begin_walk();
    }

    /// As [`InputFile::end_walk`].
    pub fn end_walk(&mut self) {
        self.source.end_walk();
    }

    /// As [`InputFile::object`].
    pub fn object(&self) -> Option<&Object> {
        self.source.object()
    }

    /// What the shard is called in messages.
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// Walks the samples in order; reads headers only.
    ///
    /// An error ends the walk: the rest of the shard is lost, and the sample that was being collected with it.
    pub fn samples(&self, limits: ShardLimits) -> Samples<'_> {
        Samples {
            entries: Entries::new(&self.source),
            limits,
            seen: HashSet::new(),
            open: None,
            queue: None,
            finished: false,
        }
    }

    /// The bytes of a member.
    ///
    /// # Errors
    /// As [`InputFile::read`].
    pub fn read(&self, member: &Member) -> Result<Vec<u8>> {
        self.source.read(member.offset, member.size)
    }

    /// The `size` bytes at `offset`, for readers that keep places instead of members.
    ///
    /// # Errors
    /// As [`InputFile::read`].
    pub fn read_at(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        self.source.read(offset, size)
    }
}

/// The sample being collected, with the first thing found wrong with it.
struct OpenSample {
    sample: ShardSample,
    bytes: u64,
    defect: Option<(Defect, String)>,
}

/// The walk over a shard.
pub struct Samples<'a> {
    entries: Entries<'a>,
    limits: ShardLimits,
    seen: HashSet<String>,
    open: Option<OpenSample>,
    queue: Option<ShardItem>,
    finished: bool,
}

impl Samples<'_> {
    /// Ends the open sample, if there is one.
    fn close(&mut self) -> Option<ShardItem> {
        let OpenSample { sample, defect, .. } = self.open.take()?;
        Some(match defect {
            None => ShardItem::Sample(sample),
            Some((defect, reason)) => ShardItem::Skipped(defect, sample.key, reason),
        })
    }

    /// Adds an entry to the open sample or starts the next, returning the one that this ends.
    fn add(&mut self, entry: ArchiveEntry) -> Option<ShardItem> {
        let (key, ending) = key_and_ending(&entry.name)?;
        let mut ended = None;
        if self.open.as_ref().is_none_or(|open| open.sample.key != key) {
            ended = self.close();
            let defect = (!self.seen.insert(key.to_owned())).then(|| {
                let reason = "its key came before; a sample's files must lie side by side";
                (Defect::DuplicateKey, reason.to_owned())
            });
            self.open = Some(OpenSample {
                sample: ShardSample {
                    key: key.to_owned(),
                    members: Vec::new(),
                },
                bytes: 0,
                defect,
            });
        }
        let open = self.open.as_mut().expect("opened above when it was not");
        let ending = ending.to_lowercase();
        open.bytes = open.bytes.saturating_add(entry.size);
        let defect = if open
            .sample
            .members
            .iter()
            .any(|member| member.ending == ending)
        {
            Some((
                Defect::DuplicateKey,
                format!("{} is there twice", entry.name),
            ))
        } else if entry.size > self.limits.member_bytes {
            let limit = self.limits.member_bytes;
            let size = entry.size;
            Some((
                Defect::TooLarge,
                format!("{} has {size} bytes, the limit is {limit}", entry.name),
            ))
        } else if open.bytes > self.limits.sample_bytes {
            let limit = self.limits.sample_bytes;
            Some((
                Defect::TooLarge,
                format!("its files have more than {limit} bytes"),
            ))
        } else {
            None
        };
        open.defect = open.defect.take().or(defect);
        open.sample.members.push(Member {
            ending,
            offset: entry.offset,
            size: entry.size,
        });
        ended
    }

    fn advance(&mut self) -> Option<Result<ShardItem>> {
        if let Some(step) = self.queue.take() {
            return Some(Ok(step));
        }
        // A sample ends where an entry of another key begins, so each is handed out one entry late; a refused entry may end
        // one and be an item itself, which then waits in the queue.
        while !self.finished {
            match self.entries.next() {
                None => {
                    self.finished = true;
                    return self.close().map(Ok);
                }
                Some(Err(error)) => {
                    self.finished = true;
                    return Some(Err(error));
                }
                Some(Ok(ArchiveItem::File(entry))) => {
                    if let Some(step) = self.add(entry) {
                        return Some(Ok(step));
                    }
                }
                Some(Ok(ArchiveItem::Refused(name, reason))) => {
                    // A refused entry that belongs to the open sample takes the whole sample with it.
                    if let (Some(open), Some((key, _))) = (&mut self.open, key_and_ending(&name))
                        && open.sample.key == key
                    {
                        let reason = format!("{name}: {reason}");
                        open.defect = open.defect.take().or(Some((Defect::RefusedEntry, reason)));
                        continue;
                    }
                    let refused = ShardItem::Skipped(Defect::RefusedEntry, name, reason);
                    return Some(Ok(match self.close() {
                        Some(ended) => {
                            self.queue = Some(refused);
                            ended
                        }
                        None => refused,
                    }));
                }
            }
        }
        None
    }
}

impl Iterator for Samples<'_> {
    type Item = Result<ShardItem>;

    fn next(&mut self) -> Option<Result<ShardItem>> {
        self.advance()
    }
}

/// Cuts a name at the first dot of its last part; nothing when there is no key or no ending, or it is passed over.
fn key_and_ending(name: &str) -> Option<(&str, &str)> {
    if is_passed_over(Path::new(name)) {
        return None;
    }
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    let (key, ending) = (&name[..dot], &name[dot + 1..]);
    (dot > base && !ending.is_empty()).then_some((key, ending))
}

/// Most shards one pattern may name.
const MAX_SHARDS: usize = 1 << 20;

/// Replaces every `{000..009}` in a pattern by its numbers, with their leading zeros.
///
/// # Errors
/// [`Error::Setting`] when a brace is not closed, its range runs backwards or is not two numbers, or the pattern names
/// more than a million shards.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let problem = |want: &str| Error::setting("data pattern", want, pattern);
    let Some(start) = pattern.find('{') else {
        return Ok(vec![pattern.to_owned()]);
    };
    let length = pattern[start..]
        .find('}')
        .ok_or_else(|| problem("a closing } for every {"))?;
    let range = &pattern[start + 1..start + length];
    let (first, last) = range
        .split_once("..")
        .ok_or_else(|| problem("a range such as {000..009}"))?;
    let number = |digits: &str| -> Result<usize> {
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        let value = digits.parse().ok().filter(|_| all_digits);
        value.ok_or_else(|| problem("a range of whole numbers such as {000..009}"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(problem("a range that counts up"));
    }
    if to - from >= MAX_SHARDS {
        return Err(problem("at most a million shards"));
    }
    let rest = expand_braces(&pattern[start + length + 1..])?;
    if (to - from + 1).saturating_mul(rest.len()) > MAX_SHARDS {
        return Err(problem("at most a million shards"));
    }
    let width = if first.starts_with('0') || last.starts_with('0') {
        first.len()
    } else {
        0
    };
    let mut names = Vec::with_capacity((to - from + 1) * rest.len());
    for value in from..=to {
        for tail in &rest {
            names.push(format!("{}{value:0width$}{tail}", &pattern[..start]));
        }
    }
    Ok(names)
}
