//! The record of samples left out: how many, why, which; and the point where that becomes too many to go on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use keel_base::error::{Error, Result};

/// What to do when too much is bad.
pub(super) const RAISE: &str =
    "repair the data, or allow more bad samples with --max-bad-samples (20%, for example)";

/// Names kept for every reason.
const EXAMPLES: usize = 3;

/// Why a sample was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// A file is missing or cannot be read.
    Unreadable,
    /// The image is damaged, cut short, too large or of an unknown kind.
    BadImage,
    /// There is no image.
    NoImage,
    /// There is no caption, or it cannot be read as text.
    NoCaption,
    /// The caption has no letters.
    EmptyCaption,
    /// A question has no answer, as in the test splits of published sets.
    NoAnswer,
    /// A line or a JSON member cannot be understood.
    BadRecord,
    /// The key came before.
    DuplicateKey,
    /// A file is larger than the limit.
    TooLarge,
    /// The text has more tokens than the recipe allows.
    TooLong,
    /// The archive entry is a link, a device or climbs out.
    RefusedEntry,
    /// A shard is damaged from some place on: counted once, what it lost is unknown.
    DamagedShard,
}

impl Reason {
    /// The reason that an error of reading a pair stands for.
    pub fn of(error: &Error) -> Reason {
        match error {
            Error::Io { .. } => Reason::Unreadable,
            _ => Reason::BadImage,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reason::Unreadable => "missing or unreadable file",
            Reason::BadImage => "unusable image",
            Reason::NoImage => "no image",
            Reason::NoCaption => "no caption",
            Reason::EmptyCaption => "empty caption",
            Reason::NoAnswer => "question without an answer",
            Reason::BadRecord => "unusable record",
            Reason::DuplicateKey => "duplicate key",
            Reason::TooLarge => "file too large",
            Reason::TooLong => "text too long",
            Reason::RefusedEntry => "refused archive entry",
            Reason::DamagedShard => "damaged shard",
        })
    }
}

/// What was done to a sample that is used all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// A conversation began with an answer or ended with a question, which was left out.
    Trimmed,
    /// An image has further frames, which are not shown.
    FirstFrame,
    /// A caption is longer than a contrastive loss reads.
    CutCaption,
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Note::Trimmed => "trimmed to whole questions with answers",
            Note::FirstFrame => "shown by the first frame alone",
            Note::CutCaption => "contrasted by the first max_caption_tokens of its caption alone",
        })
    }
}

/// How much may be left out.
#[derive(Debug, Clone, Copy)]
pub struct SkipLimits {
    /// Largest fraction of bad samples, 0..=1; also of damaged shards.
    pub max_bad_fraction: f64,
    /// Samples seen before the fraction is judged.
    pub min_seen: u64,
}

impl Default for SkipLimits {
    /// One in twenty, judged from the twentieth sample on.
    fn default() -> SkipLimits {
        SkipLimits {
            max_bad_fraction: 0.05,
            min_seen: 20,
        }
    }
}

/// Counts good and bad samples; shared by all threads that read.
#[derive(Debug, Default)]
pub struct SkipLog {
    limits: SkipLimits,
    good: AtomicU64,
    bad: Mutex<Bad>,
}

/// How many, and the first of them.
#[derive(Debug, Default)]
struct Tally {
    count: u64,
    examples: Vec<String>,
}

impl Tally {
    fn add(&mut self, example: impl ToString) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example.to_string());
        }
    }

    /// "2 of what (…; …)".
    fn summary(&self, of: &dyn fmt::Display) -> String {
        let is_more = self.count > self.examples.len() as u64;
        let more = if is_more { "; …" } else { "" };
        format!("{} {of} ({}{more})", self.count, self.examples.join("; "))
    }
}

#[derive(Debug, Default)]
struct Bad {
    count: u64,
    reasons: BTreeMap<Reason, Tally>,
    by_shard: BTreeMap<String, u64>,
    notes: BTreeMap<Note, Tally>,
    remarks: Vec<String>,
}

impl SkipLog {
    /// An empty record under these limits.
    pub fn new(limits: SkipLimits) -> SkipLog {
        SkipLog {
            limits,
            ..SkipLog::default()
        }
    }

    fn bad(&self) -> MutexGuard<'_, Bad> {
        // The counts are whole after every statement, so another thread's panic has not spoilt them.
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one usable sample.
    pub fn count_good(&self) {
        self.good.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one sample of `shard` (or folder, or list) left out; `text` is the sentence that says which and why.
    pub fn count_bad(&self, shard: &str, reason: Reason, text: impl ToString) {
        let mut bad = self.bad();
        bad.count += 1;
        *bad.by_shard.entry(shard.to_owned()).or_default() += 1;
        bad.reasons.entry(reason).or_default().add(text);
    }

    /// Counts one sample that is used, but not as it stands; `name` is what messages call it.
    pub fn count_note(&self, note: Note, name: impl ToString) {
        self.bad().notes.entry(note).or_default().add(name);
    }

    /// Keeps a sentence about the data as a whole.
    pub fn remark(&self, sentence: impl ToString) {
        self.bad().remarks.push(sentence.to_string());
    }

    /// Samples counted under this note.
    pub fn noted_for(&self, note: Note) -> u64 {
        self.bad().notes.get(&note).map_or(0, |tally| tally.count)
    }

    /// What was noted, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let bad = self.bad();
        let notes = bad.notes.iter().map(|(note, tally)| tally.summary(note));
        notes.chain(bad.remarks.iter().cloned()).collect()
    }

    /// Judges a complete count: all samples have been seen.
    ///
    /// # Errors
    /// [`Error::Stopped`] naming the worst shard when at least `min_seen` were seen and too many of them were bad.
    pub fn check(&self) -> Result<()> {
        self.judge(0.0)
    }

    /// Judges a count that is still going on, as [`SkipLog::check`] but allowing for chance: data at the limit give
    /// three standard deviations more than it in one of seven hundred counts.
    ///
    /// # Errors
    /// As [`SkipLog::check`].
    pub fn check_so_far(&self) -> Result<()> {
        self.judge(3.0)
    }

    fn judge(&self, deviations: f64) -> Result<()> {
        let (bad, seen) = (self.skipped(), self.seen());
        let allowed = self.limits.max_bad_fraction * seen as f64;
        // The count of rare bad samples has about its mean as variance.
        if seen < self.limits.min_seen || bad as f64 <= allowed + deviations * allowed.sqrt() {
            return Ok(());
        }
        let worst = self.bad().worst();
        Err(Error::stopped(
            worst,
            format!(
                "{bad} of {seen} samples could not be used, more than {:.0} %: {}",
                100.0 * self.limits.max_bad_fraction,
                self.summary()
            ),
            RAISE,
        ))
    }

    /// Samples left out.
    pub fn skipped(&self) -> u64 {
        self.bad().count
    }

    /// Samples left out for this reason.
    pub fn skipped_for(&self, reason: Reason) -> u64 {
        self.bad()
            .reasons
            .get(&reason)
            .map_or(0, |tally| tally.count)
    }

    /// Whether samples were left out, all of them for this one reason.
    pub fn is_all(&self, reason: Reason) -> bool {
        let skipped = self.skipped();
        skipped > 0 && self.skipped_for(reason) == skipped
    }

    /// Samples counted, good and bad.
    pub fn seen(&self) -> u64 {
        self.good.load(Ordering::Relaxed) + self.skipped()
    }

    /// "2 empty caption (…; …), 1 unusable image (…)": every reason with its count and first sentences.
    pub fn summary(&self) -> String {
        let bad = self.bad();
        let reasons = bad.reasons.iter();
        let reasons = reasons.map(|(reason, tally)| tally.summary(reason));
        reasons.collect::<Vec<_>>().join(", ")
    }
}

impl Bad {
    /// The shard with most bad samples, the first by name on a tie.
    fn worst(&self) -> String {
        let worst = self.by_shard.iter().rev().max_by_key(|(_, count)| **count);
        worst.map_or_else(String::new, |(shard, _)| shard.clone())
    }
}
