//! Counts what a thread allocates, or all of them, so that tests can bound it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

struct Counting;

/// How many pieces of work are being watched: where none is, allocating costs what it costs.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// Calls of the whole process that allocated or grew.
static IN_ALL_THREADS: AtomicU64 = AtomicU64::new(0);

/// What a thread counts.
#[derive(Clone, Copy)]
struct Counters {
    /// Bytes this thread has taken while anything was watched, less what it has given back.
    live: i64,
    peak: i64,
    count: u64,
}

thread_local! {
    static COUNTERS: Cell<Counters> = const {
        Cell::new(Counters { live: 0, peak: 0, count: 0 })
    };
}

fn note(bytes: i64) {
    if WATCHED.load(Ordering::Relaxed) == 0 {
        return;
    }
    if bytes > 0 {
        IN_ALL_THREADS.fetch_add(1, Ordering::Relaxed);
    }
    // A thread that is ending has no counters any more.
    let _ = COUNTERS.try_with(|counters| {
        let mut now = counters.get();
        now.live += bytes;
        if bytes > 0 {
            now.count += 1;
            now.peak = now.peak.max(now.live);
        }
        counters.set(now);
    });
}

// SAFETY: every call goes to the system allocator with its arguments unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as i64);
        note(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a piece of work on this thread allocated.
#[derive(Debug, Clone, Copy)]
pub struct Allocated {
    /// Calls that allocated or grew.
    pub count: u64,
    /// Most bytes held at once, beyond those held at the start.
    pub peak_bytes: i64,
}

/// Runs the work while it is watched, also where it panics.
fn watch<T>(work: impl FnOnce() -> T) -> T {
    struct Watch;
    impl Drop for Watch {
        fn drop(&mut self) {
            WATCHED.fetch_sub(1, Ordering::SeqCst);
        }
    }
    WATCHED.fetch_add(1, Ordering::SeqCst);
    let _watch = Watch;
    work()
}

/// Runs the work and says what this thread allocated meanwhile.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    let before = COUNTERS.get();
    COUNTERS.set(Counters {
        peak: before.live,
        ..before
    });
    let outcome = watch(work);
    let after = COUNTERS.get();
    let allocated = Allocated {
        count: after.count - before.count,
        peak_bytes: after.peak - before.live,
    };
    (outcome, allocated)
}

/// Runs the work and says how often the whole process allocated meanwhile, other tests' threads included.
pub fn count_in_all_threads<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = IN_ALL_THREADS.load(Ordering::SeqCst);
    let outcome = watch(work);
    (outcome, IN_ALL_THREADS.load(Ordering::SeqCst) - before)
}

#[test]
fn allocations_of_this_thread_are_counted_and_others_are_not() {
    let (_, allocated) = measure(|| {
        drop(vec![1_u8; 1000]);
        drop(vec![0_u8; 3000]);
    });
    assert_eq!((allocated.count, allocated.peak_bytes), (2, 3000));
    let other = std::thread::spawn(|| drop(vec![1_u8; 1 << 20]));
    let (_, allocated) = measure(|| other.join().unwrap());
    assert!(allocated.peak_bytes < 1 << 20);
}
