//! Pairs in WebDataset shards: an image and a caption or a JSON record of one key.

use std::io::Read;
use std::path::Path;

use rayon::prelude::*;

use super::archive::InputFile;
use super::digest;
use super::limits::{IMAGE_ENDINGS, MAX_TEXT_BYTES, PairLimits, unread};
use super::records;
use super::skips::{Note, RAISE, Reason, SkipLog};
use super::sums::Checks;
use super::webdataset::{Defect, Shard, ShardItem, ShardLimits, ShardSample};
use keel_base::error::{Error, Result};

/// Endings of a sample's members taken for its caption, the first present wins.
const CAPTION_ENDINGS: [&str; 4] = ["txt", "text", "caption", "caption.txt"];

/// Shards kept open; with more, each is opened for every read, since a process may hold about a thousand files.
const MAX_OPEN_SHARDS: usize = 256;

/// Opened shards.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// The usable samples.
    pub pairs: Vec<ShardPair>,
}

/// Where a pair lies in a shard.
#[derive(Debug)]
pub(super) struct ShardPair {
    shard: usize,
    key: Box<str>,
    image: (u64, u64),
    text: (u64, u64),
    is_json: bool,
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

    /// A pair's words, with the name that messages call it by.
    pub fn words(&self, index: usize) -> Result<(String, records::RecordText)> {
        let pair = &self.pairs[index];
        let shard = &self.shards[pair.shard];
        let name = format!("{}: {}", shard.name(), pair.key);
        let text = shard.read_at(pair.text.0, pair.text.1)?;
        let words = words_of(&name, &text, pair.is_json).map_err(|(_, error)| error)?;
        Ok((name, words))
    }

    /// Takes in every pair's key and text, and where its image lies in its shard.
    ///
    /// # Errors
    /// [`Error::Io`] naming a shard that cannot be read.
    pub fn add_to(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let text = |pair: &ShardPair| self.shards[pair.shard].read_at(pair.text.0, pair.text.1);
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
    pairs: Vec<ShardPair>,
    /// Names of conversations that were trimmed.
    trimmed: Vec<String>,
    skipped: Vec<(Reason, Error)>,
    damage: Option<Error>,
}
    /// The first bytes of a pair's image file, at most so many.
    pub fn beginning(&self, index: usize, most: u64) -> Result<Vec<u8>> {
        let pair = &self.pairs[index];
        let (offset, size) = pair.image;
        self.shards[pair.shard].read_at(offset, size.min(most))
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
    let scans: Vec<Result<Scan>> = paths
        .par_iter()
        .enumerate()
        .map(|(number, path)| {
            let shard = open_shard(path)?;
            let mut scan = match checks.check(path) {
                Ok(()) => scan_shard(shard, number, limits.shard),
                // Not one of its samples can be told from a damaged one.
                Err(error) => Scan {
                    shard,
                    pairs: Vec::new(),
                    trimmed: Vec::new(),
                    skipped: Vec::new(),
                    damage: Some(error),
                },
            };
            if many {
                scan.shard.release_handle();
            }
            Ok(scan)
        })
        .collect();
    // Collected in order, so that the shard a refusal names is the first, whichever thread met one sooner.
    let scans = scans.into_iter().collect::<Result<Vec<_>>>()?;

    let (mut shards, mut pairs, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for scan in scans {
        for name in scan.trimmed {
            skips.count_note(Note::Trimmed, name);
        }
        for (reason, error) in scan.skipped {
            skips.count_bad(scan.shard.name(), reason, error);
        }
        if let Some(error) = scan.damage {
            skips.count_bad(scan.shard.name(), Reason::DamagedShard, &error);
            damaged.push(error);
        }
        scan.pairs.iter().for_each(|_| skips.count_good());
        pairs.extend(scan.pairs);
        shards.push(scan.shard);
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
    Ok(Shards { shards, pairs })
}

/// Gzipped shards are unpacked in memory, up to this size: their samples could not be read at random otherwise.
const MAX_UNPACKED_BYTES: u64 = 2 << 30;

/// A shard, unpacked in memory where it is gzipped.
fn open_shard(path: &str) -> Result<Shard> {
    if !(path.ends_with(".gz") || path.ends_with(".tgz")) {
        return Shard::open(Path::new(path));
    }
    let source = InputFile::open(Path::new(path))?;
    let packed = source.read(0, source.len())?;
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(&packed[..])
        .take(MAX_UNPACKED_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|problem| Error::content(path, problem, "fetch the file again"))?;
    if bytes.len() as u64 > MAX_UNPACKED_BYTES {
        return Err(Error::content(
            path,
            format!("unpacked it has more than {MAX_UNPACKED_BYTES} bytes"),
            "unpack it with gunzip",
        ));
    }
    Ok(Shard::from_bytes(path, bytes))
}

/// Walks a shard once.
fn scan_shard(shard: Shard, number: usize, limits: ShardLimits) -> Scan {
    let (mut pairs, mut trimmed) = (Vec::new(), Vec::new());
    let (mut skipped, mut damage) = (Vec::new(), None);
    for step in shard.samples(limits) {
        match step {
            Ok(ShardItem::Sample(sample)) => match shard_pair(&shard, number, sample) {
                Ok((pair, is_trimmed)) => {
                    if is_trimmed {
                        trimmed.push(format!("{}: {}", shard.name(), pair.key));
                    }
                    pairs.push(pair);
                }
                Err(problem) => skipped.push(problem),
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
                skipped.push((reason, Error::content(what, problem, remedy)));
            }
            Err(error) => damage = Some(error),
        }
    }
    Scan {
        shard,
        pairs,
        trimmed,
        skipped,
        damage,
    }
}

/// Finds image and caption among a sample's members; the caption is read to know that it says something. Says whether it was
/// trimmed.
fn shard_pair(
    shard: &Shard,
    number: usize,
    sample: ShardSample,
) -> Result<(ShardPair, bool), (Reason, Error)> {
    let name = format!("{}: {}", shard.name(), sample.key);
    let Some(image) = sample.member(&IMAGE_ENDINGS) else {
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
        shard: number,
        image: (image.offset, image.size),
        text: (member.offset, member.size),
        is_json: text.is_none(),
        key: sample.key.into(),
    };
    Ok((pair, words.is_trimmed))
}
        let mut members = sample.members.iter();
        if let Some(error) = members.find_map(|member| unread(&name, &member.ending)) {
            return Err((Reason::BadImage, error));
        }
