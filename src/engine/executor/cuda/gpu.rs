//! A GPU in use: its context and streams, and the words for what goes wrong there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use super::clock::Clock;
use super::driver::{Code, Driver};
use super::launch::PreparedLaunch;
use super::probe::{Found, unusable};
use keel_base::error::{Error, Result};

/// Launches that a report of a failure names.
const REMEMBERED: usize = 8;

/// A handle of the driver: an address that only the driver looks behind.
pub(super) struct Handle<T>(pub *mut T);

// SAFETY: the functions of the driver may be called from any thread that has made the context its own, which every entry
// from outside does first (`Gpu::bind`); nothing of this program reads or writes behind the address.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above; where the order of calls matters, `Gpu::in_order` keeps it.
unsafe impl<T> Sync for Handle<T> {}

/// A context of its own reference, a stream that computes and one that brings the next batch in the meantime.
///
/// Neither stream waits for the other, nor for work that names no stream: every order is made here, by events or by
/// waiting, and every call names one of the two. Sessions share both streams, each from a thread of its own.
pub(super) struct Gpu {
    pub found: Found,
    pub driver: &'static Driver,
    context: Handle<sys::CUctx_st>,
    device: sys::CUdevice,
    compute: Handle<sys::CUstream_st>,
    copies: Handle<sys::CUstream_st>,
    /// Whether every launch is waited for, so that a fault names its kernel.
    pub is_synchronous: bool,
    clock: Option<Clock>,
    /// What nobody has asked for yet of what there is to say.
    warnings: Mutex<Vec<String>>,
    last: Mutex<VecDeque<Arc<PreparedLaunch>>>,
    order: Mutex<()>,
}

impl Gpu {
    /// Makes the device that [`super::probe`] found ready. `KEEL_CUDA_SYNC=1` makes its launches synchronous.
    pub fn new(found: Found) -> Result<Arc<Gpu>> {
        let is_synchronous = std::env::var_os("KEEL_CUDA_SYNC").is_some_and(|value| value == "1");
        let start = |problem: Code| {
            unusable(
                format!("{} cannot be used ({problem})", found.name),
                "see with `nvidia-smi` whether another program holds it, or choose --device cpu",
            )
        };
        let (driver, _) = Driver::start()?;
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the pointers are to live values; the context is released once, when the value made here is dropped.
        unsafe {
            driver
                .device_get(&mut device, found.ordinal)
                .map_err(start)?;
            driver
                .device_primary_ctx_retain(&mut context, device)
                .map_err(start)?;
        }
        let mut gpu = Gpu {
            driver,
            context: Handle(context),
            device,
            clock: Clock::of(&found.bus_id),
            compute: Handle(std::ptr::null_mut()),
            copies: Handle(std::ptr::null_mut()),
            is_synchronous,
            last: Mutex::default(),
            warnings: Mutex::default(),
            order: Mutex::default(),
            found: found.clone(),
        };
        gpu.bind()?;
        for stream in [&mut gpu.compute, &mut gpu.copies] {
            *stream = Handle(new_stream(driver).map_err(start)?);
        }
        Ok(Arc::new(gpu))
    }

    /// The stream that computes.
    pub fn compute(&self) -> sys::CUstream {
        self.compute.0
    }

    /// The stream that brings the next batch.
    pub fn copies(&self) -> sys::CUstream {
        self.copies.0
    }

    /// Held by whoever asks something of the computing stream, and from waiting for that stream to the end of a copy that
    /// relies on it being idle: no session's kernels start while the host copies for another.
    pub fn in_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the context this thread's. Every entry from outside does that first: contexts belong to threads.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until this value is dropped.
        self.check(unsafe { self.driver.ctx_set_current(self.context.0) })
    }

    /// Waits until everything asked of the computing stream is done.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this value.
        self.check(unsafe { self.driver.stream_synchronize(self.compute.0) })
    }

    /// Looks at the clock if the device works now and the last look is some time ago: whoever is about to wait for a step
    /// calls this.
    pub fn look_at_clock(&self) {
        let Some(clock) = self.clock.as_ref().filter(|clock| clock.is_due()) else {
            return;
        };
        // SAFETY: the stream lives as long as this value.
        if unsafe { self.driver.stream_query(self.compute.0) } == Err(Code::NOT_READY) {
            clock.look();
        }
    }

    /// The clock of the multiprocessors, Hz: the mean of what was seen while they worked; before that, or where there is no
    /// management library, the highest that the driver names.
    pub fn clock(&self) -> f64 {
        let highest = 1e3 * f64::from(self.found.clock_khz);
        let seen = self.clock.as_ref().and_then(Clock::mean);
        seen.unwrap_or(highest)
    }

    /// Free and total bytes of the device's memory, as far as it says.
    pub fn memory(&self) -> Option<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are to live numbers.
        let code = unsafe { self.driver.mem_get_info(&mut free, &mut total) };
        code.ok().map(|()| (free, total))
    }

    /// Remembers a launch for reports.
    pub fn remember(&self, launch: &Arc<PreparedLaunch>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        last.push_back(launch.clone());
    }

    /// Forgets the launches: they keep their images loaded, which keep this value.
    pub fn forget(&self) {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Keeps a sentence for whoever runs programs here.
    pub fn warn(&self, sentence: String) {
        let warnings = self.warnings.lock();
        warnings
            .unwrap_or_else(PoisonError::into_inner)
            .push(sentence);
    }

    /// The sentences that were kept since this was last asked.
    pub fn take_warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock();
        std::mem::take(&mut *warnings.unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a launch that was just started.
    pub fn wait_for(&self, launch: &PreparedLaunch) -> Result<()> {
        // SAFETY: the stream lives as long as this value.
        unsafe { self.driver.stream_synchronize(self.compute.0) }
            .map_err(|problem| self.launch_error(launch, problem))
    }

    /// The words for a failure that no single launch is to blame for.
    pub fn check<T>(&self, outcome: Result<T, Code>) -> Result<T> {
        outcome.map_err(|problem| {
            Error::kernel(format!(
                "device cuda: {problem} while the GPU worked{}; what it computed is lost, so start again from the last \
                 checkpoint{}",
                self.advice(problem),
                self.last_launches()
            ))
        })
    }

    /// What to do about a failure, beside starting again.
    fn advice(&self, problem: Code) -> &'static str {
        match problem.0 {
            214 => {
                "; its memory has an error that cannot be corrected: see `nvidia-smi -q -d ECC`, and reset it or use another"
            }
            702 => {
                "; a kernel ran longer than the system allows a GPU with a display: use one without, or a smaller batch"
            }
            _ if self.is_synchronous => "",
            _ => "; run again with KEEL_CUDA_SYNC=1 to learn which kernel it is",
        }
    }

    /// The words for a launch that failed.
    pub fn launch_error(&self, launch: &PreparedLaunch, problem: Code) -> Error {
        Error::kernel(format!("{launch}: {problem}{}", self.last_launches()))
    }

    fn last_launches(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() {
            return String::new();
        }
        let list: Vec<String> = last.iter().map(|launch| launch.to_string()).collect();
        format!(
            "\nthe last launches, the newest at the end:\n  {}",
            list.join("\n  ")
        )
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Failures here have nobody to go to: the process gives everything back when it ends.
        self.bind().ok();
        for stream in [self.compute.0, self.copies.0] {
            if !stream.is_null() {
                // SAFETY: made in `new`, destroyed once, and nothing uses it any more.
                unsafe { self.driver.stream_destroy(stream) }.ok();
            }
        }
        // SAFETY: retained once in `new`.
        unsafe { self.driver.device_primary_ctx_release(self.device) }.ok();
    }
}

/// A stream that waits for no other, not even for the one without a name.
pub(super) fn new_stream(driver: &Driver) -> Result<sys::CUstream, Code> {
    let mut stream = std::ptr::null_mut();
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: the pointer is to a live value.
    unsafe { driver.stream_create(&mut stream, flags) }.map(|()| stream)
}

/// An event.
pub(super) struct Event {
    gpu: Arc<Gpu>,
    raw: Handle<sys::CUevent_st>,
}

impl Event {
    /// One that only orders, or one that also takes the time.
    pub fn new(gpu: &Arc<Gpu>, takes_time: bool) -> Result<Event> {
        let flags = if takes_time {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is to a live value.
        gpu.check(unsafe { gpu.driver.event_create(&mut event, flags as u32) })?;
        Ok(Event {
            raw: Handle(event),
            gpu: gpu.clone(),
        })
    }

    /// Marks where `stream` is now.
    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream live; both are of the one context.
        self.gpu
            .check(unsafe { self.gpu.driver.event_record(self.raw.0, stream) })
    }

    /// What is asked of `stream` from now on waits for the mark.
    pub fn hold(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as u32;
        // SAFETY: as above.
        self.gpu
            .check(unsafe { self.gpu.driver.stream_wait_event(stream, self.raw.0, flags) })
    }

    /// Waits for the mark; at once when there never was one.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        self.gpu
            .check(unsafe { self.gpu.driver.event_synchronize(self.raw.0) })
    }

    /// Seconds from `start` to this mark; both are reached and take time.
    pub fn seconds_since(&self, start: &Event) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: both events live and were recorded on the one computing stream; the pointer is to a live number.
        self.gpu.check(unsafe {
            self.gpu
                .driver
                .event_elapsed_time(&mut milliseconds, start.raw.0, self.raw.0)
        })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: created by `new`, destroyed once.
        unsafe { self.gpu.driver.event_destroy(self.raw.0) }.ok();
    }
}
