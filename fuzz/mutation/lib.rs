//! Files that are valid but for a few places inside: fields, lengths, offsets, counts, order. Whatever the format protects by
//! a checksum is sealed again, so that the change is met where it matters and not at the door.
//!
//! Every file is made from [`Choices`], a string of bytes. libFuzzer brings its own and changes them where that reaches new code;
//! `cargo test` takes those of a seed. Both make the same files from the same bytes.
#![deny(unsafe_code)]

mod archive;
pub mod check;
mod checkpoint;
mod image;
mod json;
mod parquet;
pub mod reading;
mod record;
mod tensors;
mod thrift;

pub use archive::{ArchiveFile, archive};
pub use checkpoint::{checkpoint, seal_checkpoint};
pub use image::{image, valid_images};
pub use json::changed_json;
pub use parquet::{parquet, valid_parquet};
pub use record::{Records, records};
pub use tensors::{WeightsFolder, weights};

/// What decides how a file is changed.
pub type Choices<'a> = arbitrary::Unstructured<'a>;

/// Choices of a seed, enough for any file made here: SplitMix64 (Steele, Lea and Flood 2014).
pub fn choices_of(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    (0..128).flat_map(|_| next().to_le_bytes()).collect()
}

/// A number below `limit`, which is positive; 0 once the choices are used up.
fn below(choices: &mut Choices<'_>, limit: usize) -> usize {
    choices.int_in_range(0..=limit - 1).unwrap_or(0)
}

/// One of several.
fn one_of<T: Copy>(choices: &mut Choices<'_>, all: &[T]) -> T {
    all[below(choices, all.len())]
}

/// Whether something happens that does once in `times`; never once the choices are used up.
fn once_in(choices: &mut Choices<'_>, times: usize) -> bool {
    below(choices, times) == times - 1
}

/// A number to put in the place of `was` where there are `bits` bits: an edge, a neighbour, or any.
fn number(choices: &mut Choices<'_>, was: u64, bits: u32) -> u64 {
    let most = u64::MAX >> (64 - bits);
    let new = match below(choices, 10) {
        0 => was.wrapping_add(1),
        1 => was.wrapping_sub(1),
        2 => 0,
        3 => most,
        4 => most / 2,
        5 => most / 2 + 1,
        6 => was.wrapping_mul(2),
        7 => was ^ (1 << below(choices, bits as usize)),
        8 => below(choices, 300) as u64,
        _ => choices.arbitrary().unwrap_or(0),
    };
    new & most
}

/// Changes a few bytes, cuts some out or puts some in.
fn change_bytes(choices: &mut Choices<'_>, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(choices.arbitrary().unwrap_or(0));
        return;
    }
    let at = below(choices, bytes.len());
    match below(choices, 5) {
        0 => bytes[at] ^= 1 << below(choices, 8),
        1 => bytes[at] = choices.arbitrary().unwrap_or(0),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..(at + 1 + below(choices, 8)).min(bytes.len()))),
        _ => {
            let put = vec![choices.arbitrary().unwrap_or(0); 1 + below(choices, 8)];
            bytes.splice(at..at, put);
        }
    }
}

/// Drops, doubles or moves one of several parts.
fn change_order<T: Clone>(choices: &mut Choices<'_>, parts: &mut Vec<T>) {
    if parts.is_empty() {
        return;
    }
    let (at, to) = (below(choices, parts.len()), below(choices, parts.len()));
    match below(choices, 3) {
        0 => drop(parts.remove(at)),
        1 => parts.insert(to, parts[at].clone()),
        _ => parts.swap(at, to),
    }
}
