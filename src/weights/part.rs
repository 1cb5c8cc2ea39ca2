//! A vision tower or a language model inside a folder: its settings, and which tensors its parameters come from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Map, Value as Json};

use super::families::{MLP1, QWEN};
use super::finder::{Finder, Wanted, nearest_of, prefix};
use super::head::Pooling;
use super::language::{self, LANGUAGE_TYPES};
use super::positions::Scaling;
use super::settings::Settings;
use super::vision::{self, VISION_TYPES};
use super::written::{Content, Written};
use super::{Folder, TensorPlace};
use keel_base::error::{Error, Result};
use keel_model::{
    Alignment, ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig, VisionHead, connector,
    embed_tokens, language_head, language_trunk, vision_tower,
};
use keel_engine::tape::{ParameterEntry, ParameterLayout, Tape};
use keel_engine::tensor::TensorType;

/// The settings of a part.
#[derive(Clone, Debug, PartialEq)]
pub enum Tower {
    /// A vision tower.
    Vision(VisionConfig),
    /// A language model.
    Language(LanguageConfig),
    /// The connector between the two, with its settings and theirs.
    Connector(Box<ModelConfig>),
    /// What makes one row of a vision tower's features, with the tower's settings.
    Head(VisionConfig, VisionHead),
}

/// Tensors that a part does without.
#[derive(Clone, Debug)]
pub struct Aside {
    /// What they are.
    pub what: &'static str,
    /// How many numbers they hold.
    pub elements: usize,
}

/// A part of a folder whose settings Keel can express and whose tensors are all there, in the right shapes.
#[derive(Debug)]
pub struct Part {
    title: &'static str,
    tower: Tower,
    layout: Arc<ParameterLayout>,
    pub(super) sources: Vec<Source>,
    /// The tensor that must equal the embedding, where the output product has a copy of it.
    pub(super) copy: Option<(String, TensorPlace)>,
    aside: Vec<Aside>,
    regularisers: Vec<String>,
    /// The folder's own grid of positions, where the part is of another picture size.
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

impl Part {
    /// Every tower of the folder that Keel can express: the vision tower first, then the language model.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the setting that Keel has no code for; [`Error::Content`] naming the tensor that is
    /// missing, surplus or of the wrong shape, with the nearest name.
    pub fn all(folder: &Folder) -> Result<Vec<Part>> {
        let config = folder.config();
        let what = folder.path().join("config.json").display().to_string();
        let kind = model_type(config);
        let object = |key: &'static str| Some((key, config.get(key)?.as_object()?));
        let inner_vision = object("vision_config");
        if inner_vision.is_none() {
            if VISION_TYPES.contains(&kind) {
                return Ok(vec![Part::vision_of(
                    folder,
                    kind,
                    Settings::new(what, config),
                    true,
                )?]);
            }
            if LANGUAGE_TYPES.contains(&kind) {
                return Ok(vec![Part::language_of(
                    folder,
                    kind,
                    Settings::new(what, config),
                    true,
                )?]);
            }
        }
        let mut parts = Vec::new();
        if let Some((key, inner)) = inner_vision {
            // Old files of contrastive pairs leave the tower's type to be told from the pair's.
            let inner_kind = match (model_type(inner), kind) {
                ("", "clip") => "clip_vision_model",
                ("", "siglip") => "siglip_vision_model",
                ("", "siglip2") => "siglip2_vision_model",
                ("", "aimv2") => "aimv2_vision_model",
                (inner, _) => inner,
            };
            let settings = Settings::new(format!("{what}: {key}"), inner);
            if VISION_TYPES.contains(&inner_kind) {
                parts.push(Part::vision_of(folder, inner_kind, settings, false)?);
            }
        }
        for (key, inner) in [object("llm_config"), object("text_config")]
            .into_iter()
            .flatten()
        {
            if LANGUAGE_TYPES.contains(&model_type(inner)) {
                let settings = Settings::new(format!("{what}: {key}"), inner);
                parts.push(Part::language_of(
                    folder,
                    model_type(inner),
                    settings,
                    false,
                )?);
            }
        }
        match parts.is_empty() {
            false => Ok(parts),
            true => Err(Error::setting(
                format!("{what}: model_type"),
                format!(
                    "one of {}, {}, or a model made of these",
                    VISION_TYPES.join(", "),
                    LANGUAGE_TYPES.join(", ")
                ),
                if kind.is_empty() { "none" } else { kind },
            )),
        }
    }

    /// The folder's vision tower.
    ///
    /// # Errors
    /// As [`Part::all`], and when the folder has none.
    pub fn vision(folder: &Folder) -> Result<(Part, VisionConfig)> {
        Part::only(folder, "vision tower", |tower| match tower {
            Tower::Vision(config) => Some(config.clone()),
            _ => None,
        })
    }

    /// The folder's language model.
    ///
    /// # Errors
    /// As [`Part::all`], and when the folder has none.
    pub fn language(folder: &Folder) -> Result<(Part, LanguageConfig)> {
        Part::only(folder, "language model", |tower| match tower {
            Tower::Language(config) => Some(config.clone()),
            _ => None,
        })
    }

    /// The folder's connector, where it holds one.
    ///
    /// # Errors
    /// As [`Part::all`].
    pub fn connector(folder: &Folder) -> Result<Option<(Part, ModelConfig)>> {
        let towers = Part::all(folder)?;
        let [vision, language] = &towers[..] else {
            return Ok(None);
        };
        let (Tower::Vision(vision), Tower::Language(language)) = (&vision.tower, &language.tower)
        else {
            return Ok(None);
        };
        match folder.tensors().contains_key("mlp1.0.weight") {
            true => Part::connector_of(folder, vision, language).map(Some),
            false => Ok(None),
        }
    }

    /// The first part that `settings` recognises, with what it makes of it.
    fn only<C>(
        folder: &Folder,
        what: &str,
        settings: impl Fn(&Tower) -> Option<C>,
    ) -> Result<(Part, C)> {
        for part in Part::all(folder)? {
            if let Some(config) = settings(&part.tower) {
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
    pub fn tower(&self) -> &Tower {
        &self.tower
    }

    /// The same tower for square pictures of `side` pixels: its learned positions are scaled to the new grid as they are read.
    /// Any other part stays what it is.
    ///
    /// # Errors
    /// [`Error::Setting`] when `side` is no multiple of the patch.
    pub fn at_size(mut self, side: usize) -> Result<Part> {
        let Tower::Vision(config) = &mut self.tower else {
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
        match self.sources.iter().any(|source| source.patch.is_some()) {
            true => Scaling::FilteredBilinear,
            false => Scaling::Bicubic,
        }
    }

    /// Writes the picture size into the settings that the part came from, `config.json` of its folder, where it is another.
    pub fn tell_size(&self, config: &mut Map<String, Json>) {
        let (Tower::Vision(tower), Some(_)) = (&self.tower, self.own_grid) else {
            return;
        };
        let side = tower.image_size;
        if config.contains_key("force_image_size") {
            config.insert("force_image_size".into(), side.into());
        }
        let settings = match config.contains_key("vision_config") {
            true => config["vision_config"].as_object_mut(),
            false => Some(config),
        };
        let Some(settings) = settings else { return };
        if self.scaling() == Scaling::FilteredBilinear {
            settings.insert("num_patches".into(), tower.patches().into());
            return;
        }
        let edges = match settings.get("image_size").is_some_and(Json::is_array) {
            true => vec![side; 2].into(),
            false => side.into(),
        };
        settings.insert("image_size".into(), edges);
    }

    /// Its parameters alone, laid out.
    pub fn layout(&self) -> &Arc<ParameterLayout> {
        &self.layout
    }

    /// Tensors of the folder that it does without.
    pub fn aside(&self) -> &[Aside] {
        &self.aside
    }

    /// What drops units at random in training elsewhere, and not here.
    pub fn regularisers(&self) -> &[String] {
        &self.regularisers
    }

    /// A part whose tensors have yet to be found.
    pub(super) fn bare(title: &'static str, tower: Tower, layout: Arc<ParameterLayout>) -> Part {
        Part {
            title,
            tower,
            layout,
            sources: Vec::new(),
            copy: None,
            aside: Vec::new(),
            regularisers: Vec::new(),
            own_grid: None,
            pooling: None,
        }
    }

    fn vision_of(folder: &Folder, kind: &str, settings: Settings, is_alone: bool) -> Result<Part> {
        let (family, config) = vision::read(kind, &settings)?;
        let regularisers = settings.finish()?;
        config.validate()?;
        let layout = vision_layout(&config)?;
        let finder = Finder {
            folder,
            names: family.names,
            prefix: prefix(folder, family.probes)?,
            heads: config.block().heads,
            patch: config.patch_size,
            patches_by_pixel: family.patches_by_pixel,
        };
        let part = Part {
            regularisers,
            pooling: family
                .pooling
                .map(|pooling| (pooling, finder.prefix.clone())),
            ..Part::bare(family.title, Tower::Vision(config), layout)
        };
        part.find(&finder, family.aside, is_alone)
    }

    fn language_of(
        folder: &Folder,
        kind: &str,
        settings: Settings,
        is_alone: bool,
    ) -> Result<Part> {
        let (title, config) = language::read(kind, &settings)?;
        let regularisers = settings.finish()?;
        config.validate()?;
        let mut tape = Tape::declaring();
        let tokens = tape.input("tokens", TensorType::i32([1, 1]));
        let x = embed_tokens(&mut tape, &config, tokens)?;
        language_trunk(&mut tape, &config, x, None, "language")?;
        language_head(&mut tape, &config)?;
        let finder = Finder {
            folder,
            names: QWEN,
            prefix: prefix(folder, &["embed_tokens.weight"])?,
            heads: config.block().heads,
            patch: 0,
            patches_by_pixel: false,
        };
        let layout = Arc::new(ParameterLayout::new(&tape.specs()));
        let part = Part {
            regularisers,
            ..Part::bare(title, Tower::Language(config), layout)
        };
        let aside = &[("rotary_emb.inv_freq", "rotary frequencies counted out")];
        part.find(&finder, aside, is_alone)
    }

    /// `mlp1.` of InternVL and SAIL-VL.
    fn connector_of(
        folder: &Folder,
        vision: &VisionConfig,
        language: &LanguageConfig,
    ) -> Result<(Part, ModelConfig)> {
        let what = folder.path().join("config.json").display().to_string();
        let settings = Settings::new(what, folder.config());
        let ratio = settings.float("downsample_ratio", 0.5)?;
        let factor = (1.0 / ratio).round();
        if !(1.0..=64.0).contains(&factor) || (factor * ratio - 1.0).abs() > 1e-6 {
            return Err(settings.refuse("downsample_ratio", "1, 1/2, 1/3 or another part", ratio));
        }
        // The first version leaves the grid turned.
        match settings.text("ps_version", "v1")? {
            "v2" => {}
            other => return Err(settings.refuse("ps_version", "v2", other)),
        }
        let config = ModelConfig {
            vision: vision.clone(),
            text: None,
            connector: ConnectorConfig {
                factor: factor as usize,
            },
            language: language.clone(),
            embedding: 1,
            align: Alignment::default(),
        };
        config.validate()?;
        let mut tape = Tape::declaring();
        let tokens = vision.patches() + usize::from(vision.class_token);
        let features = tape.input("features", TensorType::f32([1, tokens, vision.width]));
        connector(&mut tape, &config, features)?;
        let finder = Finder {
            folder,
            names: MLP1,
            prefix: "mlp1.".to_owned(),
            heads: vision.block().heads,
            patch: 0,
            patches_by_pixel: false,
        };
        let part = Part::bare(
            "Connector (pixel unshuffle and mlp1)",
            Tower::Connector(Box::new(config.clone())),
            Arc::new(ParameterLayout::new(&tape.specs())),
        );
        Ok((part.find(&finder, &[], false)?, config))
    }

    /// Every tensor of `folder` in its order, those of `parts` with new values, in the type they are stored in or in `dtype`.
    /// `value_of` gives the values of a parameter; a table of tokens or positions may have other rows than the folder's.
    pub fn rewrite<'a>(
        folder: &'a Folder,
        parts: &[Part],
        dtype: Option<Dtype>,
        value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
    ) -> Vec<Written<'a>> {
        let mut new: BTreeMap<String, Written<'a>> = BTreeMap::new();
        let mut put = |name: &str, place: &TensorPlace, values: &'a [f32], patch| {
            let mut shape = place.shape.clone();
            let old: usize = place.shape.iter().product();
            if old != values.len() {
                // Rows stand before the width; a table of positions may have a batch of one before them.
                let axis = shape.len() - 2;
                shape[axis] = values.len() * shape[axis] / old;
            }
            let written = Written {
                name: name.to_owned(),
                shape,
                dtype: dtype.unwrap_or(place.dtype),
                content: Content::Values { values, patch },
            };
            new.insert(name.to_owned(), written);
        };
        for part in parts {
            for (entry, source) in part.layout.entries().iter().zip(&part.sources) {
                let values = value_of(entry);
                let mut first = 0;
                for (index, (name, place)) in source.tensors.iter().enumerate() {
                    let count: usize = place.shape.iter().product();
                    let end = match index + 1 == source.tensors.len() {
                        true => values.len(),
                        false => first + count,
                    };
                    put(name, place, &values[first..end], source.patch);
                    first = end;
                }
                if let Some((name, place)) = &part.copy
                    && entry.spec.name == "language.embedding"
                {
                    put(name, place, values, None);
                }
            }
        }
        let all = folder.tensors().iter();
        all.map(|(name, place)| match new.remove(name) {
            Some(written) => written,
            None => Written {
                name: name.clone(),
                shape: place.shape.clone(),
                dtype: place.dtype,
                content: Content::Bytes(folder.bytes(place)),
            },
        })
        .collect()
    }

    /// Finds the tensors of every parameter, and accounts for every tensor of the folder.
    fn find(
        mut self,
        finder: &Finder,
        aside: &[(&str, &'static str)],
        is_alone: bool,
    ) -> Result<Part> {
        let mut used: BTreeSet<String> = BTreeSet::new();
        let layout = self.layout.clone();
        for entry in layout.entries() {
            let source = finder.source(entry)?;
            used.extend(source.tensors.iter().map(|(name, _)| name.clone()));
            self.sources.push(source);
        }
        for (name, place) in finder.folder.tensors() {
            if used.contains(name) {
                continue;
            }
            let elements = place.shape.iter().product();
            let is_head = matches!(self.tower, Tower::Language(_))
                && (name == "lm_head.weight" || name.ends_with(".lm_head.weight"));
            let own = name.strip_prefix(&finder.prefix);
            let known = aside.iter().find(|(beginning, _)| {
                let is_of_it =
                    |name: &str| name.starts_with(beginning) || name.ends_with(beginning);
                own.is_some_and(is_of_it) || is_of_it(name)
            });
            if is_head {
                let table = &self.layout.entries()
                    [self.layout.index("language.embedding").unwrap_or_default()];
                finder.hold_shape(
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
                    finder.folder.path().display(),
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
        match self.aside.iter_mut().find(|aside| aside.what == what) {
            Some(aside) => aside.elements += elements,
            None => self.aside.push(Aside { what, elements }),
        }
    }
}

fn vision_layout(config: &VisionConfig) -> Result<Arc<ParameterLayout>> {
    let mut tape = Tape::declaring();
    let side = config.image_size;
    let images = tape.input("images", TensorType::f32([1, 3, side, side]));
    vision_tower(&mut tape, config, images)?;
    Ok(Arc::new(ParameterLayout::new(&tape.specs())))
}

fn model_type(config: &Map<String, Json>) -> &str {
    config
        .get("model_type")
        .and_then(Json::as_str)
        .unwrap_or_default()
}
