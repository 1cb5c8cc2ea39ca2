//! The tape: ops in the order they were recorded, on symbolic values that have a type but no data.
//!
//! A model records its forward ops; [`Tape::backward`] walks them in reverse and appends the backward ops to the same
//! list. Only the tape accumulates gradients. What no trained parameter asks for is never recorded: a frozen module
//! contributes no weight gradients, and nothing its backward would have read stays alive.

mod arguments;
mod backward;
mod basic;
mod fuse;
mod hoist;
mod op;
mod parameters;
mod state;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use arguments::with_element;
pub use arguments::{
    Array, ArrayData, CpuArgs, Element, Input, Inputs, Output, Outputs, OutputsInOrder,
    ReferenceArgs,
};
pub use basic::{Add, Copy, Fill, Slice, View};
pub use op::{Backward, CollectivePart, CompileTarget, Cost, Op, Target, Tier};
pub use parameters::{Init, ParameterEntry, ParameterLayout, ParameterSpec};
pub use state::{OptimizerState, StatePiece};

use crate::tensor::{DType, Shape, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::World;
use keel_ranks::order::{BUCKET, Cut};

/// A symbolic value of one tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

impl Value {
    /// The value's index on its tape.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One of the arenas whose contents outlive a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arena {
    /// Trained and frozen weights in f32, laid out by [`ParameterLayout`]. Over several ranks, without those that a bf16 program
    /// keeps in shards, in a slot of the optimiser's state.
    Parameters,
    /// The same weights rounded to bf16, laid out alike: what the products of a bf16 program read. The update writes
    /// both; [`crate::executor::Executor::write_parameters`] too.
    ParametersBf16,
    /// Gradients of what this program trains; where they are in shards, those that are being sent.
    Gradients,
    /// What the optimiser keeps of each trained number, or of some, in one of its slots, laid out like the gradients, or over
    /// several ranks like [`Arena::GradientShard`].
    OptimizerState(StateSlot),
    /// Over several ranks: the sums over all of them of the gradients whose parameters this rank updates, its slices of all
    /// buckets one after the other. After the update it carries the parameters to the other ranks.
    GradientShard,
    /// Over several ranks that round the bf16 copies at random: those of the parameters that this rank updates, laid out like
    /// [`Arena::GradientShard`], on their way to the other ranks.
    RoundedShard,
    /// Over several ranks that keep f32 values in shards: what all have whole, of what this rank updates, on its way to the others.
    WholeShard,
    /// Where the gradients of micro-batches are added in a tree ([`Tape::adding_in_tree`]): sums of complete subtrees that wait
    /// for their neighbours, the levels of each bucket one after the other.
    PartialSums,
    /// What a program keeps from run to run, such as keys and values of tokens it has seen.
    Cache,
    /// The same, of numbers that are stored in bf16.
    CacheBf16,
}

impl Arena {
    /// What programs of this precision keep their rows of keys and values in.
    pub const fn cache_of(precision: DType) -> Arena {
        match precision {
            DType::Bf16 => Arena::CacheBf16,
            _ => Arena::Cache,
        }
    }

    /// The type of the arena's elements.
    pub const fn element(self) -> DType {
        match self {
            Arena::ParametersBf16 | Arena::RoundedShard | Arena::CacheBf16 => DType::Bf16,
            Arena::OptimizerState(slot) => slot.element,
            _ => DType::F32,
        }
    }
}

/// One of the arenas in which an optimiser keeps its state. [`Tape::optimizer_state`] hands them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateSlot {
    index: usize,
    element: DType,
}

/// Where a value's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the arena of activations, where the planner puts it.
    Planned,
    /// In a fixed arena, from this element on.
    Fixed(Arena, usize),
    /// In the place of another value: the same bytes under another shape.
    SameAs(Value),
}

/// What the tape knows of a value.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Its type.
    pub ty: TensorType,
    /// Its name, when the model or the tape gave it one.
    pub name: Option<String>,
    /// Where its bytes lie.
    pub storage: Storage,
    /// Whether a gradient flows through it.
    pub requires_gradient: bool,
    /// Whether the host writes it before each run.
    pub is_input: bool,
}

impl ValueInfo {
    /// A value without a name that lies in a fixed arena and is made by no op.
    pub(super) fn fixed(ty: TensorType, arena: Arena, offset: usize) -> ValueInfo {
        ValueInfo {
            ty,
            name: None,
            storage: Storage::Fixed(arena, offset),
            requires_gradient: false,
            is_input: false,
        }
    }
}

/// The value whose bytes `value` uses: itself unless it is a view. `values` are those of its tape or program.
pub(crate) fn root(values: &[ValueInfo], value: Value) -> Value {
    let mut root = value;
    while let Storage::SameAs(other) = values[root.index()].storage {
        root = other;
    }
    root
}

/// Whether a parameter is one of those that a bf16 program reads as a bf16 copy: all but vectors.
pub(crate) fn is_matrix(spec: &ParameterSpec) -> bool {
    spec.shape.rank() >= 2
}

/// One recorded op.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// The op.
    pub op: Arc<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<Value>,
    /// Its outputs.
    pub outputs: Vec<Value>,
    /// The part of the model that recorded it, for example `vision.blocks.3`.
    pub scope: Arc<str>,
    /// Whether it belongs to the backward or update part.
    pub is_backward: bool,
}

impl Instruction {
    /// The types of its inputs and of its outputs. `values` are those of its tape or program.
    pub fn types(&self, values: &[ValueInfo]) -> [Vec<TensorType>; 2] {
        [&self.inputs, &self.outputs]
            .map(|list| list.iter().map(|value| values[value.index()].ty).collect())
    }

    /// Work and traffic of one run. `values` are those of its tape or program.
    pub fn cost(&self, values: &[ValueInfo]) -> Cost {
        let [inputs, outputs] = self.types(values);
        self.op.cost(&inputs, &outputs)
    }

    /// The part of the model and the op, for example `vision.blocks.3 layer_norm`: how plans and reports name it.
    pub fn label(&self) -> String {
        format!("{} {}", self.scope, self.op.name())
            .trim()
            .to_owned()
    }

    /// The same in words, for errors: `op layer_norm of vision.blocks.3`.
    pub fn origin(&self) -> String {
        let scope = match &*self.scope {
            "" => "the step",
            scope => scope,
        };
        format!("op {} of {scope}", self.op.name())
    }
}

/// The scope of the ops that update parameters, which come last.
pub const UPDATE: &str = "update";

/// The scope of the ops that send gradients to other ranks. They are part of the update, and stand as early as what they
/// send is complete: a run up to the update leaves them out.
pub const EXCHANGE: &str = "exchange";

/// The scope of the ops that add gradients in every run: that send them to other ranks where these are in shards, and that add
/// those of micro-batches in a tree ([`Tape::adding_in_tree`]). They stand as early as what they read is complete.
pub const REDUCE: &str = "reduce";

/// Decides from a parameter's name whether this tape trains it.
pub type Trains = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The recorder. See the module's documentation.
pub struct Tape {
    pub(crate) values: Vec<ValueInfo>,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) parameters: Vec<(ParameterSpec, Value)>,
    /// Values the host reads after a run, by name.
    pub(crate) outputs: Vec<(String, Value)>,
    layout: Option<Arc<ParameterLayout>>,
    precision: DType,
    trains: Trains,
    scope: Arc<str>,
    in_backward: bool,
    pub(crate) accumulates_gradients: bool,
    /// Gradients accumulated so far of values whose op is still to be differentiated, and of what has no op.
    pending: HashMap<Value, Value>,
    pub(crate) gradient_elements: usize,
    pub(crate) gradient_entries: Vec<GradientEntry>,
    pub(crate) optimizer_state: Vec<OptimizerState>,
    /// Elements of [`Arena::Cache`] and of [`Arena::CacheBf16`].
    pub(crate) cache_elements: [usize; 2],
    world: World,
    bucket: usize,
    shards_gradients: bool,
    /// Micro-batches of this rank in a step, where their gradients are added in a tree.
    tree: Option<usize>,
    /// Where gradients are in shards: those of [`Tape::gradient_entries`], in their order.
    pub(crate) gradient_values: Vec<Value>,
    /// Where gradients are in shards: elements of their arena, which holds what is being sent.
    pub(crate) sent_elements: Option<usize>,
    /// How the gradients are cut for the ranks, once an update over several is recorded.
    pub(crate) shards: Option<Cut>,
    /// Elements of [`Arena::WholeShard`].
    pub(crate) whole_shard_elements: usize,
    /// Parameters whose f32 values are kept in shards, by place among all, rising.
    pub(crate) masters_in_shards: Vec<Range<usize>>,
    collectives: usize,
}

/// The place of one parameter's gradient and of what the optimiser keeps of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientEntry {
    /// The parameter's name.
    pub parameter: String,
    /// First element in the gradient arena and in each arena of optimiser state.
    pub offset: usize,
    /// Elements reserved, padding included.
    pub reserved: usize,
    /// The backward op, by its number among those recorded, that completes it.
    pub ready: usize,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape")
            .field("values", &self.values.len())
            .field("instructions", &self.instructions.len())
            .finish()
    }
}

impl Tape {
    /// A tape that only collects declarations: parameters get no place yet and nothing is trained.
    pub fn declaring() -> Tape {
        Tape::with(None, Arc::new(|_| false))
    }

    /// A tape over laid-out parameters that trains those whose name `trains` accepts.
    pub fn new(
        layout: Arc<ParameterLayout>,
        trains: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Tape {
        Tape::with(Some(layout), Arc::new(trains))
    }

    fn with(layout: Option<Arc<ParameterLayout>>, trains: Trains) -> Tape {
        Tape {
            values: Vec::new(),
            instructions: Vec::new(),
            parameters: Vec::new(),
            outputs: Vec::new(),
            layout,
            precision: DType::F32,
            trains,
            scope: "".into(),
            in_backward: false,
            accumulates_gradients: false,
            pending: HashMap::new(),
            gradient_elements: 0,
            gradient_entries: Vec::new(),
            optimizer_state: Vec::new(),
            cache_elements: [0; 2],
            world: World::ALONE,
            bucket: BUCKET,
            shards_gradients: false,
            tree: None,
            gradient_values: Vec::new(),
            sent_elements: None,
            shards: None,
            whole_shard_elements: 0,
            masters_in_shards: Vec::new(),
            collectives: 0,
        }
    }

    /// The tape with matrices among the parameters in `precision`, f32 by default. Values take over the type of the
    /// parameters they are made with, so that bf16 parameters make a bf16 program. Vectors, statistics, losses and the
    /// gradients of parameters are f32 in either.
    ///
    /// # Panics
    /// When `precision` is not a float type.
    pub fn in_precision(mut self, precision: DType) -> Tape {
        assert!(precision.is_float(), "parameters are floats");
        self.precision = precision;
        self
    }

    /// The tape with the gradients of parameters added to what the gradient arena holds: runs up to the update
    /// ([`crate::executor::Session::run_gradients`]) accumulate one gradient over several batches. The update clears the arena.
    pub fn accumulating_gradients(mut self) -> Tape {
        self.accumulates_gradients = true;
        self
    }

    /// The tape of one rank among several, which sums gradients over all of them and updates its share of the parameters.
    /// Gradients are sent in buckets of about `bucket` elements.
    pub fn over_ranks(mut self, world: World, bucket: usize) -> Tape {
        self.world = world;
        self.bucket = bucket;
        self
    }

    /// The tape of a rank that keeps the gradients of its own slices alone: each run, of every micro-batch, sends those of the
    /// others as they are complete. They cannot be read afterwards.
    pub fn sharding_gradients(mut self) -> Tape {
        self.shards_gradients = true;
        self
    }

    /// The tape with the gradients of a step's micro-batches, of which each rank has `micro_batches`, added in one balanced binary
    /// tree, whatever the number of ranks: the same bits for each that divides the tree. Every micro-batch is then a loss of its
    /// own, and a contrastive one compares no pairs of other ranks. Runs up to the update
    /// ([`crate::executor::Session::run_gradients`]) add one micro-batch each, told by the input
    /// [`crate::ops::MICRO_BATCH_INDEX`].
    pub fn adding_in_tree(mut self, micro_batches: usize) -> Tape {
        self.tree = Some(micro_batches);
        self.accumulates_gradients = micro_batches > 1;
        self
    }

    /// Micro-batches of this rank in a step, where their gradients are added in a tree.
    pub fn tree(&self) -> Option<usize> {
        self.tree
    }

    /// Whether a run finds in the gradient arena what earlier ones have added up there.
    pub(crate) fn adds_to_arena(&self) -> bool {
        self.accumulates_gradients && self.tree.is_none()
    }

    /// Ranks whose pairs a contrastive loss compares.
    pub fn contrasted_ranks(&self) -> usize {
        match self.tree {
            Some(_) => 1,
            None => self.world.ranks,
        }
    }

    /// See [`Tape::sharding_gradients`].
    pub(crate) fn shards_gradients(&self) -> bool {
        self.shards_gradients && self.world.ranks > 1
    }

    /// Where the rank stands that the tape is recorded for.
    pub fn world(&self) -> World {
        self.world
    }

    /// Cuts the gradients recorded so far for the tape's ranks; their arena grows by the padding.
    pub(crate) fn cut_gradients(&mut self) -> Cut {
        let cut = Cut::new(self.gradient_elements, self.world.ranks, self.bucket);
        self.gradient_elements = cut.padded();
        self.shards = Some(cut);
        cut
    }

    /// Fills the gradients recorded so far up to whole atoms, on one rank alone: as they are cut for several.
    pub(crate) fn pad_gradients(&mut self) -> Cut {
        assert_eq!(self.world.ranks, 1, "several ranks cut what they share");
        let cut = Cut::new(self.gradient_elements, 1, self.bucket);
        self.gradient_elements = cut.padded();
        cut
    }

    /// A number for another collective.
    pub(crate) fn next_collective(&mut self) -> usize {
        self.collectives += 1;
        self.collectives - 1
    }

    /// See [`Tape::accumulating_gradients`].
    pub fn accumulates_gradients(&self) -> bool {
        self.accumulates_gradients
    }

    /// The type of matrices among the parameters.
    pub fn precision(&self) -> DType {
        self.precision
    }

    pub(super) fn push(&mut self, info: ValueInfo) -> Value {
        self.values.push(info);
        Value((self.values.len() - 1) as u32)
    }

    /// A value that the host writes: before the first run, and again before each run that is to read something else. A
    /// session refuses to run ops whose input was never written.
    ///
    /// What the model and the optimiser read is named by an enum of theirs; plain text is for tests and tools, which make
    /// up inputs on the spot.
    pub fn input(&mut self, name: impl Into<String>, ty: TensorType) -> Value {
        self.push(ValueInfo {
            ty,
            name: Some(name.into()),
            storage: Storage::Planned,
            requires_gradient: false,
            is_input: true,
        })
    }

    /// An input whose gradient is asked for: it can be read as `gradient.<name>` after [`Tape::backward`].
    pub fn input_with_gradient(&mut self, name: impl Into<String>, ty: TensorType) -> Value {
        let value = self.input(name, ty);
        self.values[value.index()].requires_gradient = true;
        value
    }

    /// Declares or finds the parameter `spec.name`.
    ///
    /// # Errors
    /// [`Error::Setting`] when the layout holds no such parameter or another shape.
    pub fn parameter(&mut self, spec: ParameterSpec) -> Result<Value> {
        if let Some((known, value)) = self.parameters.iter().find(|(p, _)| p.name == spec.name) {
            if known.shape != spec.shape {
                return Err(Error::setting(
                    format!("parameter {}", spec.name),
                    format!("the shape {} of its first use", known.shape),
                    spec.shape,
                ));
            }
            return Ok(*value);
        }
        // Vectors stay f32 in either precision: they take few bytes, and their rounding would show in every row.
        let is_bf16 = self.precision == DType::Bf16 && is_matrix(&spec);
        let (arena, dtype) = if is_bf16 {
            (Arena::ParametersBf16, DType::Bf16)
        } else {
            (Arena::Parameters, DType::F32)
        };
        let storage = match &self.layout {
            Some(layout) => Storage::Fixed(arena, layout.expect(&spec)?.offset),
            None => Storage::Planned,
        };
        let value = self.push(ValueInfo {
            ty: TensorType::new(dtype, spec.shape),
            name: Some(spec.name.clone()),
            storage,
            requires_gradient: (self.trains)(&spec.name),
            is_input: false,
        });
        self.parameters.push((spec, value));
        Ok(value)
    }

    /// Records an op and returns its outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] when the op refuses its inputs.
    pub fn record(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Vec<Value>> {
        self.record_arc(Arc::new(op), inputs)
    }

    /// Records an op with a single output of interest, the first.
    ///
    /// # Errors
    /// [`Error::Shape`] when the op refuses its inputs.
    pub fn record_one(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Value> {
        Ok(self.record(op, inputs)?[0])
    }

    pub(crate) fn record_arc(&mut self, op: Arc<dyn Op>, inputs: &[Value]) -> Result<Vec<Value>> {
        let types: Vec<TensorType> = inputs.iter().map(|v| self.values[v.index()].ty).collect();
        let output_types = op.infer(&types)?;
        // Backward ops carry none: the tape differentiates once, and their values must not look as if they owed
        // anything.
        let requires_gradient = !self.in_backward
            && inputs
                .iter()
                .any(|v| self.values[v.index()].requires_gradient);
        let outputs: Vec<Value> = output_types
            .into_iter()
            .map(|ty| {
                self.push(ValueInfo {
                    ty,
                    name: None,
                    storage: if op.is_view() {
                        Storage::SameAs(inputs[0])
                    } else {
                        Storage::Planned
                    },
                    requires_gradient: requires_gradient && ty.dtype.is_float(),
                    is_input: false,
                })
            })
            .collect();
        self.instructions.push(Instruction {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            scope: self.scope.clone(),
            is_backward: self.in_backward,
        });
        Ok(outputs)
    }

    /// A range of a fixed arena as a value, for ops that work on whole arenas.
    pub fn arena_range(&mut self, arena: Arena, offset: usize, elements: usize) -> Value {
        let ty = TensorType::new(arena.element(), [elements]);
        self.push(ValueInfo::fixed(ty, arena, offset))
    }

    /// A value f32 that keeps its contents from run to run, zero before the first; an op recorded by
    /// [`Tape::record_update`] changes it. Such values lie in [`Arena::Cache`] one after the other, without gaps.
    pub fn cached(&mut self, shape: impl Into<Shape>) -> Value {
        self.cached_in(Arena::Cache, shape)
    }

    /// As [`Tape::cached`], of numbers in the program's precision: in bf16 they lie in [`Arena::CacheBf16`].
    pub fn cached_rows(&mut self, shape: impl Into<Shape>) -> Value {
        self.cached_in(Arena::cache_of(self.precision), shape)
    }

    fn cached_in(&mut self, arena: Arena, shape: impl Into<Shape>) -> Value {
        let shape = shape.into();
        let elements = &mut self.cache_elements[usize::from(arena == Arena::CacheBf16)];
        let offset = *elements;
        *elements += shape.numel();
        let ty = TensorType::new(arena.element(), shape);
        self.push(ValueInfo::fixed(ty, arena, offset))
    }

    /// Records an op that updates ranges of fixed arenas: each output that [`Op::in_place`] pairs with an input
    /// takes that input's place. Returns the outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] when the op refuses its inputs.
    pub fn record_update(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Vec<Value>> {
        let pairs = op.in_place();
        let outputs = self.record(op, inputs)?;
        for &(output, input) in pairs {
            self.values[outputs[output].index()].storage =
                self.values[inputs[input].index()].storage;
        }
        Ok(outputs)
    }

    /// Gives `value`, which an op has just made, a place in a fixed arena.
    pub fn bind(&mut self, value: Value, arena: Arena, offset: usize) {
        self.values[value.index()].storage = Storage::Fixed(arena, offset);
    }

    /// The places of the trained parameters' gradients, in arena order; filled by [`Tape::backward`].
    pub fn gradient_entries(&self) -> &[GradientEntry] {
        &self.gradient_entries
    }

    /// The same bytes under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements differs.
    pub fn reshape(&mut self, value: Value, shape: impl Into<Shape>) -> Result<Value> {
        let shape = shape.into();
        if self.shape(value) == shape {
            return Ok(value);
        }
        self.record_one(View { shape }, &[value])
    }

    /// A value's type.
    pub fn ty(&self, value: Value) -> TensorType {
        self.values[value.index()].ty
    }

    /// A value's shape.
    pub fn shape(&self, value: Value) -> Shape {
        self.values[value.index()].ty.shape
    }

    /// Whether a gradient flows through `value`.
    pub fn requires_gradient(&self, value: Value) -> bool {
        self.values[value.index()].requires_gradient
    }

    /// Gives an intermediate value a name under which a program can be asked to keep it.
    pub fn name(&mut self, value: Value, name: impl Into<String>) {
        self.values[value.index()].name = Some(name.into());
    }

    /// Makes `value` readable by the host after each run, as `name`.
    pub fn output(&mut self, value: Value, name: impl Into<String>) {
        let name = name.into();
        self.values[value.index()]
            .name
            .get_or_insert_with(|| name.clone());
        self.outputs.push((name, value));
    }

    /// Runs `record` with ops attributed to `scope`.
    ///
    /// # Errors
    /// Whatever `record` reports.
    pub fn scoped<T>(
        &mut self,
        scope: &str,
        record: impl FnOnce(&mut Tape) -> Result<T>,
    ) -> Result<T> {
        let outer = std::mem::replace(&mut self.scope, scope.into());
        let result = record(self);
        self.scope = outer;
        result
    }

    /// The parameters declared so far, in order of first use.
    pub fn specs(&self) -> Vec<ParameterSpec> {
        self.parameters
            .iter()
            .map(|(spec, _)| spec.clone())
            .collect()
    }

    /// The recorded ops.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Everything the tape knows of its values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }
}
