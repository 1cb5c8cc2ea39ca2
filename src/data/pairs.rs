//! The user's own image–text pairs: shards, a list of lines, or a folder, all read at random by any thread.
//!
//! Opening looks at every sample once and keeps only where it lies, except that a folder's captions are held in memory.
//! What cannot be used is counted in a [`SkipLog`], never dropped in silence. Nothing is written and nothing is fetched:
//! a name in the data is a key or a path below the data's own folder, never a command or an address.

use std::path::Path;

use rayon::prelude::*;

use super::archive::Source;
use super::folder::{self, FolderPair};
use super::lines;
use super::picture::{Picture, PictureLimits};
use super::records;
use super::skips::{Reason, SkipLimits, SkipLog};
use super::webdataset::{Defect, Sample, Shard, ShardLimits, Step, expand_braces};
use crate::error::{Error, Result};

/// Endings of files taken for pictures, lower case.
pub(crate) const PICTURE_ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Endings of a sample's members taken for its caption, the first present wins.
const CAPTION_ENDINGS: [&str; 4] = ["txt", "text", "caption", "caption.txt"];

/// Largest caption or record, bytes.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Shards kept open; with more, each is opened for every read, since a process may hold about a thousand files.
const MAX_OPEN_SHARDS: usize = 256;

/// One picture and the words that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What the sample is called in its source.
    pub key: String,
    /// The picture, with its transparency.
    pub picture: Picture,
    /// What is to be learnt about it; never empty.
    pub caption: String,
    /// The question that the caption answers, where the source holds conversations.
    pub prompt: Option<String>,
}

/// Anything pairs can be drawn from; the same index gives the same pair on any thread.
pub trait PairSource: Send + Sync {
    /// How many pairs there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads and decodes one pair.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Content`] naming the sample when it cannot be used, [`Error::Setting`] when there is no
    /// such index.
    fn get(&self, index: usize) -> Result<Pair>;

    /// Hears what became of a pair that training drew: used, or left out and why.
    ///
    /// # Errors
    /// [`Error::Stopped`] once too many have been left out.
    fn count(&self, _index: usize, _left_out: Option<(Reason, &str)>) -> Result<()> {
        Ok(())
    }

    /// How many were left out and why; `None` when none was.
    fn left_out(&self) -> Option<String> {
        None
    }
}

/// Bounds for everything read from outside.
#[derive(Debug, Clone, Copy, Default)]
pub struct PairLimits {
    /// Of one picture.
    pub picture: PictureLimits,
    /// Of one shard's members.
    pub shard: ShardLimits,
    /// How many samples may be bad.
    pub skips: SkipLimits,
}

/// The pairs of one `--data` argument.
#[derive(Debug)]
pub struct Pairs {
    kind: Kind,
    limits: PairLimits,
    opening_skips: SkipLog,
    drawing_skips: SkipLog,
}

#[derive(Debug)]
enum Kind {
    Folder(folder::Folder),
    Shards(Vec<Shard>, Vec<ShardPair>),
    Lines(lines::Lines),
}

/// Where a pair lies in a shard.
#[derive(Debug)]
struct ShardPair {
    shard: usize,
    key: Box<str>,
    picture: (u64, u64),
    text: (u64, u64),
    is_json: bool,
}

impl Pairs {
    /// Opens a folder of pictures, a tar shard or a pattern such as `shards-{000..009}.tar`, or a `.jsonl` list.
    ///
    /// # Errors
    /// [`Error::Io`] when something named cannot be read, [`Error::Content`] when it is of no known kind, a single shard
    /// is damaged or no pair is usable, [`Error::Stopped`] when too many samples or shards are bad.
    pub fn open(data: &str, limits: PairLimits) -> Result<Pairs> {
        let path = Path::new(data);
        let skips = SkipLog::new(limits.skips);
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        let ending = ending.as_deref().and_then(|ending| ending.to_str());
        let kind = if data.contains('{') {
            open_shards(&expand_braces(data)?, limits, &skips)?
        } else if path.is_dir() {
            let metadata = path.join("metadata.jsonl");
            match metadata.exists() {
                true => Kind::Lines(lines::open(&metadata, &skips)?),
                false => Kind::Folder(folder::open(path, &skips)?),
            }
        } else if ending == Some("jsonl") || ending == Some("ndjson") {
            Kind::Lines(lines::open(path, &skips)?)
        } else if matches!(ending, Some("tar" | "gz" | "tgz" | "zst" | "xz" | "zip")) {
            // Compressed shards are refused there, with the way to unpack them.
            open_shards(&[data.to_owned()], limits, &skips)?
        } else {
            // A missing file is the likelier mistake than an unknown ending.
            Source::open(path)?;
            return Err(Error::content(
                data,
                "it is no kind of pairs that is known here",
                "give a folder of pictures, a .tar shard (or shards-{000..009}.tar), or a .jsonl list",
            ));
        };
        skips.check()?;
        let pairs = Pairs {
            kind,
            limits,
            opening_skips: skips,
            drawing_skips: SkipLog::new(limits.skips),
        };
        if pairs.is_empty() {
            let skips = &pairs.opening_skips;
            let problem = match skips.skipped() {
                0 => "it holds no pairs".to_owned(),
                _ => format!("it holds no usable pairs: {}", skips.summary()),
            };
            return Err(Error::content(
                data,
                problem,
                "a pair is a picture (png, jpg, webp) with a caption of the same name",
            ));
        }
        Ok(pairs)
    }

    /// What was left out when the data were opened.
    pub fn opening_skips(&self) -> &SkipLog {
        &self.opening_skips
    }

    /// What [`Pairs::draw`] and training have passed over so far.
    pub fn drawing_skips(&self) -> &SkipLog {
        &self.drawing_skips
    }

    /// The pair at `index`, or the next one that is usable; what is passed over is counted.
    ///
    /// # Errors
    /// [`Error::Stopped`] once too many are bad, [`Error::Content`] when none is usable.
    pub fn draw(&self, index: usize) -> Result<Pair> {
        for attempt in 0..self.len() {
            let index = (index + attempt) % self.len();
            match self.get(index) {
                Ok(pair) => {
                    self.count(index, None)?;
                    return Ok(pair);
                }
                Err(error) => {
                    self.count(index, Some((Reason::of(&error), &error.to_string())))?;
                }
            }
        }
        Err(Error::content(
            "the data",
            format!("no pair is usable: {}", self.drawing_skips.summary()),
            "repair them",
        ))
    }

    /// The shard, list or folder that a pair comes from.
    fn origin(&self, index: usize) -> &str {
        match &self.kind {
            Kind::Folder(folder) => folder.name(),
            Kind::Shards(shards, index_of_pairs) => shards[index_of_pairs[index].shard].name(),
            Kind::Lines(lines) => lines.name(),
        }
    }
}

impl PairSource for Pairs {
    fn len(&self) -> usize {
        match &self.kind {
            Kind::Folder(folder) => folder.pairs.len(),
            Kind::Shards(_, pairs) => pairs.len(),
            Kind::Lines(lines) => lines.places.len(),
        }
    }

    fn count(&self, index: usize, left_out: Option<(Reason, &str)>) -> Result<()> {
        match left_out {
            None => {
                self.drawing_skips.count_good();
                Ok(())
            }
            Some((reason, problem)) => {
                self.drawing_skips
                    .count_bad(self.origin(index), reason, problem);
                self.drawing_skips.check_so_far()
            }
        }
    }

    fn left_out(&self) -> Option<String> {
        let parts: Vec<String> = [
            ("samples when the data were opened", &self.opening_skips),
            ("draws while training", &self.drawing_skips),
        ]
        .into_iter()
        .filter(|(_, skips)| skips.skipped() > 0)
        .map(|(of, skips)| {
            let (bad, seen) = (skips.skipped(), skips.seen());
            format!("{bad} of {seen} {of}: {}", skips.summary())
        })
        .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    fn get(&self, index: usize) -> Result<Pair> {
        if index >= self.len() {
            return Err(Error::setting(
                "pair index",
                format!("less than {}", self.len()),
                index,
            ));
        }
        match &self.kind {
            Kind::Folder(folder) => {
                let FolderPair { path, caption } = &folder.pairs[index];
                let file = folder.root.join(path);
                Ok(Pair {
                    key: path.display().to_string(),
                    picture: read_picture(&file, &self.limits)?,
                    caption: caption.clone(),
                    prompt: None,
                })
            }
            Kind::Shards(shards, pairs) => {
                let pair = &pairs[index];
                let shard = &shards[pair.shard];
                let name = format!("{}: {}", shard.name(), pair.key);
                let text = shard.read_at(pair.text.0, pair.text.1)?;
                let words = words_of(&name, &text, pair.is_json).map_err(|(_, error)| error)?;
                let bytes = shard.read_at(pair.picture.0, pair.picture.1)?;
                Ok(Pair {
                    key: pair.key.to_string(),
                    picture: Picture::decode(&name, &bytes, &self.limits.picture)?,
                    caption: words.caption,
                    prompt: words.prompt,
                })
            }
            Kind::Lines(lines) => {
                let (name, record) = lines.record(&lines.places[index])?;
                Ok(Pair {
                    picture: read_picture(&lines.folder.join(&record.picture), &self.limits)
                        .map_err(|error| {
                            Error::content(name, error, "repair or remove the line")
                        })?,
                    key: record.picture,
                    caption: record.words.caption,
                    prompt: record.words.prompt,
                })
            }
        }
    }
}

/// Reads and decodes a picture file no larger than a shard's member may be.
fn read_picture(path: &Path, limits: &PairLimits) -> Result<Picture> {
    let source = Source::open(path)?;
    if source.len() > limits.shard.member_bytes {
        return Err(Error::content(
            &source.name,
            format!(
                "it has {} bytes, the limit is {}",
                source.len(),
                limits.shard.member_bytes
            ),
            "scale it down",
        ));
    }
    let bytes = source.read(0, source.len())?;
    Picture::decode(&source.name, &bytes, &limits.picture)
}

/// The caption in a text or JSON member, or the reason there is none.
fn words_of(name: &str, bytes: &[u8], is_json: bool) -> Result<records::Words, (Reason, Error)> {
    if is_json {
        records::words_of_json(name, bytes)
    } else {
        records::caption_of_text(name, bytes).map(|caption| records::Words {
            caption,
            prompt: None,
        })
    }
}

/// What one shard gave: its pairs, what was left out, and the error that ended it early.
struct Scan {
    shard: Shard,
    pairs: Vec<ShardPair>,
    skipped: Vec<(Reason, Error)>,
    damage: Option<Error>,
}

fn open_shards(paths: &[String], limits: PairLimits, skips: &SkipLog) -> Result<Kind> {
    let many = paths.len() > MAX_OPEN_SHARDS;
    let scans: Vec<Result<Scan>> = paths
        .par_iter()
        .enumerate()
        .map(|(number, path)| {
            let mut scan = scan_shard(Shard::open(Path::new(path))?, number, limits.shard);
            if many {
                scan.shard.release_handle();
            }
            Ok(scan)
        })
        .collect();
    // Gathered in order, so that the shard a refusal names is the first, whichever thread met one sooner.
    let scans = scans.into_iter().collect::<Result<Vec<_>>>()?;

    let (mut shards, mut pairs, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for scan in scans {
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
                "or raise the limit on bad samples",
            ),
        });
    }
    Ok(Kind::Shards(shards, pairs))
}

/// Walks a shard once.
fn scan_shard(shard: Shard, number: usize, limits: ShardLimits) -> Scan {
    let (mut pairs, mut skipped, mut damage) = (Vec::new(), Vec::new(), None);
    for step in shard.samples(limits) {
        match step {
            Ok(Step::Sample(sample)) => match shard_pair(&shard, number, sample) {
                Ok(pair) => pairs.push(pair),
                Err(problem) => skipped.push(problem),
            },
            Ok(Step::Skipped(defect, name, problem)) => {
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
        skipped,
        damage,
    }
}

/// Finds picture and caption among a sample's members; the caption is read to know that it says something.
fn shard_pair(shard: &Shard, number: usize, sample: Sample) -> Result<ShardPair, (Reason, Error)> {
    let name = format!("{}: {}", shard.name(), sample.key);
    let Some(picture) = sample.member(&PICTURE_ENDINGS) else {
        let problem = Error::content(name, "it has no picture", "add a png, jpg or webp member");
        return Err((Reason::NoPicture, problem));
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
    words_of(&name, &bytes, text.is_none())?;
    Ok(ShardPair {
        shard: number,
        picture: (picture.offset, picture.size),
        text: (member.offset, member.size),
        is_json: text.is_none(),
        key: sample.key.into(),
    })
}
