//! Running numbered tasks on the current thread pool, without allocating.

#![allow(unsafe_code)]

use rayon::prelude::*;

/// Runs `body(0)`, …, `body(count − 1)` on the current rayon pool, in any order, each exactly once.
///
/// One task runs in the caller. The caller chooses the tasks by shape alone and gives each its own part of the
/// output; then the result does not depend on the number of threads.
pub fn for_each(count: usize, body: impl Fn(usize) + Sync + Send) {
    match count {
        0 => {}
        1 => body(0),
        _ => spread(count, &body),
    }
}

/// Compiled once for all bodies: what rayon spins around one would be again for each.
fn spread(count: usize, body: &(dyn Fn(usize) + Sync)) {
    (0..count).into_par_iter().with_max_len(1).for_each(body);
}

/// A shared pointer to a slice of which each task writes its own part.
#[derive(Clone, Copy)]
pub struct Shared<T>(*mut T, usize);

// SAFETY: handing out parts is unsafe and its contract forbids overlap, so threads never touch the same element.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares `slice` among tasks; the borrow must outlive them.
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// A pointer to element `start`.
    pub fn start_at(&self, start: usize) -> *mut T {
        assert!(start <= self.1, "element {start} of {}", self.1);
        self.0.wrapping_add(start)
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// 1. The slice is still borrowed for this use; 2. no other task has a part that overlaps this one.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part<'a>(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.1),
            "part {start}+{len} of {}",
            self.1
        );
        // SAFETY: in bounds by the assertion; exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Part `index` of `count` nearly equal ranges of `0..len`, each but the last a multiple of `unit`.
pub fn share(len: usize, count: usize, unit: usize, index: usize) -> std::ops::Range<usize> {
    debug_assert!(index < count.max(1), "part {index} of {count}");
    let size = len.div_ceil(count.max(1)).next_multiple_of(unit.max(1));
    (index * size).min(len)..((index + 1) * size).min(len)
}
