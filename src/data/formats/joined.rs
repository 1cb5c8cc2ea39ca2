//! Several sources of pairs as one: InternVL's mixtures, patterns of lists, and what the command line names together.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::pair::PairSource;
use keel_base::error::{Error, Result};

/// The most pairs of an epoch.
const MOST: usize = u32::MAX as usize;

/// Largest mixture file, bytes.
const MAX_MIXTURE_BYTES: u64 = 16 << 20;

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
    /// Each part's pairs as often as is said: 2.5 gives all of them twice, and every other one once more.
    pub fn new(name: &str, parts: Vec<(P, f64)>) -> Result<Joined<P>> {
        let mut index = Vec::new();
        let mut starts = Vec::new();
        for (number, (part, repeat)) in parts.iter().enumerate() {
            let count = part.len();
            if index.len() as f64 + count as f64 * repeat > MOST as f64 {
                return Err(Error::content(
                    name,
                    format!("it repeats its pairs to more than {MOST}"),
                    "repeat them less",
                ));
            }
            let whole = repeat.floor() as usize;
            let rest = repeat.fract();
            starts.push((whole > 0).then_some(index.len()));
            for _ in 0..whole {
                index.extend((0..count).map(|at| (number as u32, at as u32)));
            }
            let steps = |at: usize| (at as f64 * rest).floor();
            let more = (0..count).filter(|at| steps(at + 1) > steps(*at));
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

    pub fn parts(&self) -> impl Iterator<Item = &P> {
        self.parts.iter()
    }
}

/// `data=2.5` as its source and how often it comes; nothing where the whole text names a source.
pub(super) fn repeat_of(data: &str) -> Result<Option<(&str, f64)>> {
    let Some((source, repeat)) = data.rsplit_once('=') else {
        return Ok(None);
    };
    if Path::new(data).exists() {
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

/// Whether a JSON file holds one object, as a mixture does, and not a list.
pub(super) fn is_mixture(path: &Path) -> Result<bool> {
    let mut first = [0; 4096];
    let io = |error| Error::io(path, "read", error);
    let size = File::open(path)
        .and_then(|mut file| file.read(&mut first))
        .map_err(io)?;
    let mut letters = first[..size]
        .iter()
        .filter(|b| !b.is_ascii_whitespace() && b.is_ascii());
    Ok(letters.next() == Some(&b'{'))
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
}

/// Reads a mixture: an object of `name: {"root": …, "annotation": …, "repeat_time": …}`. Paths are relative to the mixture's
/// folder; every annotation is a list of lines whose images lie below root.
pub(super) fn read_mixture(path: &Path) -> Result<Vec<MixturePart>> {
    let what = path.display().to_string();
    let size = std::fs::metadata(path)
        .map_err(|e| Error::io(path, "open", e))?
        .len();
    if size > MAX_MIXTURE_BYTES {
        let problem = format!("it is one object of {size} bytes");
        return Err(Error::content(
            &what,
            problem,
            "a list of records begins with [",
        ));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let mixture: Map<String, Value> = serde_json::from_slice(&text).map_err(|problem| {
        Error::content(&what, format!("it is not JSON ({problem})"), "mend it")
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let parts = mixture.iter();
    parts
        .map(|(name, part)| mixture_part(format!("{what}: {name}"), part, folder))
        .collect()
}

fn mixture_part(name: String, part: &Value, folder: &Path) -> Result<MixturePart> {
    let field = |key: &str| -> Result<PathBuf> {
        let text = part[key].as_str().ok_or_else(|| {
            let problem = format!("it has no {key}");
            Error::content(
                &name,
                problem,
                "give each set root, annotation and repeat_time",
            )
        })?;
        Ok(folder.join(text))
    };
    let repeat = match &part["repeat_time"] {
        Value::Null => 1.0,
        value => value
            .as_f64()
            .filter(|times| (0.0..=1e6).contains(times))
            .ok_or_else(|| {
                Error::setting(format!("{name}: repeat_time"), "a number from 0 up", value)
            })?,
    };
    Ok(MixturePart {
        annotation: field("annotation")?,
        root: field("root")?,
        repeat,
        length: part["length"].as_u64(),
        name,
    })
}
