//! The kernels of this program on a GPU: images loaded once, entry points found once, each held to the signature, the
//! shared memory and the limits it is launched with.

use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::super::kernel_table::{self, KernelImage};
use super::super::simt::{Emulator, Parameter};
use super::gpu::{Gpu, name};
use keel_base::error::{Error, Result};

/// Shared memory that a block has without asking for more.
const USUAL_SHARED_BYTES: u32 = 48 * 1024;

/// Threads of a block where the kernel takes any number: one warp.
const ANY_THREADS: u32 = 32;

/// An entry point that may be launched.
pub(super) struct LoadedKernel {
    pub name: String,
    pub function: sys::CUfunction,
    /// What it takes, from its C++ declaration.
    pub parameters: Vec<Parameter>,
    pub threads: u32,
    pub shared_bytes: u32,
    /// Keeps the function's image loaded.
    _module: Rc<Module>,
}

/// A loaded image.
struct Module {
    gpu: Rc<Gpu>,
    raw: sys::CUmodule,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: loaded once; every function found in it holds this value.
        unsafe { result::module::unload(self.raw) }.ok();
    }
}

/// See the module's documentation.
pub(super) struct Kernels {
    gpu: Rc<Gpu>,
    emulator: Emulator,
    images: &'static [KernelImage],
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    modules: HashMap<&'static str, Rc<Module>>,
    kernels: HashMap<String, Rc<LoadedKernel>>,
}

impl Kernels {
    /// None loaded yet.
    ///
    /// # Errors
    /// When this program lacks the emulator, whose table has the signatures that launches are checked against.
    pub fn new(gpu: &Rc<Gpu>, images: &'static [KernelImage]) -> Result<Kernels> {
        Ok(Kernels {
            gpu: gpu.clone(),
            emulator: Emulator::new()?,
            images,
            known: Mutex::default(),
        })
    }

    /// The kernel called `wanted`, ready to launch.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is none, its image lacks it or was made of another source, or the chip's limits are
    /// below what it needs.
    pub fn load(&self, wanted: &str) -> Result<Rc<LoadedKernel>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = known.kernels.get(wanted) {
            return Ok(kernel.clone());
        }
        let entry = kernel_table::entry(wanted).ok_or_else(|| {
            Error::kernel(format!(
                "kernel {wanted} is not in the table of the kernels of cuda/; see how the op spells it"
            ))
        })?;
        let module = match known.modules.get(entry.stem) {
            Some(module) => module.clone(),
            None => {
                let module = Rc::new(self.load_image(entry.stem)?);
                known.modules.insert(entry.stem, module.clone());
                module
            }
        };
        let kernel = Rc::new(self.find(wanted, entry.stem, module)?);
        known.kernels.insert(wanted.to_owned(), kernel.clone());
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
        // SAFETY: the image is a whole fatbin that nvcc wrote; the driver takes what it needs before it returns.
        let raw = unsafe { result::module::load_data(aligned.as_ptr().cast()) }.map_err(|problem| {
            let (major, minor) = self.gpu.found.compute_capability;
            Error::kernel(format!(
                "the image of cuda/{stem}.cu does not load on the {} (sm_{major}{minor}): {}; build this program again, \
                 or update the driver",
                self.gpu.found.name,
                name(problem)
            ))
        })?;
        Ok(Module {
            gpu: self.gpu.clone(),
            raw,
        })
    }

    fn find(&self, wanted: &str, stem: &str, module: Rc<Module>) -> Result<LoadedKernel> {
        let text = |name: &str| CString::new(name).expect("C++ identifiers hold no zero");
        let missing = |what: &str, problem| {
            Error::kernel(format!(
                "kernel {wanted}: the image of cuda/{stem}.cu lacks {what} ({}); build this program again",
                name(problem)
            ))
        };
        // SAFETY: the module is loaded and held by the value made here.
        let function = unsafe { result::module::get_function(module.raw, text(wanted)) }
            .map_err(|problem| missing("its entry point", problem))?;
        let signature = self.emulator.kernel(wanted)?;
        let in_image = self
            .shared_bytes_in_image(&module, &text(&format!("keel_shared_bytes_{wanted}")))
            .map_err(|problem| missing("its size of shared memory", problem))?;
        let kernel = LoadedKernel {
            name: wanted.to_owned(),
            function,
            parameters: signature.parameters,
            threads: signature.threads.unwrap_or(ANY_THREADS),
            shared_bytes: signature.shared_bytes,
            _module: module,
        };
        if in_image != kernel.shared_bytes {
            return Err(Error::kernel(format!(
                "kernel {wanted}: the image of cuda/{stem}.cu gives it {in_image} bytes of shared memory, the emulator's \
                 table {}; they are not of one source, so build this program again",
                kernel.shared_bytes
            )));
        }
        self.hold_to_limits(&kernel)?;
        Ok(kernel)
    }

    fn shared_bytes_in_image(
        &self,
        module: &Module,
        name: &CString,
    ) -> Result<u32, cudarc::driver::DriverError> {
        let mut bytes = [0u8; 4];
        // SAFETY: the module is loaded; the constant is one 32-bit number (KERNEL in cuda/kernel.cuh), and a copy of
        // another length is refused below.
        unsafe {
            let (address, length) = result::module::get_global(module.raw, name.clone())?;
            if length != bytes.len() {
                return Err(cudarc::driver::DriverError(
                    sys::CUresult::CUDA_ERROR_INVALID_VALUE,
                ));
            }
            result::memcpy_dtoh_sync(&mut bytes, address)?;
        }
        Ok(u32::from_ne_bytes(bytes))
    }

    /// Asks for shared memory beyond the usual, and refuses what the chip cannot give.
    fn hold_to_limits(&self, kernel: &LoadedKernel) -> Result<()> {
        use sys::CUfunction_attribute_enum as Attribute;
        let attribute = |which| {
            // SAFETY: the function is of a loaded module.
            self.gpu
                .check(unsafe { result::function::get_function_attribute(kernel.function, which) })
        };
        let most = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        if i64::from(kernel.threads) > i64::from(most) {
            return Err(Error::kernel(format!(
                "kernel {}: it is written for blocks of {} threads, but on the {} it may have at most {most}",
                kernel.name, kernel.threads, self.gpu.found.name
            )));
        }
        if kernel.shared_bytes > self.gpu.found.shared_limit {
            return Err(Error::kernel(format!(
                "kernel {}: it needs {} bytes of shared memory, but a block on the {} may have at most {}",
                kernel.name, kernel.shared_bytes, self.gpu.found.name, self.gpu.found.shared_limit
            )));
        }
        if kernel.shared_bytes > USUAL_SHARED_BYTES {
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above; the size is within the chip's limit.
            self.gpu.check(unsafe {
                result::function::set_function_attribute(
                    kernel.function,
                    which,
                    kernel.shared_bytes as i32,
                )
            })?;
        }
        Ok(())
    }
}
