//! Attention on the processor.

use rayon::prelude::*;

use super::geometry::{Form, Geometry, same_segment};
use super::op::{Attention, AttentionBackward};
use crate::tape::{CpuArgs, Target};

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// Query, key and value slices of the inputs.
fn sources<'a>(form: Form, args: &CpuArgs<'a>) -> (&'a [f32], &'a [f32]) {
    let query = args.inputs.f32(0);
    match form {
        Form::Packed => (query, query),
        Form::Cross => (query, args.inputs.f32(1)),
    }
}

pub(super) fn forward(op: &Attention, args: CpuArgs<'_>) {
    let geometry = op.geometry(args.input_types);
    let (query, key_value) = sources(op.form, &args);
    let segments = (args.inputs.len() > op.form.sources()).then(|| args.inputs.i32(1));
    let (heads, dim) = (geometry.heads.query, geometry.heads.dim);
    let (tokens, keys) = (geometry.query_tokens, geometry.key_tokens);
    let (output, lse): (&mut [f32], &mut [f32]) = if op.saves {
        let [output, lse] = args.outputs.f32();
        (output, lse)
    } else {
        let [output] = args.outputs.f32();
        (output, &mut [])
    };
    let scale = geometry.scale() as f32;
    let one = |batch: usize, output: &mut [f32], lse: &mut [f32]| {
        let segments = segments.map(|all| &all[batch * keys..][..keys]);
        for head in 0..heads {
            let shared = head / geometry.group();
            for token in 0..tokens {
                let q = &query[geometry.query.at(batch, token, head, dim)..][..dim];
                let o = &mut output[(token * heads + head) * dim..][..dim];
                o.fill(0.0);
                let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
                for key in 0..geometry.limit(token) {
                    if !same_segment(segments, token, key) {
                        continue;
                    }
                    let k = &key_value[geometry.key.at(batch, key, shared, dim)..][..dim];
                    let score = dot(q, k) * scale;
                    if score > largest {
                        let factor = (largest - score).exp();
                        o.iter_mut().for_each(|o| *o *= factor);
                        sum *= factor;
                        largest = score;
                    }
                    let weight = (score - largest).exp();
                    sum += weight;
                    let v = &key_value[geometry.value.at(batch, key, shared, dim)..][..dim];
                    add_scaled(o, weight, v);
                }
                if sum > 0.0 {
                    o.iter_mut().for_each(|o| *o /= sum);
                }
                if let Some(lse) = lse.get_mut(head * tokens + token) {
                    *lse = if sum > 0.0 { largest + sum.ln() } else { 0.0 };
                }
            }
        }
    };
    let outputs = output.par_chunks_mut(tokens * heads * dim).enumerate();
    if op.saves {
        outputs
            .zip(lse.par_chunks_mut(heads * tokens))
            .for_each(|((batch, output), lse)| one(batch, output, lse));
    } else {
        outputs.for_each(|(batch, output)| one(batch, output, &mut []));
    }
}

/// Bytes of scratch memory for [`backward`]: a query shared by the batch gathers its gradient for each batch row.
pub(super) fn backward_workspace(geometry: &Geometry, _target: Target) -> usize {
    if geometry.query.batch > 0 {
        return 0;
    }
    geometry.batch * geometry.query_tokens * geometry.query.row * size_of::<f32>()
}

pub(super) fn backward(op: &AttentionBackward, args: CpuArgs<'_>) {
    let geometry = op.geometry(args.input_types);
    let (query, key_value) = sources(op.form, &args);
    let first = op.form.sources();
    let [output, lse, d_output] = [0, 1, 2].map(|index| args.inputs.f32(first + index));
    let segments = (args.inputs.len() > first + 3).then(|| args.inputs.i32(first + 3));
    let (heads, dim) = (geometry.heads.query, geometry.heads.dim);
    let (tokens, keys) = (geometry.query_tokens, geometry.key_tokens);
    let scale = geometry.scale() as f32;
    // Writes the gradients of one batch row; those of the keys and values start at an offset of their own rows.
    let one = |batch: usize, d_query: &mut [f32], mut d_key_value: Option<&mut [f32]>| {
        let segments = segments.map(|all| &all[batch * keys..][..keys]);
        d_query.fill(0.0);
        if let Some(gradient) = &mut d_key_value {
            gradient.fill(0.0);
        }
        for head in 0..heads {
            let shared = head / geometry.group();
            for token in 0..tokens {
                let at = ((batch * tokens + token) * heads + head) * dim;
                let (o, d_o) = (&output[at..][..dim], &d_output[at..][..dim]);
                let delta = dot(o, d_o);
                let lse = lse[(batch * heads + head) * tokens + token];
                let q = &query[geometry.query.at(batch, token, head, dim)..][..dim];
                for key in 0..geometry.limit(token) {
                    if !same_segment(segments, token, key) {
                        continue;
                    }
                    let k = &key_value[geometry.key.at(batch, key, shared, dim)..][..dim];
                    let v = &key_value[geometry.value.at(batch, key, shared, dim)..][..dim];
                    let weight = (dot(q, k) * scale - lse).exp();
                    let d_score = weight * (dot(d_o, v) - delta) * scale;
                    let at = geometry.query.at(0, token, head, dim);
                    add_scaled(&mut d_query[at..][..dim], d_score, k);
                    let gradient = match &mut d_key_value {
                        Some(gradient) => &mut gradient[..],
                        None => &mut *d_query,
                    };
                    let at = geometry.key.at(0, key, shared, dim);
                    add_scaled(&mut gradient[at..][..dim], d_score, q);
                    let at = geometry.value.at(0, key, shared, dim);
                    add_scaled(&mut gradient[at..][..dim], weight, d_o);
                }
            }
        }
    };
    match op.form {
        Form::Packed => {
            let [gradient] = args.outputs.f32();
            gradient
                .par_chunks_mut(geometry.query.batch)
                .enumerate()
                .for_each(|(batch, gradient)| one(batch, gradient, None));
        }
        Form::Cross => {
            let [d_query, d_key_value] = args.outputs.f32();
            let is_shared = geometry.query.batch == 0;
            let elements = tokens * geometry.query.row;
            let of_rows = match is_shared {
                true => &mut args.workspace[..geometry.batch * elements],
                false => &mut *d_query,
            };
            of_rows
                .par_chunks_mut(elements)
                .zip(d_key_value.par_chunks_mut(geometry.key.batch))
                .enumerate()
                .for_each(|(batch, (d_query, d_key_value))| one(batch, d_query, Some(d_key_value)));
            if is_shared {
                d_query.fill(0.0);
                for of_row in args.workspace.chunks(elements).take(geometry.batch) {
                    add_scaled(d_query, 1.0, of_row);
                }
            }
        }
    }
}
