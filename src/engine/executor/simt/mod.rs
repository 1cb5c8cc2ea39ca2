//! The emulator: runs the kernels of `cuda/`, compiled by the host's C++ compiler, one fiber for each CUDA thread. It
//! proves kernels on machines without a GPU; it says nothing about their speed. The machinery is in `cuda/simt`.
//!
//! Launching is safe: arguments are checked against the entry point's own signature, every pointer comes from a
//! [`Buffer`] of known length, and a kernel that touches what it should not is stopped and reported.
#![allow(unsafe_code)]

mod buffer;
mod ffi;
mod session;
mod signature;

use crate::launch::KernelEntry;
pub use crate::launch::{Element, Parameter};
pub use buffer::Buffer;
pub use session::SimtExecutor;
pub use signature::{Argument, Kernel};

use keel_base::error::{Error, Result};
use std::ffi::{CStr, c_void};
use std::time::Duration;

/// In what order warps and lanes run. A uniformly random order is not offered: it keeps the warps in rough step and finds
/// next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// One warp until it blocks, then the next; an odd seed goes downwards.
    RunAhead,
    /// Random priorities that starve warps for a while.
    Priority,
}

/// When asynchronous copies land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyTiming {
    /// When they are issued: finds a buffer refilled while it is still read.
    Early,
    /// At the wait that covers them: finds a missing or short wait.
    Late,
    /// At either, by the seed.
    Random,
}

/// How a launch is run. The same options give the same run, bit for bit, on any number of cores.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The order of warps and lanes.
    pub schedule: Schedule,
    /// When asynchronous copies land.
    pub copies: CopyTiming,
    /// Decides the order of blocks and every random choice.
    pub seed: u64,
    /// Host threads over the blocks; 0: all cores.
    pub workers: u32,
    /// After this long the launch is ended with a report.
    pub time_limit: Duration,
    /// Bytes of shared memory a block may have: 99 KiB on sm_86 and sm_89, 163 KiB on sm_80, 227 KiB on sm_90.
    pub shared_limit: u32,
    /// The planted bug to switch on, by the name it has in the kernel's source.
    pub planted_bug: Option<&'a str>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            schedule: Schedule::RunAhead,
            copies: CopyTiming::Late,
            seed: 0,
            workers: 0,
            time_limit: Duration::from_secs(60),
            shared_limit: 163 * 1024,
            planted_bug: None,
        }
    }
}

/// What a block on sm_90 may have of shared memory.
const HOPPER_SHARED_LIMIT: u32 = 227 * 1024;

impl Options<'static> {
    /// The default for a kernel: with the shared memory of the chips that it is written for.
    pub fn for_kernel(kernel: &KernelEntry) -> Options<'static> {
        let mut options = Options::default();
        if kernel.is_of_hopper() {
            options.shared_limit = HOPPER_SHARED_LIMIT;
        }
        options
    }

    /// The six combinations every kernel case runs under: running ahead with late and early copies (upwards and
    /// downwards), and priorities by two seeds with each.
    pub fn proof(seed: u64) -> [Options<'static>; 6] {
        let even = seed & !1;
        [
            (Schedule::RunAhead, CopyTiming::Late, even),
            (Schedule::RunAhead, CopyTiming::Early, even + 1),
            (Schedule::Priority, CopyTiming::Late, even + 2),
            (Schedule::Priority, CopyTiming::Early, even + 2),
            (Schedule::Priority, CopyTiming::Random, even + 3),
            (Schedule::Priority, CopyTiming::Early, even + 3),
        ]
        .map(|(schedule, copies, seed)| Options {
            schedule,
            copies,
            seed,
            ..Options::default()
        })
    }
}

/// The emulator, proven to be part of this program.
#[derive(Clone, Copy)]
pub struct Emulator {
    library: &'static ffi::Library,
}

impl Emulator {
    /// The emulator.
    ///
    /// # Errors
    /// When this program was built without a C++ compiler or for a system the emulator does not know.
    pub fn new() -> Result<Emulator> {
        match ffi::library() {
            Some(library) => Ok(Emulator { library }),
            None => Err(Error::Device {
                device: "simt".to_owned(),
                problem: "this program was built without the kernel emulator".to_owned(),
                remedy: "build it on x86-64 or aarch64 Linux with g++ or clang++ installed"
                    .to_owned(),
            }),
        }
    }

    /// Whether this is the checked build, which finds races, uninitialised reads and accesses out of bounds exactly.
    pub fn is_checked(&self) -> bool {
        // SAFETY: the function only returns a constant.
        unsafe { (self.library.is_checked)() != 0 }
    }

    /// Every kernel, those of the tests included.
    pub fn kernels(&self) -> Vec<Kernel> {
        // SAFETY: the functions only read the library's constant table, within its length.
        let entries = unsafe {
            let count = (self.library.kernel_count)();
            (0..count)
                .map(|i| &*(self.library.kernel)(i))
                .collect::<Vec<_>>()
        };
        entries.into_iter().map(Kernel::new).collect()
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let found = self
            .kernels()
            .into_iter()
            .find(|kernel| kernel.name == name);
        found
            .ok_or_else(|| Error::kernel(format!("kernel {name} is not in the emulator's library")))
    }

    /// Memory for `count` elements, every byte 0xff: NaN, or -1.
    ///
    /// # Errors
    /// When the system has no more.
    pub fn allocate(&self, element: Element, count: usize) -> Result<Buffer> {
        Buffer::new(self.library, element, count)
    }

    /// Runs `kernel` over the whole grid and returns when it is done.
    ///
    /// # Errors
    /// Before anything runs: arguments that are not the entry point's, a grid, block or shared size it cannot have.
    /// Afterwards: whatever a thread did wrong first, with block, thread and source line.
    pub fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &[Argument<'_>],
        options: &Options<'_>,
    ) -> Result<()> {
        self.launch_clusters(kernel, 1, grid, block, shared_bytes, arguments, options)
    }

    /// As [`Emulator::launch`], with clusters of `cluster` blocks in x, which run at the same time.
    ///
    /// # Errors
    /// As [`Emulator::launch`], and where the grid does not divide into such clusters.
    #[allow(clippy::too_many_arguments)]
    pub fn launch_clusters(
        &self,
        kernel: &Kernel,
        cluster: u32,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &[Argument<'_>],
        options: &Options<'_>,
    ) -> Result<()> {
        kernel.check(arguments)?;
        // Each value in its words, of which the entry point reads as many bytes as its parameter has.
        let mut values: Vec<signature::Words> = arguments.iter().map(Argument::words).collect();
        let mut pointers: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| std::ptr::from_mut(value).cast::<c_void>())
            .collect();
        let extents = extents(kernel, arguments);
        let raw_options = ffi::KeelOptions {
            schedule: options.schedule as u32,
            copies: options.copies as u32,
            seed: options.seed,
            workers: options.workers,
            time_limit_ms: u32::try_from(options.time_limit.as_millis()).unwrap_or(u32::MAX),
            shared_limit: options.shared_limit,
            planted_bug: options.planted_bug.map_or(0, bug_code),
        };
        // SAFETY: `pointers` holds one pointer to 128 aligned bytes for each parameter of the entry point, whose kinds
        // were checked above; every pointer value lies in a live buffer; the arrays outlive the call, which returns only
        // when no thread of the launch runs any more.
        let code = unsafe {
            (self.library.launch)(
                kernel.raw,
                cluster,
                grid.as_ptr(),
                block.as_ptr(),
                shared_bytes,
                pointers.as_mut_ptr(),
                &raw_options,
                extents.as_ptr(),
                extents.len() as u32,
            )
        };
        if code == 0 {
            return self.require_bug_reached(kernel, options);
        }
        // SAFETY: the text is zero-terminated and stays until this thread's next launch.
        let report = unsafe { CStr::from_ptr((self.library.last_error)()) };
        let list: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        Err(Error::kernel(format!(
            "{}\n    launched with grid {grid:?}, block {block:?}, {shared_bytes} bytes of shared memory, arguments ({})",
            report.to_string_lossy(),
            list.join(", ")
        )))
    }

    /// A planted bug that no thread came past proves nothing.
    fn require_bug_reached(&self, kernel: &Kernel, options: &Options<'_>) -> Result<()> {
        let Some(bug) = options.planted_bug else {
            return Ok(());
        };
        // SAFETY: the function only reads a flag of this thread.
        if unsafe { (self.library.planted_bug_reached)() } != 0 {
            return Ok(());
        }
        Err(Error::setting(
            "planted bug",
            format!(
                "a name that a PLANTED_BUG line of kernel {} has",
                kernel.name
            ),
            bug,
        ))
    }
}

/// What each pointer argument may touch.
fn extents(kernel: &Kernel, arguments: &[Argument<'_>]) -> Vec<ffi::KeelExtent> {
    let mut extents = Vec::new();
    for (i, (argument, parameter)) in arguments.iter().zip(&kernel.parameters).enumerate() {
        let (bytes, is_writable) = match (argument, parameter) {
            (Argument::Slice { bytes, .. }, Parameter::Pointer { is_const, .. }) => {
                (*bytes, !is_const)
            }
            (
                Argument::TensorMap {
                    bytes, is_writable, ..
                },
                Parameter::TensorMap,
            ) => (*bytes, *is_writable),
            _ => continue,
        };
        extents.push(ffi::KeelExtent {
            start: argument.bits() as *const c_void,
            bytes: bytes as u64,
            writable: is_writable.into(),
            argument: i as u32,
        });
    }
    extents
}

/// FNV-1a, as `simt::planted_bug_code` computes it.
fn bug_code(name: &str) -> u32 {
    name.bytes().fold(2_166_136_261, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
    })
}
