//! The op contract: everything the engine knows about one operation, in one trait.
//!
//! An op is recorded once, with shapes but no data, and run many times by any executor. Its backward records further
//! ops on the same tape, so a backward is an ordinary op with its own reference, kernels and cost.

use std::any::Any;
use std::fmt;

use super::{CpuArgs, ReferenceArgs, Tape, Value};
use keel_base::error::{Error, Result};

use crate::launch::Launch;
use crate::tensor::{DType, TensorType};
use keel_ranks::Kind;

/// What one run of an op costs. Feeds the plan, the benches, the profile and the share of peak.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: f64,
    /// Bytes read at least once.
    pub bytes_read: f64,
    /// Bytes written.
    pub bytes_written: f64,
}

impl Cost {
    /// A cost of `flops` that reads every input and writes every output once.
    pub fn streaming(flops: f64, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes = |types: &[TensorType]| types.iter().map(|t| t.bytes() as f64).sum();
        Cost {
            flops,
            bytes_read: bytes(inputs),
            bytes_written: bytes(outputs),
        }
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
        }
    }
}

/// Where a program is going to run, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The f64 reference executor; it keeps every value in its own array.
    Reference,
    /// The processor, with this many threads.
    Cpu {
        /// Threads that compute.
        threads: usize,
    },
    /// A CUDA device or its emulator.
    Cuda,
}

/// A set of kernels, by what they ask of a chip. An op may answer with other launches and another workspace for another
/// tier. A tier is chosen for a whole program, when it is compiled, and never by the chip that happens to run it: nothing
/// else about a chip (its number of multiprocessors, its memory) may change a result's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// Kernels for every chip from sm_80 on.
    #[default]
    Portable,
    /// Besides these, kernels for sm_90: matrix products by a group of warps, copies by tensor maps, clusters of blocks.
    Hopper,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Portable => "portable",
            Tier::Hopper => "Hopper",
        })
    }
}

impl Tier {
    /// The tier of a chip of this compute capability.
    pub fn of(compute_capability: (i32, i32)) -> Tier {
        if compute_capability == (9, 0) {
            Tier::Hopper
        } else {
            Tier::Portable
        }
    }
}

/// What a program is compiled for: where it runs, the type of matrices among its parameters, and the kernels it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileTarget {
    /// Where.
    pub target: Target,
    /// See [`Tape::in_precision`].
    pub precision: DType,
    /// Which kernels, where it runs on a CUDA device or its emulator.
    pub tier: Tier,
}

impl From<Target> for CompileTarget {
    /// In f32, with portable kernels.
    fn from(target: Target) -> CompileTarget {
        CompileTarget {
            target,
            precision: DType::F32,
            tier: Tier::Portable,
        }
    }
}

/// The part of a collective over ranks that an op is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectivePart {
    /// Hands its one input to the engine. Its one output is where what arrives goes; it holds nothing before the finish.
    Begin(Kind),
    /// Waits for what arrives. Its inputs are what [`CollectivePart::Begin`] makes and what it sends, so that both live until
    /// here; its output is what has arrived.
    Finish,
}

/// One operation: shape rule, meaning, kernels, derivative and cost.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// The op's name in plans, profiles and errors, for example `layer_norm`.
    fn name(&self) -> &'static str;

    /// The types of the outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] for every combination of inputs the op does not accept: nothing is checked later.
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>>;

    /// The definition of the op in plain f64 loops.
    fn reference(&self, args: ReferenceArgs<'_>);

    /// The kernel for the processor, which computes in f32 and stores what the types say. It runs inside a rayon pool, splits its work by shape only (the same bits for
    /// any number of threads) and allocates nothing.
    fn cpu(&self, args: CpuArgs<'_>);

    /// The kernel launches for a CUDA device or the emulator, of the target's tier.
    ///
    /// # Errors
    /// [`Error::Device`] when the op has no kernel at all, [`Error::Kernel`] when it has none for these types or shapes.
    fn launches(
        &self,
        _inputs: &[TensorType],
        _outputs: &[TensorType],
        _compile_target: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Err(Error::Device {
            device: "cuda".into(),
            problem: format!("the op {} has no kernel there yet", self.name()),
            remedy: "run with --device cpu".into(),
        })
    }

    /// Why the op's kernels are portable ones in a program of another tier; `None` where they are of that tier, or where the
    /// tier is the portable one.
    fn keeps_portable(
        &self,
        _inputs: &[TensorType],
        _outputs: &[TensorType],
        tier: Tier,
    ) -> Option<String> {
        (tier != Tier::Portable).then(|| "no kernel of the tier is written for it".to_owned())
    }

    /// Records the gradients of the inputs, given those of the outputs; one entry per input.
    ///
    /// Only inputs with [`Backward::needs`] owe a gradient. Nothing is accumulated here: only the tape does that.
    ///
    /// Ops of the backward part and of the update leave it out: the tape differentiates once.
    ///
    /// # Errors
    /// Whatever recording the backward ops reports.
    fn backward(&self, _backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!(
            "{} is recorded in the backward part, which is not differentiated again",
            self.name()
        )
    }

    /// Work and traffic of one run, on the processor where targets differ. Arms of an ablation are made equal in it, so it hangs on
    /// no device.
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost;

    /// Work and traffic of one run on `target`, where its kernels do another amount of work.
    fn cost_on(&self, inputs: &[TensorType], outputs: &[TensorType], _target: Target) -> Cost {
        self.cost(inputs, outputs)
    }

    /// Pairs (output, input): the output may take the input's place when nobody needs the input afterwards.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Bytes of scratch memory the op needs while it runs on the target; planned like any other value.
    fn workspace(
        &self,
        _inputs: &[TensorType],
        _outputs: &[TensorType],
        _compile_target: CompileTarget,
    ) -> usize {
        0
    }

    /// The variant of this op that adds its first output to one more input, given last, and may take its place.
    /// Fusing uses it to accumulate gradients without a separate addition.
    fn accumulating(&self) -> Option<Box<dyn Op>> {
        None
    }

    /// The op that computes this op's first output and at once `next` of it; the further inputs of `next` follow this
    /// op's own. Fusing uses it in the backward part, when nothing else refers to this op's output.
    fn fused_with(&self, _next: &dyn Op) -> Option<Box<dyn Op>> {
        None
    }

    /// Whether the single output is the single input under another shape: nothing runs.
    fn is_view(&self) -> bool {
        false
    }

    /// Which part of which of the tape's collectives the op is. Such an op has no kernel: an executor hands it to its engine.
    fn collective(&self) -> Option<(usize, CollectivePart)> {
        None
    }

    /// Whether the op multiplies matrices: the recompute pass keeps such results in preference to others.
    fn is_matrix_product(&self) -> bool {
        false
    }
}

/// What [`Op::backward`] is given.
pub struct Backward<'a> {
    /// The tape to record on.
    pub tape: &'a mut Tape,
    /// The op's inputs.
    pub inputs: &'a [Value],
    /// The op's outputs.
    pub outputs: &'a [Value],
    /// The gradient of each output; `None` where the loss does not depend on it.
    pub gradients: &'a [Option<Value>],
}

impl Backward<'_> {
    /// Whether input `index` owes a gradient.
    pub fn needs(&self, index: usize) -> bool {
        self.tape.requires_gradient(self.inputs[index])
    }

    /// The gradient of output `index`, which the op requires.
    ///
    /// # Panics
    /// When the loss does not depend on that output although backward was asked for: an op with several differentiable
    /// outputs looks at [`Backward::gradients`] instead.
    pub fn gradient(&self, index: usize) -> Value {
        self.gradients[index].expect("backward runs only where the loss depends on an output")
    }
}
