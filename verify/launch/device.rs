//! The CUDA driver as a test's child uses it besides the engine: a stream that computes, memory, copies and a captured graph.
//! Errors are failures of the test.

use std::ffi::{c_int, c_uint, c_void};

use libloading::{Library, Symbol};

type Handle = *mut c_void;

/// The driver that the loader finds.
pub struct Device {
    library: Library,
    /// The stream that computes.
    stream: Handle,
}

impl Device {
    /// In a thread whose context is current.
    pub fn new() -> Device {
        // SAFETY: the stand-in driver's initialisers touch nothing of this program.
        let library = unsafe { Library::new("libcuda.so.1") }.expect("the test put it there");
        let mut device = Device {
            library,
            stream: std::ptr::null_mut(),
        };
        let mut stream = std::ptr::null_mut();
        // SAFETY: by cuda.h; writes one pointer.
        device.check("cuStreamCreate", unsafe {
            let create: Symbol<unsafe extern "C" fn(*mut Handle, c_uint) -> c_int> =
                device.function("cuStreamCreate");
            create(&mut stream, 1)
        });
        device.stream = stream;
        device
    }

    /// # Safety
    /// `T` is the function's type.
    unsafe fn function<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: as the caller promises.
        unsafe { self.library.get(name.as_bytes()) }.expect("the driver has it")
    }

    fn check(&self, call: &str, code: c_int) {
        assert_eq!(code, 0, "{call}");
    }

    /// The stream that computes, as engines take it.
    pub fn stream(&self) -> usize {
        self.stream as usize
    }

    /// Memory of the device, which stays until the process ends.
    pub fn allocate(&self, bytes: usize) -> u64 {
        let mut address = 0;
        // SAFETY: by cuda.h; writes one address.
        let code = unsafe {
            let allocate: Symbol<unsafe extern "C" fn(*mut u64, usize) -> c_int> =
                self.function("cuMemAlloc_v2");
            allocate(&mut address, bytes.max(1))
        };
        self.check("cuMemAlloc", code);
        address
    }

    /// Queues what memory is to hold; the bytes may go at once.
    pub fn write(&self, to: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // SAFETY: by cuda.h; the driver refuses what is not the device's, and keeps a copy of memory that is not pinned.
        let code = unsafe {
            let copy: Symbol<unsafe extern "C" fn(u64, *const u8, usize, Handle) -> c_int> =
                self.function("cuMemcpyHtoDAsync_v2");
            copy(to, bytes.as_ptr(), bytes.len(), self.stream)
        };
        self.check("cuMemcpyHtoDAsync", code);
    }

    /// Reads memory once the stream's work is done.
    pub fn read(&self, from: u64, bytes: usize) -> Vec<u8> {
        self.wait();
        let mut found = vec![0; bytes];
        if bytes > 0 {
            // SAFETY: by cuda.h; writes as many bytes as the vector has.
            let code = unsafe {
                let copy: Symbol<unsafe extern "C" fn(*mut u8, u64, usize) -> c_int> =
                    self.function("cuMemcpyDtoH_v2");
                copy(found.as_mut_ptr(), from, bytes)
            };
            self.check("cuMemcpyDtoH", code);
        }
        found
    }

    /// Queues a copy within the device's memory.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) {
        // SAFETY: by cuda.h; the driver refuses what is not the device's.
        let code = unsafe {
            let copy: Symbol<unsafe extern "C" fn(u64, u64, usize, Handle) -> c_int> =
                self.function("cuMemcpyDtoDAsync_v2");
            copy(to, from, bytes, self.stream)
        };
        self.check("cuMemcpyDtoDAsync", code);
    }

    /// Waits for the stream.
    pub fn wait(&self) {
        // SAFETY: by cuda.h; the stream is this value's.
        let code = unsafe {
            let wait: Symbol<unsafe extern "C" fn(Handle) -> c_int> =
                self.function("cuStreamSynchronize");
            wait(self.stream)
        };
        self.check("cuStreamSynchronize", code);
    }

    /// What `work` queues, as a graph; an error is the code of the call that ends the capture.
    pub fn capture(&self, work: impl FnOnce()) -> Result<Graph<'_>, c_int> {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: by cuda.h; each call writes one pointer, and a graph is instantiated where there is one.
        unsafe {
            let begin: Symbol<unsafe extern "C" fn(Handle, c_int) -> c_int> =
                self.function("cuStreamBeginCapture_v2");
            // Of this thread, as the executor captures.
            self.check("cuStreamBeginCapture", begin(self.stream, 1));
            work();
            let end: Symbol<unsafe extern "C" fn(Handle, *mut Handle) -> c_int> =
                self.function("cuStreamEndCapture");
            match end(self.stream, &mut graph) {
                0 => {}
                code => return Err(code),
            }
            let instantiate: Symbol<unsafe extern "C" fn(*mut Handle, Handle, u64) -> c_int> =
                self.function("cuGraphInstantiateWithFlags");
            self.check("cuGraphInstantiate", instantiate(&mut executable, graph, 0));
        }
        Ok(Graph {
            device: self,
            executable,
        })
    }
}

/// A captured graph.
pub struct Graph<'a> {
    device: &'a Device,
    executable: Handle,
}

impl Graph<'_> {
    /// Queues it.
    pub fn launch(&self) {
        // SAFETY: by cuda.h; graph and stream are alive.
        let code = unsafe {
            let launch: Symbol<unsafe extern "C" fn(Handle, Handle) -> c_int> =
                self.device.function("cuGraphLaunch");
            launch(self.executable, self.device.stream)
        };
        self.device.check("cuGraphLaunch", code);
    }
}
