//! What the program does when the system has no more memory: it says so and ends.
//!
//! Rust's own answer is to abort, after a message that may itself need memory; a thread that waits for the one that failed
//! would wait for ever. A library cannot decide that for its users, so only the program installs this.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::stderr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, which ends the process with exit code 1 and a sentence where it can give no more.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndsWithoutMemory;

/// Arenas of this alignment and more name what did not fit and what to choose in its place: they are told.
const ARENA_ALIGNMENT: usize = 4096;

/// What is said; the number of bytes stands between.
const SENTENCE: [&[u8]; 2] = [
    b"error: memory: the system refused ",
    b" bytes; end other programs, raise the limit (ulimit -v), or choose a smaller batch, model or set of data\n",
];

impl EndsWithoutMemory {
    fn given(self, pointer: *mut u8, size: usize, align: usize) -> *mut u8 {
        if pointer.is_null() && align < ARENA_ALIGNMENT {
            end(size);
        }
        pointer
    }
}

/// Ends the process. Nothing here may allocate, lock or run what is registered for the exit: the memory is gone.
#[cold]
fn end(bytes: usize) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    // One thread speaks for all.
    while ENDING.swap(true, Ordering::SeqCst) {
        std::thread::yield_now();
    }
    let mut digits = [0; 20];
    let mut left = bytes;
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    for part in [SENTENCE[0], &digits[first..], SENTENCE[1]] {
        // Nobody is left to tell that it could not be said.
        let _ = rustix::io::write(stderr().as_fd(), part);
    }
    signal_hook::low_level::exit(1)
}

// SAFETY: every call goes to the system allocator with its arguments unchanged, and what it gives is handed on unchanged.
unsafe impl GlobalAlloc for EndsWithoutMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        let pointer = unsafe { System.alloc(layout) };
        self.given(pointer, layout.size(), layout.align())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        self.given(pointer, layout.size(), layout.align())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { System.realloc(pointer, layout, size) };
        self.given(pointer, size, layout.align())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}
