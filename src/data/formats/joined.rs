//! Several sources of pairs as one: InternVL's mixtures, patterns of lists, and what the command line names together.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::archive::InputFile;
use super::files::open_reader;
use super::pair::{PairRules, PairSource};
use super::remote;
use keel_base::error::{Error, Result};

/// The most pairs of an epoch.
const MOST: usize = u32::MAX as usize;

/// Largest mixture file, bytes.
const MAX_MIXTURE_BYTES: u64 = 16 << 20;

/// How often a source's pairs come in an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Repeat {
    /// 2.5 gives all of them twice, and every other one once more.
    Spread(f64),
    /// As InternVL's mixtures: below 1 the first of them, else as [`Repeat::Spread`].
    First(f64),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Joined<P> {
    parts: Vec<P>,
    /// Of each pair of an epoch: its part, and its place there.
    index: Vec<(u32, u32)>,
    /// Where each part's pairs begin that come whole.
    starts: Vec<Option<usize>>,
}

impl<P: PairSource> Joined<P> {
    /// Each part's pairs as often as is said.
    pub fn new(name: &str, parts: Vec<(P, Repeat)>) -> Result<Joined<P>> {
        let mut index = Vec::new();
        let mut starts = Vec::new();
        for (number, (part, repeat)) in parts.iter().enumerate() {
            let count = part.len();
            let (Repeat::Spread(times) | Repeat::First(times)) = *repeat;
            if index.len() as f64 + count as f64 * times > MOST as f64 {
                return Err(Error::content(
                    name,
                    format!("it repeats its pairs to more than {MOST}"),
                    "repeat them less",
                ));
            }
            let whole = times.floor() as usize;
            let rest = times.fract();
            starts.push((whole > 0).then_some(index.len()));
            for _ in 0..whole {
                index.extend((0..count).map(|at| (number as u32, at as u32)));
            }
            let is_first = matches!(repeat, Repeat::First(times) if *times < 1.0);
            let most = (count as f64 * times) as usize;
            let steps = |at: usize| (at as f64 * rest).floor();
            let more = (0..count).filter(|at| {
                if is_first {
                    *at < most
                } else {
                    steps(at + 1) > steps(*at)
                }
            });
            index.extend(more.map(|at| (number as u32, at as u32)));
        }
        Ok(Joined {
            parts: parts.into_iter().map(|(part, _)| part).collect(),
            index,
            starts,
        })
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// The part that holds a pair, and its place there.
    pub fn at(&self, index: usize) -> (&P, usize) {
        let (part, at) = self.index[index];
        (&self.parts[part as usize], at as usize)
    }

    /// The first place of an epoch that has the same pair.
    pub fn first_of(&self, index: usize) -> usize {
        let (part, at) = self.index[index];
        let first = self.parts[part as usize].first_of(at as usize);
        self.starts[part as usize].map_or(index, |start| start + first)
    }

    /// How many of an epoch's pairs are of each part.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.parts.len()];
        for (part, _) in &self.index {
            counts[*part as usize] += 1;
        }
        counts
    }

    pub fn parts(&self) -> impl Iterator<Item = &P> {
        self.parts.iter()
    }
}

/// Endings of objects after which a number of repeats may stand.
const ENDINGS: [&str; 10] = [
    ".tar", ".tar.gz", ".tgz", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", "}",
];

/// `data=2.5` as its source and how often it comes; nothing where the whole text names a source.
pub(super) fn repeat_of(data: &str) -> Result<Option<(&str, f64)>> {
    let Some((source, repeat)) = data.rsplit_once('=') else {
        return Ok(None);
    };
    // What stands behind the last sign in an address may be part of its own: only after an ending is it a number of repeats.
    let is_named = remote::address_of(Path::new(data)).is_none()
        || ENDINGS.iter().any(|ending| source.ends_with(ending));
    if Path::new(data).exists() || !is_named {
        return Ok(None);
    }
    match repeat.parse::<f64>() {
        Ok(repeat) if repeat > 0.0 && repeat <= 1e6 => Ok(Some((source, repeat))),
        Ok(_) => Err(Error::setting(
            format!("--data {data}"),
            "a number of repeats above 0 and at most a million",
            repeat,
        )),
        Err(_) => Ok(None),
    }
}

/// The first letter of a JSON file: `[` of a list, `{` of a mixture or of lines.
pub(super) fn first_letter(path: &Path) -> Result<Option<u8>> {
    let mut first = [0; 4096];
    let size = open_reader(path)?
        .read(&mut first)
        .map_err(|error| Error::io(remote::name_of(path), "read", error))?;
    // What is not ASCII is a byte-order mark.
    let mut letters = first[..size]
        .iter()
        .filter(|b| !b.is_ascii_whitespace() && b.is_ascii());
    Ok(letters.next().copied())
}

/// One list of a mixture.
pub(super) struct MixturePart {
    /// What messages call it.
    pub name: String,
    /// The folder that its images lie below.
    pub root: PathBuf,
    /// Its list of lines.
    pub annotation: PathBuf,
    /// How often its pairs come in an epoch.
    pub repeat: f64,
    /// How many lines the mixture says there are.
    pub length: Option<u64>,
    /// How its samples are to be trained on.
    pub rules: PairRules,
}

/// The keys of a set, all of which InternVL's training code reads. Others would be ignored in silence, so they are refused.
const KEYS: &str = "root, annotation, repeat_time, length, data_augment or max_dynamic_patch";

/// Reads a mixture: an object of `name: {"root": …, "annotation": …, "repeat_time": …}`. Paths are relative to the mixture's
/// folder; every annotation is a list, of lines or in one array, whose images lie below root.
pub(super) fn read_mixture(path: &Path) -> Result<Vec<MixturePart>> {
    let what = remote::name_of(path);
    let file = InputFile::open(path)?;
    let size = file.len();
    if size > MAX_MIXTURE_BYTES {
        let problem = format!("it is one object of {size} bytes");
        return Err(Error::content(
            &what,
            problem,
            "a list of records begins with [",
        ));
    }
    let text = file.read(0, size)?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mixture: Map<String, Value> = serde_json::from_slice(text).map_err(|problem| {
        Error::content(&what, format!("it is not JSON ({problem})"), "mend it")
    })?;
    let folder = remote::folder_of(path);
    let parts = mixture.iter();
    parts
        .map(|(name, part)| mixture_part(format!("{what}: {name}"), part, &folder))
        .collect()
}

fn mixture_part(name: String, part: &Value, folder: &Path) -> Result<MixturePart> {
    let remedy = "give each set root, annotation and repeat_time";
    let Some(part) = part.as_object() else {
        return Err(Error::content(&name, "it is no set of data", remedy));
    };
    let setting = |key: &str, want: &str, found: &Value| {
        Err(Error::setting(format!("{name}: {key}"), want, found))
    };
    let (mut root, mut annotation) = (None, None);
    let (mut repeat, mut length) = (1.0, None);
    let mut rules = PairRules::default();
    for (key, value) in part {
        match (&key[..], value) {
            ("root" | "annotation", Value::String(text)) if text.contains("://") => {
                return setting(key, "a path: nothing is fetched", value);
            }
            ("root", Value::String(text)) => root = Some(folder.join(text)),
            ("annotation", Value::String(text)) => annotation = Some(folder.join(text)),
            ("repeat_time", Value::Null) => {}
            ("repeat_time", value) => match value.as_f64() {
                Some(times) if (0.0..=1e6).contains(&times) => repeat = times,
                _ => return setting(key, "a number from 0 up", value),
            },
            // InternVL only notes it, and many are wrong.
            ("length", value) => length = value.as_u64(),
            ("data_augment", Value::Bool(is_varied)) => rules.is_varied = *is_varied,
            ("data_augment", value) => return setting(key, "true or false", value),
            ("max_dynamic_patch", value) => match value.as_u64() {
                Some(most @ 1..=1024) => rules.most_tiles = most as usize,
                _ => return setting(key, "a whole number from 1 to 1024", value),
            },
            ("root" | "annotation", value) => return setting(key, "a path", value),
            _ => return Err(Error::setting(&name, KEYS, key.as_str())),
        }
    }
    let missing = |key: &str| Error::content(&name, format!("it has no {key}"), remedy);
    Ok(MixturePart {
        annotation: annotation.ok_or_else(|| missing("annotation"))?,
        root: root.ok_or_else(|| missing("root"))?,
        repeat,
        length,
        rules,
        name,
    })
}
