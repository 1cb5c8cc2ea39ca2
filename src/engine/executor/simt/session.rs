//! Runs programs on the emulator: the launches a GPU would get, on arenas of guarded memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::super::collectives::Collectives;
use super::super::inputs::UnwrittenInputs;
use super::super::masters::{HeldMasters, expect_unshared};
use super::super::resolved::{
    Abilities, ByteRange, ResolvedArgument, ResolvedStep, Space, range, read_singles, resolve,
    to_bytes, to_doubles,
};
use super::super::session_arenas::SessionArenas;
use super::super::{Executor, Session, expect_arena, expect_declared, expect_input};
use super::{Argument, Buffer, Element, Emulator, Kernel, Options};
use crate::launch::Mapped;
use crate::program::Program;
use crate::tape::{Arena, CollectivePart, CompileTarget, Target, Tier};
use crate::tensor::DType;
use keel_base::error::{Error, Result};
use keel_ranks::SharedEngine;

/// The emulator launches whatever a GPU can.
const ABILITIES: Abilities = Abilities {
    launches_clusters: true,
    passes_maps: true,
};

/// Runs programs on the emulator. See [`super`].
pub struct SimtExecutor {
    emulator: Emulator,
    parameters: Arc<Mutex<Parameters>>,
    options: Options<'static>,
    isolates: bool,
    precision: DType,
    tier: Tier,
    engine: Option<SharedEngine>,
}

/// Masters and their bf16 copies.
struct Parameters {
    masters: Buffer,
    held: HeldMasters,
    bf16_copies: Buffer,
}

impl Parameters {
    fn read(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        for (piece, place) in self.held.pieces(offset..offset + values.len()) {
            let into = &mut values[piece.start - offset..piece.end - offset];
            match place {
                Some(place) => {
                    let bytes = bytemuck::cast_slice_mut(into);
                    self.masters.read_bytes(place * DType::F32.size(), bytes)?;
                }
                None => {
                    let copies = read_singles(piece.len(), DType::Bf16, |bytes| {
                        self.bf16_copies
                            .read_bytes(piece.start * DType::Bf16.size(), bytes)
                    })?;
                    into.copy_from_slice(&copies);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, values: &[f32]) -> Result<()> {
        for (piece, place) in self.held.pieces(offset..offset + values.len()) {
            let Some(place) = place else { continue };
            let from = &values[piece.start - offset..piece.end - offset];
            let bytes = bytemuck::cast_slice(from);
            self.masters.write_bytes(place * DType::F32.size(), bytes)?;
        }
        let rounded = to_bytes(values, DType::Bf16);
        self.bf16_copies
            .write_bytes(offset * DType::Bf16.size(), &rounded)
    }
}

impl SimtExecutor {
    /// An executor with a parameter arena of `elements` elements, all zero, that launches with `options`.
    ///
    /// # Errors
    /// [`Error::Device`] when the emulator is not part of this program or memory runs out.
    pub fn new(elements: usize, options: Options<'static>) -> Result<SimtExecutor> {
        let emulator = Emulator::new()?;
        let mut masters = emulator.allocate(Element::F32, elements)?;
        masters.write(&vec![0.0f32; elements])?;
        let mut bf16_copies = emulator.allocate(Element::Bf16, elements)?;
        bf16_copies.write(&vec![0u16; elements])?;
        Ok(SimtExecutor {
            emulator,
            parameters: Arc::new(Mutex::new(Parameters {
                masters,
                held: HeldMasters::all(elements),
                bf16_copies,
            })),
            options,
            isolates: false,
            precision: DType::F32,
            tier: Tier::Portable,
            engine: None,
        })
    }

    /// The executor with `precision` for its programs, f32 by default.
    pub fn in_precision(self, precision: DType) -> SimtExecutor {
        SimtExecutor { precision, ..self }
    }

    /// The executor with kernels of `tier` for its programs, portable ones by default.
    pub fn in_tier(self, tier: Tier) -> SimtExecutor {
        SimtExecutor { tier, ..self }
    }

    /// As [`SimtExecutor::new`], but every range of a program's memory is an allocation of its own between unreadable
    /// pages, so that an access past a value is reported. Only for programs whose values do not share memory.
    ///
    /// # Errors
    /// As [`SimtExecutor::new`].
    pub fn isolating(elements: usize, options: Options<'static>) -> Result<SimtExecutor> {
        Ok(SimtExecutor {
            isolates: true,
            ..SimtExecutor::new(elements, options)?
        })
    }
}

fn lock(parameters: &Mutex<Parameters>) -> MutexGuard<'_, Parameters> {
    parameters.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Executor for SimtExecutor {
    fn describe(&self) -> String {
        if self.emulator.is_checked() {
            "simt, the CUDA kernels on the emulator, checked".to_owned()
        } else {
            "simt, the CUDA kernels on the emulator".to_owned()
        }
    }

    fn compile_target(&self) -> CompileTarget {
        CompileTarget {
            target: Target::Cuda,
            precision: self.precision,
            tier: self.tier,
        }
    }

    fn join(&mut self, engine: SharedEngine) -> Result<()> {
        self.engine = Some(engine);
        Ok(())
    }

    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>> {
        let mut resolved = resolve(&program)?;
        let parameters = {
            let parameters = lock(&self.parameters);
            parameters.held.expect_held(&program)?;
            parameters.held.place_arguments(&mut resolved);
            // Shared before the lock is given back, so that nobody moves them in between.
            self.parameters.clone()
        };
        let mut kernels: BTreeMap<&'static str, Kernel> = BTreeMap::new();
        // Everything that could be refused is refused when the program is loaded, and not in the middle of a step.
        for launch in resolved.iter().flat_map(|step| &step.launches) {
            launch.require("simt", ABILITIES)?;
            let name = launch.kernel.name;
            if !kernels.contains_key(name) {
                kernels.insert(name, self.emulator.kernel(name)?);
            }
        }
        let memory = Memory::new(&self.emulator, &program, self.isolates)?;
        Ok(Box::new(SimtSession {
            emulator: self.emulator,
            options: self.options,
            parameters,
            memory,
            resolved,
            kernels,
            unwritten: UnwrittenInputs::of(&program),
            collectives: Collectives::new("simt", self.engine.as_ref(), &program)?,
            program,
        }))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        lock(&self.parameters).write(offset, values)
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        lock(&self.parameters).read(offset, values)
    }

    fn hold_in_bf16(&self, in_bf16: &[Range<usize>]) -> Result<()> {
        let mut parameters = lock(&self.parameters);
        let held = parameters.held.without(in_bf16)?;
        if held == parameters.held {
            return Ok(());
        }
        expect_unshared(&self.parameters)?;
        let mut masters = self.emulator.allocate(Element::F32, held.count())?;
        for (piece, place) in held.pieces(0..held.elements()) {
            let Some(place) = place else { continue };
            let mut values = vec![0.0f32; piece.len()];
            parameters.read(piece.start, &mut values)?;
            let bytes = bytemuck::cast_slice(&values);
            masters.write_bytes(place * DType::F32.size(), bytes)?;
        }
        (parameters.masters, parameters.held) = (masters, held);
        Ok(())
    }
}

/// The arenas of one session. That of activations is one allocation, or one for every place in it.
struct Memory {
    activations: BTreeMap<usize, Buffer>,
    fixed: SessionArenas<Buffer>,
}

impl Memory {
    fn new(emulator: &Emulator, program: &Program, isolates: bool) -> Result<Memory> {
        // One buffer for the arena finds reads and writes outside it; a buffer for each planned place, as tests ask
        // for, also finds those that stray into a neighbour.
        let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
        if isolates {
            for planned in program.planned() {
                sizes.insert(planned.offset as usize, planned.bytes as usize);
            }
        } else {
            sizes.insert(0, program.arena_bytes());
        }
        let mut activations = BTreeMap::new();
        for (offset, bytes) in sizes {
            activations.insert(offset, emulator.allocate(Element::U8, bytes)?);
        }
        let fixed = SessionArenas::new(program, |_, arena, elements| {
            let mut buffer = emulator.allocate(arena.element().into(), elements)?;
            buffer.write_bytes(0, &vec![0; elements * arena.element().size()])?;
            Ok(buffer)
        })?;
        Ok(Memory { activations, fixed })
    }

    /// The buffer of a range and the range's first byte there.
    /// Ranges of parameters are told among those that are held.
    fn locate<'a>(&'a self, parameters: &'a Parameters, range: ByteRange) -> (&'a Buffer, usize) {
        match range.space {
            Space::Activations => {
                let (start, buffer) = self
                    .activations
                    .range(..=range.offset)
                    .next_back()
                    .expect("the plan places every value in the arena");
                (buffer, range.offset - start)
            }
            Space::Fixed(Arena::Parameters) => (&parameters.masters, range.offset),
            Space::Fixed(Arena::ParametersBf16) => (&parameters.bf16_copies, range.offset),
            Space::Fixed(arena) => (self.fixed.get(arena), range.offset),
        }
    }

    fn activations_mut(&mut self, offset: usize) -> (&mut Buffer, usize) {
        let (start, buffer) = self
            .activations
            .range_mut(..=offset)
            .next_back()
            .expect("the plan places every value in the arena");
        (buffer, offset - start)
    }
}

struct SimtSession {
    program: Arc<Program>,
    emulator: Emulator,
    options: Options<'static>,
    parameters: Arc<Mutex<Parameters>>,
    memory: Memory,
    resolved: Vec<ResolvedStep>,
    kernels: BTreeMap<&'static str, Kernel>,
    unwritten: UnwrittenInputs,
    collectives: Collectives,
}

impl SimtSession {
    /// Hands a part of a collective to the engine.
    fn run_collective(
        &mut self,
        index: usize,
        (number, part): (usize, CollectivePart),
        parameters: &Parameters,
    ) -> Result<()> {
        let instruction = &self.program.ops()[index].instruction;
        let value = match part {
            CollectivePart::Begin(_) => instruction.inputs[0],
            CollectivePart::Finish => instruction.outputs[0],
        };
        let ty = self.program.ty(value);
        let range = range(self.program.place(value), ty.dtype, ty.bytes());
        let range = range.expect("an op that runs has all its values placed");
        let range = parameters.held.placed(range);
        let mut bytes = vec![0; range.bytes];
        match part {
            CollectivePart::Begin(kind) => {
                let (buffer, offset) = self.memory.locate(parameters, range);
                buffer.read_bytes(offset, &mut bytes)?;
                self.collectives.begin(number, kind, &bytes)
            }
            CollectivePart::Finish => {
                self.collectives.finish(number, &mut bytes)?;
                let (buffer, offset) = match range.space {
                    Space::Activations => self.memory.activations_mut(range.offset),
                    // What arrives is no parameter.
                    Space::Fixed(arena) => (self.memory.fixed.get_mut(arena), range.offset),
                };
                buffer.write_bytes(offset, &bytes)
            }
        }
    }

    fn run_op(&mut self, index: usize, parameters: &Parameters) -> Result<()> {
        // What an op leaves unwritten must show: nothing of an earlier op or run may be left there.
        for undefined in &self.resolved[index].undefined {
            let (buffer, offset) = self.memory.activations_mut(undefined.offset);
            buffer.write_bytes(offset, &vec![0xff; undefined.bytes])?;
        }
        if let Some(part) = self.program.ops()[index].instruction.op.collective() {
            return self.run_collective(index, part, parameters);
        }
        for launch in &self.resolved[index].launches {
            let kernel = &self.kernels[launch.kernel.name];
            let threads = kernel.threads.unwrap_or(32);
            let arguments: Vec<Argument<'_>> = launch
                .arguments
                .iter()
                .map(|argument| match *argument {
                    ResolvedArgument::ByteRange(range) => {
                        let (buffer, offset) = self.memory.locate(parameters, range);
                        Argument::Slice {
                            buffer,
                            element: range.element.into(),
                            offset,
                            bytes: range.bytes,
                        }
                    }
                    ResolvedArgument::Null => Argument::Null,
                    ResolvedArgument::I32(value) => Argument::I32(value),
                    ResolvedArgument::I64(value) => Argument::I64(value),
                    ResolvedArgument::F32(value) => Argument::F32(value),
                    ResolvedArgument::TensorMap(range, map) => {
                        let (buffer, offset) = self.memory.locate(parameters, range);
                        Argument::TensorMap {
                            buffer,
                            offset,
                            bytes: range.bytes,
                            map,
                            is_writable: !matches!(map.of(), Mapped::Input(_)),
                        }
                    }
                })
                .collect();
            self.emulator
                .launch_clusters(
                    kernel,
                    launch.cluster,
                    launch.grid,
                    [threads, 1, 1],
                    kernel.shared_bytes,
                    &arguments,
                    &Options {
                        shared_limit: self
                            .options
                            .shared_limit
                            .max(Options::for_kernel(launch.kernel).shared_limit),
                        ..self.options
                    },
                )
                .map_err(|problem| {
                    let origin = self.program.ops()[index].instruction.origin();
                    Error::kernel(format!("{origin}: {problem}"))
                })?;
        }
        Ok(())
    }

    /// Runs all ops.
    fn run_all(&mut self, mut after: impl FnMut(usize, f64)) -> Result<()> {
        let parameters = self.parameters.clone();
        let parameters = lock(&parameters);
        for index in 0..self.resolved.len() {
            let start = Instant::now();
            self.run_op(index, &parameters)?;
            after(index, start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn write_bytes(
        &mut self,
        input: &str,
        elements: usize,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<()> {
        let value = self.program.input(input)?;
        let ty = self.program.ty(value);
        expect_input(input, ty, dtype, elements)?;
        if let Some(range) = range(self.program.place(value), ty.dtype, ty.bytes()) {
            let (buffer, offset) = self.memory.activations_mut(range.offset);
            buffer.write_bytes(offset, bytes)?;
        }
        self.unwritten.written(value);
        Ok(())
    }
}

impl Session for SimtSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn run(&mut self) -> Result<()> {
        self.unwritten.expect_none()?;
        self.run_all(|_, _| {})
    }

    fn run_gradients(&mut self) -> Result<()> {
        self.unwritten.expect_none_before_update()?;
        let parameters = self.parameters.clone();
        let parameters = lock(&parameters);
        let program = self.program.clone();
        let mut gradients = (0..program.gradient_ops()).filter(|op| !program.is_exchange(*op));
        gradients.try_for_each(|index| self.run_op(index, &parameters))
    }

    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()> {
        self.unwritten.expect_none()?;
        self.run_all(|index, elapsed| seconds[index] += elapsed)
    }

    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()> {
        let dtype = self.program.ty(self.program.input(input)?).dtype;
        let dtype = match dtype {
            DType::Bf16 => DType::Bf16,
            _ => DType::F32,
        };
        self.write_bytes(input, values.len(), dtype, &to_bytes(values, dtype))
    }

    fn write_i32(&mut self, input: &str, values: &[i32]) -> Result<()> {
        self.write_bytes(
            input,
            values.len(),
            DType::I32,
            bytemuck::cast_slice(values),
        )
    }

    fn read_f64(&self, output: &str) -> Result<Vec<f64>> {
        let value = self.program.output(output)?;
        let ty = self.program.ty(value);
        let Some(range) = range(self.program.place(value), ty.dtype, ty.bytes()) else {
            return Ok(vec![0.0; ty.numel()]);
        };
        let parameters = lock(&self.parameters);
        let range = parameters.held.placed(range);
        let (buffer, offset) = self.memory.locate(&parameters, range);
        let mut bytes = vec![0; range.bytes];
        buffer.read_bytes(offset, &mut bytes)?;
        Ok(to_doubles(&bytes, ty.dtype))
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        expect_declared(&self.program, arena)?;
        let parameters = lock(&self.parameters);
        let whole = ByteRange {
            space: Space::Fixed(arena),
            offset: 0,
            bytes: 0,
            element: arena.element(),
        };
        let (buffer, _) = self.memory.locate(&parameters, whole);
        let elements = buffer.bytes() / arena.element().size();
        read_singles(elements, arena.element(), |bytes| {
            buffer.read_bytes(0, bytes)
        })
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        expect_declared(&self.program, arena)?;
        let bytes = to_bytes(values, arena.element());
        let parameters = self.parameters.clone();
        let mut parameters = lock(&parameters);
        let buffer = match arena {
            Arena::Parameters => &mut parameters.masters,
            Arena::ParametersBf16 => &mut parameters.bf16_copies,
            _ => self.memory.fixed.get_mut(arena),
        };
        expect_arena(arena, buffer.bytes() / arena.element().size(), values.len())?;
        buffer.write_bytes(0, &bytes)
    }
}
