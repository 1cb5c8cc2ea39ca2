//! Why a job of many ranks ends: one sentence, known to all of them, and their exit codes.

use serde::{Deserialize, Serialize};

/// The exit code of a rank that ends because of another: EX_TEMPFAIL of sysexits.h, "try again". Launchers can start the job
/// again for it (Slurm's `RequeueExit=75`).
pub const ANOTHER_RANK: i32 = 75;

/// The exit code of a rank whose parameters differ from the others'.
pub const COPIES_DIFFER: i32 = 76;

/// The exit code of ranks that were not started alike: refused, as a setting is.
pub const NOT_ALIKE: i32 = 2;

/// The first thing that went wrong, as all ranks hear it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The rank that ends by itself, where it is one, and its own exit code.
    pub rank: Option<(usize, i32)>,
    /// What happened to whom, and what to do.
    pub sentence: String,
    /// The exit code of all others.
    pub code: i32,
}

impl Cause {
    /// The exit code of `rank`.
    pub fn code_of(&self, rank: usize) -> i32 {
        match self.rank {
            Some((one, code)) if one == rank => code,
            _ => self.code,
        }
    }
}

/// Ranks in words, neighbours together: `rank 5`, `ranks 0–4, 6`.
pub(crate) fn named(ranks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for rank in ranks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *rank => *last = *rank,
            _ => runs.push((*rank, *rank)),
        }
    }
    let shown = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    });
    let shown: Vec<String> = shown.collect();
    let plural = if ranks.len() == 1 { "" } else { "s" };
    format!("rank{plural} {}", shown.join(", "))
}

/// Ranks with their hosts: `rank 5 (node-b)`, `ranks 8–15 (node-c)`, `ranks 1, 9 (node-a, node-b)`.
pub(crate) fn placed(ranks: &[usize], hosts: &[String]) -> String {
    const LISTED: usize = 4;
    let mut of_them: Vec<&str> = Vec::new();
    for rank in ranks {
        if let Some(host) = hosts.get(*rank)
            && !of_them.contains(&host.as_str())
        {
            of_them.push(host);
        }
    }
    let more = of_them.len().saturating_sub(LISTED);
    of_them.truncate(LISTED);
    let more = if more > 0 {
        format!(" and {more} more hosts")
    } else {
        String::new()
    };
    format!("{} ({}{more})", named(ranks), of_them.join(", "))
}
