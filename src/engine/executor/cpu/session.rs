//! Runs programs on the processor: turns planned offsets into slices and calls each op's kernel.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use half::bf16;
use keel_cpu::{Bf16Products, round, set_bf16_products};

use super::super::arena::ByteArena;
use super::super::collectives::Collectives;
use super::super::inputs::UnwrittenInputs;
use super::super::masters::{HeldMasters, expect_unshared};
use super::super::session_arenas::SessionArenas;
use super::super::{Executor, Session, expect_arena, expect_declared, expect_input, expect_inside};
use crate::program::{Place, Program};
use crate::tape::{
    Arena, CollectivePart, CompileTarget, CpuArgs, Input, Inputs, Instruction, Output, Outputs,
    Target, Value,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::SharedEngine;

/// The most inputs or outputs an op may have; slices for them are built on the stack.
const MAX_ARGUMENTS: usize = 12;

/// Runs programs on all cores. See [`super`].
pub struct CpuExecutor {
    parameters: Arc<Mutex<Parameters>>,
    pool: Arc<rayon::ThreadPool>,
    peak: OnceLock<f64>,
    engine: Option<SharedEngine>,
    precision: DType,
}

/// Masters, and the same rounded to bf16 once a program was loaded that reads them so.
struct Parameters {
    masters: ByteArena,
    held: HeldMasters,
    bf16_copies: Option<ByteArena>,
}

impl Parameters {
    /// All of `elements` elements, zero.
    fn new(elements: usize) -> Result<Parameters> {
        Ok(Parameters {
            masters: ByteArena::new("parameters", elements * size_of::<f32>())?,
            held: HeldMasters::all(elements),
            bf16_copies: None,
        })
    }

    fn masters(&self) -> &[f32] {
        let elements = self.masters.bytes() / size_of::<f32>();
        // SAFETY: whoever has the parameters holds their lock, and writing them takes `&mut self` or a session that holds
        // it too.
        unsafe { self.masters.slice(0, elements) }
    }

    fn copies(&self) -> &[bf16] {
        let Some(copies) = &self.bf16_copies else {
            return &[];
        };
        // SAFETY: as for `masters`.
        unsafe { copies.slice(0, copies.bytes() / size_of::<bf16>()) }
    }

    fn read(&self, offset: usize, values: &mut [f32]) {
        for (piece, place) in self.held.pieces(offset..offset + values.len()) {
            let into = &mut values[piece.start - offset..piece.end - offset];
            match place {
                Some(place) => into.copy_from_slice(&self.masters()[place..][..piece.len()]),
                None => {
                    let copies = &self.copies()[piece];
                    let places = into.iter_mut().zip(copies);
                    places.for_each(|(value, copy)| *value = copy.to_f32());
                }
            }
        }
    }

    fn write(&mut self, offset: usize, values: &[f32]) {
        for (piece, place) in self.held.pieces(offset..offset + values.len()) {
            let Some(place) = place else { continue };
            let from = &values[piece.start - offset..piece.end - offset];
            // SAFETY: `&mut self` excludes every other user.
            let masters = unsafe { self.masters.slice_mut(place * size_of::<f32>(), from.len()) };
            masters.copy_from_slice(from);
        }
        if let Some(copies) = &self.bf16_copies {
            // SAFETY: as above.
            let copies =
                unsafe { copies.slice_mut::<bf16>(offset * size_of::<bf16>(), values.len()) };
            round(values, copies);
        }
    }

    /// Keeps bf16 copies from now on.
    fn keep_bf16_copies(&mut self) -> Result<()> {
        if self.bf16_copies.is_none() {
            let elements = self.held.elements();
            let copies = ByteArena::new("parameters in bf16", elements * size_of::<bf16>())?;
            // SAFETY: nobody else has it yet.
            round(self.masters(), unsafe {
                copies.slice_mut::<bf16>(0, elements)
            });
            self.bf16_copies = Some(copies);
        }
        Ok(())
    }

    /// Holds masters as `held` says from now on. See [`Executor::hold_in_bf16`].
    fn hold(&mut self, held: HeldMasters) -> Result<()> {
        self.keep_bf16_copies()?;
        let masters = ByteArena::new("parameters", held.count() * size_of::<f32>())?;
        for (piece, place) in held.pieces(0..held.elements()) {
            let Some(place) = place else { continue };
            // SAFETY: nobody else has it yet.
            let into = unsafe { masters.slice_mut(place * size_of::<f32>(), piece.len()) };
            self.read(piece.start, into);
        }
        (self.masters, self.held) = (masters, held);
        Ok(())
    }
}

impl CpuExecutor {
    /// An executor with a parameter arena of `elements` elements, all zero, that computes on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Stopped`] when memory or threads cannot be had.
    pub fn new(elements: usize, threads: usize) -> Result<CpuExecutor> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("keel-cpu-{index}"))
            .build()
            .map_err(|problem| {
                Error::stopped("compute threads", problem, "choose fewer with --threads")
            })?;
        // A thread registers itself with the pool when it first looks for work, and that allocates: waiting here until
        // every thread has answered keeps it out of the steps.
        pool.broadcast(|_| ());
        Ok(CpuExecutor {
            parameters: Arc::new(Mutex::new(Parameters::new(elements)?)),
            pool: Arc::new(pool),
            peak: OnceLock::new(),
            engine: None,
            precision: DType::F32,
        })
    }

    /// The executor with `precision` for its programs, f32 by default.
    pub fn in_precision(self, precision: DType) -> CpuExecutor {
        CpuExecutor { precision, ..self }
    }

    /// The executor with products of bf16 numbers computed this way, the faster one of the machine by default.
    pub fn with_bf16_products(self, products: Bf16Products) -> CpuExecutor {
        self.pool.broadcast(|_| set_bf16_products(products));
        self
    }

    /// The threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn lock(&self) -> MutexGuard<'_, Parameters> {
        self.parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for CpuExecutor {
    fn describe(&self) -> String {
        let threads = self.threads();
        format!(
            "cpu, {threads} thread{}, {}",
            if threads == 1 { "" } else { "s" },
            self.precision
        )
    }

    fn compile_target(&self) -> CompileTarget {
        let target = Target::Cpu {
            threads: self.threads(),
        };
        CompileTarget {
            precision: self.precision,
            ..target.into()
        }
    }

    /// Measured once.
    fn peak_flops(&self) -> f64 {
        *self.peak.get_or_init(|| match self.precision {
            DType::Bf16 => self.pool.install(keel_cpu::measure_bf16_peak),
            _ => self.pool.install(keel_cpu::measure_peak),
        })
    }

    /// Measured anew each time.
    fn peak_bandwidth(&self) -> f64 {
        self.pool.install(keel_cpu::measure_bandwidth)
    }

    fn join(&mut self, engine: SharedEngine) -> Result<()> {
        self.engine = Some(engine);
        Ok(())
    }

    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>> {
        let parameters = {
            let mut parameters = self.lock();
            parameters.held.expect_held(&program)?;
            if program.has_bf16_parameters() {
                parameters.keep_bf16_copies()?;
            }
            // Shared before the lock is given back, so that nobody moves them in between.
            self.parameters.clone()
        };
        let fixed = SessionArenas::new(&program, |what, arena, elements| {
            ByteArena::new(what, elements * arena.element().size())
        })?;
        let types = program
            .ops()
            .iter()
            .map(|op| {
                let [inputs, outputs] = op.instruction.types(program.values());
                assert!(
                    inputs.len() <= MAX_ARGUMENTS && outputs.len() <= MAX_ARGUMENTS,
                    "an op has at most {MAX_ARGUMENTS} inputs and outputs"
                );
                OpTypes { inputs, outputs }
            })
            .collect();
        Ok(Box::new(CpuSession {
            memory: Memory {
                activations: ByteArena::new("activations", program.arena_bytes())?,
                fixed,
            },
            parameters,
            pool: self.pool.clone(),
            types,
            unwritten: UnwrittenInputs::of(&program),
            collectives: Mutex::new(Collectives::new("cpu", self.engine.as_ref(), &program)?),
            program,
        }))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        self.lock().write(offset, values);
        Ok(())
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        self.lock().read(offset, values);
        Ok(())
    }

    fn hold_in_bf16(&self, in_bf16: &[Range<usize>]) -> Result<()> {
        let mut parameters = self.lock();
        let held = parameters.held.without(in_bf16)?;
        if held == parameters.held {
            return Ok(());
        }
        expect_unshared(&self.parameters)?;
        parameters.hold(held)
    }
}

struct OpTypes {
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
}

/// The arenas only this session touches.
struct Memory {
    activations: ByteArena,
    fixed: SessionArenas<ByteArena>,
}

impl Memory {
    fn fixed<'a>(&'a self, arena: Arena, parameters: &'a Parameters) -> &'a ByteArena {
        match arena {
            Arena::Parameters => &parameters.masters,
            Arena::ParametersBf16 => {
                let copies = parameters.bf16_copies.as_ref();
                copies.expect("they are kept from the loading of such a program on")
            }
            _ => self.fixed.get(arena),
        }
    }

    /// The arena and first byte of a value.
    fn locate<'a>(&'a self, place: Place, parameters: &'a Parameters) -> (&'a ByteArena, usize) {
        match place {
            Place::Activations(offset) => (&self.activations, offset),
            Place::Fixed(arena, element) => {
                let element = match arena {
                    Arena::Parameters => parameters.held.place(element),
                    _ => element,
                };
                let offset = element * arena.element().size();
                (self.fixed(arena, parameters), offset)
            }
            Place::Dropped => unreachable!("an op that runs has all its values placed"),
        }
    }
}

struct CpuSession {
    program: Arc<Program>,
    memory: Memory,
    parameters: Arc<Mutex<Parameters>>,
    pool: Arc<rayon::ThreadPool>,
    /// Of each op.
    types: Vec<OpTypes>,
    unwritten: UnwrittenInputs,
    collectives: Mutex<Collectives>,
}

/// Which ops of a program run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All.
    Whole,
    /// Those up to the update that send nothing for it.
    Gradients,
}

impl CpuSession {
    /// Hands a part of a collective to the engine.
    fn run_collective(
        &self,
        instruction: &Instruction,
        (number, part): (usize, CollectivePart),
        parameters: &Parameters,
    ) -> Result<()> {
        let value = match part {
            CollectivePart::Begin(_) => instruction.inputs[0],
            CollectivePart::Finish => instruction.outputs[0],
        };
        let (arena, offset) = self.memory.locate(self.program.place(value), parameters);
        let bytes = self.program.ty(value).bytes();
        let collectives = self.collectives.lock();
        let mut collectives = collectives.unwrap_or_else(PoisonError::into_inner);
        match part {
            CollectivePart::Begin(kind) => {
                // SAFETY: no other op runs meanwhile, and this one writes nothing.
                let sent = unsafe { arena.slice::<u8>(offset, bytes) };
                collectives.begin(number, kind, sent)
            }
            CollectivePart::Finish => {
                // SAFETY: no other op runs meanwhile, and this one reads nothing: what was begun has been read.
                let received = unsafe { arena.slice_mut::<u8>(offset, bytes) };
                collectives.finish(number, received)
            }
        }
    }

    fn run_op(&self, index: usize, parameters: &Parameters) -> Result<()> {
        let op = &self.program.ops()[index];
        let types = &self.types[index];
        let instruction = &op.instruction;
        if instruction.op.is_view() {
            return Ok(());
        }
        if let Some(part) = instruction.op.collective() {
            return self.run_collective(instruction, part, parameters);
        }
        // Arrays on the stack and not vectors: a step allocates nothing.
        let mut inputs = [const { Input::F32(&[]) }; MAX_ARGUMENTS];
        for (index, value) in instruction.inputs.iter().enumerate() {
            if let Some(output) = op.in_place[index] {
                inputs[index] = Input::InPlace(output);
                continue;
            }
            let ty = self.program.ty(*value);
            let (arena, offset) = self.memory.locate(self.program.place(*value), parameters);
            inputs[index] = match ty.dtype {
                // SAFETY: the plan keeps live values apart (checked when the program was compiled) and this input
                // does not lie in an output's place, so no output of this op overlaps it; `&self` methods that run
                // ops hold the parameter lock and are reached only through `&mut self`.
                DType::F32 => Input::F32(unsafe { arena.slice(offset, ty.numel()) }),
                // SAFETY: as above.
                DType::I32 => Input::I32(unsafe { arena.slice(offset, ty.numel()) }),
                // SAFETY: as above.
                DType::Bf16 => Input::Bf16(unsafe { arena.slice(offset, ty.numel()) }),
            };
        }
        let mut outputs: [Output<'_>; MAX_ARGUMENTS] =
            std::array::from_fn(|_| Output::F32(Default::default()));
        for (slot, value) in outputs.iter_mut().zip(&instruction.outputs) {
            let ty = self.program.ty(*value);
            let (arena, offset) = self.memory.locate(self.program.place(*value), parameters);
            *slot = match ty.dtype {
                // SAFETY: outputs of one op are live together, so the plan gives each its own bytes, apart from every
                // input but the one named in `in_place`, which is not handed out.
                DType::F32 => Output::F32(unsafe { arena.slice_mut(offset, ty.numel()) }),
                // SAFETY: as above.
                DType::I32 => Output::I32(unsafe { arena.slice_mut(offset, ty.numel()) }),
                // SAFETY: as above.
                DType::Bf16 => Output::Bf16(unsafe { arena.slice_mut(offset, ty.numel()) }),
            };
        }
        let (offset, bytes) = op.workspace;
        // SAFETY: the workspace is a planned range that lives during this op alone.
        let workspace = unsafe {
            self.memory
                .activations
                .slice_mut(offset, bytes / size_of::<f32>())
        };
        instruction.op.cpu(CpuArgs {
            inputs: Inputs(&inputs[..instruction.inputs.len()]),
            outputs: Outputs(&mut outputs[..instruction.outputs.len()]),
            workspace,
            input_types: &types.inputs,
            output_types: &types.outputs,
        });
        Ok(())
    }

    /// Runs ops, and `after` each with its number and the time at which it began.
    fn run_ops(
        &mut self,
        extent: Extent,
        mut after: impl FnMut(usize, Instant) + Send,
    ) -> Result<()> {
        // Shared from here on: the pool's threads only read the session; what they write are the arenas' bytes, apart
        // by the plan.
        let this = &*self;
        let parameters = this
            .parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let parameters: &Parameters = &parameters;
        // One hand-over to the pool for the whole step: each would cost more than a small op computes.
        this.pool.install(|| {
            let count = match extent {
                Extent::Whole => this.types.len(),
                Extent::Gradients => this.program.gradient_ops(),
            };
            for index in 0..count {
                if extent == Extent::Gradients && this.program.is_exchange(index) {
                    continue;
                }
                let start = Instant::now();
                this.run_op(index, parameters)?;
                after(index, start);
            }
            Ok(())
        })
    }

    fn locked<T>(&self, with: impl FnOnce(&Parameters) -> T) -> T {
        with(
            &self
                .parameters
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn write<T: bytemuck::Pod>(&mut self, input: &str, dtype: DType, values: &[T]) -> Result<()> {
        let value = self.program.input(input)?;
        expect_input(input, self.program.ty(value), dtype, values.len())?;
        // An input that no op reads has no place, and nothing is written.
        if let Place::Activations(offset) = self.program.place(value) {
            // SAFETY: `&mut self` excludes a running step.
            let place = unsafe { self.memory.activations.slice_mut::<T>(offset, values.len()) };
            place.copy_from_slice(values);
        }
        self.unwritten.written(value);
        Ok(())
    }

    fn read<T: bytemuck::Pod>(&self, value: Value) -> Vec<T> {
        let elements = self.program.ty(value).numel();
        if self.program.place(value) == Place::Dropped {
            return vec![T::zeroed(); elements];
        }
        self.locked(|parameters| {
            let (arena, offset) = self.memory.locate(self.program.place(value), parameters);
            // SAFETY: writing needs `&mut self` or the parameter lock, which is held.
            unsafe { arena.slice::<T>(offset, elements) }.to_vec()
        })
    }
}

impl Session for CpuSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn run(&mut self) -> Result<()> {
        self.unwritten.expect_none()?;
        self.run_ops(Extent::Whole, |_, _| {})
    }

    fn run_gradients(&mut self) -> Result<()> {
        self.unwritten.expect_none_before_update()?;
        self.run_ops(Extent::Gradients, |_, _| {})
    }

    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()> {
        self.unwritten.expect_none()?;
        self.run_ops(Extent::Whole, |index, start| {
            seconds[index] += start.elapsed().as_secs_f64();
        })
    }

    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()> {
        if self.program.ty(self.program.input(input)?).dtype == DType::Bf16 {
            let mut rounded = vec![bf16::ZERO; values.len()];
            round(values, &mut rounded);
            return self.write(input, DType::Bf16, &rounded);
        }
        self.write(input, DType::F32, values)
    }

    fn write_i32(&mut self, input: &str, values: &[i32]) -> Result<()> {
        self.write(input, DType::I32, values)
    }

    fn read_f32(&self, output: &str) -> Result<Vec<f32>> {
        let value = self.program.output(output)?;
        Ok(match self.program.ty(value).dtype {
            DType::F32 => self.read(value),
            DType::Bf16 => self
                .read::<bf16>(value)
                .iter()
                .map(|x| x.to_f32())
                .collect(),
            DType::I32 => self.read::<i32>(value).iter().map(|x| *x as f32).collect(),
        })
    }

    fn read_f64(&self, output: &str) -> Result<Vec<f64>> {
        let value = self.program.output(output)?;
        Ok(match self.program.ty(value).dtype {
            DType::F32 => self.read::<f32>(value).into_iter().map(f64::from).collect(),
            DType::Bf16 => self
                .read::<bf16>(value)
                .iter()
                .map(|x| x.to_f64())
                .collect(),
            DType::I32 => self.read::<i32>(value).into_iter().map(f64::from).collect(),
        })
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        expect_declared(&self.program, arena)?;
        Ok(self.locked(|parameters| {
            let place = self.memory.fixed(arena, parameters);
            let elements = place.bytes() / arena.element().size();
            // SAFETY: writing needs `&mut self` or the parameter lock, which is held.
            unsafe {
                match arena.element() {
                    DType::Bf16 => place
                        .slice::<bf16>(0, elements)
                        .iter()
                        .map(|x| x.to_f32())
                        .collect(),
                    _ => place.slice::<f32>(0, elements).to_vec(),
                }
            }
        }))
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        expect_declared(&self.program, arena)?;
        let bytes = self.locked(|parameters| self.memory.fixed(arena, parameters).bytes());
        expect_arena(arena, bytes / arena.element().size(), values.len())?;
        self.write_arena_from(arena, 0, values)
    }

    fn write_arena_from(&mut self, arena: Arena, first: usize, values: &[f32]) -> Result<()> {
        expect_declared(&self.program, arena)?;
        self.locked(|parameters| {
            let place = self.memory.fixed(arena, parameters);
            let element = arena.element();
            let elements = place.bytes() / element.size();
            expect_inside(arena, elements, first..first + values.len())?;
            // SAFETY: `&mut self` and the parameter lock exclude every other user, and the elements lie inside the arena.
            unsafe {
                match element {
                    DType::Bf16 => {
                        let all = place.slice_mut::<bf16>(0, elements);
                        round(values, &mut all[first..first + values.len()]);
                    }
                    _ => place.slice_mut::<f32>(0, elements)[first..first + values.len()]
                        .copy_from_slice(values),
                }
            }
            Ok(())
        })
    }
}
