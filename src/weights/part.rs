//! A vision tower or a language model inside a folder: its settings, and which tensors its parameters come from.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::families::{Names, QWEN};
use super::language::{self, LANGUAGE_TYPES};
use super::settings::Settings;
use super::vision::{self, VISION_TYPES};
use super::{Folder, TensorPlace};
use crate::error::{Error, Result, nearest};
use crate::model::{
    LanguageConfig, VisionConfig, embed_tokens, language_head, language_trunk, vision_tower,
};
use crate::ops::Heads;
use crate::tape::{ParameterEntry, ParameterLayout, Tape};
use crate::tensor::TensorType;

/// The settings of a part.
#[derive(Clone, Debug, PartialEq)]
pub enum Tower {
    /// A vision tower.
    Vision(VisionConfig),
    /// A language model.
    Language(LanguageConfig),
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
    pub(super) copy: Option<TensorPlace>,
    aside: Vec<Aside>,
    regularisers: Vec<String>,
}

/// Where one parameter comes from, in the order of the layout's entries.
#[derive(Debug)]
pub(super) struct Source {
    /// The tensors, stacked by rows.
    pub tensors: Vec<(String, TensorPlace)>,
    /// Side of a patch, where rows hold (row, column, colour) and must become (colour, row, column).
    pub patch: Option<usize>,
}

/// What a tensor's dimensions may be.
enum Wanted {
    /// These, apart from ones in front.
    Dims(Vec<usize>),
    /// Exactly these.
    Exactly(Vec<usize>),
}

/// How a family's tensors are found.
struct Finder<'a> {
    folder: &'a Folder,
    names: &'static [Names],
    prefix: String,
    heads: Heads,
    /// Side of a patch.
    patch: usize,
    patches_by_pixel: bool,
}

impl Part {
    /// Every part of the folder that Keel can express: the vision tower first, then the language model.
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
            Tower::Language(_) => None,
        })
    }

    /// The folder's language model.
    ///
    /// # Errors
    /// As [`Part::all`], and when the folder has none.
    pub fn language(folder: &Folder) -> Result<(Part, LanguageConfig)> {
        Part::only(folder, "language model", |tower| match tower {
            Tower::Vision(_) => None,
            Tower::Language(config) => Some(config.clone()),
        })
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

    fn vision_of(folder: &Folder, kind: &str, settings: Settings, is_alone: bool) -> Result<Part> {
        let (family, config) = vision::read(kind, &settings)?;
        let regularisers = settings.finish()?;
        config.validate()?;
        let mut tape = Tape::declaring();
        let side = config.image_size;
        let images = tape.input("images", TensorType::f32([1, 3, side, side]));
        vision_tower(&mut tape, &config, images)?;
        let finder = Finder {
            folder,
            names: family.names,
            prefix: prefix(folder, family.probes)?,
            heads: config.block().heads,
            patch: config.patch_size,
            patches_by_pixel: family.patches_by_pixel,
        };
        let part = Part {
            title: family.title,
            tower: Tower::Vision(config),
            layout: Arc::new(ParameterLayout::new(&tape.specs())),
            sources: Vec::new(),
            copy: None,
            aside: Vec::new(),
            regularisers,
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
        let part = Part {
            title,
            tower: Tower::Language(config),
            layout: Arc::new(ParameterLayout::new(&tape.specs())),
            sources: Vec::new(),
            copy: None,
            aside: Vec::new(),
            regularisers,
        };
        let aside = &[("rotary_emb.inv_freq", "rotary frequencies counted out")];
        part.find(&finder, aside, is_alone)
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
                self.copy = Some(place.clone());
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

impl Finder<'_> {
    /// The tensors of one parameter.
    fn source(&self, entry: &ParameterEntry) -> Result<Source> {
        let dims = entry.spec.shape.dims();
        let (stem, layer, ending) = self.row(&entry.spec.name);
        if stem == "head" {
            return self.head(entry);
        }
        let ways = self
            .names
            .iter()
            .find(|(row, _)| *row == stem)
            .map_or(&[][..], |(_, ways)| ways);
        let full = |name: &str| format!("{}{}{ending}", self.prefix, name.replace("{l}", &layer));
        let is_there = |name: &str| self.folder.tensors().contains_key(&full(name));
        let way = ways
            .iter()
            .find(|way| way.iter().any(|name| is_there(name)))
            .or_else(|| {
                ways.iter()
                    .find(|way| way.iter().any(|name| self.is_spoken(name)))
            })
            .or(ways.first());
        let Some(way) = way else {
            return Err(Error::setting(
                format!(
                    "{}: parameter {}",
                    self.folder.path().display(),
                    entry.spec.name
                ),
                "a part that this family has",
                "one that its files have no name for",
            ));
        };
        let rows: Vec<usize> = match way.len() {
            1 => vec![dims[0]],
            3 => [self.heads.query, self.heads.key_value, self.heads.key_value]
                .iter()
                .map(|heads| heads * self.heads.dim)
                .collect(),
            count => vec![dims[0] / count; count],
        };
        let is_patches = stem == "patch_embed" && ending == ".weight";
        let mut tensors = Vec::new();
        for (name, rows) in way.iter().zip(rows) {
            let want = match is_patches && !self.patches_by_pixel {
                true => Wanted::Exactly(vec![rows, 3, self.patch, self.patch]),
                false => Wanted::Dims([&[rows], &dims[1..]].concat()),
            };
            let name = full(name);
            let place = self.tensor(&name)?;
            self.hold_shape(&name, &place, &want)?;
            tensors.push((name, place));
        }
        Ok(Source {
            tensors,
            patch: (is_patches && self.patches_by_pixel).then_some(self.patch),
        })
    }

    /// The output product of an untied decoder, beside the decoder or inside it.
    fn head(&self, entry: &ParameterEntry) -> Result<Source> {
        let beside = self.prefix.strip_suffix("model.").unwrap_or(&self.prefix);
        let name = format!("{beside}lm_head.weight");
        let name = match self.folder.tensors().contains_key(&name) {
            true => name,
            false => "lm_head.weight".to_owned(),
        };
        let place = self.tensor(&name)?;
        self.hold_shape(
            &name,
            &place,
            &Wanted::Exactly(entry.spec.shape.dims().to_vec()),
        )?;
        Ok(Source {
            tensors: vec![(name, place)],
            patch: None,
        })
    }

    /// `vision.blocks.3.norm1.weight` → (`blocks.{l}.norm1`, `3`, `.weight`). The ending is empty where a row names the
    /// tensor in full.
    fn row(&self, parameter: &str) -> (String, String, &'static str) {
        let path = parameter
            .split_once('.')
            .map_or(parameter, |(_, path)| path);
        let (path, layer) = match path.strip_prefix("blocks.").and_then(|p| p.split_once('.')) {
            Some((layer, rest)) => (format!("blocks.{{l}}.{rest}"), layer.to_owned()),
            None => (path.to_owned(), String::new()),
        };
        for ending in [".weight", ".bias"] {
            if let Some(stem) = path.strip_suffix(ending) {
                return (stem.to_owned(), layer, ending);
            }
        }
        (path, layer, "")
    }

    /// Whether any layer of the folder names a tensor this way: a missing tensor is then missed under the right name.
    fn is_spoken(&self, name: &str) -> bool {
        let first = name.split("{l}").next().unwrap_or(name);
        let first = format!("{}{first}", self.prefix);
        self.folder
            .tensors()
            .keys()
            .any(|tensor| tensor.starts_with(&first))
    }

    fn tensor(&self, name: &str) -> Result<TensorPlace> {
        self.folder.tensors().get(name).cloned().ok_or_else(|| {
            let near = nearest_of(name, self.folder.tensors().keys().map(String::as_str));
            Error::content(
                self.folder.path().display(),
                format!("tensor {name} is missing, and the nearest name is {near}"),
                "check that config.json and the weights belong together",
            )
        })
    }

    fn hold_shape(&self, name: &str, place: &TensorPlace, want: &Wanted) -> Result<()> {
        let trim = |dims: &[usize]| -> Vec<usize> {
            dims.iter().copied().skip_while(|d| *d == 1).collect()
        };
        let (want, fits) = match want {
            Wanted::Exactly(dims) => (dims, *dims == place.shape),
            Wanted::Dims(dims) => (dims, trim(dims) == trim(&place.shape)),
        };
        match fits {
            true => Ok(()),
            false => Err(Error::content(
                self.folder.path().display(),
                format!(
                    "tensor {name} is {:?}, where config.json asks for {want:?}",
                    place.shape
                ),
                "check that config.json and the weights belong together",
            )),
        }
    }
}

fn model_type(config: &Map<String, Json>) -> &str {
    config
        .get("model_type")
        .and_then(Json::as_str)
        .unwrap_or_default()
}

fn nearest_of<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> &'a str {
    nearest(name, names).unwrap_or("nothing")
}

/// What stands before the names of the part whose first tensor ends in one of `probes`.
fn prefix(folder: &Folder, probes: &[&str]) -> Result<String> {
    let mut found: Vec<&str> = Vec::new();
    for name in folder.tensors().keys() {
        for probe in probes {
            if let Some(prefix) = name.strip_suffix(probe)
                && (prefix.is_empty() || prefix.ends_with('.'))
            {
                found.push(prefix);
            }
        }
    }
    match found[..] {
        [prefix] => Ok(prefix.to_owned()),
        [] => {
            let near = nearest_of(probes[0], folder.tensors().keys().map(String::as_str));
            Err(Error::content(
                folder.path().display(),
                format!(
                    "tensor {} is missing, and the nearest name is {near}",
                    probes.join(" or ")
                ),
                "check that config.json and the weights belong together",
            ))
        }
        [first, second, ..] => Err(Error::content(
            folder.path().display(),
            format!("holds the first tensor of this model twice, under {first:?} and {second:?}"),
            "give a folder with one model of a kind",
        )),
    }
}
