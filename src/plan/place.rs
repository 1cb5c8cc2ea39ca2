//! Places buffers in as small an arena as it can, and says how small one could be.
//!
//! Fast rules first; where they end above the lower bound, exact search at the bound, then local search and exact search
//! at capacities between the bound and the best found. Everything is deterministic: effort is counted in steps, random
//! orders have fixed seeds, and no clock is read.

use super::bound::lower_bound;
use super::buffer::{Buffer, Placement, validate};
use super::greedy::{Gap, Order, Packing, fill, order, stack};
use super::search::{Preference, Random, Search, Verdict};
use super::sections::{Part, split};
use crate::error::Result;

/// How much work [`place`] may do after the fast rules, in elementary steps (about 10⁹ a second).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Steps for exact search.
    pub search: u64,
    /// Steps for improving orders by local search.
    pub improve: u64,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort {
            search: 4_000_000_000,
            improve: 2_000_000_000,
        }
    }
}

impl Effort {
    /// The fast rules alone.
    pub const NONE: Effort = Effort {
        search: 0,
        improve: 0,
    };
}

/// A placement with what is known about how good it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where every buffer lies.
    pub placement: Placement,
    /// The largest sum of live bytes over time: no arena is smaller.
    pub lower_bound: u64,
    /// The largest arena size known to be needed: `lower_bound`, or more where search has shown that nothing smaller
    /// exists.
    pub proven: u64,
}

impl Plan {
    /// Arena ÷ lower bound; 1 when nothing is ever live.
    pub fn ratio(&self) -> f64 {
        match self.lower_bound {
            0 => 1.0,
            bound => self.placement.arena as f64 / bound as f64,
        }
    }

    /// Whether no smaller arena exists.
    pub fn is_optimal(&self) -> bool {
        self.placement.arena == self.proven
    }
}

/// Gives every buffer an offset so that buffers live at once never share a byte, in as small an arena as it finds.
///
/// The same buffers and effort give the same offsets on every machine.
///
/// # Errors
/// `Error::Setting` for a buffer that is never live (see [`validate`]).
pub fn place(buffers: &[Buffer], effort: Effort) -> Result<Plan> {
    validate(buffers)?;
    let lower_bound = lower_bound(buffers)?.bytes;
    let mut parts = split(buffers);
    // The part with the highest bound sets the arena; the others need only fit in what it took.
    parts.sort_by_key(|part| std::cmp::Reverse(part.bound));
    let mut offsets = vec![0; buffers.len()];
    let (mut arena, mut proven) = (lower_bound, lower_bound);
    let mut left = effort;
    for part in &parts {
        let placed = place_part(part, arena, &mut left);
        arena = arena.max(placed.packing.height);
        proven = proven.max(placed.proven);
        for (item, &offset) in part.items.iter().zip(&placed.packing.offsets) {
            offsets[item.buffer] = offset;
        }
    }
    Ok(Plan {
        placement: Placement { offsets, arena },
        lower_bound,
        proven,
    })
}

struct Placed {
    packing: Packing,
    proven: u64,
}

/// Places one part in at most `target` bytes, or in as few as it can.
fn place_part(part: &Part, target: u64, left: &mut Effort) -> Placed {
    let mut best = fast(part, target);
    let mut proven = part.bound;
    if best.height > target {
        search_within(part, target, &mut best, &mut proven, left);
    }
    Placed {
        packing: best,
        proven,
    }
}

/// The fast rules, until one meets the target.
fn fast(part: &Part, target: u64) -> Packing {
    let mut best: Option<Packing> = None;
    let mut orders = Vec::new();
    for rule in Order::ALL {
        let order = order(part, rule);
        let packing = stack(part, &order);
        orders.push(order);
        if best
            .as_ref()
            .is_none_or(|best| packing.height < best.height)
        {
            best = Some(packing);
        }
        if best.as_ref().is_some_and(|best| best.height <= target) {
            break;
        }
    }
    let mut best = best.expect("there is at least one order");
    for gap in [Gap::Lowest, Gap::Smallest] {
        for order in &orders {
            if best.height <= target {
                return best;
            }
            if let Some(packing) = fill(part, order, gap, best.height) {
                best = packing;
            }
        }
    }
    best
}

fn search_within(
    part: &Part,
    target: u64,
    best: &mut Packing,
    proven: &mut u64,
    left: &mut Effort,
) {
    let preferences = [
        Preference::Longest,
        Preference::Largest,
        Preference::Widest,
        Preference::Tightest,
        Preference::Shuffled(1),
        Preference::Shuffled(2),
    ];
    let mut search = Search::new(part, target);
    let mut share = left.search / 64;
    loop {
        for preference in preferences {
            let allowed = share.min(left.search);
            if allowed == 0 {
                return;
            }
            let (verdict, unused) = search.attempt(preference, allowed);
            left.search -= allowed - unused;
            if std::env::var("DBG").is_ok() {
                eprintln!("{preference:?} {verdict:?} used {}", allowed - unused);
            }
            match verdict {
                Verdict::Found => {
                    best.offsets.copy_from_slice(search.offsets());
                    best.height = target;
                    return;
                }
                Verdict::Impossible => {
                    *proven = target + 1;
                    return;
                }
                Verdict::GaveUp => {}
            }
        }
        share *= 2;
    }
}
