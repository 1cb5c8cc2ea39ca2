//! Runs programs on the machine: the launches that a GPU would get. Every value has an allocation of its own, and every launch
//! is also given to the emulator with the same bytes before it, so that each kernel's results can be compared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use keel_base::error::{Error, Result};
use keel_engine::executor::collectives::Collectives;
use keel_engine::executor::resolved::{
    Abilities, ByteRange, ResolvedArgument, ResolvedLaunch, ResolvedStep, Space, range, resolve,
    to_bytes, to_doubles,
};
use keel_engine::executor::simt::Emulator;
use keel_engine::executor::{Executor, Session};
use keel_engine::launch::{Mapped, Parameter};
use keel_engine::program::Program;
use keel_engine::tape::{Arena, CollectivePart, CompileTarget, Target, Tier};
use keel_engine::tensor::DType;
use keel_ranks::SharedEngine;

use super::agents::TensorArgument;
use super::agreement::{Record, Written, compare};
use super::block::{Launch, Options, launch};
use super::code::Code;
use super::counts::Counts;
use super::image::Kernels;
use super::memory::{Extent, Memory};

/// Clusters are not executed.
const ABILITIES: Abilities = Abilities {
    launches_clusters: false,
    passes_maps: true,
};

/// Runs programs on the machine. See the module's documentation.
pub struct PtxExecutor {
    memory: Arc<Mutex<Memory>>,
    parameters: [usize; 2],
    elements: usize,
    options: Options,
    emulator: Option<Emulator>,
    record: Arc<Mutex<Record>>,
    kernels: Arc<Kernels>,
    precision: DType,
    tier: Tier,
    is_bounded: bool,
    engine: Option<SharedEngine>,
}

impl PtxExecutor {
    /// An executor with a parameter arena of `elements` elements, all zero. What its kernels do is entered in `record`, and
    /// held against the emulator where this program has one.
    ///
    /// # Errors
    /// [`Error::Device`] when this program has no images or no text of them.
    pub fn new(
        elements: usize,
        options: Options,
        record: Arc<Mutex<Record>>,
    ) -> Result<PtxExecutor> {
        super::image::texts().map_err(|problem| Error::Device {
            device: "ptx".to_owned(),
            problem,
            remedy: "run cargo tool nvcc and build again".to_owned(),
        })?;
        let mut memory = Memory::default();
        let parameters = [DType::F32, DType::Bf16].map(|dtype| {
            let bytes = elements * dtype.size();
            let allocation = memory.allocate(bytes);
            memory.write(allocation, 0, &vec![0; bytes]);
            allocation
        });
        Ok(PtxExecutor {
            memory: Arc::new(Mutex::new(memory)),
            parameters,
            elements,
            options,
            emulator: Emulator::new().ok(),
            record,
            kernels: Kernels::shared(),
            precision: DType::F32,
            tier: Tier::Portable,
            is_bounded: false,
            engine: None,
        })
    }

    /// The executor with `precision` for its programs, f32 by default.
    pub fn in_precision(self, precision: DType) -> PtxExecutor {
        PtxExecutor { precision, ..self }
    }

    /// The executor with kernels of `tier` for its programs, portable ones by default.
    pub fn in_tier(self, tier: Tier) -> PtxExecutor {
        PtxExecutor { tier, ..self }
    }

    /// The executor that also holds launches with fused or approximate instructions to a bound against the emulator, for inputs
    /// of the usual size. Without it only those of exact instructions are held, to the last bit.
    pub fn within_bound(self) -> PtxExecutor {
        PtxExecutor {
            is_bounded: true,
            ..self
        }
    }

    /// The executor with `kernels` in the place of those of this program's images.
    pub fn with_kernels(self, kernels: Kernels) -> PtxExecutor {
        PtxExecutor {
            kernels: Arc::new(kernels),
            ..self
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Executor for PtxExecutor {
    fn describe(&self) -> String {
        "ptx, the CUDA kernels' PTX on a machine of its own".to_owned()
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
        let resolved = resolve(&program)?;
        let collectives = Collectives::new("ptx", self.engine.as_ref(), &program)?;
        let mut codes = BTreeMap::new();
        for launch in resolved.iter().flat_map(|step| &step.launches) {
            launch.require("ptx", ABILITIES)?;
            let name = launch.kernel.name;
            let code = self.kernels.code(name).map_err(Error::kernel)?;
            codes.insert(name, code);
        }
        let mut memory = lock(&self.memory);
        let activations = allocate(&program, |bytes| memory.allocate(bytes));
        let mut fixed: Vec<(Arena, usize)> = vec![
            (Arena::Parameters, self.parameters[0]),
            (Arena::ParametersBf16, self.parameters[1]),
        ];
        for (_, arena) in program.session_arenas() {
            let bytes = program.arena_elements(arena, 0) * arena.element().size();
            let allocation = memory.allocate(bytes);
            memory.write(allocation, 0, &vec![0; bytes]);
            fixed.push((arena, allocation));
        }
        drop(memory);
        Ok(Box::new(PtxSession {
            program,
            memory: self.memory.clone(),
            places: Places { activations, fixed },
            resolved,
            codes,
            options: self.options,
            emulator: self.emulator,
            record: self.record.clone(),
            is_bounded: self.is_bounded,
            collectives,
        }))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        expect_elements("parameters", self.elements, offset + values.len())?;
        let mut memory = lock(&self.memory);
        for (dtype, allocation) in [DType::F32, DType::Bf16].into_iter().zip(self.parameters) {
            memory.write(allocation, offset * dtype.size(), &to_bytes(values, dtype));
        }
        Ok(())
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        expect_elements("parameters", self.elements, offset + values.len())?;
        let memory = lock(&self.memory);
        let bytes = &memory.get(self.parameters[0]).data[4 * offset..][..4 * values.len()];
        bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
        Ok(())
    }
}

fn expect_elements(what: &str, most: usize, wanted: usize) -> Result<()> {
    if wanted <= most {
        return Ok(());
    }
    Err(Error::setting(
        what,
        format!("up to {most} elements"),
        wanted,
    ))
}

/// An allocation for each place in a program's memory of activations, by its offset; one for all where values share places.
pub fn allocate(
    program: &Program,
    mut allocate: impl FnMut(usize) -> usize,
) -> BTreeMap<usize, usize> {
    let mut places: Vec<(usize, usize)> = program
        .planned()
        .iter()
        .map(|planned| (planned.offset as usize, planned.bytes as usize))
        .collect();
    places.sort_unstable();
    let shares = places
        .windows(2)
        .any(|pair| pair[0].0 + pair[0].1 > pair[1].0);
    if shares {
        places = vec![(0, program.arena_bytes())];
    }
    let places = places.into_iter();
    places
        .map(|(offset, bytes)| (offset, allocate(bytes)))
        .collect()
}

/// Where the ranges of a program lie.
struct Places {
    activations: BTreeMap<usize, usize>,
    fixed: Vec<(Arena, usize)>,
}

impl Places {
    /// The allocation of a range and the range's first byte there.
    fn locate(&self, range: ByteRange) -> (usize, usize) {
        match range.space {
            Space::Activations => {
                let before = self.activations.range(..=range.offset).next_back();
                let (start, allocation) = before.expect("the plan places every value");
                (*allocation, range.offset - start)
            }
            Space::Fixed(arena) => {
                let found = self.fixed.iter().find(|(known, _)| *known == arena);
                let (_, allocation) = found.expect("the program declares what it uses");
                (*allocation, range.offset)
            }
        }
    }
}

/// Ends each range where the next of the same allocation begins: a pointer into the workspace reaches to its end, over the
/// places of other pointers, whose elements may be of another type.
fn cut(written: &mut [Written]) {
    let starts: Vec<(usize, usize)> = written.iter().map(|w| (w.allocation, w.offset)).collect();
    for range in written {
        let is_behind = |(allocation, offset): &&(usize, usize)| {
            *allocation == range.allocation && *offset > range.offset
        };
        let behind = starts.iter().filter(is_behind);
        let behind = behind.map(|(_, offset)| offset - range.offset);
        range.bytes = behind.fold(range.bytes, usize::min);
    }
}

struct PtxSession {
    program: Arc<Program>,
    memory: Arc<Mutex<Memory>>,
    places: Places,
    resolved: Vec<ResolvedStep>,
    codes: BTreeMap<&'static str, Arc<Code>>,
    options: Options,
    emulator: Option<Emulator>,
    record: Arc<Mutex<Record>>,
    is_bounded: bool,
    collectives: Collectives,
}

impl PtxSession {
    /// Hands a part of a collective to the engine.
    fn run_collective(
        &mut self,
        index: usize,
        (number, part): (usize, CollectivePart),
        memory: &mut Memory,
    ) -> Result<()> {
        let instruction = &self.program.ops()[index].instruction;
        let value = match part {
            CollectivePart::Begin(_) => instruction.inputs[0],
            CollectivePart::Finish => instruction.outputs[0],
        };
        let ty = self.program.ty(value);
        let range = range(self.program.place(value), ty.dtype, ty.bytes());
        let range = range.expect("an op that runs has all its values placed");
        let (allocation, offset) = self.places.locate(range);
        match part {
            CollectivePart::Begin(kind) => {
                let sent = &memory.get(allocation).data[offset..][..range.bytes];
                self.collectives.begin(number, kind, sent)
            }
            CollectivePart::Finish => {
                let mut received = vec![0; range.bytes];
                self.collectives.finish(number, &mut received)?;
                memory.write(allocation, offset, &received);
                Ok(())
            }
        }
    }

    fn run_op(&mut self, index: usize, memory: &mut Memory) -> Result<()> {
        for undefined in &self.resolved[index].undefined {
            let (allocation, offset) = self.places.locate(*undefined);
            memory.forget(allocation, offset, undefined.bytes);
        }
        if let Some(part) = self.program.ops()[index].instruction.op.collective() {
            return self.run_collective(index, part, memory);
        }
        for launch in &self.resolved[index].launches {
            self.launch(launch, memory).map_err(|problem| {
                let name = self.program.ops()[index].instruction.op.name();
                Error::kernel(format!("op {name}: {problem}"))
            })?;
        }
        Ok(())
    }

    /// Runs one launch on the machine and on the emulator, and compares what they wrote.
    fn launch(
        &self,
        resolved: &ResolvedLaunch,
        memory: &mut Memory,
    ) -> std::result::Result<(), String> {
        let code = &self.codes[resolved.kernel.name];
        let (mut arguments, mut extents, mut written) = (Vec::new(), Vec::new(), Vec::new());
        let mut maps = Vec::new();
        for (argument, parameter) in resolved.arguments.iter().zip(resolved.kernel.parameters) {
            let bits = match *argument {
                ResolvedArgument::ByteRange(range) => {
                    let (allocation, offset) = self.places.locate(range);
                    let is_writable = matches!(
                        parameter,
                        Parameter::Pointer {
                            is_const: false,
                            ..
                        }
                    );
                    let start = memory.get(allocation).start + offset as u64;
                    extents.push(Extent {
                        start,
                        bytes: range.bytes as u64,
                        is_writable,
                        allocation,
                    });
                    if is_writable {
                        written.push(Written {
                            allocation,
                            offset,
                            bytes: range.bytes,
                            element: range.element,
                        });
                    }
                    start
                }
                ResolvedArgument::Null => 0,
                ResolvedArgument::I32(value) => u64::from(value as u32),
                ResolvedArgument::I64(value) => value as u64,
                ResolvedArgument::F32(value) => u64::from(value.to_bits()),
                ResolvedArgument::TensorMap(range, map) => {
                    let (allocation, offset) = self.places.locate(range);
                    let is_writable = !matches!(map.of(), Mapped::Input(_));
                    let address = memory.get(allocation).start + offset as u64;
                    extents.push(Extent {
                        start: address,
                        bytes: range.bytes as u64,
                        is_writable,
                        allocation,
                    });
                    if is_writable {
                        written.push(Written {
                            allocation,
                            offset,
                            bytes: range.bytes,
                            element: range.element,
                        });
                    }
                    maps.push(TensorArgument { address, map });
                    TensorArgument::bits(maps.len() - 1)
                }
            };
            arguments.push(bits);
        }
        cut(&mut written);
        let launched = Launch {
            code,
            grid: resolved.grid,
            threads: if code.threads == 0 { 32 } else { code.threads },
            arguments: &arguments,
            extents: &extents,
            maps: &maps,
        };
        let mut counts = Counts::of(code);
        let emulated = match &self.emulator {
            Some(emulator) => {
                let locate = |range| self.places.locate(range);
                Some(super::agreement::emulate(
                    emulator, resolved, memory, locate,
                )?)
            }
            None => None,
        };
        let blocks = 0..launched.blocks();
        launch(&launched, blocks, memory, &self.options, Some(&mut counts))?;
        let compared = emulated
            .map(|emulated| compare(code, &counts, memory, &written, &emulated, self.is_bounded));
        lock(&self.record).enter(code, &counts, compared.transpose()?);
        Ok(())
    }

    fn run_all(&mut self, mut after: impl FnMut(usize, f64)) -> Result<()> {
        let memory = self.memory.clone();
        let mut memory = lock(&memory);
        for index in 0..self.resolved.len() {
            let start = Instant::now();
            self.run_op(index, &mut memory)?;
            after(index, start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn write_bytes(&self, input: &str, elements: usize, dtype: DType, bytes: &[u8]) -> Result<()> {
        let value = self.program.input(input)?;
        let ty = self.program.ty(value);
        if ty.dtype != dtype || ty.numel() != elements {
            let found = format!("{elements} elements of type {dtype}");
            return Err(Error::setting(format!("program input {input}"), ty, found));
        }
        if let Some(range) = range(self.program.place(value), ty.dtype, ty.bytes()) {
            let (allocation, offset) = self.places.locate(range);
            lock(&self.memory).write(allocation, offset, bytes);
        }
        Ok(())
    }
}

impl Session for PtxSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn run(&mut self) -> Result<()> {
        self.run_all(|_, _| {})
    }

    fn run_gradients(&mut self) -> Result<()> {
        let memory = self.memory.clone();
        let mut memory = lock(&memory);
        let program = self.program.clone();
        let mut gradients = (0..program.gradient_ops()).filter(|op| !program.is_exchange(*op));
        gradients.try_for_each(|index| self.run_op(index, &mut memory))
    }

    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()> {
        self.run_all(|index, elapsed| seconds[index] += elapsed)
    }

    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()> {
        let dtype = match self.program.ty(self.program.input(input)?).dtype {
            DType::Bf16 => DType::Bf16,
            _ => DType::F32,
        };
        self.write_bytes(input, values.len(), dtype, &to_bytes(values, dtype))
    }

    fn write_i32(&mut self, input: &str, values: &[i32]) -> Result<()> {
        let bytes = bytemuck::cast_slice(values);
        self.write_bytes(input, values.len(), DType::I32, bytes)
    }

    fn read_f64(&self, output: &str) -> Result<Vec<f64>> {
        let value = self.program.output(output)?;
        let ty = self.program.ty(value);
        let Some(range) = range(self.program.place(value), ty.dtype, ty.bytes()) else {
            return Ok(vec![0.0; ty.numel()]);
        };
        let (allocation, offset) = self.places.locate(range);
        let memory = lock(&self.memory);
        let bytes = &memory.get(allocation).data[offset..][..range.bytes];
        Ok(to_doubles(bytes, ty.dtype))
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        let allocation = self.arena(arena)?;
        let memory = lock(&self.memory);
        let values = to_doubles(&memory.get(allocation).data, arena.element());
        Ok(values.into_iter().map(|x| x as f32).collect())
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        let allocation = self.arena(arena)?;
        let mut memory = lock(&self.memory);
        let elements = memory.get(allocation).bytes / arena.element().size();
        if elements != values.len() {
            let want = format!("{elements} elements");
            return Err(Error::setting(
                format!("{arena:?} arena"),
                want,
                values.len(),
            ));
        }
        memory.write(allocation, 0, &to_bytes(values, arena.element()));
        Ok(())
    }
}

impl PtxSession {
    fn arena(&self, arena: Arena) -> Result<usize> {
        let found = self.places.fixed.iter().find(|(known, _)| *known == arena);
        found.map(|(_, allocation)| *allocation).ok_or_else(|| {
            Error::setting(
                "arena",
                "one that the program declares",
                format!("{arena:?}"),
            )
        })
    }
}
