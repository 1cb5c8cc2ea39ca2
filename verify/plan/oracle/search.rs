//! Exact search for a placement of one part inside a given capacity.
//!
//! Branch and bound over *canonical* placements: every buffer lies at zero or on top of one it conflicts with, and
//! buffers are placed in the order of their offsets, so that a state is a skyline (the *floor* of every section: nothing
//! more starts below it) and the set of buffers still to place. At the lowest floor the search takes the section with
//! the fewest ways on: some buffer that fits there starts at this height, or nothing does and the section is *closed* at
//! this height, which costs it some of its slack. Four things keep the tree small:
//!  - inference: a section's floor rises to the lowest offset that any of its buffers can still have; floor plus what is
//!    still to be placed must stay within the capacity, and so must every single buffer;
//!  - decomposition: where no buffer still to be placed crosses a boundary between sections, both sides are searched
//!    apart, and a failure of one fails both;
//!  - a table of states that have failed: the same skyline with the same buffers left is not searched again;
//!  - of buffers that are alike only the first is tried.
//!
//! Canonical placements, section inference and decomposition follow Moffitt, "MiniMalloc", ASPLOS 2023; branching on the
//! tightest section and the table of failures are ours. Effort is counted in sections visited, never in seconds, so that
//! the same buffers give the same answer on every machine.

use super::Part;
use crate::plan::instances::Random;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A placement within the capacity was found.
    Found,
    /// There is none.
    Impossible,
    /// The effort ran out first.
    GaveUp,
}

/// Which buffer is tried first where several fit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Preference {
    /// The one with the longest lifetime.
    Longest,
    /// The largest.
    Largest,
    /// The one whose sections have the least slack, then the longest.
    Tightest,
    /// A fixed random order, replayable from its seed.
    Shuffled(u64),
}

/// On which section the search branches, among those with more than one way on; a forced one always goes first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// The one with the least slack.
    Slack,
    /// The one where the capacity was exceeded most often so far.
    Failing,
    /// The one with the fewest ways on for every such failure.
    FewestPerFailure,
    /// The lowest in the valley that holds the section that failed most often.
    FailingValley,
}

/// Deeper nests of choices than this end the search, so that the stack of a test always suffices.
const MAX_DEPTH: usize = 500;
/// States of the table of failures, a power of two (16 B each).
const TABLE_SIZE: usize = 1 << 17;

/// How little a section recommends itself for branching, the weightiest reason first.
type Score = (bool, u64, u64, u64, u64);

/// Where a span has more than one way on.
struct Branch {
    lo: usize,
    hi: usize,
    section: usize,
    level: u64,
    /// The choices on the stack that belong to this branch start here.
    first_choice: usize,
    may_close: bool,
    depth: usize,
}

/// What was done to the state, to be undone in reverse.
enum Change {
    Floor { section: u32, old: u64 },
    Closed { section: u32, old: u64 },
    Placed { item: u32 },
}

/// A search over one part; keeps what it learned between attempts at the same capacity.
pub(super) struct Search<'a> {
    part: &'a Part,
    capacity: u64,
    /// Effort left, in sections visited.
    effort: u64,
    floor: Vec<u64>,
    /// The floor at which the section was closed, plus one; it is closed while its floor is still that.
    closed: Vec<u64>,
    /// Bytes still to be placed in each section.
    remaining: Vec<u64>,
    /// Items still to be placed that cover both this section and the one before.
    crossing: Vec<u32>,
    /// For each section, the exclusive-or of the marks of the items still to be placed that start there.
    starting: Vec<u128>,
    is_placed: Vec<bool>,
    offset: Vec<u64>,
    rank: Vec<u32>,
    mark: Vec<u128>,
    /// `first_at[s]..first_at[s + 1]` are the items that start at section s.
    first_at: Vec<u32>,
    trail: Vec<Change>,
    /// Choices of all open branches, a stack.
    choices: Vec<u32>,
    failed: Vec<u128>,
    /// How often each section exceeded the capacity, over all attempts, plus one.
    failures: Vec<u64>,
    // Scratch, valid until the next inference.
    least: Vec<u64>,
    base: Vec<u64>,
    raised: Vec<u64>,
    cover: Vec<u32>,
    smallest: Vec<u64>,
    hull: Vec<(u32, u32)>,
    rule: Rule,
}

impl<'a> Search<'a> {
    pub fn new(part: &'a Part, capacity: u64) -> Search<'a> {
        let (items, sections) = (&part.items, part.sections);
        let mut random = Random(0x5ee4_15ed);
        let mark: Vec<u128> = items
            .iter()
            .map(|_| u128::from(random.next()) << 64 | u128::from(random.next()))
            .collect();
        let mut first_at = vec![0u32; sections + 1];
        for item in items {
            first_at[item.start as usize + 1] += 1;
        }
        for section in 0..sections {
            first_at[section + 1] += first_at[section];
        }
        Search {
            part,
            capacity,
            effort: 0,
            floor: vec![0; sections],
            closed: vec![0; sections],
            remaining: vec![0; sections],
            crossing: vec![0; sections + 1],
            starting: vec![0; sections],
            is_placed: vec![false; items.len()],
            offset: vec![0; items.len()],
            rank: vec![0; items.len()],
            mark,
            first_at,
            trail: Vec::new(),
            choices: Vec::new(),
            failed: vec![0; TABLE_SIZE],
            failures: vec![1; sections],
            least: vec![0; items.len()],
            base: vec![0; sections],
            raised: vec![0; sections],
            cover: vec![0; sections],
            smallest: vec![0; sections],
            hull: vec![(0, 0); sections],
            rule: Rule::Slack,
        }
    }

    /// Searches from the beginning with at most `effort`, and returns what is left of it.
    pub fn attempt(&mut self, rule: Rule, preference: Preference, effort: u64) -> (Verdict, u64) {
        self.rule = rule;
        self.effort = effort;
        self.reset();
        self.order(preference);
        let is_too_small = self.remaining.iter().any(|total| *total > self.capacity);
        let verdict = if is_too_small {
            Verdict::Impossible
        } else {
            self.solve(0, self.part.sections, 0)
        };
        (verdict, self.effort)
    }

    /// The offsets found, in the order of the part's items.
    pub fn into_offsets(self) -> Vec<u64> {
        self.offset
    }

    fn reset(&mut self) {
        self.floor.fill(0);
        self.closed.fill(0);
        self.remaining.copy_from_slice(&self.part.totals());
        self.crossing.fill(0);
        self.starting.fill(0);
        self.is_placed.fill(false);
        self.trail.clear();
        self.choices.clear();
        for (index, item) in self.part.items.iter().enumerate() {
            self.starting[item.start as usize] ^= self.mark[index];
            for section in item.start + 1..item.end {
                self.crossing[section as usize] += 1;
            }
        }
    }

    fn order(&mut self, preference: Preference) {
        let items = &self.part.items;
        let slack: Vec<u64> = self
            .remaining
            .iter()
            .map(|&total| self.capacity.saturating_sub(total))
            .collect();
        let mut random = Random(match preference {
            Preference::Shuffled(seed) => seed,
            _ => 0,
        });
        let key: Vec<(u128, u128)> = items
            .iter()
            .map(|item| {
                let length = u128::from(item.end - item.start);
                let size = u128::from(item.size);
                match preference {
                    Preference::Longest => (length, size),
                    Preference::Largest => (size, length),
                    Preference::Tightest => {
                        let least = slack[item.sections()].iter().min().copied().unwrap_or(0);
                        (u128::from(u64::MAX - least), length)
                    }
                    Preference::Shuffled(_) => (u128::from(random.next()), 0),
                }
            })
            .collect();
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&item| (std::cmp::Reverse(key[item]), item));
        for (rank, item) in order.into_iter().enumerate() {
            self.rank[item] = rank as u32;
        }
    }

    /// Places everything left in the sections `lo..hi`, or leaves the state as it was.
    fn solve(&mut self, lo: usize, hi: usize, depth: usize) -> Verdict {
        let undo = self.trail.len();
        // Independent spans, the tightest first: it is the likeliest to fail.
        let mut spans: Vec<(u64, usize, usize)> = Vec::new();
        let mut begin = lo;
        for section in lo..hi {
            if section + 1 == hi || self.crossing[section + 1] == 0 {
                let slack = (begin..=section)
                    .filter(|&s| self.remaining[s] > 0)
                    .map(|s| {
                        self.capacity
                            .saturating_sub(self.floor[s] + self.remaining[s])
                    })
                    .min();
                if let Some(slack) = slack {
                    spans.push((slack, begin, section + 1));
                }
                begin = section + 1;
            }
        }
        self.effort = self.effort.saturating_sub((hi - lo) as u64);
        spans.sort_unstable();
        for (_, begin, end) in spans {
            let verdict = self.solve_span(begin, end, depth);
            if verdict != Verdict::Found {
                self.undo_to(undo);
                return verdict;
            }
        }
        Verdict::Found
    }

    fn solve_span(&mut self, lo: usize, hi: usize, depth: usize) -> Verdict {
        let undo = self.trail.len();
        let mut keys: Vec<u128> = Vec::new();
        let verdict = loop {
            if self.effort == 0 || depth > MAX_DEPTH {
                break Verdict::GaveUp;
            }
            let Some(section) = self.infer(lo, hi) else {
                break Verdict::Impossible;
            };
            let level = self.base[section];
            let key = self.key(lo, hi);
            if self.failed[key as usize % TABLE_SIZE] == key {
                break Verdict::Impossible;
            }
            let first_choice = self.choices.len();
            self.gather(lo, section, level);
            let may_close = level + self.remaining[section] < self.capacity;
            let ways = self.choices.len() - first_choice + usize::from(may_close);
            if ways == 1 {
                // Forced: no branch, so no deeper nest. The failed state is remembered with the one it came from.
                keys.push(key);
                let forced = self.choices.pop();
                match forced {
                    Some(item) => self.place(item as usize, level),
                    None => self.close(section, level),
                }
                if forced.is_some() && self.is_split(lo, hi) {
                    break self.solve(lo, hi, depth + 1);
                }
                continue;
            }
            keys.push(key);
            break self.branch(&Branch {
                lo,
                hi,
                section,
                level,
                first_choice,
                may_close,
                depth,
            });
        };
        if verdict != Verdict::Found {
            self.undo_to(undo);
            if verdict == Verdict::Impossible {
                for key in keys {
                    self.failed[key as usize % TABLE_SIZE] = key;
                }
            }
        }
        verdict
    }

    /// Tries the ways on one after the other; leaves the state as it was unless one succeeds.
    fn branch(&mut self, branch: &Branch) -> Verdict {
        let &Branch {
            lo,
            hi,
            section,
            level,
            first_choice,
            may_close,
            depth,
        } = branch;
        let undo = self.trail.len();
        let mut verdict = Verdict::Impossible;
        for choice in first_choice..self.choices.len() {
            let item = self.choices[choice] as usize;
            let alike = |&other: &u32| {
                let (a, b) = (&self.part.items[item], &self.part.items[other as usize]);
                (a.start, a.end, a.size) == (b.start, b.end, b.size)
            };
            if self.choices[first_choice..choice].iter().any(alike) {
                continue;
            }
            self.place(item, level);
            verdict = self.solve(lo, hi, depth + 1);
            if verdict != Verdict::Impossible {
                break;
            }
            self.undo_to(undo);
        }
        if verdict == Verdict::Impossible && may_close {
            self.close(section, level);
            verdict = self.solve(lo, hi, depth + 1);
        }
        if verdict != Verdict::Found {
            self.undo_to(undo);
        }
        self.choices.truncate(first_choice);
        verdict
    }

    /// Raises every floor of `lo..hi` to the lowest offset that an item there can still have.
    ///
    /// Returns the section to branch on, or nothing when the capacity cannot be kept.
    fn infer(&mut self, lo: usize, hi: usize) -> Option<usize> {
        let items = &self.part.items;
        let first = self.first_at[lo] as usize..self.first_at[hi] as usize;
        let mut visited = (4 * (hi - lo) + 2 * first.len()) as u64;
        let mut waits = false;
        for section in lo..hi {
            self.base[section] = self.floor[section];
            waits |= self.closed[section] == self.floor[section] + 1;
        }
        if waits {
            self.wait(lo, hi);
            visited *= 4;
        }
        loop {
            self.raised[lo..hi].fill(u64::MAX);
            visited += first.len() as u64;
            for index in first.clone().filter(|&index| !self.is_placed[index]) {
                let sections = items[index].sections();
                visited += sections.len() as u64;
                // A loop, not an adapter: where units of one crate are optimised apart, it would be a call an element.
                let mut least = 0;
                for &base in &self.base[sections.clone()] {
                    least = least.max(base);
                }
                if least + items[index].size > self.capacity {
                    for failures in &mut self.failures[sections] {
                        *failures += 1;
                    }
                    self.effort = self.effort.saturating_sub(visited);
                    return None;
                }
                self.least[index] = least;
                for raised in &mut self.raised[sections] {
                    *raised = (*raised).min(least);
                }
            }
            let mut changed = false;
            for section in lo..hi {
                if self.raised[section] > self.base[section] {
                    self.base[section] = self.raised[section];
                    changed = true;
                }
                if self.base[section] + self.remaining[section] > self.capacity {
                    self.failures[section] += 1;
                    self.effort = self.effort.saturating_sub(visited);
                    return None;
                }
            }
            if !changed {
                break;
            }
        }
        // Keep what was inferred, except for closed sections: their wait may still grow longer.
        for section in lo..hi {
            if self.base[section] > self.floor[section]
                && self.closed[section] != self.floor[section] + 1
            {
                self.set_floor(section, self.base[section]);
            }
        }

        self.cover[lo..hi].fill(0);
        for index in first.filter(|&index| !self.is_placed[index]) {
            if self.least[index] == self.base[items[index].start as usize] {
                visited += (items[index].end - items[index].start) as u64;
                for cover in &mut self.cover[items[index].sections()] {
                    *cover += 1;
                }
            }
        }
        self.effort = self.effort.saturating_sub(visited);
        self.tightest(lo, hi)
    }

    /// The section to branch on: one in a valley, where everything that is put down lies flat.
    fn tightest(&self, lo: usize, hi: usize) -> Option<usize> {
        let mut best: Option<(Score, usize)> = None;
        let mut begin = lo;
        for end in lo + 1..=hi {
            let level = self.base[begin];
            if end < hi && self.base[end] == level {
                continue;
            }
            let is_valley = (begin == lo || self.base[begin - 1] > level)
                && (end == hi || self.base[end] > level);
            if is_valley {
                let valley_failures = self.failures[begin..end].iter().max().copied().unwrap_or(0);
                for section in begin..end {
                    let slack = self.capacity - level - self.remaining[section];
                    let ways = u64::from(self.cover[section]) + u64::from(slack > 0);
                    let failures = self.failures[section];
                    let (first, second, third) = match self.rule {
                        Rule::Slack => (slack, ways, level),
                        Rule::Failing => (u64::MAX - failures, ways, level),
                        Rule::FewestPerFailure => ((ways << 32) / failures, slack, level),
                        Rule::FailingValley => (u64::MAX - valley_failures, level, ways),
                    };
                    let score = ((ways > 1, first, second, third, slack), section);
                    if best.is_none_or(|best| score < best) {
                        best = Some(score);
                    }
                }
            }
            begin = end;
        }
        best.map(|(_, section)| section)
    }

    /// Raises the base of every closed section to the lowest offset that may come next there: the lowest floor above
    /// among the sections its items reach, or the top of the smallest item to be put down there.
    fn wait(&mut self, lo: usize, hi: usize) {
        self.smallest[lo..hi].fill(u64::MAX);
        for section in lo..hi {
            self.hull[section] = (section as u32, section as u32 + 1);
        }
        for index in self.first_at[lo] as usize..self.first_at[hi] as usize {
            if self.is_placed[index] {
                continue;
            }
            let item = self.part.items[index];
            for section in item.sections() {
                self.smallest[section] = self.smallest[section].min(item.size);
                let (start, end) = self.hull[section];
                self.hull[section] = (start.min(item.start), end.max(item.end));
            }
        }
        for section in lo..hi {
            let level = self.floor[section];
            if self.closed[section] != level + 1 {
                continue;
            }
            let (start, end) = self.hull[section];
            let mut next = u64::MAX;
            for other in start as usize..end as usize {
                let floor = self.floor[other];
                next = next.min(match floor.cmp(&level) {
                    std::cmp::Ordering::Less => level + 1,
                    std::cmp::Ordering::Equal => level + self.smallest[other],
                    std::cmp::Ordering::Greater => floor,
                });
            }
            self.base[section] = next;
        }
    }

    /// Pushes the items that cover `section` and can be put down at `level`, the preferred first.
    fn gather(&mut self, lo: usize, section: usize, level: u64) {
        let from = self.choices.len();
        for index in self.first_at[lo] as usize..self.first_at[section + 1] as usize {
            let fits = !self.is_placed[index] && self.least[index] == level;
            if fits && self.part.items[index].end as usize > section {
                self.choices.push(index as u32);
            }
        }
        let rank = &self.rank;
        self.choices[from..].sort_unstable_by_key(|&index| rank[index as usize]);
    }

    /// Whether nothing is left to place, or what is left falls apart.
    fn is_split(&self, lo: usize, hi: usize) -> bool {
        self.remaining[lo] == 0 || (lo + 1..hi).any(|section| self.crossing[section] == 0)
    }

    fn place(&mut self, index: usize, level: u64) {
        let item = self.part.items[index];
        self.is_placed[index] = true;
        self.offset[index] = level;
        self.starting[item.start as usize] ^= self.mark[index];
        for section in item.sections() {
            self.set_floor(section, level + item.size);
            self.remaining[section] -= item.size;
            self.crossing[section] -= u32::from(section > item.start as usize);
        }
        self.trail.push(Change::Placed { item: index as u32 });
    }

    fn close(&mut self, section: usize, level: u64) {
        self.set_floor(section, level);
        self.trail.push(Change::Closed {
            section: section as u32,
            old: self.closed[section],
        });
        self.closed[section] = self.floor[section] + 1;
    }

    fn set_floor(&mut self, section: usize, floor: u64) {
        self.trail.push(Change::Floor {
            section: section as u32,
            old: self.floor[section],
        });
        self.floor[section] = floor;
    }

    fn undo_to(&mut self, length: usize) {
        while self.trail.len() > length {
            match self.trail.pop().expect("the trail is longer than `length`") {
                Change::Floor { section, old } => self.floor[section as usize] = old,
                Change::Closed { section, old } => self.closed[section as usize] = old,
                Change::Placed { item } => {
                    let index = item as usize;
                    let item = self.part.items[index];
                    self.is_placed[index] = false;
                    self.starting[item.start as usize] ^= self.mark[index];
                    for section in item.sections() {
                        self.remaining[section] += item.size;
                        self.crossing[section] += u32::from(section > item.start as usize);
                    }
                }
            }
        }
    }

    /// A fingerprint of the span: its sections, their floors, and what is still to be placed. Never zero.
    fn key(&self, lo: usize, hi: usize) -> u128 {
        const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
        let mut key = (lo as u128) << 64 | hi as u128;
        let mut left = 0u128;
        for section in lo..hi {
            let is_closed = self.closed[section] == self.floor[section] + 1;
            // The floor of a finished section constrains nothing any more.
            let floor = match self.remaining[section] {
                0 => u64::MAX,
                _ => self.floor[section],
            };
            key = (key ^ u128::from(floor)).wrapping_mul(MULTIPLIER) ^ u128::from(is_closed);
            key ^= key >> 67;
            left ^= self.starting[section];
        }
        key = (key ^ left).wrapping_mul(MULTIPLIER);
        (key ^ key >> 64) | 1 << 127
    }
}
