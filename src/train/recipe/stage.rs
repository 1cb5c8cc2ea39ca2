//! A stage of a run: what it trains, on what, how long and at what rates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::validation::ValidationSettings;
use super::{DecayShape, Schedule};
use crate::worlds::TASKS;

use keel_data::batch::TokenWeighting;
use keel_data::task::Task;
use keel_data::tiles::Tiling;
use keel_emoji::tasks::{DENSE_CAPTIONS, FACTS, OCR, SHORT_CAPTIONS, VQA};
use keel_engine::ops::Contrastive;
use keel_model::{ContrastivePair, Distillation, DistillationLoss, Objectives, Regularisation};
use keel_panels::tasks::{PANELS_DENSE, PANELS_FACTS, PANELS_QUESTIONS, PANELS_SHORT};

/// What a stage is for. It decides what the contrastive loss compares and whether images are spliced into conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// Stands in for pre-trained weights: the vision tower against the text tower by contrastive loss, or the language model
    /// on text alone.
    WarmStart,
    /// A stage of refinement: images go through the connector into the language model (SAIL-VL2 report, §2.1.1).
    Refine,
    /// What users do next with the backbone, to measure it: a new connector and the language model on the refined tower.
    Target,
    /// The target stage over again from modules as they were earlier, which `restore` says: what the target comes to without
    /// refinement. Ablations, whose arms are controls of each other, leave it out.
    Control,
}

/// What a contrastive loss compares images with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastWith {
    /// Captions through the text tower, as in a contrastive pre-training.
    TextTower,
    /// Captions in the language model's space, as `model.align` says.
    LanguageModel,
}

/// One stage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its name in logs, checkpoints, tables and `--set stage.NAME.KEY=VALUE`.
    ///
    /// - Range: 1 to 64 letters, digits, `-` and `_`
    pub name: String,
    /// What the stage is for.
    pub kind: StageKind,
    /// The modules it trains: out of `vision`, `text`, `contrastive`, `connector`, `align`, `language`, `lora`, the adapters of
    /// tower and language model, and `distillation`, the projection into the width of the teacher. All others are frozen, bit for bit.
    ///
    /// - Range: at least one
    /// - Source: stage I `connector`, stage II `vision` too, stage III all (SAIL-VL2 report, arXiv 2509.14033, §2.1.1); `align`
    ///   belongs to this project's contrastive loss
    pub trains: Vec<String>,
    /// Parts of the modules in `trains` that stay frozen, by [pattern](controls.md#patterns): `vision.blocks.0-5`. They have
    /// neither gradients nor moments.
    ///
    /// - Range: each takes parameters of `trains`, and leaves some of every module
    /// - Source: LiT freezes a whole tower (Zhai et al. 2022); lower layers are frozen by `--lock-image-unlocked-groups` of OpenCLIP
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// The tasks it draws from, each with its weight in the mixture. Weights are relative: they need not add up to 1.
    ///
    /// - Range: at least one task, weights above 0
    pub data: BTreeMap<String, f64>,
    /// The share of the embedded training concepts, or of the scenes of panels, that the stage sees, chosen by the seed. Every
    /// smaller share is part of every larger one.
    ///
    /// - Range: above 0, at most 1
    #[serde(default = "one_f64")]
    pub data_share: f64,
    /// Weight of the next-token loss.
    ///
    /// - Range: 0 (off) to 10⁶
    /// - Source: 1, the loss of every published stage (SAIL-VL2 report, §2.1.1: instruction tuning)
    #[serde(default = "one_f32")]
    pub next_token_weight: f32,
    /// Weight λ of the contrastive loss. It or `next_token_weight` must be above 0.
    ///
    /// - Range: 0 (off) to 10⁶
    /// - Source: 0, as published; the built-in recipes' weights are this project's own
    #[serde(default)]
    pub contrastive_weight: f32,
    /// Weight of the loss by which features of the vision tower are held to those of the teacher, `[model.teacher]`: the remedy where
    /// training makes the tower forget. The teacher's forward pass is part of every step. Beside another loss alone.
    ///
    /// - Range: 0 (off) to 10⁶; above 0 in a stage that trains `vision` or its adapters, without `patch_dropout`
    /// - Source: method of FitNets (Romero et al. 2015)
    #[serde(default, skip_serializing_if = "is_zero_f32")]
    pub distillation_weight: f32,
    /// The form of that loss. Without it `cosine`. For a stage with `distillation_weight` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation_loss: Option<DistillationLoss>,
    /// What the contrastive loss compares images with. Without it, the text tower in a warm start, where nothing else can be,
    /// and the language model elsewhere. A stage of another kind with the text tower has no next-token loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast_with: Option<ContrastWith>,
    /// Length of the stage. Give either this or `epochs`.
    ///
    /// - Unit: optimiser steps
    /// - Range: 1 to 10¹²
    /// - Source: 4,167 and 71,289 for stages I and III, from 8 M and 36.5 M samples, one epoch each (SAIL-VL2 report, §2.1.1)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length of the stage, by its task with the most samples for its weight. Give either this or `steps`.
    ///
    /// - Unit: passes over the data
    /// - Range: above 0, at most 10⁶
    /// - Source: 1 in stages I and III (SAIL-VL2 report, §2.1.1)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Samples B of an optimiser step.
    ///
    /// - Unit: samples
    /// - Range: 1 to 2³¹ − 1
    /// - Source: 1920, 512 and 512 in stages I, II and III (SAIL-VL2 report, §2.1.1)
    pub batch_size: usize,
    /// Samples that are computed at once; their gradients are accumulated until the batch is complete. Without it the batch
    /// is computed at once. `--fit` chooses the largest that `--memory-limit` allows. The contrastive loss compares within a
    /// micro-batch.
    ///
    /// - Unit: samples
    /// - Range: a divisor of `batch_size`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Length T of a sequence, image tokens included. Shorter ones are padded; samples that do not fit are skipped and counted.
    ///
    /// - Unit: tokens
    /// - Range: at least the tokens of an image and 8
    /// - Source: 8192 (SAIL-VL2 report, table 3)
    pub max_tokens: usize,
    /// Samples that share a sequence, on average (packing): a step has `batch_size / samples_per_sequence` sequences. A token
    /// attends to its own sample alone. 1 gives every sample a sequence of its own.
    ///
    /// - Unit: samples
    /// - Range: a divisor of `micro_batch_size`; 1 in a stage without next-token loss
    /// - Source: SAIL-VL2 (report, stream packing) and InternVL 2.5 pack samples; how many on average is not published
    #[serde(default = "one_usize", skip_serializing_if = "is_one")]
    pub samples_per_sequence: usize,
    /// Most tiles that a user's image is cut into, beside a thumbnail of the complete image. 0 cuts no image.
    ///
    /// - Unit: tiles
    /// - Range: 0, or 2 to 64; 0 in a stage that puts no images into conversations
    /// - Source: dynamic resolution, up to 12 tiles in training (InternVL 1.5, Chen et al. 2024, §3.2)
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_tiles: usize,
    /// Tiles that a step has memory for, per sample on average. Images that come when most of it is taken are cut into fewer
    /// tiles. Without it, as many as `max_tiles`.
    ///
    /// - Unit: tiles per sample
    /// - Range: 1 to `max_tiles`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_budget: Option<usize>,
    /// Most images of one of the user's samples. Samples with more are skipped and counted; where a sample has several, none
    /// of them is cut into tiles.
    ///
    /// - Unit: images
    /// - Range: 1 to 64; 1 in a stage that puts no images into conversations
    #[serde(default = "one_usize", skip_serializing_if = "is_one")]
    pub max_images: usize,
    /// Length Tc of a caption on the text side of the contrastive loss. A user's longer one is cut there, as CLIP's tokenizer
    /// does, and counted; next-token loss learns it whole. In a warm start it must be the text tower's `context_length`.
    ///
    /// - Unit: tokens
    /// - Range: at least 4
    /// - Source: 77 in CLIP's published models (Radford et al. 2021), 64 in SigLIP's (Zhai et al. 2023)
    #[serde(default = "max_caption_tokens")]
    pub max_caption_tokens: usize,
    /// Peak learning rate, reached at the end of the warmup, of all parameters that `learning_rates` does not name.
    ///
    /// - Range: above 0, below 1
    /// - Source: 2·10⁻⁴, 2·10⁻⁵ and 10⁻⁵ in stages I, II and III (SAIL-VL2 report, §2.1.1)
    pub learning_rate: f64,
    /// Peak learning rates of their own, by [pattern](controls.md#patterns): `{ vision = 2e-6, connector = 2e-5 }`.
    ///
    /// - Range: above 0, below 1; each takes parameters that the stage trains, and none that another takes
    /// - Source: LLaVA-NeXT and LLaVA-OneVision train the tower at 2·10⁻⁶ beside 10⁻⁵ (their training scripts)
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub learning_rates: BTreeMap<String, f64>,
    /// Layer-wise decay of the learning rate, by module: block l of L, from 1, learns at `layer_decay`^(L + 1 − l) of the
    /// module's rate, what comes before the blocks as block 0, what comes after them at the rate itself.
    ///
    /// - Range: `vision`, `text` and `language`, above 0, at most 1
    /// - Source: Clark et al. 2020 (ELECTRA, §3.2); 0.65 and 0.75 in BEiT's fine-tuning (Bao et al. 2022), 0.9 in DINOv2's default configuration
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layer_decay: BTreeMap<String, f64>,
    /// Factor of the learning rate of `vision.patch_embed`, beside `layer_decay`.
    ///
    /// - Range: above 0, at most 1
    /// - Source: 0.2 in DINOv2's default configuration (`patch_embed_lr_mult`)
    #[serde(default = "one_f64", skip_serializing_if = "is_one_f64")]
    pub patch_embed_factor: f64,
    /// Fraction of the steps over which the learning rate rises linearly from zero.
    ///
    /// - Range: 0 to 1
    /// - Source: 0.03 (InternVL 2.5, training script of stage 2); not published for SAILViT
    #[serde(default = "warmup_ratio")]
    pub warmup_ratio: f64,
    /// What the learning rate does after the warmup.
    ///
    /// - Source: cosine in all stages (InternVL 2.5, training scripts); not published for SAILViT
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// The fraction of the peak learning rate that the schedule falls to.
    ///
    /// - Range: 0 to 1; 0 with a constant schedule
    /// - Source: 0.1 in LLaMA (Touvron et al. 2023, §2.3)
    #[serde(default, skip_serializing_if = "is_zero_f64")]
    pub min_learning_rate_ratio: f64,
    /// Fraction of the steps over which the learning rate falls at the end. Without it 0.1. For `warmup_stable_decay` alone.
    ///
    /// - Range: above 0, at most 1 − `warmup_ratio`
    /// - Source: 0.1 (Hu et al. 2024, MiniCPM, §4), 0.2 (Hägele et al. 2024, §3)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_ratio: Option<f64>,
    /// The form of that fall. Without it `linear`. For `warmup_stable_decay` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_shape: Option<DecayShape>,
    /// Decoupled weight decay of AdamW, on matrices only: vectors and scalars do not decay.
    ///
    /// - Range: at least 0, below 1
    /// - Source: method of Loshchilov and Hutter 2019; 0.01, 0.05 and 0.01 in stages 1, 1.5 and 2 of InternVL 2.5 (training scripts)
    #[serde(default)]
    pub weight_decay: f64,
    /// Weight decays of their own, by [pattern](controls.md#patterns): `{ vision = 0.05, "language.blocks" = 0.1 }`. Of what a
    /// pattern takes, matrices decay; where there are none, as with `language.embedding`, all of it does.
    ///
    /// - Range: at least 0, below 1; each takes parameters that the stage trains, and none that another takes
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weight_decays: BTreeMap<String, f64>,
    /// Parts of what the stage trains, by [pattern](controls.md#patterns), whose matrices Muon updates: `["vision.blocks",
    /// "language.blocks"]`. Everything else is AdamW's. Both go by the same learning rates and weight decays: a step of Muon is scaled to
    /// the size of AdamW's.
    ///
    /// - Range: each takes matrices that the stage trains
    /// - Source: Jordan et al. 2024; the scale is that of Moonlight (Liu et al. 2025, arXiv 2502.16982, §2.2)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub muon: Vec<String>,
    /// Momentum μ of Muon, in Nesterov's form. Without it 0.95. For a stage with `muon` alone.
    ///
    /// - Range: at least 0, below 1
    /// - Source: 0.95 (Jordan et al. 2024)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon_momentum: Option<f64>,
    /// β₁ and β₂ of AdamW.
    ///
    /// - Range: at least 0, below 1
    /// - Source: 0.9 and 0.999 (Kingma and Ba 2015, algorithm 1); CLIP trains its ViTs with β₂ = 0.98 (Radford et al. 2021, table 18)
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// ε of AdamW, added to √v.
    ///
    /// - Range: 1.2·10⁻³⁸ to below 1
    /// - Source: 10⁻⁸ (Kingma and Ba 2015, algorithm 1)
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Decay d of an exponential moving average (EMA) of what the stage trains: e ← e + (1 − d)(p − e) after every step, from the
    /// parameters that the stage begins with. `keel eval --ema` and `keel export --ema` take the averages; training goes on from
    /// the parameters. Without it none is kept.
    ///
    /// - Range: above 0, below 1
    /// - Source: Polyak and Juditsky 1992; 0.9999 in DeiT (Touvron et al. 2021) and ConvNeXt (Liu et al. 2022), over some 10⁵ steps
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Norm of all gradients together above which they are scaled down to it (gradient clipping).
    ///
    /// - Range: 0 (off) to 10³⁰
    /// - Source: method of Pascanu et al. 2013; 1 is the default of the trainer that InternVL's scripts use
    #[serde(default = "one_f64")]
    pub max_grad_norm: f64,
    /// Most questions about one scene, in one conversation. As many are asked as fit into `max_tokens`.
    ///
    /// - Unit: questions
    /// - Range: 1 to 64
    #[serde(default = "one_usize")]
    pub max_turns: usize,
    /// The weight of each supervised token in the next-token loss.
    ///
    /// - Source: `square` (InternVL 2.5, training scripts); not published for SAILViT
    #[serde(default = "square")]
    pub token_weighting: TokenWeighting,
    /// Strength of the augmentation of images: shift, scale, rotation, mirroring and colour; of panels shift, background and
    /// noise. 0 shows them as they are.
    ///
    /// - Range: 0 to 1
    #[serde(default = "one_f32")]
    pub augmentation: f32,
    /// Share of images for which the residual branches of the vision tower's last block are dropped while it is trained
    /// (stochastic depth, drop path); it rises linearly from 0 in the first block. What stays is scaled up, so that the expected
    /// output is that without. Without it the rate that the tower of `--vision` was trained with, where its folder tells one, and else 0.
    ///
    /// - Range: 0 to below 1; above 0 in a stage that trains `vision`
    /// - Source: method of Huang et al. 2016; 0.1 in InternVL 2's settings of InternViT (`drop_path_rate`)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_path_rate: Option<f64>,
    /// Share of patches that is left out of every image while the tower is trained; the others are contrasted. Costs are those of
    /// the patches that stay.
    ///
    /// - Range: 0 to below 1; above 0 in a warm start that trains `vision` by contrastive loss: a connector needs all patches
    /// - Source: method of Li et al. 2023 (FLIP), who leave out 0.5 and 0.75
    #[serde(default, skip_serializing_if = "is_zero_f64")]
    pub patch_dropout: f64,
    /// Modules that start this stage from new initial parameters, as the connector does where a backbone is put to a new use.
    ///
    /// - Source: SAIL-VL2's basic pre-training starts from a randomly initialised connector (report, arXiv 2509.14033)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reinitialize: Vec<String>,
    /// Modules that start this stage as they were earlier in the run, each with the name of the stage that left them so, or `initial`
    /// for what the run began with: `{ vision = "warm-start-vision" }`. Published weights take the place of a warm start that they stand
    /// in for.
    ///
    /// - Range: stages before this one; no module that `reinitialize` names
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restore: BTreeMap<String, String>,
    /// The target stage that a stage of kind `control` is held against: the same settings and the same draws, but other modules
    /// at its start. The run ends with the difference of the two, question by question.
    ///
    /// - Range: a stage of kind `target` with the same settings in everything but `restore`; for a control alone
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_of: Option<String>,
    /// How the stage is validated on held-out samples, which `keel train --validate` gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSettings>,
}

fn is_one(count: &usize) -> bool {
    *count == 1
}
fn is_zero(count: &usize) -> bool {
    *count == 0
}
fn is_one_f64(number: &f64) -> bool {
    *number == 1.0
}
fn is_zero_f32(number: &f32) -> bool {
    *number == 0.0
}
fn is_zero_f64(number: &f64) -> bool {
    *number == 0.0
}
fn one_usize() -> usize {
    1
}
fn one_f32() -> f32 {
    1.0
}
fn one_f64() -> f64 {
    1.0
}
fn max_caption_tokens() -> usize {
    32
}
fn warmup_ratio() -> f64 {
    0.03
}
fn cosine() -> Schedule {
    Schedule::Cosine
}
fn betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn epsilon() -> f64 {
    1e-8
}
fn square() -> TokenWeighting {
    TokenWeighting::Square
}

/// Tasks in the order in which a round of the mixture gives them places. It decides which sample a step sees where, so it
/// stays as it is whatever tasks are called.
const ORDER_IN_MIXTURE: [Task; TASKS.len()] = [
    DENSE_CAPTIONS,
    FACTS,
    Task::SAMPLES,
    OCR,
    VQA,
    SHORT_CAPTIONS,
    PANELS_DENSE,
    PANELS_FACTS,
    PANELS_QUESTIONS,
    PANELS_SHORT,
];

impl Stage {
    /// What the stage minimises.
    pub fn objectives(&self, kind: Contrastive) -> Objectives {
        let has_text_tower = self.contrasts_with_text_tower();
        Objectives {
            next_token: self.next_token_weight,
            splices_images: !has_text_tower,
            contrastive: self.contrastive_weight,
            kind,
            pair: if has_text_tower {
                ContrastivePair::TextTower
            } else {
                ContrastivePair::LanguageModel
            },
            holds_text_alone: self.holds_text_alone(),
            regularisation: self.regularisation(),
            distillation: Distillation {
                weight: self.distillation_weight,
                loss: self.distillation_loss.unwrap_or_default(),
            },
        }
    }

    /// What the stage leaves out of the vision tower at random; nothing where it does not train the tower.
    pub fn regularisation(&self) -> Regularisation {
        if !self.trains("vision") {
            return Regularisation::default();
        }
        Regularisation {
            drop_path_rate: self.drop_path_rate.unwrap_or_default(),
            patch_dropout: self.patch_dropout,
        }
    }

    /// Whether images are contrasted with the text tower and not with the language model. Such a stage puts no images into
    /// conversations.
    pub fn contrasts_with_text_tower(&self) -> bool {
        let by_kind = match self.kind {
            StageKind::WarmStart => ContrastWith::TextTower,
            StageKind::Refine | StageKind::Target | StageKind::Control => {
                ContrastWith::LanguageModel
            }
        };
        self.contrast_with.unwrap_or(by_kind) == ContrastWith::TextTower
    }

    /// Whether some of its samples may have no image: those of a task of text, and a user's pairs.
    pub fn holds_text_alone(&self) -> bool {
        let mut tasks = self.tasks().into_iter();
        tasks.any(|(task, _)| !task.has_images || task == Task::SAMPLES)
    }

    /// The tasks with their weights, in the order in which the mixture takes them.
    pub fn tasks(&self) -> Vec<(Task, f64)> {
        let weighted = |task: Task| Some((task, *self.data.get(task.name)?));
        ORDER_IN_MIXTURE.into_iter().filter_map(weighted).collect()
    }

    /// Samples that are computed at once.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch_size.unwrap_or(self.batch_size)
    }

    /// Into how many tiles the images of `batch` samples are cut, with room for the images of those that show several.
    pub fn tiling(&self, batch: usize) -> Tiling {
        let tiles = self.tile_budget.unwrap_or(self.max_tiles);
        // One image alone needs no slots: it has the batch's own row.
        let several = if self.max_images > 1 {
            self.max_images
        } else {
            0
        };
        Tiling {
            most: self.max_tiles,
            slots: batch * tiles.max(several),
        }
    }

    /// Runs of a step, each with [`Stage::micro_batch`] samples.
    pub fn micro_batches(&self) -> usize {
        self.batch_size / self.micro_batch()
    }

    /// What stands for the stage in every draw that it makes: a hash of its name, which no other stage of a recipe has. Stages
    /// before it change none of its draws, so that runs that differ only in these can be compared draw by draw. A control has
    /// the draws of its target.
    pub fn number(&self) -> u64 {
        let name = self.control_of.as_ref().unwrap_or(&self.name);
        let hash = blake3::hash(name.as_bytes());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"))
    }
}

/// What `restore` calls the values that a run began with.
pub const INITIAL: &str = "initial";

/// The modules that a stage can train.
pub const MODULES: &[&str] = &[
    "vision",
    "text",
    "contrastive",
    "connector",
    "align",
    "language",
    "lora",
    "distillation",
];
