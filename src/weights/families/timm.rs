//! The ViTs of timm (Wightman 2019), in folders of its own: plain ViT and DeiT, CLIP, DINOv2, DINOv3 and SigLIP.
//!
//! Such a `config.json` says the architecture by its name, from which the sizes follow, and further settings in `model_args`; what
//! prepares its images is in `pretrained_cfg`, which `processor.rs` reads.

use serde_json::{Map, Value as Json, json};

use super::family::{CLASSIC, ImageProcessor, Pooling, VisionForm};
use super::idle::Idle;
use super::key::Key;
use super::names::Names;
use crate::hf_config::Settings;
use crate::pos_embed_interp::Scaling;
use keel_base::error::Result;
use keel_model::{LearnedPositions, MlpKind, VisionConfig, VisionHead};

/// What the two forms are called here; files have no `model_type`.
const WITH_CLASS_TOKEN: &str = "timm";
const SIGLIP: &str = "timm (SigLIP)";

/// The form that a folder of timm's has; nothing for any other.
pub(super) fn kind_of(config: &Map<String, Json>) -> Option<&'static str> {
    let name = config.get("architecture")?.as_str()?;
    config.get("pretrained_cfg")?.as_object()?;
    Some(if name.contains("_siglip_") {
        SIGLIP
    } else {
        WITH_CLASS_TOKEN
    })
}

pub(super) const FORMS: &[VisionForm] = &[
    VisionForm {
        title: "ViT vision tower (timm)",
        model_types: &[WITH_CLASS_TOKEN],
        form: VisionConfig {
            class_token: true,
            ..CLASSIC
        },
        pooling: Some(Pooling::CLASS_TOKEN),
        ..TIMM
    },
    VisionForm {
        title: "SigLIP vision tower (timm)",
        model_types: &[SIGLIP],
        pooling: Some(Pooling {
            head: VisionHead::Probe,
            names: HEAD,
        }),
        ..TIMM
    },
];

const TIMM: VisionForm = VisionForm {
    title: "",
    model_types: &[],
    pair_type: None,
    form: CLASSIC,
    keys: &[KEYS],
    layouts: &[],
    names: NAMES,
    probes: &["patch_embed.proj.weight"],
    ignored: &[
        ("head.", "classifier"),
        ("head_dist.", "classifier"),
        ("fc_norm.", "norm of the mean token, for a classifier"),
        ("attn_pool.", "attention pooling head"),
    ],
    patches_by_pixel: false,
    size_key: "architecture",
    tell_size: Some(tell_size),
    scaling: Scaling::FilteredBicubic,
    takes_any_size: false,
    pooling: None,
    processor: &ImageProcessor {
        class: "ViTImageProcessor",
        marker: "ViT",
        by_shorter_edge: false,
        cuts_of_both: false,
    },
};

const KEYS: &[Key<VisionConfig>] = &[
    Key::Own {
        name: "architecture",
        read: read_architecture,
        // There is no layout that is written: transformers' are.
        write: |_| Json::Null,
    },
    Key::Idle(Idle::any("num_classes")),
    Key::Idle(Idle::any("num_features")),
    Key::Idle(Idle::any("pretrained_cfg")),
    Key::Idle(Idle::any("label_names")),
    Key::Idle(Idle::any("label_descriptions")),
    // What transformers adds when it saves a model of timm's.
    Key::Idle(Idle::any("do_pooling")),
];

/// Another image size is told where timm looks for it.
fn tell_size(side: usize, config: &mut Map<String, Json>) {
    let arguments = config.entry("model_args").or_insert_with(|| json!({}));
    if let Some(arguments) = arguments.as_object_mut() {
        arguments.insert("img_size".into(), json!(side));
    }
    let pretrained = config.get_mut("pretrained_cfg");
    if let Some(pretrained) = pretrained.and_then(Json::as_object_mut) {
        pretrained.insert("input_size".into(), json!([3, side, side]));
    }
}

/// The sizes that names say: width, depth, heads, and the feed-forward width for each of the width.
const SIZES: &[(&str, usize, usize, usize, f64)] = &[
    ("tiny", 192, 12, 3, 4.0),
    ("small", 384, 12, 6, 4.0),
    ("medium", 512, 12, 8, 4.0),
    ("base", 768, 12, 12, 4.0),
    ("large", 1024, 24, 16, 4.0),
    ("so400m", 1152, 27, 16, 3.7362),
    ("huge", 1280, 32, 16, 4.0),
    ("giant", 1408, 40, 16, 48.0 / 11.0),
    ("gigantic", 1664, 48, 16, 64.0 / 13.0),
    ("7b", 4096, 40, 32, 2.0),
];

/// The feed-forward width that a name says.
struct FeedForward {
    /// For each of the width.
    ratio: f64,
    /// Whether gate and value are counted together.
    counts_both: bool,
}

/// The form that an architecture's name says.
fn named(name: &str, config: &mut VisionConfig) -> Option<FeedForward> {
    let (line, rest) = name.split_once('_')?;
    let mut words = rest.split('_').collect::<Vec<_>>();
    // An image size stands last, but DINO's are always the same.
    config.image_size = match *words.last()? {
        "dinov2" => 518,
        "dinov3" => 256,
        other => {
            words.pop();
            other.parse().ok()?
        }
    };
    let size = SIZES
        .iter()
        .find(|(size, ..)| words.first() == Some(size))?;
    let mut feed_forward = FeedForward {
        ratio: size.4,
        counts_both: false,
    };
    (_, config.width, config.depth, config.heads, _) = *size;
    words.remove(0);
    let is_plus = words.first() == Some(&"plus");
    if is_plus {
        words.remove(0);
    }
    if line == "deit" && words.first() == Some(&"distilled") {
        words.remove(0);
        config.registers = 1;
        config.learned_positions = LearnedPositions::AllTokens;
    }
    config.patch_size = words.first()?.strip_prefix("patch")?.parse().ok()?;
    let is_gated = is_plus || size.0 == "7b";
    match (line, &words[1..]) {
        ("vit", ["dinov3"]) => {
            config.registers = 4;
            config.learned_positions = LearnedPositions::None;
            config.rope_theta = Some(100.0);
            config.norm_epsilon = 1e-5;
            config.layer_scale = Some(1e-5);
            config.qkv_bias = false;
            if is_gated {
                config.mlp = MlpKind::SwiGlu;
            }
        }
        _ if is_gated => return None,
        ("vit" | "deit", []) => {}
        ("deit3", []) => {
            config.learned_positions = LearnedPositions::Patches;
            config.layer_scale = Some(1e-6);
        }
        ("vit", ["clip"] | ["clip", "quickgelu"]) => {
            config.patch_bias = false;
            config.pre_norm = true;
            config.norm_epsilon = 1e-5;
            if words.last() == Some(&"quickgelu") {
                config.mlp = MlpKind::GeluQuick;
            }
        }
        ("vit", ["dinov2"] | ["reg4", "dinov2"]) => {
            config.layer_scale = Some(1e-5);
            if words[1] == "reg4" {
                config.registers = 4;
                config.learned_positions = LearnedPositions::Patches;
            }
            if size.0 == "giant" {
                config.width = 1536;
                config.heads = 24;
                config.mlp = MlpKind::SwiGlu;
                feed_forward = FeedForward {
                    ratio: 2.666_67 * 2.0,
                    counts_both: true,
                };
            }
        }
        ("vit", ["siglip"]) => {
            if size.0 == "so400m" && config.patch_size == 16 {
                config.mlp = MlpKind::GeluTanh;
            }
        }
        _ => return None,
    }
    Some(feed_forward)
}

fn read_architecture(settings: &Settings, config: &mut VisionConfig) -> Result<()> {
    let name = settings.text("architecture", "")?;
    let Some(mut feed_forward) = named(name, config) else {
        let want = "a ViT of timm's as vit_base_patch16_224, deit_small_distilled_patch16_224, deit3_base_patch16_224, \
                    vit_large_patch14_clip_336, vit_base_patch14_reg4_dinov2, vit_base_patch16_dinov3 or \
                    vit_so400m_patch14_siglip_384";
        return Err(settings.refuse("architecture", want, name));
    };
    let pools = if config.class_token { "token" } else { "map" };
    let mut pooled = settings.text("global_pool", pools)?;
    if let Some(map) = settings.object("pretrained_cfg")?
        && let Some(input) = map.get("input_size").and_then(Json::as_array)
        && let Some(side) = input.last().and_then(Json::as_u64)
    {
        config.image_size = side as usize;
    }
    if let Some(map) = settings.object("model_args")? {
        let arguments = Settings::new(format!("{}: model_args", settings.what()), map);
        pooled = arguments.text("global_pool", pooled)?;
        read_arguments(&arguments, config, &mut feed_forward.ratio)?;
        settings.note(arguments.finish()?);
    }
    let wide = (f64::from(config.width as u32) * feed_forward.ratio) as usize;
    config.mlp_width = if feed_forward.counts_both {
        wide / 2
    } else {
        wide
    };
    match pooled {
        "" => {}
        // DINOv3's norm stands before the mean, too.
        "avg" if config.rope_theta.is_some() => {}
        // The norm behind the last block is then one of the mean, which a classifier has.
        "avg" if config.class_token => config.final_norm = false,
        pooled if pooled == pools => {}
        other => {
            let want = format!("{pools:?}");
            return Err(settings.refuse("global_pool", want, other));
        }
    }
    Ok(())
}

/// What `model_args` says otherwise than the architecture's name.
fn read_arguments(arguments: &Settings, config: &mut VisionConfig, ratio: &mut f64) -> Result<()> {
    arguments.only_number("in_chans", 3, 3)?;
    arguments.idle(Idle::any("num_classes"))?;
    // Whether images of other sizes are taken as they come.
    arguments.idle(Idle::any("dynamic_img_size"))?;
    arguments.idle(Idle::off("dynamic_img_pad"))?;
    arguments.only_switch("class_token", config.class_token, config.class_token)?;
    arguments.only_switch("pre_norm", config.pre_norm, config.pre_norm)?;
    config.image_size = arguments.number("img_size", config.image_size)?;
    config.patch_size = arguments.number("patch_size", config.patch_size)?;
    config.width = arguments.number("embed_dim", config.width)?;
    config.depth = arguments.number("depth", config.depth)?;
    config.heads = arguments.number("num_heads", config.heads)?;
    config.qkv_bias = arguments.switch("qkv_bias", config.qkv_bias)?;
    *ratio = f64::from(arguments.float("mlp_ratio", *ratio)?);
    if arguments.is_null("init_values") {
        arguments.idle(Idle::any("init_values"))?;
        config.layer_scale = None;
    } else if arguments.has("init_values") {
        config.layer_scale = Some(arguments.float("init_values", 0.0)?);
    }
    // Those of distilled DeiT and of DINOv3 are as they are.
    if matches!(
        config.learned_positions,
        LearnedPositions::AllTokens | LearnedPositions::None
    ) {
        return Ok(());
    }
    config.registers = arguments.number("reg_tokens", config.registers)?;
    let is_bare = config.learned_positions == LearnedPositions::Patches;
    config.learned_positions = match arguments.switch("no_embed_class", is_bare)? {
        true => LearnedPositions::Patches,
        false if config.registers > 0 => LearnedPositions::AllTokens,
        false => LearnedPositions::ClassTokenAndPatches,
    };
    Ok(())
}

const NAMES: &[Names] = &[
    ("patch_embed", &[&["patch_embed.proj"]]),
    ("position", &[&["pos_embed"]]),
    ("class_token", &[&["cls_token"]]),
    ("registers", &[&["reg_token"], &["dist_token"]]),
    ("pre_norm", &[&["norm_pre"]]),
    ("blocks.{l}.norm1", &[&["blocks.{l}.norm1"]]),
    ("blocks.{l}.attention.qkv", &[&["blocks.{l}.attn.qkv"]]),
    ("blocks.{l}.attention.out", &[&["blocks.{l}.attn.proj"]]),
    (
        "blocks.{l}.layer_scale1",
        &[&["blocks.{l}.ls1.gamma"], &["blocks.{l}.gamma_1"]],
    ),
    ("blocks.{l}.norm2", &[&["blocks.{l}.norm2"]]),
    ("blocks.{l}.mlp.fc1", &[&["blocks.{l}.mlp.fc1"]]),
    ("blocks.{l}.mlp.fc2", &[&["blocks.{l}.mlp.fc2"]]),
    (
        "blocks.{l}.mlp.gate_up",
        &[
            &["blocks.{l}.mlp.fc1"],
            &["blocks.{l}.mlp.fc1_g", "blocks.{l}.mlp.fc1_x"],
        ],
    ),
    ("blocks.{l}.mlp.down", &[&["blocks.{l}.mlp.fc2"]]),
    (
        "blocks.{l}.layer_scale2",
        &[&["blocks.{l}.ls2.gamma"], &["blocks.{l}.gamma_2"]],
    ),
    ("final_norm", &[&["norm"]]),
];

/// The attention that pools the tokens of SigLIP.
const HEAD: &[Names] = &[
    ("probe", &[&["attn_pool.latent"]]),
    ("query", &[&["attn_pool.q"]]),
    ("key_value", &[&["attn_pool.kv"]]),
    ("out", &[&["attn_pool.proj"]]),
    ("norm2", &[&["attn_pool.norm"]]),
    ("mlp.fc1", &[&["attn_pool.mlp.fc1"]]),
    ("mlp.fc2", &[&["attn_pool.mlp.fc2"]]),
];
