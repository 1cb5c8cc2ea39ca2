//! The names that each family gives to tensors, in the order of Keel's parameters.
//!
//! A row: Keel's name without module and `.weight`/`.bias`, then the ways that files name it. Several names of one way are
//! stacked by rows. `{l}` is the layer.

use keel_engine::ops::Heads;

/// Keel's name and the ways that files name it.
pub(super) type Names = (&'static str, &'static [&'static [&'static str]]);

/// AIMv2 and SAILViT: their own names, then those of transformers.
pub(super) const AIMV2: &[Names] = &[
    (
        "patch_embed",
        &[
            &["preprocessor.patchifier.proj"],
            &["embeddings.patch_embed"],
        ],
    ),
    (
        "position",
        &[
            &["preprocessor.pos_embed"],
            &["embeddings.position_embedding.weight"],
        ],
    ),
    (
        "patch_norm",
        &[&["preprocessor.patchifier.norm"], &["embeddings.rms_norm"]],
    ),
    (
        "blocks.{l}.norm1",
        &[
            &["trunk.blocks.{l}.norm_1"],
            &["encoder.layers.{l}.rms_norm1"],
        ],
    ),
    (
        "blocks.{l}.attention.qkv",
        &[
            &["trunk.blocks.{l}.attn.qkv"],
            &[
                "encoder.layers.{l}.attention.q_proj",
                "encoder.layers.{l}.attention.k_proj",
                "encoder.layers.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["trunk.blocks.{l}.attn.proj"],
            &["encoder.layers.{l}.attention.out_proj"],
        ],
    ),
    (
        "blocks.{l}.norm2",
        &[
            &["trunk.blocks.{l}.norm_2"],
            &["encoder.layers.{l}.rms_norm2"],
        ],
    ),
    (
        "blocks.{l}.mlp.gate_up",
        &[
            &["trunk.blocks.{l}.mlp.fc1", "trunk.blocks.{l}.mlp.fc3"],
            &[
                "encoder.layers.{l}.ffn.gate_proj",
                "encoder.layers.{l}.ffn.up_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.mlp.down",
        &[
            &["trunk.blocks.{l}.mlp.fc2"],
            &["encoder.layers.{l}.ffn.down_proj"],
        ],
    ),
    ("final_norm", &[&["trunk.post_trunk_norm"], &["rms_norm"]]),
];

/// CLIP, SigLIP and SigLIP 2.
pub(super) const CLIP: &[Names] = &[
    ("patch_embed", &[&["embeddings.patch_embedding"]]),
    ("position", &[&["embeddings.position_embedding.weight"]]),
    ("class_token", &[&["embeddings.class_embedding"]]),
    ("pre_norm", &[&["pre_layrnorm"]]),
    ("blocks.{l}.norm1", &[&["encoder.layers.{l}.layer_norm1"]]),
    (
        "blocks.{l}.attention.qkv",
        &[&[
            "encoder.layers.{l}.self_attn.q_proj",
            "encoder.layers.{l}.self_attn.k_proj",
            "encoder.layers.{l}.self_attn.v_proj",
        ]],
    ),
    (
        "blocks.{l}.attention.out",
        &[&["encoder.layers.{l}.self_attn.out_proj"]],
    ),
    ("blocks.{l}.norm2", &[&["encoder.layers.{l}.layer_norm2"]]),
    ("blocks.{l}.mlp.fc1", &[&["encoder.layers.{l}.mlp.fc1"]]),
    ("blocks.{l}.mlp.fc2", &[&["encoder.layers.{l}.mlp.fc2"]]),
    ("final_norm", &[&["post_layernorm"]]),
];

/// The learned query that pools AIMv2's tokens.
pub(super) const AIMV2_HEAD: &[Names] = &[
    ("probe", &[&["head.cls_token"]]),
    ("key_value", &[&["head.k_proj", "head.v_proj"]]),
    ("out", &[&["head.output_proj"]]),
];

/// The attention that pools SigLIP's tokens. Query, keys and values are stacked in one tensor.
pub(super) const SIGLIP_HEAD: &[Names] = &[
    ("probe", &[&["head.probe"]]),
    ("query", &[&["head.attention.in_proj"]]),
    ("key_value", &[&["head.attention.in_proj"]]),
    ("out", &[&["head.attention.out_proj"]]),
    ("norm2", &[&["head.layernorm"]]),
    ("mlp.fc1", &[&["head.mlp.fc1"]]),
    ("mlp.fc2", &[&["head.mlp.fc2"]]),
];

/// InternViT: its own names, then those of transformers.
pub(super) const INTERNVIT: &[Names] = &[
    (
        "patch_embed",
        &[
            &["embeddings.patch_embedding"],
            &["embeddings.patch_embeddings.projection"],
        ],
    ),
    (
        "position",
        &[
            &["embeddings.position_embedding"],
            &["embeddings.position_embeddings"],
        ],
    ),
    (
        "class_token",
        &[&["embeddings.class_embedding"], &["embeddings.cls_token"]],
    ),
    (
        "blocks.{l}.norm1",
        &[
            &["encoder.layers.{l}.norm1"],
            &["encoder.layer.{l}.layernorm_before"],
        ],
    ),
    (
        "blocks.{l}.attention.qkv",
        &[
            &["encoder.layers.{l}.attn.qkv"],
            &[
                "encoder.layer.{l}.attention.q_proj",
                "encoder.layer.{l}.attention.k_proj",
                "encoder.layer.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["encoder.layers.{l}.attn.proj"],
            &["encoder.layer.{l}.attention.projection_layer"],
        ],
    ),
    (
        "blocks.{l}.layer_scale1",
        &[&["encoder.layers.{l}.ls1"], &["encoder.layer.{l}.lambda_1"]],
    ),
    (
        "blocks.{l}.norm2",
        &[
            &["encoder.layers.{l}.norm2"],
            &["encoder.layer.{l}.layernorm_after"],
        ],
    ),
    (
        "blocks.{l}.mlp.fc1",
        &[
            &["encoder.layers.{l}.mlp.fc1"],
            &["encoder.layer.{l}.mlp.fc1"],
        ],
    ),
    (
        "blocks.{l}.mlp.fc2",
        &[
            &["encoder.layers.{l}.mlp.fc2"],
            &["encoder.layer.{l}.mlp.fc2"],
        ],
    ),
    (
        "blocks.{l}.layer_scale2",
        &[&["encoder.layers.{l}.ls2"], &["encoder.layer.{l}.lambda_2"]],
    ),
    ("final_norm", &[&["layernorm"]]),
];

/// DINOv2: the names of published files, then those that transformers gives its modules since version 5.
pub(super) const DINOV2: &[Names] = &[
    (
        "patch_embed",
        &[&["embeddings.patch_embeddings.projection"]],
    ),
    ("position", &[&["embeddings.position_embeddings"]]),
    ("class_token", &[&["embeddings.cls_token"]]),
    ("blocks.{l}.norm1", &[&["encoder.layer.{l}.norm1"]]),
    (
        "blocks.{l}.attention.qkv",
        &[
            &[
                "encoder.layer.{l}.attention.attention.query",
                "encoder.layer.{l}.attention.attention.key",
                "encoder.layer.{l}.attention.attention.value",
            ],
            &[
                "encoder.layer.{l}.attention.q_proj",
                "encoder.layer.{l}.attention.k_proj",
                "encoder.layer.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["encoder.layer.{l}.attention.output.dense"],
            &["encoder.layer.{l}.attention.o_proj"],
        ],
    ),
    (
        "blocks.{l}.layer_scale1",
        &[&["encoder.layer.{l}.layer_scale1.lambda1"]],
    ),
    ("blocks.{l}.norm2", &[&["encoder.layer.{l}.norm2"]]),
    ("blocks.{l}.mlp.fc1", &[&["encoder.layer.{l}.mlp.fc1"]]),
    ("blocks.{l}.mlp.fc2", &[&["encoder.layer.{l}.mlp.fc2"]]),
    (
        "blocks.{l}.mlp.gate_up",
        &[
            &["encoder.layer.{l}.mlp.weights_in"],
            &[
                "encoder.layer.{l}.mlp.gate_proj",
                "encoder.layer.{l}.mlp.up_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.mlp.down",
        &[
            &["encoder.layer.{l}.mlp.weights_out"],
            &["encoder.layer.{l}.mlp.down_proj"],
        ],
    ),
    (
        "blocks.{l}.layer_scale2",
        &[&["encoder.layer.{l}.layer_scale2.lambda1"]],
    ),
    ("final_norm", &[&["layernorm"]]),
];

/// Qwen2, Qwen2.5 and Qwen3.
pub(super) const QWEN: &[Names] = &[
    ("embedding", &[&["embed_tokens.weight"]]),
    ("blocks.{l}.norm1", &[&["layers.{l}.input_layernorm"]]),
    (
        "blocks.{l}.attention.qkv",
        &[&[
            "layers.{l}.self_attn.q_proj",
            "layers.{l}.self_attn.k_proj",
            "layers.{l}.self_attn.v_proj",
        ]],
    ),
    (
        "blocks.{l}.attention.q_norm",
        &[&["layers.{l}.self_attn.q_norm"]],
    ),
    (
        "blocks.{l}.attention.k_norm",
        &[&["layers.{l}.self_attn.k_norm"]],
    ),
    (
        "blocks.{l}.attention.out",
        &[&["layers.{l}.self_attn.o_proj"]],
    ),
    (
        "blocks.{l}.norm2",
        &[&["layers.{l}.post_attention_layernorm"]],
    ),
    (
        "blocks.{l}.mlp.gate_up",
        &[&["layers.{l}.mlp.gate_proj", "layers.{l}.mlp.up_proj"]],
    ),
    ("blocks.{l}.mlp.down", &[&["layers.{l}.mlp.down_proj"]]),
    ("final_norm", &[&["norm"]]),
];

/// The connector of InternVL and SAIL-VL.
pub(super) const MLP1: &[Names] = &[("norm", &[&["0"]]), ("fc1", &[&["1"]]), ("fc2", &[&["3"]])];

/// Rows of each of `count` tensors that are stacked to one of `dims`.
pub(super) fn rows_of(count: usize, dims: &[usize], heads: Heads) -> Vec<usize> {
    match count {
        1 => vec![dims[0]],
        3 => [heads.query, heads.key_value, heads.key_value]
            .iter()
            .map(|heads_of| heads_of * heads.dim)
            .collect(),
        count => vec![dims[0] / count; count],
    }
}

/// `vision.blocks.3.norm1.weight` → (`blocks.{l}.norm1`, `3`, `.weight`). The ending is empty where a row names the
/// tensor in full.
pub(super) fn row(parameter: &str) -> (String, String, &'static str) {
    let path = parameter
        .split_once('.')
        .map_or(parameter, |(_, path)| path);
    let (path, layer) = match path.strip_prefix("blocks.").and_then(|p| p.split_once('.')) {
        Some((layer, rest)) => (format!("blocks.{{l}}.{rest}"), layer.to_owned()),
        None => (path.to_owned(), String::new()),
    };
    for ending in [".weight", ".bias"] {
        if let Some(stem) = path.strip_suffix(ending) {
            return (stem.to_owned(), layer, ending);
        }
    }
    (path, layer, "")
}
