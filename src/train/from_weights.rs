//! Runs that begin from published weights: the model's settings and first values come from Hugging Face folders.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adapters::Tower;
use super::checkpoint::Sink;
use super::recipe::locate::key_of;
use super::recipe::{Recipe, Stage, StageKind, validate_patterns, validate_recipe};
use keel_base::error::{Error, Result};
use keel_data::chat::ChatTemplate;
use keel_data::pixels::{Fit, Pixels};
use keel_data::resample::Filter;
use keel_engine::executor::Executor;
use keel_engine::tape::{ParameterEntry, ParameterLayout};
use keel_model::{LORA, LanguageConfig, VisionConfig, initialise_one};
use keel_weights::{
    Folder, FolderConnector, LengthLimit, Processor, Resized, SubModel, SubModelConfig,
};

/// Published weights that runs begin from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedWeights {
    /// A Hugging Face folder whose vision tower runs start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<PathBuf>,
    /// Height and width of the images, where they are not those of the tower's processor: its position embeddings are
    /// interpolated. Needs `vision`.
    ///
    /// - Unit: pixels
    /// - Range: a patch grid whose side `model.connector.unshuffle_factor` divides
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// A Hugging Face folder whose language model runs start from, with its tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<PathBuf>,
    /// Its chat template, where the folder does not say. Needs `language`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatTemplate>,
    /// A Hugging Face folder whose vision tower is the teacher of stages that distill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<PathBuf>,
    /// A folder of PEFT whose adapters the vision tower starts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_adapter: Option<PathBuf>,
    /// A folder of PEFT whose adapters the language model starts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_adapter: Option<PathBuf>,
}

/// What came of beginning from published weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// The names of the stages that stand in for weights that are now there.
    pub left_out: Vec<String>,
    /// What is worth saying of the weights, a sentence each.
    pub notes: Vec<String>,
}

impl PublishedWeights {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        let folders = [
            &self.vision,
            &self.language,
            &self.teacher,
            &self.vision_adapter,
            &self.language_adapter,
        ];
        folders.into_iter().all(Option::is_none)
    }

    /// Refuses settings, as `--set` takes them, of a model whose settings come with its weights.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the setting.
    pub fn check_sets(&self, sets: &[String]) -> Result<()> {
        let given = [("vision", &self.vision), ("language", &self.language)];
        for set in sets {
            let key = key_of(set);
            let module = key
                .strip_prefix("model.")
                .and_then(|rest| rest.split('.').next());
            let of_module = given.iter().find(|(name, _)| Some(*name) == module);
            // Adapters are none of the folder's settings.
            let is_lora = key.split('.').nth(2) == Some(LORA);
            if let Some((_, Some(folder))) = of_module.filter(|_| !is_lora) {
                let folder = folder.display();
                let want = format!("the settings that come with the weights in {folder}");
                return Err(Error::setting(key, want, format!("{set:?}")));
            }
        }
        Ok(())
    }
}

impl Recipe {
    /// Begins from published weights: takes the settings of the tower and of the language model from their folders, and leaves
    /// out the warm starts that stand in for weights that are now there. With the language model comes its tokeniser, and from one
    /// folder of both the connector between them. Returns what was left out, and what is worth saying of the rest.
    ///
    /// # Errors
    /// [`Error::Setting`] when the recipe does not go with the model, [`Error::Content`] when a folder is unusable.
    pub fn begin_from(&mut self, weights: &PublishedWeights) -> Result<Beginning> {
        // Absolute, so that the run can be continued from another folder.
        let absolute = |path: &Path| {
            let path = path.canonicalize();
            path.map(|path| path.to_string_lossy().into_owned())
        };
        let mut there = Vec::new();
        let mut notes = Vec::new();
        if let Some(path) = &weights.vision {
            let folder = Folder::open(path)?;
            let (part, own) = SubModel::vision(&folder)?;
            let own = own.image_size;
            let processor = part.processor(&folder)?;
            let prepared = processor.map_or(own, |processor| processor.side);
            let side = weights.image_size.unwrap_or(prepared);
            if weights.image_size.is_none() && prepared != own {
                notes.push(format!(
                    "images are of {prepared} pixels, as preprocessor_config.json of {} prepares them, and the positions of \
                     {own} are interpolated to that, as transformers does; --image-size {own} trains at their own",
                    path.display()
                ));
            }
            self.model.vision = VisionConfig {
                lora: self.model.vision.lora.take(),
                ..vision_of(&part.at_size(side)?)
            };
            self.pixels = processor.map(|mut processor| {
                let scaled = |edge: usize| (edge * side + prepared / 2) / prepared;
                processor.resized = processor.resized.map(scaled);
                processor.side = side;
                pixels_of(&processor)
            });
            self.vision_weights = Some(absolute(path).map_err(|e| Error::io(path, "find", e))?);
            there.push("vision");
        }
        if let Some(path) = &weights.language {
            let folder = Folder::open(path)?;
            let (part, config) = SubModel::language(&folder)?;
            self.model.language = LanguageConfig {
                lora: self.model.language.lora.take(),
                ..config
            };
            notes.extend(self.adopt_tokenizer(&folder, weights.chat)?);
            if let Some(limit) = part.length_limit() {
                self.hold_lengths(&folder, limit)?;
                notes.push(format!(
                    "{} of {} changes sequences of more than {} tokens only, and none here is that long",
                    limit.key,
                    path.display(),
                    limit.tokens
                ));
            }
            self.language_weights = Some(absolute(path).map_err(|e| Error::io(path, "find", e))?);
            there.push("language");
        }
        if let Some(path) = &weights.teacher {
            self.begin_with_teacher(path)?;
            self.teacher_weights = Some(absolute(path).map_err(|e| Error::io(path, "find", e))?);
        }
        for (tower, path) in [
            (Tower::Vision, &weights.vision_adapter),
            (Tower::Language, &weights.language_adapter),
        ] {
            if let Some(path) = path {
                notes.extend(self.begin_with_adapter(tower, path)?);
                let path = absolute(path).map_err(|e| Error::io(path, "find", e))?;
                match tower {
                    Tower::Vision => self.vision_adapter = Some(path),
                    Tower::Language => self.language_adapter = Some(path),
                }
            }
        }
        if let (Some(vision), Some(language)) = (&self.vision_weights, &self.language_weights)
            && vision == language
        {
            match SubModel::connector_or_why(&Folder::open(Path::new(vision))?)? {
                FolderConnector::Taken(taken) => {
                    self.model.connector = taken.1.connector;
                    self.connector_weights = Some(vision.clone());
                }
                FolderConnector::Left(why) => notes.push(format!(
                    "the folder's connector is left aside, and training begins with a new one: {why}"
                )),
                FolderConnector::Absent => {}
            }
        }
        let stands_in = |trains: &[String]| trains.iter().any(|m| there.contains(&m.as_str()));
        let mut left_out = Vec::new();
        self.stages.retain(|stage| {
            let goes = stage.kind == StageKind::WarmStart && stands_in(&stage.trains);
            if goes {
                left_out.push(stage.name.clone());
            }
            !goes
        });
        self.restore_initial_for(&left_out);
        if let Some(path) = &weights.vision {
            notes.extend(self.take_drop_path(path)?);
        }
        validate_recipe(self)?;
        validate_patterns(self, |_, stage| format!("stage {}: ", stage.name))?;
        // What can be refused before anything runs.
        self.starting_parts()?;
        Ok(Beginning { left_out, notes })
    }

    /// Gives the rate of drop path that the folder's tower was trained with to stages that train it and have none of their own;
    /// returns what is to be said of that.
    fn take_drop_path(&mut self, path: &Path) -> Result<Option<String>> {
        let rate = Folder::open(path)?.drop_path_rate()?;
        let mut taken = Vec::new();
        for stage in &mut self.stages {
            if rate > 0.0 && stage.trains("vision") && stage.drop_path_rate.is_none() {
                stage.drop_path_rate = Some(rate);
                taken.push(stage.name.as_str());
            }
        }
        Ok((!taken.is_empty()).then(|| {
            format!(
                "drop_path_rate is {rate} in {}, as the tower of {} was trained; --set stage.NAME.drop_path_rate=0 drops no branch",
                taken.join(", "),
                path.display()
            )
        }))
    }

    /// Refuses stages with sequences beyond the limit, where the folder's model computes otherwise than Keel does.
    fn hold_lengths(&self, folder: &Folder, limit: LengthLimit) -> Result<()> {
        let too_long = |stage: &&Stage| stage.max_tokens > limit.tokens;
        let longer = self.stages.iter().find(too_long);
        let Some(stage) = longer else {
            return Ok(());
        };
        Err(Error::setting(
            format!("stage.{}.max_tokens", stage.name),
            format!(
                "at most {}, beyond which {} in {} asks for what Keel does not compute",
                limit.tokens,
                limit.key,
                folder.path().join("config.json").display()
            ),
            stage.max_tokens,
        ))
    }

    /// The parts that first values come from.
    fn starting_parts(&self) -> Result<Vec<(Folder, SubModel)>> {
        let mut parts = Vec::new();
        let differs = |key: &str, path: &str| {
            Error::setting(
                format!("model.{key}"),
                format!("the settings in {path}; --{key} {path} takes them from there"),
                "others",
            )
        };
        if let Some(path) = &self.vision_weights {
            let folder = Folder::open(Path::new(path))?;
            let part = SubModel::vision(&folder)?.0;
            let part = part.at_size(self.model.vision.image_size)?;
            if vision_of(&part) != self.model.vision.without_lora() {
                return Err(differs("vision", path));
            }
            parts.push((folder, part));
        }
        if let Some(path) = &self.language_weights {
            let folder = Folder::open(Path::new(path))?;
            let (part, config) = SubModel::language(&folder)?;
            let mut config = config;
            if self.chat.is_some() && config.vocabulary < self.model.language.vocabulary {
                // Rows of tokens that images need.
                config.vocabulary = self.model.language.vocabulary;
            }
            if config != self.model.language.without_lora() {
                return Err(differs("language", path));
            }
            parts.push((folder, part));
        }
        if let Some(path) = &self.connector_weights {
            let folder = Folder::open(Path::new(path))?;
            let Some((part, config)) = SubModel::connector(&folder)? else {
                return Err(Error::content(
                    folder.path().display(),
                    "holds no connector",
                    "give the folder that the run was begun from",
                ));
            };
            if config.connector != self.model.connector {
                return Err(Error::setting(
                    "model.connector",
                    format!("the settings in {path}"),
                    "others",
                ));
            }
            parts.push((folder, part));
        }
        Ok(parts)
    }

    /// Writes first values of all parameters into an executor's arena: by the seed, and from the folders where there are any
    /// and those of `further` parts. Beside the arena no more than one parameter is held, and of those from folders a piece.
    ///
    /// # Errors
    /// As [`SubModel::read`], and when a folder is no longer what it was; whatever the executor reports.
    pub(super) fn write_first_values(
        &self,
        layout: &ParameterLayout,
        executor: &dyn Executor,
        further: Vec<(Folder, SubModel)>,
    ) -> Result<()> {
        self.give_first_values(layout, further, &mut |offset, values| {
            executor.write_parameters(offset, values)
        })
    }

    /// As [`Recipe::write_first_values`], all in one place.
    ///
    /// # Errors
    /// As [`SubModel::read`], and when a folder is no longer what it was.
    pub(super) fn first_values(&self, layout: &ParameterLayout) -> Result<Vec<f32>> {
        let mut values = vec![0.0; layout.elements()];
        self.give_first_values(layout, Vec::new(), &mut |offset, piece| {
            values[offset..offset + piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        Ok(values)
    }

    pub(crate) fn give_first_values(
        &self,
        layout: &ParameterLayout,
        further: Vec<(Folder, SubModel)>,
        sink: Sink<'_>,
    ) -> Result<()> {
        let mut parts = self.starting_parts()?;
        parts.extend(further);
        let mut given = self.give_adapters(layout, sink)?;
        given.extend(self.give_teacher(layout, sink)?);
        let is_read = |entry: &ParameterEntry| {
            let mut layouts = parts.iter().map(|(_, part)| part.layout());
            layouts.any(|part| {
                let own = part.get(&entry.spec.name);
                own.is_some_and(|own| own.spec.shape == entry.spec.shape)
            })
        };
        let is_read = |entry: &ParameterEntry| given.contains(&entry.spec.name) || is_read(entry);
        for entry in layout.entries().iter().filter(|entry| !is_read(entry)) {
            let mut values = vec![0.0; entry.spec.shape.numel()];
            initialise_one(&entry.spec, self.seed, &mut values);
            sink(entry.offset, &values)?;
        }
        let mut new_rows = self.new_rows()?;
        let mut failed = Ok(());
        for (folder, part) in &parts {
            part.read(folder, &mut |parameter, first, piece| {
                let entry = layout.get(&parameter.spec.name);
                let entry = entry.expect("the part has the model's settings, so its parameters");
                new_rows.hear(&entry.spec.name, first, piece);
                if failed.is_ok() {
                    failed = sink(entry.offset + first, piece);
                }
            })?;
        }
        failed?;
        new_rows.write(layout, sink)
    }
}

pub(super) fn vision_of(part: &SubModel) -> VisionConfig {
    match part.config() {
        SubModelConfig::Vision(config) => config.clone(),
        _ => unreachable!("only asked of what SubModel::vision found"),
    }
}

/// A processor's settings as a recipe has them.
pub(super) fn pixels_of(processor: &Processor) -> Pixels {
    Pixels {
        mean: processor.mean,
        std: processor.deviation,
        fit: match processor.resized {
            Resized::Both => Fit::Stretch,
            Resized::BothTo(edge) => Fit::StretchFrom(edge as u32),
            Resized::ShorterTo(edge) if edge == processor.side => Fit::Crop,
            Resized::ShorterTo(edge) => Fit::CropFrom(edge as u32),
        },
        filter: if processor.is_bicubic {
            Filter::Bicubic
        } else {
            Filter::Bilinear
        },
    }
}
