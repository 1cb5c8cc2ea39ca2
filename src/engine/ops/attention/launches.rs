//! The launches of `cuda/attention.cu` and `cuda/attention_backward.cu`.

use super::geometry::{Form, Geometry};
use super::op::{Attention, AttentionBackward};
use crate::launch::kernels::constants::attention_backward::{
    BACKWARD_ROWS, BACKWARD_SPLIT, DELTA_LANES, ELEMENT_THREADS, UNSPLIT_DIM,
};
use crate::launch::kernels::constants::attention_forward::{
    FORWARD_QUERIES_BF16, FORWARD_QUERIES_F32,
};
use crate::launch::{Argument, Family, KernelEntry, Launch, blocks, index, kernels};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// No tile is longer: forward's is the longest.
const LONGEST_TILE: usize = FORWARD_QUERIES_BF16;

/// Queries of a block forward: `ForwardShape::kQueries`.
fn forward_queries(dtype: DType) -> usize {
    match dtype {
        DType::Bf16 => FORWARD_QUERIES_BF16,
        _ => FORWARD_QUERIES_F32,
    }
}

/// Queries, or keys, of a block backward: `BackwardShape::kRows`.
fn backward_rows(dtype: DType, padded: usize) -> usize {
    match dtype {
        DType::F32 if padded > UNSPLIT_DIM => BACKWARD_ROWS / BACKWARD_SPLIT,
        _ => BACKWARD_ROWS,
    }
}

/// The head dim of the kernel that serves `dim`, which is padded to it, and the kernel's family.
fn padded_dim(sizes: &[(usize, Family)], dim: usize) -> Result<(usize, Family)> {
    let fitting = sizes.iter().find(|(padded, _)| *padded >= dim);
    fitting.copied().ok_or_else(|| {
        let (largest, family) = sizes[sizes.len() - 1];
        Error::kernel(format!(
            "kernel {}: the head dim is at most {largest}, but {dim} is wanted; use more, smaller heads or --device cpu",
            family.name
        ))
    })
}

/// A number of tokens as a 32-bit argument; tiles may reach a little past it.
fn tokens(kernel: &KernelEntry, what: &str, count: usize) -> Result<Argument> {
    // Kernels count in 32 bits, up to the end of the last tile: that is what has to fit, not only the count.
    index(kernel, what, count + LONGEST_TILE)?;
    index(kernel, what, count)
}

/// What the kernels with products share.
struct Common<'a> {
    geometry: &'a Geometry,
    form: Form,
    dtype: DType,
    /// The input that holds segments.
    segments: Option<usize>,
}

impl Common<'_> {
    /// The one of `sizes` that holds the head, on one block for each of `tiles` tiles of each of `heads` heads.
    fn launch(
        &self,
        sizes: &[(usize, Family)],
        heads: usize,
        tiles: usize,
        mut arguments: Vec<Argument>,
    ) -> Result<Launch> {
        let g = self.geometry;
        let (_, family) = padded_dim(sizes, g.heads.dim)?;
        let kernel = family.of(self.dtype)?;
        arguments.push(Argument::F32(g.scale() as f32));
        // GEOMETRY_PARAMETERS of cuda/attention/geometry.cuh.
        arguments.extend([
            self.segments.map_or(Argument::Null, Argument::input),
            index(kernel, "the batch", g.batch)?,
            index(kernel, "the number of query heads", g.heads.query)?,
            index(kernel, "the number of query heads of a group", g.group())?,
            index(kernel, "the head dim", g.heads.dim)?,
            tokens(kernel, "the number of queries", g.query_tokens)?,
            tokens(kernel, "the number of keys", g.key_tokens)?,
            index(kernel, "the prefix", g.seen_by_all)?,
            Argument::I64(g.query.row as i64),
            Argument::I64(g.query.batch as i64),
            Argument::I64(g.key.row as i64),
            Argument::I64(g.key.batch as i64),
        ]);
        let blocks = blocks(kernel, g.batch * heads * tiles, 1)?;
        Ok(Launch::new(kernel, blocks, arguments))
    }

    /// Query, key and value, each where its first head starts, in the inputs or in the outputs that have their layout.
    fn places(&self, argument: impl Fn(usize, usize) -> Argument) -> [Argument; 3] {
        let g = self.geometry;
        let key_value = self.form.sources() - 1;
        let bytes = self.dtype.size();
        [
            argument(0, g.query.start * bytes),
            argument(key_value, g.key.start * bytes),
            argument(key_value, g.value.start * bytes),
        ]
    }

    fn inputs(&self) -> [Argument; 3] {
        self.places(|index, offset| Argument::Input { index, offset })
    }

    fn outputs(&self) -> [Argument; 3] {
        self.places(|index, offset| Argument::Output { index, offset })
    }
}

pub(super) fn forward(op: &Attention, inputs: &[TensorType]) -> Result<Vec<Launch>> {
    let geometry = &op.geometry(inputs);
    if geometry.batch == 0 {
        return Ok(Vec::new());
    }
    let sources = op.form.sources();
    let common = Common {
        geometry,
        form: op.form,
        dtype: inputs[0].dtype,
        segments: (inputs.len() > sources).then_some(sources),
    };
    let log_sum_exp = if op.saves {
        Argument::output(1)
    } else {
        Argument::Null
    };
    let mut arguments = vec![Argument::output(0), log_sum_exp];
    arguments.extend(common.inputs());
    let tiles = geometry
        .query_tokens
        .div_ceil(forward_queries(common.dtype));
    let heads = geometry.heads.query;
    Ok(vec![common.launch(
        kernels::ATTENTION_FORWARD,
        heads,
        tiles,
        arguments,
    )?])
}

/// Elements of the output.
fn output_elements(geometry: &Geometry) -> usize {
    geometry.output(DType::F32).numel()
}

/// Whether all batch rows share their queries, whose gradient is then written for each of them first and added up after.
fn is_query_shared(geometry: &Geometry) -> bool {
    geometry.query.batch == 0
}

/// Bytes of δ, f32 [B, H, Tq], at the start of the workspace; whole vectors.
fn delta_bytes(geometry: &Geometry) -> usize {
    geometry.log_sum_exp().bytes().next_multiple_of(16)
}

/// Bytes of scratch memory for [`backward`].
pub(super) fn backward_workspace(geometry: &Geometry) -> usize {
    let partial = if is_query_shared(geometry) {
        output_elements(geometry) * size_of::<f32>()
    } else {
        0
    };
    delta_bytes(geometry) + partial
}

pub(super) fn backward(op: &AttentionBackward, inputs: &[TensorType]) -> Result<Vec<Launch>> {
    let geometry = &op.geometry(inputs);
    let sources = op.form.sources();
    let common = Common {
        geometry,
        form: op.form,
        dtype: inputs[0].dtype,
        segments: (inputs.len() > sources + 3).then_some(sources + 3),
    };
    let [output, log_sum_exp, d_output] = [0, 1, 2].map(|i| Argument::input(sources + i));
    let delta = Argument::workspace(DType::F32);
    let partial = if is_query_shared(geometry) {
        Argument::Workspace {
            offset: delta_bytes(geometry),
            element: DType::F32,
        }
    } else {
        Argument::Null
    };
    let mut launches = Vec::new();
    if geometry.batch > 0 {
        let (query_heads, key_heads) = (geometry.heads.query, geometry.heads.key_value);
        // δ first: both kernels below read it. They share no output and could run side by side.
        launches.push(delta_launch(&common, [delta, output, d_output])?);
        let (padded, _) = padded_dim(kernels::ATTENTION_BACKWARD_QUERY, geometry.heads.dim)?;
        let rows = backward_rows(common.dtype, padded);
        let [d_query, d_key, d_value] = common.outputs();
        let read: Vec<Argument> = common
            .inputs()
            .into_iter()
            .chain([d_output, log_sum_exp, delta])
            .collect();
        let arguments = [&[d_query, partial][..], &read].concat();
        let tiles = geometry.query_tokens.div_ceil(rows);
        launches.push(common.launch(
            kernels::ATTENTION_BACKWARD_QUERY,
            query_heads,
            tiles,
            arguments,
        )?);
        // Keys and values by tiles of keys, a kernel of their own: each sums over all queries, and with queries outside
        // it would have to add to them atomically, in no fixed order.
        let arguments = [&[d_key, d_value][..], &read].concat();
        let tiles = geometry.key_tokens.div_ceil(rows);
        launches.push(common.launch(
            kernels::ATTENTION_BACKWARD_KEY_VALUE,
            key_heads,
            tiles,
            arguments,
        )?);
    }
    if is_query_shared(geometry) {
        let kernel = kernels::ATTENTION_BACKWARD_QUERY_SUM.of(common.dtype)?;
        let elements = inputs[0].numel();
        let blocks = blocks(kernel, elements, ELEMENT_THREADS)?;
        let arguments = vec![
            Argument::output(0),
            partial,
            Argument::I64(elements as i64),
            index(kernel, "the batch", geometry.batch)?,
        ];
        launches.push(Launch::new(kernel, blocks, arguments));
    }
    Ok(launches)
}

/// δ from the output and its gradient.
fn delta_launch(common: &Common<'_>, tensors: [Argument; 3]) -> Result<Launch> {
    let g = common.geometry;
    let kernel = kernels::ATTENTION_BACKWARD_DELTA.of(common.dtype)?;
    let rows = g.log_sum_exp().numel();
    let blocks = blocks(kernel, rows, ELEMENT_THREADS / DELTA_LANES)?;
    let mut arguments = tensors.to_vec();
    arguments.extend([
        Argument::I64(rows as i64),
        index(kernel, "the number of query heads", g.heads.query)?,
        index(kernel, "the head dim", g.heads.dim)?,
        index(kernel, "the number of queries", g.query_tokens)?,
    ]);
    Ok(Launch::new(kernel, blocks, arguments))
}
