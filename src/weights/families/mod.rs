//! The families of weights that Keel reads and writes, each in one file: the keys of its `config.json`, the names of its
//! tensors, what prepares its images and how it pools. The same tables serve the reader and the writer.
//!
//! **A new family** is a new file here, and its line in [`VISION`] or [`LANGUAGE`] (beside `mod`). The file states one
//! [`VisionForm`] or [`LanguageForm`] for each form in which the family is published, as `dinov2.rs` does:
//!  1. `keys`: a row for every key of `config.json` that changes what the model computes, with the published code's default.
//!     A row reads the key and writes it. Keys without a row are refused by name, unless `idle.rs` knows that they change nothing.
//!  2. `form`: the settings that no key says.
//!  3. `names`: a row for every parameter of the model, with the way or ways that files name its tensors.
//!  4. `ignored`, `pooling`, `processor`: what the tower does without, how it pools, and what prepares its images.
//!  5. `layouts`: what `keel export --layout` calls it, and which keys are written in what order. Whatever a layout cannot say
//!     is found by reading back what was written, so nothing else has to be stated.
//!
//! `internvl.rs` is the form of whole models: a tower, a decoder and the connector between them in one folder.
//!
//! Recognition, refusals, near misses, resizing and export follow from that. Settings that no model has yet are the business of
//! [`keel_model`], whose recording functions such a family needs first.

mod aimv2;
mod clip;
mod decoder;
mod dinov2;
mod dinov3;
mod family;
mod idle;
mod internvit;
pub(super) mod internvl;
mod key;
mod llama;
pub(super) mod llava;
mod names;
mod open_clip;
mod phi;
mod qwen;
mod siglip;
mod timm;
mod vit;

pub use family::LengthLimit;
pub(super) use family::{ImageProcessor, LanguageForm, Layout, Pooling, VisionForm};
pub(super) use idle::{Idle, IdleAt, shared, shared_names};
pub use internvl::{connector_config, whole_config};
pub(super) use key::{plain, write_key};
pub(super) use names::{Names, row, rows_of};
use serde_json::{Map, Value as Json};

/// The families of vision towers, in the order in which messages list them.
const VISION: &[&[VisionForm]] = &[
    aimv2::FORMS,
    clip::FORMS,
    siglip::FORMS,
    internvit::FORMS,
    dinov2::FORMS,
    dinov3::FORMS,
    vit::FORMS,
    timm::FORMS,
    open_clip::FORMS,
];

/// The families of decoders.
const LANGUAGE: &[&[LanguageForm]] = &[qwen::FORMS, llama::FORMS, phi::FORMS];

/// Every form of vision towers.
pub(super) fn vision_forms() -> impl Iterator<Item = &'static VisionForm> {
    VISION.iter().copied().flatten()
}

/// Every form of decoders.
pub(super) fn language_forms() -> impl Iterator<Item = &'static LanguageForm> {
    LANGUAGE.iter().copied().flatten()
}

/// The form of the towers of that `model_type`. Where a tower's own settings do not say it, `pair`, that of the pair of image
/// and text towers around it, does.
pub(super) fn vision_form(model_type: &str, pair: Option<&str>) -> Option<&'static VisionForm> {
    vision_forms().find(|form| match (model_type, pair) {
        ("", Some(pair)) => form.pair_type == Some(pair),
        _ => form.model_types.contains(&model_type),
    })
}

/// The form of a folder that says it by other keys than a `model_type`, the name of the object that its settings are in where they are
/// not the file itself, and the settings; nothing for any other folder.
pub(super) fn untyped_form(config: &Map<String, Json>) -> Option<Untyped<'_>> {
    let form = |kind| vision_form(kind, None).expect("the family has the form");
    if let Some(kind) = timm::kind_of(config) {
        return Some((form(kind), None, config));
    }
    let (kind, settings) = open_clip::settings_of(config)?;
    Some((form(kind), Some("model_cfg"), settings))
}

/// A form, the name of the object of its settings, and these.
pub(super) type Untyped<'a> = (
    &'static VisionForm,
    Option<&'static str>,
    &'a Map<String, Json>,
);

/// The form of the decoders of that `model_type`.
pub(super) fn language_form(model_type: &str) -> Option<&'static LanguageForm> {
    language_forms().find(|form| form.model_type == model_type)
}

/// Whether a family's folders have no `model_type`.
fn is_untyped(forms: &[VisionForm]) -> bool {
    forms.iter().all(|form| form.tell_size.is_some())
}

/// The `model_type`s of all towers, and those of all decoders, for messages.
pub(super) fn model_types() -> [String; 2] {
    let typed = VISION.iter().copied().filter(|forms| !is_untyped(forms));
    let vision: Vec<&str> = typed
        .flatten()
        .flat_map(|form| form.model_types)
        .copied()
        .collect();
    let language: Vec<&str> = language_forms().map(|form| form.model_type).collect();
    [vision.join(", "), language.join(", ")]
}
