//! Executors run programs. All are of equal rank: the same program, the same inputs, the same readable outputs.

mod arena;
pub mod collectives;
pub mod cpu;
pub mod cuda;
mod inputs;
pub mod kernel_header;
pub mod kernel_table;
mod masters;
mod reference;
pub mod resolved;
mod selected_device;
mod session_arenas;
pub mod simt;

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::program::Program;
use crate::tape::{Arena, CompileTarget};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::SharedEngine;

pub use cpu::CpuExecutor;
pub use cuda::CudaExecutor;
pub use reference::ReferenceExecutor;
pub use selected_device::{Device, Precision, SelectedDevice, check_products, usable_cores};
pub use simt::SimtExecutor;

/// Holds a model's parameters and loads programs that use them. Several threads may use one executor.
pub trait Executor: Send + Sync {
    /// A short name and what was found, for example `cpu, 2 threads, f32`.
    fn describe(&self) -> String;

    /// The target that programs for this executor are compiled for.
    fn compile_target(&self) -> CompileTarget;

    /// Floating-point operations a second that its multiply-add units reach; 0 when unknown.
    fn peak_flops(&self) -> f64 {
        0.0
    }

    /// Bytes a second that its memory gives; 0 when unknown.
    fn peak_bandwidth(&self) -> f64 {
        0.0
    }

    /// What there was to say since this was last asked, about programs that were loaded too: things that cost time, not
    /// results. Whoever runs programs shows it.
    fn take_warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Takes the engine by which programs of a rank among several reach the others.
    ///
    /// # Errors
    /// [`Error::Device`] when programs on this device cannot use such an engine.
    fn join(&mut self, engine: SharedEngine) -> Result<()> {
        Err(refuse_engine(&self.describe(), &engine))
    }

    /// Readies a program to run. Gradients, optimiser state and cache start as zeros.
    ///
    /// # Errors
    /// [`Error::Stopped`] when memory runs out, [`Error::Device`] when an op has no kernel here, [`Error::Kernel`] when a launch
    /// is not what its kernel takes.
    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>>;

    /// Overwrites parameters from element `offset` on.
    ///
    /// # Errors
    /// [`Error::Device`] when a device fails. The processor cannot fail here.
    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()>;

    /// Reads parameters from element `offset` on: of those that are held in bf16 alone the bf16 values.
    ///
    /// # Errors
    /// As [`Executor::write_parameters`].
    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()>;

    /// Holds parameters of the ranges `in_bf16`, by element and rising, as bf16 copies alone from now on, and all others in f32
    /// too: for programs that keep those f32 values in shards ([`Program::masters_in_shards`]), and with no ranges afterwards. What comes
    /// to be held in f32 has the values of its copies until it is written.
    ///
    /// # Errors
    /// [`Error::Device`] when the executor holds everything in f32; [`Error::Setting`] when that changes while a session is loaded;
    /// [`Error::Stopped`] when memory runs out, after which a GPU holds all parameters in bf16 alone; as
    /// [`Executor::write_parameters`].
    fn hold_in_bf16(&self, in_bf16: &[Range<usize>]) -> Result<()> {
        if in_bf16.is_empty() {
            return Ok(());
        }
        Err(Error::Device {
            device: self.describe(),
            problem: "it holds all parameters in f32".into(),
            remedy: "record the update without shards_masters".into(),
        })
    }
}

/// A loaded program with memory of its own. One thread at a time uses it; it may move from one to another.
pub trait Session: Send {
    /// The program.
    fn program(&self) -> &Program;

    /// Whether inputs may be written for the next run before the outputs of the last are read: they wait in memory of their
    /// own, and reach the device while it computes.
    fn takes_inputs_early(&self) -> bool {
        false
    }

    /// Runs the program once.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the inputs that an op reads and nobody has written, before anything runs;
    /// [`Error::Device`] when a device fails. The processor cannot fail here otherwise.
    fn run(&mut self) -> Result<()>;

    /// Runs the program up to its update, and without what it sends for it, so that the gradients of several batches accumulate before it. The program must be of a
    /// tape that adds gradients ([`crate::tape::Tape::accumulating_gradients`]); the last batch is run with [`Session::run`].
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_gradients(&mut self) -> Result<()>;

    /// Runs the program once and adds each op's seconds to `seconds`, one entry per step of the program.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()>;

    /// Writes a float input.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no such input, or its type or number of elements differs.
    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()>;

    /// Writes a float input in double precision; executors that compute in less round it.
    ///
    /// # Errors
    /// As [`Session::write_f32`].
    fn write_f64(&mut self, input: &str, values: &[f64]) -> Result<()> {
        let rounded: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        self.write_f32(input, &rounded)
    }

    /// Writes an integer input.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no such input, or its type or number of elements differs.
    fn write_i32(&mut self, input: &str, values: &[i32]) -> Result<()>;

    /// Reads an output as doubles, whatever the executor computes in; integers are converted.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no such output.
    fn read_f64(&self, output: &str) -> Result<Vec<f64>>;

    /// Reads an output as single-precision numbers.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no such output.
    fn read_f32(&self, output: &str) -> Result<Vec<f32>> {
        Ok(self
            .read_f64(output)?
            .into_iter()
            .map(|x| x as f32)
            .collect())
    }

    /// Reads a whole fixed arena of this session; of the parameters what is held in f32.
    ///
    /// # Errors
    /// [`Error::Device`] when a device fails.
    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>>;

    /// Overwrites a whole fixed arena of this session.
    ///
    /// # Errors
    /// [`Error::Setting`] when the number of elements differs.
    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()>;

    /// Overwrites elements of a fixed arena of this session from element `first` on.
    ///
    /// # Errors
    /// [`Error::Setting`] when the arena ends before the values do; as [`Session::read_arena`].
    fn write_arena_from(&mut self, arena: Arena, first: usize, values: &[f32]) -> Result<()> {
        let mut all = self.read_arena(arena)?;
        expect_inside(arena, all.len(), first..first + values.len())?;
        all[first..first + values.len()].copy_from_slice(values);
        self.write_arena(arena, &all)
    }
}

/// What an executor says of an engine that its programs cannot use.
fn refuse_engine(device: &str, engine: &SharedEngine) -> Error {
    let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
    Error::Device {
        device: device.to_owned(),
        problem: format!(
            "its programs cannot reach other ranks over {}",
            engine.name()
        ),
        remedy: "train on one rank, or with --device cpu".into(),
    }
}

/// Checks that an arena of optimiser state is one of the program's: every program has all the others.
fn expect_declared(program: &Program, arena: Arena) -> Result<()> {
    let state = program.optimizer_state();
    let is_declared = state.iter().any(|state| state.arena == arena);
    if matches!(arena, Arena::OptimizerState(_)) && !is_declared {
        let known: Vec<&str> = state.iter().map(|state| state.name).collect();
        return Err(Error::setting(
            format!("{arena:?}"),
            format!("optimiser state of the program ({})", known.join(", ")),
            "that of another program",
        ));
    }
    Ok(())
}

/// Checks what the host wants to write against the input's type.
fn expect_input(input: &str, ty: TensorType, dtype: DType, elements: usize) -> Result<()> {
    if ty.dtype != dtype || ty.numel() != elements {
        let found = format!("{elements} elements of type {dtype}");
        return Err(Error::setting(format!("program input {input}"), ty, found));
    }
    Ok(())
}

fn expect_inside(arena: Arena, elements: usize, range: Range<usize>) -> Result<()> {
    if range.end > elements {
        return Err(Error::setting(
            format!("{arena:?} arena"),
            format!("elements of its {elements}"),
            format!("{range:?}"),
        ));
    }
    Ok(())
}

fn expect_arena(arena: Arena, want: usize, got: usize) -> Result<()> {
    if want != got {
        return Err(Error::setting(
            format!("{arena:?} arena"),
            format!("{want} elements"),
            got,
        ));
    }
    Ok(())
}
