//! The clock that the multiprocessors run at while they work, from NVIDIA's management library. It is part of every driver,
//! and often far below the highest clock that the driver names: power and temperature decide.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::gpu::Handle;

/// At most one look in this time: it costs the host some tens of microseconds.
const INTERVAL: Duration = Duration::from_millis(500);

/// NVML_CLOCK_SM.
const SM: c_uint = 1;

type GetClock = unsafe extern "C" fn(*mut c_void, c_uint, *mut c_uint) -> c_int;

/// See the module's documentation.
pub(super) struct Clock {
    get: GetClock,
    device: Handle<c_void>,
    seen: Mutex<Seen>,
    /// Never closed while its functions are in use: it goes with this value.
    _library: libloading::Library,
}

/// What the looks at the clock have shown.
#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    looks: u64,
    megahertz: u64,
}

impl Clock {
    /// Of the device at `bus_id`; `None` where there is no such library, or it does not know the device.
    pub fn of(bus_id: &str) -> Option<Clock> {
        if bus_id.is_empty() {
            return None;
        }
        let id = CString::new(bus_id).ok()?;
        // SAFETY: opening a library runs its initialisers; this one belongs to the installed driver.
        let library = unsafe { libloading::Library::new("libnvidia-ml.so.1") }.ok()?;
        type Init = unsafe extern "C" fn() -> c_int;
        type GetHandle = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
        // SAFETY: the functions have these types by the library's documentation. The text ends in zero and the pointer is
        // to a live value. The library counts its initialisations; without a shutdown it stays ready until the process ends.
        unsafe {
            let init = *library.get::<Init>(b"nvmlInit_v2").ok()?;
            let get_handle = *library
                .get::<GetHandle>(b"nvmlDeviceGetHandleByPciBusId_v2")
                .ok()?;
            let get = *library.get::<GetClock>(b"nvmlDeviceGetClockInfo").ok()?;
            let mut device = std::ptr::null_mut();
            if init() != 0 || get_handle(id.as_ptr(), &mut device) != 0 {
                return None;
            }
            Some(Clock {
                get,
                device: Handle(device),
                seen: Mutex::default(),
                _library: library,
            })
        }
    }

    /// Whether the last look is long enough ago for another.
    pub fn is_due(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.last.is_none_or(|last| last.elapsed() >= INTERVAL)
    }

    /// Looks at the clock now. Call it while the device works.
    pub fn look(&self) {
        let mut megahertz = 0;
        // SAFETY: the library is open and knows the device; the pointer is to a live number.
        let code = unsafe { (self.get)(self.device.0, SM, &mut megahertz) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.last = Some(Instant::now());
        if code == 0 && megahertz > 0 {
            seen.looks += 1;
            seen.megahertz += u64::from(megahertz);
        }
    }

    /// The mean of what was seen, Hz; `None` before the first look.
    pub fn mean(&self) -> Option<f64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.looks > 0).then(|| 1e6 * seen.megahertz as f64 / seen.looks as f64)
    }
}
