//! Pairs in WebDataset shards: an image and a caption or a JSON record of one key.

use std::io::Read;
use std::path::Path;

use rayon::prelude::*;

use super::archive::InputFile;
use super::digest;
use super::limits::{IMAGE_ENDINGS, MAX_TEXT_BYTES, PairLimits, unread};
use super::records;
use super::remote;
use super::shard_index::{self, ShardIndex, ShardPair};
use super::skips::{Note, RAISE, Reason, SkipLog};
use super::sums::Checks;
use super::webdataset::{Defect, Shard, ShardItem, ShardLimits, ShardSample};
use keel_base::error::{Error, Result};
use keel_stores::{Object, is_address};

/// Endings of a sample's members taken for its caption, the first present wins.
const CAPTION_ENDINGS: [&str; 4] = ["txt", "text", "caption", "caption.txt"];

/// Shards kept open; with more, each is opened for every read, since a process may hold about a thousand files.
const MAX_OPEN_SHARDS: usize = 256;

/// Opened shards.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// What each that is remote is told by.
    versions: Vec<Option<String>>,
    /// The usable samples.
    pub pairs: Vec<ShardPair>,
}

impl Shards {
    /// The shard that a pair lies in.
    pub fn origin(&self, index: usize) -> &str {
        self.shards[self.pairs[index].shard].name()
    }

    /// What a pair is called in its shard.
    pub fn key(&self, index: usize) -> String {
        self.pairs[index].key.to_string()
    }

    /// A pair's words, with the name that messages call it by; and its image, where that is wanted and one request to a store
    /// gives both.
    pub fn words(
        &self,
        index: usize,
        with_image: bool,
    ) -> Result<(String, records::RecordText, Option<Vec<u8>>)> {
        let pair = &self.pairs[index];
        let shard = &self.shards[pair.shard];
        let name = format!("{}: {}", shard.name(), pair.key);
        let (text, image) = match pair
            .span()
            .filter(|_| with_image && shard.object().is_some())
        {
            None => (shard.read_at(pair.text.0, pair.text.1)?, None),
            Some((start, size)) => {
                let bytes = shard.read_at(start, size)?;
                let part = |(offset, size): (u64, u64)| {
                    bytes[(offset - start) as usize..][..size as usize].to_vec()
                };
                (part(pair.text), Some(part(pair.image)))
            }
        };
        let words = words_of(&name, &text, pair.is_json).map_err(|(_, error)| error)?;
        Ok((name, words, image))
    }

    /// Whether what a pair is read from is an object of a store.
    pub fn is_remote(&self) -> bool {
        self.versions.iter().any(Option::is_some)
    }

    /// The shards that are objects of a store.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.shards.iter().filter_map(Shard::object)
    }

    /// Takes in every pair's key and text, and where its image lies in its shard. The content of a shard that is remote counts
    /// by its size and by what its store tells it by.
    ///
    /// # Errors
    /// [`Error::Io`] naming a shard that cannot be read.
    pub fn add_to(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        for version in self.versions.iter().flatten() {
            digest::add_text(hasher, version.as_bytes());
        }
        let text = |pair: &ShardPair| match self.versions[pair.shard] {
            Some(_) => Ok(Vec::new()),
            None => self.shards[pair.shard].read_at(pair.text.0, pair.text.1),
        };
        let texts: Vec<Result<blake3::Hash>> = self
            .pairs
            .par_iter()
            .map(|pair| Ok(blake3::hash(&text(pair)?)))
            .collect();
        for (pair, text) in self.pairs.iter().zip(texts) {
            digest::add_text(hasher, pair.key.as_bytes());
            hasher.update(text?.as_bytes());
            for number in [pair.shard as u64, pair.image.0, pair.image.1] {
                hasher.update(&number.to_le_bytes());
            }
        }
        Ok(())
    }

    /// The first bytes of a pair's image file, at most so many.
    pub fn beginning(&self, index: usize, most: u64) -> Result<Vec<u8>> {
        let pair = &self.pairs[index];
        let (offset, size) = pair.image;
        self.shards[pair.shard].read_at(offset, size.min(most))
    }

    /// The bytes of a pair's image file.
    pub fn image_bytes(&self, index: usize) -> Result<Vec<u8>> {
        let pair = &self.pairs[index];
        self.shards[pair.shard].read_at(pair.image.0, pair.image.1)
    }
}

/// The caption in a text or JSON member, or the reason there is none.
fn words_of(
    name: &str,
    bytes: &[u8],
    is_json: bool,
) -> Result<records::RecordText, (Reason, Error)> {
    if is_json {
        records::words_of_json(name, bytes)?.for_images(name, 1)
    } else {
        records::caption_of_text(name, bytes).map(records::RecordText::caption)
    }
}

/// What one shard gave: its pairs, what was left out, and the error that ended it early.
struct Scan {
    shard: Shard,
    /// What it is told by, where it is remote.
    version: Option<String>,
    found: ShardIndex,
    damage: Option<Error>,
}

/// Opens shards and looks at every sample once.
///
/// # Errors
/// As [`super::pairs::Pairs::open`].
pub(super) fn open(paths: &[String], limits: PairLimits, skips: &SkipLog) -> Result<Shards> {
    let many = paths.len() > MAX_OPEN_SHARDS;
    let checks = Checks::beside(paths)?;
    checks
        .remarks(paths)
        .into_iter()
        .for_each(|remark| skips.remark(remark));
    let scan = |(number, path): (usize, &String)| {
        let opened = open_shard(path)?;
        let mut scan = match checks.check(path) {
            Ok(()) => scan_shard(opened, number, limits)?,
            // Not one of its samples can be told from a damaged one.
            Err(error) => Scan {
                damage: Some(error),
                ..Scan::of(opened)
            },
        };
        if many {
            scan.shard.release_handle();
        }
        Ok(scan)
    };
    let is_remote = paths.iter().any(|path| is_address(path));
    let scans: Vec<Result<Scan>> = remote::with_readers(is_remote, || {
        paths.par_iter().enumerate().map(scan).collect()
    })?;
    // Collected in order, so that the shard a refusal names is the first, whichever thread met one sooner.
    let scans = scans.into_iter().collect::<Result<Vec<_>>>()?;

    let (mut shards, mut versions) = (Vec::new(), Vec::new());
    let (mut pairs, mut damaged) = (Vec::new(), Vec::new());
    for scan in scans {
        for name in scan.found.trimmed {
            skips.count_note(Note::Trimmed, name);
        }
        for (reason, error) in scan.found.skipped {
            skips.count_bad(scan.shard.name(), reason, error);
        }
        if let Some(error) = scan.damage {
            skips.count_bad(scan.shard.name(), Reason::DamagedShard, &error);
            damaged.push(error);
        }
        scan.found.pairs.iter().for_each(|_| skips.count_good());
        pairs.extend(scan.found.pairs);
        shards.push(scan.shard);
        versions.push(scan.version);
    }
    // How many samples a damaged shard lost is unknown, so shards are judged by themselves.
    let count = damaged.len();
    if count as f64 > limits.skips.max_bad_fraction * paths.len() as f64 {
        let first = damaged.swap_remove(0);
        return Err(match paths.len() {
            1 => first,
            _ => Error::stopped(
                "the shards",
                format!("{count} of {} are damaged: {first}", paths.len()),
                RAISE,
            ),
        });
    }
    Ok(Shards {
        shards,
        versions,
        pairs,
    })
}

/// Gzipped shards are unpacked in memory, up to this size: their samples could not be read at random otherwise.
const MAX_UNPACKED_BYTES: u64 = 2 << 30;

/// A shard, unpacked in memory where it is gzipped; and what it is told by, where it is remote.
fn open_shard(path: &str) -> Result<(Shard, Option<String>)> {
    let ending = remote::ending_of(path);
    if !matches!(ending.as_deref(), Some("gz" | "tgz")) {
        let shard = Shard::open(Path::new(path))?;
        let version = shard.object().map(digest::version_of);
        return Ok((shard, version));
    }
    let source = InputFile::open(Path::new(path))?;
    let version = source.object().map(digest::version_of);
    let too_large = |what: &str| {
        let problem = format!("{what} more than {MAX_UNPACKED_BYTES} bytes");
        Error::content(&source.name, problem, "unpack it with gunzip")
    };
    if source.len() > MAX_UNPACKED_BYTES {
        return Err(too_large("it has"));
    }
    let packed = source.read(0, source.len())?;
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(&packed[..])
        .take(MAX_UNPACKED_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|problem| Error::content(&source.name, problem, "fetch the file again"))?;
    if bytes.len() as u64 > MAX_UNPACKED_BYTES {
        return Err(too_large("unpacked it has"));
    }
    Ok((Shard::from_bytes(&source.name, bytes), version))
}

impl Scan {
    fn of((shard, version): (Shard, Option<String>)) -> Scan {
        Scan {
            shard,
            version,
            found: ShardIndex::default(),
            damage: None,
        }
    }
}

/// Walks a shard once, or takes what an earlier walk over the same object found.
///
/// # Errors
/// [`Error::Stopped`] where a store does not give what is to be walked over.
fn scan_shard(opened: (Shard, Option<String>), number: usize, limits: PairLimits) -> Result<Scan> {
    let mut scan = Scan::of(opened);
    let kept = scan.shard.object().filter(|_| limits.keeps_indexes);
    if let Some(found) = kept.and_then(|object| shard_index::kept(object, limits.shard)) {
        scan.found = found;
    } else {
        scan.shard.begin_walk();
        scan.damage = walk(&scan.shard, limits.shard, &mut scan.found)?;
        scan.shard.end_walk();
        let object = scan.shard.object().filter(|_| limits.keeps_indexes);
        if let Some(object) = object.filter(|_| scan.damage.is_none()) {
            shard_index::keep(object, limits.shard, &scan.found);
        }
    }
    scan.found
        .pairs
        .iter_mut()
        .for_each(|pair| pair.shard = number);
    Ok(scan)
}

/// Notes what there is in a shard; gives the error that ended it early.
fn walk(shard: &Shard, limits: ShardLimits, found: &mut ShardIndex) -> Result<Option<Error>> {
    for step in shard.samples(limits) {
        match step {
            Ok(ShardItem::Sample(sample)) => match shard_pair(shard, sample) {
                Ok((pair, is_trimmed)) => {
                    if is_trimmed {
                        found
                            .trimmed
                            .push(format!("{}: {}", shard.name(), pair.key));
                    }
                    found.pairs.push(pair);
                }
                Err((_, error @ Error::Stopped { .. })) => return Err(error),
                Err(problem) => found.skipped.push(problem),
            },
            Ok(ShardItem::Skipped(defect, name, problem)) => {
                let (reason, remedy) = match defect {
                    Defect::DuplicateKey => {
                        (Reason::DuplicateKey, "pack the shard again, sorted by name")
                    }
                    Defect::TooLarge => (Reason::TooLarge, "scale it down"),
                    Defect::RefusedEntry => (
                        Reason::RefusedEntry,
                        "pack regular files under relative names",
                    ),
                };
                let what = format!("{}: {name}", shard.name());
                let error = Error::content(what, problem, remedy);
                found.skipped.push((reason, error));
            }
            Err(error @ Error::Stopped { .. }) => return Err(error),
            Err(error) => return Ok(Some(error)),
        }
    }
    Ok(None)
}

/// Finds image and caption among a sample's members; the caption is read to know that it says something. Says whether it was
/// trimmed.
fn shard_pair(shard: &Shard, sample: ShardSample) -> Result<(ShardPair, bool), (Reason, Error)> {
    let name = format!("{}: {}", shard.name(), sample.key);
    let Some(image) = sample.member(&IMAGE_ENDINGS) else {
        let mut members = sample.members.iter();
        if let Some(error) = members.find_map(|member| unread(&name, &member.ending)) {
            return Err((Reason::BadImage, error));
        }
        let problem = Error::content(name, "it has no image", "add a member that is an image");
        return Err((Reason::NoImage, problem));
    };
    let text = CAPTION_ENDINGS
        .iter()
        .find_map(|ending| sample.member(&[ending]));
    let Some(member) = text.or_else(|| sample.member(&["json"])) else {
        let problem = Error::content(name, "it has no caption", "add a txt or json member");
        return Err((Reason::NoCaption, problem));
    };
    if member.size > MAX_TEXT_BYTES {
        let problem = format!(
            "its caption has {} bytes, the limit is {MAX_TEXT_BYTES}",
            member.size
        );
        return Err((
            Reason::TooLarge,
            Error::content(name, problem, "shorten it"),
        ));
    }
    let bytes = shard
        .read(member)
        .map_err(|error| (Reason::Unreadable, error))?;
    let words = words_of(&name, &bytes, text.is_none())?;
    let pair = ShardPair {
        // Which shard of several it is stands where they are put together.
        shard: 0,
        image: (image.offset, image.size),
        text: (member.offset, member.size),
        is_json: text.is_none(),
        key: sample.key.into(),
    };
    Ok((pair, words.is_trimmed))
}
