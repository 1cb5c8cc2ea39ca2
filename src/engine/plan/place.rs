//! Places buffers in as small an arena as it can, and says how small one could be.
//!
//! Fast rules, one after the other until one meets the lower bound: stacking, filling gaps, and filling them again after
//! those that stuck out have chosen first. On the steps of every built-in recipe one of them meets the bound, and with it
//! the smallest arena there is; exact search, which the tests hold them against, has nothing to add. Everything is
//! deterministic: effort is counted in steps, and no clock is read.

use super::bound::lower_bound;
use super::buffer::{Buffer, Placement, validate};
use super::greedy::{Gap, Layout, Order, fill, order, stack};
use super::sections::{Part, split};
use keel_base::error::Result;

/// A placement, and what is known about how good it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Where every buffer lies.
    pub placement: Placement,
    /// The largest sum of live bytes over time: no arena is smaller.
    pub lower_bound: u64,
}

impl Packing {
    /// Arena ÷ lower bound; 1 when nothing is ever live.
    pub fn ratio(&self) -> f64 {
        match self.lower_bound {
            0 => 1.0,
            bound => self.placement.arena as f64 / bound as f64,
        }
    }
}

/// Gives every buffer an offset so that buffers live at once never share a byte, in as small an arena as it finds.
///
/// The same buffers give the same offsets on every machine. Offsets are sums of sizes, so that they keep the alignment to
/// which the sizes were rounded.
///
/// # Errors
/// `Error::Setting` for a buffer that is never live (see [`validate`]).
pub fn place(buffers: &[Buffer]) -> Result<Packing> {
    validate(buffers)?;
    let lower_bound = lower_bound(buffers)?.bytes;
    let mut parts = split(buffers);
    // The part with the highest bound sets the arena; the others need only fit into what it took.
    parts.sort_by_key(|part| std::cmp::Reverse(part.bound));
    let mut offsets = vec![0; buffers.len()];
    let mut arena = lower_bound;
    for part in &parts {
        let layout = place_part(part, arena);
        arena = arena.max(layout.height);
        for (item, &offset) in part.items.iter().zip(&layout.offsets) {
            offsets[item.buffer] = offset;
        }
    }
    Ok(Packing {
        placement: Placement { offsets, arena },
        lower_bound,
    })
}

/// Steps for filling gaps, of all attempts together: half a second. Enough for every order of 9,000 items and for two of
/// 20,000.
const FILL_STEPS: u64 = 500_000_000;

/// How often those that stick out choose first, beginning from each layout. Training steps of transformers need few.
const ROUNDS: usize = 16;

/// Places one part in at most `target` bytes, or else in as few as it can.
fn place_part(part: &Part, target: u64) -> Layout {
    let mut best: Option<Layout> = None;
    // Whether the layout is low enough to end the search. Of layouts that are equally low the first is kept.
    let meets_target = |best: &mut Option<Layout>, layout: &Layout| {
        if best.as_ref().is_none_or(|best| layout.height < best.height) {
            *best = Some(layout.clone());
        }
        layout.height <= target
    };
    let first = "the first order always gives a layout";
    let (mut orders, mut layouts) = (Vec::new(), Vec::new());
    // Stacking first: it is O(n log n) an order, and filling begins from its orders.
    for rule in Order::ALL {
        let order = order(part, rule);
        let layout = stack(part, &order);
        if meets_target(&mut best, &layout) {
            return layout;
        }
        orders.push(order);
        layouts.push(layout);
    }
    let mut steps = FILL_STEPS;
    for gap in [Gap::Lowest, Gap::Smallest] {
        for order in &orders {
            let Some(layout) = fill(part, order, gap, &mut steps) else {
                return best.expect(first);
            };
            if meets_target(&mut best, &layout) {
                return layout;
            }
            layouts.push(layout);
        }
    }
    // The height of a layout does not tell whether it leads to the target: each of them is a beginning.
    for mut layout in layouts {
        for round in 0..ROUNDS {
            let order = outliers_first(part, &layout, target, round % 2 == 1);
            let Some(next) = fill(part, &order, Gap::Lowest, &mut steps) else {
                return best.expect(first);
            };
            if meets_target(&mut best, &next) {
                return next;
            }
            layout = next;
        }
    }
    best.expect(first)
}

/// The items that end above the target first, or of them only the largest, then all others, both from low offsets to high:
/// what stood in the way of the former moves up, and the latter keep their place as far as they can.
///
/// Taking all of them every time goes round in circles on some programs, and taking one every time on others.
fn outliers_first(part: &Part, layout: &Layout, target: u64, only_largest: bool) -> Vec<u32> {
    let size = |position: u32| part.items[position as usize].size;
    let offset = |position: u32| layout.offsets[position as usize];
    let is_out = |position: u32| offset(position) + size(position) > target;
    let mut order: Vec<u32> = (0..part.items.len() as u32).collect();
    let outliers = order.iter().copied().filter(|&position| is_out(position));
    let largest = outliers.max_by_key(|&position| size(position));
    order.sort_by_key(|&position| {
        let is_first = if only_largest {
            largest == Some(position)
        } else {
            is_out(position)
        };
        (!is_first, offset(position), position)
    });
    order
}
