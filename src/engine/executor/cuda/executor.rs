//! The executor of a GPU: the parameters that all its programs share, and the kernels they are made of.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::super::collectives::expect_engine;
use super::super::kernel_table::{IMAGES, KernelImage};
use super::super::masters::{HeldMasters, expect_unshared};
use super::super::resolved::{read_singles, to_bytes};
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
    pub held: HeldMasters,
    /// Made for an executor in bf16 and for the first program in bf16.
    bf16_copies: OnceLock<DeviceMemory>,
    /// Whether neither host nor program has written anything yet.
    are_zero: AtomicBool,
}

/// Elements that pass through the host at once.
const PIECE: usize = 1 << 20;

impl Parameters {
    /// The copies, once a program in bf16 is loaded.
    pub fn bf16_copies(&self) -> &DeviceMemory {
        let copies = self.bf16_copies.get();
        copies.expect("they are kept from the loading of such a program on")
    }

    /// Keeps bf16 copies from now on. Whoever asks holds the executor's lock.
    fn keep_bf16_copies(&self, gpu: &Arc<Gpu>) -> Result<()> {
        if self.bf16_copies.get().is_some() {
            return Ok(());
        }
        let (what, size) = ("memory of the parameters in bf16", DType::Bf16.size());
        let copies = DeviceMemory::new(gpu, what, self.held.elements() * size, 0)?;
        let mut values = Vec::new();
        let written = match self.are_zero.load(Ordering::Relaxed) {
            true => 0,
            false => self.held.elements(),
        };
        for first in (0..written).step_by(PIECE) {
            values.resize(PIECE.min(self.held.elements() - first), 0.0);
            self.read(first, &mut values)?;
            copies.upload(first * size, &to_bytes(&values, DType::Bf16))?;
        }
        let set = self.bf16_copies.set(copies);
        assert!(set.is_ok(), "the lock keeps others from making copies");
        Ok(())
    }

    fn read(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        for (piece, place) in self.held.pieces(offset..offset + values.len()) {
            let into = &mut values[piece.start - offset..piece.end - offset];
            match place {
                Some(place) => {
                    let bytes = bytemuck::cast_slice_mut(into);
                    self.masters.download(place * DType::F32.size(), bytes)?;
                }
                None => {
                    let first = piece.start * DType::Bf16.size();
                    let read = |bytes: &mut [u8]| self.bf16_copies().download(first, bytes);
                    into.copy_from_slice(&read_singles(piece.len(), DType::Bf16, read)?);
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: usize, values: &[f32]) -> Result<()> {
        self.are_zero.store(false, Ordering::Relaxed);
        for (piece, place) in self.held.pieces(offset..offset + values.len()) {
            let Some(place) = place else { continue };
            let from = &values[piece.start - offset..piece.end - offset];
            let bytes = bytemuck::cast_slice(from);
            self.masters.upload(place * DType::F32.size(), bytes)?;
        }
        match self.bf16_copies.get() {
            Some(copies) => {
                let rounded = to_bytes(values, DType::Bf16);
                copies.upload(offset * DType::Bf16.size(), &rounded)
            }
            None => Ok(()),
        }
    }

    /// Holds masters as `held` says from now on. See [`Executor::hold_in_bf16`]. Those that stay wait on the host, so that
    /// the device has never both the old masters and the new ones. When memory runs out, none are held.
    fn hold(&mut self, gpu: &Arc<Gpu>, held: HeldMasters) -> Result<()> {
        self.keep_bf16_copies(gpu)?;
        let size = DType::F32.size();
        let mut stay = Vec::new();
        let mut come = Vec::new();
        for (piece, place) in held.pieces(0..held.elements()) {
            let Some(place) = place else { continue };
            for (part, before) in self.held.pieces(piece.clone()) {
                let place = place + part.start - piece.start;
                if before.is_some() {
                    let mut values = vec![0.0f32; part.len()];
                    self.read(part.start, &mut values)?;
                    stay.push((place, values));
                } else {
                    come.push((place, part));
                }
            }
        }
        self.held = held.without(std::slice::from_ref(&(0..held.elements())))?;
        self.masters = DeviceMemory::new(gpu, MASTERS, 0, 0)?;
        let masters = DeviceMemory::new(gpu, MASTERS, held.count() * size, 0)?;
        for (place, values) in stay {
            masters.upload(place * size, bytemuck::cast_slice(&values))?;
        }
        let mut values = Vec::new();
        for (place, part) in come {
            for first in part.clone().step_by(PIECE) {
                values.resize(PIECE.min(part.end - first), 0.0);
                self.read(first, &mut values)?;
                let at = place + first - part.start;
                masters.upload(at * size, bytemuck::cast_slice(&values))?;
            }
        }
        (self.masters, self.held) = (masters, held);
        Ok(())
    }
}

const MASTERS: &str = "memory of the parameters";

/// Runs programs on a GPU. See [`super`].
pub struct CudaExecutor {
    gpu: Arc<Gpu>,
    kernels: Kernels,
    parameters: Mutex<Arc<Parameters>>,
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
        let masters = DeviceMemory::new(&gpu, MASTERS, elements * DType::F32.size(), 0)?;
        Ok(CudaExecutor {
            kernels: Kernels::new(&gpu, images),
            parameters: Mutex::new(Arc::new(Parameters {
                masters,
                held: HeldMasters::all(elements),
                bf16_copies: OnceLock::new(),
                are_zero: AtomicBool::new(true),
            })),
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
        let parameters = {
            // Nobody writes or moves the parameters while copies of them are made.
            let parameters = self.lock();
            parameters.held.expect_held(&program)?;
            if program.has_bf16_parameters() {
                parameters.keep_bf16_copies(&self.gpu)?;
            }
            parameters.are_zero.store(false, Ordering::Relaxed);
            parameters.clone()
        };
        CudaSession::new(&self.gpu, &self.kernels, &parameters, engine, program)
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Parameters>> {
        self.parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        let parameters = self.lock();
        if self.precision == DType::Bf16 {
            // While they are zeros: later they would have to be read back.
            parameters.keep_bf16_copies(&self.gpu)?;
        }
        parameters.write(offset, values)
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        self.lock().read(offset, values)
    }

    fn hold_in_bf16(&self, in_bf16: &[Range<usize>]) -> Result<()> {
        let mut shared = self.lock();
        let held = shared.held.without(in_bf16)?;
        if held == shared.held {
            return Ok(());
        }
        expect_unshared(&shared)?;
        let parameters = Arc::get_mut(&mut shared).expect("no session shares them");
        parameters.hold(&self.gpu, held)
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        self.gpu.forget();
    }
}
