//! Attention by its formula, in f64.

use super::geometry::{Form, Geometry, same_segment};
use super::op::{Attention, AttentionBackward};
use crate::ops::special::dot;
use crate::tape::{Array, ReferenceArgs};
use crate::tensor::TensorType;

/// Query, key and value of one attention with their elements.
struct Elements<'a> {
    geometry: Geometry,
    query: &'a [f64],
    key: &'a [f64],
    value: &'a [f64],
    segments: Option<&'a [i32]>,
}

impl<'a> Elements<'a> {
    fn new(
        geometry: Geometry,
        form: Form,
        inputs: &'a [&'a Array],
        segments: Option<&'a &'a Array>,
    ) -> Self {
        let key_value = match form {
            Form::Packed => inputs[0].float(),
            Form::Next | Form::Cross => inputs[1].float(),
        };
        Elements {
            geometry,
            query: inputs[0].float(),
            key: key_value,
            value: key_value,
            segments: segments.map(|array| array.int()),
        }
    }

    /// The first elements of a query head, and of the key and value heads it reads, at key `key`.
    fn places(&self, batch: usize, head: usize, token: usize, key: usize) -> [usize; 3] {
        let g = &self.geometry;
        let (dim, shared) = (g.heads.dim, head / g.group());
        [
            g.query.at(batch, token, head, dim),
            g.key.at(batch, key, shared, dim),
            g.value.at(batch, key, shared, dim),
        ]
    }

    /// The keys that query `token` of batch row `batch` sees.
    fn visible(&self, batch: usize, token: usize) -> impl Iterator<Item = usize> {
        let tokens = self.geometry.key_tokens;
        let segments = self.segments.map(|all| &all[batch * tokens..][..tokens]);
        (0..self.geometry.limit(token)).filter(move |&key| same_segment(segments, token, key))
    }

    fn score(&self, batch: usize, head: usize, token: usize, key: usize) -> f64 {
        let [q, k, _] = self.places(batch, head, token, key);
        let dim = self.geometry.heads.dim;
        dot(&self.query[q..q + dim], &self.key[k..k + dim]) * self.geometry.scale()
    }
}

/// The types of the inputs, as far as the geometry asks.
fn types(inputs: &[&Array]) -> Vec<TensorType> {
    inputs.iter().map(|a| TensorType::f32(a.shape)).collect()
}

pub(super) fn forward(op: &Attention, args: ReferenceArgs<'_>) {
    let types = types(args.inputs);
    let geometry = op.geometry(&types);
    let sources = op.form.sources();
    let elements = Elements::new(geometry, op.form, args.inputs, args.inputs.get(sources));
    let (dim, tokens) = (geometry.heads.dim, geometry.query_tokens);
    for batch in 0..geometry.batch {
        for head in 0..geometry.heads.query {
            for token in 0..tokens {
                let scores: Vec<(usize, f64)> = elements
                    .visible(batch, token)
                    .map(|key| (key, elements.score(batch, head, token, key)))
                    .collect();
                // A query that sees nothing is padding: its output stays zero, and so does its log-sum-exp.
                if scores.is_empty() {
                    continue;
                }
                let largest = scores.iter().fold(f64::NEG_INFINITY, |m, (_, s)| m.max(*s));
                let sum: f64 = scores.iter().map(|(_, s)| (s - largest).exp()).sum();
                let log_sum_exp = largest + sum.ln();
                let at = ((batch * tokens + token) * geometry.heads.query + head) * dim;
                for (key, score) in scores {
                    let probability = (score - log_sum_exp).exp();
                    let [_, _, v] = elements.places(batch, head, token, key);
                    for d in 0..dim {
                        args.outputs[0].float_mut()[at + d] += probability * elements.value[v + d];
                    }
                }
                if op.saves {
                    let row = (batch * geometry.heads.query + head) * tokens + token;
                    args.outputs[1].float_mut()[row] = log_sum_exp;
                }
            }
        }
    }
}

pub(super) fn backward(op: &AttentionBackward, args: ReferenceArgs<'_>) {
    let types = types(args.inputs);
    let geometry = op.geometry(&types);
    let sources = op.form.sources();
    let elements = Elements::new(geometry, op.form, args.inputs, args.inputs.get(sources + 3));
    let [o, log_sum_exp, d_output] = [0, 1, 2].map(|index| args.inputs[sources + index].float());
    let (dim, tokens, scale) = (geometry.heads.dim, geometry.query_tokens, geometry.scale());
    // The gradients in the layout of their inputs.
    let mut outputs = args.outputs.iter_mut();
    let d_query = outputs.next().expect("there is a first output").float_mut();
    let mut d_other = outputs.next().map(|array| array.float_mut());
    for batch in 0..geometry.batch {
        for head in 0..geometry.heads.query {
            for token in 0..tokens {
                let at = ((batch * tokens + token) * geometry.heads.query + head) * dim;
                let (o, d_output) = (&o[at..at + dim], &d_output[at..at + dim]);
                let delta = dot(o, d_output);
                let row = (batch * geometry.heads.query + head) * tokens + token;
                for key in elements.visible(batch, token) {
                    let [q, k, v] = elements.places(batch, head, token, key);
                    let score = elements.score(batch, head, token, key);
                    let probability = (score - log_sum_exp[row]).exp();
                    let value = &elements.value[v..v + dim];
                    let d_probability = dot(d_output, value);
                    let d_score = probability * (d_probability - delta) * scale;
                    for d in 0..dim {
                        d_query[q + d] += d_score * elements.key[k + d];
                        // Packed rows have one gradient tensor for all three.
                        let d_key_value = match &mut d_other {
                            Some(other) => &mut other[..],
                            None => &mut *d_query,
                        };
                        d_key_value[k + d] += d_score * elements.query[q + d];
                        d_key_value[v + d] += probability * d_output[d];
                    }
                }
            }
        }
    }
}
