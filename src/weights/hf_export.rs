//! Writes models as Hugging Face folders: again as the folder they came from, or in a layout of their family.
//!
//! What a layout cannot say is found by reading back what was written.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use serde_json::{Map, Value as Json};

use super::adapter::{LinearModule, is_linear};
use super::families::llava::LLAVA;
use super::families::{
    LanguageForm, Layout, Names, VisionForm, internvl, language_forms, row, rows_of, vision_forms,
    write_key,
};
use super::hf_config::Settings;
use super::output_tensor::{Content, OutputTensor};
use super::sub_model::Source;
use super::{Folder, SubModel, SubModelConfig, TensorPlace};
use keel_base::error::{Error, Result};
use keel_engine::ops::Heads;
use keel_engine::tape::{ParameterEntry, ParameterLayout};
use keel_model::{LanguageConfig, VisionConfig};

/// A layout of vision towers.
#[derive(Clone, Copy)]
pub struct VisionLayout {
    form: &'static VisionForm,
    layout: &'static Layout,
}

impl VisionLayout {
    /// All layouts of all families; a model is written in the first that can say it. Layouts that can say towers of other
    /// families are the last, so that a family's own comes before them.
    pub fn all() -> Vec<VisionLayout> {
        let layouts_of =
            |form: &'static VisionForm| form.layouts.iter().map(move |layout| (form, layout));
        let all = vision_forms().flat_map(layouts_of);
        let mut all: Vec<VisionLayout> = all
            .map(|(form, layout)| VisionLayout { form, layout })
            .collect();
        all.sort_by_key(|layout| layout.layout.is_general);
        all
    }

    /// The first layout that can say these settings.
    ///
    /// # Errors
    /// [`Error::Setting`] where none can.
    pub fn of(config: &VisionConfig) -> Result<VisionLayout> {
        let all = VisionLayout::all();
        let fitting = all.iter().find(|layout| layout.config(config).is_ok());
        fitting.copied().ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|layout| layout.name()).collect();
            Error::setting(
                "model.vision",
                format!("the settings of one of {}", names.join(", ")),
                "a tower between them (--layout NAME says what is in the way)",
            )
        })
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.layout.name
    }

    /// `config.json`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what the layout cannot say.
    pub fn config(self, config: &VisionConfig) -> Result<Map<String, Json>> {
        let config = &config.without_lora();
        let json = self.form.write(self.layout, config);
        let what = format!("the layout {}", self.name());
        let again = self.form.read(&Settings::new(what.clone(), &json))?;
        hold_equal(&what, "model.vision", config, &again)?;
        Ok(json)
    }

    /// The linear modules of a tower's blocks.
    pub fn linear_modules(
        self,
        config: &VisionConfig,
        layout: &ParameterLayout,
    ) -> Vec<LinearModule> {
        let namer = self.namer(config, "");
        let weights = entries_of(layout, "vision").filter(|entry| is_linear(&entry.spec.name));
        weights.map(|entry| namer.module(entry)).collect()
    }

    fn namer<'p>(self, config: &VisionConfig, prefix: &'p str) -> Namer<'p> {
        Namer {
            names: self.form.names,
            way: self.layout.naming,
            prefix,
            heads: config.block().heads,
            patch: config.patch_size,
        }
    }

    /// The tensors of a tower with the values that `value_of` gives by parameter.
    pub fn tensors<'a>(
        self,
        config: &VisionConfig,
        layout: &ParameterLayout,
        prefix: &str,
        dtype: Dtype,
        value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
    ) -> Vec<OutputTensor<'a>> {
        let namer = self.namer(config, prefix);
        entries_of(layout, "vision")
            .flat_map(|entry| namer.tensors(entry, value_of(entry), dtype))
            .collect()
    }
}

impl fmt::Debug for VisionLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VisionLayout").field(&self.name()).finish()
    }
}

/// `config.json` of a decoder, in the first form that can say its settings.
///
/// # Errors
/// [`Error::Setting`] naming what the nearest form cannot say.
pub fn language_config(config: &LanguageConfig) -> Result<Map<String, Json>> {
    Ok(form_of(config)?.1)
}

/// The first form that can say a decoder's settings, with the settings in it.
fn form_of(config: &LanguageConfig) -> Result<(&'static LanguageForm, Map<String, Json>)> {
    let config = &config.without_lora();
    let mut nearest: Option<Error> = None;
    for form in language_forms() {
        let json = form.write(config);
        let what = format!("the layout {}", form.model_type);
        let again = form.read(&Settings::new(what.clone(), &json));
        match again.and_then(|again| hold_equal(&what, "model.language", config, &again)) {
            Ok(()) => return Ok((form, json)),
            // The norms on queries and keys are what tells decoders apart before anything else.
            Err(problem) if nearest.is_none() || form.form.qk_norm == config.qk_norm => {
                nearest = Some(problem);
            }
            Err(_) => {}
        }
    }
    Err(nearest.expect("there are forms of decoders"))
}

/// The linear modules of a decoder's blocks.
///
/// # Errors
/// As [`language_config`].
pub fn language_modules(
    config: &LanguageConfig,
    layout: &ParameterLayout,
) -> Result<Vec<LinearModule>> {
    let (form, _) = form_of(config)?;
    let namer = Namer {
        names: form.names,
        way: 0,
        prefix: form.trunk,
        heads: config.block().heads,
        patch: 0,
    };
    let weights = entries_of(layout, "language").filter(|entry| is_linear(&entry.spec.name));
    Ok(weights.map(|entry| namer.module(entry)).collect())
}

/// The tensors of a decoder; names stand behind `prefix`.
///
/// # Errors
/// As [`language_config`].
pub fn language_tensors<'a>(
    config: &LanguageConfig,
    layout: &ParameterLayout,
    prefix: &str,
    dtype: Dtype,
    value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
) -> Result<Vec<OutputTensor<'a>>> {
    let (form, _) = form_of(config)?;
    let inner = format!("{prefix}{}", form.trunk);
    let namer = Namer {
        names: form.names,
        way: 0,
        prefix: &inner,
        heads: config.block().heads,
        patch: 0,
    };
    let tensors = entries_of(layout, "language").flat_map(|entry| {
        // The output product stands beside the trunk and is in no table.
        if entry.spec.name != "language.head.weight" {
            return namer.tensors(entry, value_of(entry), dtype);
        }
        vec![OutputTensor {
            name: format!("{prefix}{}", form.head),
            shape: entry.spec.shape.dims().to_vec(),
            dtype,
            content: Content::Values {
                values: value_of(entry),
                patch: None,
            },
        }]
    });
    Ok(tensors.collect())
}

/// The tensors of a connector, as InternVL and SAIL-VL name them, or as LLaVA does where it has no norm.
pub fn connector_tensors<'a>(
    layout: &ParameterLayout,
    dtype: Dtype,
    value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
) -> Vec<OutputTensor<'a>> {
    let form = match layout.get("connector.norm.weight") {
        Some(_) => &internvl::OWN,
        None => &LLAVA,
    };
    let namer = Namer {
        names: form.names,
        way: 0,
        prefix: form.stem,
        heads: Heads {
            query: 0,
            key_value: 0,
            dim: 0,
        },
        patch: 0,
    };
    entries_of(layout, "connector")
        .flat_map(|entry| namer.tensors(entry, value_of(entry), dtype))
        .collect()
}

impl SubModel {
    /// Every tensor of `folder` in its order, those of `models` with new values, in the type they are stored in or in `dtype`.
    /// `value_of` gives the values of a parameter; a table of tokens or positions may have other rows than the folder's.
    pub fn rewrite<'a>(
        folder: &'a Folder,
        models: &[SubModel],
        dtype: Option<Dtype>,
        value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
    ) -> Vec<OutputTensor<'a>> {
        let mut new: BTreeMap<String, OutputTensor<'a>> = BTreeMap::new();
        let mut put = |name: &str, place: &TensorPlace, values: &'a [f32], patch| {
            let mut shape = place.shape.clone();
            let old: usize = place.shape.iter().product();
            if old != values.len() {
                // Rows stand before the width; a table of positions may have a batch of one before them.
                let axis = shape.len() - 2;
                shape[axis] = values.len() * shape[axis] / old;
            }
            let written = OutputTensor {
                name: name.to_owned(),
                shape,
                dtype: dtype.unwrap_or(place.dtype),
                content: Content::Values { values, patch },
            };
            new.insert(name.to_owned(), written);
        };
        for model in models {
            for (entry, source) in model.layout().entries().iter().zip(&model.sources) {
                let values = value_of(entry);
                let mut first = 0;
                for (index, (name, place)) in source.tensors.iter().enumerate() {
                    let count: usize = place.shape.iter().product();
                    // New rows, where there are any, stand at the end.
                    let is_last = index + 1 == source.tensors.len();
                    let end = if is_last { values.len() } else { first + count };
                    put(name, place, &values[first..end], source.patch);
                    first = end;
                }
                if let Some((name, place)) = &model.copy
                    && entry.spec.name == "language.embedding"
                {
                    put(name, place, values, None);
                }
            }
        }
        let all = folder.tensors().iter();
        all.map(|(name, place)| match new.remove(name) {
            Some(written) => written,
            None => OutputTensor {
                name: name.clone(),
                shape: place.shape.clone(),
                dtype: place.dtype,
                content: Content::Bytes(folder.bytes(place)),
            },
        })
        .collect()
    }

    /// The linear modules of its blocks, under the names of the folder.
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        let entries = self.layout().entries().iter().zip(&self.sources);
        let weights = entries.filter(|(entry, _)| is_linear(&entry.spec.name));
        let module = |(entry, source): (&ParameterEntry, &Source)| {
            let tensors = source.tensors.iter();
            let names = tensors.map(|(name, place)| (name.clone(), place.shape[0]));
            LinearModule::new(&entry.spec.name, names.collect())
        };
        weights.map(module).collect()
    }

    /// Writes the image size into the settings that the sub-model came from, `config.json` of its folder, where it is another.
    pub fn tell_size(&self, config: &mut Map<String, Json>) {
        let (SubModelConfig::Vision(tower), Some(form), Some(_)) =
            (self.config(), self.form, self.own_grid)
        else {
            return;
        };
        if let Some(tell) = form.tell_size {
            tell(tower.image_size, config);
            return;
        }
        if config.contains_key(internvl::SIZE_KEY) {
            config.insert(internvl::SIZE_KEY.into(), tower.image_size.into());
        }
        let settings = if config.contains_key(internvl::VISION_KEY) {
            config[internvl::VISION_KEY].as_object_mut()
        } else {
            Some(config)
        };
        let Some(settings) = settings else { return };
        // Height and width where the file has both, whichever way the family itself writes them.
        let mut size = write_key(form.keys, tower, form.size_key);
        if let Some(edges) = size.as_array() {
            size = edges[0].clone();
        }
        if settings.get(form.size_key).is_some_and(Json::is_array) {
            size = vec![size; 2].into();
        }
        settings.insert(form.size_key.into(), size);
    }
}

/// Refuses a layout that reads back as other settings than were written.
fn hold_equal<C: serde::Serialize>(what: &str, key: &str, wanted: &C, again: &C) -> Result<()> {
    let fields = |config: &C| {
        let value = serde_json::to_value(config).expect("settings are plain data");
        value.as_object().cloned().unwrap_or_default()
    };
    let (wanted, again) = (fields(wanted), fields(again));
    let keys = wanted.keys().chain(again.keys());
    let nothing = Json::Null;
    for field in keys {
        let (ours, theirs) = (
            wanted.get(field).unwrap_or(&nothing),
            again.get(field).unwrap_or(&nothing),
        );
        if ours != theirs {
            return Err(Error::setting(
                format!("{key}.{field}"),
                format!("{theirs}, which is all that {what} can say"),
                ours,
            ));
        }
    }
    Ok(())
}

/// The parameters of a module.
fn entries_of<'a>(
    layout: &'a ParameterLayout,
    module: &'a str,
) -> impl Iterator<Item = &'a ParameterEntry> {
    let entries = layout.entries().iter();
    entries.filter(move |entry| entry.spec.module() == module)
}

/// Names tensors in one of a family's ways.
struct Namer<'a> {
    names: &'static [Names],
    way: usize,
    prefix: &'a str,
    heads: Heads,
    patch: usize,
}

impl Namer<'_> {
    /// The names of the tensors of one parameter, with the rows of each.
    fn names(&self, parameter: &str, dims: &[usize]) -> Vec<(String, usize)> {
        let (stem, layer, ending) = row(parameter);
        let ways = self.names.iter().find(|(row, _)| *row == stem);
        let ways = ways.map_or(&[][..], |(_, ways)| ways);
        let way = ways.get(self.way).or(ways.last());
        let way = way.expect("a layout that reads back as the settings names all their parameters");
        let rows = rows_of(way.len(), dims, self.heads);
        let name = |name: &&str| format!("{}{}{ending}", self.prefix, name.replace("{l}", &layer));
        way.iter().map(name).zip(rows).collect()
    }

    /// A linear module by its weight.
    fn module(&self, entry: &ParameterEntry) -> LinearModule {
        let names = self.names(&entry.spec.name, entry.spec.shape.dims());
        LinearModule::new(&entry.spec.name, names)
    }

    /// The tensors of one parameter.
    fn tensors<'a>(
        &self,
        entry: &ParameterEntry,
        values: &'a [f32],
        dtype: Dtype,
    ) -> Vec<OutputTensor<'a>> {
        let dims = entry.spec.shape.dims();
        let (stem, _, ending) = row(&entry.spec.name);
        let mut first = 0;
        let mut tensors = Vec::new();
        for (name, rows) in self.names(&entry.spec.name, dims) {
            let count = rows * dims[1..].iter().product::<usize>();
            let inner = [&[rows], &dims[1..]].concat();
            let shape = match stem.as_str() {
                "patch_embed" if ending == ".weight" => vec![rows, 3, self.patch, self.patch],
                // Modules of their own hold plain rows; tensors that stand alone are broadcast over the batch.
                "position" if !name.ends_with(".weight") => [&[1], &inner[..]].concat(),
                "registers" => [&[1], &inner[..]].concat(),
                "class_token" if name.ends_with("cls_token") => [&[1, 1], &inner[..]].concat(),
                _ => inner,
            };
            tensors.push(OutputTensor {
                name,
                shape,
                dtype,
                content: Content::Values {
                    values: &values[first..first + count],
                    patch: None,
                },
            });
            first += count;
        }
        tensors
    }
}
