//! The few functions of the CUDA driver that an engine on a GPU needs. The device's context, its programs and their memory are the
//! engine's that computes; here are only a stream and events.

use std::ffi::{c_char, c_int, c_uint, c_void};

use libloading::Library as Loaded;

use super::library::words;
use keel_base::error::{Error, Result};

/// A handle of the driver.
pub(super) type Handle = *mut c_void;

/// The driver's names, in the order in which they are tried.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// A stream that does not wait for the stream without a name, nor that for it.
const NON_BLOCKING: c_uint = 1;

/// An event without a time.
const WITHOUT_TIME: c_uint = 2;

/// The driver, loaded.
pub(super) struct Driver {
    init: unsafe extern "C" fn(c_uint) -> c_int,
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    device_uuid: unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int,
    context_retain: unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
    context_release: unsafe extern "C" fn(c_int) -> c_int,
    context_set: unsafe extern "C" fn(Handle) -> c_int,
    stream_create: unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    stream_destroy: unsafe extern "C" fn(Handle) -> c_int,
    stream_synchronize: unsafe extern "C" fn(Handle) -> c_int,
    stream_wait_event: unsafe extern "C" fn(Handle, Handle, c_uint) -> c_int,
    event_create: unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    event_destroy: unsafe extern "C" fn(Handle) -> c_int,
    event_record: unsafe extern "C" fn(Handle, Handle) -> c_int,
    allocate: unsafe extern "C" fn(*mut u64, usize) -> c_int,
    free: unsafe extern "C" fn(u64) -> c_int,
    error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    /// Keeps the functions where they are.
    _loaded: Loaded,
}

fn unusable(problem: impl ToString) -> Error {
    Error::Device {
        device: "cuda".to_owned(),
        problem: problem.to_string(),
        remedy:
            "see with `nvidia-smi` whether the driver is there and another program holds the GPU"
                .to_owned(),
    }
}

impl Driver {
    /// Loads it.
    pub fn load() -> Result<Driver> {
        let mut problems = Vec::new();
        for name in NAMES {
            // SAFETY: loading runs the library's initialisers; the driver's only prepare it.
            match unsafe { Loaded::new(name) } {
                Ok(loaded) => return Driver::of(loaded),
                Err(problem) => problems.push(format!("{name}: {}", words(&problem))),
            }
        }
        Err(unusable(format!(
            "no driver can be loaded ({})",
            problems.join("; ")
        )))
    }

    fn of(loaded: Loaded) -> Result<Driver> {
        let missing = |symbol: &str| unusable(format!("the driver has no function {symbol}"));
        macro_rules! function {
            ($symbol:literal) => {
                // SAFETY: a symbol of this name has this type, by cuda.h of all versions from 12 on, and stays as long as the
                // library, which is kept beside it.
                *unsafe { loaded.get(concat!($symbol, "\0").as_bytes()) }
                    .map_err(|_| missing($symbol))?
            };
        }
        let driver = Driver {
            init: function!("cuInit"),
            device_get: function!("cuDeviceGet"),
            device_uuid: function!("cuDeviceGetUuid_v2"),
            context_retain: function!("cuDevicePrimaryCtxRetain"),
            context_release: function!("cuDevicePrimaryCtxRelease_v2"),
            context_set: function!("cuCtxSetCurrent"),
            stream_create: function!("cuStreamCreate"),
            stream_destroy: function!("cuStreamDestroy_v2"),
            stream_synchronize: function!("cuStreamSynchronize"),
            stream_wait_event: function!("cuStreamWaitEvent"),
            event_create: function!("cuEventCreate"),
            event_destroy: function!("cuEventDestroy_v2"),
            event_record: function!("cuEventRecord"),
            allocate: function!("cuMemAlloc_v2"),
            free: function!("cuMemFree_v2"),
            error_name: function!("cuGetErrorName"),
            _loaded: loaded,
        };
        // SAFETY: takes only its flags.
        driver.check(unsafe { (driver.init)(0) }, "cuInit")?;
        Ok(driver)
    }

    fn check(&self, code: c_int, call: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: writes one pointer, to a text that stays as long as the driver; null for a code it does not know.
        let name = unsafe {
            (self.error_name)(code, &mut name);
            super::library::text(name)
        };
        let name = name.unwrap_or_else(|| format!("code {code}"));
        Err(unusable(format!("{call}: {name}")))
    }

    /// A device by its ordinal.
    pub fn device(&self, ordinal: i32) -> Result<c_int> {
        let mut device = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (self.device_get)(&mut device, ordinal) };
        self.check(code, "cuDeviceGet").map(|()| device)
    }

    /// What no other device has.
    pub fn uuid(&self, device: c_int) -> Result<[u8; 16]> {
        let mut uuid = [0; 16];
        // SAFETY: writes 16 bytes.
        let code = unsafe { (self.device_uuid)(&mut uuid, device) };
        self.check(code, "cuDeviceGetUuid").map(|()| uuid)
    }

    /// The device's context, with a reference of its own, current on this thread.
    pub fn retain(&self, device: c_int) -> Result<Handle> {
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        let code = unsafe { (self.context_retain)(&mut context, device) };
        self.check(code, "cuDevicePrimaryCtxRetain")?;
        self.bind(context).map(|()| context)
    }

    /// Makes a context that is held current on this thread.
    pub fn bind(&self, context: Handle) -> Result<()> {
        // SAFETY: whoever has the handle holds a reference to it.
        self.check(unsafe { (self.context_set)(context) }, "cuCtxSetCurrent")
    }

    /// Gives a reference back.
    pub fn release(&self, device: c_int) -> Result<()> {
        // SAFETY: `retain` took it, and what was made in it is gone.
        self.check(
            unsafe { (self.context_release)(device) },
            "cuDevicePrimaryCtxRelease",
        )
    }

    /// A stream that waits for nothing but events.
    pub fn stream(&self) -> Result<Handle> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        let code = unsafe { (self.stream_create)(&mut stream, NON_BLOCKING) };
        self.check(code, "cuStreamCreate").map(|()| stream)
    }

    /// Waits for everything that is queued on a stream.
    pub fn synchronize(&self, stream: Handle) -> Result<()> {
        // SAFETY: whoever has the handle keeps the stream.
        self.check(
            unsafe { (self.stream_synchronize)(stream) },
            "cuStreamSynchronize",
        )
    }

    /// Ends a stream.
    pub fn end_stream(&self, stream: Handle) -> Result<()> {
        // SAFETY: `stream` made it, and it is not used again.
        self.check(unsafe { (self.stream_destroy)(stream) }, "cuStreamDestroy")
    }

    /// A new event.
    pub fn event(&self) -> Result<Handle> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        let code = unsafe { (self.event_create)(&mut event, WITHOUT_TIME) };
        self.check(code, "cuEventCreate").map(|()| event)
    }

    /// Ends an event.
    pub fn end_event(&self, event: Handle) -> Result<()> {
        // SAFETY: `event` made it, and it is not used again.
        self.check(unsafe { (self.event_destroy)(event) }, "cuEventDestroy")
    }

    /// Records an event behind what is queued on a stream.
    pub fn record(&self, event: Handle, stream: Handle) -> Result<()> {
        // SAFETY: whoever has the handles keeps both.
        self.check(
            unsafe { (self.event_record)(event, stream) },
            "cuEventRecord",
        )
    }

    /// Makes what will be queued on a stream wait for an event.
    pub fn wait_for(&self, event: Handle, stream: Handle) -> Result<()> {
        // SAFETY: as in `record`.
        let code = unsafe { (self.stream_wait_event)(stream, event, 0) };
        self.check(code, "cuStreamWaitEvent")
    }

    /// Device memory.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: writes one address.
        let code = unsafe { (self.allocate)(&mut address, bytes) };
        self.check(code, "cuMemAlloc").map(|()| address)
    }

    /// Gives device memory back.
    pub fn free(&self, address: u64) -> Result<()> {
        // SAFETY: `allocate` gave it, and nothing that uses it is queued.
        self.check(unsafe { (self.free)(address) }, "cuMemFree")
    }
}
