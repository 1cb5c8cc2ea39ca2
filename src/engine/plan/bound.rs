//! The least any placement can do: the largest sum of live bytes over time, with the op and the buffers that prove it.

use super::buffer::{Buffer, validate};
use keel_base::error::Result;

/// A number of bytes below which no arena can go, and why.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bound {
    /// The sum of the sizes of `live`.
    pub bytes: u64,
    /// The first op at which that many bytes are live.
    pub op: u32,
    /// Positions, in the given slice, of the buffers that are live at `op`, largest first.
    pub live: Vec<usize>,
}

/// Finds the op with the most live bytes: the certificate that no arena can be smaller.
///
/// Takes O(n log n) for n buffers, whatever the number of ops. No buffers give a bound of zero.
///
/// # Errors
/// `Error::Setting` for a buffer that is never live (see [`validate`]).
pub fn lower_bound(buffers: &[Buffer]) -> Result<Bound> {
    validate(buffers)?;
    let (bytes, op) = peak(buffers);
    let mut live: Vec<usize> = (0..buffers.len())
        .filter(|&index| (buffers[index].lower..buffers[index].upper).contains(&op))
        .collect();
    live.sort_by_key(|&index| (std::cmp::Reverse(buffers[index].size), index));
    Ok(Bound { bytes, op, live })
}

/// The largest sum of live bytes and the first op that reaches it; (0, 0) when there are no buffers.
fn peak(buffers: &[Buffer]) -> (u64, u32) {
    // Takes and frees sorted apart and merged: the sum can only reach a new maximum at a take, so only starts are
    // tried.
    let mut starts: Vec<(u32, u64)> = buffers.iter().map(|b| (b.lower, b.size)).collect();
    let mut ends: Vec<(u32, u64)> = buffers.iter().map(|b| (b.upper, b.size)).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    let mut freed = ends.iter().peekable();
    let (mut live, mut peak) = (0u64, (0u64, 0u32));
    for (index, &(op, size)) in starts.iter().enumerate() {
        // Lifetimes are half-open: what ends at this op is free before this op takes.
        while let Some(&(_, bytes)) = freed.next_if(|&&(end, _)| end <= op) {
            live -= bytes;
        }
        live += size;
        let is_last_start_here = starts.get(index + 1).is_none_or(|&(next, _)| next != op);
        if is_last_start_here && live > peak.0 {
            peak = (live, op);
        }
    }
    peak
}
