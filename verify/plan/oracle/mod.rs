//! The oracle of the memory planner: the smallest arena by exact search, against which the fast rules are held.

mod search;

use std::ops::Range;

use keel::plan::{Buffer, lower_bound};
use search::{Preference, Rule, Search, Verdict};

/// What is known of the smallest arena.
#[derive(Clone, Debug)]
pub struct Optimum {
    /// No arena is smaller.
    pub proven: u64,
    /// A placement, and the arena it takes; the smallest there is where that is `proven`.
    pub offsets: Vec<u64>,
    pub arena: u64,
}

/// Searches for the smallest arena, from the lower bound upwards, with at most `effort` visits of sections. `offsets` is a
/// placement to begin from.
///
/// At the bound there are many attempts, short ones first, because the time one takes varies wildly with the order in
/// which choices are tried (Gomes, Selman, Kautz, 1998; Luby, Sinclair, Zuckerman, 1993). Between what is proven and what
/// was found, the distance is halved.
pub fn optimum(buffers: &[Buffer], offsets: &[u64], effort: u64) -> Optimum {
    let top = |offsets: &[u64]| {
        let tops = buffers.iter().zip(offsets);
        tops.map(|(buffer, offset)| offset + buffer.size).max()
    };
    let bound = lower_bound(buffers).expect("buffers are live").bytes;
    let mut best = Optimum {
        proven: bound,
        offsets: offsets.to_vec(),
        arena: top(offsets).unwrap_or(0),
    };
    let unit = buffers
        .iter()
        .fold(0, |unit, b| greatest_common_divisor(unit, b.size))
        .max(1);
    let part = Part::of(buffers);
    // The smallest capacity that is still to be tried.
    let mut low = bound;
    let mut capacity = bound;
    let mut left = effort;
    while low < best.arena && left > 0 {
        let mut share = left.div_ceil(2);
        left -= share;
        match search_within(&part, capacity, &mut share) {
            (Verdict::Found, offsets) => {
                for (item, offset) in part.items.iter().zip(offsets) {
                    best.offsets[item.buffer] = offset;
                }
                best.arena = top(&best.offsets).unwrap_or(0);
            }
            (Verdict::Impossible, _) => {
                best.proven = capacity + unit;
                low = best.proven;
            }
            // Nothing is known of this capacity; a larger one may be easier.
            (Verdict::GaveUp, _) => low = capacity + unit,
        }
        left += share;
        capacity = low.midpoint(best.arena.saturating_sub(unit)) / unit * unit;
    }
    best
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}

/// A buffer in compressed time: it conflicts with exactly those items whose sections it shares.
#[derive(Clone, Copy)]
struct Item {
    start: u32,
    end: u32,
    size: u64,
    /// Its position among the buffers.
    buffer: usize,
}

impl Item {
    fn sections(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Buffers in compressed time. A section begins wherever a buffer does: of two buffers that are live together, the later is
/// live where it begins, and so is the other.
struct Part {
    /// In order of `start`, then of `end` (later first).
    items: Vec<Item>,
    sections: usize,
}

impl Part {
    fn of(buffers: &[Buffer]) -> Part {
        let mut begins: Vec<u32> = buffers.iter().map(|buffer| buffer.lower).collect();
        begins.sort_unstable();
        begins.dedup();
        let section = |op: u32| begins.partition_point(|&begin| begin < op) as u32;
        let held = buffers.iter().enumerate().filter(|(_, b)| b.size > 0);
        let items = held.map(|(buffer, b)| Item {
            start: section(b.lower),
            end: section(b.upper),
            size: b.size,
            buffer,
        });
        let mut items: Vec<Item> = items.collect();
        items.sort_by_key(|item| (item.start, std::cmp::Reverse(item.end), item.buffer));
        Part {
            items,
            sections: begins.len(),
        }
    }

    /// The sum of the sizes of the items that cover each section.
    fn totals(&self) -> Vec<u64> {
        let mut totals = vec![0; self.sections];
        for item in &self.items {
            for total in &mut totals[item.sections()] {
                *total += item.size;
            }
        }
        totals
    }
}

/// Attempts at one capacity until one is decided or `effort` is used up; the offsets where a placement was found.
fn search_within(part: &Part, capacity: u64, effort: &mut u64) -> (Verdict, Vec<u64>) {
    let attempts = |round: u64| {
        [
            (Rule::Failing, Preference::Tightest),
            (Rule::FewestPerFailure, Preference::Tightest),
            (Rule::Slack, Preference::Tightest),
            (Rule::Failing, Preference::Largest),
            (Rule::FewestPerFailure, Preference::Shuffled(round)),
            (Rule::FailingValley, Preference::Tightest),
            (Rule::Failing, Preference::Shuffled(round)),
            (Rule::FewestPerFailure, Preference::Longest),
        ]
    };
    // What it takes to place every item once without ever going back.
    let covered: usize = part.items.iter().map(|item| item.sections().len()).sum();
    let dive = (covered * part.items.len()) as u64;
    let mut search = Search::new(part, capacity);
    for round in 1u64.. {
        for (rule, preference) in attempts(round) {
            // 1, 2, 1, 4, 1, 2, 1, 8 … dives.
            let share = (dive * (round & round.wrapping_neg())).min(*effort);
            if share == 0 {
                return (Verdict::GaveUp, Vec::new());
            }
            let (verdict, unused) = search.attempt(rule, preference, share);
            *effort -= share - unused;
            match verdict {
                Verdict::Found => return (verdict, search.into_offsets()),
                Verdict::Impossible => return (verdict, Vec::new()),
                Verdict::GaveUp => {}
            }
        }
    }
    (Verdict::GaveUp, Vec::new())
}
