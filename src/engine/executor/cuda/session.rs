//! A program on the GPU: its arenas, its launches, and the graph they are captured in.

use std::sync::Arc;

use super::super::inputs::UnwrittenInputs;
use super::super::resolved::{
    ByteRange, Space, range, read_singles, resolve, to_bytes, to_doubles,
};
use super::super::session_arenas::SessionArenas;
use super::super::{Session, expect_arena, expect_declared, expect_input, expect_inside};
use super::collectives::DeviceCollectives;
use super::executor::Parameters;
use super::gpu::{Event, Gpu};
use super::graph::{Graph, Refusal};
use super::kernels::Kernels;
use super::launch::PreparedLaunch;
use super::memory::DeviceMemory;
use super::staging::Staging;
use crate::program::Program;
use crate::tape::Arena;
use crate::tensor::DType;
use keel_base::error::Result;
use keel_ranks::SharedEngine;

/// The arenas of one session, and the parameters' that all sessions share.
pub(super) struct Memory {
    pub activations: DeviceMemory,
    fixed: SessionArenas<DeviceMemory>,
    parameters: Arc<Parameters>,
}

impl Memory {
    fn new(gpu: &Arc<Gpu>, program: &Program, parameters: Arc<Parameters>) -> Result<Memory> {
        let fixed = |what: &str, arena: Arena, elements: usize| {
            let bytes = elements * arena.element().size();
            DeviceMemory::new(gpu, &format!("memory of {what}"), bytes, 0)
        };
        let bytes = program.arena_bytes();
        Ok(Memory {
            // NaN until written: what a run reads without writing it shows.
            activations: DeviceMemory::new(gpu, "memory of activations", bytes, 0xff)?,
            fixed: SessionArenas::new(program, fixed)?,
            parameters,
        })
    }

    /// A range where it lies: of the parameters among those that are held.
    pub fn placed(&self, range: ByteRange) -> ByteRange {
        self.parameters.held.placed(range)
    }

    /// The arena of a space.
    pub fn space(&self, space: Space) -> &DeviceMemory {
        match space {
            Space::Activations => &self.activations,
            Space::Fixed(Arena::Parameters) => &self.parameters.masters,
            Space::Fixed(Arena::ParametersBf16) => self.parameters.bf16_copies(),
            Space::Fixed(arena) => self.fixed.get(arena),
        }
    }
}

/// See the module's documentation.
pub(super) struct CudaSession {
    program: Arc<Program>,
    collectives: DeviceCollectives,
    pub gpu: Arc<Gpu>,
    // Fields go in this order: graphs before the launches, which keep the images that graphs refer to, and all of them
    // before the memory.
    /// All launches at once; `None` when they are started one by one.
    graph: Option<Graph>,
    /// Those before the update, in a program that accumulates gradients.
    gradient_graph: Option<Graph>,
    /// Those of each op of the program.
    pub launches: Vec<Vec<Arc<PreparedLaunch>>>,
    staging: Staging,
    unwritten: UnwrittenInputs,
    /// One before each op and one after the last, made when first wanted.
    marks: Vec<Event>,
    pub memory: Memory,
}

impl CudaSession {
    /// Readies a program: memory, kernels, checked launches, graph.
    pub fn new(
        gpu: &Arc<Gpu>,
        kernels: &Kernels,
        parameters: &Arc<Parameters>,
        engine: Option<&SharedEngine>,
        program: Arc<Program>,
    ) -> Result<CudaSession> {
        gpu.bind()?;
        let mut resolved = resolve(&program)?;
        parameters.held.place_arguments(&mut resolved);
        let memory = Memory::new(gpu, &program, parameters.clone())?;
        let locate = |range: ByteRange| {
            let arena = memory.space(range.space);
            (arena.address(), arena.bytes())
        };
        let mut launches = Vec::with_capacity(resolved.len());
        for (op, resolved) in program.ops().iter().zip(&resolved) {
            let origin = op.instruction.origin();
            let prepared = resolved.launches.iter().map(|launch| {
                PreparedLaunch::new(gpu, kernels, launch, origin.clone(), locate).map(Arc::new)
            });
            launches.push(prepared.collect::<Result<Vec<_>>>()?);
        }
        let staging = Staging::new(gpu, &program)?;
        let collectives = DeviceCollectives::new(engine, &program, &memory)?;
        let mut session = CudaSession {
            unwritten: UnwrittenInputs::of(&program),
            collectives,
            program,
            gpu: gpu.clone(),
            launches,
            graph: None,
            gradient_graph: None,
            staging,
            marks: Vec::new(),
            memory,
        };
        session.capture()?;
        Ok(session)
    }

    /// Captures the step as a graph. Hundreds of launches as one: the host would otherwise spend as long on them as a small
    /// model's GPU on computing. Not where each launch is waited for, which a graph cannot do, and not where another rank cannot.
    fn capture(&mut self) -> Result<()> {
        let all = 0..self.launches.len();
        self.graph = self.captured(all)?;
        if self.program.accumulates_gradients() {
            let gradients = 0..self.program.gradient_ops();
            let sends_later = |op: &usize| !self.program.is_exchange(*op);
            self.gradient_graph = self.captured(gradients.filter(sends_later))?;
        }
        let lacks_gradients = self.program.accumulates_gradients() && self.gradient_graph.is_none();
        let is_whole = self.graph.is_some() && !lacks_gradients;
        if !self.collectives.is_empty() && !self.collectives.all_agree(&self.gpu, is_whole)? {
            (self.graph, self.gradient_graph) = (None, None);
        }
        Ok(())
    }

    /// A graph of these ops; none where there is nothing to launch or the driver cannot capture.
    fn captured(&self, ops: impl Iterator<Item = usize>) -> Result<Option<Graph>> {
        let ops: Vec<usize> = ops.collect();
        if self.gpu.is_synchronous || ops.iter().all(|op| self.launches[*op].is_empty()) {
            return Ok(None);
        }
        Graph::capture(&self.gpu, &|stream| {
            for op in &ops {
                let ran = self.collectives.run_on(*op, stream);
                if ran.map_err(Refusal::Collective)? {
                    continue;
                }
                for launch in &self.launches[*op] {
                    let queued = launch.enqueue_on(&self.gpu, stream);
                    queued.map_err(|problem| Refusal::Launch(launch.clone(), problem))?;
                }
            }
            Ok(())
        })
    }

    /// Starts one op's launches; waits for each when asked to.
    fn run_op(&self, index: usize) -> Result<()> {
        let order = self.gpu.in_order();
        if self.collectives.run_on(index, self.gpu.compute())? {
            return Ok(());
        }
        drop(order);
        for launch in &self.launches[index] {
            self.start(launch)?;
        }
        Ok(())
    }

    /// Starts one launch and waits for it.
    #[cfg(feature = "cust")]
    pub fn run_launch(&self, launch: &Arc<PreparedLaunch>) -> Result<()> {
        self.start(launch)?;
        self.gpu.wait_for(launch)
    }

    fn start(&self, launch: &Arc<PreparedLaunch>) -> Result<()> {
        launch
            .enqueue(&self.gpu)
            .map_err(|problem| self.gpu.launch_error(launch, problem))?;
        if self.gpu.is_synchronous {
            self.gpu.wait_for(launch)?;
        }
        Ok(())
    }

    /// Brings what was written since the last run to its places.
    pub fn submit_inputs(&mut self) -> Result<()> {
        self.gpu.bind()?;
        self.staging.submit(&self.memory.activations)
    }

    fn write_bytes(
        &mut self,
        input: &str,
        elements: usize,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<()> {
        let value = self.program.input(input)?;
        expect_input(input, self.program.ty(value), dtype, elements)?;
        self.gpu.bind()?;
        self.staging.write(value, bytes)?;
        self.unwritten.written(value);
        Ok(())
    }

    fn read_whole(&self, arena: Arena) -> Result<Vec<f32>> {
        let memory = self.memory.space(Space::Fixed(arena));
        let elements = memory.bytes() / arena.element().size();
        read_singles(elements, arena.element(), |bytes| memory.download(0, bytes))
    }
}

impl Session for CudaSession {
    fn program(&self) -> &Program {
        &self.program
    }

    /// Starts the step and returns: what is written now reaches the device while it computes. A fault is reported by the
    /// call that next waits for the GPU.
    fn run(&mut self) -> Result<()> {
        self.unwritten.expect_none()?;
        self.submit_inputs()?;
        match &self.graph {
            Some(graph) => graph.launch(),
            None => (0..self.launches.len()).try_for_each(|index| self.run_op(index)),
        }
    }

    fn run_gradients(&mut self) -> Result<()> {
        self.unwritten.expect_none_before_update()?;
        self.submit_inputs()?;
        match &self.gradient_graph {
            Some(graph) => graph.launch(),
            None => {
                let all = 0..self.program.gradient_ops();
                let mut gradients = all.filter(|op| !self.program.is_exchange(*op));
                gradients.try_for_each(|index| self.run_op(index))
            }
        }
    }

    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()> {
        self.unwritten.expect_none()?;
        self.submit_inputs()?;
        while self.marks.len() <= self.launches.len() {
            self.marks.push(Event::new(&self.gpu, true)?);
        }
        for index in 0..self.launches.len() {
            // Marks between ops on the one stream: the end of an op is the start of the next, and nothing waits until
            // all are queued.
            self.marks[index].record(self.gpu.compute())?;
            self.run_op(index)?;
        }
        self.marks[self.launches.len()].record(self.gpu.compute())?;
        self.gpu.look_at_clock();
        self.gpu.wait()?;
        for (index, pair) in self.marks.windows(2).enumerate() {
            seconds[index] += pair[1].seconds_since(&pair[0])?;
        }
        Ok(())
    }

    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()> {
        let dtype = match self.program.ty(self.program.input(input)?).dtype {
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
        let range = self.memory.placed(range);
        let mut bytes = vec![0; range.bytes];
        self.memory
            .space(range.space)
            .download(range.offset, &mut bytes)?;
        Ok(to_doubles(&bytes, ty.dtype))
    }

    fn read_f32(&self, output: &str) -> Result<Vec<f32>> {
        let value = self.program.output(output)?;
        let ty = self.program.ty(value);
        let Some(range) = range(self.program.place(value), ty.dtype, ty.bytes()) else {
            return Ok(vec![0.0; ty.numel()]);
        };
        let range = self.memory.placed(range);
        let memory = self.memory.space(range.space);
        read_singles(ty.numel(), ty.dtype, |bytes| {
            memory.download(range.offset, bytes)
        })
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        expect_declared(&self.program, arena)?;
        self.read_whole(arena)
    }

    fn takes_inputs_early(&self) -> bool {
        true
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        expect_declared(&self.program, arena)?;
        let memory = self.memory.space(Space::Fixed(arena));
        expect_arena(arena, memory.bytes() / arena.element().size(), values.len())?;
        memory.upload(0, &to_bytes(values, arena.element()))
    }

    fn write_arena_from(&mut self, arena: Arena, first: usize, values: &[f32]) -> Result<()> {
        expect_declared(&self.program, arena)?;
        let memory = self.memory.space(Space::Fixed(arena));
        let element = arena.element();
        let elements = memory.bytes() / element.size();
        expect_inside(arena, elements, first..first + values.len())?;
        memory.upload(first * element.size(), &to_bytes(values, element))
    }
}

impl Drop for CudaSession {
    fn drop(&mut self) {
        // Graphs go first, before anything else of this value, and nothing of theirs may be under way; a dead context has
        // nothing under way.
        self.gpu.bind().ok();
        self.gpu.wait().ok();
        self.gpu.forget();
    }
}
