//! What a family of weights states about itself.

use serde_json::{Map, Value as Json, json};

use super::super::hf_config::Settings;
use super::super::pos_embed_interp::Scaling;
use super::key::{Key, Keys, plain, read_keys, write_keys};
use super::names::Names;
use keel_base::error::Result;
use keel_model::{LanguageConfig, LearnedPositions, MlpKind, NormKind, VisionConfig, VisionHead};

/// Writes an image size, in pixels, into a folder's settings.
pub(crate) type TellSize = fn(usize, &mut Map<String, Json>);

/// One form in which a family's towers are published: what its `config.json` means and how its tensors are called.
#[derive(Debug)]
pub(crate) struct VisionForm {
    pub title: &'static str,
    /// The `model_type`s that name it.
    pub model_types: &'static [&'static str],
    /// The `model_type` of image and text pairs whose old files leave the tower's own out.
    pub pair_type: Option<&'static str>,
    /// Settings that no key says.
    pub form: VisionConfig,
    /// Every key of `config.json` that matters, in the order in which they are read. Where a key is absent the family's own
    /// default stands, as in the code that published it.
    pub keys: Keys<VisionConfig>,
    /// The layouts in which towers are written, if there are any.
    pub layouts: &'static [Layout],
    pub names: &'static [Names],
    /// Tensors by which the tower's place among others is found.
    pub probes: &'static [&'static str],
    /// Beginnings of names that Keel's tower does without, and what they are.
    pub ignored: &'static [(&'static str, &'static str)],
    /// Whether the patch projection is a matrix over (row, column, colour), not a convolution.
    pub patches_by_pixel: bool,
    /// The key that says for what image size the tower's positions are.
    pub size_key: &'static str,
    /// Writes another size into the settings of a folder, where it does not stand under that key alone.
    pub tell_size: Option<TellSize>,
    /// How learned positions are scaled to another image size.
    pub scaling: Scaling,
    /// Whether the published code scales them to whatever images come, so that `preprocessor_config.json` decides about the size.
    pub takes_any_size: bool,
    /// How the tower pools its tokens, where it does.
    pub pooling: Option<Pooling>,
    /// What prepares its images.
    pub processor: &'static ImageProcessor,
}

impl VisionForm {
    /// Reads a tower's settings.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] naming the key that is of the wrong type, or that Keel has no code for.
    pub fn read(&self, settings: &Settings) -> Result<VisionConfig> {
        read_keys(self.keys, &self.form, settings)
    }

    /// How a tower of these settings pools, which [`VisionForm::read`] has accepted.
    ///
    /// # Errors
    /// As [`VisionForm::read`].
    pub fn pooling_of(&self, settings: &Settings) -> Result<Option<Pooling>> {
        for key in self.keys.iter().copied().flatten() {
            if let Key::Pools { name } = key
                && !settings.switch(name, true)?
            {
                return Ok(None);
            }
        }
        Ok(self.pooling)
    }

    /// `config.json` in one of its layouts.
    pub fn write(&self, layout: &Layout, config: &VisionConfig) -> Map<String, Json> {
        let kind = (layout.architecture, layout.model_type);
        write_keys(self.keys, config, kind, layout.keys)
    }
}

/// A layout in which towers of a form are written.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Its name on the command line.
    pub name: &'static str,
    /// The class in transformers.
    pub architecture: &'static str,
    pub model_type: &'static str,
    /// Which of the ways of naming tensors it uses; rows with fewer ways use their last.
    pub naming: usize,
    /// The keys of its `config.json`, in order.
    pub keys: &'static [&'static str],
    /// Whether it can say towers of other families too. Such a layout is taken where no family's own will do.
    pub is_general: bool,
}

/// How a family pools, and the names of what it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pooling {
    pub head: VisionHead,
    pub names: &'static [Names],
}

impl Pooling {
    /// By the class token, which takes nothing more.
    pub const CLASS_TOKEN: Pooling = Pooling {
        head: VisionHead::ClassToken,
        names: &[],
    };
}

/// A class of image processors, as `preprocessor_config.json` names it.
#[derive(Debug)]
pub(crate) struct ImageProcessor {
    /// The class in transformers.
    pub class: &'static str,
    /// What the names of its variants have in common.
    pub marker: &'static str,
    /// Whether images are scaled along their shorter edge and their middle cut out, so that a size without names is the
    /// shorter edge. Else both edges are scaled, and it is both.
    pub by_shorter_edge: bool,
    /// Whether it may cut out the middle after it has scaled both edges.
    pub cuts_of_both: bool,
}

/// The length of a sequence beyond which a decoder's settings ask for something that Keel does not compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthLimit {
    /// The longest sequence that is as Keel computes it, tokens.
    pub tokens: usize,
    /// The key that changes longer ones.
    pub key: &'static str,
}

/// One form in which a family's decoders are published.
#[derive(Debug)]
pub(crate) struct LanguageForm {
    pub title: &'static str,
    pub model_type: &'static str,
    /// The class in transformers.
    pub architecture: &'static str,
    /// Settings that no key says.
    pub form: LanguageConfig,
    /// As [`VisionForm::keys`].
    pub keys: Keys<LanguageConfig>,
    /// The keys that are written, in order.
    pub written: &'static [&'static [&'static str]],
    pub names: &'static [Names],
    /// The tensor by which the decoder's place among others is found.
    pub probes: &'static [&'static str],
    /// As [`VisionForm::ignored`].
    pub ignored: &'static [(&'static str, &'static str)],
    /// What stands before the names of all tensors but the output product's.
    pub trunk: &'static str,
    /// The output product's tensor.
    pub head: &'static str,
    /// The length of a sequence up to which settings that were read mean what Keel computes; nothing where they always do.
    pub length_limit: fn(&Settings) -> Result<Option<LengthLimit>>,
}

impl LanguageForm {
    /// Reads a decoder's settings.
    ///
    /// # Errors
    /// As [`VisionForm::read`].
    pub fn read(&self, settings: &Settings) -> Result<LanguageConfig> {
        read_keys(self.keys, &self.form, settings)
    }

    /// `config.json`.
    pub fn write(&self, config: &LanguageConfig) -> Map<String, Json> {
        let kind = (self.architecture, self.model_type);
        write_keys(self.keys, config, kind, &self.written.concat())
    }
}

/// The classic tower: LayerNorm, biases, GELU, no class token. Families say what they do otherwise.
pub(super) const CLASSIC: VisionConfig = VisionConfig {
    image_size: 0,
    patch_size: 0,
    width: 0,
    depth: 0,
    heads: 0,
    mlp_width: 0,
    norm: NormKind::Layer,
    norm_epsilon: 1e-6,
    mlp: MlpKind::Gelu,
    patch_bias: true,
    patch_norm: false,
    class_token: false,
    pre_norm: false,
    final_norm: true,
    qkv_bias: true,
    bias: true,
    layer_scale: None,
    registers: 0,
    learned_positions: LearnedPositions::ClassTokenAndPatches,
    rope_theta: None,
    key_bias: true,
    qk_norm: false,
    lora: None,
};

/// All towers see three colours.
pub(super) const COLOURS: Key<VisionConfig> = Key::OnlyCount {
    name: "num_channels",
    want: 3,
    default: 3,
};

/// The keys of a tower's sizes with a family's defaults: width, depth, heads and feed-forward width, then image and patch.
pub(super) const fn sizes(
    [width, depth, heads, mlp_width]: [usize; 4],
    [image_size, patch_size]: [usize; 2],
) -> [Key<VisionConfig>; 6] {
    [
        Key::Count {
            name: "image_size",
            default: image_size,
            field: |config| &mut config.image_size,
        },
        Key::Count {
            name: "patch_size",
            default: patch_size,
            field: |config| &mut config.patch_size,
        },
        Key::Count {
            name: "hidden_size",
            default: width,
            field: |config| &mut config.width,
        },
        Key::Count {
            name: "num_hidden_layers",
            default: depth,
            field: |config| &mut config.depth,
        },
        Key::Count {
            name: "num_attention_heads",
            default: heads,
            field: |config| &mut config.heads,
        },
        Key::Count {
            name: "intermediate_size",
            default: mlp_width,
            field: |config| &mut config.mlp_width,
        },
    ]
}

/// The key of the norms' ε.
pub(super) const fn norm_epsilon(name: &'static str, default: f64) -> Key<VisionConfig> {
    Key::Float {
        name,
        default,
        field: |config| &mut config.norm_epsilon,
    }
}

/// The key of the number of registers.
pub(super) const fn registers(name: &'static str, default: usize) -> Key<VisionConfig> {
    Key::Count {
        name,
        default,
        field: |config| &mut config.registers,
    }
}

/// The key of the first value of the scales of branches, which DINO's towers always have.
pub(super) const LAYER_SCALE: Key<VisionConfig> = Key::Own {
    name: "layerscale_value",
    read: |settings, config| {
        config.layer_scale = Some(settings.float("layerscale_value", 1.0)?);
        Ok(())
    },
    write: |config| plain(config.layer_scale.unwrap_or(0.0)),
};

/// What files call the activations; the first name of each is the one that is written.
const ACTIVATIONS: &[(&str, MlpKind)] = &[
    ("gelu", MlpKind::Gelu),
    ("gelu_pytorch_tanh", MlpKind::GeluTanh),
    ("gelu_new", MlpKind::GeluTanh),
    ("quick_gelu", MlpKind::GeluQuick),
    ("silu", MlpKind::SwiGlu),
];

/// Reads `hidden_act` of the classic feed-forward half.
pub(super) fn classic_activation(
    settings: &Settings,
    default: &'static str,
    config: &mut VisionConfig,
) -> Result<()> {
    let name = settings.text("hidden_act", default)?;
    let known = ACTIVATIONS.iter().find(|(known, _)| *known == name);
    match known {
        Some((_, kind)) if *kind != MlpKind::SwiGlu => config.mlp = *kind,
        _ => {
            let want = "gelu, gelu_pytorch_tanh or quick_gelu";
            return Err(settings.refuse("hidden_act", want, name));
        }
    }
    Ok(())
}

/// Writes `hidden_act`.
pub(super) fn activation_name(config: &VisionConfig) -> Json {
    let named = ACTIVATIONS.iter().find(|(_, kind)| *kind == config.mlp);
    json!(named.expect("every activation has a name").0)
}
