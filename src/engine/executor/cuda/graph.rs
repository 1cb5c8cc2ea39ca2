//! A step's launches as one object that the driver starts at once.

use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Code, Driver};
use super::gpu::{Gpu, Handle, new_stream};
use super::launch::PreparedLaunch;
use keel_base::error::{Error, Result};

/// See the module's documentation. It refers to its kernels without keeping them: whoever owns it keeps the launches, and
/// with them the images, until it is gone.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    raw: Handle<sys::CUgraphExec_st>,
}

/// What capturing came to.
enum Captured {
    Graph(sys::CUgraphExec),
    /// The driver cannot capture.
    Impossible(Code),
    /// Part of the step is refused for a reason of its own.
    Refused(Refusal),
}

/// A part of a step that could not be queued.
pub(super) enum Refusal {
    Launch(Arc<PreparedLaunch>, Code),
    /// A collective, in the words of its engine.
    Collective(Error),
}

/// Queues a step on the stream that it is given.
pub(super) type Enqueue<'a> = &'a dyn Fn(sys::CUstream) -> Result<(), Refusal>;

impl Graph {
    /// Captures what `enqueue` queues, without running it. `None`, and a warning, when the driver cannot capture.
    ///
    /// # Errors
    /// When a launch or a collective is refused for a reason of its own.
    pub fn capture(gpu: &Arc<Gpu>, enqueue: Enqueue<'_>) -> Result<Option<Graph>> {
        // A stream of its own: what other sessions ask of the computing stream meanwhile must not become part of the graph.
        let stream = gpu.check(new_stream(gpu.driver))?;
        let captured = capture_on(gpu, stream, enqueue);
        // SAFETY: made above, destroyed once; a captured stream has nothing under way.
        unsafe { gpu.driver.stream_destroy(stream) }.ok();
        match captured {
            Captured::Graph(raw) => {
                let graph = Graph {
                    gpu: gpu.clone(),
                    raw: Handle(raw),
                };
                // SAFETY: graph and stream live.
                gpu.check(unsafe { gpu.driver.graph_upload(raw, gpu.compute()) })?;
                Ok(Some(graph))
            }
            Captured::Refused(Refusal::Launch(launch, problem)) => {
                Err(gpu.launch_error(&launch, problem))
            }
            Captured::Refused(Refusal::Collective(problem)) => Err(problem),
            Captured::Impossible(problem) => {
                gpu.warn(format!(
                    "device cuda: the step cannot be captured as a graph ({problem}); its kernels are launched one by one, \
                     which is slower"
                ));
                Ok(None)
            }
        }
    }

    /// Starts all its launches.
    pub fn launch(&self) -> Result<()> {
        let _order = self.gpu.in_order();
        // SAFETY: graph and stream live, and so does all memory that the launches refer to: the session owns both.
        self.gpu
            .check(unsafe { self.gpu.driver.graph_launch(self.raw.0, self.gpu.compute()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: made by `instantiate`, destroyed once.
        unsafe { self.gpu.driver.graph_exec_destroy(self.raw.0) }.ok();
    }
}

fn capture_on(gpu: &Gpu, stream: sys::CUstream, enqueue: Enqueue<'_>) -> Captured {
    let driver = gpu.driver;
    // Only this thread's calls are held to what may be captured: other sessions allocate and copy meanwhile.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as u32;
    // SAFETY: the stream is not the default stream, lives, and nobody else knows it.
    if let Err(problem) = unsafe { driver.stream_begin_capture(stream, mode) } {
        return Captured::Impossible(problem);
    }
    let refused = enqueue(stream).err();
    let mut graph = std::ptr::null_mut();
    // SAFETY: capturing began just above; it ends on every way. The pointer is to a live value.
    let ended = unsafe { driver.stream_end_capture(stream, &mut graph) };
    let captured = match (refused, ended) {
        (Some(Refusal::Launch(_, problem)), _) if problem.is_about_capturing() => {
            Captured::Impossible(problem)
        }
        // Launching it on its own would not be better.
        (Some(refusal), _) => Captured::Refused(refusal),
        (None, Err(problem)) => Captured::Impossible(problem),
        (None, Ok(())) => match instantiate(driver, graph) {
            Ok(executable) => Captured::Graph(executable),
            Err(problem) => Captured::Impossible(problem),
        },
    };
    if !graph.is_null() {
        // SAFETY: made by the end of capturing, destroyed once, after what is made of it.
        unsafe { driver.graph_destroy(graph) }.ok();
    }
    captured
}

fn instantiate(driver: &Driver, graph: sys::CUgraph) -> Result<sys::CUgraphExec, Code> {
    let mut executable = std::ptr::null_mut();
    // SAFETY: the graph is complete; the pointer is to a live value.
    unsafe { driver.graph_instantiate(&mut executable, graph, 0) }.map(|()| executable)
}
