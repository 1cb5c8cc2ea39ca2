//! The user's own image–text pairs: shards, lists of JSON, tables, folders, or several of these, all read at random by any
//! thread.
//!
//! Opening looks at every sample once and keeps only where it lies, except that a folder's captions are held in memory.
//! What cannot be used is counted in a [`SkipLog`], never dropped in silence. Nothing is written and nothing is fetched:
//! a name in the data is a key or a path below the data's own folder, never a command or an address.

use std::path::{Path, PathBuf};

use super::archive::Source;
use super::folder::{self, FolderPair};
use super::joined::{self, Joined};
use super::lines;
use super::parquet::{self, Parquet};
use super::picture::{Picture, PictureLimits};
use super::records;
use super::shards::{self, Shards};
use super::skips::{Reason, SkipLimits, SkipLog};
use super::table::{self, PictureOfRow};
use super::task::Turn;
use super::webdataset::{ShardLimits, expand_braces};
use keel_base::error::{Error, Result};

/// Endings of files taken for pictures, lower case.
pub(crate) const PICTURE_ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Largest caption or record, bytes.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// One picture and the words that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What the sample is called in its source.
    pub key: String,
    /// The picture, with its transparency; none where the sample is text alone. The last one where there are several.
    pub picture: Option<Picture>,
    /// Pictures before that one, in order.
    pub before: Vec<Picture>,
    /// Whether the questions mark where each picture stands, by [`MARK`](super::chat::MARK); else there is one at most, before
    /// the first.
    pub is_marked: bool,
    /// What is to be learnt about it; never empty.
    pub caption: String,
    /// The question that the caption answers, where the source holds conversations.
    pub prompt: Option<String>,
    /// Questions and answers after that.
    pub further: Vec<Turn>,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<String>,
}

impl Pair {
    /// A pair whose picture has yet to be decoded.
    fn of(key: String, words: records::Words) -> Pair {
        Pair {
            key,
            picture: None,
            before: Vec::new(),
            is_marked: words.marks() > 0,
            caption: words.caption,
            prompt: words.prompt,
            further: words.further,
            system: words.system,
        }
    }
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

    /// Reads one pair without its pictures, which are not decoded.
    ///
    /// # Errors
    /// As [`PairSource::get`], for all but the pictures.
    fn words(&self, index: usize) -> Result<Pair> {
        self.get(index).map(|pair| Pair {
            picture: None,
            before: Vec::new(),
            ..pair
        })
    }

    /// The first index of the same pair, where an epoch has it several times.
    fn first_of(&self, index: usize) -> usize {
        index
    }

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
    Shards(Shards),
    Lines(lines::Lines),
    Table(table::Table),
    Parquet(Parquet),
    Joined(Joined),
}

impl Pairs {
    fn of(kind: Kind, limits: PairLimits, opening_skips: SkipLog) -> Pairs {
        Pairs {
            kind,
            limits,
            opening_skips,
            drawing_skips: SkipLog::new(limits.skips),
        }
    }

    /// Opens a folder of pictures; a tar shard or a pattern such as `shards-{000..009}.tar`, also gzipped; a `.jsonl` list or a
    /// pattern of them; a `.json` list as LLaVA's, or a mixture of lists as InternVL's; a `.csv` or `.tsv` table; a `.parquet`
    /// file or a pattern of them. `SPEC=2.5` repeats its pairs two and a half times an epoch.
    ///
    /// # Errors
    /// [`Error::Io`] when something named cannot be read, [`Error::Content`] when it is of no known kind, a single shard
    /// is damaged or no pair is usable, [`Error::Stopped`] when too many samples or shards are bad.
    pub fn open(data: &str, limits: PairLimits) -> Result<Pairs> {
        match joined::repeat_of(data)? {
            Some((data, repeat)) => {
                let part = (Pairs::open(data, limits)?, repeat);
                Pairs::joined(data, vec![part], limits)
            }
            None => Pairs::open_one(data, limits),
        }
    }

    /// All pairs of several such sources, one after the other.
    ///
    /// # Errors
    /// As [`Pairs::open`].
    pub fn open_all(data: &[String], limits: PairLimits) -> Result<Pairs> {
        match data {
            [one] => Pairs::open(one, limits),
            _ => {
                let parts = data.iter().map(|one| Ok((Pairs::open(one, limits)?, 1.0)));
                let parts = parts.collect::<Result<Vec<_>>>()?;
                Pairs::joined("the data", parts, limits)
            }
        }
    }

    /// Pairs of several sources, each with how often it comes in an epoch.
    pub(super) fn joined(
        name: &str,
        parts: Vec<(Pairs, f64)>,
        limits: PairLimits,
    ) -> Result<Pairs> {
        let kind = Kind::Joined(Joined::new(name, parts)?);
        let pairs = Pairs::of(kind, limits, SkipLog::new(limits.skips));
        match pairs.is_empty() {
            false => Ok(pairs),
            true => Err(Error::content(
                name,
                "it holds no pairs",
                "repeat some part of it",
            )),
        }
    }

    fn open_one(data: &str, limits: PairLimits) -> Result<Pairs> {
        let path = Path::new(data);
        let skips = SkipLog::new(limits.skips);
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        let ending = ending.as_deref().and_then(|ending| ending.to_str());
        let folder = || path.parent().map(Path::to_owned).unwrap_or_default();
        let is_lines = matches!(ending, Some("jsonl" | "ndjson"));
        let kind = if data.contains('{') && (is_lines || ending == Some("parquet")) {
            let files = expand_braces(data)?.into_iter();
            let parts = files.map(|file| Ok((Pairs::open_one(&file, limits)?, 1.0)));
            return Pairs::joined(data, parts.collect::<Result<Vec<_>>>()?, limits);
        } else if data.contains('{') {
            Kind::Shards(shards::open(&expand_braces(data)?, limits, &skips)?)
        } else if path.is_dir() {
            let metadata = path.join("metadata.jsonl");
            match metadata.exists() {
                true => Kind::Lines(lines::open(&metadata, path.to_owned(), &skips)?),
                false => Kind::Folder(folder::open(path, &skips)?),
            }
        } else if is_lines {
            Kind::Lines(lines::open(path, folder(), &skips)?)
        } else if ending == Some("json") {
            match joined::is_mixture(path)? {
                true => return joined::open_mixture(path, limits),
                false => Kind::Lines(lines::open_list(path, folder(), &skips)?),
            }
        } else if ending == Some("csv") || ending == Some("tsv") {
            let separator = if ending == Some("csv") { b',' } else { b'\t' };
            Kind::Table(table::open(path, separator, &skips)?)
        } else if ending == Some("parquet") {
            Kind::Parquet(parquet::open(path, &skips)?)
        } else if matches!(ending, Some("tar" | "gz" | "tgz" | "zst" | "xz" | "zip")) {
            // Shards packed otherwise are refused there, with the way to unpack them.
            Kind::Shards(shards::open(&[data.to_owned()], limits, &skips)?)
        } else {
            // A missing file is the likelier mistake than an unknown ending.
            Source::open(path)?;
            return Err(Error::content(
                data,
                "it is no kind of pairs that is known here",
                "give a folder of pictures, a .tar shard (or shards-{000..009}.tar), a .jsonl or .json list, a .tsv table, or a .parquet file",
            ));
        };
        skips.check()?;
        let pairs = Pairs::of(kind, limits, skips);
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

    /// As [`Pairs::opening_skips`], of every source that these pairs are joined from.
    pub(super) fn opening_logs(&self) -> Vec<&SkipLog> {
        match &self.kind {
            Kind::Joined(joined) => joined.parts().flat_map(Pairs::opening_logs).collect(),
            _ => vec![&self.opening_skips],
        }
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

    /// Counts a sample that cannot be used, without judging yet whether there are too many.
    pub(super) fn count_broken(&self, index: usize, reason: Reason, problem: &str) {
        self.drawing_skips
            .count_bad(self.origin(index), reason, problem);
    }

    /// A list of lines below a folder of its own.
    pub(super) fn lines_below(path: &Path, root: &Path, limits: PairLimits) -> Result<Pairs> {
        let skips = SkipLog::new(limits.skips);
        let kind = Kind::Lines(lines::open(path, root.to_owned(), &skips)?);
        skips.check()?;
        Ok(Pairs::of(kind, limits, skips))
    }

    /// Reads and decodes one pair; with it the bytes of its picture files, one after the other, where it has any.
    ///
    /// # Errors
    /// As [`PairSource::get`].
    pub(super) fn read(&self, index: usize) -> Result<(Pair, Option<Vec<u8>>)> {
        let (mut pair, encoded) = self.encoded(index)?;
        let mut files = None;
        for one in encoded {
            let (picture, bytes) = self.decoded(one)?;
            files.get_or_insert_with(Vec::new).extend(bytes);
            pair.before.extend(pair.picture.replace(picture));
        }
        Ok((pair, files))
    }

    /// A picture and the bytes of its file.
    fn decoded(&self, encoded: Encoded<'_>) -> Result<(Picture, Vec<u8>)> {
        let (name, bytes) = match encoded {
            Encoded::Bytes(name, bytes) => (name, bytes),
            Encoded::Member(name, shards, index) => (name, shards.picture_bytes(index)?),
            Encoded::File(path, named_by) => {
                let read = read_picture(&path, &self.limits);
                return read.map_err(|error| match named_by {
                    Some((name, remedy)) => within(&name, error, remedy),
                    None => error,
                });
            }
        };
        let picture = Picture::decode(&name, &bytes, &self.limits.picture)?;
        Ok((picture, bytes))
    }

    /// A pair's words, and where its pictures are, in order.
    fn encoded(&self, index: usize) -> Result<(Pair, Vec<Encoded<'_>>)> {
        if index >= self.len() {
            return Err(Error::setting(
                "pair index",
                format!("less than {}", self.len()),
                index,
            ));
        }
        let (key, words, encoded) = match &self.kind {
            Kind::Folder(folder) => {
                let FolderPair { path, caption } = &folder.pairs[index];
                let words = records::Words::caption(caption.clone());
                let file = Encoded::File(folder.root.join(path), None);
                (path.display().to_string(), words, vec![file])
            }
            Kind::Shards(shards) => {
                let (name, words) = shards.words(index)?;
                let member = Encoded::Member(name, shards, index);
                (shards.key(index), words, vec![member])
            }
            Kind::Lines(lines) => {
                let (name, record) = lines.record(&lines.places[index])?;
                let files = record.pictures.iter().map(|path| {
                    let named_by = (name.clone(), "repair or remove the record");
                    Encoded::File(lines.folder.join(path), Some(named_by))
                });
                let files = files.collect();
                // Of several the record is the name.
                match <[String; 1]>::try_from(record.pictures) {
                    Ok([path]) => (path, record.words, files),
                    Err(_) => (name, record.words, files),
                }
            }
            Kind::Table(table) => {
                let (name, picture, words) = table.row(&table.rows[index])?;
                let picture = Encoded::of_row(&name, picture, &table.folder);
                (name, words, vec![picture])
            }
            Kind::Parquet(parquet) => {
                let (name, pictures, words) = parquet.row(parquet.rows[index])?;
                let of_row = |picture| Encoded::of_row(&name, picture, &parquet.folder);
                let pictures = pictures.into_iter().map(of_row).collect();
                (name, words, pictures)
            }
            Kind::Joined(joined) => {
                let (part, index) = joined.at(index);
                return part.encoded(index);
            }
        };
        Ok((Pair::of(key, words), encoded))
    }

    /// The shard, list or folder that a pair comes from.
    fn origin(&self, index: usize) -> &str {
        match &self.kind {
            Kind::Folder(folder) => folder.name(),
            Kind::Shards(shards) => shards.origin(index),
            Kind::Lines(lines) => lines.name(),
            Kind::Table(table) => table.name(),
            Kind::Parquet(parquet) => parquet.name(),
            Kind::Joined(joined) => {
                let (part, index) = joined.at(index);
                part.origin(index)
            }
        }
    }
}

impl PairSource for Pairs {
    fn len(&self) -> usize {
        match &self.kind {
            Kind::Folder(folder) => folder.pairs.len(),
            Kind::Shards(shards) => shards.pairs.len(),
            Kind::Lines(lines) => lines.places.len(),
            Kind::Table(table) => table.rows.len(),
            Kind::Parquet(parquet) => parquet.rows.len(),
            Kind::Joined(joined) => joined.len(),
        }
    }

    fn count(&self, index: usize, left_out: Option<(Reason, &str)>) -> Result<()> {
        match left_out {
            None => {
                self.drawing_skips.count_good();
                Ok(())
            }
            Some((reason, problem)) => {
                self.count_broken(index, reason, problem);
                self.drawing_skips.check_so_far()
            }
        }
    }

    fn left_out(&self) -> Option<String> {
        let opening = self.opening_logs().into_iter();
        let logs = opening.map(|skips| ("samples when the data were opened", skips));
        let parts: Vec<String> = logs
            .chain([("draws while training", &self.drawing_skips)])
            .filter(|(_, skips)| skips.skipped() > 0)
            .map(|(of, skips)| {
                let (bad, seen) = (skips.skipped(), skips.seen());
                format!("{bad} of {seen} {of}: {}", skips.summary())
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    fn get(&self, index: usize) -> Result<Pair> {
        self.read(index).map(|(pair, _)| pair)
    }

    fn words(&self, index: usize) -> Result<Pair> {
        self.encoded(index).map(|(pair, _)| pair)
    }

    fn first_of(&self, index: usize) -> usize {
        match &self.kind {
            Kind::Joined(joined) => joined.first_of(index),
            _ => index,
        }
    }
}

/// Where a pair's picture is.
enum Encoded<'a> {
    /// A file, and the record or row that names it with what to do about a bad one.
    File(PathBuf, Option<(String, &'static str)>),
    /// The pair of this index of shards, called so.
    Member(String, &'a Shards, usize),
    /// The bytes of a file, called so.
    Bytes(String, Vec<u8>),
}

impl Encoded<'_> {
    fn of_row(name: &str, picture: PictureOfRow, folder: &Path) -> Encoded<'static> {
        match picture {
            PictureOfRow::Path(path) => {
                let named_by = (name.to_owned(), "repair or remove the row");
                Encoded::File(folder.join(path), Some(named_by))
            }
            PictureOfRow::Bytes(bytes) => Encoded::Bytes(name.to_owned(), bytes),
        }
    }
}

/// What is wrong with a picture that the record or row `name` names; a file that is not there stays one.
fn within(name: &str, error: Error, remedy: &str) -> Error {
    match error {
        Error::Io {
            path,
            action,
            source,
        } => Error::io(format!("{name}: {}", path.display()), action, source),
        other => Error::content(name, other, remedy),
    }
}

/// Reads and decodes a picture file no larger than a shard's member may be; gives its bytes too.
fn read_picture(path: &Path, limits: &PairLimits) -> Result<(Picture, Vec<u8>)> {
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
    let picture = Picture::decode(&source.name, &bytes, &limits.picture)?;
    Ok((picture, bytes))
}
