//! The ViTs of open_clip (Ilharco et al. 2021), in folders of its own: CLIP's arithmetic, GELU where `quick_gelu` is not set, and
//! queries, keys and values in one product.

use serde_json::{Map, Value as Json, json};

use super::clip::PROCESSOR;
use super::family::{CLASSIC, Pooling, VisionForm};
use super::idle::Idle;
use super::key::Key;
use super::names::Names;
use crate::hf_config::Settings;
use crate::pos_embed_interp::Scaling;
use keel_base::error::Result;
use keel_model::{MlpKind, VisionConfig};

/// What the form is called here; files have no `model_type`.
const OPEN_CLIP: &str = "open_clip";

/// The form, and its settings, where `config` is an `open_clip_config.json`.
pub(super) fn settings_of(
    config: &Map<String, Json>,
) -> Option<(&'static str, &Map<String, Json>)> {
    let model = config.get("model_cfg")?.as_object()?;
    model.get("vision_cfg")?.as_object()?;
    Some((OPEN_CLIP, model))
}

pub(super) const FORMS: &[VisionForm] = &[VisionForm {
    title: "CLIP vision tower (open_clip)",
    model_types: &[OPEN_CLIP],
    pair_type: None,
    form: VisionConfig {
        patch_bias: false,
        class_token: true,
        pre_norm: true,
        norm_epsilon: 1e-5,
        ..CLASSIC
    },
    keys: &[KEYS],
    layouts: &[],
    names: NAMES,
    probes: &["conv1.weight"],
    ignored: &[("proj", "projection to the contrastive space")],
    patches_by_pixel: false,
    size_key: "vision_cfg",
    tell_size: Some(tell_size),
    scaling: Scaling::FilteredBicubic,
    takes_any_size: false,
    pooling: Some(Pooling::CLASS_TOKEN),
    processor: &PROCESSOR,
}];

const KEYS: &[Key<VisionConfig>] = &[
    Key::Own {
        name: "quick_gelu",
        read: |settings, config| {
            if settings.switch("quick_gelu", false)? {
                config.mlp = MlpKind::GeluQuick;
            }
            Ok(())
        },
        write: |_| Json::Null,
    },
    Key::Own {
        name: "vision_cfg",
        read: |settings, config| {
            let Some(map) = settings.object("vision_cfg")? else {
                return Ok(());
            };
            let vision = Settings::new(format!("{}.vision_cfg", settings.what()), map);
            read_vision(&vision, config)?;
            settings.note(vision.finish()?);
            Ok(())
        },
        // There is no layout that is written: that of transformers is.
        write: |_| Json::Null,
    },
    // Of the contrastive space, and of the text tower and what else stands beside.
    Key::Idle(Idle::any("custom_text")),
    Key::Idle(Idle::any("embed_dim")),
    Key::Idle(Idle::any("init_logit_bias")),
    Key::Idle(Idle::any("init_logit_scale")),
    Key::Idle(Idle::any("multimodal_cfg")),
    Key::Idle(Idle::any("nonscalar_logit_scale")),
    Key::Idle(Idle::any("text_cfg")),
];

fn read_vision(vision: &Settings, config: &mut VisionConfig) -> Result<()> {
    if vision.has("timm_model_name") {
        let name = vision.text("timm_model_name", "")?;
        let want = "a tower of open_clip's own (one of timm's has a folder of its own)";
        return Err(vision.refuse("timm_model_name", want, name));
    }
    config.image_size = vision.number("image_size", 224)?;
    config.patch_size = vision.number("patch_size", 16)?;
    config.width = vision.number("width", 768)?;
    config.depth = vision.number("layers", 12)?;
    let of_head = vision.number("head_width", 64)?;
    if of_head == 0 || !config.width.is_multiple_of(of_head) {
        let want = format!("a divisor of the width, {}", config.width);
        return Err(vision.refuse("head_width", want, of_head));
    }
    config.heads = config.width / of_head;
    let ratio = f64::from(vision.float("mlp_ratio", 4.0)?);
    config.mlp_width = (f64::from(config.width as u32) * ratio) as usize;
    if vision.has("ls_init_value") {
        config.layer_scale = Some(vision.float("ls_init_value", 0.0)?);
    }
    config.pre_norm = !vision.switch("no_ln_pre", false)?;
    vision.only_text("pos_embed_type", "learnable", "learnable")?;
    vision.only_text("pool_type", "tok", "tok")?;
    for key in ["attentional_pool", "final_ln_after_pool"] {
        vision.only_switch(key, false, false)?;
    }
    // The sizes of an attentional pool that is off, and whether tokens come along.
    for key in ["attn_pooler_heads", "attn_pooler_queries", "output_tokens"] {
        vision.idle(Idle::any(key))?;
    }
    Ok(())
}

/// Another image size is told where open_clip looks for it.
fn tell_size(side: usize, config: &mut Map<String, Json>) {
    let model = config.get_mut("model_cfg").and_then(Json::as_object_mut);
    let vision = model.and_then(|model| model.get_mut("vision_cfg")?.as_object_mut());
    if let Some(vision) = vision {
        vision.insert("image_size".into(), json!(side));
    }
    let images = config.get_mut("preprocess_cfg");
    if let Some(images) = images.and_then(Json::as_object_mut)
        && images.contains_key("size")
    {
        images.insert("size".into(), json!(side));
    }
}

const NAMES: &[Names] = &[
    ("patch_embed", &[&["conv1"]]),
    ("position", &[&["positional_embedding"]]),
    ("class_token", &[&["class_embedding"]]),
    ("pre_norm", &[&["ln_pre"]]),
    ("blocks.{l}.norm1", &[&["transformer.resblocks.{l}.ln_1"]]),
    (
        "blocks.{l}.attention.qkv",
        &[&["transformer.resblocks.{l}.attn.in_proj"]],
    ),
    (
        "blocks.{l}.attention.out",
        &[&["transformer.resblocks.{l}.attn.out_proj"]],
    ),
    (
        "blocks.{l}.layer_scale1",
        &[&["transformer.resblocks.{l}.ls_1.gamma"]],
    ),
    ("blocks.{l}.norm2", &[&["transformer.resblocks.{l}.ln_2"]]),
    (
        "blocks.{l}.mlp.fc1",
        &[&["transformer.resblocks.{l}.mlp.c_fc"]],
    ),
    (
        "blocks.{l}.mlp.fc2",
        &[&["transformer.resblocks.{l}.mlp.c_proj"]],
    ),
    (
        "blocks.{l}.layer_scale2",
        &[&["transformer.resblocks.{l}.ls_2.gamma"]],
    ),
    ("final_norm", &[&["ln_post"]]),
];
