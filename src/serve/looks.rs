//! Where a model looked, as the page reads it.

use serde_json::{Value as Json, json};

use keel_eval::{PromptImage, WordLook};
use keel_train::EvalRun;

/// `look` at the answer of the tokens `ids`, with what the model was shown, and columns and rows of its tiles where it was cut.
pub(crate) fn look_json(
    run: &EvalRun,
    look: &WordLook,
    ids: &[i32],
    shown: Option<&PromptImage>,
    tiles: Option<[u32; 2]>,
) -> Json {
    let mut before = String::new();
    let words = look.attention.iter().enumerate().map(|(index, attention)| {
        let all = run.text_of(&ids[..=index]);
        // A token may be a part of a character, which the next one makes whole.
        let word = all.strip_prefix(&before).unwrap_or_default().to_owned();
        before = all;
        json!({"text": word, "attention": rounded(attention)})
    });
    let words: Vec<Json> = words.collect();
    let nearest = look.nearest.iter().map(|tokens| {
        let tokens = tokens.iter().map(|(id, cosine)| {
            json!({"text": run.text_of(&[*id]), "cosine": (f64::from(*cosine) * 1e3).round() / 1e3})
        });
        tokens.collect::<Vec<_>>()
    });
    let images = shown.map_or(Vec::new(), |shown| run.images_of(shown));
    json!({
        "grid": look.grid,
        "tiles": tiles,
        "words": words,
        "nearest": nearest.collect::<Vec<_>>(),
        "side": run.image_side(),
        "images": images,
    })
}

/// Four digits are more than a colour shows.
fn rounded(attention: &[f32]) -> Vec<f64> {
    let round = |share: &f32| (f64::from(*share) * 1e5).round() / 1e5;
    attention.iter().map(round).collect()
}
