//! A sub-model of a folder, such as its vision tower or its language model: its settings, and which tensors its parameters
//! come from.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::families::LengthLimit;
use super::families::internvl::{self, ConnectorForm};
use super::families::{Pooling, VisionForm};
use super::hf_config::Settings;
use super::pos_embed_interp::Scaling;
use super::processor::{ImageSize, Processor};
use super::recognise::{Part, PartModel, parts_of, unread_parts};
use super::tensor_resolver::{TensorResolver, Wanted, nearest_of, prefix};
use super::{Folder, TensorPlace};
use serde_json::Value as Json;

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

/// What stands between tower and decoder in a folder of both.
#[derive(Debug)]
pub enum FolderConnector {
    /// Nothing.
    Absent,
    /// A connector that Keel can go on with, with the model around it.
    Taken(Box<(SubModel, ModelConfig)>),
    /// A connector that Keel has no code for: why it is left aside.
    Left(String),
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
    length_limit: Option<LengthLimit>,
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
        let parts = parts_of(&config_name(folder), folder.config())?.into_iter();
        parts.map(|part| SubModel::found(folder, part)).collect()
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
    /// As [`SubModel::all`]; a connector that Keel has no code for is an error, too.
    pub fn connector(folder: &Folder) -> Result<Option<(SubModel, ModelConfig)>> {
        let towers = SubModel::all(folder)?;
        let Some((vision, language)) = both(&towers) else {
            return Ok(None);
        };
        let is_there = |form: &&&ConnectorForm| {
            let names = folder.tensors().keys();
            names.into_iter().any(|name| {
                let before = name.strip_suffix(form.probe);
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            })
        };
        let kind = folder.config().get("model_type").and_then(Json::as_str);
        let is_of = |form: &&&ConnectorForm| {
            is_there(form) && form.model_type.is_none_or(|wanted| kind == Some(wanted))
        };
        let Some(form) = internvl::CONNECTORS.iter().find(is_of) else {
            return Ok(None);
        };
        SubModel::connector_of(folder, form, vision, language).map(Some)
    }

    /// The folder's connector, or why it is not taken, where there is one.
    ///
    /// # Errors
    /// As [`SubModel::all`], and [`Error::Content`] when tensors of a connector that Keel has code for are missing or of the wrong
    /// shape.
    pub fn connector_or_why(folder: &Folder) -> Result<FolderConnector> {
        match SubModel::connector(folder) {
            Ok(Some((part, config))) => Ok(FolderConnector::Taken(Box::new((part, config)))),
            // What is in the way of a connector is in the way of nothing else.
            Err(problem @ Error::Setting { .. }) => {
                SubModel::all(folder)?;
                Ok(FolderConnector::Left(problem.to_string()))
            }
            Err(problem) => Err(problem),
            Ok(None) if both(&SubModel::all(folder)?).is_none() => Ok(FolderConnector::Absent),
            Ok(None) => {
                let is_module = |name: &str| internvl::OTHER_CONNECTORS.contains(&name);
                let mut names = folder.tensors().keys();
                Ok(match names.find(|name| name.split('.').any(is_module)) {
                    Some(name) => FolderConnector::Left(format!(
                        "tensor {name} belongs to a connector of another form than InternVL's and LLaVA 1.5's"
                    )),
                    None => FolderConnector::Absent,
                })
            }
        }
    }

    /// Parts of the folder that Keel has no code for, each in a few words; nothing where the folder is of one model alone.
    pub fn unread_parts(folder: &Folder) -> Vec<String> {
        unread_parts(folder.config())
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
        let unread = match &SubModel::unread_parts(folder)[..] {
            [] => String::new(),
            parts => format!(" that Keel reads (there is {})", parts.join(" and ")),
        };
        Err(Error::content(
            folder.path().display(),
            format!("has no {what}{unread}"),
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

    /// How the folder's `preprocessor_config.json` prepares images for this vision tower; nothing where there is no such file.
    ///
    /// # Errors
    /// As [`Folder::processor`], and when the images that come out are no multiple of the tower's patch.
    pub fn processor(&self, folder: &Folder) -> Result<Option<Processor>> {
        let SubModelConfig::Vision(config) = &self.config else {
            return Ok(None);
        };
        let takes_any_size = self.form.is_some_and(|form| form.takes_any_size);
        let size = match takes_any_size {
            true => ImageSize::OfProcessor(config.image_size),
            false => ImageSize::Fixed(config.image_size),
        };
        let processor = folder.processor(size)?;
        match processor {
            Some(found) if !found.side.is_multiple_of(config.patch_size) => Err(Error::setting(
                folder
                    .path()
                    .join("preprocessor_config.json")
                    .display()
                    .to_string(),
                format!(
                    "images of a multiple of the tower's patch, {}",
                    config.patch_size
                ),
                format!("{} pixels", found.side),
            )),
            _ => Ok(processor),
        }
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

    /// The longest sequence that a language model computes as its settings say; nothing where there is no such end.
    pub fn length_limit(&self) -> Option<LengthLimit> {
        self.length_limit
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
            length_limit: None,
            form: None,
            own_grid: None,
            pooling: None,
        }
    }

    /// A part with the tensors that it has in the folder.
    fn found(folder: &Folder, part: Part) -> Result<SubModel> {
        let regularisers = part.regularisers;
        match part.model {
            PartModel::Vision {
                form,
                config,
                pooling,
            } => {
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
                tower.find(&resolver, form.ignored, part.is_alone)
            }
            PartModel::Language {
                form,
                config,
                length_limit,
            } => {
                let resolver = TensorResolver {
                    folder,
                    names: form.names,
                    prefix: prefix(folder, form.probes)?,
                    heads: config.block().heads,
                    patch: 0,
                    patches_by_pixel: false,
                    decoder: Some(form),
                };
                let layout = language_layout(&config)?;
                let decoder = SubModel {
                    regularisers,
                    length_limit,
                    ..SubModel::bare(form.title, SubModelConfig::Language(config), layout)
                };
                decoder.find(&resolver, form.ignored, part.is_alone)
            }
        }
    }

    /// The connector of a whole model in one of the forms of InternVL.
    fn connector_of(
        folder: &Folder,
        form: &ConnectorForm,
        vision: &VisionConfig,
        language: &LanguageConfig,
    ) -> Result<(SubModel, ModelConfig)> {
        let settings = Settings::new(config_name(folder), folder.config());
        let config = ModelConfig {
            vision: vision.clone(),
            text: None,
            connector: form.read(&settings)?,
            language: language.clone(),
            teacher: None,
            embed_dim: 1,
            align: Alignment::default(),
        };
        config.validate()?;
        let mut tape = Tape::declaring();
        let tokens = vision.tokens();
        let features = tape.input(
            ModelInput::Features,
            TensorType::f32([1, tokens, vision.width]),
        );
        connector(&mut tape, &config, features)?;
        let resolver = TensorResolver {
            folder,
            names: form.names,
            prefix: format!("{}{}", prefix(folder, &[form.probe])?, form.stem),
            heads: vision.block().heads,
            patch: 0,
            patches_by_pixel: false,
            decoder: None,
        };
        let found = SubModel::bare(
            form.title,
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
            // Registers of a tower without any, for example: nothing that could be missed.
            if elements == 0 {
                continue;
            }
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
                    format!("tensor {name} has no place in this model{near}"),
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

fn language_layout(config: &LanguageConfig) -> Result<Arc<ParameterLayout>> {
    let mut tape = Tape::declaring();
    let tokens = tape.input(ModelInput::Tokens, TensorType::i32([1, 1]));
    let x = embed_tokens(&mut tape, config, tokens)?;
    language_trunk(&mut tape, config, x, None, "language")?;
    language_head(&mut tape, config)?;
    Ok(Arc::new(ParameterLayout::new(&tape.specs())))
}

/// The vision tower and the language model, where there are both.
fn both(towers: &[SubModel]) -> Option<(&VisionConfig, &LanguageConfig)> {
    match towers {
        [
            SubModel {
                config: SubModelConfig::Vision(vision),
                ..
            },
            SubModel {
                config: SubModelConfig::Language(language),
                ..
            },
        ] => Some((vision, language)),
        _ => None,
    }
}

fn config_name(folder: &Folder) -> String {
    folder
        .path()
        .join(folder.config_file())
        .display()
        .to_string()
}
