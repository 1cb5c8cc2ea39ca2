//! Checks a placement without knowing how it came about: shares no code with the planner beyond the buffer itself.

use super::buffer::{Buffer, Placement};
use keel_base::error::{Error, Result};
use std::collections::BTreeMap;

/// Confirms that every buffer lies inside the arena and that no two buffers that are live at once share a byte.
///
/// Walks the ops in order with the occupied ranges of the arena in an ordered map: O(n log n).
///
/// # Errors
/// `Error::Content` naming the buffer that leaves the arena, or both buffers that overlap.
pub fn check_placement(buffers: &[Buffer], placement: &Placement) -> Result<()> {
    const REMEDY: &str = "this is a fault of the memory planner: please report it with this plan";
    if buffers.len() != placement.offsets.len() {
        return Err(Error::content(
            "memory plan",
            format!(
                "{} buffers but {} offsets",
                buffers.len(),
                placement.offsets.len()
            ),
            REMEDY,
        ));
    }
    // (op, whether it takes memory, buffer): at each op frees come before takes.
    let mut events: Vec<(u32, bool, usize)> = Vec::with_capacity(2 * buffers.len());
    for (index, (buffer, &offset)) in buffers.iter().zip(&placement.offsets).enumerate() {
        let end = offset.checked_add(buffer.size);
        if end.is_none_or(|end| end > placement.arena) {
            return Err(Error::content(
                format!("memory plan, buffer {}", buffer.id),
                format!(
                    "its {} bytes at offset {offset} leave the arena of {} bytes",
                    buffer.size, placement.arena
                ),
                REMEDY,
            ));
        }
        // A buffer of no bytes overlaps nothing, and in the map it would hide the one that begins where it lies.
        if buffer.size > 0 && buffer.lower < buffer.upper {
            events.push((buffer.lower, true, index));
            events.push((buffer.upper, false, index));
        }
    }
    events.sort_unstable();

    let mut occupied: BTreeMap<u64, usize> = BTreeMap::new();
    for (op, takes, index) in events {
        let offset = placement.offsets[index];
        if !takes {
            occupied.remove(&offset);
            continue;
        }
        let end = offset + buffers[index].size;
        // All ranges in the map are disjoint, so only the last one that begins before `end` can reach into ours.
        if let Some((&start, &other)) = occupied.range(..end).next_back()
            && start + buffers[other].size > offset
        {
            return Err(Error::content(
                format!(
                    "memory plan, buffers {} and {}",
                    buffers[other].id, buffers[index].id
                ),
                format!(
                    "both are live at op {op}, at bytes {start}..{} and {offset}..{end}",
                    start + buffers[other].size
                ),
                REMEDY,
            ));
        }
        occupied.insert(offset, index);
    }
    Ok(())
}
