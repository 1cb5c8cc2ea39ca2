//! The launches of `cuda/attention.cu` and `cuda/attention_backward.cu`.

use super::geometry::{Form, Geometry};
use super::op::{Attention, AttentionBackward};
use keel_base::error::{Error, Result};
use crate::launch::{Argument, Launch, blocks, index, kernel_name};
use crate::tensor::{DType, TensorType};

/// The head dims that kernels are built for; others are padded to the next.
const DIMS: [usize; 4] = [32, 64, 96, 128];

/// Threads of a block of the kernels without products.
const ELEMENT_THREADS: usize = 256;

/// Threads that share a row of one head in the kernel that computes δ.
const DELTA_LANES: usize = 8;

/// No tile is longer.
const LONGEST_TILE: usize = 128;

/// Queries of a block forward: `ForwardShape::kQueries`.
fn forward_queries(dtype: DType) -> usize {
    match dtype {
        DType::Bf16 => 128,
        _ => 64,
    }
}

/// Queries, or keys, of a block backward: `BackwardShape::kRows`.
fn backward_rows(dtype: DType, padded: usize) -> usize {
    match dtype {
        DType::F32 if padded > 96 => 32,
        _ => 64,
    }
}

/// The head dim of the kernel that serves `dim`.
fn padded_dim(kernel: &str, dim: usize) -> Result<usize> {
    let fitting = DIMS.into_iter().find(|padded| *padded >= dim);
    fitting.ok_or_else(|| {
        Error::kernel(format!(
            "kernel {kernel}: the head dim is at most {}, but {dim} is wanted; use more, smaller heads or --device cpu",
            DIMS[DIMS.len() - 1]
        ))
    })
}

/// A number of tokens as a 32-bit argument; tiles may reach a little past it.
fn tokens(kernel: &str, what: &str, count: usize) -> Result<Argument> {
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
    /// `<kernel>_d<padded head dim>_<f32|bf16>` on one block for each of `tiles` tiles of each of `heads` heads.
    fn launch(
        &self,
        kernel: &str,
        heads: usize,
        tiles: usize,
        mut arguments: Vec<Argument>,
    ) -> Result<Launch> {
        let g = self.geometry;
        let padded = padded_dim(kernel, g.heads.dim)?;
        let kernel = kernel_name(&format!("{kernel}_d{padded}"), self.dtype);
        arguments.push(Argument::F32(g.scale() as f32));
        // GEOMETRY_PARAMETERS of cuda/attention/geometry.cuh.
        arguments.extend([
            self.segments.map_or(Argument::Null, Argument::input),
            index(&kernel, "the batch", g.batch)?,
            index(&kernel, "the number of query heads", g.heads.query)?,
            index(&kernel, "the number of query heads of a group", g.group())?,
            index(&kernel, "the head dim", g.heads.dim)?,
            tokens(&kernel, "the number of queries", g.query_tokens)?,
            tokens(&kernel, "the number of keys", g.key_tokens)?,
            index(&kernel, "the prefix", g.seen_by_all)?,
            Argument::I64(g.query.row as i64),
            Argument::I64(g.query.batch as i64),
            Argument::I64(g.key.row as i64),
            Argument::I64(g.key.batch as i64),
        ]);
        let blocks = blocks(&kernel, g.batch * heads * tiles, 1)?;
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
    let log_sum_exp = match op.saves {
        true => Argument::output(1),
        false => Argument::Null,
    };
    let mut arguments = vec![Argument::output(0), log_sum_exp];
    arguments.extend(common.inputs());
    let tiles = geometry
        .query_tokens
        .div_ceil(forward_queries(common.dtype));
    let heads = geometry.heads.query;
    Ok(vec![common.launch(
        "attention_forward",
        heads,
        tiles,
        arguments,
    )?])
}

/// Elements of the output.
fn output_elements(geometry: &Geometry) -> usize {
    geometry.output(DType::F32).numel()
}

/// Whether all batch rows share their queries, whose gradient is then gathered for each of them first.
fn is_query_shared(geometry: &Geometry) -> bool {
    geometry.query.batch == 0
}

/// Bytes of δ, f32 [B, H, Tq], at the start of the workspace; whole vectors.
fn delta_bytes(geometry: &Geometry) -> usize {
    geometry.log_sum_exp().bytes().next_multiple_of(16)
}

/// Bytes of scratch memory for [`backward`].
pub(super) fn backward_workspace(geometry: &Geometry) -> usize {
    let partial = match is_query_shared(geometry) {
        true => output_elements(geometry) * size_of::<f32>(),
        false => 0,
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
    let partial = match is_query_shared(geometry) {
        true => Argument::Workspace {
            offset: delta_bytes(geometry),
            element: DType::F32,
        },
        false => Argument::Null,
    };
    let mut launches = Vec::new();
    if geometry.batch > 0 {
        let (query_heads, key_heads) = (geometry.heads.query, geometry.heads.key_value);
        launches.push(delta_launch(&common, [delta, output, d_output])?);
        let rows = backward_rows(
            common.dtype,
            padded_dim("attention_backward", geometry.heads.dim)?,
        );
        let [d_query, d_key, d_value] = common.outputs();
        let read: Vec<Argument> = common
            .inputs()
            .into_iter()
            .chain([d_output, log_sum_exp, delta])
            .collect();
        let arguments = [&[d_query, partial][..], &read].concat();
        let tiles = geometry.query_tokens.div_ceil(rows);
        launches.push(common.launch("attention_backward_query", query_heads, tiles, arguments)?);
        let arguments = [&[d_key, d_value][..], &read].concat();
        let tiles = geometry.key_tokens.div_ceil(rows);
        launches.push(common.launch(
            "attention_backward_key_value",
            key_heads,
            tiles,
            arguments,
        )?);
    }
    if is_query_shared(geometry) {
        let kernel = kernel_name("attention_backward_query_sum", common.dtype);
        let elements = inputs[0].numel();
        let blocks = blocks(&kernel, elements, ELEMENT_THREADS)?;
        let arguments = vec![
            Argument::output(0),
            partial,
            Argument::I64(elements as i64),
            index(&kernel, "the batch", geometry.batch)?,
        ];
        launches.push(Launch::new(kernel, blocks, arguments));
    }
    Ok(launches)
}

/// δ from the output and its gradient.
fn delta_launch(common: &Common<'_>, tensors: [Argument; 3]) -> Result<Launch> {
    let g = common.geometry;
    let kernel = kernel_name("attention_backward_delta", common.dtype);
    let rows = g.log_sum_exp().numel();
    let blocks = blocks(&kernel, rows, ELEMENT_THREADS / DELTA_LANES)?;
    let mut arguments = tensors.to_vec();
    arguments.extend([
        Argument::I64(rows as i64),
        index(&kernel, "the number of query heads", g.heads.query)?,
        index(&kernel, "the head dim", g.heads.dim)?,
        index(&kernel, "the number of queries", g.query_tokens)?,
    ]);
    Ok(Launch::new(kernel, blocks, arguments))
}
