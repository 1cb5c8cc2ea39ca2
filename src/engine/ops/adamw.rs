//! AdamW over flat ranges of the arenas, in one pass (Loshchilov and Hutter 2019, algorithm 2), and the recording of
//! a whole update.
//!
//! With gradient g scaled by the clip factor: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! p ← p − η λ p − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε). Everything that changes from step to step comes in as two
//! inputs. `optimizer_scalars` f32 [10] is what all parameters share: β₁, β₂, ε, largest gradient norm, 1 − β₁ᵗ, 1 − β₂ᵗ,
//! 1 − β₁, 1 − β₂, t, gradient scale; `group_scalars` f32 [groups, 2] is η and λ of each parameter group.
//! The four differences are computed in f64: in f32, 1 − 0.999 would already be wrong in its fifth digit.
//! A clip factor that is not finite leaves parameters, moments and bf16 copies as they are: a bad step is never applied.
//! 12 flops and 28 bytes a parameter, 30 where it has a bf16 copy: bound by memory.
//!
//! The bf16 copy is rounded to nearest, or at random (Gupta et al. 2015, section 3): upwards in magnitude with the probability
//! that keeps the mean, so that updates far below a bf16 step are not lost on what reads the bf16 copy. The random numbers are
//! those of SplitMix64 (Steele et al. 2014) as a function of seed, t and the place in the arena, so that a step gives the
//! same bits however its work is divided and whenever it is repeated.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::ema::{EMA_STATE, Ema};
use super::grad_norm::{GradNorm, norm_of_atoms};
use super::muon::{self, MuonMomentum};
use super::parameter_groups::{GROUP_SCALARS, Optimizer, ParameterGroups};
use super::sharded_update::record_sharded_update;
use super::tree_accumulate::Tree;
use crate::launch::kernels::constants::adamw::{ADAMW_ELEMENTS, ADAMW_THREADS};
use crate::launch::{Argument, Launch, blocks, kernels};
use crate::tape::{
    Arena, CompileTarget, Cost, CpuArgs, Element, Fill, Op, Output, ParameterSpec, REDUCE,
    ReferenceArgs, Tape, UPDATE,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_base::random::scramble;
use keel_cpu::{Stored, round};

/// Numbers of the input [`OptimizerInput::Scalars`].
pub const OPTIMIZER_SCALARS: usize = 10;

/// Where the largest gradient norm stands in [`OptimizerInput::Scalars`].
pub(super) const LARGEST_NORM: usize = 3;

/// Where the gradient scale stands in [`OptimizerInput::Scalars`].
pub(super) const GRADIENT_SCALE: usize = 9;

/// The inputs that a recorded update reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptimizerInput {
    /// f32 `[10]`: what one step has for all parameters; the module's documentation says in what order.
    Scalars,
    /// f32 [groups, 2]: learning rate and weight decay of each parameter group.
    GroupScalars,
}

impl OptimizerInput {
    /// All of them.
    pub const ALL: [OptimizerInput; 2] = [OptimizerInput::Scalars, OptimizerInput::GroupScalars];

    /// The input's name in a program.
    pub const fn name(self) -> &'static str {
        match self {
            OptimizerInput::Scalars => "optimizer_scalars",
            OptimizerInput::GroupScalars => "group_scalars",
        }
    }
}

impl From<OptimizerInput> for String {
    fn from(input: OptimizerInput) -> String {
        input.name().to_owned()
    }
}

/// The slots of AdamW's state: m, and v.
pub const ADAMW_STATE: [&str; 2] = ["first_moment", "second_moment"];

/// The slot of the f32 values that a rank of a bf16 run updates and the others have as bf16 copies alone.
pub const MASTER_STATE: &str = "master";

/// The slots of everything that an update can keep.
pub const OPTIMIZER_STATE: [&str; 4] = [ADAMW_STATE[0], ADAMW_STATE[1], EMA_STATE, MASTER_STATE];

/// Elements of one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// What AdamW goes by in one step, beside what differs between parameter groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// ε.
    pub epsilon: f64,
    /// Largest gradient norm; 0 leaves gradients as they are.
    pub clip: f64,
    /// Factor of the accumulated gradients, before anything else: 1 where they are of one run.
    pub gradient_scale: f64,
}

impl StepSettings {
    /// The numbers of the input [`OptimizerInput::Scalars`] for the optimiser step `step` (from 0).
    pub fn scalars(&self, step: u64) -> [f32; OPTIMIZER_SCALARS] {
        let [beta1, beta2] = self.betas;
        let count = step as f64 + 1.0;
        [
            beta1 as f32,
            beta2 as f32,
            self.epsilon as f32,
            self.clip as f32,
            (1.0 - beta1.powf(count)) as f32,
            (1.0 - beta2.powf(count)) as f32,
            (1.0 - beta1) as f32,
            (1.0 - beta2) as f32,
            count as f32,
            self.gradient_scale as f32,
        ]
    }
}

/// What an update does beyond AdamW.
#[derive(Clone, Debug, Default)]
pub struct UpdateOptions {
    /// Scalars clamped between two numbers after the update: parameter, least, most.
    pub clamps: Vec<(&'static str, f32, f32)>,
    /// Rounds the bf16 copies at random, with this seed, instead of to nearest.
    pub random_rounding: Option<u64>,
    /// Keeps an exponential moving average of what is trained, with this decay.
    pub ema_decay: Option<f64>,
    /// Over several ranks in bf16: keeps of the f32 values of matrices that AdamW updates only a rank's own slices.
    pub shards_masters: bool,
}

/// Records the update of everything that [`Tape::backward`] made gradients for: one gradient norm, then one AdamW for
/// each contiguous range of parameters of one group, and Muon for each matrix of a group that asks for it.
///
/// On a tape that adds gradients ([`Tape::accumulating_gradients`]) it leaves the gradient arena at zero. On one that adds
/// them in a tree ([`Tape::adding_in_tree`]) that is recorded first, and nothing is cleared. On a tape over several ranks
/// ([`Tape::over_ranks`]) gradients are summed over all of them first, each rank updates its share, and the gradient arena holds
/// parameters afterwards, or zeros.
///
/// Inputs: [`OptimizerInput::ALL`]. State: [`ADAMW_STATE`], of which Muon needs the first alone, and [`EMA_STATE`] and [`MASTER_STATE`]
/// where averages and f32 values in shards are kept, which whoever loads the program begins with the parameters. Outputs: `gradient_norm` `[1]`, `clip_scale` `[1]`, of the
/// gradients times their scale.
///
/// # Errors
/// [`Error::Setting`] when nothing is trained, no group takes a trained parameter, or Muon is asked for what is no matrix.
pub fn record_update(
    tape: &mut Tape,
    layout: &crate::tape::ParameterLayout,
    groups: &ParameterGroups,
    options: &UpdateOptions,
) -> Result<()> {
    let runs = runs(tape, layout, groups, |_, _| false)?;
    let mut used = runs.iter().map(|run| groups.groups()[run.group].optimizer);
    if options.random_rounding.is_some() && used.any(|optimizer| optimizer != Optimizer::AdamW) {
        let want = "off with Muon, which rounds its bf16 copies to nearest";
        return Err(Error::setting("stochastic_rounding", want, "on"));
    }
    let Some(last) = runs.last() else {
        return Err(Error::setting(
            "update",
            "at least one trained parameter",
            "none",
        ));
    };
    if tape.world().ranks > 1 {
        return record_sharded_update(tape, layout, groups, options);
    }
    let elements = last.gradients + last.elements;
    let cut = tape.tree().map(|_| tape.pad_gradients());
    if let Some(cut) = cut {
        tape.scoped(REDUCE, |tape| {
            let mut tree = Tree::begin(tape);
            tree.add(tape, Arena::Gradients, 0..cut.padded())
        })?;
    }
    let trained: Vec<String> = tape
        .gradient_entries()
        .iter()
        .map(|entry| entry.parameter.clone())
        .collect();
    tape.scoped(UPDATE, |tape| {
        let shared = TensorType::f32([OPTIMIZER_SCALARS]);
        let shared = tape.input(OptimizerInput::Scalars, shared);
        let each = TensorType::f32([groups.groups().len(), GROUP_SCALARS]);
        let each = tape.input(OptimizerInput::GroupScalars, each);
        let [first, second] = moments(tape, &runs, groups);
        // One norm over everything before the first update: the factor that clips must be the same for all parameters.
        let norm = match cut {
            Some(cut) => {
                let gradients = tape.arena_range(Arena::Gradients, 0, cut.padded());
                norm_of_atoms(tape, gradients, &cut, shared)?
            }
            None => {
                let gradients = tape.arena_range(Arena::Gradients, 0, elements);
                tape.record(GradNorm, &[gradients, shared])?
            }
        };
        tape.output(norm[0], "gradient_norm");
        tape.output(norm[1], "clip_scale");
        // One op for each run and not for each tensor: a launch has a price, and most tensors are vectors.
        for run in &runs {
            let range =
                |tape: &mut Tape, arena, offset| tape.arena_range(arena, offset, run.elements);
            let gradients = range(tape, Arena::Gradients, run.gradients);
            let momentum = tape.state_range(first, run.gradients, run.elements);
            if let Optimizer::Muon { momentum: decay } = groups.groups()[run.group].optimizer {
                // The directions take the gradients' place.
                let inputs = [gradients, momentum, norm[1]];
                tape.record_update(MuonMomentum::new(decay), &inputs)?;
                muon::record_steps(tape, layout, run, [each, norm[1]])?;
                continue;
            }
            let mut inputs = vec![
                range(tape, Arena::Parameters, run.parameters),
                gradients,
                momentum,
                tape.state_range(second, run.gradients, run.elements),
                shared,
                each,
                norm[1],
            ];
            let writes_bf16_copy = tape.precision() == DType::Bf16;
            if writes_bf16_copy {
                inputs.push(range(tape, Arena::ParametersBf16, run.parameters));
            }
            let op = AdamW {
                group: run.group,
                writes_bf16_copy,
                random_rounding: options.random_rounding,
                first: run.parameters,
            };
            tape.record_update(op, &inputs)?;
        }
        // Apart from the update: inside it, every parameter would be compared for the sake of a handful of scalars.
        for &(name, least, most) in &options.clamps {
            if trained.iter().any(|trained| trained == name) {
                let parameter = layout.get(name).expect("trained parameters are laid out");
                let value = tape.arena_range(Arena::Parameters, parameter.offset, 1);
                tape.record_update(Clamp { least, most }, &[value])?;
            }
        }
        if let Some(decay) = options.ema_decay {
            let average = tape.optimizer_state(EMA_STATE, DType::F32);
            for run in &runs {
                let inputs = [
                    tape.state_range(average, run.gradients, run.elements),
                    tape.arena_range(Arena::Parameters, run.parameters, run.elements),
                    norm[1],
                ];
                tape.record_update(Ema::new(decay), &inputs)?;
            }
        }
        // Cleared by the step that used them, so that the first batch of the next finds zeros without a rule of its
        // own.
        if tape.adds_to_arena() {
            let ty = TensorType::f32([elements]);
            let cleared = tape.record_one(Fill { ty, value: 0.0 }, &[])?;
            tape.bind(cleared, Arena::Gradients, 0);
        }
        Ok(())
    })
}

/// Declares the slots of the moments. Muon has one moment: the second is kept of what AdamW updates.
pub(super) fn moments(tape: &mut Tape, runs: &[Run], groups: &ParameterGroups) -> [Arena; 2] {
    let [first, second] = ADAMW_STATE;
    let by_adamw = |run: &&Run| groups.groups()[run.group].optimizer == Optimizer::AdamW;
    let first = tape.optimizer_state(first, DType::F32);
    if runs.iter().all(|run| by_adamw(&run)) {
        return [first, tape.optimizer_state(second, DType::F32)];
    }
    let kept = side_by_side(runs.iter().filter(by_adamw).map(Run::in_gradients));
    [
        first,
        tape.partial_optimizer_state(second, DType::F32, kept),
    ]
}

/// Ranges that rise, with neighbours as one.
pub(super) fn side_by_side(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// A contiguous range of parameters of one group.
pub(super) struct Run {
    pub parameters: usize,
    pub gradients: usize,
    pub elements: usize,
    pub group: usize,
    /// Whether each rank keeps only its own slices of the f32 values.
    pub is_in_shards: bool,
}

impl Run {
    /// Its elements of the gradient arena.
    pub fn in_gradients(&self) -> Range<usize> {
        self.gradients..self.gradients + self.elements
    }

    /// Its elements of the parameters.
    pub fn in_parameters(&self) -> Range<usize> {
        self.parameters..self.parameters + self.elements
    }
}

/// The trained parameters in as few runs as they make, in arena order. The layout puts what one group takes side by side, so
/// there are a handful of runs and not one op a tensor. `in_shards` divides them further, by parameter and group.
pub(super) fn runs(
    tape: &Tape,
    layout: &crate::tape::ParameterLayout,
    groups: &ParameterGroups,
    in_shards: impl Fn(&ParameterSpec, usize) -> bool,
) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for entry in tape.gradient_entries() {
        let parameter = layout
            .get(&entry.parameter)
            .expect("trained parameters are laid out");
        let (offset, group) = (parameter.offset, groups.index_of(&parameter.spec)?);
        let is_in_shards = in_shards(&parameter.spec, group);
        match runs.last_mut() {
            // Both arenas have to go on without a gap: a frozen parameter between two trained ones has a place among the
            // parameters and none among the gradients.
            Some(run)
                if run.group == group
                    && run.is_in_shards == is_in_shards
                    && run.parameters + run.elements == offset
                    && run.gradients + run.elements == entry.offset =>
            {
                run.elements += entry.reserved;
            }
            _ => runs.push(Run {
                parameters: offset,
                gradients: entry.offset,
                elements: entry.reserved,
                group,
                is_in_shards,
            }),
        }
    }
    Ok(runs)
}

/// Inputs parameters, gradients, first and second moments [n], the shared scalars, the groups' scalars, clip factor, and the
/// parameters' bf16 copy where a program reads it; outputs the new parameters and moments, then the new bf16 copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdamW {
    /// The row of the groups' scalars.
    pub group: usize,
    pub writes_bf16_copy: bool,
    /// The seed.
    pub random_rounding: Option<u64>,
    /// The range's first element in the parameter arena.
    pub first: usize,
}

/// Inputs before the bf16 copy.
const INPUTS: usize = 7;

/// What SplitMix64 adds for every number it draws.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the random numbers of step `step` are made from. A function of seed, step and place, and no generator with a
/// state: tasks, threads and a repeated step draw the same numbers.
fn key(seed: u64, step: u64) -> u64 {
    scramble(seed.wrapping_add(step.wrapping_mul(GAMMA)))
}

/// One draw serves four neighbours of the arena with sixteen bits each.
fn draw(key: u64, neighbours: u64) -> u64 {
    scramble(key.wrapping_add(neighbours.wrapping_mul(GAMMA)))
}

/// `value` rounded to bf16 at random: element `element` of the arena, of whose neighbours this is the draw.
fn rounded_at_random(value: f32, draw: u64, element: usize) -> f32 {
    if !value.is_finite() {
        return value;
    }
    let random = (draw >> (16 * (element % 4))) as u32 & 0xffff;
    // Adding sixteen random bits below those that stay carries into them with the probability of the part cut off,
    // which keeps the mean; the sign bit is apart, so this is upwards in magnitude.
    f32::from_bits(value.to_bits().wrapping_add(random) & 0xffff_0000)
}

/// `out`, with `before` in it where that does not lie there already.
fn in_its_place<'a, T: Element>(out: &'a mut [T], before: Option<&[T]>) -> &'a mut [T] {
    if let Some(before) = before {
        out.copy_from_slice(before);
    }
    out
}

/// to = from, rounded at random: the elements of the arena from `first` on, a multiple of four.
fn round_at_random(from: &[f32], to: &mut [bf16], key: u64, first: usize) {
    for (neighbours, (from, to)) in from.chunks(4).zip(to.chunks_mut(4)).enumerate() {
        let draw = draw(key, (first / 4 + neighbours) as u64);
        for (element, (from, to)) in from.iter().zip(to).enumerate() {
            *to = bf16::rounded(rounded_at_random(*from, draw, element));
        }
    }
}

impl AdamW {
    /// η and λ of the op's group.
    fn rate_and_decay<T: Copy>(&self, groups: &[T]) -> [T; GROUP_SCALARS] {
        *groups
            .as_chunks()
            .0
            .get(self.group)
            .expect("infer has seen the group's row")
    }
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [p, g, m, v, shared, groups, scale, bf16_copy @ ..] = inputs else {
            return Err(Error::shape(
                "adamw",
                "inputs",
                format!("{INPUTS} values"),
                inputs.len(),
            ));
        };
        if *p != TensorType::f32(p.shape) || !self.first.is_multiple_of(ADAMW_ELEMENTS) {
            return Err(Error::shape(
                "adamw",
                "parameters",
                "f32 from a multiple of four on",
                p,
            ));
        }
        for (name, ty) in [
            ("gradients", g),
            ("first moments", m),
            ("second moments", v),
        ] {
            if ty != p {
                return Err(Error::shape("adamw", name, p, ty));
            }
        }
        for (name, ty, want) in [
            ("optimizer_scalars", shared, OPTIMIZER_SCALARS),
            ("clip_scale", scale, 1),
        ] {
            if *ty != TensorType::f32([want]) {
                return Err(Error::shape("adamw", name, TensorType::f32([want]), ty));
            }
        }
        let rows = groups.shape.rows();
        if *groups != TensorType::f32([rows, GROUP_SCALARS]) || self.group >= rows {
            let want = format!("f32 [groups, {GROUP_SCALARS}] with a row {}", self.group);
            return Err(Error::shape("adamw", "group_scalars", want, groups));
        }
        let mut outputs = vec![*p, *m, *v];
        if self.writes_bf16_copy {
            let want = TensorType::new(DType::Bf16, p.shape);
            if *bf16_copy != [want] {
                return Err(Error::shape(
                    "adamw",
                    "bf16 copy",
                    want,
                    format!("{bf16_copy:?}"),
                ));
            }
            outputs.push(want);
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let [p, g, m, v, shared, groups, scale, bf16_copy_before @ ..] = args.inputs else {
            unreachable!("inferred");
        };
        let [p_new, m_new, v_new, bf16_copy @ ..] = args.outputs else {
            unreachable!("inferred");
        };
        let &[
            beta1,
            beta2,
            epsilon,
            _,
            correction1,
            correction2,
            rest1,
            rest2,
            count,
            _,
        ] = shared.float()
        else {
            unreachable!("inferred");
        };
        let [rate, decay] = self.rate_and_decay(groups.float());
        let scale = scale.float()[0];
        for i in 0..p.float().len() {
            let (p, m, v) = (p.float()[i], m.float()[i], v.float()[i]);
            let (p_out, m_out, v_out) = if scale.is_finite() {
                let g = g.float()[i] * scale;
                let m = beta1 * m + rest1 * g;
                let v = beta2 * v + rest2 * g * g;
                let decayed = p * (1.0 - rate * decay);
                let step = (m / correction1) / ((v / correction2).sqrt() + epsilon);
                (decayed - rate * step, m, v)
            } else {
                (p, m, v)
            };
            p_new.float_mut()[i] = p_out;
            m_new.float_mut()[i] = m_out;
            v_new.float_mut()[i] = v_out;
            if let ([bf16_copy], [before]) = (&mut *bf16_copy, bf16_copy_before) {
                let element = self.first + i;
                bf16_copy.float_mut()[i] = match self.random_rounding {
                    _ if !scale.is_finite() => before.float()[i],
                    None => p_out,
                    Some(seed) => {
                        let draw = draw(key(seed, count as u64), element as u64 / 4);
                        f64::from(rounded_at_random(p_out as f32, draw, element))
                    }
                };
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let gradients = args.inputs.f32(1);
        let &[
            beta1,
            beta2,
            epsilon,
            _,
            correction1,
            correction2,
            rest1,
            rest2,
            count,
            _,
        ] = args.inputs.f32(4)
        else {
            unreachable!("inferred");
        };
        let [rate, decay] = self.rate_and_decay(args.inputs.f32(5));
        let scale = args.inputs.f32(6)[0];
        // Outside a program the moments and parameters may come in memory of their own.
        let before = [0, 2, 3].map(|input| args.inputs.f32_or_in_place(input));
        let mut outputs = args.outputs.in_order();
        let [p, m, v] = before.map(|before| in_its_place(outputs.next::<f32>(), before));
        let bf16_copy = self.writes_bf16_copy.then(|| {
            let before = args.inputs.of_or_in_place::<bf16>(INPUTS);
            in_its_place(outputs.next::<bf16>(), before)
        });
        // The copies above stand: parameters and moments stay what they were, and the step has not happened.
        if !scale.is_finite() {
            return;
        }
        let lengths = [m.len(), v.len(), gradients.len()];
        assert_eq!(lengths, [p.len(); 3], "a moment and a gradient for each");
        // Exactly 1 where nothing decays.
        let keep = 1.0 - rate * decay;
        // Both corrections leave the loop: η / (1 − β₁ᵗ) is one factor, and √(v / c) is √v · c^(−½): one division an
        // element instead of three.
        let (rate, root) = (rate / correction1, 1.0 / correction2.sqrt());
        let update = |p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]| {
            for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                let g = g * scale;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * (g * g);
                *p = *p * keep - rate * *m / (v.sqrt() * root + epsilon);
            }
        };
        let chunks = p
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(m.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(v.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(gradients.par_chunks(ELEMENTS_PER_TASK));
        let Some(bf16_copy) = bf16_copy else {
            return chunks.for_each(|(((p, m), v), g)| update(p, m, v, g));
        };
        let key = self.random_rounding.map(|seed| key(seed, count as u64));
        chunks
            .zip(bf16_copy.par_chunks_mut(ELEMENTS_PER_TASK))
            .enumerate()
            .for_each(|(task, ((((p, m), v), g), bf16_copy))| {
                update(p, m, v, g);
                match key {
                    None => round(p, bf16_copy),
                    Some(key) => {
                        let first = self.first + task * ELEMENTS_PER_TASK;
                        round_at_random(p, bf16_copy, key, first);
                    }
                }
            });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (kernel, elements) = (kernels::ADAMW_F32, inputs[0].numel());
        let (bf16_copy, bf16_copy_before) = if self.writes_bf16_copy {
            (Argument::output(3), Argument::input(INPUTS))
        } else {
            (Argument::Null, Argument::Null)
        };
        let arguments = vec![
            Argument::output(0),
            Argument::output(1),
            Argument::output(2),
            bf16_copy,
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            Argument::input(3),
            bf16_copy_before,
            Argument::input(4),
            Argument::Input {
                index: 5,
                offset: self.group * GROUP_SCALARS * size_of::<f32>(),
            },
            Argument::input(6),
            Argument::I32(self.random_rounding.is_some().into()),
            Argument::I64(self.random_rounding.unwrap_or(0).cast_signed()),
            Argument::I64(self.first as i64),
            Argument::I64(elements as i64),
        ];
        let blocks = blocks(kernel, elements, ADAMW_THREADS * ADAMW_ELEMENTS)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // The old bf16 copy is read where a step is not applied, and nowhere else.
        Cost::streaming(12.0 * inputs[0].numel() as f64, &inputs[..INPUTS], outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.writes_bf16_copy {
            &[(0, 0), (1, 2), (2, 3), (3, INPUTS)]
        } else {
            &[(0, 0), (1, 2), (2, 3)]
        }
    }
}

/// Clamps a scalar parameter between two numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clamp {
    pub least: f32,
    pub most: f32,
}

impl Op for Clamp {
    fn name(&self) -> &'static str {
        "clamp"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let want = TensorType::f32(inputs[0].shape);
        if inputs[0] != want {
            return Err(Error::shape("clamp", "x", want, inputs[0]));
        }
        Ok(vec![want])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        for (y, x) in y.float_mut().iter_mut().zip(x.float()) {
            *y = x.clamp(f64::from(self.least), f64::from(self.most));
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let before = args.inputs.f32_or_in_place(0);
        for output in args.outputs.0 {
            let Output::F32(y) = output else { continue };
            if let Some(before) = before {
                y.copy_from_slice(before);
            }
            for y in y.iter_mut() {
                *y = y.clamp(self.least, self.most);
            }
        }
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (kernel, elements) = (kernels::CLAMP_F32, inputs[0].numel());
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::F32(self.least),
            Argument::F32(self.most),
            Argument::I64(elements as i64),
        ];
        let blocks = blocks(kernel, elements, ADAMW_THREADS)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
