//! Time, compressed to what matters for placement.
//!
//! Two buffers conflict when some op needs both. Only the maximal sets of buffers live together matter for that, at most
//! one for each buffer: these are the *sections*, and every buffer covers a run of them. Where no buffer lives on from
//! one section to the next, the problem falls into independent parts.

use super::buffer::Buffer;

/// A buffer in compressed time: it conflicts with exactly those items whose sections it shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    /// The first section it covers.
    pub start: u32,
    /// One past the last section it covers; always above `start`.
    pub end: u32,
    /// Bytes, never zero.
    pub size: u64,
    /// Its position in the caller's slice.
    pub buffer: usize,
}

/// Items whose lifetimes hang together, to be placed in one arena.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// In order of `start`, then of `end` (later first), then as given.
    pub items: Vec<Item>,
    /// How many sections there are.
    pub sections: usize,
    /// The largest sum of sizes over a section: no placement is smaller.
    pub bound: u64,
}

impl Part {
    /// The sum of the sizes of the items that cover each section.
    pub fn totals(&self) -> Vec<u64> {
        let mut totals = vec![0u64; self.sections + 1];
        for item in &self.items {
            // Differences may wrap below zero; their running sum is right because it is taken modulo 2^64 too.
            let start = &mut totals[item.start as usize];
            *start = start.wrapping_add(item.size);
            let end = &mut totals[item.end as usize];
            *end = end.wrapping_sub(item.size);
        }
        let mut running = 0u64;
        for total in &mut totals {
            running = running.wrapping_add(*total);
            *total = running;
        }
        totals.truncate(self.sections);
        totals
    }
}

/// Splits valid buffers into independent parts in the order of time. Buffers of size zero belong to none.
pub(super) fn split(buffers: &[Buffer]) -> Vec<Part> {
    // (op, whether it begins, buffer): at each op frees come before takes, because lifetimes are half-open.
    let mut events: Vec<(u32, bool, usize)> = Vec::with_capacity(2 * buffers.len());
    for (index, buffer) in buffers.iter().enumerate() {
        if buffer.size > 0 {
            events.push((buffer.lower, true, index));
            events.push((buffer.upper, false, index));
        }
    }
    events.sort_unstable();

    let mut parts = Vec::new();
    let mut items: Vec<Item> = Vec::new();
    let mut item_of = vec![usize::MAX; buffers.len()];
    let (mut section, mut live, mut freed_last) = (0u32, 0usize, false);
    for (_, begins, index) in events {
        if begins {
            // A set of live buffers is maximal when a free follows a take: the next take opens a new section.
            section += u32::from(freed_last && live > 0);
            freed_last = false;
            item_of[index] = items.len();
            items.push(Item {
                start: section,
                end: section,
                size: buffers[index].size,
                buffer: index,
            });
            live += 1;
        } else {
            items[item_of[index]].end = section + 1;
            freed_last = true;
            live -= 1;
            if live == 0 {
                parts.push(finish(std::mem::take(&mut items), section as usize + 1));
                section = 0;
            }
        }
    }
    // Every buffer that begins also ends, so the last free has closed the last part.
    assert!(live == 0 && items.is_empty(), "a buffer is never freed");
    parts
}

fn finish(mut items: Vec<Item>, sections: usize) -> Part {
    // Positions break ties in every order of placement, so they must follow from the buffers alone.
    items.sort_by_key(|item| (item.start, std::cmp::Reverse(item.end), item.buffer));
    let mut part = Part {
        items,
        sections,
        bound: 0,
    };
    part.bound = part.totals().into_iter().max().unwrap_or(0);
    part
}
