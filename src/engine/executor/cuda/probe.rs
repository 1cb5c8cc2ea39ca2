//! Is there a GPU that can run our kernels? Every way in which there is not becomes one sentence.
//!
//! cudarc panics when the driver's library is absent or lacks a function, so every function that is ever called is looked
//! up here first. Result codes are read as plain numbers: a newer driver may return one that the bindings do not know.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use cudarc::driver::sys;

use super::super::kernel_table;
use keel_base::error::{Error, Result};

/// CUDA 13.0, which the images are made with and whose functions are called: drivers from 580 on.
const OLDEST_DRIVER: i32 = 13_000;

/// Ampere: asynchronous copies, and matrix instructions that take bf16.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// Every driver function that this program calls, apart from the two it needs to learn the driver's version.
const FUNCTIONS: [&str; 45] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleGetGlobal_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuDriverGetVersion",
];

/// A GPU that can run our kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number among the visible devices.
    pub ordinal: i32,
    /// What its maker calls it.
    pub name: String,
    /// Major and minor number.
    pub compute_capability: (i32, i32),
    /// The CUDA version of the driver, for example 13000.
    pub driver: i32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// The highest clock in kHz.
    pub clock_khz: i32,
    /// Bytes of shared memory a block may ask for.
    pub shared_limit: u32,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(
            f,
            "{}, {:.0} GiB, sm_{major}{minor}, driver for CUDA {}",
            self.name,
            self.memory_bytes as f64 / f64::from(1 << 30),
            version(self.driver)
        )
    }
}

/// Looks for a driver and the first visible GPU that can run our kernels, and for code for it in this program. It starts
/// nothing that needs ending.
///
/// # Errors
/// As [`probe_driver`], and [`Error::Device`] when this program was built without nvcc.
pub fn probe() -> Result<Found> {
    let found = probe_driver()?;
    if kernel_table::IMAGES.is_empty() {
        return Err(unusable(
            format!(
                "there is a GPU ({found}), but this program was built without nvcc and holds no code for it"
            ),
            "install one with `cargo tool nvcc` and build again, or choose --device cpu",
        ));
    }
    Ok(found)
}

/// As [`probe`], whether or not this program holds code for a GPU.
///
/// # Errors
/// [`Error::Device`]: no library, one without the functions, the toolkit's stub, a driver that fails to start or is too
/// old, no device, no device of compute capability 8.0.
pub fn probe_driver() -> Result<Found> {
    // SAFETY: opening a library runs its initialisers; this one is the driver the system's owner installed.
    if !unsafe { sys::is_culib_present() } {
        return Err(unusable(
            "no CUDA driver library (libcuda.so.1) can be loaded",
            "install the NVIDIA driver, 580 or newer, or choose --device cpu",
        ));
    }
    let driver = Functions::new()?;
    driver.start()?;
    driver.first_device()
}

pub(super) fn unusable(problem: impl ToString, remedy: impl ToString) -> Error {
    Error::Device {
        device: "cuda".to_owned(),
        problem: problem.to_string(),
        remedy: remedy.to_string(),
    }
}

/// `13.0` for 13000.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

type Init = unsafe extern "C" fn(flags: u32) -> c_int;
type GetNumber = unsafe extern "C" fn(number: *mut c_int) -> c_int;
type GetByOrdinal = unsafe extern "C" fn(device: *mut c_int, ordinal: c_int) -> c_int;
type GetName = unsafe extern "C" fn(name: *mut c_char, length: c_int, device: c_int) -> c_int;
type GetAttribute =
    unsafe extern "C" fn(value: *mut c_int, attribute: c_int, device: c_int) -> c_int;
type GetBytes = unsafe extern "C" fn(bytes: *mut usize, device: c_int) -> c_int;
type GetErrorName = unsafe extern "C" fn(code: c_int, name: *mut *const c_char) -> c_int;

/// A function of the driver's library, which must have it.
fn function<F: Copy>(name: &str) -> Result<F> {
    // SAFETY: the library is present, so that it can be opened; the callers name the type the driver's documentation gives.
    unsafe { sys::culib().get::<F>(name.as_bytes()) }
        .map(|function| *function)
        .map_err(|_| {
            unusable(
                format!("the CUDA driver library lacks the function {name}"),
                "install the NVIDIA driver, 580 or newer, and see that no other libcuda stands before it in LD_LIBRARY_PATH",
            )
        })
}

/// The functions that look around, with plain numbers as results.
struct Functions {
    init: Init,
    driver_version: GetNumber,
}

impl Functions {
    fn new() -> Result<Functions> {
        Ok(Functions {
            init: function("cuInit")?,
            driver_version: function("cuDriverGetVersion")?,
        })
    }

    /// Starts the driver, holds it to the oldest version, and sees that it has every function.
    fn start(&self) -> Result<()> {
        // SAFETY: the function takes flags, which must be 0.
        let code = unsafe { (self.init)(0) };
        if code != 0 {
            let name = error_name(code);
            let (problem, remedy) = match code {
                34 => (
                    "the CUDA driver library is the toolkit's stub, which has no driver behind it",
                    "take the folder of stubs out of LD_LIBRARY_PATH",
                ),
                100 => (
                    "the CUDA driver sees no device",
                    "see whether CUDA_VISIBLE_DEVICES hides it, or choose --device cpu",
                ),
                803 => (
                    "the CUDA driver library and the kernel's driver are of different versions",
                    "restart the machine or load the new kernel module",
                ),
                _ => (
                    "the CUDA driver does not start",
                    "see what `nvidia-smi` says, or choose --device cpu",
                ),
            };
            return Err(unusable(format!("{problem} ({name})"), remedy));
        }
        let mut number = 0;
        // SAFETY: the pointer is to a live integer.
        self.check(unsafe { (self.driver_version)(&mut number) })?;
        if number < OLDEST_DRIVER {
            return Err(unusable(
                format!(
                    "the driver knows CUDA {}, and the kernels need {}",
                    version(number),
                    version(OLDEST_DRIVER)
                ),
                "install the NVIDIA driver, 580 or newer, or choose --device cpu",
            ));
        }
        for name in FUNCTIONS {
            function::<Init>(name)?;
        }
        Ok(())
    }

    fn check(&self, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        Err(unusable(
            format!(
                "the CUDA driver cannot say what there is ({})",
                error_name(code)
            ),
            "see what `nvidia-smi` says, or choose --device cpu",
        ))
    }

    fn first_device(&self) -> Result<Found> {
        let mut count = 0;
        // SAFETY: the pointer is to a live integer.
        self.check(unsafe { function::<GetNumber>("cuDeviceGetCount")?(&mut count) })?;
        let mut weak = None;
        for ordinal in 0..count {
            let found = self.device(ordinal)?;
            if found.compute_capability >= LEAST_CAPABILITY {
                return Ok(found);
            }
            weak.get_or_insert(found);
        }
        let Some(weak) = weak else {
            return Err(unusable(
                "the CUDA driver sees no device",
                "see whether CUDA_VISIBLE_DEVICES hides it, or choose --device cpu",
            ));
        };
        let ((major, minor), (want_major, want_minor)) =
            (weak.compute_capability, LEAST_CAPABILITY);
        Err(unusable(
            format!(
                "the {} has compute capability {major}.{minor}, and the kernels need {want_major}.{want_minor}",
                weak.name
            ),
            "use a GPU of the Ampere generation or newer, or choose --device cpu",
        ))
    }

    fn device(&self, ordinal: i32) -> Result<Found> {
        let mut device = 0;
        let mut name = [0; 128];
        let mut memory_bytes = 0;
        let mut driver = 0;
        // SAFETY: every pointer is to a live value; the name's length is given, one less so that it ends in zero.
        unsafe {
            self.check(function::<GetByOrdinal>("cuDeviceGet")?(
                &mut device,
                ordinal,
            ))?;
            let length = name.len() as c_int - 1;
            self.check(function::<GetName>("cuDeviceGetName")?(
                name.as_mut_ptr(),
                length,
                device,
            ))?;
            self.check(function::<GetBytes>("cuDeviceTotalMem_v2")?(
                &mut memory_bytes,
                device,
            ))?;
            self.check((self.driver_version)(&mut driver))?;
        }
        let get = function::<GetAttribute>("cuDeviceGetAttribute")?;
        let attribute = |which: sys::CUdevice_attribute| -> Result<i32> {
            let mut value = 0;
            // SAFETY: the pointer is to a live integer, and the device was just found.
            self.check(unsafe { get(&mut value, which as c_int, device) })?;
            Ok(value)
        };
        use sys::CUdevice_attribute as Attribute;
        // SAFETY: the array ends in a zero that the driver was not allowed to overwrite.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(Found {
            ordinal,
            name: name.to_string_lossy().into_owned(),
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            driver,
            memory_bytes: memory_bytes as u64,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
            shared_limit: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )? as u32,
        })
    }
}

/// `CUDA_ERROR_NO_DEVICE, 100`, or the number alone when the driver has no name for it.
fn error_name(code: c_int) -> String {
    let mut name = std::ptr::null();
    if let Ok(get) = function::<GetErrorName>("cuGetErrorName") {
        // SAFETY: the function takes any number and writes a pointer to a constant text, or leaves it null.
        unsafe { get(code, &mut name) };
    }
    if name.is_null() {
        return format!("code {code}");
    }
    // SAFETY: the driver's texts end in zero and live as long as its library, which is never closed.
    let name = unsafe { CStr::from_ptr(name) };
    format!("{}, {code}", name.to_string_lossy())
}
