//! A program: a recorded tape with every byte placed, ready to run any number of times.
//!
//! Compiling fuses ops, drops what nothing reads, lets outputs take their inputs' places, finds each value's life and asks the
//! planner for its offset. Nothing is decided or allocated while a step runs.

mod lifetimes;
mod recompute;
mod report;
mod svg;

use std::collections::HashMap;
use std::ops::Range;

use self::lifetimes::Laid;
use crate::plan;
use crate::tape::{
    Arena, CollectivePart, CompileTarget, Cost, EXCHANGE, GradientEntry, Instruction,
    OptimizerState, ParameterSpec, StatePiece, Storage, Tape, UPDATE, Value, ValueInfo, root,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result, nearest};
use keel_ranks::order::{Cut, partial_sums};
use keel_ranks::{Collective, Kind, World};

pub use lifetimes::{Class, PlannedBytes};
pub use report::MemoryReport;
pub use svg::{draw_memory, escape};

/// Every planned value starts at a multiple of this many bytes: a cache line, and a full vector register.
pub const ALIGNMENT: usize = 64;

/// The share of a step's work that goes into computing cheap values again: too little to be seen in a step's time.
pub const SPARE_WORK: f64 = 0.01;

/// How a tape becomes a program.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// The target it is compiled for; the precision is the tape's.
    pub compile_target: CompileTarget,
    /// Whether values share memory; off gives each its own place, for tests of the planner.
    pub share_memory: bool,
    /// The most bytes the arena of activations may take; met by computing values again in the backward pass.
    pub memory_budget: Option<u64>,
    /// The share of the step's work that may go into computing cheap values again, to save memory without a budget.
    pub spare_work: f64,
    /// Names of intermediate values to keep readable after a run.
    pub keep: Vec<String>,
}

impl CompileOptions {
    /// Shared memory, no budget, [`SPARE_WORK`], nothing kept.
    pub fn new(compile_target: impl Into<CompileTarget>) -> CompileOptions {
        CompileOptions {
            compile_target: compile_target.into(),
            share_memory: true,
            memory_budget: None,
            spare_work: SPARE_WORK,
            keep: Vec::new(),
        }
    }
}

/// The place of a value at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the arena of activations, from this byte on.
    Activations(usize),
    /// In a fixed arena, from this element on.
    Fixed(Arena, usize),
    /// Nowhere: nothing reads or writes it.
    Dropped,
}

/// A recorded op, planned: what its executor needs to know beside it.
#[derive(Clone, Debug)]
pub struct PlannedOp {
    /// The recorded op.
    pub instruction: Instruction,
    /// For each input, the output that lies in its place.
    pub in_place: Vec<Option<usize>>,
    /// First byte in the arena of activations and size in bytes of the scratch memory.
    pub workspace: (usize, usize),
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Program {
    compile_target: CompileTarget,
    values: Vec<ValueInfo>,
    places: Vec<Place>,
    ops: Vec<PlannedOp>,
    inputs: HashMap<String, Value>,
    outputs: HashMap<String, Value>,
    parameters: Vec<(ParameterSpec, Value)>,
    gradient_entries: Vec<GradientEntry>,
    gradient_elements: usize,
    sent_elements: Option<usize>,
    cache_elements: [usize; 2],
    world: World,
    shards: Option<Cut>,
    whole_shard_elements: usize,
    masters_in_shards: Vec<Range<usize>>,
    optimizer_state: Vec<OptimizerState>,
    accumulates_gradients: bool,
    tree: Option<usize>,
    arena_bytes: usize,
    planned: Vec<PlannedBytes>,
    lower_bound: u64,
    peak: plan::Bound,
}

impl Program {
    /// Plans a tape.
    ///
    /// # Errors
    /// [`Error::Setting`] when a kept name is unknown or the budget cannot be met.
    pub fn compile(mut tape: Tape, options: &CompileOptions) -> Result<Program> {
        let options = &CompileOptions {
            compile_target: CompileTarget {
                precision: tape.precision(),
                ..options.compile_target
            },
            ..options.clone()
        };
        // Fusing first: what it merges must neither be counted as needed nor be planned.
        tape.fuse();
        tape.hoist();
        let kept = kept_values(&tape, options)?;
        // Dropping shows in lifetimes: a value whose one reader nobody needs must not live until that reader.
        let needed = needed_instructions(&tape, &kept);
        let recorded: Vec<Instruction> = tape
            .instructions
            .iter()
            .zip(needed)
            .filter(|(_, needed)| *needed)
            .map(|(instruction, _)| instruction.clone())
            .collect();
        let planned = plan_within_budget((&tape.values, &recorded), &kept, options)?;
        let PlannedTape {
            values,
            instructions,
            laid,
            placement,
            lower_bound,
        } = planned;
        // Always, and not in tests alone: a plan that overlaps trains on corrupted numbers, and checking costs less
        // than planning.
        plan::check_placement(&laid.buffers, &placement)?;
        let places = (0..values.len())
            .map(|index| place_of(&values, index, &laid, &placement))
            .collect();
        let planned = laid.describe(&values, &placement);
        let peak = plan::lower_bound(&laid.buffers)?;
        let ops = planned_ops(instructions, laid, &placement);
        let inputs = values
            .iter()
            .enumerate()
            .filter(|(_, info)| info.is_input)
            .filter_map(|(index, info)| Some((info.name.clone()?, Value(index as u32))))
            .collect();
        let (world, tree) = (tape.world(), tape.tree());
        Ok(Program {
            compile_target: options.compile_target,
            values,
            places,
            ops,
            inputs,
            outputs: kept.into_iter().collect(),
            parameters: tape.parameters,
            gradient_entries: tape.gradient_entries,
            gradient_elements: tape.gradient_elements,
            sent_elements: tape.sent_elements,
            cache_elements: tape.cache_elements,
            world,
            shards: tape.shards,
            whole_shard_elements: tape.whole_shard_elements,
            masters_in_shards: tape.masters_in_shards,
            optimizer_state: tape.optimizer_state,
            accumulates_gradients: tape.accumulates_gradients,
            tree,
            arena_bytes: placement.arena as usize,
            planned,
            lower_bound,
            peak,
        })
    }

    /// The ops in order.
    pub fn ops(&self) -> &[PlannedOp] {
        &self.ops
    }

    /// The target it was compiled for.
    pub fn compile_target(&self) -> CompileTarget {
        self.compile_target
    }

    /// See [`Tape::accumulating_gradients`].
    pub fn accumulates_gradients(&self) -> bool {
        self.accumulates_gradients
    }

    /// Micro-batches of its rank in a step, where their gradients are added in a tree ([`Tape::adding_in_tree`]).
    pub fn tree(&self) -> Option<usize> {
        self.tree
    }

    /// The ops before the update: those that [`crate::executor::Session::run_gradients`] runs.
    pub fn gradient_ops(&self) -> usize {
        let is_update = |op: &PlannedOp| &*op.instruction.scope == UPDATE;
        let update = self.ops.iter().position(is_update);
        update.unwrap_or(self.ops.len())
    }

    /// A value's type.
    pub fn ty(&self, value: Value) -> TensorType {
        self.values[value.index()].ty
    }

    /// A value's place.
    pub fn place(&self, value: Value) -> Place {
        self.places[value.index()]
    }

    /// Everything known of the values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// The input of that name.
    ///
    /// # Errors
    /// [`Error::Setting`] listing the inputs there are.
    pub fn input(&self, name: &str) -> Result<Value> {
        find(&self.inputs, "program input", name)
    }

    /// The readable value of that name.
    ///
    /// # Errors
    /// [`Error::Setting`] listing the outputs there are.
    pub fn output(&self, name: &str) -> Result<Value> {
        find(&self.outputs, "program output", name)
    }

    /// All inputs by name, in no order.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, Value)> {
        self.inputs
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
    }

    /// Names of all inputs.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// Names of all readable values.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.keys().map(String::as_str)
    }

    /// The parameters the program uses.
    pub fn parameters(&self) -> &[(ParameterSpec, Value)] {
        &self.parameters
    }

    /// The trained parameters' places in the gradient arena and in those of optimiser state.
    pub fn gradient_entries(&self) -> &[GradientEntry] {
        &self.gradient_entries
    }

    /// What the update keeps from step to step, in the order in which it was declared.
    pub fn optimizer_state(&self) -> &[OptimizerState] {
        &self.optimizer_state
    }

    /// The fixed arenas that belong to one session, by what they hold: all but those of the parameters.
    pub fn session_arenas(&self) -> impl Iterator<Item = (&'static str, Arena)> {
        let state = self.optimizer_state.iter();
        let state = state.map(|state| (state.name, state.arena));
        let shard = self
            .shards
            .map(|_| ("gradients of this rank", Arena::GradientShard));
        let rounded = self
            .lies_in(Arena::RoundedShard)
            .then_some(("rounded parameters of this rank", Arena::RoundedShard));
        let whole = self
            .lies_in(Arena::WholeShard)
            .then_some(("whole parameters of this rank", Arena::WholeShard));
        let waiting = self
            .lies_in(Arena::PartialSums)
            .then_some(("partial sums of gradients", Arena::PartialSums));
        let rows = self
            .lies_in(Arena::CacheBf16)
            .then_some(("cache in bf16", Arena::CacheBf16));
        [("gradients", Arena::Gradients), ("cache", Arena::Cache)]
            .into_iter()
            .chain(rows)
            .chain(waiting)
            .chain(shard)
            .chain(rounded)
            .chain(whole)
            .chain(state)
    }

    /// Elements of a fixed arena that this program needs; `parameter_elements` is the layout's size.
    pub fn arena_elements(&self, arena: Arena, parameter_elements: usize) -> usize {
        match arena {
            Arena::Parameters => {
                let elsewhere: usize = self.masters_in_shards.iter().map(Range::len).sum();
                parameter_elements.saturating_sub(elsewhere)
            }
            Arena::ParametersBf16 if self.has_bf16_parameters() => parameter_elements,
            Arena::ParametersBf16 => 0,
            Arena::Gradients => self.sent_elements.unwrap_or(self.gradient_elements),
            Arena::OptimizerState(_) => {
                let mut declared = self.optimizer_state.iter();
                let state = declared.find(|state| state.arena == arena);
                let pieces = state.map(|state| self.state_pieces(state));
                let pieces = pieces.unwrap_or_default();
                pieces.last().map_or(0, StatePiece::end)
            }
            Arena::GradientShard => self.shards.map_or(0, |cut| cut.owned()),
            Arena::RoundedShard if !self.lies_in(Arena::RoundedShard) => 0,
            Arena::RoundedShard => self.shards.map_or(0, |cut| cut.owned()),
            Arena::WholeShard => self.whole_shard_elements,
            Arena::PartialSums if !self.lies_in(Arena::PartialSums) => 0,
            // Of what is added up: the slices of this rank, where what it sends is in shards.
            Arena::PartialSums => {
                let each = match (self.sent_elements, self.shards) {
                    (Some(_), Some(cut)) => cut.owned(),
                    _ => self.gradient_elements,
                };
                partial_sums(self.tree.unwrap_or(1)) * each
            }
            Arena::Cache => self.cache_elements[0],
            Arena::CacheBf16 => self.cache_elements[1],
        }
    }

    /// What of a slot of the optimiser's state this rank keeps, and where in the slot's arena.
    pub fn state_pieces(&self, state: &OptimizerState) -> Vec<StatePiece> {
        let own = self.shards.as_ref().map(|cut| (cut, self.world.rank));
        state.pieces(self.gradient_elements, own)
    }

    /// Parameters, by place among all and rising, whose f32 values no rank has whole while it runs the program: each keeps those
    /// that it updates in the slot [`crate::ops::MASTER_STATE`] of the optimiser's state.
    pub fn masters_in_shards(&self) -> &[Range<usize>] {
        &self.masters_in_shards
    }

    /// Elements of what is trained, padding included, of all ranks together.
    pub fn trained_elements(&self) -> usize {
        self.gradient_elements
    }

    /// Where the rank stands that runs it.
    pub fn world(&self) -> World {
        self.world
    }

    /// How the gradients are cut for the ranks, where several train. Each rank keeps the optimiser's state of its own slices.
    pub fn shards(&self) -> Option<&Cut> {
        self.shards.as_ref()
    }

    /// The collective that an op begins, for an executor that stores values in their own types.
    pub fn collective(&self, op: &PlannedOp) -> Option<Collective> {
        let (_, CollectivePart::Begin(kind)) = op.instruction.op.collective()? else {
            return None;
        };
        let bytes = self.ty(op.instruction.inputs[0]).bytes();
        Some(Collective {
            kind,
            slice: match kind {
                Kind::AllGather => bytes,
                Kind::Exchange => bytes / self.world.ranks,
            },
        })
    }

    /// Whether a run up to the update leaves an op out ([`EXCHANGE`]).
    pub fn is_exchange(&self, op: usize) -> bool {
        &*self.ops[op].instruction.scope == EXCHANGE
    }

    /// Whether any parameter is read in bf16.
    pub fn has_bf16_parameters(&self) -> bool {
        self.lies_in(Arena::ParametersBf16)
    }

    /// Whether any value lies in a fixed arena.
    fn lies_in(&self, arena: Arena) -> bool {
        let is_there = |place: &Place| matches!(place, Place::Fixed(there, _) if *there == arena);
        self.places.iter().any(is_there)
    }

    /// Bytes of the arena of activations.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// The largest sum of live bytes at any op: no plan can take less.
    pub fn lower_bound(&self) -> u64 {
        self.lower_bound
    }

    /// The op at which most bytes are live, with the positions in [`Program::planned`] of what is live there, largest first.
    pub fn peak(&self) -> &plan::Bound {
        &self.peak
    }

    /// Every planned range of memory with its life, class and place, for reports.
    pub fn planned(&self) -> &[PlannedBytes] {
        &self.planned
    }

    /// Work and traffic of one run.
    pub fn cost(&self) -> Cost {
        self.ops
            .iter()
            .map(|op| self.op_cost(op))
            .fold(Cost::default(), |a, b| a + b)
    }

    /// Work and traffic of one op of the program, on its target.
    pub fn op_cost(&self, op: &PlannedOp) -> Cost {
        let [inputs, outputs] = op.instruction.types(&self.values);
        let target = self.compile_target.target;
        op.instruction.op.cost_on(&inputs, &outputs, target)
    }
}

/// A tape with the ops that are computed again, and where everything lies.
struct PlannedTape {
    values: Vec<ValueInfo>,
    instructions: Vec<Instruction>,
    laid: Laid,
    placement: plan::Placement,
    lower_bound: u64,
}

/// Plans what was recorded, computing values again until the arena fits the budget, where there is one.
fn plan_within_budget(
    (values, instructions): (&[ValueInfo], &[Instruction]),
    kept: &[(String, Value)],
    options: &CompileOptions,
) -> Result<PlannedTape> {
    let mut allowed = options.memory_budget;
    // What an unbounded program recomputes anyway may already be enough, and it costs next to nothing: only then are whole
    // blocks looked at.
    let spent = recompute::spend(values, instructions, kept, options)?;
    loop {
        // Each attempt starts from what was recorded: recomputing rewrites both lists, and a second rewriting on top of
        // the first would repeat ops that are repeats already.
        let (mut values, instructions) = match allowed {
            Some(allowed) if spent.bound > allowed => {
                recompute::meet_budget(values, instructions, kept, options, allowed)?
            }
            _ => (spent.values.clone(), spent.instructions.clone()),
        };
        let laid = lifetimes::lay_out(&mut values, &instructions, kept, options)?;
        let (placement, lower_bound) = place(&laid.buffers, options)?;
        match (options.memory_budget, &mut allowed) {
            // The bound fits but the placement does not: the next one has to make up for it. `allowed` falls with every
            // turn, and below the least that is reachable `meet_budget` ends the loop with an error.
            (Some(budget), Some(allowed)) if placement.arena > budget => {
                *allowed = allowed.saturating_sub(placement.arena - budget);
            }
            _ => {
                return Ok(PlannedTape {
                    values,
                    instructions,
                    laid,
                    placement,
                    lower_bound,
                });
            }
        }
    }
}

/// Where a value lies at run time. A view's place is its root's, and the root may have moved into a fixed arena after the
/// view was recorded.
fn place_of(values: &[ValueInfo], index: usize, laid: &Laid, placement: &plan::Placement) -> Place {
    let root = root(values, Value(index as u32)).index();
    match values[root].storage {
        Storage::Fixed(arena, offset) => Place::Fixed(arena, offset),
        _ => match laid.buffer_of_value[root] {
            Some(buffer) => Place::Activations(placement.offsets[buffer] as usize),
            None => Place::Dropped,
        },
    }
}

/// The ops with what their executor needs to know beside them.
fn planned_ops(
    instructions: Vec<Instruction>,
    laid: Laid,
    placement: &plan::Placement,
) -> Vec<PlannedOp> {
    let counts = [laid.in_place.len(), laid.workspaces.len()];
    assert_eq!(counts, [instructions.len(); 2], "one entry an instruction");
    let entries = laid.in_place.into_iter().zip(laid.workspaces);
    instructions
        .into_iter()
        .zip(entries)
        .map(|(instruction, (in_place, workspace))| PlannedOp {
            instruction,
            in_place,
            workspace: match workspace {
                Some((buffer, bytes)) => (placement.offsets[buffer] as usize, bytes),
                None => (0, 0),
            },
        })
        .collect()
}

/// Places all buffers, apart or sharing memory, and returns the bound below which no placement gets.
fn place(buffers: &[plan::Buffer], options: &CompileOptions) -> Result<(plan::Placement, u64)> {
    if options.share_memory {
        let planned = plan::place(buffers)?;
        return Ok((planned.placement, planned.lower_bound));
    }
    // One after the other: nothing shares memory, so an op that reads freed memory is found by comparing with this
    // plan.
    let mut end = 0;
    let offsets = buffers
        .iter()
        .map(|buffer| {
            end += buffer.size;
            end - buffer.size
        })
        .collect();
    let arena = end;
    Ok((plan::Placement { offsets, arena }, end))
}

fn find(names: &HashMap<String, Value>, what: &str, name: &str) -> Result<Value> {
    names.get(name).copied().ok_or_else(|| {
        let mut known: Vec<&str> = names.keys().map(String::as_str).collect();
        known.sort_unstable();
        Error::setting(
            format!("{what} {name}"),
            format!("one of {}", known.join(", ")),
            name,
        )
    })
}

/// The values the host reads after a run: declared outputs and the intermediates asked for by name.
fn kept_values(tape: &Tape, options: &CompileOptions) -> Result<Vec<(String, Value)>> {
    let mut kept = tape.outputs.clone();
    for name in &options.keep {
        let found = tape
            .values
            .iter()
            .position(|info| info.name.as_ref() == Some(name));
        let index = found.ok_or_else(|| {
            let known = tape.values.iter().filter_map(|v| v.name.as_deref());
            let near = nearest(name, known).unwrap_or("none");
            Error::setting(
                "a value to keep",
                format!("a named value such as {near}"),
                name,
            )
        })?;
        kept.push((name.clone(), Value(index as u32)));
    }
    Ok(kept)
}

/// Which instructions lead to something kept or written to a fixed arena.
fn needed_instructions(tape: &Tape, kept: &[(String, Value)]) -> Vec<bool> {
    let mut needed_values = vec![false; tape.values.len()];
    for (_, value) in kept {
        needed_values[value.index()] = true;
    }
    let mut needed = vec![false; tape.instructions.len()];
    // Backwards, so that every reader of a value has been judged before the op that makes it.
    for (index, instruction) in tape.instructions.iter().enumerate().rev() {
        // A write to a fixed arena outlives the step and counts as an effect, whether or not an op reads it.
        needed[index] = instruction.outputs.iter().any(|output| {
            needed_values[output.index()]
                || matches!(tape.values[output.index()].storage, Storage::Fixed(..))
        });
        if needed[index] {
            for input in &instruction.inputs {
                needed_values[input.index()] = true;
            }
        }
    }
    needed
}
