//! The layout in which a model is written that did not come from a folder, or is asked for in another: names, shapes and
//! `config.json` of the families that are read. What a layout cannot say is found by reading back what was written.

use serde_json::{Map, Value as Json, json};

use super::families::{AIMV2, CLIP, DINOV2, INTERNVIT, MLP1, Names, QWEN, row, rows_of};
use super::processor::Processor;
use super::settings::Settings;
use super::written::{Content, Written};
use super::{language, vision};
use keel_base::error::{Error, Result};
use keel_model::{LanguageConfig, MlpKind, NormKind, VisionConfig};
use keel_engine::ops::Heads;
use keel_engine::tape::{ParameterEntry, ParameterLayout};

/// A layout of vision towers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisionLayout {
    /// AIMv2 as transformers has it.
    Aimv2,
    /// AIMv2 and SAILViT by their own names.
    Sailvit,
    /// CLIP.
    Clip,
    /// SigLIP.
    Siglip,
    /// InternViT as transformers has it.
    Internvit,
    /// DINOv2.
    Dinov2,
}

impl VisionLayout {
    /// All layouts; a model is written in the first that can say it.
    pub const ALL: [VisionLayout; 6] = [
        VisionLayout::Aimv2,
        VisionLayout::Sailvit,
        VisionLayout::Clip,
        VisionLayout::Siglip,
        VisionLayout::Dinov2,
        VisionLayout::Internvit,
    ];

    /// The first layout that can say these settings.
    ///
    /// # Errors
    /// [`Error::Setting`] where none can.
    pub fn of(config: &VisionConfig) -> Result<VisionLayout> {
        let fitting = VisionLayout::ALL
            .into_iter()
            .find(|layout| layout.config(config).is_ok());
        fitting.ok_or_else(|| {
            let names = VisionLayout::ALL.map(VisionLayout::name);
            Error::setting(
                "model.vision",
                format!("the settings of one of {}", names.join(", ")),
                "a tower between them (--layout NAME says what is in the way)",
            )
        })
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            VisionLayout::Aimv2 => "aimv2",
            VisionLayout::Sailvit => "sailvit",
            VisionLayout::Clip => "clip",
            VisionLayout::Siglip => "siglip",
            VisionLayout::Dinov2 => "dinov2",
            VisionLayout::Internvit => "internvit",
        }
    }

    /// `config.json`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what the layout cannot say.
    pub fn config(self, config: &VisionConfig) -> Result<Map<String, Json>> {
        let act = match config.mlp {
            MlpKind::Gelu => "gelu",
            MlpKind::GeluTanh => "gelu_pytorch_tanh",
            MlpKind::GeluQuick => "quick_gelu",
            MlpKind::SwiGlu => "silu",
        };
        let epsilon = plain(config.norm_epsilon);
        let mut json = json!({
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp_width,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "num_channels": 3,
            "hidden_act": act,
        });
        let own = match self {
            VisionLayout::Aimv2 => json!({
                "architectures": ["Aimv2VisionModel"],
                "model_type": "aimv2_vision_model",
                "rms_norm_eps": epsilon,
                "qkv_bias": config.qkv_bias,
                "mlp_bias": config.bias,
                "is_native": false,
                "use_head": false,
            }),
            VisionLayout::Sailvit => json!({
                "architectures": ["AIMv2Model"],
                "model_type": "aimv2",
                "rms_norm_eps": epsilon,
                "qkv_bias": config.qkv_bias,
                "use_bias": config.bias,
            }),
            VisionLayout::Clip => json!({
                "architectures": ["CLIPVisionModel"],
                "model_type": "clip_vision_model",
                "layer_norm_eps": epsilon,
            }),
            VisionLayout::Siglip => json!({
                "architectures": ["SiglipVisionModel"],
                "model_type": "siglip_vision_model",
                "layer_norm_eps": epsilon,
                "vision_use_head": false,
            }),
            VisionLayout::Internvit => json!({
                "architectures": ["InternVLVisionModel"],
                "model_type": "internvl_vision",
                "image_size": [config.image_size, config.image_size],
                "patch_size": [config.patch_size, config.patch_size],
                "layer_norm_eps": epsilon,
                "norm_type": match config.norm {
                    NormKind::Layer => "layer_norm",
                    NormKind::Rms => "rms_norm",
                },
                "attention_bias": config.qkv_bias,
                "use_qk_norm": false,
                "use_absolute_position_embeddings": true,
                "use_mask_token": false,
                "use_mean_pooling": !config.final_norm,
                "layer_scale_init_value": plain(config.layer_scale.unwrap_or(0.0)),
            }),
            VisionLayout::Dinov2 => {
                let gated = config.mlp == MlpKind::SwiGlu;
                let wide = match gated {
                    true => config.mlp_width * 3 / 2,
                    false => config.mlp_width,
                };
                json!({
                    "architectures": ["Dinov2Model"],
                    "model_type": "dinov2",
                    "layer_norm_eps": epsilon,
                    "mlp_ratio": ratio(wide, config.width),
                    "use_swiglu_ffn": gated,
                    "hidden_act": if gated { "gelu" } else { act },
                    "qkv_bias": config.qkv_bias,
                    "layerscale_value": plain(config.layer_scale.unwrap_or(0.0)),
                    "use_mask_token": false,
                })
            }
        };
        let json = object(&mut json);
        json.extend(own.as_object().cloned().unwrap_or_default());
        if self == VisionLayout::Dinov2 {
            json.remove("intermediate_size");
        }
        let json = std::mem::take(json);
        let what = format!("the layout {}", self.name());
        let kind = json["model_type"].as_str().unwrap_or_default().to_owned();
        let settings = Settings::new(what.clone(), &json);
        let (_, again) = vision::read(&kind, &settings)?;
        hold_equal(&what, "model.vision", config, &again)?;
        Ok(json)
    }

    /// The tensors of a tower with the values that `value_of` gives by parameter.
    pub fn tensors<'a>(
        self,
        config: &VisionConfig,
        layout: &ParameterLayout,
        prefix: &str,
        dtype: safetensors::Dtype,
        value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
    ) -> Vec<Written<'a>> {
        let (names, way): (&[Names], usize) = match self {
            VisionLayout::Aimv2 => (AIMV2, 1),
            VisionLayout::Sailvit => (AIMV2, 0),
            VisionLayout::Clip | VisionLayout::Siglip => (CLIP, 0),
            VisionLayout::Internvit => (INTERNVIT, 1),
            VisionLayout::Dinov2 => (DINOV2, 0),
        };
        let namer = Namer {
            names,
            way,
            prefix,
            heads: config.block().heads,
            patch: config.patch_size,
        };
        entries_of(layout, "vision")
            .flat_map(|entry| namer.tensors(entry, value_of(entry), dtype))
            .collect()
    }
}

/// `config.json` of a decoder.
///
/// # Errors
/// [`Error::Setting`] naming what Qwen2 and Qwen3 cannot say.
pub fn language_config(config: &LanguageConfig) -> Result<Map<String, Json>> {
    let is_third = config.qk_norm;
    let (kind, class) = match is_third {
        true => ("qwen3", "Qwen3ForCausalLM"),
        false => ("qwen2", "Qwen2ForCausalLM"),
    };
    let mut json = json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": plain(config.norm_epsilon),
        "rope_theta": plain(config.rope_theta),
        "tie_word_embeddings": config.tied,
        "use_sliding_window": false,
        "max_position_embeddings": 32_768,
    });
    let map = object(&mut json);
    if is_third {
        map.insert("head_dim".into(), json!(config.head_dim));
        map.insert("attention_bias".into(), json!(false));
    }
    let map = std::mem::take(map);
    let what = format!("the layout {kind}");
    let (_, again) = language::read(kind, &Settings::new(what.clone(), &map))?;
    hold_equal(&what, "model.language", config, &again)?;
    Ok(map)
}

/// The tensors of a decoder; names stand behind `prefix`.
pub fn language_tensors<'a>(
    config: &LanguageConfig,
    layout: &ParameterLayout,
    prefix: &str,
    dtype: safetensors::Dtype,
    value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
) -> Vec<Written<'a>> {
    let inner = format!("{prefix}model.");
    let namer = Namer {
        names: QWEN,
        way: 0,
        prefix: &inner,
        heads: config.block().heads,
        patch: 0,
    };
    entries_of(layout, "language")
        .flat_map(|entry| match entry.spec.name.as_str() {
            "language.head.weight" => vec![Written {
                name: format!("{prefix}lm_head.weight"),
                shape: entry.spec.shape.dims().to_vec(),
                dtype,
                content: Content::Values {
                    values: value_of(entry),
                    patch: None,
                },
            }],
            _ => namer.tensors(entry, value_of(entry), dtype),
        })
        .collect()
}

/// The tensors of a connector, `mlp1.` of InternVL and SAIL-VL.
pub fn connector_tensors<'a>(
    layout: &ParameterLayout,
    dtype: safetensors::Dtype,
    value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
) -> Vec<Written<'a>> {
    let namer = Namer {
        names: MLP1,
        way: 0,
        prefix: "mlp1.",
        heads: Heads {
            query: 0,
            key_value: 0,
            dim: 0,
        },
        patch: 0,
    };
    entries_of(layout, "connector")
        .flat_map(|entry| namer.tensors(entry, value_of(entry), dtype))
        .collect()
}

/// `config.json` of a whole model in the form of InternVL and SAIL-VL, which is shown pictures in up to `tiles` tiles.
pub fn whole_config(
    vision: Map<String, Json>,
    language: Map<String, Json>,
    (image_size, factor): (usize, usize),
    tiles: usize,
    template: &str,
) -> Map<String, Json> {
    let mut json = json!({
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 1.0 / factor as f64,
        "ps_version": "v2",
        "select_layer": -1,
        "force_image_size": image_size,
        "dynamic_image_size": tiles > 0,
        "use_thumbnail": tiles > 0,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": tiles.max(1),
        "template": template,
        "tie_word_embeddings": language.get("tie_word_embeddings"),
        "vision_config": vision,
        "llm_config": language,
    });
    std::mem::take(object(&mut json))
}

/// How the pictures were prepared in training: `preprocessor_config.json`.
pub fn processor_config(image_size: usize, processor: &Processor) -> Map<String, Json> {
    let Processor {
        mean, deviation, ..
    } = processor;
    let resample = if processor.is_bicubic { 3 } else { 2 };
    let mut json = json!({
        "image_processor_type": match processor.shortest_edge {
            Some(_) => "CLIPImageProcessor",
            None => "SiglipImageProcessor",
        },
        "do_convert_rgb": true,
        "do_resize": true,
        "size": match processor.shortest_edge {
            Some(edge) => json!({ "shortest_edge": edge }),
            None => json!({ "height": image_size, "width": image_size }),
        },
        "resample": resample,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": mean.map(plain),
        "image_std": deviation.map(plain),
    });
    if processor.shortest_edge.is_some() {
        json["do_center_crop"] = true.into();
        json["crop_size"] = json!({ "height": image_size, "width": image_size });
    }
    std::mem::take(object(&mut json))
}

fn object(json: &mut Json) -> &mut Map<String, Json> {
    json.as_object_mut().expect("written as an object")
}

/// The number as its shortest text in single precision says it: 1e-6, not 9.99999997e-7.
fn plain(value: f32) -> Json {
    let text = format!("{value}");
    json!(text.parse::<f64>().unwrap_or(f64::from(value)))
}

/// The ratio that gives `wide` again when it is multiplied by `width` in f32 and cut to a whole number.
fn ratio(wide: usize, width: usize) -> Json {
    match wide.is_multiple_of(width) {
        true => json!(wide / width),
        false => json!((wide as f64 + 0.5) / width as f64),
    }
}

/// Refuses a layout that reads back as other settings than were written.
fn hold_equal<C: serde::Serialize>(what: &str, key: &str, wanted: &C, again: &C) -> Result<()> {
    let fields = |config: &C| {
        let value = serde_json::to_value(config).expect("settings are plain data");
        value.as_object().cloned().unwrap_or_default()
    };
    let (wanted, again) = (fields(wanted), fields(again));
    let keys = wanted.keys().chain(again.keys());
    let nothing = Json::Null;
    for field in keys {
        let (ours, theirs) = (
            wanted.get(field).unwrap_or(&nothing),
            again.get(field).unwrap_or(&nothing),
        );
        if ours != theirs {
            return Err(Error::setting(
                format!("{key}.{field}"),
                format!("{theirs}, which is all that {what} can say"),
                ours,
            ));
        }
    }
    Ok(())
}

/// The parameters of a module.
fn entries_of<'a>(
    layout: &'a ParameterLayout,
    module: &'a str,
) -> impl Iterator<Item = &'a ParameterEntry> {
    let entries = layout.entries().iter();
    entries.filter(move |entry| entry.spec.module() == module)
}

/// Names tensors in one of a family's ways.
struct Namer<'a> {
    names: &'static [Names],
    way: usize,
    prefix: &'a str,
    heads: Heads,
    patch: usize,
}

impl Namer<'_> {
    /// The tensors of one parameter.
    fn tensors<'a>(
        &self,
        entry: &ParameterEntry,
        values: &'a [f32],
        dtype: safetensors::Dtype,
    ) -> Vec<Written<'a>> {
        let dims = entry.spec.shape.dims();
        let (stem, layer, ending) = row(&entry.spec.name);
        let ways = self.names.iter().find(|(row, _)| *row == stem);
        let ways = ways.map_or(&[][..], |(_, ways)| ways);
        let way = ways.get(self.way).or(ways.last());
        let way = way.expect("a layout that reads back as the settings names all their parameters");
        let mut first = 0;
        let mut tensors = Vec::new();
        for (name, rows) in way.iter().zip(rows_of(way.len(), dims, self.heads)) {
            let name = format!("{}{}{ending}", self.prefix, name.replace("{l}", &layer));
            let count = rows * dims[1..].iter().product::<usize>();
            let inner = [&[rows], &dims[1..]].concat();
            let shape = match stem.as_str() {
                "patch_embed" if ending == ".weight" => vec![rows, 3, self.patch, self.patch],
                // Modules of their own hold plain rows; tensors that stand alone are broadcast over the batch.
                "position" if !name.ends_with(".weight") => [&[1], &inner[..]].concat(),
                "class_token" if name.ends_with("cls_token") => [&[1, 1], &inner[..]].concat(),
                _ => inner,
            };
            tensors.push(Written {
                name,
                shape,
                dtype,
                content: Content::Values {
                    values: &values[first..first + count],
                    patch: None,
                },
            });
            first += count;
        }
        tensors
    }
}
