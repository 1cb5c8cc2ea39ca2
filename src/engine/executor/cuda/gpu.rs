//! A GPU in use: its context and streams, and the words for what goes wrong there.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DriverError, result, sys};

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
/// Neither stream waits for the other, nor for the copies of the host that name no stream: every order is made here, by
/// events or by waiting. Sessions share both streams, each from a thread of its own.
pub(super) struct Gpu {
    pub found: Found,
    context: Handle<sys::CUctx_st>,
    device: sys::CUdevice,
    compute: Handle<sys::CUstream_st>,
    copies: Handle<sys::CUstream_st>,
    /// Whether every launch is waited for, so that a fault names its kernel.
    pub is_synchronous: bool,
    /// What nobody has asked for yet of what there is to say.
    warnings: Mutex<Vec<String>>,
    last: Mutex<VecDeque<Arc<PreparedLaunch>>>,
    order: Mutex<()>,
}

impl Gpu {
    /// Makes the device that [`super::probe`] found ready. `KEEL_CUDA_SYNC=1` makes its launches synchronous.
    pub fn new(found: Found) -> Result<Arc<Gpu>> {
        let is_synchronous = std::env::var_os("KEEL_CUDA_SYNC").is_some_and(|value| value == "1");
        let start = |problem: DriverError| {
            unusable(
                format!("{} cannot be used ({})", found.name, name(problem)),
                "see with `nvidia-smi` whether another program holds it, or choose --device cpu",
            )
        };
        let device = result::device::get(found.ordinal).map_err(start)?;
        // SAFETY: the device was just found; the context it returns is released once, when the value made here is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(start)?;
        let mut gpu = Gpu {
            context: Handle(context),
            device,
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
            *stream = Handle(new_stream().map_err(start)?);
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
        self.check(unsafe { result::ctx::set_current(self.context.0) })
    }

    /// Waits until everything asked of the computing stream is done.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this value.
        self.check(unsafe { result::stream::synchronize(self.compute.0) })
    }

    /// Free and total bytes of the device's memory, as far as it says.
    pub fn memory(&self) -> Option<(usize, usize)> {
        result::mem_get_info().ok()
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
        unsafe { result::stream::synchronize(self.compute.0) }
            .map_err(|problem| self.launch_error(launch, problem))
    }

    /// The words for a failure that no single launch is to blame for.
    pub fn check<T>(&self, outcome: Result<T, DriverError>) -> Result<T> {
        outcome.map_err(|problem| {
            let advice = if self.is_synchronous {
                ""
            } else {
                "; run again with KEEL_CUDA_SYNC=1 to learn which kernel it is"
            };
            Error::kernel(format!(
                "device cuda: {} while the GPU worked{advice}; what it computed is lost, so start again from the last \
                 checkpoint{}",
                name(problem),
                self.last_launches()
            ))
        })
    }

    /// The words for a launch that failed.
    pub fn launch_error(&self, launch: &PreparedLaunch, problem: DriverError) -> Error {
        Error::kernel(format!(
            "{launch}: {}{}",
            name(problem),
            self.last_launches()
        ))
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
                unsafe { result::stream::destroy(stream) }.ok();
            }
        }
        // SAFETY: retained once in `new`.
        unsafe { result::primary_ctx::release(self.device) }.ok();
    }
}

fn new_stream() -> Result<sys::CUstream, DriverError> {
    result::stream::create(result::stream::StreamKind::NonBlocking)
}

/// What the driver calls its failure.
pub(super) fn name(problem: DriverError) -> String {
    let code = problem.0 as u32;
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or(String::new(), |text| text.to_string_lossy().into_owned())
    };
    let (name, meaning) = (text(problem.error_name()), text(problem.error_string()));
    match (name.is_empty(), meaning.is_empty() || meaning == name) {
        (true, _) => format!("CUDA error {code}"),
        (false, true) => format!("{name} ({code})"),
        (false, false) => format!("{name} ({code}, {meaning})"),
    }
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
        Ok(Event {
            raw: Handle(gpu.check(result::event::create(flags))?),
            gpu: gpu.clone(),
        })
    }

    /// Marks where `stream` is now.
    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream live; both are of the one context.
        self.gpu
            .check(unsafe { result::event::record(self.raw.0, stream) })
    }

    /// What is asked of `stream` from now on waits for the mark.
    pub fn hold(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        self.gpu
            .check(unsafe { result::stream::wait_event(stream, self.raw.0, flags) })
    }

    /// Waits for the mark; at once when there never was one.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        self.gpu
            .check(unsafe { result::event::synchronize(self.raw.0) })
    }

    /// Seconds from `start` to this mark; both are reached and take time.
    pub fn seconds_since(&self, start: &Event) -> Result<f64> {
        // SAFETY: both events live and were recorded on the one computing stream.
        let milliseconds = self
            .gpu
            .check(unsafe { result::event::elapsed(start.raw.0, self.raw.0) })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: created by `new`, destroyed once.
        unsafe { result::event::destroy(self.raw.0) }.ok();
    }
}

/// A step's launches as one object that the driver starts at once.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    raw: Handle<sys::CUgraphExec_st>,
}

impl Graph {
    /// Captures `launches` without running them. `None`, and a warning, when the driver cannot capture.
    ///
    /// # Errors
    /// When a launch is refused for a reason of its own.
    pub fn capture(gpu: &Arc<Gpu>, launches: &[Arc<PreparedLaunch>]) -> Result<Option<Graph>> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // A stream of its own: what other sessions ask of the computing stream meanwhile must not become part of the graph.
        let stream = gpu.check(new_stream())?;
        // SAFETY: the stream is not the default stream, lives, and nobody else knows it.
        let captured = unsafe { result::stream::begin_capture(stream, mode) }.map(|()| {
            let mut refused = None;
            for launch in launches {
                if let Err(problem) = launch.enqueue_on(gpu, stream) {
                    refused = Some((launch, problem));
                    break;
                }
            }
            // SAFETY: capturing began just above; it ends on every way.
            let graph = unsafe { result::stream::end_capture(stream) };
            (refused, graph)
        });
        // SAFETY: made above, destroyed once; a captured stream has nothing under way.
        unsafe { result::stream::destroy(stream) }.ok();
        let problem = match captured {
            Ok((Some((launch, problem)), graph)) => {
                if let Ok(graph) = graph {
                    // SAFETY: made by `end_capture`, destroyed once.
                    unsafe { result::graph::destroy(graph) }.ok();
                }
                // Codes 900 to 909 are about capturing alone; any other says that the launch itself is wrong, and
                // launching it on its own would not be better.
                if !(900..910).contains(&(problem.0 as u32)) {
                    return Err(gpu.launch_error(launch, problem));
                }
                problem
            }
            Ok((None, Ok(graph))) => {
                // SAFETY: the graph is complete; it is destroyed once, after what is made of it.
                let (made, _) = unsafe {
                    let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                    (made, result::graph::destroy(graph))
                };
                match made {
                    Ok(raw) => {
                        let graph = Graph {
                            gpu: gpu.clone(),
                            raw: Handle(raw),
                        };
                        // SAFETY: graph and stream live.
                        gpu.check(unsafe { result::graph::upload(raw, gpu.compute()) })?;
                        return Ok(Some(graph));
                    }
                    Err(problem) => problem,
                }
            }
            Ok((None, Err(problem))) | Err(problem) => problem,
        };
        gpu.warn(format!(
            "device cuda: the step cannot be captured as a graph ({}); its kernels are launched one by one, which is slower",
            name(problem)
        ));
        Ok(None)
    }

    /// Starts all its launches.
    pub fn launch(&self) -> Result<()> {
        let _order = self.gpu.in_order();
        // SAFETY: graph and stream live, and so does all memory that the launches refer to: the session owns both.
        self.gpu
            .check(unsafe { result::graph::launch(self.raw.0, self.gpu.compute()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: made by `instantiate`, destroyed once.
        unsafe { result::graph::exec_destroy(self.raw.0) }.ok();
    }
}

/// Starts one kernel on `stream`; the driver reads the values before it returns.
///
/// # Safety
/// The function is of a loaded module, and `values` are its parameters: as many, each of the size the entry point takes,
/// every pointer to memory that lives until the stream has come past the launch.
pub(super) unsafe fn launch(
    function: sys::CUfunction,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    values: &[u64],
    stream: sys::CUstream,
) -> Result<(), DriverError> {
    let mut pointers: Vec<*mut c_void> = values
        .iter()
        .map(|value| std::ptr::from_ref(value).cast_mut().cast())
        .collect();
    // SAFETY: the caller's promise; the driver only reads through the pointers, and before it returns.
    unsafe {
        result::launch_kernel(
            function,
            (grid[0], grid[1], grid[2]),
            (threads, 1, 1),
            shared_bytes,
            stream,
            &mut pointers,
        )
    }
}
