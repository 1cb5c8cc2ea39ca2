//! The record of samples left out: how many, why, which; and the point where that becomes too many to go on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keel_base::error::{Error, Result};

/// Names kept for every reason.
const EXAMPLES: usize = 3;

/// Why a sample was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
            Reason::BadRecord => "unusable record",
            Reason::DuplicateKey => "duplicate key",
            Reason::TooLarge => "file too large",
            Reason::TooLong => "text too long",
            Reason::RefusedEntry => "refused archive entry",
            Reason::DamagedShard => "damaged shard",
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

#[derive(Debug, Default)]
struct Bad {
    count: u64,
    reasons: BTreeMap<Reason, (u64, Vec<String>)>,
    by_shard: BTreeMap<String, u64>,
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
        let (count, examples) = bad.reasons.entry(reason).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(text.to_string());
        }
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
            "repair the data, or raise the limit on bad samples",
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
            .map_or(0, |(count, _)| *count)
    }

    /// Samples counted, good and bad.
    pub fn seen(&self) -> u64 {
        self.good.load(Ordering::Relaxed) + self.skipped()
    }

    /// "2 empty caption (…; …), 1 unusable image (…)": every reason with its count and first sentences.
    pub fn summary(&self) -> String {
        let bad = self.bad();
        let reasons = bad.reasons.iter().map(|(reason, (count, examples))| {
            let more = if *count > examples.len() as u64 {
                "; …"
            } else {
                ""
            };
            format!("{count} {reason} ({}{more})", examples.join("; "))
        });
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
