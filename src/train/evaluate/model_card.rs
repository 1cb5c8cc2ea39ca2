//! The model card of an exported folder, its README.md: what the model is, what it was trained on, what was measured, under which
//! licences that stands, and how it is loaded. Hubs show it, and read its first lines.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::export::ExportPart;
use crate::checkpoint::CheckpointModel;
use crate::recipe::Stage;
use keel_base::error::{Error, Result};
use keel_base::files::open_regular;
use keel_base::units::grouped;
use keel_data::task::Task;
use keel_eval::Evaluation;

/// The file's name.
pub(super) const CARD: &str = "README.md";
/// A licence is no longer than this many bytes.
const LICENCE_BYTES: u64 = 1 << 20;
/// How the names of files begin that say what may be done with what lies beside them.
const LICENCES: [&str; 4] = ["licen", "notice", "copying", "copyright"];

/// See the module's documentation.
pub(super) struct ModelCard<'a> {
    /// What was exported.
    pub part: ExportPart,
    /// The model in its run.
    pub stored: &'a CheckpointModel,
    /// `config.json` of the export.
    pub config: &'a Map<String, Json>,
    /// Numbers in its tensors.
    pub elements: usize,
    /// What the folder is to be called.
    pub name: &'a str,
    /// Whether the folder holds the part's adapters and not its weights.
    pub is_adapter: bool,
}

/// A folder that the model began from.
struct Origin {
    path: PathBuf,
    /// What its own card says of its licence.
    licence: Option<String>,
    /// Its files that do.
    files: Vec<PathBuf>,
}

impl ModelCard<'_> {
    /// Writes the card into `folder`, and beside it copies of the licences of the folders that the model began from.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let origins = self.origins();
        let mut names = BTreeSet::new();
        for path in origins.iter().flat_map(|origin| &origin.files) {
            let name = licence_name(path, &names);
            let target = folder.join(&name);
            let text = content(path).map_err(|e| Error::io(path, "read", e))?;
            fs::write(&target, text).map_err(|e| Error::io(&target, "write", e))?;
            names.insert(name);
        }
        let path = folder.join(CARD);
        fs::write(&path, self.text(&origins, &names)).map_err(|e| Error::io(&path, "write", e))
    }

    fn text(&self, origins: &[Origin], licences: &BTreeSet<String>) -> String {
        let mut text = self.front_matter(origins);
        let _ = writeln!(text, "\n# {}\n", plain(self.name));
        text += &self.introduction();
        text += "\n## Training\n\n";
        text += &self.training(origins);
        text += "\n## Measured\n\n";
        text += &self.measured();
        text += "\n## Licences\n\n";
        text += &self.licences(origins, licences);
        text += "\n## Loading\n\n";
        text += &self.loading();
        text
    }

    /// The lines that hubs read.
    fn front_matter(&self, origins: &[Origin]) -> String {
        let mut text = "---\n".to_owned();
        let task = match self.part {
            ExportPart::Vision => Some("image-feature-extraction"),
            ExportPart::Language => Some("text-generation"),
            ExportPart::Model => Some("image-text-to-text"),
            ExportPart::Connector => None,
        };
        if let Some(task) = task {
            let _ = writeln!(text, "pipeline_tag: {task}");
        }
        if self.is_adapter {
            text += "library_name: peft\n";
        } else if self.class().is_some() {
            text += "library_name: transformers\n";
        }
        // One licence for all is the model's own; of several the user has to choose.
        let said: BTreeSet<&str> = origins
            .iter()
            .filter_map(|origin| origin.licence.as_deref())
            .collect();
        if let ([licence], true) = (
            &said.iter().collect::<Vec<_>>()[..],
            origins.iter().all(|origin| origin.licence.is_some()),
        ) {
            let _ = writeln!(text, "license: {licence}");
        }
        text + "tags:\n- keel\n---\n"
    }

    fn introduction(&self) -> String {
        let model = &self.stored.recipe.model;
        let vision = &model.vision;
        let tower = format!(
            "a vision tower of {} blocks of width {} for images of {} pixels in patches of {}",
            vision.depth, vision.width, vision.image_size, vision.patch_size
        );
        let language = format!(
            "a language model of {} blocks of width {} with {} tokens",
            model.language.depth,
            model.language.width,
            grouped(model.language.vocabulary as u64)
        );
        let factor = model.connector.unshuffle_factor;
        let connector = format!(
            "a connector in InternVL's form that makes one image token of {factor} × {factor} patches"
        );
        let what = match self.part {
            ExportPart::Vision => tower,
            ExportPart::Language => language,
            ExportPart::Connector => connector,
            ExportPart::Model => format!("{tower}, {connector}, and {language}"),
        };
        let what = match self.is_adapter {
            true => format!("low-rank adapters (LoRA), in the form of PEFT, of {what}"),
            false => what,
        };
        let checkpoint = self.stored.path.file_stem().unwrap_or_default();
        format!(
            "{}, {} numbers. Written by `keel export` {} from the checkpoint `{}` of a run of the recipe `{}`.\n",
            capitalised(&what),
            grouped(self.elements as u64),
            env!("CARGO_PKG_VERSION"),
            plain(&checkpoint.to_string_lossy()),
            plain(&self.stored.recipe.name),
        )
    }

    fn training(&self, origins: &[Origin]) -> String {
        let recipe = &self.stored.recipe;
        let position = &self.stored.position;
        let mut text = match origins {
            [] => format!("It began from random values (seed {}).\n\n", recipe.seed),
            all => {
                let names: Vec<String> = all.iter().map(Origin::name).collect();
                format!(
                    "It began from {} (seed {}).\n\n",
                    names.join(" and "),
                    recipe.seed
                )
            }
        };
        text += "| stage | trained | steps of samples | learning rate | data |\n|---|---|---|---|---|\n";
        let mut rows: Vec<String> = Vec::new();
        for (index, stage) in recipe.stages.iter().enumerate().take(position.stage + 1) {
            if index < position.stage {
                rows.push(stage_row(stage, &self.length(stage)));
            } else if position.step > 0 {
                rows.push(stage_row(stage, &format!("{} so far", position.step)));
            }
        }
        if rows.is_empty() {
            rows.push("| none | | | | |".to_owned());
        }
        text += &rows.join("\n");
        text += "\n";
        let inputs = &position.inputs;
        for data in &inputs.data {
            let _ = writeln!(
                text,
                "\n`samples` are {} usable samples of `{}`.",
                grouped(data.samples),
                plain(&file_name(Path::new(&data.name)))
            );
        }
        if !inputs.device.is_empty() {
            let _ = writeln!(
                text,
                "\nComputed on `{}` in {}.",
                inputs.device, inputs.precision
            );
        }
        text
    }

    /// How many steps a stage had: as the run noted, which may have been cut short, or as the recipe says.
    fn length(&self, stage: &Stage) -> String {
        let noted = self.row("stage", &stage.name);
        let noted = noted.and_then(|row| row["steps"].as_u64());
        match (noted.or(stage.steps), stage.epochs) {
            (Some(steps), _) => steps.to_string(),
            (None, epochs) => format!("{} epochs", epochs.unwrap_or_default()),
        }
    }

    /// What was measured after the last complete stage, as the run's rows keep it.
    fn measured(&self) -> String {
        let position = &self.stored.position;
        let done = position.stage.checked_sub(1);
        let stage = done.and_then(|index| self.stored.recipe.stages.get(index));
        let row = stage.and_then(|stage| self.row("evaluation", &stage.name));
        // A row of another version counts as none.
        let found = row.and_then(|row| serde_json::from_value::<Evaluation>(row).ok());
        let Some(found) = found else {
            return "Nothing was kept beside the checkpoint. `keel eval` measures the run, or this folder.\n"
                .to_owned();
        };
        let mut text = format!("After stage `{}`", plain(&found.stage));
        if position.step > 0 {
            let _ = write!(text, ", {} steps before this checkpoint", position.step);
        }
        text += ", on images that were held out of training where it says so. Recall at 1 is images → captions | captions → images.\n\n";
        text += "| images | number | R@1 | zero-shot | caption loss |\n|---|---|---|---|---|\n";
        for set in &found.sets {
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            let nothing = || "–".to_owned();
            let recall = set.recall.map(|recall| {
                let [there, back] = [recall.image_to_text[0], recall.text_to_image[0]];
                format!("{} \\| {}", percent(there), percent(back))
            });
            let loss = set.caption_loss.map(|loss| format!("{loss:.3}"));
            let _ = writeln!(
                text,
                "| {}, {} | {} | {} | {} | {} |",
                plain(&set.vendor),
                plain(&set.split),
                set.count,
                recall.unwrap_or_else(nothing),
                set.zero_shot.map_or_else(nothing, percent),
                loss.unwrap_or_else(nothing),
            );
        }
        for questions in &found.questions {
            let _ = writeln!(
                text,
                "\nOf {} questions about images of {}, {:.1} % are answered exactly; {:.1} % without seeing the image.",
                questions.count,
                plain(&questions.vendor),
                100.0 * questions.accuracy,
                100.0 * questions.text_only
            );
        }
        text
    }

    /// The last row of that kind and stage in the run's metrics.jsonl. One that is cut off counts as none.
    fn row(&self, kind: &str, stage: &str) -> Option<Json> {
        let run = self.stored.path.parent()?.parent()?;
        let rows = content(&run.join("metrics.jsonl")).ok()?;
        let rows = String::from_utf8_lossy(&rows);
        // Most rows are of steps.
        let named = rows.lines().filter(|line| line.contains(kind));
        let mut rows = named.filter_map(|line| {
            let row: Json = serde_json::from_str(line).ok()?;
            (row["kind"] == kind && row["stage"] == stage).then_some(row)
        });
        rows.next_back()
    }

    fn licences(&self, origins: &[Origin], files: &BTreeSet<String>) -> String {
        let mut text = String::new();
        for origin in origins {
            let said = match (&origin.licence, origin.files.is_empty()) {
                (Some(licence), _) => format!("its card says `{licence}`"),
                (None, false) => "its licence lies beside this file".to_owned(),
                (None, true) => {
                    "its folder says nothing of a licence: find out before you pass this on"
                        .to_owned()
                }
            };
            let _ = writeln!(text, "- {}: {said}.", origin.name());
        }
        let done = self.stored.position.stage + usize::from(self.stored.position.step > 0);
        let stages = &self.stored.recipe.stages;
        let stages = &stages[..done.min(stages.len())];
        let draws = |is_samples: bool| {
            let mut tasks = stages.iter().flat_map(|stage| stage.data.keys());
            tasks.any(|task| (task == Task::SAMPLES.name) == is_samples)
        };
        if draws(true) {
            for data in &self.stored.position.inputs.data {
                let name = file_name(Path::new(&data.name));
                let _ = writeln!(
                    text,
                    "- The data `{}`: Keel does not know their licence; add it here before you pass this on.",
                    plain(&name)
                );
            }
        }
        if draws(false) {
            text += "- Keel's embedded emoji: Noto Emoji under Apache-2.0, Twemoji under CC BY 4.0, the latter in evaluation only.\n";
        }
        if !files.is_empty() {
            let names: Vec<String> = files
                .iter()
                .map(|name| format!("`{}`", plain(name)))
                .collect();
            let _ = writeln!(
                text,
                "\nCopied from where they came from: {}.",
                names.join(", ")
            );
        }
        if text.is_empty() {
            text += "Nothing that it was made of has a licence of its own.\n";
        }
        text
    }

    /// The class of transformers that loads the folder, where there is one.
    fn class(&self) -> Option<&str> {
        let class = self.config.get("architectures")?.get(0)?.as_str()?;
        let is_known = ["vision_config", "auto_map"]
            .iter()
            .all(|key| !self.config.contains_key(*key));
        // The towers of SAILViT and of the first InternViT have names that only their publishers' code knows.
        let is_known = is_known && !["AIMv2Model", "InternVisionModel"].contains(&class);
        let is_name = class.chars().all(|c| c.is_ascii_alphanumeric());
        (is_known && is_name).then_some(class)
    }

    fn loading(&self) -> String {
        if self.is_adapter {
            let option = self.part.name();
            return format!(
                "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, \"FOLDER\")\n```\n\n\
                 `base` is the model that they belong to. `keel train --{option} … --{option}-adapter` goes on from them.\n"
            );
        }
        let again = "`keel inspect` says what the folder holds, and `keel train";
        let again = match self.part {
            ExportPart::Vision => format!("{again} --vision` goes on from it"),
            ExportPart::Language => format!("{again} --language` goes on from it"),
            ExportPart::Model => format!("{again} --vision … --language …` goes on from it"),
            ExportPart::Connector => {
                return "Its tensors have the names that InternVL gives them (`mlp1`).\n"
                    .to_owned();
            }
        };
        let Some(class) = self.class() else {
            let how = match self.part {
                ExportPart::Model => {
                    "The folder has InternVL's form: `vision_model.`, `mlp1.` and `language_model.` in one set of tensors"
                }
                _ => "transformers has no class of this name: the publishers' own code loads it",
            };
            return format!("{how}. {again}.\n");
        };
        let code = match self.part {
            ExportPart::Language => format!(
                "from transformers import AutoTokenizer, {class}\n\n\
                 model = {class}.from_pretrained(\"FOLDER\")\n\
                 tokenizer = AutoTokenizer.from_pretrained(\"FOLDER\")\n"
            ),
            _ => format!(
                "from PIL import Image\nfrom transformers import AutoImageProcessor, {class}\n\n\
                 model = {class}.from_pretrained(\"FOLDER\")\n\
                 processor = AutoImageProcessor.from_pretrained(\"FOLDER\")\n\
                 inputs = processor(Image.open(\"image.png\").convert(\"RGB\"), return_tensors=\"pt\")\n\
                 features = model(**inputs).last_hidden_state\n"
            ),
        };
        format!("```python\n{code}```\n\n{again}.\n")
    }

    /// The folders that what is exported began from, each once.
    fn origins(&self) -> Vec<Origin> {
        let recipe = &self.stored.recipe;
        let paths = match self.part {
            ExportPart::Vision => vec![&recipe.vision_weights],
            ExportPart::Language => vec![&recipe.language_weights],
            ExportPart::Connector => vec![&recipe.connector_weights],
            ExportPart::Model => vec![&recipe.vision_weights, &recipe.language_weights],
        };
        let mut paths: Vec<&String> = paths.into_iter().flatten().collect();
        paths.dedup();
        paths
            .into_iter()
            .map(|path| Origin::of(Path::new(path)))
            .collect()
    }
}

impl Origin {
    /// What a folder says of its licence; nothing where it is not there any more.
    fn of(path: &Path) -> Origin {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| is_licence(path))
            .collect();
        files.sort();
        Origin {
            path: path.to_owned(),
            licence: licence_of_card(&path.join(CARD)),
            files,
        }
    }

    fn name(&self) -> String {
        format!("`{}`", plain(&file_name(&self.path)))
    }
}

fn is_licence(path: &Path) -> bool {
    let name = file_name(path).to_lowercase();
    let is_file = path
        .symlink_metadata()
        .is_ok_and(|found| found.is_file() && found.len() <= LICENCE_BYTES);
    is_file && LICENCES.iter().any(|start| name.starts_with(start))
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// A licence's name beside others: with that of its folder where it is taken.
fn licence_name(path: &Path, taken: &BTreeSet<String>) -> String {
    let name = file_name(path);
    if !taken.contains(&name) {
        return name;
    }
    let folder = path.parent().map(file_name).unwrap_or_default();
    format!("{name}.{folder}")
}

/// The licence in the first lines of a card, where it is one word as hubs know them.
fn licence_of_card(path: &Path) -> Option<String> {
    let is_small = path.metadata().ok()?.len() <= LICENCE_BYTES;
    let text = String::from_utf8(content(path).ok().filter(|_| is_small)?).ok()?;
    let front = text.strip_prefix("---\n")?.split("\n---").next()?;
    let said = front
        .lines()
        .find_map(|line| line.strip_prefix("license:"))?
        .trim()
        .trim_matches(['"', '\''])
        .to_owned();
    let is_word = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    (!said.is_empty() && said.len() <= 64 && said.chars().all(is_word)).then_some(said)
}

fn stage_row(stage: &Stage, length: &str) -> String {
    let data: Vec<String> = stage
        .data
        .iter()
        .map(|(task, weight)| format!("{task} {weight}"))
        .collect();
    format!(
        "| {} | {} | {length} of {} | {:e} | {} |",
        stage.name,
        stage.trains.join(", "),
        stage.batch_size,
        stage.learning_rate,
        data.join(", ")
    )
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A name from outside as part of a line of Markdown: what would end the line or its code is left out.
fn plain(text: &str) -> String {
    let is_harmless = |c: &char| !c.is_control() && !"`|<>[]*_#\\".contains(*c);
    text.chars().filter(is_harmless).collect()
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}
