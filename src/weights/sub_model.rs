//! A sub-model of a folder, such as its vision tower or its language model: its settings, and which tensors its parameters
//! come from.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::families::{
    LanguageForm, Pooling, VisionForm, internvl, language_form, model_types, vision_form,
};
use super::hf_config::Settings;
use super::pos_embed_interp::Scaling;
use super::tensor_resolver::{TensorResolver, Wanted, nearest_of, prefix};
use super::{Folder, TensorPlace};
use keel_base::error::{Error, Result};
use keel_engine::tape::{ParameterLayout, Tape};
use keel_engine::tensor::TensorType;
use keel_model::{
    Alignment, LanguageConfig, ModelConfig, ModelInput, VisionConfig, VisionHead, connector,
    embed_tokens, language_head, language_trunk, vision_tower,
};

/// The settings of a sub-model.
#[derive(Clone, Debug, PartialEq)]
pub enum SubModelConfig {
    /// A vision tower.
    Vision(VisionConfig),
    /// A language model.
    Language(LanguageConfig),
    /// The connector between the two, with its settings and theirs.
    Connector(Box<ModelConfig>),
    /// What makes one row of a vision tower's features, with the tower's settings.
    Head(VisionConfig, VisionHead),
}

/// Tensors that a sub-model does without.
#[derive(Clone, Debug)]
pub struct IgnoredTensors {
    /// What they are.
    pub what: &'static str,
    /// How many numbers they hold.
    pub elements: usize,
}

/// A model within a folder whose settings Keel can express and whose tensors are all there, in the right shapes.
#[derive(Debug)]
pub struct SubModel {
    title: &'static str,
    config: SubModelConfig,
    layout: Arc<ParameterLayout>,
    pub(super) sources: Vec<Source>,
    /// The tensor that must equal the embedding, where the output product has a copy of it.
    pub(super) copy: Option<(String, TensorPlace)>,
    ignored: Vec<IgnoredTensors>,
    regularisers: Vec<String>,
    /// The form of a vision tower's family.
    pub(super) form: Option<&'static VisionForm>,
    /// The folder's own grid of positions, where the sub-model is of another image size.
    pub(super) own_grid: Option<usize>,
    /// A vision tower's own pooling, and what stands before its tensors' names.
    pub(super) pooling: Option<(Pooling, String)>,
}

/// Where one parameter comes from, in the order of the layout's entries.
#[derive(Debug)]
pub(super) struct Source {
    /// The tensors, stacked by rows.
    pub tensors: Vec<(String, TensorPlace)>,
    /// Side of a patch, where rows hold (row, column, colour) and must become (colour, row, column).
    pub patch: Option<usize>,
}

impl SubModel {
    /// Every tower of the folder that Keel can express: the vision tower first, then the language model.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the setting that Keel has no code for; [`Error::Content`] naming the tensor that is
    /// missing, surplus or of the wrong shape, with the nearest name.
    pub fn all(folder: &Folder) -> Result<Vec<SubModel>> {
        let config = folder.config();
        let what = folder.path().join("config.json").display().to_string();
        let kind = model_type(config);
        let object = |key: &'static str| Some((key, config.get(key)?.as_object()?));
        let inner_vision = object(internvl::VISION_KEY);
        if inner_vision.is_none() {
            let settings = Settings::new(what.clone(), config);
            if let Some(form) = vision_form(kind, None) {
                return Ok(vec![SubModel::vision_of(folder, form, settings, true)?]);
            }
            if let Some(form) = language_form(kind) {
                return Ok(vec![SubModel::language_of(folder, form, settings, true)?]);
            }
        }
        let mut found = Vec::new();
        if let Some((key, inner)) = inner_vision
            && let Some(form) = vision_form(model_type(inner), Some(kind))
        {
            let settings = Settings::new(format!("{what}: {key}"), inner);
            found.push(SubModel::vision_of(folder, form, settings, false)?);
        }
        for (key, inner) in internvl::LANGUAGE_KEYS.into_iter().filter_map(object) {
            if let Some(form) = language_form(model_type(inner)) {
                let settings = Settings::new(format!("{what}: {key}"), inner);
                found.push(SubModel::language_of(folder, form, settings, false)?);
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let [vision, language] = model_types();
        Err(Error::setting(
            format!("{what}: model_type"),
            format!("one of {vision}, {language}, or a model made of these"),
            if kind.is_empty() { "none" } else { kind },
        ))
    }

    /// The folder's vision tower.
    ///
    /// # Errors
    /// As [`SubModel::all`], and when the folder has none.
    pub fn vision(folder: &Folder) -> Result<(SubModel, VisionConfig)> {
        SubModel::only(folder, "vision tower", |tower| match tower {
            SubModelConfig::Vision(config) => Some(config.clone()),
            _ => None,
        })
    }

    /// The folder's language model.
    ///
    /// # Errors
    /// As [`SubModel::all`], and when the folder has none.
    pub fn language(folder: &Folder) -> Result<(SubModel, LanguageConfig)> {
        SubModel::only(folder, "language model", |tower| match tower {
            SubModelConfig::Language(config) => Some(config.clone()),
            _ => None,
        })
    }

    /// The folder's connector, where it holds one.
    ///
    /// # Errors
    /// As [`SubModel::all`].
    pub fn connector(folder: &Folder) -> Result<Option<(SubModel, ModelConfig)>> {
        let towers = SubModel::all(folder)?;
        let [vision, language] = &towers[..] else {
            return Ok(None);
        };
        let (SubModelConfig::Vision(vision), SubModelConfig::Language(language)) =
            (&vision.config, &language.config)
        else {
            return Ok(None);
        };
        if !folder.tensors().contains_key(internvl::CONNECTOR_PROBE) {
            return Ok(None);
        }
        SubModel::connector_of(folder, vision, language).map(Some)
    }

    /// The first sub-model that `settings` recognises, with what it makes of it.
    fn only<C>(
        folder: &Folder,
        what: &str,
        settings: impl Fn(&SubModelConfig) -> Option<C>,
    ) -> Result<(SubModel, C)> {
        for part in SubModel::all(folder)? {
            if let Some(config) = settings(&part.config) {
                return Ok((part, config));
            }
        }
        Err(Error::content(
            folder.path().display(),
            format!("has no {what}"),
            "give the folder of one",
        ))
    }

    /// What it is, for example `CLIP vision tower`.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// Its settings.
    pub fn config(&self) -> &SubModelConfig {
        &self.config
    }

    /// The same tower for square images of `side` pixels: its learned positions are scaled to the new grid as they are read.
    /// Any other sub-model stays what it is.
    ///
    /// # Errors
    /// [`Error::Setting`] when `side` is no multiple of the patch.
    pub fn at_size(mut self, side: usize) -> Result<SubModel> {
        let SubModelConfig::Vision(config) = &mut self.config else {
            return Ok(self);
        };
        if config.image_size == side {
            return Ok(self);
        }
        if side == 0 || !side.is_multiple_of(config.patch_size) {
            return Err(Error::setting(
                "--image-size",
                format!("a multiple of the tower's patch, {}", config.patch_size),
                side,
            ));
        }
        let own = config.grid();
        config.image_size = side;
        self.layout = vision_layout(config)?;
        self.own_grid = Some(self.own_grid.unwrap_or(own));
        Ok(self)
    }

    /// How learned positions are scaled.
    pub(super) fn scaling(&self) -> Scaling {
        self.form.map_or(Scaling::Bicubic, |form| form.scaling)
    }

    /// Its parameters alone, laid out.
    pub fn layout(&self) -> &Arc<ParameterLayout> {
        &self.layout
    }

    /// Tensors of the folder that it does without.
    pub fn ignored(&self) -> &[IgnoredTensors] {
        &self.ignored
    }

    /// What drops units at random in training elsewhere, and not here.
    pub fn regularisers(&self) -> &[String] {
        &self.regularisers
    }

    /// A sub-model whose tensors have yet to be found.
    pub(super) fn bare(
        title: &'static str,
        config: SubModelConfig,
        layout: Arc<ParameterLayout>,
    ) -> SubModel {
        SubModel {
            title,
            config,
            layout,
            sources: Vec::new(),
            copy: None,
            ignored: Vec::new(),
            regularisers: Vec::new(),
            form: None,
            own_grid: None,
            pooling: None,
        }
    }

    fn vision_of(
        folder: &Folder,
        form: &'static VisionForm,
        settings: Settings,
        is_alone: bool,
    ) -> Result<SubModel> {
        let config = form.read(&settings)?;
        let pooling = form.pooling_of(&settings)?;
        let regularisers = settings.finish()?;
        config.validate()?;
        let layout = vision_layout(&config)?;
        let resolver = TensorResolver {
            folder,
            names: form.names,
            prefix: prefix(folder, form.probes)?,
            heads: config.block().heads,
            patch: config.patch_size,
            patches_by_pixel: form.patches_by_pixel,
            decoder: None,
        };
        let tower = SubModel {
            regularisers,
            form: Some(form),
            pooling: pooling.map(|pooling| (pooling, resolver.prefix.clone())),
            ..SubModel::bare(form.title, SubModelConfig::Vision(config), layout)
        };
        tower.find(&resolver, form.ignored, is_alone)
    }

    fn language_of(
        folder: &Folder,
        form: &'static LanguageForm,
        settings: Settings,
        is_alone: bool,
    ) -> Result<SubModel> {
        let config = form.read(&settings)?;
        let regularisers = settings.finish()?;
        config.validate()?;
        let mut tape = Tape::declaring();
        let tokens = tape.input(ModelInput::Tokens, TensorType::i32([1, 1]));
        let x = embed_tokens(&mut tape, &config, tokens)?;
        language_trunk(&mut tape, &config, x, None, "language")?;
        language_head(&mut tape, &config)?;
        let resolver = TensorResolver {
            folder,
            names: form.names,
            prefix: prefix(folder, form.probes)?,
            heads: config.block().heads,
            patch: 0,
            patches_by_pixel: false,
            decoder: Some(form),
        };
        let layout = Arc::new(ParameterLayout::new(&tape.specs()));
        let decoder = SubModel {
            regularisers,
            ..SubModel::bare(form.title, SubModelConfig::Language(config), layout)
        };
        decoder.find(&resolver, form.ignored, is_alone)
    }

    /// The connector of a whole model in the form of InternVL and SAIL-VL.
    fn connector_of(
        folder: &Folder,
        vision: &VisionConfig,
        language: &LanguageConfig,
    ) -> Result<(SubModel, ModelConfig)> {
        let what = folder.path().join("config.json").display().to_string();
        let settings = Settings::new(what, folder.config());
        let config = ModelConfig {
            vision: vision.clone(),
            text: None,
            connector: internvl::read_connector(&settings)?,
            language: language.clone(),
            embed_dim: 1,
            align: Alignment::default(),
        };
        config.validate()?;
        let mut tape = Tape::declaring();
        let tokens = vision.patches() + usize::from(vision.class_token);
        let features = tape.input(
            ModelInput::Features,
            TensorType::f32([1, tokens, vision.width]),
        );
        connector(&mut tape, &config, features)?;
        let resolver = TensorResolver {
            folder,
            names: internvl::CONNECTOR_NAMES,
            prefix: internvl::CONNECTOR_PREFIX.to_owned(),
            heads: vision.block().heads,
            patch: 0,
            patches_by_pixel: false,
            decoder: None,
        };
        let found = SubModel::bare(
            "Connector (pixel unshuffle and mlp1)",
            SubModelConfig::Connector(Box::new(config.clone())),
            Arc::new(ParameterLayout::new(&tape.specs())),
        );
        Ok((found.find(&resolver, &[], false)?, config))
    }

    /// Finds the tensors of every parameter, and accounts for every tensor of the folder.
    fn find(
        mut self,
        resolver: &TensorResolver,
        ignored: &[(&str, &'static str)],
        is_alone: bool,
    ) -> Result<SubModel> {
        let mut used: BTreeSet<String> = BTreeSet::new();
        let layout = self.layout.clone();
        for entry in layout.entries() {
            let source = resolver.source(entry)?;
            used.extend(source.tensors.iter().map(|(name, _)| name.clone()));
            self.sources.push(source);
        }
        // A tensor that nobody reads may be one that the settings do not speak of: the model would compute something else. So
        // every one left over has to be known, or to belong to another model of the folder.
        for (name, place) in resolver.folder.tensors() {
            if used.contains(name) {
                continue;
            }
            let elements = place.shape.iter().product();
            let is_head = resolver.decoder.is_some_and(|form| {
                let before = name.strip_suffix(form.head);
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            });
            let own = name.strip_prefix(&resolver.prefix);
            let known = ignored.iter().find(|(beginning, _)| {
                let is_of_it =
                    |name: &str| name.starts_with(beginning) || name.ends_with(beginning);
                own.is_some_and(is_of_it) || is_of_it(name)
            });
            if is_head {
                let table = &self.layout.entries()
                    [self.layout.index("language.embedding").unwrap_or_default()];
                resolver.hold_shape(
                    name,
                    place,
                    &Wanted::Exactly(table.spec.shape.dims().to_vec()),
                )?;
                self.copy = Some((name.clone(), place.clone()));
                self.leave("copy of the embedding for the output product", elements);
            } else if let Some((_, what)) = known {
                self.leave(what, elements);
            } else if own.is_some() || is_alone {
                let near = nearest_of(name, used.iter().map(String::as_str));
                return Err(Error::content(
                    resolver.folder.path().display(),
                    format!(
                        "tensor {name} has no place in this model, where the nearest name is {near}"
                    ),
                    "check that config.json and the weights belong together",
                ));
            } else {
                self.leave("other parts of the folder", elements);
            }
        }
        Ok(self)
    }

    fn leave(&mut self, what: &'static str, elements: usize) {
        match self.ignored.iter_mut().find(|ignored| ignored.what == what) {
            Some(ignored) => ignored.elements += elements,
            None => self.ignored.push(IgnoredTensors { what, elements }),
        }
    }
}

fn vision_layout(config: &VisionConfig) -> Result<Arc<ParameterLayout>> {
    let mut tape = Tape::declaring();
    let side = config.image_size;
    let images = tape.input(ModelInput::Images, TensorType::f32([1, 3, side, side]));
    vision_tower(&mut tape, config, images)?;
    Ok(Arc::new(ParameterLayout::new(&tape.specs())))
}

fn model_type(config: &Map<String, Json>) -> &str {
    config
        .get("model_type")
        .and_then(Json::as_str)
        .unwrap_or_default()
}
