//! A conversation with images: image tokens in the places that the text keeps for them, then the language model.

use super::ModelConfig;
use super::inputs::ModelInput;
use super::language::{embed_tokens, language_trunk};
use keel_base::error::Result;
use keel_data::batch::BatchShape;
use keel_data::image_slots::place;
use keel_engine::ops;
use keel_engine::tape::{Tape, Value};
use keel_engine::tensor::TensorType;

/// What the whole images [B, T, C] are among tiles and images [N + B, T, C].
pub(super) fn whole_images(tape: &mut Tape, shape: &BatchShape, all: Value) -> Result<Value> {
    if shape.tiling.slots == 0 {
        return Ok(all);
    }
    let &[images, tokens, width] = tape.shape(all).dims() else {
        unreachable!("features and image tokens have three dimensions")
    };
    // All images as one long row: dropping its first tokens drops the tiles, which come first.
    let flat = tape.reshape(all, [1, images * tokens, width])?;
    let wholes = ops::drop_tokens(tape, flat, shape.tiling.slots * tokens)?;
    tape.reshape(wholes, [shape.batch, tokens, width])
}

/// Rows of `image_tokens` in the place of those tokens of all sequences, one after the other, whose `places` are `place`.
fn splice_in_order(
    tape: &mut Tape,
    x: Value,
    places: Value,
    image_tokens: Value,
    place: i32,
) -> Result<Value> {
    // Likewise one row: the order of tiles is that of the whole batch, so image tokens are counted across its rows.
    let (apart, width) = (tape.shape(x), tape.shape(x).columns());
    let count = tape.shape(image_tokens).rows();
    let flat = tape.reshape(x, [1, apart.rows(), width])?;
    let places = tape.reshape(places, [1, apart.rows()])?;
    let image = tape.reshape(image_tokens, [1, count, width])?;
    let spliced = ops::splice(tape, flat, places, image, place)?;
    tape.reshape(spliced, apart)
}

/// Hidden states [R, T, D] of the conversations, with image tokens spliced in where there are any.
///
/// Where samples share a sequence, the k-th placeholder of all sequences, one after the other, takes the k-th image token:
/// images come in the order of their samples, and those of samples without a place last. The same is true of tiles, which
/// have places of their own.
pub(super) fn record_conversation(
    tape: &mut Tape,
    config: &ModelConfig,
    shape: &BatchShape,
    image_tokens: Option<Value>,
) -> Result<Value> {
    let sizes = [shape.rows(), shape.tokens];
    let tokens = tape.input(ModelInput::Tokens, TensorType::i32(sizes));
    let mut x = embed_tokens(tape, &config.language, tokens)?;
    if let Some(mut wholes) = image_tokens {
        let (mut places, mut whole) = (tokens, shape.image_id);
        if shape.tiling.slots > 0 {
            (places, whole) = (
                tape.input(ModelInput::TokenTypes, TensorType::i32(sizes)),
                place::WHOLE,
            );
            // The images behind the tiles find no place there.
            x = splice_in_order(tape, x, places, wholes, place::TILE)?;
            wholes = whole_images(tape, shape, wholes)?;
        }
        // Unpacked, row b takes image b: a row whose text has no place for one must not shift the others. Packed rows
        // hold several samples, and images come in order.
        x = match shape.pack {
            1 => ops::splice(tape, x, places, wholes, whole)?,
            _ => splice_in_order(tape, x, places, wholes, whole)?,
        };
    }
    if shape.pack == 1 {
        return language_trunk(tape, &config.language, x, None, "language");
    }
    let segments = tape.input(ModelInput::Segments, TensorType::i32(sizes));
    let positions = tape.input(ModelInput::Positions, TensorType::i32(sizes));
    let packed = Some((segments, positions));
    language_trunk(tape, &config.language, x, packed, "language")
}
