//! The driver's functions, looked up once in the library that is installed.
//!
//! Their results are plain numbers here. A newer driver may return a code that no list of today has, and in cudarc's
//! bindings a code is an enum, for which any other number is undefined behaviour; of cudarc only the library, the types of
//! handles and the numbers of attributes are used.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys;
use sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream,
};

use super::super::kernel_table::{IMAGES, KernelImage};
use super::probe::unusable;
use keel_base::error::{Error, Result};

/// CUDA 12.0: every function below is older. What the images need may be newer ([`super::probe`]).
pub(super) const OLDEST_DRIVER: i32 = 12_000;

/// What a function of the driver returned, where it was not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub c_int);

impl Code {
    /// Not a failure: work is still under way.
    pub const NOT_READY: Code = Code(600);
    /// What this program itself finds wrong with an image.
    pub const INVALID_VALUE: Code = Code(1);

    fn of(number: c_int) -> Result<(), Code> {
        match number {
            0 => Ok(()),
            number => Err(Code(number)),
        }
    }

    /// Whether it is about capturing alone: codes 900 to 909. Any other says that the launch itself is wrong.
    pub fn is_about_capturing(self) -> bool {
        (900..910).contains(&self.0)
    }
}

impl fmt::Display for Code {
    /// What the driver calls it, the number, and what the driver says of it: `CUDA_ERROR_NO_DEVICE (100, no device …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        let (name, meaning) = match DRIVER.get() {
            Some(driver) => (
                text(driver.get_error_name, number),
                text(driver.get_error_string, number),
            ),
            // Before all functions are known: a driver that does not start.
            None => (
                find("cuGetErrorName").and_then(|get| text(get, number)),
                find("cuGetErrorString").and_then(|get| text(get, number)),
            ),
        };
        match (name, meaning) {
            (None, _) => write!(f, "CUDA error {number}"),
            (Some(name), Some(meaning)) if meaning != name => {
                write!(f, "{name} ({number}, {meaning})")
            }
            (Some(name), _) => write!(f, "{name} ({number})"),
        }
    }
}

type Text = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// What the driver's function says of a code; nothing for one that it does not know.
fn text(get: Text, code: c_int) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the function takes any number and writes a pointer to a constant text, or leaves it null.
    unsafe { get(code, &mut text) };
    if text.is_null() {
        return None;
    }
    // SAFETY: the driver's texts end in zero and live as long as its library, which is never closed.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// A function of the driver's library, if it has it. The library must be known to be present.
fn find<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: the library is present, so that it can be opened; the callers name the type the driver's documentation gives.
    let found = unsafe { sys::culib().get::<F>(name.as_bytes()) };
    found.ok().map(|function| *function)
}

fn require<F: Copy>(name: &str) -> Result<F> {
    find(name).ok_or_else(|| {
        unusable(
            format!("the CUDA driver library lacks the function {name}"),
            format!(
                "install the NVIDIA driver{}, and see that no other libcuda stands before it in LD_LIBRARY_PATH",
                release(needed())
            ),
        )
    })
}

/// Defines the table of functions, and for each a method of the same name that returns a [`Result`].
macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ident: $ty:ty),* $(,)?);)*) => {
        /// Every function that this program calls.
        pub(super) struct Driver {
            get_error_name: Text,
            get_error_string: Text,
            /// From CUDA 12.4 on.
            func_load: Option<unsafe extern "C" fn(CUfunction) -> c_int>,
            $($name: unsafe extern "C" fn($($ty),*) -> c_int,)*
        }

        impl Driver {
            /// # Errors
            /// [`Error::Device`] with the first function that the library lacks.
            fn look_up() -> Result<Driver> {
                Ok(Driver {
                    $($name: require($symbol)?,)*
                    get_error_name: require("cuGetErrorName")?,
                    get_error_string: require("cuGetErrorString")?,
                    func_load: find("cuFuncLoad"),
                })
            }

            $(
                /// # Safety
                /// What the driver's documentation of the function of that name asks for.
                // As many arguments as the driver's function has.
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $name(&self, $($argument: $ty),*) -> Result<(), Code> {
                    // SAFETY: the function has this type, and the caller's promise.
                    Code::of(unsafe { (self.$name)($($argument),*) })
                }
            )*
        }
    };
}

functions! {
    // First, so that a library that is no driver's is named by the function everyone looks for.
    ctx_set_current = "cuCtxSetCurrent"(context: CUcontext);
    device_get = "cuDeviceGet"(device: *mut CUdevice, ordinal: c_int);
    device_get_attribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: c_int, device: CUdevice);
    device_get_count = "cuDeviceGetCount"(count: *mut c_int);
    device_get_name = "cuDeviceGetName"(name: *mut c_char, length: c_int, device: CUdevice);
    device_get_pci_bus_id = "cuDeviceGetPCIBusId"(id: *mut c_char, length: c_int, device: CUdevice);
    device_primary_ctx_release = "cuDevicePrimaryCtxRelease_v2"(device: CUdevice);
    device_primary_ctx_retain = "cuDevicePrimaryCtxRetain"(context: *mut CUcontext, device: CUdevice);
    device_total_mem = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: CUdevice);
    event_create = "cuEventCreate"(event: *mut CUevent, flags: c_uint);
    event_destroy = "cuEventDestroy_v2"(event: CUevent);
    // The name that every driver has; cuEventElapsedTime_v2 came with CUDA 12.8.
    event_elapsed_time = "cuEventElapsedTime"(milliseconds: *mut f32, start: CUevent, end: CUevent);
    event_record = "cuEventRecord"(event: CUevent, stream: CUstream);
    event_synchronize = "cuEventSynchronize"(event: CUevent);
    func_get_attribute = "cuFuncGetAttribute"(value: *mut c_int, attribute: c_int, function: CUfunction);
    func_set_attribute = "cuFuncSetAttribute"(function: CUfunction, attribute: c_int, value: c_int);
    graph_destroy = "cuGraphDestroy"(graph: CUgraph);
    graph_exec_destroy = "cuGraphExecDestroy"(graph: CUgraphExec);
    graph_instantiate = "cuGraphInstantiateWithFlags"(executable: *mut CUgraphExec, graph: CUgraph, flags: u64);
    graph_launch = "cuGraphLaunch"(graph: CUgraphExec, stream: CUstream);
    graph_upload = "cuGraphUpload"(graph: CUgraphExec, stream: CUstream);
    launch_kernel = "cuLaunchKernel"(
        function: CUfunction,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    mem_alloc = "cuMemAlloc_v2"(address: *mut CUdeviceptr, bytes: usize);
    mem_free = "cuMemFree_v2"(address: CUdeviceptr);
    mem_free_host = "cuMemFreeHost"(start: *mut c_void);
    mem_get_info = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    mem_host_alloc = "cuMemHostAlloc"(start: *mut *mut c_void, bytes: usize, flags: c_uint);
    memcpy_dtod_async = "cuMemcpyDtoDAsync_v2"(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2"(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2"(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    memset_d8_async = "cuMemsetD8Async"(to: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    module_get_function = "cuModuleGetFunction"(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    module_get_global = "cuModuleGetGlobal_v2"(address: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char);
    module_load_data = "cuModuleLoadData"(module: *mut CUmodule, image: *const c_void);
    module_unload = "cuModuleUnload"(module: CUmodule);
    tensor_map_encode_tiled = "cuTensorMapEncodeTiled"(
        map: *mut c_void,
        element: c_uint,
        rank: c_uint,
        address: CUdeviceptr,
        dims: *const u64,
        strides: *const u64,
        box_dims: *const c_uint,
        element_strides: *const c_uint,
        interleave: c_uint,
        swizzle: c_uint,
        promotion: c_uint,
        fill: c_uint,
    );
    stream_begin_capture = "cuStreamBeginCapture_v2"(stream: CUstream, mode: c_uint);
    stream_create = "cuStreamCreate"(stream: *mut CUstream, flags: c_uint);
    stream_destroy = "cuStreamDestroy_v2"(stream: CUstream);
    stream_end_capture = "cuStreamEndCapture"(stream: CUstream, graph: *mut CUgraph);
    stream_query = "cuStreamQuery"(stream: CUstream);
    stream_synchronize = "cuStreamSynchronize"(stream: CUstream);
    stream_wait_event = "cuStreamWaitEvent"(stream: CUstream, event: CUevent, flags: c_uint);
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

impl Driver {
    /// The driver that is installed, started. Its version is the second value.
    ///
    /// # Errors
    /// [`Error::Device`]: no library, one without the functions, the toolkit's stub, a driver that fails to start or is too
    /// old.
    pub fn start() -> Result<(&'static Driver, i32)> {
        // SAFETY: opening a library runs its initialisers; this one is the driver the system's owner installed.
        if !unsafe { sys::is_culib_present() } {
            return Err(unusable(
                "no CUDA driver library (libcuda.so.1) can be loaded",
                format!(
                    "install the NVIDIA driver{}, or choose --device cpu",
                    release(needed())
                ),
            ));
        }
        type Init = unsafe extern "C" fn(c_uint) -> c_int;
        type GetNumber = unsafe extern "C" fn(*mut c_int) -> c_int;
        let init: Init = require("cuInit")?;
        let get_version: GetNumber = require("cuDriverGetVersion")?;
        // SAFETY: the function takes flags, which must be 0.
        Code::of(unsafe { init(0) }).map_err(does_not_start)?;
        let mut version = 0;
        // SAFETY: the pointer is to a live integer.
        Code::of(unsafe { get_version(&mut version) }).map_err(cannot_tell)?;
        // Before the functions are looked for: that the driver is old says more than which function it lacks.
        if version < OLDEST_DRIVER {
            return Err(too_old(version, needed()));
        }
        if let Some(driver) = DRIVER.get() {
            return Ok((driver, version));
        }
        let driver = Driver::look_up()?;
        Ok((DRIVER.get_or_init(|| driver), version))
    }

    /// Loads the code of a function now, where the driver loads modules lazily and can be told not to.
    ///
    /// # Safety
    /// The function is of a loaded module.
    pub unsafe fn func_load(&self, function: CUfunction) -> Result<(), Code> {
        match self.func_load {
            // SAFETY: the caller's promise.
            Some(load) => Code::of(unsafe { load(function) }),
            // Drivers before CUDA 12.4 load a function's code when it is looked up.
            None => Ok(()),
        }
    }
}

/// The version of CUDA whose drivers run this program's images on the chips that they hold machine code for.
fn needed() -> i32 {
    machine_code_needs(IMAGES).max(OLDEST_DRIVER)
}

/// The version of CUDA that a driver must be for to run the machine code of images: that of one major version runs on every
/// driver of that version or a later one (CUDA Compatibility, "Minor Version Compatibility").
pub(super) fn machine_code_needs(images: &[KernelImage]) -> i32 {
    let toolkit = images.iter().map(|image| image.toolkit).max();
    toolkit.unwrap_or(0) / 1000 * 1000
}

/// A driver for CUDA `found`, where `needed` is needed.
pub(super) fn too_old(found: i32, needed: i32) -> Error {
    unusable(
        format!(
            "the driver knows CUDA {}, and the kernels need {}",
            version(found),
            version(needed)
        ),
        format!(
            "install the NVIDIA driver{}, or choose --device cpu",
            release(needed)
        ),
    )
}

/// The first release of the driver for a version of CUDA (CUDA Toolkit Release Notes, table "Minimum Required Driver
/// Version").
fn release(cuda: i32) -> String {
    match cuda {
        12_000 => ", 525 or newer".to_owned(),
        13_000 => ", 580 or newer".to_owned(),
        _ => format!(" for CUDA {} or newer", version(cuda)),
    }
}

/// `13.0` for 13000.
pub(super) fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

fn does_not_start(code: Code) -> Error {
    let (problem, remedy) = match code.0 {
        34 => (
            "the CUDA driver library is the toolkit's stub, which has no driver behind it",
            "take the folder of stubs out of LD_LIBRARY_PATH",
        ),
        100 => (NO_DEVICE, SEE_DEVICES),
        802 => (
            "the CUDA driver waits for the fabric that joins the GPUs of this machine",
            "start the service nvidia-fabricmanager, of the driver's own version",
        ),
        803 => (
            "the CUDA driver library and the kernel's driver are of different versions",
            "restart the machine or load the new kernel module",
        ),
        804 => (
            "the CUDA driver library is one for forward compatibility, which this GPU does not allow",
            "take the folder of the compatibility package out of LD_LIBRARY_PATH",
        ),
        _ => (
            "the CUDA driver does not start",
            "see what `nvidia-smi` says, or choose --device cpu",
        ),
    };
    unusable(format!("{problem} ({code})"), remedy)
}

/// What is said where there is a driver and no device.
pub(super) const NO_DEVICE: &str = "the CUDA driver sees no device";
/// And what to do about it.
pub(super) const SEE_DEVICES: &str = "see whether CUDA_VISIBLE_DEVICES hides it or its MIG mode is on without an instance, or choose --device cpu";

/// The words for a driver that started and fails to say what there is.
pub(super) fn cannot_tell(code: Code) -> Error {
    unusable(
        format!("the CUDA driver cannot say what there is ({code})"),
        "see what `nvidia-smi` says, or choose --device cpu",
    )
}
