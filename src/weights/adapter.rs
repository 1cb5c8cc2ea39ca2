//! Folders of low-rank adapters (LoRA) in the form of PEFT: `adapter_config.json` and `adapter_model.safetensors`, read and written.
//!
//! A tensor `base_model.model.<module>.lora_A.weight` [r, C] and its `lora_B` [rows, r] belong to the module of that name in the
//! folder of weights. Where Keel packs several modules into one product, each part has an adapter of its own, or the product has
//! one; where the folder packs what Keel's adapters have apart, they are written as one of a rank as large as theirs together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::{Dtype, serialize_to_file};
use serde_json::{Map, Value as Json, json};

use super::folder::{ADAPTER_CONFIG, ADAPTERS};
use super::output_tensor::open_to_all;
use super::tensor_reader::{element_size, widen};
use super::{Content, Folder, OutputTensor};
use keel_base::error::{Error, Result};
use keel_engine::tape::{ParameterEntry, ParameterLayout};
use keel_model::{BlockConfig, LORA, LoraConfig, packed_parts};

/// What stands before a module's name in a file of PEFT's.
const BEFORE: &str = "base_model.model.";

/// A linear module of a tower's block: Keel's name of it, and the modules that a folder has in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearModule {
    /// For example `language.blocks.0.attention.qkv`.
    pub name: String,
    /// For example `model.layers.0.self_attn.q_proj`, with its rows; several are stacked in this order.
    pub tensors: Vec<(String, usize)>,
}

impl LinearModule {
    /// A module by the names of its weight and of the tensors of that.
    pub(super) fn new(weight: &str, tensors: Vec<(String, usize)>) -> LinearModule {
        let module = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
        let tensors = tensors.iter().map(|(name, rows)| (module(name), *rows));
        LinearModule {
            name: module(weight),
            tensors: tensors.collect(),
        }
    }

    /// The columns of its weight: the width of what it reads.
    fn columns(&self, block: &BlockConfig) -> usize {
        match self.name.rsplit('.').next().unwrap_or_default() {
            "out" => block.heads.query * block.heads.dim,
            "down" | "fc2" => block.mlp_width,
            _ => block.width,
        }
    }

    /// Its parts, where Keel packs several.
    fn parts(&self, block: &BlockConfig) -> Vec<(&'static str, usize)> {
        packed_parts(block, self.name.rsplit('.').next().unwrap_or_default())
    }
}

/// Whether a parameter is the weight of a linear module of a block.
pub(super) fn is_linear(parameter: &str) -> bool {
    let parts: Vec<&str> = parameter.split('.').collect();
    matches!(parts[..], [_, "blocks", _, "attention" | "mlp", module, "weight"] if !module.ends_with("norm"))
}

/// One of a module's adapters as a file has it.
#[derive(Debug)]
struct FileAdapter {
    /// The module's name in the folder of weights.
    module: String,
    /// The adapters of Keel's that it is made of, `language.blocks.0.attention.qkv.query`, with the first of the rows of B that the
    /// module has, and how many.
    of: Vec<(String, usize, usize)>,
}

/// The adapters of `modules`, file by file.
fn file_adapters(
    block: &BlockConfig,
    lora: &LoraConfig,
    modules: &[LinearModule],
) -> Vec<FileAdapter> {
    let mut all = Vec::new();
    for module in modules {
        let parts = module.parts(block);
        if parts.is_empty() || lora.is_fused(&module.name) {
            if !lora.takes(&module.name) {
                continue;
            }
            // One adapter of a product that the folder has in parts: A is the same for all of them.
            let mut first = 0;
            for (tensor, rows) in &module.tensors {
                all.push(FileAdapter {
                    module: tensor.clone(),
                    of: vec![(module.name.clone(), first, *rows)],
                });
                first += rows;
            }
            continue;
        }
        let named = parts
            .iter()
            .map(|(part, rows)| (format!("{}.{part}", module.name), 0, *rows));
        if module.tensors.len() == parts.len() {
            for ((tensor, _), part) in module.tensors.iter().zip(named) {
                if lora.takes(&part.0) {
                    all.push(FileAdapter {
                        module: tensor.clone(),
                        of: vec![part],
                    });
                }
            }
            continue;
        }
        let of: Vec<_> = named.collect();
        if of.iter().any(|(part, ..)| lora.takes(part)) {
            all.push(FileAdapter {
                module: module.tensors[0].0.clone(),
                of,
            });
        }
    }
    all
}

/// Adapters as tensors of PEFT's form, with what `adapter_config.json` says of them.
#[derive(Debug)]
pub struct AdapterTensors {
    /// Names, shapes and values, row-major.
    tensors: Vec<(String, [usize; 2], Vec<f32>)>,
    /// `adapter_config.json`.
    pub config: Map<String, Json>,
}

impl AdapterTensors {
    /// How many tensors there are.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }

    /// How many numbers they hold.
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(|(_, _, values)| values.len()).sum()
    }
}

/// The adapters of a tower whose blocks are `block`, for the modules of a folder. `base` is where that folder is, and `task` what
/// PEFT calls the kind of model.
pub fn adapter_tensors<'a>(
    block: &BlockConfig,
    modules: &[LinearModule],
    layout: &ParameterLayout,
    value_of: &dyn Fn(&ParameterEntry) -> &'a [f32],
    (base, task): (Option<&str>, Option<&str>),
) -> AdapterTensors {
    let Some(lora) = &block.lora else {
        return AdapterTensors {
            tensors: Vec::new(),
            config: Map::new(),
        };
    };
    let mut tensors = Vec::new();
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    let adapters = file_adapters(block, lora, modules);
    for FileAdapter { module, of } in &adapters {
        let there: Vec<_> = of.iter().filter(|(name, ..)| lora.takes(name)).collect();
        let rank = lora.rank * there.len();
        let rows: usize = of.iter().map(|(.., rows)| rows).sum();
        let mut down = Vec::new();
        let mut up = vec![0.0; rows * rank];
        let mut columns = 0;
        let mut top = 0;
        for (name, first, rows) in of {
            if let Some(index) = there.iter().position(|(known, ..)| known == name) {
                let [a, b] = ["a", "b"].map(|matrix| {
                    let entry = layout.get(&format!("{LORA}.{name}.{matrix}"));
                    entry.expect("what the settings take is laid out")
                });
                columns = a.spec.shape.columns();
                down.extend_from_slice(value_of(a));
                let b = &value_of(b)[first * lora.rank..][..rows * lora.rank];
                for (row, b) in b.chunks(lora.rank).enumerate() {
                    let place = (top + row) * rank + index * lora.rank;
                    up[place..place + lora.rank].copy_from_slice(b);
                }
            }
            top += rows;
        }
        if rank != lora.rank {
            // The scale stays α / r.
            ranks.insert(module.clone(), json!(rank));
            alphas.insert(module.clone(), json!(lora.alpha * there.len() as f32));
        }
        tensors.push((
            format!("{BEFORE}{module}.lora_A.weight"),
            [rank, columns],
            down,
        ));
        tensors.push((format!("{BEFORE}{module}.lora_B.weight"), [rows, rank], up));
    }
    let targets: Vec<&str> = adapters
        .iter()
        .map(|adapter| adapter.module.as_str())
        .collect();
    let config = json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": ranks,
        "target_modules": targets,
        "task_type": task,
        "use_dora": false,
        "use_rslora": false,
    });
    let Json::Object(config) = config else {
        unreachable!("written as an object")
    };
    AdapterTensors { tensors, config }
}

/// Writes adapters into `folder`, their numbers in the type `dtype`.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file that cannot be written.
pub fn write_adapters(folder: &Path, adapters: &AdapterTensors, dtype: Dtype) -> Result<()> {
    let tensors: Vec<OutputTensor<'_>> = adapters
        .tensors
        .iter()
        .map(|(name, shape, values)| OutputTensor {
            name: name.clone(),
            shape: shape.to_vec(),
            dtype,
            content: Content::Values {
                values,
                patch: None,
            },
        })
        .collect();
    let path = folder.join(ADAPTERS);
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.iter().map(|tensor| (tensor.name.clone(), tensor));
    serialize_to_file(views, Some(metadata), &path).map_err(|problem| {
        let problem = format!("cannot be written ({problem})");
        Error::content(path.display(), problem, "make room")
    })?;
    open_to_all(&path)?;
    let path = folder.join(ADAPTER_CONFIG);
    let text = serde_json::to_string_pretty(&adapters.config).expect("settings are plain data");
    std::fs::write(&path, text + "\n").map_err(|e| Error::io(&path, "write", e))
}

/// A folder of adapters as PEFT saves them, its header read.
#[derive(Debug)]
pub struct AdapterFolder {
    folder: Folder,
}

/// A module's A and B in the file.
#[derive(Default)]
struct Pair<'a> {
    down: Option<&'a str>,
    up: Option<&'a str>,
}

impl AdapterFolder {
    /// Opens a folder: reads its settings and header, no values.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Content`] as [`Folder::open`] has them; [`Error::Setting`] naming the setting of
    /// `adapter_config.json` that Keel does not honour.
    pub fn open(path: &Path) -> Result<AdapterFolder> {
        let folder = AdapterFolder {
            folder: Folder::open_adapters(path)?,
        };
        folder.hold_settings()?;
        Ok(folder)
    }

    /// The share of their inputs that was left out at random while the adapters were trained (`lora_dropout`); 0 where the folder
    /// does not say. It changes nothing of what they compute.
    pub fn dropout(&self) -> f64 {
        let rate = self.folder.config().get("lora_dropout");
        rate.and_then(Json::as_f64).unwrap_or(0.0)
    }

    /// The settings of the adapters for a tower, `vision` or `language`, whose blocks are `block` and whose modules the folder of
    /// weights calls `modules`.
    ///
    /// # Errors
    /// [`Error::Content`] naming the tensor that belongs to no module of it, lacks its other half or has another shape, with what is
    /// wanted.
    pub fn lora(&self, block: &BlockConfig, modules: &[LinearModule]) -> Result<LoraConfig> {
        let rank = self.rank()?;
        let pairs = self.pairs(modules)?;
        let (mut targets, mut fused) = (Vec::new(), Vec::new());
        for module in modules {
            let parts = module.parts(block);
            for (index, (tensor, rows)) in module.tensors.iter().enumerate() {
                let Some(pair) = pairs.get(tensor.as_str()) else {
                    continue;
                };
                self.hold_pair(tensor, pair, [rank, *rows, module.columns(block)])?;
                match parts
                    .get(index)
                    .filter(|_| module.tensors.len() == parts.len())
                {
                    Some((part, _)) => targets.push(format!("{}.{part}", module.name)),
                    None => {
                        targets.push(module.name.clone());
                        if !parts.is_empty() {
                            fused.push(module.name.clone());
                        }
                    }
                }
            }
        }
        Ok(LoraConfig {
            rank,
            alpha: self.alpha(rank)?,
            targets: by_layers(&targets),
            fused: by_layers(&fused),
        })
    }

    /// Gives the values of every adapter of the tower to `write`, by the names of its parameters.
    ///
    /// # Errors
    /// As [`AdapterFolder::lora`]; [`Error::Content`] naming a tensor with a value that is not finite, or an adapter that the settings
    /// name and the folder lacks.
    pub fn read(
        &self,
        block: &BlockConfig,
        modules: &[LinearModule],
        write: &mut dyn FnMut(&str, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let pairs = self.pairs(modules)?;
        let Some(lora) = &block.lora else {
            return Ok(());
        };
        for FileAdapter { module, of } in file_adapters(block, lora, modules) {
            let (Some(pair), [(name, ..)]) = (pairs.get(module.as_str()), &of[..]) else {
                return Err(self.lacks(&module));
            };
            let place = modules.iter().find_map(|own| {
                let mut tensors = own.tensors.iter();
                let (_, rows) = tensors.find(|(tensor, _)| *tensor == module)?;
                Some([lora.rank, *rows, own.columns(block)])
            });
            let sizes = place.ok_or_else(|| self.lacks(&module))?;
            self.hold_pair(&module, pair, sizes)?;
            for (matrix, tensor) in [("a", pair.down), ("b", pair.up)] {
                let tensor = tensor.ok_or_else(|| self.lacks(&module))?;
                let values = self.values(tensor)?;
                write(&format!("{LORA}.{name}.{matrix}"), &values)?;
            }
        }
        Ok(())
    }

    fn lacks(&self, module: &str) -> Error {
        Error::content(
            self.folder.path().display(),
            format!("lacks the adapter of {module}, which the settings name"),
            "give the folder that the run was begun from",
        )
    }

    /// The values of a tensor.
    fn values(&self, tensor: &str) -> Result<Vec<f32>> {
        let place = &self.folder.tensors()[tensor];
        element_size(&self.folder, tensor, place)?;
        let values = widen(place.dtype, self.folder.bytes(place));
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values),
            Some(bad) => Err(Error::content(
                self.folder.path().display(),
                format!("tensor {tensor} holds the value {bad}"),
                "train from weights that are finite",
            )),
        }
    }

    /// The file's tensors by the modules that they belong to.
    fn pairs<'a>(&'a self, modules: &'a [LinearModule]) -> Result<BTreeMap<&'a str, Pair<'a>>> {
        let known: Vec<&str> = modules
            .iter()
            .flat_map(|module| module.tensors.iter().map(|(name, _)| name.as_str()))
            .collect();
        // A whole model of several parts, and a class around the same model, stand before the names of one or the other.
        let is_of = |name: &str, known: &str| {
            let ends = |long: &str, short: &str| {
                let before = long.strip_suffix(short);
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            ends(name, known) || ends(known, name)
        };
        let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
        for tensor in self.folder.tensors().keys() {
            let foreign = |problem: String| {
                let wanted = known.first().copied().unwrap_or("none");
                Error::content(
                    self.folder.path().display(),
                    format!("tensor {tensor} {problem}"),
                    format!("give adapters of this model's linear modules, such as {wanted}"),
                )
            };
            let name = tensor.strip_prefix(BEFORE).unwrap_or(tensor);
            let halves = [".lora_A.weight", ".lora_B.weight"];
            let half = halves.iter().position(|half| name.ends_with(half));
            let Some(half) = half else {
                return Err(foreign("is no lora_A or lora_B".to_owned()));
            };
            let name = &name[..name.len() - halves[half].len()];
            let Some(module) = known.iter().find(|known| is_of(name, known)) else {
                return Err(foreign(
                    "belongs to no linear module of the model's blocks".to_owned(),
                ));
            };
            let pair = pairs.entry(module).or_default();
            match half {
                0 => pair.down = Some(tensor),
                _ => pair.up = Some(tensor),
            }
        }
        Ok(pairs)
    }

    /// Refuses an adapter that lacks a half or has another shape.
    fn hold_pair(
        &self,
        module: &str,
        pair: &Pair<'_>,
        [rank, rows, columns]: [usize; 3],
    ) -> Result<()> {
        let (Some(down), Some(up)) = (pair.down, pair.up) else {
            return Err(Error::content(
                self.folder.path().display(),
                format!("has one of lora_A and lora_B for {module}"),
                "copy the folder anew",
            ));
        };
        for (tensor, axis, wanted) in [
            (down, 0, rank),
            (down, 1, columns),
            (up, 0, rows),
            (up, 1, rank),
        ] {
            let shape = &self.folder.tensors()[tensor].shape;
            if shape.len() != 2 || shape[axis] != wanted {
                return Err(Error::content(
                    self.folder.path().display(),
                    format!(
                        "tensor {tensor} has the shape {shape:?}, where {wanted} is wanted in place {axis}"
                    ),
                    "give adapters of this model, of the rank that adapter_config.json says",
                ));
            }
        }
        Ok(())
    }

    fn setting(&self, key: &str, want: impl ToString, found: impl ToString) -> Error {
        let path = self.folder.path().join(ADAPTER_CONFIG);
        Error::setting(format!("{key} in {}", path.display()), want, found)
    }

    fn rank(&self) -> Result<usize> {
        let found = self.folder.config().get("r").unwrap_or(&Json::Null);
        let rank = found.as_u64().filter(|rank| (1..=1 << 20).contains(rank));
        rank.map(|rank| rank as usize)
            .ok_or_else(|| self.setting("r", "a rank from 1 to 1048576", found))
    }

    /// α, so that α / r is what PEFT scales by.
    fn alpha(&self, rank: usize) -> Result<f32> {
        let config = self.folder.config();
        let found = config.get("lora_alpha").unwrap_or(&Json::Null);
        let alpha = found
            .as_f64()
            .filter(|alpha| *alpha > 0.0 && alpha.is_finite());
        let alpha = alpha.ok_or_else(|| self.setting("lora_alpha", "a number above 0", found))?;
        // Rank-stabilised adapters are scaled by α / √r (Kalajdzievski 2023).
        let is_stabilised = config.get("use_rslora") == Some(&Json::Bool(true));
        Ok((alpha
            * if is_stabilised {
                (rank as f64).sqrt()
            } else {
                1.0
            }) as f32)
    }

    /// Refuses settings under which the tensors would mean something else than two matrices of a linear module.
    fn hold_settings(&self) -> Result<()> {
        let config = self.folder.config();
        let kind = config.get("peft_type").unwrap_or(&Json::Null);
        if kind != "LORA" {
            return Err(self.setting("peft_type", "LORA", kind));
        }
        let bias = config.get("bias").unwrap_or(&Json::Null);
        if !bias.is_null() && bias != "none" {
            return Err(self.setting("bias", "none", bias));
        }
        for (key, value) in config {
            let is_nothing = match value {
                Json::Null => true,
                Json::Bool(is_on) => !is_on,
                Json::Array(list) => list.is_empty(),
                Json::Object(table) => table.is_empty(),
                _ => false,
            };
            if !is_nothing && !KNOWN.contains(&key.as_str()) {
                return Err(self.setting(key, "nothing: Keel does not have it", value));
            }
        }
        Ok(())
    }
}

/// Settings of `adapter_config.json` that are honoured, or that say nothing of what the adapters compute: how they were made, what
/// dropped numbers at random in their training, and which modules were chosen, which the tensors show.
const KNOWN: [&str; 20] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
    "runtime_config",
];

/// Names as patterns: those that differ in the number of their block alone become one, for each run of numbers.
fn by_layers(names: &[String]) -> Vec<String> {
    let mut layers: BTreeMap<(&str, &str), BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        let (before, rest) = name.split_once(".blocks.").unwrap_or((name, ""));
        let (layer, behind) = rest.split_once('.').unwrap_or((rest, ""));
        let layer = layer.parse().unwrap_or_default();
        layers.entry((before, behind)).or_default().insert(layer);
    }
    let mut patterns = Vec::new();
    for ((before, behind), layers) in layers {
        let mut layers = layers.into_iter().peekable();
        while let Some(first) = layers.next() {
            let mut last = first;
            while let Some(next) = layers.next_if(|next| *next == last + 1) {
                last = next;
            }
            patterns.push(match first == last {
                true => format!("{before}.blocks.{first}.{behind}"),
                false => format!("{before}.blocks.{first}-{last}.{behind}"),
            });
        }
    }
    patterns
}
