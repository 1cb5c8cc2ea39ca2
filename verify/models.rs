//! Whole tiny models against PyTorch in f64: every named intermediate, the loss and the gradient of every parameter.
//!
//! Tensors are compared in the order in which a step makes them, so that the first layer that differs is the one named.
//! The reference must agree to one f32 rounding of each tensor's largest element (the goldens are f32 roundings of f64),
//! the processor, and the kernels on the emulator, to the budget that the rounding reference derives. In bf16 the kernels
//! are held against the reference of the same bf16 program.

mod build;
mod compare;

use keel::data::batch::BatchShape;
use keel::model::{
    Alignment, ContrastivePair, ModelConfig, Objectives, Regularisation, Scope, embed_tokens,
    language_head, language_trunk, record_objectives, text_tower, vision_tower,
};
use keel::ops::{self, Contrastive, ContrastiveMask};
use keel::tape::{Init, Tape, Value};
use keel::tensor::TensorType;

use crate::harness::Golden;
use crate::tasks_mixture::SHAPE;
use build::{language_config, text_config, vision_config};
use compare::{Model, Recorded, target_weights};

/// Settings for the parts that a golden does not have; nothing of them is recorded.
fn absent_language() -> keel::model::LanguageConfig {
    keel::model::language_preset("qwen2.5-0.5b").expect("a preset")
}

fn check_vision(form: &str) {
    let golden = Golden::open(&format!("model_vision_{form}"));
    let config = vision_config(&golden.config["vision"]);
    let images = golden.shape("input.images");
    let record = move |tape: &mut Tape| {
        let images = tape.input("images", TensorType::f32(images));
        let y = vision_tower(tape, &config, images)?;
        tape.output(y, "vision.features");
        let features = tape.ty(y);
        let cotangent = tape.input("cotangent", features);
        Ok(Recorded::Product(y, cotangent))
    };
    Model::new(&golden, record).check();
}

#[test]
fn the_sailvit_tower_agrees_with_pytorch() {
    check_vision("sailvit");
}

#[test]
fn the_clip_tower_agrees_with_pytorch() {
    check_vision("clip");
}

#[test]
fn the_internvit_tower_agrees_with_pytorch() {
    check_vision("internvit");
}

#[test]
fn the_siglip_tower_agrees_with_pytorch() {
    check_vision("siglip");
}

/// A decoder; `is_packed` gives it segments and positions.
fn check_decoder(form: &str, is_packed: bool) {
    let golden = Golden::open(&format!("model_decoder_{form}"));
    let config = language_config(&golden.config["language"]);
    let sizes = golden.shape("input.tokens");
    let record = move |tape: &mut Tape| {
        let tokens = tape.input("tokens", TensorType::i32(sizes));
        let x = embed_tokens(tape, &config, tokens)?;
        let packed = is_packed.then(|| {
            let segments = tape.input("samples", TensorType::i32(sizes));
            (segments, tape.input("positions", TensorType::i32(sizes)))
        });
        let hidden = language_trunk(tape, &config, x, packed, "language")?;
        let head = language_head(tape, &config)?;
        let targets = tape.input("targets", TensorType::i32(sizes));
        let weights = tape.input("weights", TensorType::f32(sizes));
        let loss = ops::linear_cross_entropy(tape, hidden, head.weight, targets, weights)?;
        Ok(Recorded::Loss(loss))
    };
    let weights = target_weights(&golden, golden.integers("input.samples"));
    Model::new(&golden, record)
        .input("weights", weights)
        .check();
}

#[test]
fn the_qwen25_decoder_agrees_with_pytorch() {
    check_decoder("qwen25", false);
}

#[test]
fn the_qwen3_decoder_agrees_with_pytorch() {
    check_decoder("qwen3", false);
}

#[test]
fn the_decoder_on_packed_samples_agrees_with_pytorch() {
    check_decoder("packed", true);
}

/// A model with a contrastive loss whose images and captions are all different, as the goldens' are.
fn unlike(model: Model<'_>, batch: usize) -> Model<'_> {
    let inputs = ["image_identities", "caption_identities"];
    inputs
        .into_iter()
        .fold(model, |model, input| model.integers(input, vec![0; batch]))
}

/// Vision tower, connector and decoder, as the stages of refinement record them.
fn check_three_parts(stage: &str) {
    let golden = Golden::open(&format!("model_{stage}"));
    let settings = &golden.config;
    let weight = settings["contrastive_weight"].as_f64().expect("a number");
    let [batch, tokens] = *golden.shape("input.tokens").dims() else {
        panic!("tokens are [B, T]");
    };
    let shape = BatchShape {
        pack: 1,
        batch,
        tokens,
        caption_tokens: if weight > 0.0 {
            golden.shape("input.caption_tokens").columns()
        } else {
            4
        },
        image_id: settings["image_token"].as_i64().expect("a number") as i32,
        ..SHAPE
    };
    let config = ModelConfig {
        vision: vision_config(&settings["vision"]),
        text: None,
        connector: keel::model::ConnectorConfig {
            norm: true,
            unshuffle_factor: 2,
            select_layer: -1,
        },
        language: language_config(&settings["language"]),
        teacher: None,
        embed_dim: 24,
        align: match settings["align"].as_str() {
            Some("embeddings") => Alignment::Embeddings,
            _ => Alignment::Hidden,
        },
    };
    config.validate().expect("the golden's model is possible");
    let objectives = Objectives {
        next_token: 1.0,
        splices_images: true,
        contrastive: weight as f32,
        kind: Contrastive::InfoNce,
        pair: ContrastivePair::LanguageModel,
        holds_text_alone: false,
        regularisation: Regularisation::default(),
        distillation: Default::default(),
    };
    let record = move |tape: &mut Tape| {
        let loss = record_objectives(tape, &config, &objectives, &shape)?;
        Ok(Recorded::Loss(loss))
    };
    let samples: Vec<i32> = (0..batch * tokens).map(|i| (i / tokens) as i32).collect();
    let weights = target_weights(&golden, &samples);
    let mut model = Model::new(&golden, record).input("weights", weights);
    if weight > 0.0 {
        // The engine wants weights that add to one; the golden divides by their sum.
        let caption = golden.floats("input.caption_weights");
        let rows = caption.chunks(shape.caption_tokens);
        let divided = rows.flat_map(|row| {
            let sum: f64 = row.iter().sum();
            row.iter().map(move |w| w / sum)
        });
        model = model.input("caption_weights", divided.collect());
        model = unlike(model, batch);
    }
    model.check();
}

#[test]
fn the_whole_model_of_stage_three_agrees_with_pytorch() {
    check_three_parts("stage_three");
}

#[test]
fn the_whole_model_of_stage_two_with_its_contrastive_term_agrees_with_pytorch() {
    check_three_parts("stage_two");
}

#[test]
fn the_whole_model_of_stage_two_contrasted_among_embeddings_agrees_with_pytorch() {
    check_three_parts("stage_two_directions");
}

#[test]
fn the_sigmoid_pair_of_towers_agrees_with_pytorch() {
    let golden = Golden::open("model_contrastive_sigmoid");
    let [batch, caption_tokens] = *golden.shape("input.captions").dims() else {
        panic!("captions are [B, T]");
    };
    let config = ModelConfig {
        vision: vision_config(&golden.config["vision"]),
        text: Some(text_config(&golden.config["text"])),
        connector: keel::model::ConnectorConfig {
            norm: true,
            unshuffle_factor: 3,
            select_layer: -1,
        },
        language: absent_language(),
        teacher: None,
        embed_dim: 24,
        align: Alignment::Hidden,
    };
    config.validate().expect("the golden's model is possible");
    let objectives = Objectives {
        next_token: 0.0,
        splices_images: false,
        contrastive: 1.0,
        kind: Contrastive::Sigmoid,
        pair: ContrastivePair::TextTower,
        holds_text_alone: false,
        regularisation: Regularisation::default(),
        distillation: Default::default(),
    };
    let shape = BatchShape {
        pack: 1,
        batch,
        tokens: 1,
        caption_tokens,
        image_id: 0,
        ..SHAPE
    };
    let record = move |tape: &mut Tape| {
        let loss = record_objectives(tape, &config, &objectives, &shape)?;
        Ok(Recorded::Loss(loss))
    };
    unlike(Model::new(&golden, record), batch).check();
}

/// The golden takes the class token for the image's feature, where the engine takes the mean of the patches: the towers
/// are the engine's, the pair is put together here.
#[test]
fn the_infonce_pair_of_towers_agrees_with_pytorch() {
    let golden = Golden::open("model_contrastive_infonce");
    let vision = vision_config(&golden.config["vision"]);
    let text = text_config(&golden.config["text"]);
    let (images, captions) = (golden.shape("input.images"), golden.shape("input.captions"));
    let batch = images.dims()[0];
    let record = move |tape: &mut Tape| {
        let images = tape.input("images", TensorType::f32(images));
        let features = vision_tower(tape, &vision, images)?;
        let first = tape.input("class_token_at", TensorType::i32([batch]));
        let image = ops::select_token(tape, features, first)?;
        let tokens = tape.input("caption_tokens", TensorType::i32(captions));
        let ends = tape.input("caption_end", TensorType::i32([batch]));
        let text = text_tower(tape, &text, tokens, ends)?;
        let scope = Scope::module("contrastive");
        let project = |tape: &mut Tape, side: &str, x: Value| {
            let shape = [24, tape.shape(x).columns()];
            let name = format!("{side}_projection");
            let weight = scope.matrix(tape, &name, shape, Init::XavierUniform)?;
            let y = ops::linear(tape, x, weight, None)?;
            tape.name(y, format!("contrastive.{side}_feature"));
            ops::l2_normalize(tape, y, 1e-12)
        };
        let image = project(tape, "image", image)?;
        let text = project(tape, "text", text)?;
        let log_scale = scope.plain(tape, "log_scale", [1], Init::Constant(0.0))?;
        let kind = Contrastive::InfoNce;
        let loss = ops::contrastive_loss(
            tape,
            [image, text, log_scale],
            None,
            ContrastiveMask::default(),
            kind,
        )?;
        Ok(Recorded::Loss(loss))
    };
    Model::new(&golden, record)
        .integers("class_token_at", vec![0; batch])
        .check();
}
