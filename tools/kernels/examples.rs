//! The ops that a training step spends its time in, at the shapes of real steps: what the benchmarks time and what the
//! rooflines are computed for.
//!
//! Sizes: `Tiny` take no time anywhere; `Small` are the lead steps of this repository (B 128, T 64, C 192); `Large` are ViT-L/14 at 224 pixels with
//! B 256 (T 257, so N = 65,792 rows of C 1024), its attention over 1024 tokens, its contrastive loss over 32,768 pairs, and a 1.5 B language model (N 8192
//! rows of C 1536, V 151,936).

use std::sync::Arc;

use keel_base::error::Result;
use keel_engine::ops::{
    self, Activation, Contrastive, ContrastiveMask, Heads, Mask, ParameterGroups, Positions,
    UpdateOptions,
};
use keel_engine::tape::{Init, ParameterLayout, ParameterSpec, Tape, Value};
use keel_engine::tensor::{DType, Shape, TensorType};

type Record = Box<dyn Fn(&mut Tape, &[Value]) -> Result<Value>>;

/// How large the examples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As small as shows that they run.
    Tiny,
    /// As in the steps that train on a processor.
    Small,
    /// As in the steps that a GPU is bought for.
    Large,
}

impl Size {
    /// All of them.
    pub const ALL: [Size; 3] = [Size::Tiny, Size::Small, Size::Large];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Size::Tiny => "tiny",
            Size::Small => "small",
            Size::Large => "large",
        }
    }
}

/// One op at one shape.
pub struct Example {
    /// The op, as its record function is called.
    pub op: &'static str,
    /// The shape, for people.
    pub shape: String,
    /// Whether its work is matrix products, for which the tensor cores' speed is the bound.
    pub is_product: bool,
    inputs: Vec<TensorType>,
    record: Record,
}

/// The parts of an example that a program is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The op alone.
    Forward,
    /// The op and its backward under a made-up cotangent.
    Both,
}

impl Example {
    /// Records the example. Float matrices are of type `precision`, vectors and images stay f32: the rule of every
    /// program.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Shape`] when the op has no form in that precision.
    pub fn record(&self, precision: DType, direction: Direction) -> Result<Tape> {
        let mut tape =
            Tape::new(Arc::new(ParameterLayout::default()), |_| false).in_precision(precision);
        let mut inputs = Vec::new();
        for (index, ty) in self.inputs.iter().enumerate() {
            let name = format!("x{index}");
            let ty = if ty.dtype.is_float() && (2..4).contains(&ty.shape.rank()) {
                TensorType::new(precision, ty.shape)
            } else {
                *ty
            };
            inputs.push(if direction == Direction::Both && ty.dtype.is_float() {
                tape.input_with_gradient(name, ty)
            } else {
                tape.input(name, ty)
            });
        }
        let output = (self.record)(&mut tape, &inputs)?;
        tape.output(output, "y");
        if direction == Direction::Both {
            let ty = tape.ty(output);
            let cotangent = tape.input("dy", ty);
            tape.backward_from(&[(output, cotangent)])?;
        }
        Ok(tape)
    }
}

/// The update of `rows` × `columns` parameters in one matrix: gradient norm and AdamW, behind a product of one row that
/// makes the gradient. Returns the layout that its executor needs as well.
///
/// # Errors
/// Whatever recording reports.
pub fn record_update(
    precision: DType,
    rows: usize,
    columns: usize,
) -> Result<(Tape, Arc<ParameterLayout>)> {
    let spec = ParameterSpec {
        name: "example.weight".to_owned(),
        shape: Shape::new(&[rows, columns]),
        init: Init::Normal(0.02),
        decays: true,
    };
    let layout = Arc::new(ParameterLayout::new(std::slice::from_ref(&spec)));
    let mut tape = Tape::new(Arc::clone(&layout), |_| true).in_precision(precision);
    let x = tape.input("x", TensorType::new(precision, [1, columns]));
    let weight = tape.parameter(spec)?;
    let y = ops::linear(&mut tape, x, weight, None)?;
    let ty = tape.ty(y);
    let cotangent = tape.input("dy", ty);
    tape.backward_from(&[(y, cotangent)])?;
    let groups = ParameterGroups::decaying(0.0);
    ops::record_update(&mut tape, &layout, &groups, &UpdateOptions::default())?;
    Ok((tape, layout))
}

/// Numbers that the updated matrix of [`record_update`] has: those of a tower, or few.
pub const fn update_shape(size: Size) -> (usize, usize) {
    match size {
        Size::Tiny => (24, 40),
        Size::Small => (4608, 1024),
        // 304 million, as ViT-L/14.
        Size::Large => (297_984, 1024),
    }
}

/// The sizes of a set of examples.
struct Sizes {
    /// Tower: images, tokens, width, heads (of D 64), feed-forward width.
    tower: [usize; 5],
    /// Images and tokens of the tower's attention at a higher resolution, where it is looked at.
    long: Option<[usize; 2]>,
    /// Images: pixels a side, patch.
    image: [usize; 2],
    /// Language model: batch, tokens, width, feed-forward width, vocabulary.
    language: [usize; 5],
    /// Its heads.
    heads: Heads,
    /// Contrastive loss: pairs, width.
    pairs: [usize; 2],
}

const TINY: Sizes = Sizes {
    tower: [2, 5, 64, 1, 96],
    long: None,
    image: [16, 8],
    language: [2, 6, 48, 40, 40],
    heads: Heads {
        query: 2,
        key_value: 1,
        dim: 32,
    },
    pairs: [9, 32],
};

const SMALL: Sizes = Sizes {
    tower: [128, 64, 192, 3, 768],
    long: None,
    image: [64, 8],
    language: [64, 64, 256, 768, 512],
    heads: Heads {
        query: 4,
        key_value: 2,
        dim: 64,
    },
    pairs: [128, 128],
};

const LARGE: Sizes = Sizes {
    tower: [256, 257, 1024, 16, 4096],
    long: Some([64, 1024]),
    image: [224, 14],
    language: [4, 2048, 1536, 8960, 151_936],
    heads: Heads {
        query: 12,
        key_value: 2,
        dim: 128,
    },
    pairs: [32_768, 768],
};

impl Size {
    fn sizes(self) -> Sizes {
        match self {
            Size::Tiny => TINY,
            Size::Small => SMALL,
            Size::Large => LARGE,
        }
    }

    /// Token ids and targets lie below this.
    pub fn vocabulary(self) -> usize {
        self.sizes().language[4]
    }
}

/// Every example of a size.
pub fn examples(size: Size) -> Vec<Example> {
    let sizes = size.sizes();
    let mut all = tower_blocks(&sizes);
    all.extend(tower_ends(&sizes));
    all.extend(contrastive(&sizes));
    all.extend(language(&sizes));
    all
}

fn f32s<const R: usize>(shape: [usize; R]) -> TensorType {
    TensorType::f32(shape)
}

fn example(
    op: &'static str,
    shape: String,
    is_product: bool,
    inputs: Vec<TensorType>,
    record: impl Fn(&mut Tape, &[Value]) -> Result<Value> + 'static,
) -> Example {
    Example {
        op,
        shape,
        is_product,
        inputs,
        record: Box::new(record),
    }
}

/// The ops of a vision tower's blocks.
fn tower_blocks(sizes: &Sizes) -> Vec<Example> {
    let [images, tokens, width, heads, mlp] = sizes.tower;
    let rows = images * tokens;
    let heads = Heads {
        query: heads,
        key_value: heads,
        dim: 64,
    };
    let product = |n: usize, k: usize, m: usize| format!("[{n},{k}]x[{m},{k}]");
    let attention = |images: usize, tokens: usize| {
        example(
            "attention",
            format!("full B{images} T{tokens} H{} D64", heads.query),
            true,
            vec![f32s([images, tokens, heads.packed_width()])],
            move |t, v| ops::attention(t, v[0], heads, Mask::Full, None),
        )
    };
    let mut blocks = vec![
        example(
            "linear",
            product(rows, width, 3 * width),
            true,
            vec![
                f32s([rows, width]),
                f32s([3 * width, width]),
                f32s([3 * width]),
            ],
            |t, v| ops::linear(t, v[0], v[1], Some(v[2])),
        ),
        example(
            "linear_gelu",
            product(rows, width, mlp),
            true,
            vec![f32s([rows, width]), f32s([mlp, width]), f32s([mlp])],
            |t, v| ops::linear_activation(t, v[0], v[1], Some(v[2]), Activation::GeluErf),
        ),
        example(
            "linear_residual",
            product(rows, mlp, width),
            true,
            vec![
                f32s([rows, mlp]),
                f32s([width, mlp]),
                f32s([width]),
                f32s([rows, width]),
            ],
            |t, v| ops::linear_residual(t, v[0], v[1], Some(v[2]), v[3]),
        ),
        attention(images, tokens),
        example(
            "layer_norm",
            format!("[{rows},{width}]"),
            false,
            vec![f32s([rows, width]), f32s([width]), f32s([width])],
            |t, v| ops::layer_norm(t, v[0], v[1], v[2], 1e-6),
        ),
    ];
    blocks.extend(sizes.long.map(|[images, tokens]| attention(images, tokens)));
    blocks
}

/// The ops before and behind a vision tower's blocks.
fn tower_ends(sizes: &Sizes) -> Vec<Example> {
    let [images, tokens, width, ..] = sizes.tower;
    let [side, patch] = sizes.image;
    let patches = (side / patch).pow(2);
    let patch_width = 3 * patch * patch;
    let square = patches.isqrt();
    vec![
        example(
            "patch_embed",
            format!("B{images} {side}x{side} patch {patch} C{width}"),
            true,
            vec![
                f32s([images, 3, side, side]),
                f32s([width, patch_width]),
                f32s([width]),
                f32s([patches, width]),
            ],
            move |t, v| ops::patch_embed(t, v[0], v[1], Some(v[2]), Some(v[3]), patch),
        ),
        example(
            "pixel_unshuffle",
            format!("[{images},{patches},{width}]"),
            false,
            vec![f32s([images, patches, width])],
            move |t, v| ops::pixel_unshuffle(t, v[0], square, square, 2),
        ),
        example(
            "mean_pool",
            format!("[{images},{tokens},{width}]"),
            false,
            vec![f32s([images, tokens, width])],
            |t, v| ops::mean_pool(t, v[0], None),
        ),
    ]
}

/// The ops that compare images and texts.
fn contrastive(sizes: &Sizes) -> Vec<Example> {
    let [pairs, shared] = sizes.pairs;
    vec![
        example(
            "l2_normalize",
            format!("[{pairs},{shared}]"),
            false,
            vec![f32s([pairs, shared])],
            |t, v| ops::l2_normalize(t, v[0], 1e-12),
        ),
        example(
            "contrastive_loss",
            format!("N{pairs} E{shared}"),
            true,
            vec![f32s([pairs, shared]), f32s([pairs, shared]), f32s([1])],
            |t, v| {
                let features = [v[0], v[1], v[2]];
                let mask = ContrastiveMask::default();
                ops::contrastive_loss(t, features, None, mask, Contrastive::InfoNce)
            },
        ),
    ]
}

/// The ops of a language model.
fn language(sizes: &Sizes) -> Vec<Example> {
    let [batch, tokens, width, mlp, vocabulary] = sizes.language;
    let heads = sizes.heads;
    let rows = batch * tokens;
    let layout = format!(
        "B{batch} T{tokens} H{}/{} D{}",
        heads.query, heads.key_value, heads.dim
    );
    vec![
        example(
            "linear",
            format!("[{rows},{width}]x[{},{width}]", 2 * mlp),
            true,
            vec![f32s([rows, width]), f32s([2 * mlp, width])],
            |t, v| ops::linear(t, v[0], v[1], None),
        ),
        example(
            "attention",
            format!("causal {layout}"),
            true,
            vec![f32s([batch, tokens, heads.packed_width()])],
            move |t, v| ops::attention(t, v[0], heads, Mask::Causal, None),
        ),
        example(
            "rms_norm",
            format!("[{rows},{width}]"),
            false,
            vec![f32s([rows, width]), f32s([width])],
            |t, v| ops::rms_norm(t, v[0], v[1], 1e-6),
        ),
        example(
            "swiglu",
            format!("[{rows},{}]", 2 * mlp),
            false,
            vec![f32s([rows, 2 * mlp])],
            |t, v| ops::swiglu(t, v[0]),
        ),
        example(
            "rope",
            layout,
            false,
            vec![f32s([batch, tokens, heads.packed_width()])],
            move |t, v| ops::rope(t, v[0], heads, 1e6, Positions::Sequential),
        ),
        example(
            "embedding",
            format!("V{vocabulary} D{width} B{batch} T{tokens}"),
            false,
            vec![f32s([vocabulary, width]), TensorType::i32([batch, tokens])],
            |t, v| ops::embedding(t, v[0], v[1]),
        ),
        example(
            "linear_cross_entropy",
            format!("[{rows},{width}] V{vocabulary}"),
            true,
            vec![
                f32s([rows, width]),
                f32s([vocabulary, width]),
                TensorType::i32([rows]),
                f32s([rows]),
            ],
            |t, v| ops::linear_cross_entropy(t, v[0], v[1], v[2], v[3]),
        ),
    ]
}
