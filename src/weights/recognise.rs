//! What a `config.json` is of: its parts, their families and their settings, without a tensor.

use serde_json::{Map, Value as Json};

use super::SubModelConfig;
use super::families::LengthLimit;
use super::families::{
    LanguageForm, Pooling, VisionForm, internvl, language_form, model_types, shared, untyped_form,
    vision_form,
};
use super::hf_config::Settings;
use keel_base::error::{Error, Result};
use keel_model::{LanguageConfig, VisionConfig};

/// The settings of one part of a model.
#[derive(Debug)]
pub struct PartSettings {
    /// What it is, for example `CLIP vision tower`.
    pub title: &'static str,
    /// Its settings.
    pub config: SubModelConfig,
    /// What drops units at random in training elsewhere, and not here.
    pub regularisers: Vec<String>,
    /// The longest sequence that a language model computes as its settings say; nothing where there is no such end.
    pub length_limit: Option<LengthLimit>,
}

/// The settings of every part that Keel can express: the vision tower first, then the language model. `what` names the file in
/// messages.
///
/// # Errors
/// [`Error::Setting`] naming the setting that Keel has no code for.
pub fn part_settings(what: &str, config: &Map<String, Json>) -> Result<Vec<PartSettings>> {
    let parts = parts_of(what, config)?.into_iter();
    let settings = parts.map(|part| match part.model {
        PartModel::Vision { form, config, .. } => PartSettings {
            title: form.title,
            config: SubModelConfig::Vision(config),
            regularisers: part.regularisers,
            length_limit: None,
        },
        PartModel::Language {
            form,
            config,
            length_limit,
        } => PartSettings {
            title: form.title,
            config: SubModelConfig::Language(config),
            regularisers: part.regularisers,
            length_limit,
        },
    });
    Ok(settings.collect())
}

/// A part of a model, recognised and read.
pub(super) struct Part {
    pub model: PartModel,
    pub regularisers: Vec<String>,
    /// Whether the settings are of it and of nothing else.
    pub is_alone: bool,
}

/// Its family and settings.
pub(super) enum PartModel {
    Vision {
        form: &'static VisionForm,
        config: VisionConfig,
        pooling: Option<Pooling>,
    },
    Language {
        form: &'static LanguageForm,
        config: LanguageConfig,
        length_limit: Option<LengthLimit>,
    },
}

/// As [`part_settings`], with their families.
pub(super) fn parts_of(what: &str, config: &Map<String, Json>) -> Result<Vec<Part>> {
    let kind = model_type(config);
    let object = |key: &'static str| Some((key, config.get(key)?.as_object()?));
    let inner_vision = object(internvl::VISION_KEY);
    if inner_vision.is_none() {
        let settings = Settings::new(what.to_owned(), config);
        if let Some(form) = vision_form(kind, None) {
            return Ok(vec![vision_part(form, settings, true)?]);
        }
        if let Some(form) = language_form(kind) {
            return Ok(vec![language_part(form, settings, true)?]);
        }
        if let Some((form, object, inner)) = untyped_form(config) {
            let what = match object {
                Some(object) => format!("{what}: {object}"),
                None => what.to_owned(),
            };
            let settings = Settings::new(what, inner);
            return Ok(vec![vision_part(form, settings, object.is_none())?]);
        }
    }
    let mut found = Vec::new();
    if let Some((key, inner)) = inner_vision
        && let Some(form) = vision_form(model_type(inner), Some(kind))
    {
        hold_repeated(what, config, key, inner)?;
        let settings = Settings::new(format!("{what}: {key}"), inner);
        found.push(vision_part(form, settings, false)?);
    }
    for (key, inner) in internvl::LANGUAGE_KEYS.into_iter().filter_map(object) {
        if let Some(form) = language_form(model_type(inner)) {
            let settings = Settings::new(format!("{what}: {key}"), inner);
            found.push(language_part(form, settings, false)?);
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let [vision, language] = model_types();
    let unread = match &unread_parts(config)[..] {
        [] => String::new(),
        parts => format!(" with {}", parts.join(" and ")),
    };
    let kind = if kind.is_empty() { "none" } else { kind };
    Err(Error::setting(
        format!("{what}: model_type"),
        format!(
            "one of {vision}, {language}, a model made of these, or a ViT of timm or open_clip"
        ),
        format!("{kind}{unread}"),
    ))
}

/// Parts of a model of several that Keel has no code for, each in a few words.
pub(super) fn unread_parts(config: &Map<String, Json>) -> Vec<String> {
    let keys = [internvl::VISION_KEY]
        .into_iter()
        .chain(internvl::LANGUAGE_KEYS);
    let inner = keys.filter_map(|key| Some((key, config.get(key)?.as_object()?)));
    let unread = inner.filter(|(key, inner)| {
        if *key == internvl::VISION_KEY {
            vision_form(model_type(inner), Some(model_type(config))).is_none()
        } else {
            language_form(model_type(inner)).is_none()
        }
    });
    let named = |(key, inner)| match model_type(inner) {
        "" => format!("{key} of no model_type"),
        kind => format!("{key} of model_type {kind}"),
    };
    unread.map(named).collect()
}

fn vision_part(form: &'static VisionForm, settings: Settings, is_alone: bool) -> Result<Part> {
    let what = settings.what().to_owned();
    let config = form.read(&settings)?;
    let pooling = form.pooling_of(&settings)?;
    let regularisers = settings.finish()?;
    config.validate().map_err(|e| within(&what, e))?;
    Ok(Part {
        model: PartModel::Vision {
            form,
            config,
            pooling,
        },
        regularisers,
        is_alone,
    })
}

fn language_part(form: &'static LanguageForm, settings: Settings, is_alone: bool) -> Result<Part> {
    let what = settings.what().to_owned();
    let config = form.read(&settings)?;
    let length_limit = (form.length_limit)(&settings)?;
    let regularisers = settings.finish()?;
    config.validate().map_err(|e| within(&what, e))?;
    Ok(Part {
        model: PartModel::Language {
            form,
            config,
            length_limit,
        },
        regularisers,
        is_alone,
    })
}

/// Old files of image and text pairs say a tower's settings twice, and transformers lets the second overrule the first: where
/// they differ, nobody can tell which the weights are of.
fn hold_repeated(
    what: &str,
    config: &Map<String, Json>,
    key: &str,
    inner: &Map<String, Json>,
) -> Result<()> {
    let again = format!("{key}_dict");
    let Some(repeated) = config.get(&again).and_then(Json::as_object) else {
        return Ok(());
    };
    for (name, value) in repeated {
        let first = inner.get(name).unwrap_or(&Json::Null);
        // 1 and 1.0 are one number.
        let is_same = first == value || first.as_f64().is_some_and(|x| Some(x) == value.as_f64());
        if !is_same && shared(name).is_none() {
            return Err(Error::setting(
                format!("{what}: {again}.{name}"),
                format!("what {key} says, {first}"),
                value,
            ));
        }
    }
    Ok(())
}

/// A problem with a model's settings, in the file that they come from.
fn within(what: &str, problem: Error) -> Error {
    match problem {
        Error::Setting {
            what: field,
            want,
            found,
        } => Error::Setting {
            what: format!("{what}: {field}"),
            want,
            found,
        },
        other => other,
    }
}

pub(super) fn model_type(config: &Map<String, Json>) -> &str {
    config
        .get("model_type")
        .and_then(Json::as_str)
        .unwrap_or_default()
}
