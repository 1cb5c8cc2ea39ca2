//! The losses over all ranks' pairs, without N² memory and without communicating a gradient.
//!
//! Features of all ranks are gathered, N = ranks·B rows of each side. A rank computes its own rows of S, with their log-sums r,
//! and its own columns as rows of Sᵀ, with their log-sums c; its part of the loss is L = 1/2N · Σ over own (r_i + c_i − 2 S_ii),
//! and in the sigmoid form 1/N · Σ over own rows. The whole batch's loss is the sum of all parts. Once r and c are gathered too,
//! a rank has everything that the gradients of its own features are made of, ∂u_i = eᵃ Σ_j G_ij v_j and ∂v_j = eᵃ Σ_i G_ij u_i:
//! they are those of the whole batch, and nothing is sent back. ∂a and ∂b are parts that the sum of gradients completes.
//!
//! All ranks give their part the same cotangent. Of each rank's rows the first are pairs, as many as `pairs` says.
//! Work of a rank: 4·B·N·E flops forward and 8·B·N·E backward.

use super::mask::{Identities, MaskInputs, MaskPlaces};
use super::rank_launches::RankProblem;
use super::sweep::{Counts, Sweep, workspace_bytes};
use super::{Contrastive, log_sum_exp, softplus};
use crate::launch::Launch;
use crate::ops::collective::all_gather;
use crate::ops::special::dot;
use crate::tape::{
    Array, Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
    with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};
use keel_cpu::matmul::RowsMut;
use keel_ranks::World;

use super::backward::ScoreGradient;

/// Which pairs of all ranks take part in a loss over them.
#[derive(Clone, Copy, Debug)]
pub struct RankPairs {
    /// i32 `[ranks + 1]`: how many rows of each rank are pairs, the first of them, and how many there are in all.
    pub counts: Value,
    /// As [`super::ContrastiveMask::identities`], i32 `[N]` each: of the rows of all ranks.
    pub identities: [Value; 2],
}

/// Records this rank's part f32 `[1]` of the loss over all ranks' pairs: image and text are its own, f32 or bf16 [B, E] of unit
/// length, log_scale f32 `[1]`; `bias` f32 `[1]` in the sigmoid form and only there.
///
/// # Errors
/// As [`super::contrastive_loss`].
pub fn contrastive_loss_over_ranks(
    tape: &mut Tape,
    [image, text, log_scale]: [Value; 3],
    bias: Option<Value>,
    pairs: RankPairs,
    kind: Contrastive,
) -> Result<Value> {
    let mut inputs = vec![image, text];
    for own in [image, text] {
        inputs.push(all_gather(tape, own)?);
    }
    inputs.push(log_scale);
    inputs.extend(bias);
    inputs.push(pairs.counts);
    inputs.extend(pairs.identities);
    let op = RankLoss {
        kind,
        world: tape.world(),
    };
    tape.record_one(op, &inputs)
}

/// Inputs of both ops: own image, own text, all images, all texts, log_scale, the bias of the sigmoid form.
const fn features(kind: Contrastive) -> usize {
    match kind {
        Contrastive::InfoNce => 5,
        Contrastive::Sigmoid => 6,
    }
}

/// The mask's inputs: counts, and the identities of both sides.
const MASK: MaskInputs = MaskInputs {
    counts_pairs: true,
    has_identities: true,
};

/// Checks the features and the mask behind `own` inputs; returns B and E.
fn infer(
    op: &'static str,
    inputs: &[TensorType],
    kind: Contrastive,
    world: World,
    own: usize,
) -> Result<[usize; 2]> {
    if inputs.len() != own + 3 {
        let want = format!("{} values", own + 3);
        return Err(Error::shape(op, "inputs", want, inputs.len()));
    }
    let &[b, e] = inputs[0].shape.dims() else {
        return Err(Error::shape(op, "image", "f32 or bf16 [B, E]", inputs[0]));
    };
    if !inputs[0].dtype.is_float() || b == 0 {
        let want = "f32 or bf16 [B, E] with B at least 1";
        return Err(Error::shape(op, "image", want, inputs[0]));
    }
    let n = b * world.ranks;
    let all = TensorType::new(inputs[0].dtype, [n, e]);
    let mut wanted = vec![
        ("text", inputs[1], inputs[0]),
        ("all images", inputs[2], all),
        ("all texts", inputs[3], all),
    ];
    let scalars = ["log_scale", "bias"].iter().zip(&inputs[4..features(kind)]);
    wanted.extend(scalars.map(|(name, ty)| (*name, *ty, TensorType::f32([1]))));
    let mask = ["pairs", "image identities", "text identities"];
    let of_mask = [world.ranks + 1, n, n].map(|rows| TensorType::i32([rows]));
    let mask = mask.iter().zip(&inputs[own..]).zip(of_mask);
    wanted.extend(mask.map(|((name, ty), want)| (*name, *ty, want)));
    for (name, ty, want) in wanted {
        if ty != want {
            return Err(Error::shape(op, name, want, ty));
        }
    }
    Ok([b, e])
}

/// A rank's rows among those of all.
#[derive(Clone, Copy)]
struct Own<'a> {
    counts: Counts<'a>,
    /// Its first row.
    first: usize,
    /// How many of its rows are pairs.
    pairs: usize,
    identities: Option<Identities<'a>>,
}

impl<'a> Own<'a> {
    fn new(
        world: World,
        share: usize,
        places: MaskPlaces,
        integers: impl Fn(usize) -> &'a [i32],
    ) -> Own<'a> {
        let counts = integers(places.pairs.expect("ranks count their pairs"));
        let counts = Counts { counts, share };
        Own {
            counts,
            first: world.rank * share,
            pairs: counts.of(world.rank),
            identities: places.identities(integers),
        }
    }

    /// The score of own row `i` of x with row `j` of all of y; −∞ where it takes no part.
    fn score(
        &self,
        [x, y]: [&[f64]; 2],
        e: usize,
        [scale, bias]: [f64; 2],
        i: usize,
        j: usize,
    ) -> f64 {
        let row = self.first + i;
        let is_masked = |all: Identities<'_>| all.masks(row, j);
        if !self.counts.takes_part(j) || self.identities.is_some_and(is_masked) {
            return f64::NEG_INFINITY;
        }
        scale * dot(&x[row * e..][..e], &y[j * e..][..e]) + bias
    }
}

/// Inputs: see [`features`], then counts and identities. Outputs: the part of the loss `[1]`, then r and c `[B]` (InfoNCE).
#[derive(Clone, Copy, Debug)]
struct RankLoss {
    kind: Contrastive,
    world: World,
}

impl RankLoss {
    fn own<'a>(&self, share: usize, integers: impl Fn(usize) -> &'a [i32]) -> Own<'a> {
        Own::new(
            self.world,
            share,
            MASK.behind(features(self.kind)),
            integers,
        )
    }

    fn problem(&self, inputs: &[TensorType]) -> RankProblem {
        RankProblem::of(&inputs[0], self.kind, self.world)
    }
}

impl RankLoss {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let [u, v] = [args.inputs.of::<T>(2), args.inputs.of::<T>(3)];
        let share = args.input_types[0].shape.rows();
        let own = self.own(share, |index| args.inputs.i32(index));
        let is_sigmoid = self.kind == Contrastive::Sigmoid;
        let bias = if is_sigmoid {
            args.inputs.f32(5)[0]
        } else {
            0.0
        };
        let e = args.input_types[0].shape.columns();
        let sweep = sweep(own, e, [args.inputs.f32(4)[0].exp(), bias]);
        let (first, pairs) = (own.first * e, own.pairs);
        let same = |i: usize| f64::from(sweep.own(u, v, own.first + i));
        let count = sweep.pairs.max(1) as f64;
        if is_sigmoid {
            let [loss] = args.outputs.f32();
            let (sums, scratch) = args.workspace.split_at_mut(pairs);
            sweep.rows(&u[first..], v, sums, 1, scratch, |tile, _, _, sum| {
                sum[0] += tile.iter().map(|x| softplus(f64::from(*x))).sum::<f64>() as f32;
            });
            let all: f64 = sums.iter().map(|x| f64::from(*x)).sum();
            let own: f64 = (0..pairs).map(same).sum();
            loss[0] = ((all - own) / count) as f32;
            return;
        }
        let [loss, row, column] = args.outputs.f32();
        let (row, others) = row.split_at_mut(pairs);
        others.fill(0.0);
        let (column, others) = column.split_at_mut(pairs);
        others.fill(0.0);
        sweep.log_sums(&u[first..], v, row, args.workspace);
        sweep.log_sums(&v[first..], u, column, args.workspace);
        let sums = row.iter().zip(column).enumerate();
        let sum: f64 = sums
            .map(|(i, (row, column))| (f64::from(*row) - same(i)) + (f64::from(*column) - same(i)))
            .sum();
        loss[0] = (sum / (2.0 * count)) as f32;
    }
}

impl Op for RankLoss {
    fn name(&self) -> &'static str {
        "contrastive_loss_over_ranks"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [b, _] = infer(
            self.name(),
            inputs,
            self.kind,
            self.world,
            features(self.kind),
        )?;
        let mut outputs = vec![TensorType::f32([1])];
        if self.kind == Contrastive::InfoNce {
            outputs.extend([TensorType::f32([b]), TensorType::f32([b])]);
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let inputs = args.inputs;
        let [u, v] = [inputs[2].float(), inputs[3].float()];
        let (share, e) = (inputs[0].shape.rows(), inputs[0].columns());
        let n = share * self.world.ranks;
        let own = self.own(share, |index| inputs[index].int());
        let scale = inputs[4].float()[0].exp();
        let count = own.counts.all().max(1) as f64;
        let mut loss = 0.0;
        for i in 0..own.pairs {
            match self.kind {
                Contrastive::InfoNce => {
                    let score = |sides, j| own.score(sides, e, [scale, 0.0], i, j);
                    let row = log_sum_exp((0..n).map(|j| score([u, v], j)));
                    let column = log_sum_exp((0..n).map(|j| score([v, u], j)));
                    let same = score([u, v], own.first + i);
                    loss += ((row - same) + (column - same)) / (2.0 * count);
                    args.outputs[1].float_mut()[i] = row;
                    args.outputs[2].float_mut()[i] = column;
                }
                Contrastive::Sigmoid => {
                    let bias = inputs[5].float()[0];
                    let score = |j| own.score([u, v], e, [scale, bias], i, j);
                    let all: f64 = (0..n).map(|j| softplus(score(j))).sum();
                    loss += (all - score(own.first + i)) / count;
                }
            }
        }
        args.outputs[0].float_mut()[0] = loss;
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        self.problem(inputs).forward_launches()
    }

    /// The gathered features owe nothing: what they would bring is in the gradients of each rank's own.
    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (own, mask) = backward.inputs.split_at(features(self.kind));
        let mut inputs = own.to_vec();
        for sums in &backward.outputs[1..] {
            inputs.push(all_gather(backward.tape, *sums)?);
        }
        inputs.push(backward.gradient(0));
        inputs.extend(mask);
        let op = RankLossBackward {
            kind: self.kind,
            world: self.world,
        };
        let gradients = backward.tape.record(op, &inputs)?;
        let mut owed = vec![Some(gradients[0]), Some(gradients[1]), None, None];
        owed.extend(gradients[2..].iter().copied().map(Some));
        owed.extend([None; 3]);
        Ok(owed)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let sweeps = match self.kind {
            Contrastive::InfoNce => 2.0,
            Contrastive::Sigmoid => 1.0,
        };
        Cost::streaming(sweeps * 2.0 * scores(inputs), inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => self.problem(inputs).forward_bytes(),
            target => workspace_bytes(inputs, target),
        }
    }
}

/// Multiply-adds of a rank's rows of scores.
fn scores(inputs: &[TensorType]) -> f64 {
    inputs[0].numel() as f64 * inputs[2].shape.rows() as f64
}

/// The sweep of a rank's own pairs over all columns.
fn sweep<'a>(own: Own<'a>, e: usize, [scale, bias]: [f32; 2]) -> Sweep<'a> {
    Sweep {
        n: own.pairs,
        columns: own.counts.rows(),
        first: own.first,
        pairs: own.counts.all(),
        counts: Some(own.counts),
        e,
        scale,
        bias,
        identities: own.identities,
    }
}

/// Inputs: see [`features`], then r and c of all ranks `[N]` (InfoNCE), dL, counts and identities. Outputs: the gradients of
/// own image and text, and this rank's parts of those of log_scale and bias.
#[derive(Clone, Copy, Debug)]
struct RankLossBackward {
    kind: Contrastive,
    world: World,
}

impl RankLossBackward {
    fn is_sigmoid(self) -> bool {
        self.kind == Contrastive::Sigmoid
    }

    /// The input dL; behind it come those of the mask.
    fn gradient_input(self) -> usize {
        match self.kind {
            Contrastive::InfoNce => 7,
            Contrastive::Sigmoid => 6,
        }
    }

    fn own<'a>(&self, share: usize, integers: impl Fn(usize) -> &'a [i32]) -> Own<'a> {
        let places = MASK.behind(self.gradient_input() + 1);
        Own::new(self.world, share, places, integers)
    }

    fn problem(&self, inputs: &[TensorType]) -> RankProblem {
        RankProblem::of(&inputs[0], self.kind, self.world)
    }

    /// G of own row `i` of x and row `j` of y over dL, where `sums` are the log-sums of x's and of y's rows.
    fn change(
        &self,
        own: &Own<'_>,
        score: f64,
        sums: Option<[&[f64]; 2]>,
        [i, j]: [usize; 2],
    ) -> f64 {
        let same = if own.first + i == j { 1.0 } else { 0.0 };
        let count = own.counts.all().max(1) as f64;
        match sums {
            _ if score == f64::NEG_INFINITY => 0.0,
            Some([of_x, of_y]) => {
                let terms = (score - of_x[own.first + i]).exp() + (score - of_y[j]).exp();
                (terms - 2.0 * same) / (2.0 * count)
            }
            None => (1.0 / (1.0 + (-score).exp()) - same) / count,
        }
    }
}

impl RankLossBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let [u, v] = [args.inputs.of::<T>(2), args.inputs.of::<T>(3)];
        let shape = args.input_types[0].shape;
        let (share, e) = (shape.rows(), shape.columns());
        let own = self.own(share, |index| args.inputs.i32(index));
        let bias = if self.is_sigmoid() {
            args.inputs.f32(5)[0]
        } else {
            0.0
        };
        let sweep = sweep(own, e, [args.inputs.f32(4)[0].exp(), bias]);
        let of_images = ScoreGradient {
            sweep: &sweep,
            dloss: args.inputs.f32(self.gradient_input())[0],
            log_sums: (!self.is_sigmoid()).then(|| [args.inputs.f32(5), args.inputs.f32(6)]),
        };
        // Of the texts, the rows of Gᵀ are the columns of G.
        let of_texts = ScoreGradient {
            log_sums: of_images.log_sums.map(|[row, column]| [column, row]),
            ..of_images
        };
        let mut outputs = args.outputs.in_order();
        let (du, dv) = (outputs.next::<T>(), outputs.next::<T>());
        let (first, pairs) = (own.first * e, own.pairs * e);
        let (unrounded, workspace) = args.workspace.split_at_mut(T::scratch(pairs));
        let mut dscale = 0.0;
        for (gradient, [x, y], dx) in [(&of_texts, [v, u], dv), (&of_images, [u, v], du)] {
            let (dx, others) = dx.split_at_mut(pairs);
            others.fill(T::default());
            let mut dx = RowsMut::new(dx, own.pairs, e);
            let mut target = T::target(dx.reborrow(), unrounded);
            let of_features = target.as_mut_slice();
            gradient.features([&x[first..], y], of_features, workspace);
            // Of the side that comes last, the images, and from sums that nobody has rounded.
            let products = x[first..].iter().zip(&*of_features);
            dscale = products
                .map(|(x, dx)| f64::from(x.widen()) * f64::from(*dx))
                .sum();
            T::settle(dx, unrounded);
        }
        outputs.next::<f32>()[0] = dscale as f32;
        if self.is_sigmoid() {
            let dbias = of_images.bias([&u[first..], v], workspace);
            outputs.next::<f32>()[0] = dbias as f32;
        }
    }
}

impl Op for RankLossBackward {
    fn name(&self) -> &'static str {
        "contrastive_loss_over_ranks_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let own = self.gradient_input() + 1;
        infer(self.name(), inputs, self.kind, self.world, own)?;
        let scalars = if self.is_sigmoid() { 2 } else { 1 };
        let mut outputs = vec![inputs[0], inputs[1]];
        outputs.extend(vec![TensorType::f32([1]); scalars]);
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let inputs: &[&Array] = args.inputs;
        let [u, v] = [inputs[2].float(), inputs[3].float()];
        let (share, e) = (inputs[0].shape.rows(), inputs[0].columns());
        let n = share * self.world.ranks;
        let own = self.own(share, |index| inputs[index].int());
        let (scale, dloss) = (
            inputs[4].float()[0].exp(),
            inputs[self.gradient_input()].float()[0],
        );
        let (bias, sums) = if self.is_sigmoid() {
            (inputs[5].float()[0], None)
        } else {
            (0.0, Some([inputs[5].float(), inputs[6].float()]))
        };
        let of_texts = sums.map(|[row, column]| [column, row]);
        let (mut dscale, mut dbias) = (0.0, 0.0);
        for i in 0..own.pairs {
            for (side, [x, y], sums) in [(0, [u, v], sums), (1, [v, u], of_texts)] {
                let mut dx = vec![0.0; e];
                for j in 0..n {
                    let score = own.score([x, y], e, [scale, bias], i, j);
                    let g = dloss * self.change(&own, score, sums, [i, j]);
                    for (dx, y) in dx.iter_mut().zip(&y[j * e..][..e]) {
                        *dx += scale * g * y;
                    }
                    dbias += if side == 0 { g } else { 0.0 };
                }
                if side == 0 {
                    dscale += dot(&dx, &u[(own.first + i) * e..][..e]);
                }
                args.outputs[side].float_mut()[i * e..][..e].copy_from_slice(&dx);
            }
        }
        args.outputs[2].float_mut()[0] = dscale;
        if self.is_sigmoid() {
            args.outputs[3].float_mut()[0] = dbias;
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        self.problem(inputs).backward_launches()
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(8.0 * scores(inputs), inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => self.problem(inputs).backward_bytes(),
            target => workspace_bytes(inputs, target),
        }
    }
}
