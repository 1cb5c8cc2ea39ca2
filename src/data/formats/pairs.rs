//! The user's own image–text pairs: shards, lists of JSON, tables, folders, or several of these, all read at random by any
//! thread.
//!
//! Opening looks at every sample once and keeps only where it lies, except that a folder's captions are held in memory.
//! What cannot be used is counted in a [`SkipLog`], never dropped in silence. Nothing is fetched but from the addresses that the
//! user names: a name in the data is a key or a path below the data's own folder, never a command or an address. Nothing is
//! written but the indexes of remote shards.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub use super::limits::PairLimits;
pub use super::pair::{Pair, PairRules, PairSource};

use super::archive::InputFile;
use super::digest::{self, DataDigest};
use super::folder::{self, FolderPair, Listing};
use super::image_place::ImagePlace;
use super::joined::{self, Joined, MixturePart, Repeat};
use super::lines;
use super::parquet::{self, Parquet};
use super::records;
use super::remote;
use super::shards::{self, Shards};
use super::skips::{Note, Reason, SkipLog};
use super::split::last_part;
use super::table;
use super::webdataset::expand_braces;
use crate::images::decode::{Decoded, decode};
use keel_base::error::{Error, Result};
use keel_stores::{Object, is_address};
use rayon::prelude::*;

/// A source whose pairs come once an epoch.
const ONCE: Repeat = Repeat::Spread(1.0);

/// The pairs of one `--data` argument.
#[derive(Debug)]
pub struct Pairs {
    reader: Reader,
    limits: PairLimits,
    opening_skips: SkipLog,
    drawing_skips: SkipLog,
    /// What a mixture says about how these are to be trained on.
    rules: PairRules,
    /// Whether it was said that requests were made again.
    has_told: AtomicBool,
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
            rules: PairRules::default(),
            has_told: AtomicBool::new(false),
        }
    }

    /// Opens a folder of images; a tar shard or a pattern such as `shards-{000..009}.tar`, also gzipped; a `.jsonl` list or a
    /// pattern of them; a `.json` list as LLaVA's, or a mixture of lists as InternVL's; a `.csv` or `.tsv` table; a `.parquet`
    /// file or a pattern of them. All but folders may be objects of a store or files of a web server, named by their address.
    /// `SPEC=2.5` repeats its pairs two and a half times an epoch.
    ///
    /// # Errors
    /// [`Error::Io`] when something named cannot be read, [`Error::Content`] when it is of no known kind, a single shard
    /// is damaged or no pair is usable, [`Error::Stopped`] when too many samples or shards are bad.
    pub fn open(data: &str, limits: PairLimits) -> Result<Pairs> {
        match joined::repeat_of(data)? {
            Some((data, repeat)) => {
                let part = (Pairs::open(data, limits)?, Repeat::Spread(repeat));
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
                let parts = data.iter().map(|one| Ok((Pairs::open(one, limits)?, ONCE)));
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
                rules,
            } = part;
            let mut pairs = Pairs::list_below(&annotation, &root, limits)?;
            let there = pairs.len() as u64 + pairs.opening_skips.skipped();
            if let Some(said) = length.filter(|said| *said != there) {
                pairs.opening_skips.remark(format!(
                    "{name}: its length says {said}, and there are {there}, which are used"
                ));
            }
            pairs.rules = rules;
            parts.push((pairs, Repeat::First(repeat)));
        }
        Pairs::joined(&path.display().to_string(), parts, limits)
    }

    /// Pairs of several sources, each with how often it comes in an epoch.
    fn joined(name: &str, parts: Vec<(Pairs, Repeat)>, limits: PairLimits) -> Result<Pairs> {
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

    /// The lists of an image folder of Hugging Face's form, one in each folder that has images of its own: all splits.
    fn open_described(data: &str, listing: &Listing, limits: PairLimits) -> Result<Pairs> {
        let lists = listing.metadata.iter();
        let parts = lists.map(|list| Pairs::open_one(&list.to_string_lossy(), limits));
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        let pairs = if parts.len() == 1 {
            parts.remove(0)
        } else {
            let parts = parts.into_iter().map(|part| (part, ONCE)).collect();
            Pairs::joined(data, parts, limits)?
        };
        if let Some(undescribed) = listing.undescribed() {
            pairs.opening_skips.remark(undescribed);
        }
        Ok(pairs)
    }

    fn open_one(data: &str, limits: PairLimits) -> Result<Pairs> {
        let path = Path::new(data);
        let skips = SkipLog::new(limits.skips);
        refuse_commands(data)?;
        let ending = remote::ending_of(data);
        let ending = ending.as_deref();
        let folder = || remote::folder_of(path);
        let is_lines = matches!(ending, Some("jsonl" | "ndjson"));
        let reader = if data.contains('{') && (is_lines || ending == Some("parquet")) {
            let files = expand_braces(data)?;
            let open = |file: &String| Ok((Pairs::open_one(file, limits)?, ONCE));
            let parts: Vec<Result<_>> = if is_address(data) {
                remote::with_readers(true, || files.par_iter().map(open).collect())?
            } else {
                files.iter().map(open).collect()
            };
            return Pairs::joined(data, parts.into_iter().collect::<Result<Vec<_>>>()?, limits);
        } else if data.contains('{') {
            Reader::Shards(shards::open(&expand_braces(data)?, limits, &skips)?)
        } else if path.is_dir() {
            let listing = Listing::of(path)?;
            if listing.is_described(path) {
                return Pairs::open_described(data, &listing, limits);
            }
            Reader::Folder(folder::open(path, &listing, &skips)?)
        } else if is_lines {
            Reader::Lines(open_lines(path, folder(), &skips)?)
        } else if ending == Some("json") {
            if joined::first_letter(path)? == Some(b'{') {
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
                "give a folder of images, a .tar shard (or shards-{000..009}.tar), a .jsonl or .json list, a .tsv table, or a .parquet file; all but folders may be addresses (s3://, gs://, az://, https://)",
            ));
        };
        let pairs = Pairs::of(reader, limits, skips);
        let skips = &pairs.opening_skips;
        if pairs.is_empty() && skips.is_all(Reason::NoAnswer) {
            let problem = format!("it holds no answers to learn: {}", skips.summary());
            let remedy = "it is a test split, it seems: name the split that training is done on";
            return Err(Error::content(data, problem, remedy));
        }
        skips.check()?;
        if pairs.is_empty() {
            let problem = match skips.skipped() {
                0 => "it holds no pairs".to_owned(),
                _ => format!("it holds no usable pairs: {}", skips.summary()),
            };
            return Err(Error::content(
                data,
                problem,
                "a pair is an image (png, jpg, webp, gif, bmp, tiff) with a caption of the same name",
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
            Reader::Joined(joined) => {
                let of_parts = joined.parts().flat_map(Pairs::opening_logs);
                of_parts.chain([&self.opening_skips]).collect()
            }
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
                Err(error @ Error::Stopped { .. }) => return Err(error),
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

    /// A list, of lines or in one array, whose images lie below a folder of its own.
    fn list_below(path: &Path, root: &Path, limits: PairLimits) -> Result<Pairs> {
        let skips = SkipLog::new(limits.skips);
        let lines = open_lines(path, root.to_owned(), &skips)?;
        skips.check()?;
        Ok(Pairs::of(Reader::Lines(lines), limits, skips))
    }

    /// Reads and decodes one pair; with it what is known of its image files, where it has any.
    ///
    /// # Errors
    /// As [`PairSource::get`].
    pub(super) fn read(&self, index: usize) -> Result<(Pair, Option<ImageFiles>)> {
        let (mut pair, encoded) = self.encoded(index, true)?;
        let mut files: Option<ImageFiles> = None;
        for one in encoded {
            let (decoded, bytes) = self.decoded(one)?;
            let files = files.get_or_insert_default();
            files.bytes.extend(bytes);
            files.is_animated |= decoded.is_animated;
            pair.before.extend(pair.image.replace(decoded.image));
        }
        Ok((pair, files))
    }

    /// What an image file holds, and its bytes.
    fn decoded(&self, encoded: Encoded<'_>) -> Result<(Decoded, Vec<u8>)> {
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
        let decoded = decode(&name, &bytes, &self.limits.image)?;
        Ok((decoded, bytes))
    }

    /// A pair's words, and where its images are, in order; `with_images` where they are to be looked at next.
    fn encoded(&self, index: usize, with_images: bool) -> Result<(Pair, Vec<Encoded<'_>>)> {
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
                let (name, words, image) = shards.words(index, with_images)?;
                let member = match image {
                    Some(image) => Encoded::Bytes(name, image),
                    None => Encoded::Member(name, shards, index),
                };
                (shards.key(index), words, vec![member])
            }
            Reader::Lines(lines) => {
                let (name, record) = lines.record(&lines.places[index])?;
                // The path is the name, but of files in the record itself and of several images.
                let key = match &record.images[..] {
                    [ImagePlace::Path(path)] => path.clone(),
                    _ => name.clone(),
                };
                let remedy = "repair or remove the record";
                let files = record.images.into_iter();
                let files = files.map(|place| Encoded::of(&name, place, &lines.folder, remedy));
                (key, record.words, files.collect())
            }
            Reader::Table(table) => {
                let (name, image, words) = table.row(&table.rows[index])?;
                let image = Encoded::of(&name, image, &table.folder, ROW);
                (name, words, vec![image])
            }
            Reader::Parquet(parquet) => {
                let (name, images, words) = parquet.row(parquet.rows[index])?;
                let of_row = |image| Encoded::of(&name, image, &parquet.folder, ROW);
                let images = images.into_iter().map(of_row).collect();
                (name, words, images)
            }
            Reader::Joined(joined) => {
                let (part, index) = joined.at(index);
                return part.encoded(index, with_images);
            }
        };
        let mut pair = Pair::of(key, words);
        pair.rules.most_tiles = self.rules.most_tiles;
        pair.rules.is_varied = self.rules.is_varied;
        Ok((pair, encoded))
    }

    /// Takes in the content of images that lie in local files of their own, or in local shards; [`digest`] says which. What
    /// stands in a list, a table or a file of rows has counted with it, and an object by its version.
    fn add_images(&self, hasher: &mut blake3::Hasher) {
        if self.is_remote() {
            return;
        }
        let content = |index: &usize| -> Vec<blake3::Hash> {
            // A sample that cannot be read is counted when it is drawn.
            let encoded = self.encoded(*index, true).map(|(_, encoded)| encoded);
            let encoded = encoded.unwrap_or_default().into_iter();
            let bytes = encoded.filter_map(|one| one.beginning().transpose());
            bytes
                .map(|bytes| blake3::hash(&bytes.unwrap_or_default()))
                .collect()
        };
        let chosen = digest::looked_at(self.len());
        let hashes: Vec<Vec<blake3::Hash>> = chosen.par_iter().map(content).collect();
        for hash in hashes.iter().flatten() {
            hasher.update(hash.as_bytes());
        }
    }

    /// The objects of stores that these pairs are read from.
    fn objects(&self) -> Vec<&Object> {
        match &self.reader {
            Reader::Folder(_) => Vec::new(),
            Reader::Shards(shards) => shards.objects().collect(),
            Reader::Lines(lines) => lines.source().object().into_iter().collect(),
            Reader::Table(table) => table.source().object().into_iter().collect(),
            Reader::Parquet(parquet) => parquet.object().into_iter().collect(),
            Reader::Joined(joined) => joined.parts().flat_map(Pairs::objects).collect(),
        }
    }

    /// A sentence about requests that had to be made again.
    fn made_again(&self) -> Option<String> {
        let objects = self.objects().into_iter();
        let counts = objects.map(|object| (object.name(), object.made_again()));
        let counts: Vec<_> = counts.filter(|(_, (count, _))| *count > 0).collect();
        let (name, (_, problem)) = counts.first()?;
        let all: u64 = counts.iter().map(|(_, (count, _))| count).sum();
        Some(format!(
            "{all} requests to stores were made again, of {name} for example: {problem}"
        ))
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

    fn note(&self, _: usize, note: Note, name: &str) {
        self.drawing_skips.count_note(note, name);
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

    fn notes(&self) -> Vec<String> {
        let opening = self.opening_logs().into_iter();
        let logs = opening.chain([&self.drawing_skips]);
        let notes = logs.flat_map(SkipLog::notes);
        notes.chain(self.made_again()).collect()
    }

    fn digests(&self) -> Result<Vec<DataDigest>> {
        let mut hasher = blake3::Hasher::new();
        let name = match &self.reader {
            Reader::Joined(joined) => return digests_of_parts(joined),
            Reader::Folder(folder) => {
                folder.add_to(&mut hasher);
                folder.name()
            }
            Reader::Shards(shards) => {
                shards.add_to(&mut hasher)?;
                self.origin(0)
            }
            Reader::Lines(lines) => lines.name(),
            Reader::Table(table) => table.name(),
            Reader::Parquet(parquet) => parquet.name(),
        };
        if !matches!(self.reader, Reader::Folder(_) | Reader::Shards(_)) {
            match self.objects()[..] {
                [object] => digest::add_text(&mut hasher, digest::version_of(object).as_bytes()),
                _ => digest::add_file(&mut hasher, Path::new(name))?,
            }
        }
        self.add_images(&mut hasher);
        let samples = self.len() as u64;
        Ok(vec![DataDigest {
            name: name.to_owned(),
            samples,
            drawn: samples,
            digest: hasher.finalize().to_hex().to_string(),
        }])
    }

    fn get(&self, index: usize) -> Result<Pair> {
        let (pair, files) = self.read(index)?;
        if files.is_some_and(|files| files.is_animated) {
            self.drawing_skips.count_note(Note::FirstFrame, &pair.key);
        }
        Ok(pair)
    }

    fn news(&self) -> Option<String> {
        let has_told = || self.has_told.load(Ordering::Relaxed);
        let news = self.made_again().filter(|_| !has_told())?;
        self.has_told.store(true, Ordering::Relaxed);
        Some(news)
    }

    fn is_remote(&self) -> bool {
        match &self.reader {
            Reader::Shards(shards) => shards.is_remote(),
            Reader::Joined(joined) => joined.parts().any(Pairs::is_remote),
            _ => !self.objects().is_empty(),
        }
    }

    fn words(&self, index: usize) -> Result<Pair> {
        self.encoded(index, false).map(|(pair, _)| pair)
    }

    fn split_key(&self, index: usize) -> Result<String> {
        Ok(match &self.reader {
            Reader::Folder(folder) => folder.pairs[index].path.display().to_string(),
            Reader::Shards(shards) => shards.key(index),
            Reader::Lines(lines) => {
                let (_, record) = lines.record(&lines.places[index])?;
                split_key_of(&record.images, &record.words)
            }
            Reader::Table(table) => {
                let (_, image, words) = table.row(&table.rows[index])?;
                split_key_of(&[image], &words)
            }
            // To look at what a row holds would be to read the whole file.
            Reader::Parquet(parquet) => last_part(&parquet.name_of(parquet.rows[index])),
            Reader::Joined(joined) => {
                let (part, index) = joined.at(index);
                return part.split_key(index);
            }
        })
    }

    fn first_of(&self, index: usize) -> usize {
        match &self.reader {
            Reader::Joined(joined) => joined.first_of(index),
            _ => index,
        }
    }
}

/// The split key of a record: the paths of its images, or what it holds where it names none.
fn split_key_of(images: &[ImagePlace], words: &records::RecordText) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut paths = Vec::new();
    for image in images {
        match image {
            ImagePlace::Path(path) => paths.push(path.as_str()),
            ImagePlace::Bytes(bytes) => digest::add_text(&mut hasher, bytes),
        }
    }
    if !paths.is_empty() {
        return paths.join("\n");
    }
    // Images that lie in the record tell it apart; a conversation without one is told by its words.
    if images.is_empty() {
        digest::add_text(&mut hasher, words.caption.as_bytes());
        digest::add_text(
            &mut hasher,
            words.prompt.as_deref().unwrap_or("").as_bytes(),
        );
        for turn in &words.further {
            digest::add_text(&mut hasher, turn.question.as_bytes());
            digest::add_text(&mut hasher, turn.answer.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// What each part is told by, with how often an epoch draws from it.
fn digests_of_parts(joined: &Joined<Pairs>) -> Result<Vec<DataDigest>> {
    let mut all = Vec::new();
    for (part, count) in joined.parts().zip(joined.counts()) {
        let whole = part.len() as f64;
        all.extend(part.digests()?.into_iter().map(|one| DataDigest {
            drawn: (one.drawn as f64 * count as f64 / whole).round() as u64,
            ..one
        }));
    }
    Ok(all)
}

/// Refuses what WebDataset's own loader would run as a command.
fn refuse_commands(data: &str) -> Result<()> {
    if !data.starts_with("pipe:") || Path::new(data).exists() {
        return Ok(());
    }
    Err(Error::setting(
        format!("--data {data}"),
        "the address of the shards themselves, as in s3://bucket/shards-{000..009}.tar (or gs://, az://, https://)",
        "a command, and none is ever run",
    ))
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

/// A list of lines, or in one array: told apart by content, since both are called .jsonl and .json.
fn open_lines(path: &Path, folder: PathBuf, skips: &SkipLog) -> Result<lines::Lines> {
    if joined::first_letter(path)? == Some(b'[') {
        lines::open_list(path, folder, skips)
    } else {
        lines::open(path, folder, skips)
    }
}

/// What to do about a row with a bad image.
const ROW: &str = "repair or remove the row";

impl Encoded<'_> {
    /// The first bytes of an image that lies in a file of its own, or in a shard.
    fn beginning(&self) -> Result<Option<Vec<u8>>> {
        let most = digest::IMAGE_BYTES;
        match self {
            Encoded::Bytes(..) => Ok(None),
            Encoded::Member(_, shards, index) => shards.beginning(*index, most).map(Some),
            Encoded::File(path, _) => {
                let file = InputFile::open(path)?;
                file.read(0, file.len().min(most)).map(Some)
            }
        }
    }

    /// The image of the record or row `name`, whose paths lie below `folder`.
    fn of(name: &str, image: ImagePlace, folder: &Path, remedy: &'static str) -> Encoded<'static> {
        match image {
            ImagePlace::Path(path) => {
                Encoded::File(folder.join(path), Some((name.to_owned(), remedy)))
            }
            ImagePlace::Bytes(bytes) => Encoded::Bytes(name.to_owned(), bytes),
        }
    }
}

/// What is known of a pair's image files beside what they show.
#[derive(Debug, Default)]
pub(super) struct ImageFiles {
    /// Their bytes, one after the other.
    pub bytes: Vec<u8>,
    /// Whether one of them has further frames.
    pub is_animated: bool,
}

/// What is wrong with an image that the record or row `name` names; a file that is not there stays one.
fn within(name: &str, error: Error, remedy: &str) -> Error {
    match error {
        Error::Io {
            path,
            action,
            source,
        } => Error::io(format!("{name}: {}", path.display()), action, source),
        stopped @ Error::Stopped { .. } => stopped,
        other => Error::content(name, other, remedy),
    }
}

/// Reads and decodes an image file no larger than a shard's member may be; gives its bytes too.
fn read_image(path: &Path, limits: &PairLimits) -> Result<(Decoded, Vec<u8>)> {
    let source = InputFile::open(path).map_err(remote::but_missing)?;
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
    let decoded = decode(&source.name, &bytes, &limits.image)?;
    Ok((decoded, bytes))
}
