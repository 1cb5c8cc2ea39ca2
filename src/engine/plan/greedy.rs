//! Fast placement: buffers one after the other in some order, each where it fits at that moment.
//!
//! [`stack`] puts every buffer on top of all it conflicts with: a family of nested lifetimes, such as the activations
//! that a forward pass saves for the backward pass, is packed exactly at its bound when longer lifetimes go first.
//! [`fill`] also uses the gaps that were left below. Neither reconsiders anything; `place` tries them in several orders.

use super::sections::{Item, Part};

/// Offsets of the items of a part, and the height they reach.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub offsets: Vec<u64>,
    pub height: u64,
}

/// In which order items are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Longest lifetime first, then largest.
    Lifetime,
    /// Largest first, then longest.
    Size,
    /// Most bytes × sections first.
    Area,
    /// Most contended section first, then longest.
    Contention,
    /// Most contended section first, then largest.
    ContentionSize,
    /// As the program makes them, the longest first of those made together.
    Time,
}

impl Order {
    pub const ALL: [Order; 6] = [
        Order::Lifetime,
        Order::Size,
        Order::Area,
        Order::Contention,
        Order::ContentionSize,
        Order::Time,
    ];
}

/// Positions of the items of `part` in the given order; ties go by position.
pub(super) fn order(part: &Part, order: Order) -> Vec<u32> {
    let totals = match order {
        Order::Contention | Order::ContentionSize => Maximum::over(&part.totals()),
        _ => Maximum::over(&[]),
    };
    let key = |item: &Item| -> (u128, u64) {
        let length = u64::from(item.end - item.start);
        match order {
            Order::Lifetime => (length.into(), item.size),
            Order::Size => (item.size.into(), length),
            Order::Area => (u128::from(item.size) * u128::from(length), length),
            Order::Contention => (totals.over_range(item).into(), length),
            Order::ContentionSize => (totals.over_range(item).into(), item.size),
            Order::Time => (u128::from(u32::MAX - item.start), length),
        }
    };
    let keys: Vec<(u128, u64)> = part.items.iter().map(key).collect();
    let mut positions: Vec<u32> = (0..part.items.len() as u32).collect();
    positions.sort_by_key(|&position| (std::cmp::Reverse(keys[position as usize]), position));
    positions
}

/// Puts every item, in the given order, on top of all items placed before that it conflicts with.
///
/// O(n log n).
pub(super) fn stack(part: &Part, order: &[u32]) -> Layout {
    let mut skyline = Maximum::over(&vec![0; part.sections]);
    let mut packing = Layout {
        offsets: vec![0; part.items.len()],
        height: 0,
    };
    for &position in order {
        let item = &part.items[position as usize];
        let offset = skyline.over_range(item);
        skyline.raise(item, offset + item.size);
        packing.offsets[position as usize] = offset;
        packing.height = packing.height.max(offset + item.size);
    }
    packing
}

/// Which gap an item takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// The lowest it fits in.
    Lowest,
    /// The smallest it fits in.
    Smallest,
}

/// Puts every item, in the given order, into a gap between the items placed before that it conflicts with.
///
/// Returns nothing when `steps` are used up: one for every pair of items at worst.
pub(super) fn fill(part: &Part, order: &[u32], gap: Gap, steps: &mut u64) -> Option<Layout> {
    // Placed items in the order of their offsets: (offset, top, start, end).
    let mut placed: Vec<(u64, u64, u32, u32)> = Vec::with_capacity(order.len());
    let mut packing = Layout {
        offsets: vec![0; part.items.len()],
        height: 0,
    };
    for &position in order {
        let item = &part.items[position as usize];
        // In the order of offsets, so that the space between the tops of those below and the next above is a gap. Walking over
        // all of them is cheap beside a tree of gaps, which every placed item would have to mend.
        // Effort is counted before it is made, and in comparisons: a limit in seconds would give another plan on a busy
        // machine.
        *steps = steps.checked_sub(placed.len() as u64)?;
        let (mut top, mut best) = (0u64, None::<(u64, u64)>);
        for &(offset, end, from, to) in &placed {
            if from < item.end && item.start < to {
                if offset > top && offset - top >= item.size {
                    let room = offset - top;
                    // For the lowest gap the first hit ends the walk, so the comparison matters for the smallest alone.
                    if best.is_none_or(|(least, _)| room < least) {
                        best = Some((room, top));
                    }
                    if gap == Gap::Lowest {
                        break;
                    }
                }
                top = top.max(end);
            }
        }
        let offset = best.map_or(top, |(_, offset)| offset);
        // Before those of the same offset: they cannot be live together, so their order among each other means nothing.
        let at = placed.partition_point(|&(other, ..)| other < offset);
        placed.insert(at, (offset, offset + item.size, item.start, item.end));
        packing.offsets[position as usize] = offset;
        packing.height = packing.height.max(offset + item.size);
    }
    Some(packing)
}

/// A tree over sections that answers for the largest value in a range, and raises ranges.
struct Maximum {
    leaves: usize,
    /// The largest value below each node.
    largest: Vec<u64>,
    /// A value that every leaf below the node has at least.
    floor: Vec<u64>,
}

impl Maximum {
    fn over(values: &[u64]) -> Maximum {
        let leaves = values.len().next_power_of_two();
        let mut largest = vec![0; 2 * leaves];
        largest[leaves..leaves + values.len()].copy_from_slice(values);
        for node in (1..leaves).rev() {
            largest[node] = largest[2 * node].max(largest[2 * node + 1]);
        }
        Maximum {
            leaves,
            largest,
            floor: vec![0; 2 * leaves],
        }
    }

    fn over_range(&self, item: &Item) -> u64 {
        self.query(1, 0, self.leaves, item.start as usize, item.end as usize)
    }

    fn query(&self, node: usize, lo: usize, hi: usize, from: usize, to: usize) -> u64 {
        if from <= lo && hi <= to {
            return self.largest[node];
        }
        let middle = lo.midpoint(hi);
        // A range that was raised whole left its value here and went no deeper: it holds for every leaf below.
        let mut result = self.floor[node];
        if from < middle {
            result = result.max(self.query(2 * node, lo, middle, from, to));
        }
        if to > middle {
            result = result.max(self.query(2 * node + 1, middle, hi, from, to));
        }
        result
    }

    fn raise(&mut self, item: &Item, value: u64) {
        let (from, to) = (item.start as usize, item.end as usize);
        self.raise_below(1, 0, self.leaves, (from, to), value);
    }

    fn raise_below(
        &mut self,
        node: usize,
        lo: usize,
        hi: usize,
        range: (usize, usize),
        value: u64,
    ) {
        self.largest[node] = self.largest[node].max(value);
        if range.0 <= lo && hi <= range.1 {
            self.floor[node] = self.floor[node].max(value);
            return;
        }
        let middle = lo.midpoint(hi);
        if range.0 < middle {
            self.raise_below(2 * node, lo, middle, range, value);
        }
        if range.1 > middle {
            self.raise_below(2 * node + 1, middle, hi, range, value);
        }
    }
}
