//! What a walk over a shard finds, and where it is kept for shards that are remote: a walk over one fetches most of it.
//!
//! An index is believed only for an object of the same name, size and version, under the same limits, and whole by its
//! checksum. One that cannot be kept or read costs another walk and nothing else.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::skips::Reason;
use super::webdataset::ShardLimits;
use keel_base::error::Error;
use keel_base::files::{Writing, open_own, open_regular};
use keel_stores::Object;

/// The variable that names the folder of all that is kept; an empty one keeps nothing.
const FOLDER: &str = "KEEL_CACHE";

/// What an index means; another number is another form or another reading of shards.
const FORM: u32 = 1;

/// Bytes between a sample's text and its image that are fetched with them: a request takes as long as they do.
const GAP: u64 = 1 << 20;

/// Where a pair lies in a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardPair {
    /// Which of several shards.
    #[serde(skip)]
    pub shard: usize,
    /// What the files of the sample share.
    #[serde(rename = "k")]
    pub key: Box<str>,
    /// Where its image begins, and bytes of it.
    #[serde(rename = "i")]
    pub image: (u64, u64),
    /// Where its words begin, and bytes of them.
    #[serde(rename = "t")]
    pub text: (u64, u64),
    /// Whether its words are a JSON record.
    #[serde(rename = "j")]
    pub is_json: bool,
}

impl ShardPair {
    /// Where text and image lie together, with what is between them; nothing where that is much.
    pub fn span(&self) -> Option<(u64, u64)> {
        let ends = [self.text, self.image].map(|(offset, size)| offset.saturating_add(size));
        let start = self.text.0.min(self.image.0);
        let size = ends[0].max(ends[1]) - start;
        (size <= self.text.1.saturating_add(self.image.1).saturating_add(GAP))
            .then_some((start, size))
    }
}

/// What a walk over a shard found.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    /// The usable samples.
    pub pairs: Vec<ShardPair>,
    /// Names of conversations that were trimmed.
    pub trimmed: Vec<String>,
    /// What was left out, and why.
    pub skipped: Vec<(Reason, Error)>,
}

/// An index as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    form: u32,
    name: String,
    size: u64,
    version: String,
    /// Of a member and of a sample, bytes.
    limits: [u64; 2],
    pairs: Vec<ShardPair>,
    trimmed: Vec<String>,
    skipped: Vec<(Reason, [String; 3])>,
}

/// The folder of indexes; nothing where none are kept.
fn folder() -> Option<PathBuf> {
    let of = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let cache = of(FOLDER).or_else(|| {
        let caches = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")));
        Some(caches?.join("keel"))
    });
    let cache = cache.filter(|folder| !folder.as_os_str().is_empty());
    cache.map(|cache| cache.join("shards"))
}

/// Where the index of an object is kept.
fn place(object: &Object) -> Option<PathBuf> {
    // Without a version another content of the same size could not be told.
    if object.version().is_empty() {
        return None;
    }
    let name = blake3::hash(object.name().as_bytes()).to_hex();
    Some(folder()?.join(format!("{}.json", &name[..32])))
}

fn sizes(limits: ShardLimits) -> [u64; 2] {
    [limits.member_bytes, limits.sample_bytes]
}

/// The index of an object that an earlier walk has left.
pub(super) fn kept(object: &Object, limits: ShardLimits) -> Option<ShardIndex> {
    let mut text = String::new();
    let mut file = open_regular(&place(object)?).ok()?;
    file.read_to_string(&mut text).ok()?;
    let (sum, text) = text.split_once('\n')?;
    if blake3::hash(text.as_bytes()).to_hex().as_str() != sum {
        return None;
    }
    let kept: Kept = serde_json::from_str(text).ok()?;
    let is_of_it = kept.form == FORM
        && kept.name == object.name()
        && kept.size == object.size()
        && kept.version == object.version()
        && kept.limits == sizes(limits);
    let skipped = kept.skipped.into_iter();
    is_of_it.then(|| ShardIndex {
        pairs: kept.pairs,
        trimmed: kept.trimmed,
        skipped: skipped
            .map(|(reason, [what, problem, remedy])| {
                (reason, Error::content(what, problem, remedy))
            })
            .collect(),
    })
}

/// Keeps the index of an object.
pub(super) fn keep(object: &Object, limits: ShardLimits, found: &ShardIndex) {
    let in_words = |(reason, error): &(Reason, Error)| match error {
        Error::Content {
            what,
            problem,
            remedy,
        } => Some((*reason, [what, problem, remedy].map(String::clone))),
        // What failed for another reason than the object's content may not fail again.
        _ => None,
    };
    let skipped: Option<Vec<_>> = found.skipped.iter().map(in_words).collect();
    let (Some(place), Some(skipped)) = (place(object), skipped) else {
        return;
    };
    let kept = Kept {
        form: FORM,
        name: object.name().to_owned(),
        size: object.size(),
        version: object.version().to_owned(),
        limits: sizes(limits),
        pairs: found.pairs.clone(),
        trimmed: found.trimmed.clone(),
        skipped,
    };
    let text = serde_json::to_string(&kept).expect("an index is plain data");
    // An index saves time and is not needed: where none can be written, the next run walks again.
    let _ = write(&place, &text);
}

/// Writes a file beside its place and moves it there, so that none is ever half there.
fn write(place: &Path, text: &str) -> std::io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = place.with_extension(format!("{}-{count}.part", std::process::id()));
    let written = open_own(&beside, Writing::Replace).and_then(|mut file| {
        let sum = blake3::hash(text.as_bytes());
        write!(file, "{}\n{text}", sum.to_hex())
    });
    let moved = written.and_then(|()| fs::rename(&beside, place));
    if moved.is_err() {
        let _ = fs::remove_file(&beside);
    }
    moved
}
