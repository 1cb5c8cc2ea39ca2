//! The inputs of a model's programs. A program is fed by these names and no others, so that an input with a new name has to
//! be thought of wherever programs are fed: none can be left out in silence.

use keel_base::error::{Error, Result};
use keel_engine::program::Program;

/// What the host writes for a program of a model. B samples lie in R = B / pack sequences of T tokens; Tc are the tokens of a
/// caption and S the pixels of an image's side.
///
/// What the step of a stage reads of a batch depends on what the stage minimises:
///
/// | the stage has | its step reads |
/// |---|---|
/// | images at all | [`Images`](ModelInput::Images) |
/// | a next-token loss | [`Tokens`](ModelInput::Tokens), [`Targets`](ModelInput::Targets), [`Weights`](ModelInput::Weights) |
/// | such a loss over packed samples | [`Segments`](ModelInput::Segments), [`Positions`](ModelInput::Positions) too |
/// | such a loss over images cut into tiles | [`TokenTypes`](ModelInput::TokenTypes) too |
/// | a contrastive loss | [`ImageIdentities`](ModelInput::ImageIdentities), [`CaptionIdentities`](ModelInput::CaptionIdentities) |
/// | one with the text tower | [`CaptionTokens`](ModelInput::CaptionTokens), [`CaptionEnd`](ModelInput::CaptionEnd) |
/// | one with the language model | [`CaptionTokens`](ModelInput::CaptionTokens), [`CaptionWeights`](ModelInput::CaptionWeights) |
/// | patch dropout | [`KeptPatches`](ModelInput::KeptPatches) |
/// | one of either, and samples without an image | [`Pairs`](ModelInput::Pairs) too |
/// | several micro-batches a step | [`LossWeight`](ModelInput::LossWeight) |
/// | several ranks, or `reproducible_across_ranks` | [`LossWeight`](ModelInput::LossWeight) with a next-token loss, [`ContrastiveWeight`](ModelInput::ContrastiveWeight) with a contrastive one or distillation |
///
/// A batch has all of these arrays but the two weights of losses. Those that a stage's row does not name are not read there, and only those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelInput {
    /// f32 [N + B, 3, S, S]: N tiles first, then the samples' whole images.
    Images,
    /// i32 [R, T]: token ids.
    Tokens,
    /// i32 [R, T]: the id that follows each token.
    Targets,
    /// f32 [R, T]: the weight of each target in the loss.
    Weights,
    /// i32 [R, T]: the sample of a packed sequence that each token is of.
    Segments,
    /// i32 [R, T]: each token's position in its sample.
    Positions,
    /// i32 [R, T]: what each token shows, a tile, a whole image or neither: see [`keel_data::image_slots::place`].
    TokenTypes,
    /// i32 [B, Tc]: the captions' token ids.
    CaptionTokens,
    /// i32 `[B]`: where each caption ends.
    CaptionEnd,
    /// f32 [B, Tc]: the weight of each token in its caption's mean.
    CaptionWeights,
    /// i32 `[1]`: how many samples have an image, the first of the batch. Where several ranks compare their pairs i32 [ranks + 1],
    /// of each and of all, always.
    Pairs,
    /// i32 `[B]`: samples of the same number show equal images; 0 is like no other. Over several ranks i32 [ranks · B].
    ImageIdentities,
    /// i32 `[B]`: samples of the same number have equal captions; 0 is like no other. Over several ranks i32 [ranks · B].
    CaptionIdentities,
    /// f32 `[1]`: the weight of a micro-batch's loss among those of its step.
    LossWeight,
    /// f32 `[1]`: the weight of the contrastive loss where it has one of its own, of the micro-batches that it compares, and of the loss
    /// of distillation.
    ContrastiveWeight,
    /// i32 [B, K]: the numbers of the tokens that patch dropout leaves in each image, among all tokens of the batch.
    KeptPatches,
    /// i32 `[B]`: where the class token stands, 0, for pooling by it.
    ClassToken,
    /// f32 [B, T, C]: a tower's output, for programs that begin behind it.
    Features,
    /// i32 [B, 1]: the token that generation has come to.
    Token,
    /// i32 [B, T]: 1 at that token's place and 0 elsewhere.
    Slots,
    /// i32 [B, T]: 0 at the places up to that token's and −1 beyond.
    Seen,
    /// i32 [B, 1]: that token's position.
    Position,
    /// i32 `[B]`: the token of each row whose successor is asked for.
    Index,
}

impl ModelInput {
    /// All of them.
    pub const ALL: [ModelInput; 23] = [
        ModelInput::Images,
        ModelInput::Tokens,
        ModelInput::Targets,
        ModelInput::Weights,
        ModelInput::Segments,
        ModelInput::Positions,
        ModelInput::TokenTypes,
        ModelInput::CaptionTokens,
        ModelInput::CaptionEnd,
        ModelInput::CaptionWeights,
        ModelInput::Pairs,
        ModelInput::ImageIdentities,
        ModelInput::CaptionIdentities,
        ModelInput::LossWeight,
        ModelInput::ContrastiveWeight,
        ModelInput::KeptPatches,
        ModelInput::ClassToken,
        ModelInput::Features,
        ModelInput::Token,
        ModelInput::Slots,
        ModelInput::Seen,
        ModelInput::Position,
        ModelInput::Index,
    ];

    /// The input's name in a program.
    pub const fn name(self) -> &'static str {
        match self {
            ModelInput::Images => "images",
            ModelInput::Tokens => "tokens",
            ModelInput::Targets => "targets",
            ModelInput::Weights => "weights",
            ModelInput::Segments => "segments",
            ModelInput::Positions => "positions",
            ModelInput::TokenTypes => "token_types",
            ModelInput::CaptionTokens => "caption_tokens",
            ModelInput::CaptionEnd => "caption_end",
            ModelInput::CaptionWeights => "caption_weights",
            ModelInput::Pairs => "pairs",
            ModelInput::ImageIdentities => "image_identities",
            ModelInput::CaptionIdentities => "caption_identities",
            ModelInput::LossWeight => "loss_weight",
            ModelInput::ContrastiveWeight => "contrastive_weight",
            ModelInput::KeptPatches => "kept_patches",
            ModelInput::ClassToken => "class_token",
            ModelInput::Features => "features",
            ModelInput::Token => "token",
            ModelInput::Slots => "slots",
            ModelInput::Seen => "seen",
            ModelInput::Position => "position",
            ModelInput::Index => "index",
        }
    }

    /// The inputs of `program`, in the order of [`ModelInput::ALL`], but for those that are `written_elsewhere`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming an input that no model has.
    pub fn of(program: &Program, written_elsewhere: &[&str]) -> Result<Vec<ModelInput>> {
        let names: Vec<&str> = program.input_names().collect();
        let is_known = |name: &&str| {
            written_elsewhere.contains(name) || Self::ALL.iter().any(|input| input.name() == *name)
        };
        if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
            return Err(unfed(unknown));
        }
        // In the order of the enum, whatever the order in a program: inputs are then written in the same order every
        // time.
        let mut inputs = Self::ALL.to_vec();
        inputs.retain(|input| {
            names.contains(&input.name()) && !written_elsewhere.contains(&input.name())
        });
        Ok(inputs)
    }
}

impl From<ModelInput> for String {
    fn from(input: ModelInput) -> String {
        input.name().to_owned()
    }
}

/// An input that the caller has nothing for.
pub fn unfed(name: &str) -> Error {
    Error::setting(
        format!("program input {name}"),
        "an input that whoever runs the program writes",
        "one that nobody writes here",
    )
}
