//! A run's model as a Hugging Face folder: in the layout it came in, or in that of its family.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value as Json, json};

use super::export_chat::{tell_chat, write_json};
use super::export_folder::{ExportFolder, sync};
use super::model_card::ModelCard;
use crate::adapters::Tower;
use crate::checkpoint::CheckpointModel;
use crate::out_folder::refuse_foreign;
use crate::recipe::Recipe;
use crate::run::TOKENIZER;
use keel_base::error::{Error, Result};
use keel_data::chat::ChatTemplate;
use keel_data::pixels::Fit;
use keel_data::resample::Filter;
use keel_engine::tape::ParameterEntry;
use keel_model::merge_adapters;
use keel_weights::{
    Folder, FolderConnector, OutputTensor, Processor, Resized, SubModel, VisionLayout, WHOLE,
    adapter_tensors, connector_config, connector_tensors, language_config, language_tensors,
    processor_config, whole_config, write_adapters, write_tensors,
};

/// What of a model is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportPart {
    /// The refined tower.
    Vision,
    /// The language model, with its tokeniser.
    Language,
    /// What stands between them.
    Connector,
    /// All three, as `vision_model.`, `mlp1.` and `language_model.` of one folder.
    Model,
}

impl ExportPart {
    /// All of them.
    pub const ALL: [ExportPart; 4] = [
        ExportPart::Vision,
        ExportPart::Language,
        ExportPart::Connector,
        ExportPart::Model,
    ];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            ExportPart::Vision => "vision",
            ExportPart::Language => "language",
            ExportPart::Connector => "connector",
            ExportPart::Model => "model",
        }
    }

    /// What it is, in a few words.
    pub const fn about(self) -> &'static str {
        match self {
            ExportPart::Vision => "the refined vision tower",
            ExportPart::Language => "the language model with its tokenizer",
            ExportPart::Connector => "the projector between them",
            ExportPart::Model => "all three in one folder, in the form of InternVL and SAIL-VL",
        }
    }
}

/// What becomes of a tower's low-rank adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraExport {
    /// They are added to the weights that they belong to.
    Merged,
    /// They are written alone, in the form of PEFT.
    Adapter,
    /// They are left out.
    Base,
}

impl LoraExport {
    /// All of them.
    pub const ALL: [LoraExport; 3] = [LoraExport::Merged, LoraExport::Adapter, LoraExport::Base];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            LoraExport::Merged => "merged",
            LoraExport::Adapter => "adapter",
            LoraExport::Base => "base",
        }
    }

    /// What it is, in a few words.
    pub const fn about(self) -> &'static str {
        match self {
            LoraExport::Merged => "the weights with the adapters added to them",
            LoraExport::Adapter => "the adapters alone, in the form of PEFT",
            LoraExport::Base => "the weights without the adapters",
        }
    }
}

/// How a model is written.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// What of it.
    pub part: ExportPart,
    /// The layout of the tower; that of the folder it came from, or the first that can say its settings, where there is none.
    pub layout: Option<VisionLayout>,
    /// Type of the numbers: F32, F16 or BF16. Where there is none, tensors keep the type they came in, and others are F32.
    pub dtype: Option<Dtype>,
    /// Bytes of tensors in one file, at most, unless one tensor is larger.
    pub shard_bytes: u64,
    /// Whether averages (EMA) take the place of the parameters that the checkpoint's stage trained.
    pub averages: bool,
    /// What becomes of low-rank adapters. To be said of a part that has any, and of no other.
    pub lora: Option<LoraExport>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The checkpoint it comes from.
    pub checkpoint: PathBuf,
    /// `model_type` of its `config.json`.
    pub model_type: String,
    /// Tensors.
    pub tensors: usize,
    /// Numbers in them.
    pub elements: usize,
    /// Files that hold them.
    pub files: usize,
    /// Whether a language model was written that speaks the embedded tokeniser, for which there is no tokenizer.json.
    pub lacks_tokenizer: bool,
    /// What the folder says otherwise of its chats than the one that the weights came in, a sentence each.
    pub notes: Vec<String>,
}

/// Everything about a checkpoint that a folder is made of.
struct Model {
    stored: CheckpointModel,
    values: Vec<f32>,
}

/// A folder's content but for the tensors.
struct Page {
    config: Map<String, Json>,
    /// Where files beside weights and settings are copied from.
    source: Option<PathBuf>,
    has_images: bool,
    has_tokenizer: bool,
    /// The names of the files of settings and of tensors.
    files: [&'static str; 2],
}

/// Writes the model of a run's newest checkpoint, or of the checkpoint that `run` names, to the folder `out`, which must be new
/// or empty: its files appear at once, when all are written.
///
/// # Errors
/// [`Error::Setting`] when the layout cannot say the model's settings, `out` has files in it, or averages are asked of a
/// checkpoint without any; [`Error::Io`] and
/// [`Error::Content`] naming the file that cannot be read or written.
pub fn export(run: &Path, out: &Path, options: &ExportOptions) -> Result<Exported> {
    refuse_foreign(out, |_| false)?;
    let stored = CheckpointModel::open(run)?;
    hold_lora(&stored.recipe, options)?;
    let mut values = match options.averages {
        true => stored.averages()?,
        false => stored.parameters()?,
    };
    if options.lora == Some(LoraExport::Merged) {
        merge_adapters(&stored.recipe.model, &stored.layout, &mut values);
    }
    let model = Model { values, stored };
    if options.lora == Some(LoraExport::Adapter) {
        return model.write_adapter(out, options);
    }
    let came_from = model.came_from(options)?;
    let (page, tensors) = match &came_from {
        Some((folder, parts)) => model.again(folder, parts, options),
        None => model.natural(options)?,
    };
    let written = Exported {
        checkpoint: model.stored.path.clone(),
        model_type: page
            .config
            .get("model_type")
            .and_then(Json::as_str)
            .unwrap_or("")
            .to_owned(),
        tensors: tensors.len(),
        elements: tensors
            .iter()
            .map(|tensor| tensor.shape.iter().product::<usize>())
            .sum(),
        files: 0,
        notes: Vec::new(),
        lacks_tokenizer: page.has_tokenizer && model.stored.tokenizer.to_json().is_none(),
    };
    let folder = ExportFolder::begin(out)?;
    let name = name_of(out);
    let card = ModelCard {
        part: options.part,
        stored: &model.stored,
        config: &page.config,
        elements: written.elements,
        name: &name,
        is_adapter: false,
    };
    let outcome = model.write(folder.path(), &page, &tensors, (options, &card));
    let (files, notes) = outcome.inspect_err(|_| folder.abandon())?;
    folder.finish()?;
    Ok(Exported {
        files,
        notes,
        ..written
    })
}

/// What a folder is called.
fn name_of(out: &Path) -> String {
    let name = out.components().next_back();
    name.map_or("model".into(), |name| {
        name.as_os_str().to_string_lossy().into_owned()
    })
}

/// Refuses adapters that nothing is said of, and words about adapters that are not there.
fn hold_lora(recipe: &Recipe, options: &ExportOptions) -> Result<()> {
    let (vision, language) = (
        recipe.model.vision.lora.is_some(),
        recipe.model.language.lora.is_some(),
    );
    let has_any = match options.part {
        ExportPart::Vision => vision,
        ExportPart::Language => language,
        ExportPart::Connector => false,
        ExportPart::Model => vision || language,
    };
    let part = options.part.name();
    match options.lora {
        None if has_any => Err(Error::setting(
            "--lora",
            format!("merged, adapter or base, as part {part} has adapters"),
            "nothing",
        )),
        Some(_) if !has_any => Err(Error::setting(
            "--lora",
            format!("left out, as part {part} has no adapters"),
            options.lora.map_or("", LoraExport::name),
        )),
        Some(LoraExport::Adapter) if options.part == ExportPart::Model => Err(Error::setting(
            "--lora adapter",
            "--part vision or --part language, whose adapters are files of their own",
            format!("--part {part}"),
        )),
        _ => Ok(()),
    }
}

impl Model {
    /// Writes a tower's adapters alone.
    fn write_adapter(&self, out: &Path, options: &ExportOptions) -> Result<Exported> {
        let recipe = &self.stored.recipe;
        let (tower, base, task) = match options.part {
            ExportPart::Language => (Tower::Language, &recipe.language_weights, Some("CAUSAL_LM")),
            _ => (Tower::Vision, &recipe.vision_weights, None),
        };
        let modules = recipe.linear_modules(tower, options.layout)?;
        let value_of = |entry: &ParameterEntry| self.value_of(entry);
        let adapters = adapter_tensors(
            &recipe.block(tower),
            &modules,
            &self.stored.layout,
            &value_of,
            (base.as_deref(), task),
        );
        let folder = ExportFolder::begin(out)?;
        let name = name_of(out);
        let card = ModelCard {
            part: options.part,
            stored: &self.stored,
            config: &adapters.config,
            elements: adapters.elements(),
            name: &name,
            is_adapter: true,
        };
        let dtype = options.dtype.unwrap_or(Dtype::F32);
        let written = write_adapters(folder.path(), &adapters, dtype)
            .and_then(|()| card.write(folder.path()))
            .and_then(|()| sync_all(folder.path()));
        written.inspect_err(|_| folder.abandon())?;
        folder.finish()?;
        Ok(Exported {
            checkpoint: self.stored.path.clone(),
            model_type: "adapter".to_owned(),
            tensors: adapters.count(),
            elements: adapters.elements(),
            files: 1,
            lacks_tokenizer: false,
            notes: Vec::new(),
        })
    }

    fn value_of<'a>(&'a self, entry: &ParameterEntry) -> &'a [f32] {
        let own = self.stored.layout.get(&entry.spec.name);
        let own = own.expect("parts have the model's settings, so its parameters");
        &self.values[own.offset..own.offset + own.spec.shape.numel()]
    }

    /// The folder that what is asked for came from, where it holds that and nothing else and no other layout is asked for.
    fn came_from(&self, options: &ExportOptions) -> Result<Option<(Folder, Vec<SubModel>)>> {
        let (vision, language) = (
            &self.stored.recipe.vision_weights,
            &self.stored.recipe.language_weights,
        );
        let path = match options.part {
            ExportPart::Vision => vision.as_ref(),
            ExportPart::Language => language.as_ref(),
            ExportPart::Model if vision == language => vision.as_ref(),
            _ => None,
        };
        let Some(path) = path.filter(|_| options.layout.is_none()) else {
            return Ok(None);
        };
        let folder = Folder::open(Path::new(path)).map_err(|problem| {
            Error::content(
                "the folder that the run began from",
                problem,
                "bring it back, or say with --layout in what layout to write",
            )
        })?;
        let size = self.stored.recipe.model.vision.image_size;
        let parts = SubModel::all(&folder)?.into_iter();
        let parts = parts.map(|part| part.at_size(size));
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        // One part of a folder of several stands under names and settings that are not its own.
        let is_alone = parts.len() == 1;
        if options.part == ExportPart::Model {
            match SubModel::connector_or_why(&folder)? {
                FolderConnector::Taken(taken) if taken.1.connector.norm => parts.push(taken.0),
                FolderConnector::Taken(_) => {
                    return Err(Error::content(
                        folder.path().display(),
                        "is of LLaVA's form, whose processor places images otherwise than the chats of this run",
                        "export --part vision, language and connector",
                    ));
                }
                FolderConnector::Absent => {}
                // It began with a new one, which the folder has no place for: its own would stand there untrained.
                FolderConnector::Left(why) => {
                    return Err(Error::content(
                        folder.path().display(),
                        format!("has a connector of another form than this run's ({why})"),
                        "export --part vision, language and connector, or a whole model in InternVL's form with --layout",
                    ));
                }
            }
        }
        Ok((is_alone || options.part == ExportPart::Model).then_some((folder, parts)))
    }

    fn again<'a>(
        &'a self,
        folder: &'a Folder,
        parts: &[SubModel],
        options: &ExportOptions,
    ) -> (Page, Vec<OutputTensor<'a>>) {
        let value_of = |entry: &ParameterEntry| self.value_of(entry);
        let mut config = folder.config().clone();
        let rows = json!(self.stored.recipe.model.language.vocabulary);
        if options.part == ExportPart::Language {
            config.insert("vocab_size".into(), rows);
        } else {
            for key in ["llm_config", "text_config"] {
                if let Some(inner) = config.get_mut(key).and_then(Json::as_object_mut) {
                    inner.insert("vocab_size".into(), rows.clone());
                }
            }
        }
        for part in parts {
            part.tell_size(&mut config);
        }
        // A whole model of InternVL's form names the template of its chats, and the run may have trained on another.
        if let Some(template) = config.get_mut("template")
            && self.stored.tokenizer.template().is_some()
        {
            *template = json!(self.template());
        }
        if let Some(dtype) = options.dtype {
            for key in ["dtype", "torch_dtype"] {
                if config.contains_key(key) {
                    config.insert(key.into(), json!(type_name(dtype)));
                }
            }
        }
        let page = Page {
            config,
            source: Some(folder.path().to_owned()),
            has_images: options.part != ExportPart::Language,
            has_tokenizer: options.part != ExportPart::Vision,
            files: [folder.config_file(), folder.weights_file()],
        };
        (
            page,
            SubModel::rewrite(folder, parts, options.dtype, &value_of),
        )
    }

    fn natural<'a>(&'a self, options: &ExportOptions) -> Result<(Page, Vec<OutputTensor<'a>>)> {
        let config = &self.stored.recipe.model;
        let dtype = options.dtype.unwrap_or(Dtype::F32);
        let value_of = |entry: &ParameterEntry| self.value_of(entry);
        let layout = || match options.layout {
            Some(layout) => Ok(layout),
            None => VisionLayout::of(&config.vision),
        };
        let has_tokenizer = !matches!(options.part, ExportPart::Vision | ExportPart::Connector);
        let language = self.stored.recipe.language_weights.as_ref();
        let mut page = Page {
            config: Map::new(),
            source: language.filter(|_| has_tokenizer).map(PathBuf::from),
            has_images: options.part != ExportPart::Language,
            has_tokenizer,
            files: ["config.json", WHOLE],
        };
        let tensors = match options.part {
            ExportPart::Vision => {
                let layout = layout()?;
                page.config = layout.config(&config.vision)?;
                layout.tensors(&config.vision, &self.stored.layout, "", dtype, &value_of)
            }
            ExportPart::Language => {
                page.config = language_config(&config.language)?;
                language_tensors(&config.language, &self.stored.layout, "", dtype, &value_of)?
            }
            ExportPart::Connector => {
                page.config = connector_config(&config.connector)?;
                page.has_images = false;
                connector_tensors(&self.stored.layout, dtype, &value_of)
            }
            ExportPart::Model => {
                let layout = layout()?;
                page.config = whole_config(
                    layout.config(&config.vision)?,
                    language_config(&config.language)?,
                    &config.connector,
                    (config.vision.image_size, self.stored.recipe.most_tiles()),
                    self.template(),
                )?;
                let vision = "vision_model.";
                let mut all = layout.tensors(
                    &config.vision,
                    &self.stored.layout,
                    vision,
                    dtype,
                    &value_of,
                );
                all.extend(connector_tensors(&self.stored.layout, dtype, &value_of));
                let language = "language_model.";
                all.extend(language_tensors(
                    &config.language,
                    &self.stored.layout,
                    language,
                    dtype,
                    &value_of,
                )?);
                all
            }
        };
        page.config
            .insert("torch_dtype".into(), json!(type_name(dtype)));
        Ok((page, tensors))
    }

    /// The name of the chats' layout in a whole model's settings.
    fn template(&self) -> &'static str {
        let template = self.stored.tokenizer.template();
        template.map_or("keel", ChatTemplate::internvl_name)
    }

    fn write(
        &self,
        folder: &Path,
        page: &Page,
        tensors: &[OutputTensor<'_>],
        (options, card): (&ExportOptions, &ModelCard<'_>),
    ) -> Result<(usize, Vec<String>)> {
        if let Some(source) = &page.source {
            copy_beside(source, folder)?;
        }
        let [config, weights] = page.files;
        write_json(&folder.join(config), &page.config)?;
        if page.has_images {
            let pixels = self.stored.recipe.pixels();
            let size = self.stored.recipe.model.vision.image_size;
            let processor = Processor {
                mean: pixels.mean,
                deviation: pixels.std,
                side: size,
                resized: match pixels.fit {
                    Fit::Stretch => Resized::Both,
                    Fit::StretchFrom(edge) => Resized::BothTo(edge as usize),
                    Fit::Crop => Resized::ShorterTo(size),
                    Fit::CropFrom(edge) => Resized::ShorterTo(edge as usize),
                },
                is_bicubic: pixels.filter == Filter::Bicubic,
            };
            let config = processor_config(&processor);
            write_json(&folder.join("preprocessor_config.json"), &config)?;
        }
        if let Some(text) = self
            .stored
            .tokenizer
            .to_json()
            .filter(|_| page.has_tokenizer)
        {
            let path = folder.join(TOKENIZER);
            fs::write(&path, text).map_err(|e| Error::io(&path, "write", e))?;
        }
        let mut notes = Vec::new();
        if page.has_tokenizer {
            notes = tell_chat(folder, &self.stored.tokenizer)?;
        }
        card.write(folder)?;
        let files = write_tensors(folder, weights, tensors, options.shard_bytes)?;
        sync_all(folder)?;
        Ok((files, notes))
    }
}

/// Flushes a folder and its files to the disk.
fn sync_all(folder: &Path) -> Result<()> {
    let io = |problem| Error::io(folder, "read the folder", problem);
    for entry in fs::read_dir(folder).map_err(io)? {
        sync(&entry.map_err(io)?.path())?;
    }
    sync(folder)
}

/// Copies the small files of a folder that are neither weights nor what is written anew: tokeniser files, generation
/// settings, the code of models that bring their own.
fn copy_beside(source: &Path, folder: &Path) -> Result<()> {
    const ENDINGS: [&str; 5] = ["json", "txt", "jinja", "model", "py"];
    const WRITTEN: [&str; 4] = [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors.index.json",
        TOKENIZER,
    ];
    let io = |error| Error::io(source, "read the folder", error);
    for entry in fs::read_dir(source).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let name = path.file_name().and_then(|name| name.to_str());
        let is_wanted = ending.is_some_and(|ending| ENDINGS.contains(&ending))
            && name.is_some_and(|name| !WRITTEN.contains(&name));
        if is_wanted && path.is_file() {
            let target = folder.join(name.unwrap_or_default());
            fs::copy(&path, &target).map_err(|e| Error::io(&path, "copy", e))?;
        }
    }
    Ok(())
}

fn type_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}
