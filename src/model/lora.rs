//! Low-rank adapters (LoRA) of the linear modules in a tower's blocks: y = W x + b + (α / r) B A x, with W and b as they were and
//! A and B trained in their place (Hu et al. 2021, eq. 3).
//!
//! They are recorded with ops that are there: two narrow products, the second of which adds to the module's own result. Where
//! several projections are packed into one product, an adapter of one of them adds to its columns alone.

use serde::{Deserialize, Serialize};

use super::block::BlockConfig;
use super::{ModelConfig, ParameterPattern, Scope};
use keel_base::error::{Error, Result};
use keel_engine::ops;
use keel_engine::tape::{Fill, Init, ParameterLayout, Tape, Value};
use keel_engine::tensor::{Shape, TensorType};

/// The module of all adapters: that of `language.blocks.0.attention.out` is `lora.language.blocks.0.attention.out`.
pub const LORA: &str = "lora";

/// The parts of a block's product, one below the other, where it is packed: what each is called below the product's name, and its
/// rows. Nothing where it is not packed.
pub fn packed_parts(config: &BlockConfig, product: &str) -> Vec<(&'static str, usize)> {
    let heads = config.heads;
    let key_value = heads.key_value * heads.dim;
    match product {
        "qkv" => vec![
            ("query", heads.query * heads.dim),
            ("key", key_value),
            ("value", key_value),
        ],
        "gate_up" => vec![("gate", config.mlp_width), ("up", config.mlp_width)],
        _ => Vec::new(),
    }
}

/// Low-rank adapters (LoRA) of a tower: y = W x + b + (α / r) B A x for each linear module of its blocks that `targets` takes. A
/// stage trains them where `lora` is among its `trains`; W and b learn where the tower is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r: rows of A and columns of B.
    ///
    /// - Range: 1 to 2²⁰
    /// - Source: 1 to 64 (Hu et al. 2021, §7.2); 8 is PEFT's default
    pub rank: usize,
    /// α: what the adapters add is scaled by α / r.
    ///
    /// - Range: above 0
    /// - Source: method of Hu et al. 2021, §4.1; 8 is PEFT's default
    pub alpha: f32,
    /// The linear modules that have one, by [pattern](controls.md#patterns): `["language.blocks"]` takes all of the blocks',
    /// `["language.blocks.*.attention.qkv.query", "language.blocks.*.attention.qkv.value"]` queries and values.
    ///
    /// - Range: each takes linear modules of the tower's blocks: `attention.qkv`, `attention.out`, `mlp.gate_up` and `mlp.down`, or
    ///   `mlp.fc1` and `mlp.fc2`
    pub targets: Vec<String>,
    /// Packed products with one adapter in place of one for each of their parts, by [pattern](controls.md#patterns):
    /// `["vision.blocks.*.attention.qkv"]`. PEFT gives queries, keys and values an adapter each where they are modules of their own,
    /// as in decoders, and one where they are published packed.
    ///
    /// - Range: each takes products of the blocks that are packed: `attention.qkv` or `mlp.gate_up`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fused: Vec<String>,
}

/// Larger ranks are typing errors.
const MOST_RANK: usize = 1 << 20;

impl LoraConfig {
    /// α / r.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Whether the linear module of that name, `language.blocks.0.attention.qkv.query`, has an adapter.
    pub fn takes(&self, module: &str) -> bool {
        let mut targets = self.targets.iter();
        targets.any(|target| ParameterPattern::new(target).takes(module))
    }

    /// Whether the packed product of that name, `language.blocks.0.attention.qkv`, has one adapter in place of one for each part.
    pub fn is_fused(&self, product: &str) -> bool {
        let mut fused = self.fused.iter();
        fused.any(|pattern| ParameterPattern::new(pattern).takes(product))
    }

    /// Refuses numbers that cannot be. `tower` is the table of settings, `vision` or `language`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self, tower: &str) -> Result<()> {
        if !(1..=MOST_RANK).contains(&self.rank) {
            let want = format!("1 to {MOST_RANK}");
            return Err(Error::setting(
                format!("{tower}.lora.rank"),
                want,
                self.rank,
            ));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::setting(
                format!("{tower}.lora.alpha"),
                "above 0",
                self.alpha,
            ));
        }
        if self.targets.is_empty() {
            let want = format!("linear modules of the tower, such as \"{tower}.blocks\"");
            return Err(Error::setting(
                format!("{tower}.lora.targets"),
                want,
                "none",
            ));
        }
        Ok(())
    }
}

/// One adapter of a linear module, recorded as far as A x.
pub(super) struct Adapter {
    /// The first column of the module's result that it adds to.
    first: usize,
    /// (α / r) A x, [.., r].
    narrow: Value,
    /// B [rows, r].
    up: Value,
}

/// Records the adapters of the module `scope`, whose input is `x` and whose result has `rows` columns, those of its `parts` one after
/// the other where it is packed.
///
/// # Errors
/// When the layout holds other shapes.
pub(super) fn adapters(
    tape: &mut Tape,
    scope: &Scope,
    config: Option<&LoraConfig>,
    x: Value,
    (rows, parts): (usize, &[(&'static str, usize)]),
) -> Result<Vec<Adapter>> {
    let Some(config) = config else {
        return Ok(Vec::new());
    };
    let mut modules = Vec::new();
    if !parts.is_empty() && !config.is_fused(scope.path()) {
        let mut first = 0;
        for (part, rows) in parts {
            modules.push((scope.child(part), first, *rows));
            first += rows;
        }
    } else {
        modules.push((scope.clone(), 0, rows));
    }
    modules.retain(|(module, ..)| config.takes(module.path()));
    let record = |(module, first, rows): (Scope, usize, usize)| {
        let scope = Scope::module(LORA).child(module.path());
        let columns = tape.shape(x).columns();
        // The variance of PEFT's first values, which are uniform in ±1/√columns; zeros in B, so that nothing is added at first.
        let init = Init::Normal((1.0 / (3.0 * columns as f32)).sqrt());
        let down = scope.matrix(tape, "a", [config.rank, columns], init)?;
        let up = scope.matrix(tape, "b", [rows, config.rank], Init::Constant(0.0))?;
        let narrow = scaled_product(tape, x, down, config.scale())?;
        Ok(Adapter { first, narrow, up })
    };
    modules.into_iter().map(record).collect()
}

/// scale · x Aᵀ.
fn scaled_product(tape: &mut Tape, x: Value, weight: Value, scale: f32) -> Result<Value> {
    if scale == 1.0 {
        return ops::linear(tape, x, weight, None);
    }
    let rank = tape.shape(weight).dims()[0];
    let scales = TensorType::f32([rank]);
    let scales = tape.record_one(
        Fill {
            ty: scales,
            value: scale,
        },
        &[],
    )?;
    let x_type = tape.ty(x);
    let dims = x_type.shape.dims();
    let shape: Vec<usize> = [&dims[..dims.len() - 1], &[rank]].concat();
    let ty = TensorType::new(x_type.dtype, Shape::new(&shape));
    let zeros = tape.record_one(Fill { ty, value: 0.0 }, &[])?;
    ops::linear_layer_scale(tape, x, weight, None, scales, zeros)
}

/// y with what the adapters add to it, scaled by `gamma` channel by channel where it is given.
///
/// # Errors
/// Whatever recording reports.
pub(super) fn adapt(
    tape: &mut Tape,
    y: Value,
    adapters: &[Adapter],
    gamma: Option<Value>,
) -> Result<Value> {
    let mut y = y;
    for Adapter { first, narrow, up } in adapters {
        let is_whole = tape.shape(*up).dims()[0] == tape.shape(y).columns();
        y = match gamma {
            Some(gamma) => ops::linear_layer_scale(tape, *narrow, *up, None, gamma, y)?,
            None if is_whole => ops::linear_residual(tape, *narrow, *up, None, y)?,
            None => {
                let part = ops::linear(tape, *narrow, *up, None)?;
                ops::add_columns(tape, y, part, *first)?
            }
        };
    }
    Ok(y)
}

/// Adds what the adapters of both towers add to the results of their modules to the modules' weights: W ← W + (α / r) B A, summed in
/// f64 and rounded once. `values` are those of all parameters, in the layout's arena.
pub fn merge_adapters(config: &ModelConfig, layout: &ParameterLayout, values: &mut [f32]) {
    let towers = [
        (config.vision.block(), "vision"),
        (config.language.block(), "language"),
    ];
    for (block, tower) in towers {
        let Some(lora) = &block.lora else { continue };
        for entry in layout.entries() {
            let module = entry.spec.name.strip_prefix(LORA);
            let module = module.and_then(|name| name.strip_prefix('.')?.strip_suffix(".a"));
            let Some(module) = module.filter(|module| module.split('.').next() == Some(tower))
            else {
                continue;
            };
            let (weight, first) = place_of(&block, layout, module);
            let [weight, up] = [weight, format!("{LORA}.{module}.b")]
                .map(|name| layout.get(&name).expect("an adapter's module is laid out"));
            let (columns, rows) = (entry.spec.shape.columns(), up.spec.shape.rows());
            let down = values[entry.offset..][..lora.rank * columns].to_vec();
            let up = values[up.offset..][..rows * lora.rank].to_vec();
            let weight = &mut values[weight.offset + first * columns..][..rows * columns];
            for (weight, up) in weight.chunks_mut(columns).zip(up.chunks(lora.rank)) {
                for (column, weight) in weight.iter_mut().enumerate() {
                    let terms = up.iter().zip(down[column..].iter().step_by(columns));
                    let sum: f64 = terms.map(|(b, a)| f64::from(*b) * f64::from(*a)).sum();
                    *weight = (f64::from(*weight) + f64::from(lora.scale()) * sum) as f32;
                }
            }
        }
    }
}

/// The weight that a module's adapter belongs to, and its first row there.
fn place_of(block: &BlockConfig, layout: &ParameterLayout, module: &str) -> (String, usize) {
    let whole = format!("{module}.weight");
    if layout.get(&whole).is_some() {
        return (whole, 0);
    }
    let (product, part) = module.rsplit_once('.').expect("a part of a product");
    let name = product.rsplit('.').next().unwrap_or(product);
    let parts = packed_parts(block, name);
    let before = parts.iter().take_while(|(name, _)| *name != part);
    let first = before.map(|(_, rows)| rows).sum();
    (format!("{product}.weight"), first)
}
