//! The user's own image–text pairs: shards, lists of JSON, tables, folders, or several of these, all read at random by any
//! thread.
//!
//! Opening looks at every sample once and keeps only where it lies, except that a folder's captions are held in memory.
//! What cannot be used is counted in a [`SkipLog`], never dropped in silence. Nothing is written and nothing is fetched:
//! a name in the data is a key or a path below the data's own folder, never a command or an address.

use std::path::{Path, PathBuf};

pub use super::limits::PairLimits;
pub use super::pair::{Pair, PairSource};

use super::archive::InputFile;
use super::folder::{self, FolderPair};
use super::joined::{self, Joined, MixturePart};
use super::lines;
use super::parquet::{self, Parquet};
use super::records;
use super::shards::{self, Shards};
use super::skips::{Reason, SkipLog};
use super::table::{self, ImageOfRow};
use super::webdataset::expand_braces;
use crate::images::image::Image;
use keel_base::error::{Error, Result};

/// The pairs of one `--data` argument.
#[derive(Debug)]
pub struct Pairs {
    reader: Reader,
    limits: PairLimits,
    opening_skips: SkipLog,
    drawing_skips: SkipLog,
}

#[derive(Debug)]
enum Reader {
    Folder(folder::Folder),
    Shards(Shards),
    Lines(lines::Lines),
    Table(table::Table),
    Parquet(Parquet),
    Joined(Joined<Pairs>),
}

impl Pairs {
    fn of(reader: Reader, limits: PairLimits, opening_skips: SkipLog) -> Pairs {
        Pairs {
            reader,
            limits,
            opening_skips,
            drawing_skips: SkipLog::new(limits.skips),
        }
    }

    /// Opens a folder of images; a tar shard or a pattern such as `shards-{000..009}.tar`, also gzipped; a `.jsonl` list or a
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

    /// The lists of a mixture, each as often as the mixture says.
    fn open_mixture(path: &Path, limits: PairLimits) -> Result<Pairs> {
        let mut parts = Vec::new();
        for part in joined::read_mixture(path)? {
            let MixturePart {
                name,
                root,
                annotation,
                repeat,
                length,
            } = part;
            let pairs = Pairs::lines_below(&annotation, &root, limits)?;
            let there = pairs.len() as u64 + pairs.opening_skips.skipped();
            if let Some(said) = length.filter(|said| *said != there) {
                return Err(Error::content(
                    format!("{name}: length"),
                    format!("it says {said}, and there are {there}"),
                    "fetch the annotation again, or mend the length",
                ));
            }
            parts.push((pairs, repeat));
        }
        Pairs::joined(&path.display().to_string(), parts, limits)
    }

    /// Pairs of several sources, each with how often it comes in an epoch.
    fn joined(name: &str, parts: Vec<(Pairs, f64)>, limits: PairLimits) -> Result<Pairs> {
        let reader = Reader::Joined(Joined::new(name, parts)?);
        let pairs = Pairs::of(reader, limits, SkipLog::new(limits.skips));
        if pairs.is_empty() {
            Err(Error::content(
                name,
                "it holds no pairs",
                "repeat some part of it",
            ))
        } else {
            Ok(pairs)
        }
    }

    fn open_one(data: &str, limits: PairLimits) -> Result<Pairs> {
        let path = Path::new(data);
        let skips = SkipLog::new(limits.skips);
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        let ending = ending.as_deref().and_then(|ending| ending.to_str());
        let folder = || path.parent().map(Path::to_owned).unwrap_or_default();
        let is_lines = matches!(ending, Some("jsonl" | "ndjson"));
        let reader = if data.contains('{') && (is_lines || ending == Some("parquet")) {
            let files = expand_braces(data)?.into_iter();
            let parts = files.map(|file| Ok((Pairs::open_one(&file, limits)?, 1.0)));
            return Pairs::joined(data, parts.collect::<Result<Vec<_>>>()?, limits);
        } else if data.contains('{') {
            Reader::Shards(shards::open(&expand_braces(data)?, limits, &skips)?)
        } else if path.is_dir() {
            let metadata = path.join("metadata.jsonl");
            if metadata.exists() {
                Reader::Lines(lines::open(&metadata, path.to_owned(), &skips)?)
            } else {
                Reader::Folder(folder::open(path, &skips)?)
            }
        } else if is_lines {
            Reader::Lines(lines::open(path, folder(), &skips)?)
        } else if ending == Some("json") {
            if joined::is_mixture(path)? {
                return Pairs::open_mixture(path, limits);
            } else {
                Reader::Lines(lines::open_list(path, folder(), &skips)?)
            }
        } else if ending == Some("csv") || ending == Some("tsv") {
            let separator = if ending == Some("csv") { b',' } else { b'\t' };
            Reader::Table(table::open(path, separator, &skips)?)
        } else if ending == Some("parquet") {
            Reader::Parquet(parquet::open(path, &skips)?)
        } else if matches!(ending, Some("tar" | "gz" | "tgz" | "zst" | "xz" | "zip")) {
            // Shards packed otherwise are refused there, with the way to unpack them.
            Reader::Shards(shards::open(&[data.to_owned()], limits, &skips)?)
        } else {
            // A missing file is the likelier mistake than an unknown ending.
            InputFile::open(path)?;
            return Err(Error::content(
                data,
                "it is no kind of pairs that is known here",
                "give a folder of images, a .tar shard (or shards-{000..009}.tar), a .jsonl or .json list, a .tsv table, or a .parquet file",
            ));
        };
        skips.check()?;
        let pairs = Pairs::of(reader, limits, skips);
        if pairs.is_empty() {
            let skips = &pairs.opening_skips;
            let problem = match skips.skipped() {
                0 => "it holds no pairs".to_owned(),
                _ => format!("it holds no usable pairs: {}", skips.summary()),
            };
            return Err(Error::content(
                data,
                problem,
                "a pair is an image (png, jpg, webp) with a caption of the same name",
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
        match &self.reader {
            Reader::Joined(joined) => joined.parts().flat_map(Pairs::opening_logs).collect(),
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
    fn lines_below(path: &Path, root: &Path, limits: PairLimits) -> Result<Pairs> {
        let skips = SkipLog::new(limits.skips);
        let reader = Reader::Lines(lines::open(path, root.to_owned(), &skips)?);
        skips.check()?;
        Ok(Pairs::of(reader, limits, skips))
    }

    /// Reads and decodes one pair; with it the bytes of its image files, one after the other, where it has any.
    ///
    /// # Errors
    /// As [`PairSource::get`].
    pub(super) fn read(&self, index: usize) -> Result<(Pair, Option<Vec<u8>>)> {
        let (mut pair, encoded) = self.encoded(index)?;
        let mut files = None;
        for one in encoded {
            let (image, bytes) = self.decoded(one)?;
            files.get_or_insert_with(Vec::new).extend(bytes);
            pair.before.extend(pair.image.replace(image));
        }
        Ok((pair, files))
    }

    /// An image and the bytes of its file.
    fn decoded(&self, encoded: Encoded<'_>) -> Result<(Image, Vec<u8>)> {
        let (name, bytes) = match encoded {
            Encoded::Bytes(name, bytes) => (name, bytes),
            Encoded::Member(name, shards, index) => (name, shards.image_bytes(index)?),
            Encoded::File(path, named_by) => {
                let read = read_image(&path, &self.limits);
                return read.map_err(|error| match named_by {
                    Some((name, remedy)) => within(&name, error, remedy),
                    None => error,
                });
            }
        };
        let image = Image::decode(&name, &bytes, &self.limits.image)?;
        Ok((image, bytes))
    }

    /// A pair's words, and where its images are, in order.
    fn encoded(&self, index: usize) -> Result<(Pair, Vec<Encoded<'_>>)> {
        if index >= self.len() {
            return Err(Error::setting(
                "pair index",
                format!("less than {}", self.len()),
                index,
            ));
        }
        let (key, words, encoded) = match &self.reader {
            Reader::Folder(folder) => {
                let FolderPair { path, caption } = &folder.pairs[index];
                let words = records::RecordText::caption(caption.clone());
                let file = Encoded::File(folder.root.join(path), None);
                (path.display().to_string(), words, vec![file])
            }
            Reader::Shards(shards) => {
                let (name, words) = shards.words(index)?;
                let member = Encoded::Member(name, shards, index);
                (shards.key(index), words, vec![member])
            }
            Reader::Lines(lines) => {
                let (name, record) = lines.record(&lines.places[index])?;
                let files = record.images.iter().map(|path| {
                    let named_by = (name.clone(), "repair or remove the record");
                    Encoded::File(lines.folder.join(path), Some(named_by))
                });
                let files = files.collect();
                // Of several the record is the name.
                match <[String; 1]>::try_from(record.images) {
                    Ok([path]) => (path, record.words, files),
                    Err(_) => (name, record.words, files),
                }
            }
            Reader::Table(table) => {
                let (name, image, words) = table.row(&table.rows[index])?;
                let image = Encoded::of_row(&name, image, &table.folder);
                (name, words, vec![image])
            }
            Reader::Parquet(parquet) => {
                let (name, images, words) = parquet.row(parquet.rows[index])?;
                let of_row = |image| Encoded::of_row(&name, image, &parquet.folder);
                let images = images.into_iter().map(of_row).collect();
                (name, words, images)
            }
            Reader::Joined(joined) => {
                let (part, index) = joined.at(index);
                return part.encoded(index);
            }
        };
        Ok((Pair::of(key, words), encoded))
    }

    /// The shard, list or folder that a pair comes from.
    fn origin(&self, index: usize) -> &str {
        match &self.reader {
            Reader::Folder(folder) => folder.name(),
            Reader::Shards(shards) => shards.origin(index),
            Reader::Lines(lines) => lines.name(),
            Reader::Table(table) => table.name(),
            Reader::Parquet(parquet) => parquet.name(),
            Reader::Joined(joined) => {
                let (part, index) = joined.at(index);
                part.origin(index)
            }
        }
    }
}

impl PairSource for Pairs {
    fn len(&self) -> usize {
        match &self.reader {
            Reader::Folder(folder) => folder.pairs.len(),
            Reader::Shards(shards) => shards.pairs.len(),
            Reader::Lines(lines) => lines.places.len(),
            Reader::Table(table) => table.rows.len(),
            Reader::Parquet(parquet) => parquet.rows.len(),
            Reader::Joined(joined) => joined.len(),
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
        match &self.reader {
            Reader::Joined(joined) => joined.first_of(index),
            _ => index,
        }
    }
}

/// Where a pair's image is.
enum Encoded<'a> {
    /// A file, and the record or row that names it with what to do about a bad one.
    File(PathBuf, Option<(String, &'static str)>),
    /// The pair of this index of shards, called so.
    Member(String, &'a Shards, usize),
    /// The bytes of a file, called so.
    Bytes(String, Vec<u8>),
}

impl Encoded<'_> {
    fn of_row(name: &str, image: ImageOfRow, folder: &Path) -> Encoded<'static> {
        match image {
            ImageOfRow::Path(path) => {
                let named_by = (name.to_owned(), "repair or remove the row");
                Encoded::File(folder.join(path), Some(named_by))
            }
            ImageOfRow::Bytes(bytes) => Encoded::Bytes(name.to_owned(), bytes),
        }
    }
}

/// What is wrong with an image that the record or row `name` names; a file that is not there stays one.
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

/// Reads and decodes an image file no larger than a shard's member may be; gives its bytes too.
fn read_image(path: &Path, limits: &PairLimits) -> Result<(Image, Vec<u8>)> {
    let source = InputFile::open(path)?;
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
    let image = Image::decode(&source.name, &bytes, &limits.image)?;
    Ok((image, bytes))
}
