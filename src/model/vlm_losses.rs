//! The losses of a vision-language model: what one training step and one evaluation pass record.

use super::connector::connector;
use super::conversation::{record_conversation, whole_images};
use super::distillation::distill;
use super::inputs::ModelInput;
use super::language::{embed_tokens, language_head, language_step, language_trunk};
use super::text::text_tower;
use super::vision::{TowerFeatures, patch_tokens, vision_layers};
use super::{Alignment, Distillation, ModelConfig, Regularisation, Scope};
use keel_base::error::{Error, Result};
use keel_data::batch::BatchShape;
use keel_engine::ops::{self, Contrastive, ContrastiveMask, RankPairs};
use keel_engine::tape::{Init, Tape, Value};
use keel_engine::tensor::TensorType;

/// First value of the log of the contrastive scale: ln(1 / 0.07) for InfoNCE (Radford et al. 2021), ln 10 with a bias
/// of −10 for the sigmoid form (Zhai et al. 2023).
fn first_log_scale(kind: Contrastive) -> f32 {
    match kind {
        Contrastive::InfoNce => (1.0f32 / 0.07).ln(),
        Contrastive::Sigmoid => 10.0f32.ln(),
    }
}

/// Which text feature an image is contrasted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContrastivePair {
    /// The text tower, through `contrastive.*` projections: warm start.
    TextTower,
    /// The language model, as [`Alignment`] says: the stages of refinement.
    LanguageModel,
}

/// What a stage minimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objectives {
    /// Weight of the next-token loss; 0 records none.
    pub next_token: f32,
    /// Whether the conversation holds image tokens.
    pub splices_images: bool,
    /// Weight of the contrastive loss, λ; 0 records none.
    pub contrastive: f32,
    /// Its form.
    pub kind: Contrastive,
    /// Its text side.
    pub pair: ContrastivePair,
    /// Whether a batch may hold samples without an image, which have no part in the contrastive loss.
    pub holds_text_alone: bool,
    /// What is left out of the vision tower at random.
    pub regularisation: Regularisation,
    /// How the tower's features are held to the teacher's.
    pub distillation: Distillation,
}

/// Pooled and projected features of both sides.
struct Pooled {
    image: Value,
    text: Value,
}

/// The losses of one batch `[1]`, as far as there are any, each with its weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// The next-token loss.
    pub next_token: Option<(Value, f32)>,
    /// The contrastive loss; over several ranks this one's part of it.
    pub contrastive: Option<(Value, f32)>,
    /// The loss of distillation.
    pub distillation: Option<(Value, f32)>,
}

/// Records the losses of one batch and returns their weighted sum `[1]`.
///
/// Inputs: those of [`ModelInput`] that the objectives need. Outputs: `loss`, `loss.next_token`, `loss.contrastive`, `loss.distillation`.
///
/// # Errors
/// [`Error::Setting`] when both weights are zero or a tower that the objectives need is missing.
pub fn record_objectives(
    tape: &mut Tape,
    config: &ModelConfig,
    objectives: &Objectives,
    shape: &BatchShape,
) -> Result<Value> {
    let losses = record_losses(tape, config, objectives, shape)?;
    let terms: Vec<(Value, f32)> = [losses.next_token, losses.contrastive, losses.distillation]
        .into_iter()
        .flatten()
        .collect();
    let loss = ops::weighted_sum(tape, &terms)?;
    tape.output(loss, "loss");
    Ok(loss)
}

/// Records the losses of one batch. On a tape over several ranks the contrastive one is over the pairs of all of them.
///
/// Inputs: those of [`ModelInput`] that the objectives need. Outputs: `loss.next_token`, `loss.contrastive`, `loss.distillation`.
///
/// # Errors
/// As [`record_objectives`].
pub fn record_losses(
    tape: &mut Tape,
    config: &ModelConfig,
    objectives: &Objectives,
    shape: &BatchShape,
) -> Result<Losses> {
    let mut losses = Losses::default();
    let distills = objectives.distillation.weight != 0.0;
    let needs_images = objectives.contrastive != 0.0 || objectives.splices_images || distills;
    let features = if needs_images {
        let images = images_input(tape, config, shape);
        let regularisation = &objectives.regularisation;
        let features = vision_layers(tape, &config.vision, images, regularisation)?;
        if distills {
            let Distillation { weight, loss } = objectives.distillation;
            let loss = distill(tape, config, images, &features, loss)?;
            tape.output(loss, "loss.distillation");
            losses.distillation = Some((loss, weight));
        }
        Some(features)
    } else {
        None
    };
    let through_connector = objectives.splices_images
        || (objectives.contrastive != 0.0 && objectives.pair == ContrastivePair::LanguageModel);
    let selected = config.connector.select_layer;
    let image_tokens = match (&features, through_connector) {
        (Some(features), true) => Some(connector(tape, config, features.selected(selected))?),
        _ => None,
    };
    if objectives.next_token != 0.0 {
        let spliced = image_tokens.filter(|_| objectives.splices_images);
        let hidden = record_conversation(tape, config, shape, spliced)?;
        let head = language_head(tape, &config.language)?;
        let targets = tape.input(
            ModelInput::Targets,
            TensorType::i32([shape.rows(), shape.tokens]),
        );
        let weights = tape.input(
            ModelInput::Weights,
            TensorType::f32([shape.rows(), shape.tokens]),
        );
        let loss = tape.scoped("language.head", |tape| {
            ops::linear_cross_entropy(tape, hidden, head.weight, targets, weights)
        })?;
        tape.output(loss, "loss.next_token");
        losses.next_token = Some((loss, objectives.next_token));
    }
    if objectives.contrastive != 0.0 {
        let features = features.expect("the contrastive loss needs images");
        let image_tokens = match image_tokens {
            Some(tokens) => Some(whole_images(tape, shape, tokens)?),
            None => None,
        };
        let pooled = match objectives.pair {
            ContrastivePair::TextTower => pool_towers(tape, config, shape, features.output)?,
            ContrastivePair::LanguageModel => {
                let tokens = image_tokens.expect("the language pair goes through the connector");
                match config.align {
                    Alignment::Hidden => pool_language(tape, config, shape, tokens)?,
                    Alignment::Embeddings => pool_directions(tape, config, shape, tokens)?,
                }
            }
        };
        let loss = record_contrastive(tape, config, objectives, shape, pooled)?;
        tape.output(loss, "loss.contrastive");
        losses.contrastive = Some((loss, objectives.contrastive));
    }
    if losses.next_token.or(losses.contrastive).is_none() {
        return Err(Error::setting(
            "objectives",
            "a weight above zero",
            "next_token = contrastive = 0",
        ));
    }
    Ok(losses)
}

fn images_input(tape: &mut Tape, config: &ModelConfig, shape: &BatchShape) -> Value {
    let side = config.vision.image_size;
    let count = shape.tiling.slots + shape.batch;
    tape.input(ModelInput::Images, TensorType::f32([count, 3, side, side]))
}

fn record_features(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
) -> Result<TowerFeatures> {
    let images = images_input(tape, config, shape);
    vision_layers(tape, &config.vision, images, &Regularisation::default())
}

fn pool_image(tape: &mut Tape, config: &ModelConfig, features: Value) -> Result<Value> {
    let patches = patch_tokens(tape, &config.vision, features)?;
    ops::mean_pool(tape, patches, None)
}

fn caption_inputs(tape: &mut Tape, shape: &BatchShape) -> Value {
    tape.input(
        ModelInput::CaptionTokens,
        TensorType::i32([shape.batch, shape.caption_tokens]),
    )
}

fn pool_towers(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    features: Value,
) -> Result<Pooled> {
    let image = pool_image(tape, config, features)?;
    Ok(Pooled {
        image,
        text: pool_text_tower(tape, config, shape)?,
    })
}

fn pool_text_tower(tape: &mut Tape, config: &ModelConfig, shape: &BatchShape) -> Result<Value> {
    let text = config.text.as_ref().ok_or_else(|| {
        Error::setting(
            "model.text",
            "a text tower, which the warm start contrasts with",
            "none",
        )
    })?;
    let tokens = caption_inputs(tape, shape);
    let ends = tape.input(ModelInput::CaptionEnd, TensorType::i32([shape.batch]));
    text_tower(tape, text, tokens, ends)
}

fn pool_language(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    image_tokens: Value,
) -> Result<Pooled> {
    let image = ops::mean_pool(tape, image_tokens, None)?;
    let caption = weighted_caption(tape, shape);
    let text = pool_caption(tape, config, caption)?;
    Ok(Pooled { image, text })
}

/// Mean directions [B, D] of the image tokens and of the caption's token embeddings.
fn pool_directions(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    image_tokens: Value,
) -> Result<Pooled> {
    let image = pool_direction(tape, image_tokens, None)?;
    let (tokens, weights) = weighted_caption(tape, shape);
    let embedded = embed_tokens(tape, &config.language, tokens)?;
    let text = pool_direction(tape, embedded, Some(weights))?;
    Ok(Pooled { image, text })
}

/// The mean of the tokens' directions, weighted where there are weights.
fn pool_direction(tape: &mut Tape, tokens: Value, weights: Option<Value>) -> Result<Value> {
    let directions = ops::l2_normalize(tape, tokens, 1e-12)?;
    ops::mean_pool(tape, directions, weights)
}

fn weighted_caption(tape: &mut Tape, shape: &BatchShape) -> (Value, Value) {
    let tokens = caption_inputs(tape, shape);
    let sizes = [shape.batch, shape.caption_tokens];
    let weights = tape.input(ModelInput::CaptionWeights, TensorType::f32(sizes));
    (tokens, weights)
}

fn pool_caption(
    tape: &mut Tape,
    config: &ModelConfig,
    (tokens, weights): (Value, Value),
) -> Result<Value> {
    let x = embed_tokens(tape, &config.language, tokens)?;
    let hidden = language_trunk(tape, &config.language, x, None, "caption")?;
    ops::mean_pool(tape, hidden, Some(weights))
}

/// Projects a pooled feature, where the pair has projections, and brings it to unit length.
fn project(
    tape: &mut Tape,
    config: &ModelConfig,
    pair: ContrastivePair,
    side: &str,
    pooled: Value,
) -> Result<Value> {
    if pair == ContrastivePair::LanguageModel && config.align == Alignment::Embeddings {
        tape.name(pooled, contrasted_feature(pair, side));
        return ops::l2_normalize(tape, pooled, 1e-12);
    }
    let columns = tape.shape(pooled).columns();
    let name = format!("{side}_projection");
    let shape = [config.embed_dim, columns];
    let weight = Scope::module(module_of(pair)).matrix(tape, &name, shape, Init::XavierUniform)?;
    let projected = ops::linear(tape, pooled, weight, None)?;
    tape.name(projected, contrasted_feature(pair, side));
    ops::l2_normalize(tape, projected, 1e-12)
}

fn module_of(pair: ContrastivePair) -> &'static str {
    match pair {
        ContrastivePair::TextTower => "contrastive",
        ContrastivePair::LanguageModel => "align",
    }
}

/// The names of the values [B, E or D] that a recorded contrastive loss compares, of images and of texts, before they are brought to
/// unit length.
pub fn contrasted_features(pair: ContrastivePair) -> [String; 2] {
    ["image", "text"].map(|side| contrasted_feature(pair, side))
}

fn contrasted_feature(pair: ContrastivePair, side: &str) -> String {
    format!("{}.{side}_feature", module_of(pair))
}

fn record_contrastive(
    tape: &mut Tape,
    config: &ModelConfig,
    objectives: &Objectives,
    shape: &BatchShape,
    pooled: Pooled,
) -> Result<Value> {
    let module = module_of(objectives.pair);
    tape.scoped(module, |tape| {
        let image = project(tape, config, objectives.pair, "image", pooled.image)?;
        let text = project(tape, config, objectives.pair, "text", pooled.text)?;
        let scope = Scope::module(module);
        let first = Init::Constant(first_log_scale(objectives.kind));
        let log_scale = scope.plain(tape, "log_scale", [1], first)?;
        let bias = match objectives.kind {
            Contrastive::InfoNce => None,
            Contrastive::Sigmoid => Some(scope.plain(tape, "bias", [1], Init::Constant(-10.0))?),
        };
        let ranks = tape.contrasted_ranks();
        let identities = [ModelInput::ImageIdentities, ModelInput::CaptionIdentities];
        let of_rows = TensorType::i32([ranks * shape.batch]);
        let features = [image, text, log_scale];
        if ranks > 1 {
            let pairs = RankPairs {
                counts: tape.input(ModelInput::Pairs, TensorType::i32([ranks + 1])),
                identities: identities.map(|input| tape.input(input, of_rows)),
            };
            let kind = objectives.kind;
            return ops::contrastive_loss_over_ranks(tape, features, bias, pairs, kind);
        }
        let count = TensorType::i32([1]);
        let pairs = objectives
            .holds_text_alone
            .then(|| tape.input(ModelInput::Pairs, count));
        let mask = ContrastiveMask {
            pairs,
            identities: Some(identities.map(|input| tape.input(input, of_rows))),
        };
        ops::contrastive_loss(tape, features, bias, mask, objectives.kind)
    })
}

/// Records the features that retrieval and zero-shot classification compare.
///
/// With `images`: outputs `image.pooled` and `image.feature` [B, E or D] of the input `images`, and, for the language
/// pair, `image.patches` [B, T, C] before and `image.tokens` [B, Ti, D] after the connector. Without:
/// `text.pooled` and `text.feature` of the caption inputs.
///
/// # Errors
/// [`Error::Setting`] when a tower that the pair needs is missing.
pub fn record_contrastive_features(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    pair: ContrastivePair,
    images: bool,
) -> Result<()> {
    let in_embeddings = config.align == Alignment::Embeddings;
    // Where directions are contrasted, the feature is made of them and not of what is pooled.
    let mut contrasted = None;
    let (side, pooled) = if images {
        let features = record_features(tape, config, shape)?;
        let pooled = match pair {
            ContrastivePair::TextTower => pool_image(tape, config, features.output)?,
            ContrastivePair::LanguageModel => {
                let features = features.selected(config.connector.select_layer);
                let patches = patch_tokens(tape, &config.vision, features)?;
                tape.output(patches, "image.patches");
                let tokens = connector(tape, config, features)?;
                tape.output(tokens, "image.tokens");
                if in_embeddings {
                    contrasted = Some(pool_direction(tape, tokens, None)?);
                }
                ops::mean_pool(tape, tokens, None)?
            }
        };
        ("image", pooled)
    } else {
        let pooled = match pair {
            ContrastivePair::TextTower => pool_text_tower(tape, config, shape)?,
            ContrastivePair::LanguageModel => {
                let (tokens, weights) = weighted_caption(tape, shape);
                if in_embeddings {
                    let embedded = embed_tokens(tape, &config.language, tokens)?;
                    contrasted = Some(pool_direction(tape, embedded, Some(weights))?);
                }
                pool_caption(tape, config, (tokens, weights))?
            }
        };
        ("text", pooled)
    };
    tape.output(pooled, format!("{side}.pooled"));
    let feature = project(tape, config, pair, side, contrasted.unwrap_or(pooled))?;
    tape.output(feature, format!("{side}.feature"));
    Ok(())
}

/// Records the forward pass of a conversation: the most likely next token at every place, `next` i32 [B, T], and the
/// loss `loss.next_token` if targets are given.
///
/// # Errors
/// Whatever recording reports.
pub fn record_vision_language(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    with_images: bool,
    with_targets: bool,
) -> Result<()> {
    let image_tokens = if with_images {
        let features = record_features(tape, config, shape)?;
        let selected = features.selected(config.connector.select_layer);
        Some(connector(tape, config, selected)?)
    } else {
        None
    };
    let hidden = record_conversation(tape, config, shape, image_tokens)?;
    let head = language_head(tape, &config.language)?;
    let next = ops::linear_argmax(tape, hidden, head.weight)?;
    tape.output(next, "next");
    if with_targets {
        let targets = tape.input(
            ModelInput::Targets,
            TensorType::i32([shape.batch, shape.tokens]),
        );
        let weights = tape.input(
            ModelInput::Weights,
            TensorType::f32([shape.batch, shape.tokens]),
        );
        let loss = ops::linear_cross_entropy(tape, hidden, head.weight, targets, weights)?;
        tape.output(loss, "loss.next_token");
    }
    Ok(())
}

/// What a program that generates hands out for the next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextToken {
    /// `next` i32 `[B]`: the likeliest token.
    Likeliest,
    /// `logits` f32 [B, V]: the scores of all.
    Logits,
}

fn record_next(
    tape: &mut Tape,
    config: &ModelConfig,
    hidden: Value,
    next: NextToken,
) -> Result<()> {
    let head = language_head(tape, &config.language)?;
    match next {
        NextToken::Likeliest => {
            let next = ops::linear_argmax(tape, hidden, head.weight)?;
            tape.output(next, "next");
        }
        NextToken::Logits => {
            let logits = ops::linear(tape, hidden, head.weight, None)?;
            tape.output(logits, "logits");
        }
    }
    Ok(())
}

/// Records the pass over images and prompts that generation begins with: what comes after token `index` i32 `[B]` of each
/// row, as `next` says. Inputs `images` and `tokens` i32 [B, T]. The rows for the caches of [`record_next_token`] are the
/// named values [`super::cached_rows`].
///
/// # Errors
/// Whatever recording reports.
pub fn record_prompt(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    next: NextToken,
) -> Result<()> {
    let features = record_features(tape, config, shape)?;
    let selected = features.selected(config.connector.select_layer);
    let image_tokens = connector(tape, config, selected)?;
    record_prompt_with(tape, config, shape, next, Some(image_tokens))
}

/// As [`record_prompt`], of prompts without images.
///
/// # Errors
/// Whatever recording reports.
pub fn record_text_prompt(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    next: NextToken,
) -> Result<()> {
    record_prompt_with(tape, config, shape, next, None)
}

fn record_prompt_with(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    next: NextToken,
    image_tokens: Option<Value>,
) -> Result<()> {
    let hidden = record_conversation(tape, config, shape, image_tokens)?;
    let index = tape.input(ModelInput::Index, TensorType::i32([shape.batch]));
    let last = ops::select_token(tape, hidden, index)?;
    record_next(tape, config, last, next)
}

/// Records the pass over one more token of each row: what comes after it, as `next` says. Inputs: `token` i32 [B, 1] and
/// those of [`language_step`].
///
/// # Errors
/// Whatever recording reports.
pub fn record_next_token(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    next: NextToken,
) -> Result<()> {
    let token = tape.input(ModelInput::Token, TensorType::i32([shape.batch, 1]));
    let x = embed_tokens(tape, &config.language, token)?;
    let hidden = language_step(tape, &config.language, x, shape.tokens)?;
    let hidden = tape.reshape(hidden, [shape.batch, config.language.width])?;
    record_next(tape, config, hidden, next)
}
