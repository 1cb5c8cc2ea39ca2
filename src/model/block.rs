//! The pre-norm transformer block that every tower is made of:
//! x + attention(norm1(x)), then x + mlp(norm2(x)), each addition optionally scaled per channel.

use serde::{Deserialize, Serialize};

use super::lora::{Adapter, LoraConfig, adapt, adapters, packed_parts};
use super::{Scope, drop_path};
use keel_base::error::Result;
use keel_engine::ops::{self, Activation, Heads, Mask, Positions};
use keel_engine::tape::{Fill, Init, Tape, Value};
use keel_engine::tensor::TensorType;

/// The kind of every norm of a tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// LayerNorm: (x − mean) · rstd · weight + bias (Ba et al. 2016).
    Layer,
    /// RMSNorm: x · rms⁻¹ · weight (Zhang and Sennrich 2019).
    Rms,
}

/// The feed-forward half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// down(silu(gate x) ⊙ up x), one packed matrix for gate and up (Shazeer 2020).
    #[serde(rename = "swiglu")]
    SwiGlu,
    /// fc2(gelu(fc1 x)) with the exact error function.
    Gelu,
    /// fc2(gelu(fc1 x)) with the tanh approximation.
    GeluTanh,
    /// fc2(gelu(fc1 x)) with x·σ(1.702 x), as CLIP has it.
    #[serde(rename = "quick_gelu")]
    GeluQuick,
}

/// The RMSNorm of queries and of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Of each head, with one weight `[D]` for all of them, as in Qwen3.
    EachHead,
    /// Of all heads of a row at once, with a weight [H·D], as in InternViT-6B.
    AllHeads,
}

impl QkNorm {
    /// What is normalised as one, where queries have as many heads as keys if all are.
    fn heads(self, heads: Heads) -> Heads {
        match self {
            QkNorm::EachHead => heads,
            QkNorm::AllHeads => Heads {
                query: 1,
                key_value: 1,
                dim: heads.query_width(),
            },
        }
    }
}

/// What one block is made of. F = `mlp_width`.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockConfig {
    /// Model width C.
    pub width: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Feed-forward width F.
    pub mlp_width: usize,
    /// Kind of both norms.
    pub norm: NormKind,
    /// ε of both norms.
    pub norm_epsilon: f32,
    /// Kind of the feed-forward half.
    pub mlp: MlpKind,
    /// Whether the packed query, key and value projection has a bias.
    pub qkv_bias: bool,
    /// Whether keys have a bias where queries and values have one.
    pub key_bias: bool,
    /// Whether the other projections have biases.
    pub bias: bool,
    /// First value of the per-channel scales of both residual branches (Touvron et al. 2021), where there are any.
    pub layer_scale: Option<f32>,
    /// How queries and keys are normalised, where they are.
    pub qk_norm: Option<QkNorm>,
    /// Base of the rotary positions, where there are any.
    pub rope_theta: Option<f32>,
    /// Blocks of the tower: branches that end in the residual stream start smaller in deeper towers.
    pub depth: usize,
    /// Low-rank adapters of the projections, where there are any.
    pub lora: Option<LoraConfig>,
}

/// A norm with its parameters `<name>.weight` and, where it has one, `<name>.bias`.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn norm(
    tape: &mut Tape,
    scope: &Scope,
    name: &str,
    x: Value,
    kind: NormKind,
    epsilon: f32,
) -> Result<Value> {
    let width = tape.shape(x).columns();
    let scope = scope.child(name);
    let weight = scope.plain(tape, "weight", [width], Init::Constant(1.0))?;
    match kind {
        NormKind::Rms => ops::rms_norm(tape, x, weight, epsilon),
        NormKind::Layer => {
            let bias = scope.plain(tape, "bias", [width], Init::Constant(0.0))?;
            ops::layer_norm(tape, x, weight, bias, epsilon)
        }
    }
}

/// The parameters of a projection [outputs, inputs]: `<name>.weight` and, if `bias`, `<name>.bias`.
///
/// # Errors
/// When the layout holds another shape.
pub(super) fn projection(
    tape: &mut Tape,
    scope: &Scope,
    name: &str,
    shape: [usize; 2],
    init: Init,
    bias: bool,
) -> Result<(Value, Option<Value>)> {
    let scope = scope.child(name);
    let weight = scope.matrix(tape, "weight", shape, init)?;
    let bias = if bias {
        Some(scope.plain(tape, "bias", [shape[0]], Init::Constant(0.0))?)
    } else {
        None
    };
    Ok((weight, bias))
}

/// Records one block. `x` [B, T, C]; `segments` i32 [B, T] keeps packed samples apart.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn block(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
    mask: Mask,
    segments: Option<Value>,
    positions: Positions,
) -> Result<Value> {
    tape.scoped(scope.path(), |tape| {
        let attended = attention(tape, scope, x, config, mask, segments, positions)?;
        feed_forward(tape, scope, attended, config)
    })
}

/// Records a block of a vision tower, whose tokens all attend to each other; `positions` are those of its rotary positions, where it
/// has any. `dropped` scales its two branches image by image, f32
/// [B, 1] each, where some are dropped.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn vision_block(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
    positions: Positions,
    dropped: Option<[Value; 2]>,
) -> Result<Value> {
    let Some([of_attention, of_mlp]) = dropped else {
        return block(tape, scope, x, config, Mask::Full, None, positions);
    };
    tape.scoped(scope.path(), |tape| {
        let qkv = queries_keys_values(tape, scope, x, config, positions)?;
        let y = ops::attention(tape, qkv, config.heads, Mask::Full, None)?;
        let attended = attention_output(tape, scope, y, x, config, Some(of_attention))?;
        mlp_branch(tape, scope, attended, config, Some(of_mlp))
    })
}

/// Standard deviation of a projection that ends in the residual stream: Glorot's, divided by √(2·depth) so that the
/// stream's variance does not grow with depth (Radford et al. 2019, §2.3).
fn residual_init(rows: usize, columns: usize, depth: usize) -> Init {
    // Every branch is added to the stream: 2·depth of them, each scaled by 1 / √(2·depth), leave it about as large at
    // the end as at the beginning.
    let glorot = (2.0 / (rows + columns) as f32).sqrt();
    Init::Normal(glorot / (2.0 * depth as f32).sqrt())
}

/// Records one block for the next token of each row, which attends to the tokens before it through a cache of their
/// queries, keys and values. `x` [B, 1, C].
///
/// # Errors
/// Whatever recording reports.
pub(super) fn cached_block(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
    place: &NextPlace,
) -> Result<Value> {
    tape.scoped(scope.path(), |tape| {
        let positions = Positions::Given(place.position);
        let qkv = queries_keys_values(tape, scope, x, config, positions)?;
        let (batch, tokens) = (tape.shape(qkv).dims()[0], place.tokens);
        // In the type of the row: all that a row holds is read for each token, so another type would cost a pass over it.
        let cache = tape.cached_rows([batch, tokens, config.heads.packed_width()]);
        let seen = ops::splice_into_cache(tape, cache, place.slots, qkv, 1)?;
        let y = ops::next_attention(tape, qkv, seen, config.heads, place.seen)?;
        let attended = attention_output(tape, scope, y, x, config, None)?;
        feed_forward(tape, scope, attended, config)
    })
}

/// Where the next token of each row stands among the T that a row can hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct NextPlace {
    /// T.
    pub tokens: usize,
    /// i32 [B, T]: 1 at the token's place, 0 elsewhere.
    pub slots: Value,
    /// The place, i32 [B, 1].
    pub position: Value,
    /// i32 [B, T]: 0 at the places up to the token's, −1 beyond.
    pub seen: Value,
}

fn attention(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
    mask: Mask,
    segments: Option<Value>,
    positions: Positions,
) -> Result<Value> {
    let qkv = queries_keys_values(tape, scope, x, config, positions)?;
    let y = ops::attention(tape, qkv, config.heads, mask, segments)?;
    attention_output(tape, scope, y, x, config, None)
}

/// The packed rows that attention reads, `<scope>.attended`: normed, projected, turned.
fn queries_keys_values(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
    positions: Positions,
) -> Result<Value> {
    let BlockConfig { width, heads, .. } = *config;
    let inner = scope.child("attention");
    let y = norm(tape, scope, "norm1", x, config.norm, config.norm_epsilon)?;
    let rows = (heads.query + 2 * heads.key_value) * heads.dim;
    let has_bias = config.qkv_bias && config.key_bias;
    let (weight, bias) = projection(
        tape,
        &inner,
        "qkv",
        [rows, width],
        Init::XavierUniform,
        has_bias,
    )?;
    let bias = match bias {
        None if config.qkv_bias => Some(bias_without_keys(tape, &inner, heads)?),
        bias => bias,
    };
    let parts = packed_parts(config, "qkv");
    let lora = config.lora.as_ref();
    let adapters = adapters(tape, &inner.child("qkv"), lora, y, (rows, &parts))?;
    let qkv = ops::linear(tape, y, weight, bias)?;
    let mut qkv = adapt(tape, qkv, &adapters, None)?;
    if let Some(kind) = config.qk_norm {
        let (normed, one) = (kind.heads(heads), Init::Constant(1.0));
        let [query, key] = ["q_norm", "k_norm"].map(|name| {
            let scope = inner.child(name);
            scope.plain(tape, "weight", [normed.dim], one)
        });
        qkv = ops::qk_norm(tape, qkv, query?, key?, normed, config.norm_epsilon)?;
    }
    if let Some(theta) = config.rope_theta {
        qkv = ops::rope(tape, qkv, heads, theta, positions)?;
    }
    // After norm and rotation: what attention is computed from, so that it can be looked at.
    tape.name(qkv, scope.full("attended"));
    Ok(qkv)
}

/// The bias of queries and values with zeros for the keys between them, which nothing trains: f32 `[(H + 2Hk)·D]`.
///
/// # Errors
/// Whatever recording reports.
fn bias_without_keys(tape: &mut Tape, scope: &Scope, heads: Heads) -> Result<Value> {
    let (query, rest) = (heads.query_width(), heads.key_value * heads.dim);
    let scope = scope.child("query_value");
    let bias = scope.plain(tape, "bias", [query + rest], Init::Constant(0.0))?;
    // Heads are the rows of a sequence here, and the keys' are put among them.
    let rows = tape.reshape(bias, [1, heads.query + heads.key_value, heads.dim])?;
    let ty = TensorType::f32([heads.key_value, heads.dim]);
    let zeros = tape.record_one(Fill { ty, value: 0.0 }, &[])?;
    let all = ops::insert_tokens(tape, rows, zeros, heads.query)?;
    tape.reshape(all, [query + 2 * rest])
}

/// x + [scale ⊙] the projection of what attention gave, `y` [B, T, H·D], scaled image by image too where some are `dropped`.
fn attention_output(
    tape: &mut Tape,
    scope: &Scope,
    y: Value,
    x: Value,
    config: &BlockConfig,
    dropped: Option<Value>,
) -> Result<Value> {
    let BlockConfig { width, heads, .. } = *config;
    let inner = scope.child("attention");
    let columns = heads.query * heads.dim;
    let init = residual_init(width, columns, config.depth);
    let (weight, bias) = projection(tape, &inner, "out", [width, columns], init, config.bias)?;
    let lora = config.lora.as_ref();
    let adapters = adapters(tape, &inner.child("out"), lora, y, (width, &[]))?;
    let branch = (y, weight, bias, &adapters[..]);
    add_branch(tape, scope, "layer_scale1", config, branch, (x, dropped))
}

/// x + mlp(norm2(x)), the second half of a block. `x` [.., C].
///
/// # Errors
/// Whatever recording reports.
pub(super) fn feed_forward(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
) -> Result<Value> {
    mlp_branch(tape, scope, x, config, None)
}

/// As [`feed_forward`], scaled image by image where some are `dropped`.
fn mlp_branch(
    tape: &mut Tape,
    scope: &Scope,
    x: Value,
    config: &BlockConfig,
    dropped: Option<Value>,
) -> Result<Value> {
    let BlockConfig {
        width, mlp_width, ..
    } = *config;
    let inner = scope.child("mlp");
    let lora = config.lora.as_ref();
    let y = norm(tape, scope, "norm2", x, config.norm, config.norm_epsilon)?;
    let xavier = Init::XavierUniform;
    let activation = match config.mlp {
        MlpKind::SwiGlu => None,
        MlpKind::Gelu => Some(Activation::GeluErf),
        MlpKind::GeluTanh => Some(Activation::GeluTanh),
        MlpKind::GeluQuick => Some(Activation::GeluQuick),
    };
    let (y, last) = match activation {
        None => {
            let (weight, bias) = projection(
                tape,
                &inner,
                "gate_up",
                [2 * mlp_width, width],
                xavier,
                config.bias,
            )?;
            let parts = packed_parts(config, "gate_up");
            let module = inner.child("gate_up");
            let adapters = adapters(tape, &module, lora, y, (2 * mlp_width, &parts))?;
            let gate_up = ops::linear(tape, y, weight, bias)?;
            let gate_up = adapt(tape, gate_up, &adapters, None)?;
            (ops::swiglu(tape, gate_up)?, "down")
        }
        Some(activation) => {
            let (weight, bias) =
                projection(tape, &inner, "fc1", [mlp_width, width], xavier, config.bias)?;
            let adapters = adapters(tape, &inner.child("fc1"), lora, y, (mlp_width, &[]))?;
            // One product applies the activation on its way out; a sum of two needs an op for it.
            let hidden = if adapters.is_empty() {
                ops::linear_activation(tape, y, weight, bias, activation)?
            } else {
                let z = ops::linear(tape, y, weight, bias)?;
                let z = adapt(tape, z, &adapters, None)?;
                ops::activation(tape, z, activation)?
            };
            (hidden, "fc2")
        }
    };
    let init = residual_init(width, mlp_width, config.depth);
    let (weight, bias) = projection(tape, &inner, last, [width, mlp_width], init, config.bias)?;
    let adapters = adapters(tape, &inner.child(last), lora, y, (width, &[]))?;
    let branch = (y, weight, bias, &adapters[..]);
    add_branch(tape, scope, "layer_scale2", config, branch, (x, dropped))
}

/// residual + [scale ⊙] (y·Wᵀ + b), with what adapters add to the product, and that scaled image by image too where some are
/// `dropped`.
fn add_branch(
    tape: &mut Tape,
    scope: &Scope,
    scale: &str,
    config: &BlockConfig,
    (y, weight, bias, adapters): (Value, Value, Option<Value>, &[Adapter]),
    (residual, dropped): (Value, Option<Value>),
) -> Result<Value> {
    let gamma = match config.layer_scale {
        Some(first) => Some(scope.plain(tape, scale, [config.width], Init::Constant(first))?),
        None => None,
    };
    if let Some(dropped) = dropped {
        let branch = match gamma {
            None => ops::linear(tape, y, weight, bias)?,
            Some(gamma) => {
                let ty = tape.ty(residual);
                let zeros = tape.record_one(Fill { ty, value: 0.0 }, &[])?;
                ops::linear_layer_scale(tape, y, weight, bias, gamma, zeros)?
            }
        };
        let branch = adapt(tape, branch, adapters, gamma)?;
        return drop_path(tape, residual, branch, dropped);
    }
    let sum = match gamma {
        None => ops::linear_residual(tape, y, weight, bias, residual)?,
        Some(gamma) => ops::linear_layer_scale(tape, y, weight, bias, gamma, residual)?,
    };
    adapt(tape, sum, adapters, gamma)
}
