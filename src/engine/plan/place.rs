//! Places buffers in as small an arena as it can, and says how small one could be.
//!
//! Fast rules first. Where they end above the lower bound, exact search at the bound with many short attempts; where that
//! fails, better orders for the fast rules by local search, and exact search at capacities between the bound and the best
//! so far. Everything is deterministic: effort is counted in steps, random orders have fixed seeds, no clock is read.

use super::bound::lower_bound;
use super::buffer::{Buffer, Placement, validate};
use super::greedy::{Gap, Layout, Order, fill, order, stack};
use super::random::Random;
use super::search::{Preference, Rule, Search, Verdict};
use super::sections::{Part, split};
use keel_base::error::Result;

/// How much work [`place`] may do after the fast rules, in elementary steps: some 3·10⁸ of them take a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Steps for exact search at the lower bound.
    pub search: u64,
    /// Steps for everything else, when the lower bound was not reached.
    pub improve: u64,
}

impl Default for Effort {
    /// A few seconds at worst; almost nothing when the fast rules already reach the bound.
    fn default() -> Effort {
        Effort {
            search: 1_000_000_000,
            improve: 1_000_000_000,
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

/// A placement, and what is known about how good it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Where every buffer lies.
    pub placement: Placement,
    /// The largest sum of live bytes over time: no arena is smaller.
    pub lower_bound: u64,
    /// The smallest arena not ruled out: `lower_bound`, or more where exact search has shown that the bound cannot be
    /// reached.
    pub proven: u64,
}

impl Packing {
    /// Arena ÷ lower bound; 1 when nothing is ever live.
    pub fn ratio(&self) -> f64 {
        match self.lower_bound {
            0 => 1.0,
            bound => self.placement.arena as f64 / bound as f64,
        }
    }

    /// Whether it is known that no smaller arena exists.
    pub fn is_optimal(&self) -> bool {
        self.placement.arena == self.proven
    }
}

/// Gives every buffer an offset so that buffers live at once never share a byte, in as small an arena as it finds.
///
/// The same buffers and effort give the same offsets on every machine. Offsets are sums of sizes, so that they keep the
/// alignment to which the sizes were rounded.
///
/// # Errors
/// `Error::Setting` for a buffer that is never live (see [`validate`]).
pub fn place(buffers: &[Buffer], effort: Effort) -> Result<Packing> {
    validate(buffers)?;
    let lower_bound = lower_bound(buffers)?.bytes;
    let unit = buffers
        .iter()
        .fold(0, |unit, buffer| greatest_common_divisor(unit, buffer.size))
        .max(1);
    let mut parts = split(buffers);
    // The part with the highest bound sets the arena; the others need only fit into what it took.
    parts.sort_by_key(|part| std::cmp::Reverse(part.bound));
    let mut offsets = vec![0; buffers.len()];
    let (mut arena, mut proven) = (lower_bound, lower_bound);
    let mut left = effort;
    for part in &parts {
        let placed = place_part(part, arena, unit, &mut left);
        arena = arena.max(placed.layout.height);
        proven = proven.max(placed.proven);
        for (item, &offset) in part.items.iter().zip(&placed.layout.offsets) {
            offsets[item.buffer] = offset;
        }
    }
    Ok(Packing {
        placement: Placement { offsets, arena },
        lower_bound,
        proven,
    })
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}

struct PlacedPart {
    layout: Layout,
    /// No layout of this part is lower.
    proven: u64,
}

/// Places one part in at most `target` bytes, or else in as few as it can. All sizes are multiples of `unit`.
fn place_part(part: &Part, target: u64, unit: u64, left: &mut Effort) -> PlacedPart {
    let (layout, order) = fast(part, target);
    let mut placed = PlacedPart {
        layout,
        proven: part.bound,
    };
    if placed.layout.height > target {
        search_within(part, target, unit, &mut placed, &mut left.search);
    }
    if placed.layout.height > target {
        improve(part, target, order, &mut placed, &mut left.improve);
        narrow(part, target, unit, &mut placed, &mut left.improve);
    }
    placed
}

/// Steps for filling gaps, of all orders together: half a second. Enough for every order of 9,000 items and for two of
/// 20,000.
const FILL_STEPS: u64 = 500_000_000;

/// The fast rules, until one meets the target: the best layout, and the order that made it.
fn fast(part: &Part, target: u64) -> (Layout, Vec<u32>) {
    let mut best: Option<(Layout, usize)> = None;
    let mut orders = Vec::new();
    let height = |best: &Option<(Layout, usize)>| best.as_ref().map_or(u64::MAX, |b| b.0.height);
    for rule in Order::ALL {
        orders.push(order(part, rule));
        let layout = stack(part, &orders[orders.len() - 1]);
        if layout.height < height(&best) {
            best = Some((layout, orders.len() - 1));
        }
        if height(&best) <= target {
            break;
        }
    }
    let mut steps = FILL_STEPS;
    for gap in [Gap::Lowest, Gap::Smallest] {
        for (index, order) in orders.iter().enumerate() {
            if height(&best) > target
                && let Some(layout) = fill(part, order, gap, height(&best), &mut steps)
            {
                best = Some((layout, index));
            }
        }
    }
    let (layout, index) = best.expect("the first order always gives a layout");
    (layout, orders.swap_remove(index))
}

/// Exact search for a layout within `capacity`: many attempts, short ones first, because the time one takes varies
/// wildly with the order in which choices are tried (Gomes, Selman, Kautz, 1998; Luby, Sinclair, Zuckerman, 1993).
fn search_within(
    part: &Part,
    capacity: u64,
    unit: u64,
    placed: &mut PlacedPart,
    effort: &mut u64,
) -> Verdict {
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
    let covered: u64 = part
        .items
        .iter()
        .map(|item| u64::from(item.end - item.start))
        .sum();
    let dive = covered.saturating_mul(part.items.len() as u64);
    if *effort < dive {
        return Verdict::GaveUp;
    }
    let mut search = Search::new(part, capacity);
    for round in 1u64.. {
        for (rule, preference) in attempts(round) {
            let share = (dive * (round & round.wrapping_neg())).min(*effort);
            if share == 0 {
                return Verdict::GaveUp;
            }
            let (verdict, unused) = search.attempt(rule, preference, share);
            *effort -= share - unused;
            match verdict {
                Verdict::Found => {
                    placed.layout.offsets.copy_from_slice(search.offsets());
                    placed.layout.height = height(part, &placed.layout.offsets);
                    return verdict;
                }
                Verdict::Impossible => {
                    placed.proven = placed.proven.max(capacity - capacity % unit + unit);
                    return verdict;
                }
                Verdict::GaveUp => {}
            }
        }
    }
    Verdict::GaveUp
}

/// Local search: takes an item that sticks out above the target and lets it choose its place earlier.
fn improve(part: &Part, target: u64, order: Vec<u32>, placed: &mut PlacedPart, effort: &mut u64) {
    let items = order.len();
    let mut steps = *effort / 4;
    *effort -= steps;
    let mut random = Random::new(0x0ff5_e750);
    let (mut current, mut height) = (order, u64::MAX);
    let mut offsets = placed.layout.offsets.clone();
    while steps > 0 && placed.layout.height > target {
        steps = steps.saturating_sub(2 * items as u64);
        let mut candidate = current.clone();
        let out: Vec<usize> = (0..items)
            .filter(|&at| {
                let item = current[at] as usize;
                offsets[item] + part.items[item].size > target
            })
            .collect();
        let from = match out.len() {
            0 => random.below(items),
            many => out[random.below(many)],
        };
        let moved = candidate.remove(from);
        candidate.insert(random.below(from + 1), moved);
        let limit = height.saturating_add(1);
        if let Some(layout) = fill(part, &candidate, Gap::Lowest, limit, &mut steps) {
            (current, height) = (candidate, layout.height);
            offsets.clone_from(&layout.offsets);
            if layout.height < placed.layout.height {
                placed.layout = layout;
            }
        }
    }
}

/// Exact search at capacities between what is proven and what was found, halving the distance.
fn narrow(part: &Part, target: u64, unit: u64, placed: &mut PlacedPart, effort: &mut u64) {
    // Below this distance from the target another attempt is not worth its time: a tenth of the last percent.
    let close_enough = (target / 1000).max(unit);
    let mut low = target.max(placed.proven);
    let mut share = *effort / 6;
    while placed.layout.height > low + close_enough && share > 0 {
        let middle = low.midpoint(placed.layout.height - 1) / unit * unit;
        let mut allowed = share.min(*effort);
        *effort -= allowed;
        match search_within(part, middle, unit, placed, &mut allowed) {
            Verdict::Found => {}
            _ if middle <= low => return,
            _ => low = middle,
        }
        *effort += allowed;
        share = share.min(*effort);
    }
}

fn height(part: &Part, offsets: &[u64]) -> u64 {
    let tops = part.items.iter().zip(offsets);
    tops.map(|(item, &offset)| offset + item.size)
        .max()
        .unwrap_or(0)
}
