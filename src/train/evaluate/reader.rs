//! What an experiment on towers has to know beside them: what their reader could answer at best, and how far a tower went.

use std::collections::BTreeMap;

use super::measuring::settings_after;
use super::settings::eval_context;
use crate::recipe::Recipe;
use crate::worlds::eval_suite;
use keel_base::error::Result;
use keel_engine::executor::SelectedDevice;
use keel_eval::{EvalContext, MeasureSettings, Measurements, Measurer, Metric, weight_drift};
use keel_model::declare;

/// For each kind of question about panels, the share that the language model in `parameters` answers rightly where the facts are
/// given as text ([`Metric::TextQuestions`]): no tower can make it answer more.
///
/// # Errors
/// Whatever the device, recording or running reports.
pub(crate) fn text_ceilings(
    recipe: &Recipe,
    compute: &SelectedDevice,
    parameters: &[f32],
) -> Result<BTreeMap<String, f64>> {
    let suite = eval_suite(recipe);
    let mut all = Measurements::default();
    with_model(recipe, compute, parameters, |model| {
        let measurer = Measurer::new(model, compute, &suite, target_settings(recipe, 1));
        measurer.measure(Metric::TextQuestions, &mut all)
    })?;
    let measures = all.text_questions.into_iter();
    Ok(measures
        .map(|measure| (measure.kind, measure.share))
        .collect())
}

/// How far the tower of the second parameters is from that of the first: its weight drift, ‖θ − θ₀‖ / ‖θ₀‖, and the linear CKA
/// of the last block's mean tokens on at most `images` images.
///
/// # Errors
/// As [`text_ceilings`].
pub(crate) fn tower_change(
    recipe: &Recipe,
    compute: &SelectedDevice,
    [before, after]: [&[f32]; 2],
    images: usize,
) -> Result<[f64; 2]> {
    let layout = declare(&recipe.model, recipe.contrastive_loss)?;
    let drifts = weight_drift(&layout, before, after);
    let drift = drifts.iter().find(|drift| drift.group == "vision");
    let drift = drift.map_or(0.0, |drift| drift.relative);
    let settings = target_settings(recipe, images);
    let suite = eval_suite(recipe);
    let features = |parameters: &[f32]| {
        with_model(recipe, compute, parameters, |model| {
            Measurer::new(model, compute, &suite, settings).layer_features()
        })
    };
    let likeness = features(before)?.layer_by_layer(&features(after)?);
    Ok([drift, likeness.last().copied().unwrap_or(1.0)])
}

/// What is measured of the target on sets of `images` images, by the tower or the language model alone.
fn target_settings(recipe: &Recipe, images: usize) -> MeasureSettings {
    let stage = recipe.stages.last().expect("a recipe has stages");
    settings_after(stage, images, false).expect("a target stage sees images")
}

/// Opens the device for a model with these parameters.
fn with_model<T>(
    recipe: &Recipe,
    compute: &SelectedDevice,
    parameters: &[f32],
    ask: impl FnOnce(EvalContext<'_>) -> Result<T>,
) -> Result<T> {
    let layout = declare(&recipe.model, recipe.contrastive_loss)?;
    let tokenizer = recipe.chat_tokenizer(None)?;
    let executor = compute.open(layout.elements())?;
    executor.write_parameters(0, parameters)?;
    ask(eval_context(recipe, &layout, executor.as_ref(), &tokenizer))
}
