//! The settings that define each model. Field names are those of recipes and checkpoints.

use serde::{Deserialize, Serialize};

use super::block::{BlockConfig, MlpKind, NormKind, QkNorm};
use super::lora::LoraConfig;
use keel_base::error::{Error, Result};
use keel_engine::ops::Heads;

/// A vision tower: the AIMv2 form, which SAILViT has, or the classic one of CLIP, SigLIP, DINO, ViT and InternViT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Height and width of the images.
    ///
    /// - Unit: pixels
    /// - Range: 1 to 2²⁰, a patch grid whose side `model.connector.unshuffle_factor` divides
    /// - Source: 448 (SAILViT, AIMv2, InternViT), 224 (CLIP), 384 (SigLIP so400m)
    pub image_size: usize,
    /// Height and width of a patch, P.
    ///
    /// - Unit: pixels
    /// - Range: 1 to `image_size`
    /// - Source: 14 (every published preset)
    pub patch_size: usize,
    /// Model width C.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 1024 and 1536 (SAILViT-Large and -Huge, as AIMv2; Fini et al. 2024)
    pub width: usize,
    /// Blocks L.
    ///
    /// - Unit: blocks
    /// - Range: 1 to 1024
    /// - Source: 24 (AIMv2, CLIP ViT-L, InternViT-300M), 27 (SigLIP so400m)
    pub depth: usize,
    /// Attention heads H; the head dim is C / H.
    ///
    /// - Unit: heads
    /// - Range: a divisor of `width` that leaves a head dim that is a multiple of 8
    /// - Source: 8 and 12 (AIMv2-Large and -Huge, head dim 128), 16 (CLIP ViT-L, head dim 64)
    pub heads: usize,
    /// Feed-forward width F.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 2816 and 4096 (AIMv2-Large and -Huge, with SwiGLU), 4 × `width` (ViT; Dosovitskiy et al. 2021)
    pub mlp_width: usize,
    /// The kind of all norms.
    pub norm: NormKind,
    /// ε of all norms.
    ///
    /// - Range: above 0
    /// - Source: 10⁻⁵ (AIMv2, CLIP), 10⁻⁶ (SigLIP, InternViT, DINOv2)
    pub norm_epsilon: f32,
    /// The kind of the feed-forward halves of the blocks.
    pub mlp: MlpKind,
    /// Whether the patch embedding has a bias. CLIP's has none.
    pub patch_bias: bool,
    /// Whether patches are normalised before position embeddings are added, as in AIMv2.
    pub patch_norm: bool,
    /// Whether a class token precedes the patches, as in CLIP, InternViT and DINOv2.
    pub class_token: bool,
    /// Whether a norm precedes the first block, as in CLIP.
    pub pre_norm: bool,
    /// Whether a norm follows the last block. InternViT has none.
    pub final_norm: bool,
    /// Whether the query, key and value projections have a bias. AIMv2's have none.
    pub qkv_bias: bool,
    /// Whether the other projections of the blocks have a bias. AIMv2's have none.
    pub bias: bool,
    /// Initial value of a learned scale for every channel of every residual branch. Without it there are no such scales.
    ///
    /// - Range: finite
    /// - Source: LayerScale (Touvron et al. 2021); 0.1 (InternViT-300M)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<f32>,
    /// Learned tokens that no patch gives, behind the class token: registers, or the distillation token of DeiT.
    ///
    /// - Unit: tokens
    /// - Range: 0 to 2²⁰
    /// - Source: 4 (Darcet et al. 2024; DINOv3), 1 (DeiT; Touvron et al. 2021)
    #[serde(default, skip_serializing_if = "is_zero")]
    pub registers: usize,
    /// Which tokens have a learned position, added before the first block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub learned_positions: LearnedPositions,
    /// Base θ of rotary positions over the rows and columns of patches, from the centre of the image. Without it, queries and keys
    /// are not turned.
    ///
    /// - Range: above 0
    /// - Source: 100 (DINOv3; Siméoni et al. 2025, §3.2)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f32>,
    /// Whether keys have a bias where queries and values have one. DINOv3's have none.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub key_bias: bool,
    /// Whether queries and keys are normalised before they meet, each by an RMSNorm over all its heads at once.
    ///
    /// - Source: InternViT-6B (Chen et al. 2024)
    #[serde(default, skip_serializing_if = "is_default")]
    pub qk_norm: bool,
    /// Low-rank adapters of its linear modules. Without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
}

/// The tokens of a vision tower that have a learned position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedPositions {
    /// The patches and the class token.
    #[default]
    ClassTokenAndPatches,
    /// All tokens, registers among them, as in DeiT with distillation.
    AllTokens,
    /// The patches alone.
    Patches,
    /// None, as in DINOv3, where rotary positions stand in for them.
    None,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

fn is_yes(switch: &bool) -> bool {
    *switch
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

    /// The tokens before the patches: the class token and the registers.
    pub fn prefix_tokens(&self) -> usize {
        usize::from(self.class_token) + self.registers
    }

    /// The tokens of an image, those before the patches among them.
    pub fn tokens(&self) -> usize {
        self.prefix_tokens() + self.patches()
    }

    /// The tokens that have a learned position.
    pub fn positions(&self) -> usize {
        match self.learned_positions {
            LearnedPositions::ClassTokenAndPatches => {
                usize::from(self.class_token) + self.patches()
            }
            LearnedPositions::AllTokens => self.tokens(),
            LearnedPositions::Patches => self.patches(),
            LearnedPositions::None => 0,
        }
    }

    /// The factors of a connector that go with its grid, smallest first.
    ///
    /// - Unit: patches along one side of what becomes one image token
    pub fn unshuffle_factors(&self) -> Vec<usize> {
        let grid = self.grid();
        (1..=grid)
            .filter(|factor| grid.is_multiple_of(*factor))
            .collect()
    }

    /// The image sizes next to its own whose grids go with a connector's `factor`, in pixels.
    pub fn sizes_for(&self, factor: usize) -> Vec<usize> {
        let step = self.patch_size.saturating_mul(factor);
        let below = self.image_size / step * step;
        let above = (below < self.image_size).then_some(below.saturating_add(step));
        let sizes = [Some(below), above].into_iter().flatten();
        sizes.filter(|size| (1..=MOST).contains(size)).collect()
    }

    /// What goes where `factor` does not: other factors, and other image sizes.
    fn other_than(&self, factor: usize) -> String {
        let words = |numbers: &[usize]| {
            let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
            words.join(" or ")
        };
        let divisors = words(&self.unshuffle_factors());
        let sizes = match &self.sizes_for(factor)[..] {
            [] => String::new(),
            sizes => format!(", or images of {} pixels", words(sizes)),
        };
        format!(
            "a divisor of the patch grid's side, {} ({divisors}){sizes}",
            self.grid()
        )
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
            key_bias: self.key_bias,
            bias: self.bias,
            layer_scale: self.layer_scale,
            qk_norm: self.qk_norm.then_some(QkNorm::AllHeads),
            rope_theta: self.rope_theta,
            depth: self.depth,
            lora: self.lora.clone(),
        }
    }

    /// The same tower without adapters: what folders hold, and what settings of published towers are compared as.
    pub fn without_lora(&self) -> VisionConfig {
        VisionConfig {
            lora: None,
            ..self.clone()
        }
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        positive("vision.image_size", self.image_size)?;
        positive("vision.patch_size", self.patch_size)?;
        at_most("vision.depth", self.depth, MOST_BLOCKS)?;
        positive("vision.mlp_width", self.mlp_width)?;
        if self.patch_size > self.image_size {
            return Err(Error::setting(
                "vision.patch_size",
                format!("at most image_size, {}", self.image_size),
                self.patch_size,
            ));
        }
        positive_number("vision.norm_epsilon", self.norm_epsilon)?;
        if let Some(scale) = self.layer_scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::setting("vision.layer_scale", "finite", scale));
        }
        if self.registers > MOST {
            let want = format!("at most {MOST}");
            return Err(Error::setting("vision.registers", want, self.registers));
        }
        if let Some(theta) = self.rope_theta {
            positive_number("vision.rope_theta", theta)?;
        }
        if let Some(lora) = &self.lora {
            lora.validate("vision")?;
        }
        head_dim("vision", self.width, self.heads)
    }
}

/// The text tower of the contrastive warm start: causal, learned position embeddings, pooled at the end token (as CLIP's).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Vocabulary V.
    ///
    /// - Unit: tokens
    /// - Range: what the tokenizer makes, 512 for the embedded one, to 2²⁰
    /// - Source: 49408 (CLIP)
    pub vocabulary: usize,
    /// Length of a caption: the number of position embeddings.
    ///
    /// - Unit: tokens
    /// - Range: 1 to 2²⁰
    /// - Source: 77 (CLIP), 64 (SigLIP)
    pub context_length: usize,
    /// Model width C.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 768 (CLIP ViT-L/14; Radford et al. 2021, table 20)
    pub width: usize,
    /// Blocks L.
    ///
    /// - Unit: blocks
    /// - Range: 1 to 1024
    /// - Source: 12 (CLIP ViT-L/14; Radford et al. 2021, table 20)
    pub depth: usize,
    /// Attention heads H; the head dim is C / H.
    ///
    /// - Unit: heads
    /// - Range: a divisor of `width` that leaves a head dim that is a multiple of 8
    /// - Source: 12 (CLIP ViT-L/14; Radford et al. 2021, table 20)
    pub heads: usize,
    /// Feed-forward width F.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 4 × `width` (CLIP)
    pub mlp_width: usize,
    /// The kind of the feed-forward halves of the blocks.
    #[serde(default = "gelu")]
    pub mlp: MlpKind,
    /// ε of all norms.
    ///
    /// - Range: above 0
    /// - Source: 10⁻⁵ (CLIP)
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
            key_bias: true,
            bias: true,
            layer_scale: None,
            qk_norm: None,
            rope_theta: None,
            depth: self.depth,
            lora: None,
        }
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        positive("text.vocabulary", self.vocabulary)?;
        positive("text.context_length", self.context_length)?;
        at_most("text.depth", self.depth, MOST_BLOCKS)?;
        positive("text.mlp_width", self.mlp_width)?;
        positive_number("text.norm_epsilon", self.norm_epsilon)?;
        head_dim("text", self.width, self.heads)
    }
}

/// The connector: pixel unshuffle, LayerNorm, and a two-layer MLP into the language model's width (as InternVL's and
/// SAIL-VL2's), or that MLP alone (LLaVA 1.5's).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectorConfig {
    /// Neighbouring patches that become one image token, along each side.
    ///
    /// - Unit: patches
    /// - Range: a divisor of the side of the patch grid
    /// - Source: 2, so that a 448-pixel image has 256 tokens (InternVL 1.5, Chen et al. 2024, §3.1; SAIL-VL2)
    pub unshuffle_factor: usize,
    /// The layer of the vision tower whose features it takes: −1 for the tower's output, its final norm included; −2 for the output of
    /// the block before the last, without that norm, and so on. Blocks behind it are neither computed nor trained in stages that go
    /// through the connector.
    ///
    /// - Range: −1 to minus `model.vision.depth`
    /// - Source: −2 (LLaVA 1.5, `vision_feature_layer`), −1 (InternVL, `select_layer`)
    #[serde(default = "output_layer", skip_serializing_if = "is_output_layer")]
    pub select_layer: i64,
    /// Whether a LayerNorm stands before its two products. LLaVA's has none.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub norm: bool,
}

/// The layer that is a tower's output.
pub const OUTPUT_LAYER: i64 = -1;

fn output_layer() -> i64 {
    -1
}

fn is_output_layer(layer: &i64) -> bool {
    *layer == OUTPUT_LAYER
}

/// A decoder in the Qwen2.5 form (`qkv_bias`) or the Qwen3 form (`qk_norm`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// Vocabulary V.
    ///
    /// - Unit: tokens
    /// - Range: what the tokenizer makes, 512 for the embedded one, to 2²⁰
    /// - Source: 151936 (Qwen2.5, Qwen3), 152064 (Qwen2.5-7B)
    pub vocabulary: usize,
    /// Model width D.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 1536 (Qwen2.5-1.5B), 2048 (Qwen3-1.7B)
    pub width: usize,
    /// Blocks L.
    ///
    /// - Unit: blocks
    /// - Range: 1 to 1024
    /// - Source: 28 (Qwen2.5-1.5B, Qwen3-1.7B)
    pub depth: usize,
    /// Query heads H.
    ///
    /// - Unit: heads
    /// - Range: 1 to 2²⁰
    /// - Source: 12 (Qwen2.5-1.5B), 16 (Qwen3-1.7B)
    pub heads: usize,
    /// Key and value heads Hk of grouped-query attention.
    ///
    /// - Unit: heads
    /// - Range: a divisor of `heads`
    /// - Source: 2 (Qwen2.5-1.5B), 8 (Qwen3-1.7B)
    pub key_value_heads: usize,
    /// Head dim. It need not be `width` / `heads`.
    ///
    /// - Unit: channels
    /// - Range: a multiple of 8
    /// - Source: 128 (Qwen2.5-1.5B, Qwen3-1.7B)
    pub head_dim: usize,
    /// Feed-forward width F.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 8960 (Qwen2.5-1.5B), 6144 (Qwen3-1.7B)
    pub mlp_width: usize,
    /// Base θ of the rotary position embedding.
    ///
    /// - Range: above 0
    /// - Source: 10⁶ (Qwen2.5, Qwen3); 10⁴ (Su et al. 2021)
    pub rope_theta: f32,
    /// ε of all norms.
    ///
    /// - Range: above 0
    /// - Source: 10⁻⁶ (Qwen2.5, Qwen3)
    pub norm_epsilon: f32,
    /// Whether the query, key and value projections have a bias, as in Qwen2.5.
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised per head, as in Qwen3.
    pub qk_norm: bool,
    /// Whether the output projection is the embedding table, as in the small Qwen2.5 and Qwen3 models.
    pub tied_embeddings: bool,
    /// Low-rank adapters of its linear modules. Without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
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
            key_bias: true,
            bias: false,
            layer_scale: None,
            qk_norm: self.qk_norm.then_some(QkNorm::EachHead),
            rope_theta: Some(self.rope_theta),
            depth: self.depth,
            lora: self.lora.clone(),
        }
    }

    /// The same decoder without adapters: what folders hold, and what settings of published decoders are compared as.
    pub fn without_lora(&self) -> LanguageConfig {
        LanguageConfig {
            lora: None,
            ..self.clone()
        }
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        positive("language.vocabulary", self.vocabulary)?;
        positive("language.width", self.width)?;
        at_most("language.depth", self.depth, MOST_BLOCKS)?;
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
        positive_number("language.rope_theta", self.rope_theta)?;
        positive_number("language.norm_epsilon", self.norm_epsilon)?;
        if let Some(lora) = &self.lora {
            lora.validate("language")?;
        }
        positive("language.head_dim", self.head_dim)?;
        if !self.head_dim.is_multiple_of(8) {
            return Err(Error::setting(
                "language.head_dim",
                "a multiple of 8",
                self.head_dim,
            ));
        }
        Ok(())
    }
}

/// The model of a run: four sub-models and how two of them are contrasted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The vision tower, which is refined.
    pub vision: VisionConfig,
    /// The text tower of the contrastive warm start. Needed by a stage of kind `warm_start` with a contrastive loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// Between the vision tower and the language model.
    pub connector: ConnectorConfig,
    /// The language model.
    pub language: LanguageConfig,
    /// The teacher whose features a stage with `distillation_weight` holds the vision tower's to. An empty table makes it a frozen copy
    /// of the tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
    /// Width E of the contrastive features.
    ///
    /// - Unit: channels
    /// - Range: 1 to 2²⁰
    /// - Source: 768 (CLIP ViT-L/14; Radford et al. 2021, table 20)
    pub embed_dim: usize,
    /// Where the `align` module contrasts images with captions, in stages that go through the connector.
    #[serde(default)]
    pub align: Alignment,
}

/// The teacher of feature distillation: a vision tower that no stage trains.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// The settings of another tower, for the same images in the same patches. Without it the teacher is the vision tower as the first
    /// stage that distills found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tower: Option<VisionConfig>,
}

/// Where images and captions are contrasted in stages that go through the connector.
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
        self.vision.patches()
            / (self.connector.unshuffle_factor * self.connector.unshuffle_factor).max(1)
    }

    /// The settings of the teacher's tower, where there is one.
    pub fn teacher_tower(&self) -> Option<VisionConfig> {
        let teacher = self.teacher.as_ref()?;
        let copy = || self.vision.without_lora();
        Some(teacher.tower.clone().unwrap_or_else(copy))
    }

    /// Whether features of the tower have to be projected into the teacher's width.
    pub fn projects_features(&self) -> bool {
        let teacher = self.teacher_tower();
        teacher.is_some_and(|teacher| teacher.width != self.vision.width)
    }

    /// Refuses a teacher whose features are not of the same patches of the same images.
    fn validate_teacher(&self) -> Result<()> {
        let Some(tower) = self
            .teacher
            .as_ref()
            .and_then(|teacher| teacher.tower.as_ref())
        else {
            return Ok(());
        };
        tower.validate().map_err(|problem| match problem {
            Error::Setting { what, want, found } => {
                Error::setting(what.replacen("vision", "teacher.tower", 1), want, found)
            }
            other => other,
        })?;
        let (own, of_tower) = (
            [self.vision.image_size, self.vision.patch_size],
            [tower.image_size, tower.patch_size],
        );
        if own != of_tower {
            let words = |[side, patch]: [usize; 2]| format!("{side} pixels in patches of {patch}");
            let want = format!("a tower for the vision tower's images, {}", words(own));
            return Err(Error::setting("teacher.tower", want, words(of_tower)));
        }
        match &tower.lora {
            None => Ok(()),
            Some(_) => Err(Error::setting(
                "teacher.tower.lora",
                "none: nothing of it is trained",
                "adapters",
            )),
        }
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
        self.validate_teacher()?;
        positive("embed_dim", self.embed_dim)?;
        positive(
            "connector.unshuffle_factor",
            self.connector.unshuffle_factor,
        )?;
        if !self
            .vision
            .grid()
            .is_multiple_of(self.connector.unshuffle_factor)
        {
            return Err(Error::setting(
                "connector.unshuffle_factor",
                self.vision.other_than(self.connector.unshuffle_factor),
                self.connector.unshuffle_factor,
            ));
        }
        let (layer, depth) = (self.connector.select_layer, self.vision.depth as i64);
        if !(-depth..=OUTPUT_LAYER).contains(&layer) {
            let want =
                format!("{OUTPUT_LAYER} for the tower's output, to -{depth} for its first block");
            return Err(Error::setting("connector.select_layer", want, layer));
        }
        Ok(())
    }
}

/// Sizes beyond these are typing errors, and their products would not fit 64 bits.
const MOST: usize = 1 << 20;

/// Deeper towers than any that is published, by far. Every block is recorded and planned, so a slip of the finger here would
/// take minutes to be refused for its memory.
const MOST_BLOCKS: usize = 1024;

fn positive(field: &str, value: usize) -> Result<()> {
    at_most(field, value, MOST)
}

fn at_most(field: &str, value: usize, most: usize) -> Result<()> {
    match value {
        0 => Err(Error::setting(field, "at least 1", 0)),
        _ if value <= most => Ok(()),
        _ => Err(Error::setting(field, format!("at most {most}"), value)),
    }
}

/// A base or an ε that is not above 0 would make every value of the tower NaN.
fn positive_number(field: &str, value: f32) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::setting(field, "above 0", value))
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
