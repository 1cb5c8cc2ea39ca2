//! The settings that define each model. Field names are those of recipes and checkpoints.

use serde::{Deserialize, Serialize};

use super::block::{BlockConfig, MlpKind, NormKind};
use keel_base::error::{Error, Result};
use keel_engine::ops::Heads;

/// A vision tower in the SAILViT/AIMv2 form or the classic one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Height and width of the images in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels, P.
    pub patch_size: usize,
    /// Model width C.
    pub width: usize,
    /// Blocks L.
    pub depth: usize,
    /// Attention heads H; the head dim is C / H.
    pub heads: usize,
    /// Feed-forward width F.
    pub mlp_width: usize,
    /// Kind of all norms.
    pub norm: NormKind,
    /// ε of all norms.
    pub norm_epsilon: f32,
    /// Kind of the feed-forward halves.
    pub mlp: MlpKind,
    /// Whether the patch projection has a bias.
    pub patch_bias: bool,
    /// Whether patches are normalised before positions are added (AIMv2).
    pub patch_norm: bool,
    /// Whether a class token stands before the patches.
    pub class_token: bool,
    /// Whether a norm stands before the first block (CLIP).
    pub pre_norm: bool,
    /// Whether a norm stands after the last block.
    pub final_norm: bool,
    /// Whether the query, key and value projection has a bias.
    pub qkv_bias: bool,
    /// Whether the other projections have biases.
    pub bias: bool,
    /// First value of the per-channel residual scales, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<f32>,
}

impl VisionConfig {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patch tokens of an image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// The settings of its blocks.
    pub fn block(&self) -> BlockConfig {
        BlockConfig {
            width: self.width,
            heads: Heads {
                query: self.heads,
                key_value: self.heads,
                dim: self.width / self.heads.max(1),
            },
            mlp_width: self.mlp_width,
            norm: self.norm,
            norm_epsilon: self.norm_epsilon,
            mlp: self.mlp,
            qkv_bias: self.qkv_bias,
            bias: self.bias,
            layer_scale: self.layer_scale,
            qk_norm: false,
            rope_theta: None,
            depth: self.depth,
        }
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        positive("vision.image_size", self.image_size)?;
        positive("vision.patch_size", self.patch_size)?;
        positive("vision.depth", self.depth)?;
        positive("vision.mlp_width", self.mlp_width)?;
        if self.patch_size > self.image_size {
            return Err(Error::setting(
                "vision.patch_size",
                format!("at most image_size, {}", self.image_size),
                self.patch_size,
            ));
        }
        head_dim("vision", self.width, self.heads)
    }
}

/// The text tower of contrastive warm start: causal, learned positions, pooled at the end token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Vocabulary V.
    pub vocabulary: usize,
    /// The most tokens of a caption.
    pub context: usize,
    /// Model width C.
    pub width: usize,
    /// Blocks L.
    pub depth: usize,
    /// Attention heads H.
    pub heads: usize,
    /// Feed-forward width F.
    pub mlp_width: usize,
    /// Kind of the feed-forward halves.
    #[serde(default = "gelu")]
    pub mlp: MlpKind,
    /// ε of all norms.
    #[serde(default = "classic_epsilon")]
    pub norm_epsilon: f32,
}

fn gelu() -> MlpKind {
    MlpKind::Gelu
}

fn classic_epsilon() -> f32 {
    1e-5
}

impl TextConfig {
    /// The settings of its blocks: LayerNorm and biases throughout.
    pub fn block(&self) -> BlockConfig {
        BlockConfig {
            width: self.width,
            heads: Heads {
                query: self.heads,
                key_value: self.heads,
                dim: self.width / self.heads.max(1),
            },
            mlp_width: self.mlp_width,
            norm: NormKind::Layer,
            norm_epsilon: self.norm_epsilon,
            mlp: self.mlp,
            qkv_bias: true,
            bias: true,
            layer_scale: None,
            qk_norm: false,
            rope_theta: None,
            depth: self.depth,
        }
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        positive("text.vocabulary", self.vocabulary)?;
        positive("text.context", self.context)?;
        positive("text.depth", self.depth)?;
        positive("text.mlp_width", self.mlp_width)?;
        head_dim("text", self.width, self.heads)
    }
}

/// The connector: pixel unshuffle, norm, and a two-layer perceptron into the language model's width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectorConfig {
    /// Neighbouring patches merged along each side.
    pub factor: usize,
}

/// A decoder in the Qwen2.5 form (`qkv_bias`) or the Qwen3 form (`qk_norm`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// Vocabulary V.
    pub vocabulary: usize,
    /// Model width D.
    pub width: usize,
    /// Blocks L.
    pub depth: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads Hk.
    pub key_value_heads: usize,
    /// Head dim; need not be width / heads.
    pub head_dim: usize,
    /// Feed-forward width F.
    pub mlp_width: usize,
    /// Base of the rotary positions.
    pub rope_theta: f32,
    /// ε of all norms.
    pub norm_epsilon: f32,
    /// Whether the query, key and value projection has a bias (Qwen2.5).
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Whether the output product uses the embedding table.
    pub tied: bool,
}

impl LanguageConfig {
    /// The settings of its blocks.
    pub fn block(&self) -> BlockConfig {
        BlockConfig {
            width: self.width,
            heads: Heads {
                query: self.heads,
                key_value: self.key_value_heads,
                dim: self.head_dim,
            },
            mlp_width: self.mlp_width,
            norm: NormKind::Rms,
            norm_epsilon: self.norm_epsilon,
            mlp: MlpKind::SwiGlu,
            qkv_bias: self.qkv_bias,
            bias: false,
            layer_scale: None,
            qk_norm: self.qk_norm,
            rope_theta: Some(self.rope_theta),
            depth: self.depth,
        }
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        positive("language.vocabulary", self.vocabulary)?;
        positive("language.width", self.width)?;
        positive("language.depth", self.depth)?;
        positive("language.mlp_width", self.mlp_width)?;
        positive("language.heads", self.heads)?;
        positive("language.key_value_heads", self.key_value_heads)?;
        if !self.heads.is_multiple_of(self.key_value_heads) {
            return Err(Error::setting(
                "language.key_value_heads",
                format!("a divisor of heads, {}", self.heads),
                self.key_value_heads,
            ));
        }
        positive("language.head_dim", self.head_dim)?;
        match self.head_dim.is_multiple_of(8) {
            true => Ok(()),
            false => Err(Error::setting(
                "language.head_dim",
                "a multiple of 8",
                self.head_dim,
            )),
        }
    }
}

/// The whole model of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The tower that is refined.
    pub vision: VisionConfig,
    /// The text tower of contrastive warm start, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// Between vision and language.
    pub connector: ConnectorConfig,
    /// The language model.
    pub language: LanguageConfig,
    /// Width E of the contrastive features.
    pub embedding: usize,
    /// What the `align` module contrasts.
    #[serde(default)]
    pub align: Alignment,
}

/// Where pictures and captions are contrasted in the stages of refinement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alignment {
    /// Mean image token against the language model's mean hidden state, each through a learned projection into E columns.
    #[default]
    Hidden,
    /// Mean direction of the image tokens against that of the caption's token embeddings, in the language model's input
    /// space. Nothing is learned in between, so image tokens themselves must come near the embeddings.
    Embeddings,
}

impl ModelConfig {
    /// Image tokens that the language model sees.
    pub fn image_tokens(&self) -> usize {
        self.vision.patches() / (self.connector.factor * self.connector.factor).max(1)
    }

    /// Refuses settings that cannot be, alone or together.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.vision.validate()?;
        self.language.validate()?;
        if let Some(text) = &self.text {
            text.validate()?;
        }
        positive("embedding", self.embedding)?;
        positive("connector.factor", self.connector.factor)?;
        if !self.vision.grid().is_multiple_of(self.connector.factor) {
            return Err(Error::setting(
                "connector.factor",
                format!("a divisor of the patch grid's side, {}", self.vision.grid()),
                self.connector.factor,
            ));
        }
        Ok(())
    }
}

/// Sizes beyond these are typing errors, and their products would not fit 64 bits.
const MOST: usize = 1 << 20;

fn positive(field: &str, value: usize) -> Result<()> {
    match value {
        0 => Err(Error::setting(field, "at least 1", 0)),
        1..=MOST => Ok(()),
        _ => Err(Error::setting(field, format!("at most {MOST}"), value)),
    }
}

/// Attention takes head dims that are multiples of 8.
fn head_dim(module: &str, width: usize, heads: usize) -> Result<()> {
    positive(&format!("{module}.heads"), heads)?;
    positive(&format!("{module}.width"), width)?;
    if !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(8) {
        return Err(Error::setting(
            format!("{module}.heads"),
            format!("a divisor of the width, {width}, that leaves head dims of a multiple of 8"),
            heads,
        ));
    }
    Ok(())
}
