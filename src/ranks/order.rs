//! Which part of a flat range each rank owns, and in what order what ranks send is added. Pure functions of sizes.
//!
//! A range of gradients is cut into atoms of [`ATOM`] elements, whatever the number of ranks. A bucket is a stretch of it that
//! is sent at once; it has a slice for each rank, of equal size and of whole atoms. The last bucket is filled up with
//! padding.

use std::ops::{Add, Range};

/// Elements of an atom: sums of squares are kept an atom each, so that their sum has one order for any number of ranks.
pub const ATOM: usize = 16 * 1024;

/// Elements of a bucket, at most, where a bucket can be that small: 256 MB of f32.
pub const BUCKET: usize = 64 << 20;

/// The most ranks of a run: the depth of the tree by which their parts are added is bounded by it.
pub const MOST_RANKS: usize = 1024;

/// A flat range of elements, cut for some ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    ranks: usize,
    /// Elements of a slice.
    slice: usize,
    buckets: usize,
}

impl Cut {
    /// Cuts `elements` elements for `ranks` ranks into buckets of about `bucket` elements.
    ///
    /// # Panics
    /// When there are no ranks.
    pub fn new(elements: usize, ranks: usize, bucket: usize) -> Cut {
        assert!(ranks > 0, "at least one rank");
        let atoms = elements.div_ceil(ATOM);
        let most = (bucket / (ranks * ATOM)).max(1);
        // As few buckets as there have to be, and equal ones: the padding is below one atom a rank and bucket.
        let buckets = atoms.div_ceil(most * ranks);
        let slice = atoms.div_ceil(buckets.max(1) * ranks) * ATOM;
        Cut {
            ranks,
            slice,
            buckets,
        }
    }

    /// Elements of one rank's slice of a bucket.
    pub fn slice(&self) -> usize {
        self.slice
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    /// All elements, padding included.
    pub fn padded(&self) -> usize {
        self.buckets * self.ranks * self.slice
    }

    /// Elements that one rank owns, padding included.
    pub fn owned(&self) -> usize {
        self.buckets * self.slice
    }

    /// The elements of a bucket.
    pub fn bucket(&self, bucket: usize) -> Range<usize> {
        let elements = self.ranks * self.slice;
        bucket * elements..(bucket + 1) * elements
    }

    /// The elements of the slice of a bucket that `rank` owns.
    pub fn slice_of(&self, bucket: usize, rank: usize) -> Range<usize> {
        let first = self.bucket(bucket).start + rank * self.slice;
        first..first + self.slice
    }
}

/// Adds `parts` in a balanced binary tree: ((0 + 1) + (2 + 3)) + …, where what has no neighbour goes up as it is.
///
/// The order depends on the number of parts alone. No part gives nothing.
pub fn tree_sum<T: Copy + Add<Output = T>>(parts: impl IntoIterator<Item = T>) -> Option<T> {
    // Sums of complete subtrees by their depth, as the digits of a binary counter: no memory but these.
    let mut sums: [Option<T>; usize::BITS as usize] = [None; usize::BITS as usize];
    for part in parts {
        let (mut sum, mut depth) = (part, 0);
        while let Some(left) = sums[depth].take() {
            sum = left + sum;
            depth += 1;
        }
        sums[depth] = Some(sum);
    }
    let subtrees = sums.into_iter().flatten();
    subtrees.reduce(|right, left| left + right)
}

/// Sums of complete subtrees that wait at once, at most, while `count` parts come one after the other to be added by
/// [`tree_sum`]: ⌈log₂ count⌉.
pub fn partial_sums(count: usize) -> usize {
    count.max(1).next_power_of_two().ilog2() as usize
}

/// Whether `blocks` of `parts` parts each, added one by one and then together, give the bits of [`tree_sum`] over all of them:
/// each block has to be a subtree.
pub fn blocks_are_subtrees(blocks: usize, parts: usize) -> bool {
    blocks == 1 || parts.is_power_of_two()
}
