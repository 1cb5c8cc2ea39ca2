//! The executor of a GPU: the parameters that all its programs share, and the kernels they are made of.

use std::sync::{Arc, PoisonError};

use super::super::collectives::expect_engine;
use super::super::kernel_table::{IMAGES, KernelImage};
use super::super::resolved::to_bytes;
use super::super::{Executor, Session, refuse_engine};
use super::gpu::Gpu;
use super::kernels::Kernels;
use super::memory::DeviceMemory;
use super::probe::{Found, expect_driver};
use super::session::CudaSession;
use crate::program::Program;
use crate::tape::{CompileTarget, Target};
use crate::tensor::DType;
use keel_base::error::Result;
use keel_ranks::SharedEngine;

/// Masters in f32 and their bf16 copies, which programs in bf16 read and their update keeps.
pub(super) struct Parameters {
    pub masters: DeviceMemory,
    pub bf16_copies: DeviceMemory,
}

/// Runs programs on a GPU. See [`super`].
pub struct CudaExecutor {
    gpu: Arc<Gpu>,
    kernels: Kernels,
    parameters: Arc<Parameters>,
    precision: DType,
    engine: Option<SharedEngine>,
}

impl CudaExecutor {
    /// An executor with a parameter arena of `elements` elements, all zero, on the GPU that [`super::probe`] found.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Device`] when the GPU or its driver cannot be used, [`keel_base::error::Error::Stopped`] when its memory runs
    /// out.
    pub fn new(found: Found, elements: usize) -> Result<CudaExecutor> {
        CudaExecutor::with_images(found, elements, IMAGES)
    }

    /// As [`CudaExecutor::new`], with images in the place of those that this program was built with.
    ///
    /// # Errors
    /// As [`CudaExecutor::new`].
    pub fn with_images(
        found: Found,
        elements: usize,
        images: &'static [KernelImage],
    ) -> Result<CudaExecutor> {
        expect_driver(&found, images)?;
        let gpu = Gpu::new(found)?;
        let memory = |what, dtype: DType| DeviceMemory::new(&gpu, what, elements * dtype.size(), 0);
        Ok(CudaExecutor {
            kernels: Kernels::new(&gpu, images),
            parameters: Arc::new(Parameters {
                masters: memory("memory of the parameters", DType::F32)?,
                bf16_copies: memory("memory of the parameters in bf16", DType::Bf16)?,
            }),
            gpu,
            precision: DType::Bf16,
            engine: None,
        })
    }

    /// The executor with `precision` for its programs, bf16 by default.
    pub fn in_precision(mut self, precision: DType) -> CudaExecutor {
        self.precision = precision;
        self
    }

    /// As [`Executor::load`], for callers that need more of a session than every executor's has.
    pub(super) fn load_session(&self, program: Arc<Program>) -> Result<CudaSession> {
        let engine = self.engine.as_ref();
        expect_engine("cuda", engine, &program, true)?;
        CudaSession::new(&self.gpu, &self.kernels, &self.parameters, engine, program)
    }
}

impl Executor for CudaExecutor {
    fn describe(&self) -> String {
        format!("cuda, {}, {}", self.gpu.found, self.precision)
    }

    fn compile_target(&self) -> CompileTarget {
        CompileTarget {
            target: Target::Cuda,
            precision: self.precision,
            tier: self.gpu.found.tier,
        }
    }

    /// What the tensor cores reach in bf16 at the clock that was seen while they worked, before that at the highest: multiply-adds of a multiprocessor and cycle are 1024 on
    /// sm_80 and 2048 on sm_90 (dense rates of the A100 and H100 data sheets); unknown for other chips. Products of f32
    /// programs are six of bf16.
    fn peak_flops(&self) -> f64 {
        let found = &self.gpu.found;
        // Dense bf16 operations a cycle and multiprocessor, from the data sheets; an unknown chip gives 0, and no share
        // of peak is shown.
        let each_cycle = match found.compute_capability {
            (8, 0) => 2.0 * 1024.0,
            (9, 0) => 2.0 * 2048.0,
            _ => 0.0,
        };
        // An f32 product is made of six bf16 products (cuda/fragment.cuh).
        let products = if self.precision == DType::F32 {
            6.0
        } else {
            1.0
        };
        f64::from(found.multiprocessors) * self.gpu.clock() * each_cycle / products
    }

    fn take_warnings(&self) -> Vec<String> {
        self.gpu.take_warnings()
    }

    /// An engine that takes addresses of the device.
    fn join(&mut self, engine: SharedEngine) -> Result<()> {
        let is_for_devices = {
            let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.is_for_devices()
        };
        if !is_for_devices {
            return Err(refuse_engine(&self.describe(), &engine));
        }
        self.engine = Some(engine);
        Ok(())
    }

    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>> {
        Ok(Box::new(self.load_session(program)?))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        let parameters = &self.parameters;
        for (memory, dtype) in [
            (&parameters.masters, DType::F32),
            (&parameters.bf16_copies, DType::Bf16),
        ] {
            memory.upload(offset * dtype.size(), &to_bytes(values, dtype))?;
        }
        Ok(())
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        self.parameters
            .masters
            .download(offset * DType::F32.size(), bytemuck::cast_slice_mut(values))
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        self.gpu.forget();
    }
}
