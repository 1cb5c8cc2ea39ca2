//! The kernels of this program on a GPU: images loaded once, entry points found once, each checked against the table's parameters and
//! the chip's limits. How many threads a block has and how much shared memory, the image says itself, so that nothing here
//! depends on what other compilers the building machine had.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::super::kernel_table::{KERNELS, KernelImage};
use super::driver::Code;
use super::gpu::{Gpu, Handle};
use crate::launch::KernelEntry;
use keel_base::error::{Error, Result};

/// Shared memory that a block has without asking for more.
const USUAL_SHARED_BYTES: u32 = 48 * 1024;

/// Threads of a block where the kernel takes any number: one warp.
const ANY_THREADS: u32 = 32;

/// An entry point that may be launched.
pub(super) struct LoadedKernel {
    pub entry: &'static KernelEntry,
    function: Handle<sys::CUfunc_st>,
    pub threads: u32,
    pub shared_bytes: u32,
    /// Keeps the function's image loaded.
    _module: Arc<Module>,
}

impl LoadedKernel {
    /// What the driver launches.
    pub fn function(&self) -> sys::CUfunction {
        self.function.0
    }
}

/// What an image says of a kernel: `keel_block_*` of KERNEL in `cuda/kernel.cuh`.
struct Block {
    threads: u32,
    shared_bytes: u32,
    parameters: u32,
}

/// A loaded image.
struct Module {
    gpu: Arc<Gpu>,
    raw: Handle<sys::CUmod_st>,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: loaded once; every function found in it holds this value.
        unsafe { self.gpu.driver.module_unload(self.raw.0) }.ok();
    }
}

/// See the module's documentation.
pub(super) struct Kernels {
    gpu: Arc<Gpu>,
    images: &'static [KernelImage],
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    modules: HashMap<&'static str, Arc<Module>>,
    kernels: HashMap<&'static str, Arc<LoadedKernel>>,
}

impl Kernels {
    /// None loaded yet.
    pub fn new(gpu: &Arc<Gpu>, images: &'static [KernelImage]) -> Kernels {
        Kernels {
            gpu: gpu.clone(),
            images,
            known: Mutex::default(),
        }
    }

    /// A kernel of the table, ready to launch.
    ///
    /// # Errors
    /// [`Error::Kernel`] when it is not in the table, its image lacks it or was made of another source, or the chip's limits
    /// are below what it needs.
    pub fn load(&self, entry: &'static KernelEntry) -> Result<Arc<LoadedKernel>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // By name and then by entry: tests make entries of their own, which must not be taken for the table's.
        if let Some(kernel) = known.kernels.get(entry.name)
            && kernel.entry == entry
        {
            return Ok(kernel.clone());
        }
        // Launches are checked against the entry's parameters, so it must be the one read from the kernel's source.
        if !KERNELS.contains(entry) {
            return Err(Error::kernel(format!(
                "kernel {entry} is not in the table of the kernels of cuda/; name kernels by the constants of launch::kernels"
            )));
        }
        let module = match known.modules.get(entry.stem) {
            Some(module) => module.clone(),
            None => {
                let module = Arc::new(self.load_image(entry.stem)?);
                known.modules.insert(entry.stem, module.clone());
                module
            }
        };
        let kernel = Arc::new(self.find(entry, module)?);
        known.kernels.insert(entry.name, kernel.clone());
        Ok(kernel)
    }

    fn load_image(&self, stem: &str) -> Result<Module> {
        let image = self.images.iter().find(|image| image.stem == stem).ok_or_else(|| {
            Error::kernel(format!(
                "the image of cuda/{stem}.cu is not part of this program; build it again with nvcc (`cargo tool nvcc`)"
            ))
        })?;
        // Embedded bytes may start anywhere; a driver may expect them at a multiple of eight.
        let mut aligned = vec![0u64; image.fatbin.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut aligned)[..image.fatbin.len()].copy_from_slice(image.fatbin);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image is a whole fatbin that nvcc wrote; the driver takes what it needs before it returns.
        let loaded = unsafe {
            self.gpu
                .driver
                .module_load_data(&mut raw, aligned.as_ptr().cast())
        };
        loaded.map_err(|problem| {
            let (major, minor) = self.gpu.found.compute_capability;
            Error::kernel(format!(
                "the image of cuda/{stem}.cu does not load on the {} (sm_{major}{minor}): {problem}; build this program \
                 again, or update the driver",
                self.gpu.found.name
            ))
        })?;
        Ok(Module {
            gpu: self.gpu.clone(),
            raw: Handle(raw),
        })
    }

    fn find(&self, entry: &'static KernelEntry, module: Arc<Module>) -> Result<LoadedKernel> {
        let KernelEntry {
            name: wanted, stem, ..
        } = entry;
        let text = |name: &str| CString::new(name).expect("C++ identifiers hold no zero");
        let missing = |what: &str, problem: Code| {
            Error::kernel(format!(
                "kernel {wanted}: the image of cuda/{stem}.cu lacks {what} ({problem}); build this program again"
            ))
        };
        let driver = self.gpu.driver;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and held by the value made here; name and pointer are of live values.
        unsafe {
            let name = text(wanted);
            driver.module_get_function(&mut function, module.raw.0, name.as_ptr())
        }
        .map_err(|problem| missing("its entry point", problem))?;
        // A driver may load a function's code when it is first launched, which no step that is captured or timed may wait
        // for (CUDA Programming Guide, "Lazy Loading").
        // SAFETY: as above.
        unsafe { driver.func_load(function) }
            .map_err(|problem| missing("code that can be loaded", problem))?;
        let block = self
            .block_in_image(&module, text(&format!("keel_block_{wanted}")))
            .map_err(|problem| missing("the size of its blocks", problem))?;
        if block.parameters as usize != entry.parameters.len() {
            return Err(Error::kernel(format!(
                "kernel {wanted}: by the image of cuda/{stem}.cu it takes {} parameters, by the table {}; they are not of \
                 one source, so build this program again",
                block.parameters,
                entry.parameters.len()
            )));
        }
        let kernel = LoadedKernel {
            entry,
            function: Handle(function),
            threads: if block.threads == 0 {
                ANY_THREADS
            } else {
                block.threads
            },
            shared_bytes: block.shared_bytes,
            _module: module,
        };
        self.hold_to_limits(&kernel)?;
        Ok(kernel)
    }

    fn block_in_image(&self, module: &Module, name: CString) -> Result<Block, Code> {
        let (driver, stream) = (self.gpu.driver, self.gpu.compute());
        let mut numbers = [0u32; 3];
        let (mut address, mut length) = (0, 0);
        // SAFETY: the module is loaded, and all pointers are to live values; the constant is three 32-bit numbers (KERNEL in
        // cuda/kernel.cuh), and one of another length is refused before it is copied. The stream is waited for.
        unsafe {
            driver.module_get_global(&mut address, &mut length, module.raw.0, name.as_ptr())?;
            if length != size_of_val(&numbers) {
                return Err(Code::INVALID_VALUE);
            }
            driver.memcpy_dtoh_async(numbers.as_mut_ptr().cast(), address, length, stream)?;
            driver.stream_synchronize(stream)?;
        }
        let [threads, shared_bytes, parameters] = numbers;
        Ok(Block {
            threads,
            shared_bytes,
            parameters,
        })
    }

    /// Asks for shared memory beyond the usual, and refuses what the chip cannot give.
    fn hold_to_limits(&self, kernel: &LoadedKernel) -> Result<()> {
        use sys::CUfunction_attribute_enum as Attribute;
        let (driver, found) = (self.gpu.driver, &self.gpu.found);
        let refused = |what: &str, problem: Code| {
            Error::kernel(format!(
                "kernel {}: the {} {what} ({problem}); build this program again, or update the driver",
                kernel.entry, found.name
            ))
        };
        let attribute = |which: Attribute| {
            let mut value = 0;
            // SAFETY: the function is of a loaded module; the pointer is to a live number.
            unsafe { driver.func_get_attribute(&mut value, which as i32, kernel.function()) }
                .map(|()| value)
                .map_err(|problem| refused("does not say what it takes", problem))
        };
        let most = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        if i64::from(kernel.threads) > i64::from(most) {
            return Err(Error::kernel(format!(
                "kernel {}: it is written for blocks of {} threads, but on the {} it may have at most {most}",
                kernel.entry, kernel.threads, found.name
            )));
        }
        // What the source declares without naming a size at launch counts towards the chip's limit too.
        let fixed = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as u32;
        let needed = kernel.shared_bytes + fixed;
        if needed > found.shared_limit {
            return Err(Error::kernel(format!(
                "kernel {}: it needs {needed} bytes of shared memory, but a block on the {} may have at most {}",
                kernel.entry, found.name, found.shared_limit
            )));
        }
        if needed > USUAL_SHARED_BYTES {
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as i32;
            let bytes = kernel.shared_bytes as i32;
            // SAFETY: as above; the size is within the chip's limit.
            unsafe { driver.func_set_attribute(kernel.function(), which, bytes) }
                .map_err(|problem| refused("refuses the shared memory it needs", problem))?;
        }
        Ok(())
    }
}
