//! A second launcher, written on the cust crate instead of cudarc. It is independent of the first in all that a launcher
//! can get wrong: how arguments are laid out, which grid and block a kernel gets, how shared memory is asked for, what
//! waits for what. [`compare`] runs each kernel of a program through both, on the same memory, and demands the same bits.
//! That says nothing about the kernels themselves: driver and images are the same.
//!
//! It also serves callers who hold buffers and streams of cust: [`CustLauncher::launch`] runs any kernel of this program
//! on them.
//!
//! cust 0.3.2, of 2022, is the newest that is published. It cannot raise the limit of shared memory, so that one call goes
//! to its raw bindings.

mod shim;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::error::CudaError;
use cust::memory::{DevicePointer, DeviceSlice};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use cust::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;

use super::super::Session;
use super::super::kernel_table::{IMAGES, KernelImage};
use super::super::resolved::{ByteRange, ResolvedArgument};
use super::super::simt::{Emulator, Kernel};
use super::executor::CudaExecutor;
use super::launch::PreparedLaunch;
use super::probe::{Found, unusable};
use super::session::CudaSession;
use crate::launch::kernels::KERNELS;
use crate::launch::{Element, KernelEntry, Parameter};
use crate::program::Program;
use keel_base::error::{Error, Result};

/// Shared memory that a block has without asking for more.
const USUAL_SHARED_BYTES: u32 = 48 * 1024;

/// One argument of a launch.
#[derive(Clone, Copy, Debug)]
pub enum CustArgument {
    /// Where `element`s lie on the device.
    Pointer {
        /// The first.
        start: DevicePointer<u8>,
        /// What they are.
        element: Element,
    },
    /// A null pointer, for an optional tensor that is absent.
    Null,
    /// A 32-bit signed integer.
    I32(i32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A single-precision number.
    F32(f32),
}

impl CustArgument {
    /// A slice that holds `element`s.
    ///
    /// # Errors
    /// [`Error::Kernel`] when its elements have another size.
    pub fn slice<T: cust::memory::DeviceCopy>(
        slice: &DeviceSlice<T>,
        element: Element,
    ) -> Result<CustArgument> {
        if size_of::<T>() != element.size() {
            return Err(Error::kernel(format!(
                "a slice of elements of {} bytes cannot be passed as {element}, which has {}",
                size_of::<T>(),
                element.size()
            )));
        }
        Ok(CustArgument::Pointer {
            start: slice.as_device_ptr().cast(),
            element,
        })
    }

    fn fits(&self, parameter: Parameter) -> bool {
        matches!(
            (self, parameter),
            (CustArgument::Null, Parameter::Pointer { .. })
                | (CustArgument::I32(_), Parameter::Signed(4))
                | (CustArgument::I64(_), Parameter::Signed(8))
                | (CustArgument::F32(_), Parameter::Float(4))
        ) || matches!(
            (self, parameter),
            (CustArgument::Pointer { element, .. }, Parameter::Pointer { element: want, .. }) if want == Some(*element)
        )
    }

    /// Where the value itself lies: the driver copies as many bytes from there as the parameter has.
    fn value(&self) -> *mut c_void {
        let value: *const c_void = match self {
            CustArgument::Pointer { start, .. } => std::ptr::from_ref(start).cast(),
            CustArgument::Null => std::ptr::from_ref(&NULL).cast(),
            CustArgument::I32(value) => std::ptr::from_ref(value).cast(),
            CustArgument::I64(value) => std::ptr::from_ref(value).cast(),
            CustArgument::F32(value) => std::ptr::from_ref(value).cast(),
        };
        value.cast_mut()
    }
}

static NULL: u64 = 0;

/// See the module's documentation.
pub struct CustLauncher {
    emulator: Emulator,
    kernels: HashMap<String, Kernel>,
    modules: HashMap<&'static str, Module>,
    images: &'static [KernelImage],
    // The last to go: modules belong to it.
    context: Context,
}

impl CustLauncher {
    /// A launcher on the GPU that [`super::probe`] found, in its primary context, which it shares with every user of that.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn new(found: &Found) -> Result<CustLauncher> {
        CustLauncher::with_images(found, IMAGES)
    }

    /// As [`CustLauncher::new`], with images in the place of those that this program was built with.
    ///
    /// # Errors
    /// As [`CustLauncher::new`].
    pub fn with_images(found: &Found, images: &'static [KernelImage]) -> Result<CustLauncher> {
        // That there is a `Found` says that the library is present.
        shim::fill();
        let start = |problem: CudaError| {
            unusable(
                format!("cust cannot use {} ({problem})", found.name),
                "build without the feature cust",
            )
        };
        cust::init(cust::CudaFlags::empty()).map_err(start)?;
        let device = Device::get_device(found.ordinal as u32).map_err(start)?;
        Ok(CustLauncher {
            emulator: Emulator::new()?,
            kernels: HashMap::new(),
            modules: HashMap::new(),
            images,
            context: Context::new(device).map_err(start)?,
        })
    }

    /// A stream of the launcher's context.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver has no more.
    pub fn stream(&self) -> Result<Stream> {
        CurrentContext::set_current(&self.context)
            .and_then(|()| Stream::new(StreamFlags::DEFAULT, None))
            .map_err(|problem| {
                unusable(
                    format!("cust makes no stream ({problem})"),
                    "end other programs",
                )
            })
    }

    /// Asks `stream` to run the kernel called `name`, with as many threads and as much shared memory as it is written for.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is no such kernel, an argument is not what it takes, or the driver refuses.
    ///
    /// # Safety
    /// 1. Every pointer leads to as many live elements as the kernel touches, given its other arguments (see the header of
    ///    its source), until the stream has come past the launch.
    /// 2. Nobody else uses what it writes in the meantime.
    pub unsafe fn launch(
        &mut self,
        stream: &Stream,
        name: &str,
        grid: [u32; 3],
        arguments: &[CustArgument],
    ) -> Result<()> {
        self.ready(name)?;
        let kernel = &self.kernels[name];
        if arguments.len() != kernel.parameters.len() {
            return Err(Error::kernel(format!(
                "kernel {name} takes {} arguments, but the launch passes {}",
                kernel.parameters.len(),
                arguments.len()
            )));
        }
        for (index, (argument, parameter)) in arguments.iter().zip(&kernel.parameters).enumerate() {
            if !argument.fits(*parameter) {
                return Err(Error::kernel(format!(
                    "kernel {name}, argument {index}: the entry point takes {parameter}, but the launch passes {argument:?}"
                )));
            }
        }
        let refused =
            |problem: CudaError| Error::kernel(format!("kernel {name} through cust: {problem}"));
        CurrentContext::set_current(&self.context).map_err(refused)?;
        let stem = entry(name).expect("looked up when it was readied").stem;
        let function = self.modules[stem].get_function(name).map_err(refused)?;
        if kernel.shared_bytes > USUAL_SHARED_BYTES {
            // SAFETY: the function is of a loaded module.
            let code = unsafe {
                cust::sys::cuFuncSetAttribute(
                    function.to_raw(),
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    kernel.shared_bytes as i32,
                )
            };
            if code != cust::sys::cudaError_enum::CUDA_SUCCESS {
                return Err(Error::kernel(format!(
                    "kernel {name} through cust: {} bytes of shared memory are refused ({code:?})",
                    kernel.shared_bytes
                )));
            }
        }
        let values: Vec<*mut c_void> = arguments.iter().map(CustArgument::value).collect();
        let threads = kernel.threads.unwrap_or(32);
        // SAFETY: number and types of the arguments were just checked against the entry point's signature; what the
        // pointers lead to is the caller's promise.
        unsafe {
            stream.launch(
                &function,
                (grid[0], grid[1], grid[2]),
                threads,
                kernel.shared_bytes,
                &values,
            )
        }
        .map_err(refused)
    }

    /// Loads the image of a kernel and learns what the kernel takes, once.
    fn ready(&mut self, name: &str) -> Result<()> {
        if self.kernels.contains_key(name) {
            return Ok(());
        }
        let entry = entry(name).ok_or_else(|| {
            Error::kernel(format!(
                "kernel {name} is not in the table of the kernels of cuda/"
            ))
        })?;
        if !self.modules.contains_key(entry.stem) {
            let image = self
                .images
                .iter()
                .find(|image| image.stem == entry.stem)
                .ok_or_else(|| {
                    Error::kernel(format!(
                        "the image of cuda/{}.cu is not part of this program",
                        entry.stem
                    ))
                })?;
            let module = CurrentContext::set_current(&self.context)
                .and_then(|()| Module::from_fatbin(image.fatbin, &[]))
                .map_err(|problem| {
                    Error::kernel(format!(
                        "the image of cuda/{}.cu does not load through cust: {problem}",
                        entry.stem
                    ))
                })?;
            self.modules.insert(entry.stem, module);
        }
        self.kernels
            .insert(name.to_owned(), self.emulator.kernel(name)?);
        Ok(())
    }
}

/// Runs `program` once, each of its kernels through the first launcher and again through cust, from the same memory, and
/// compares what both leave in all that the kernel may write. `write` writes the program's inputs. Returns how many
/// launches were compared.
///
/// # Errors
/// [`Error::Kernel`] at the first launch whose bits differ, with its arguments and the first byte that does; and what
/// loading and running report.
pub fn compare(
    executor: &CudaExecutor,
    launcher: &mut CustLauncher,
    program: Arc<Program>,
    write: impl FnOnce(&mut dyn Session) -> Result<()>,
) -> Result<usize> {
    let mut session = executor.load_session(program)?;
    write(&mut session)?;
    session.submit_inputs()?;
    let stream = launcher.stream()?;
    let mut compared = 0;
    for launch in session.launches.iter().flatten() {
        // cust has no tensor maps: such a launch is the first launcher's alone.
        let has_map =
            |argument: &ResolvedArgument| matches!(argument, ResolvedArgument::TensorMap(..));
        if launch.arguments.iter().any(has_map) {
            session.run_launch(launch)?;
            continue;
        }
        let before = contents(&session, launch)?;
        session.run_launch(launch)?;
        let first = contents(&session, launch)?;
        // A kernel may read what it writes: the second launcher has to start from the bytes that the first one found.
        for (range, bytes) in &before {
            session
                .memory
                .space(range.space)
                .upload(range.offset, bytes)?;
        }
        let arguments: Vec<CustArgument> = launch
            .arguments
            .iter()
            .map(|argument| in_terms_of_cust(&session, argument))
            .collect();
        // SAFETY: the first launcher checked every pointer against the session's arenas, which live and which nobody else
        // uses: both launchers are waited for.
        unsafe { launcher.launch(&stream, launch.kernel.entry.name, launch.grid, &arguments)? };
        stream
            .synchronize()
            .map_err(|problem| Error::kernel(format!("{launch} through cust: {problem}")))?;
        let second = contents(&session, launch)?;
        for ((range, first), (_, second)) in first.iter().zip(&second) {
            if let Some(byte) = first.iter().zip(second).position(|(a, b)| a != b) {
                return Err(Error::kernel(format!(
                    "{launch}: byte {byte} of the {} bytes of {} it may write is {} by the first launcher and {} by cust",
                    range.bytes, range.element, first[byte], second[byte]
                )));
            }
        }
        compared += 1;
    }
    Ok(compared)
}

/// The table's entry of `name`, if there is such a kernel.
fn entry(name: &str) -> Option<&'static KernelEntry> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// What lies in all that a launch may write.
fn contents(session: &CudaSession, launch: &PreparedLaunch) -> Result<Vec<(ByteRange, Vec<u8>)>> {
    launch
        .written()
        .map(|range| {
            let mut bytes = vec![0; range.bytes];
            session
                .memory
                .space(range.space)
                .download(range.offset, &mut bytes)?;
            Ok((range, bytes))
        })
        .collect()
}

fn in_terms_of_cust(session: &CudaSession, argument: &ResolvedArgument) -> CustArgument {
    match *argument {
        ResolvedArgument::Null => CustArgument::Null,
        ResolvedArgument::I32(value) => CustArgument::I32(value),
        ResolvedArgument::I64(value) => CustArgument::I64(value),
        ResolvedArgument::F32(value) => CustArgument::F32(value),
        ResolvedArgument::ByteRange(range) => CustArgument::Pointer {
            start: DevicePointer::from_raw(session.memory.space(range.space).address())
                .wrapping_add(range.offset),
            element: range.element.into(),
        },
        ResolvedArgument::TensorMap(..) => unreachable!("left to the first launcher"),
    }
}
