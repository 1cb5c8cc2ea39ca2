//! A folder's settings and the places of its tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value as Json};

use super::foreign_format::{file_instead_of_folder, other_weights};
use keel_base::error::{Error, Result};
use keel_base::mapped_file::MappedFile;

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub struct TensorPlace {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// Which of the folder's files.
    file: usize,
    /// Bytes within it.
    range: Range<usize>,
}

impl TensorPlace {
    /// `count` rows from `first` on, where there are so many.
    pub(super) fn rows(&self, first: usize, count: usize) -> Option<TensorPlace> {
        let all = *self.shape.first()?;
        if all == 0 || first + count > all {
            return None;
        }
        let row = self.range.len() / all;
        let start = self.range.start + first * row;
        let mut place = self.clone();
        place.shape[0] = count;
        place.range = start..start + count * row;
        Some(place)
    }
}

/// A folder with `config.json`, or open_clip's name for it, and safetensors, its files mapped and their headers read.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    config: Map<String, Json>,
    config_file: &'static str,
    weights_file: &'static str,
    files: Vec<(String, MappedFile)>,
    tensors: BTreeMap<String, TensorPlace>,
}

/// Every git-LFS pointer begins so.
const LFS: &[u8] = b"version https://git-lfs";

/// The file of a folder's tensors, where it is one.
pub const WHOLE: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// What open_clip calls its files.
pub const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";
const OPEN_CLIP_WEIGHTS: &str = "open_clip_model.safetensors";
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(super) const ADAPTERS: &str = "adapter_model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

impl Folder {
    /// Opens a folder: reads the settings and the headers, no values.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; [`Error::Content`] naming the file that is no such file, is a git-LFS
    /// pointer, is missing though the index names it, or has a header that lies.
    pub fn open(path: &Path) -> Result<Folder> {
        if !path.is_dir() {
            return Err(file_instead_of_folder(path));
        }
        let has = |name: &str| path.join(name).exists();
        // Where it holds both forms, that of transformers, which more programs read.
        let is_typed = has(CONFIG) && (has(WHOLE) || has(INDEX));
        let is_open_clip = has(OPEN_CLIP_CONFIG) && !is_typed;
        let config_file = match is_open_clip {
            true => OPEN_CLIP_CONFIG,
            false => CONFIG,
        };
        let weights_file = match is_open_clip && has(OPEN_CLIP_WEIGHTS) {
            true => OPEN_CLIP_WEIGHTS,
            false => WHOLE,
        };
        if !has(config_file)
            && !has(WHOLE)
            && let Some(problem) = other_weights(path)
        {
            return Err(problem);
        }
        let config = read_json(&path.join(config_file))?;
        let mut folder = Folder {
            path: path.to_owned(),
            config,
            config_file,
            weights_file,
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        if has(weights_file) {
            folder.add_file(weights_file)?;
        } else if has(INDEX) {
            folder.add_shards()?;
        } else if let Some(problem) = other_weights(path) {
            return Err(problem);
        } else {
            return Err(Error::content(
                path.display(),
                format!("holds neither {WHOLE} nor {INDEX}"),
                "save the model as safetensors",
            ));
        }
        Ok(folder)
    }

    /// Opens a folder of adapters, as PEFT saves them.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub(super) fn open_adapters(path: &Path) -> Result<Folder> {
        let is_one = path.join(ADAPTER_CONFIG).is_file();
        if !is_one || !path.join(ADAPTERS).is_file() {
            return Err(Error::content(
                path.display(),
                format!("is no folder of {ADAPTER_CONFIG} and {ADAPTERS}"),
                "give a folder that PEFT has saved as safetensors",
            ));
        }
        let mut folder = Folder {
            path: path.to_owned(),
            config: read_json(&path.join(ADAPTER_CONFIG))?,
            config_file: ADAPTER_CONFIG,
            weights_file: ADAPTERS,
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        folder.add_file(ADAPTERS)?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the file of its settings.
    pub fn config_file(&self) -> &'static str {
        self.config_file
    }

    /// The name of the file of its tensors, where it is one.
    pub fn weights_file(&self) -> &'static str {
        self.weights_file
    }

    /// What the file of its settings says.
    pub fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorPlace> {
        &self.tensors
    }

    /// Number of files that hold tensors.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// A checksum of all numbers in it; reads every file once.
    pub fn checksum(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (_, file) in &self.files {
            hasher.update(file);
        }
        hasher.finalize()
    }

    /// The bytes of a tensor, little-endian.
    pub(super) fn bytes(&self, place: &TensorPlace) -> &[u8] {
        &self.files[place.file].1[place.range.clone()]
    }

    fn add_shards(&mut self) -> Result<()> {
        let path = self.path.join(INDEX);
        let index = read_json(&path)?;
        let bad = |problem: String| Error::content(path.display(), problem, "copy the folder anew");
        let Some(places) = index.get("weight_map").and_then(Json::as_object) else {
            return Err(bad("has no weight_map".into()));
        };
        let mut shards: Vec<&str> = Vec::new();
        for (tensor, shard) in places {
            match shard.as_str() {
                Some(shard) if !shards.contains(&shard) => shards.push(shard),
                Some(_) => {}
                None => return Err(bad(format!("names no file for tensor {tensor}"))),
            }
        }
        for shard in shards {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(bad(format!("names the shard {shard}, outside the folder")));
            }
            if !self.path.join(shard).exists() {
                return Err(bad(format!(
                    "names the shard {shard}, which is not in the folder"
                )));
            }
            self.add_file(shard)?;
        }
        for (tensor, shard) in places {
            let shard = shard.as_str().unwrap_or_default();
            let place = self.tensors.get(tensor);
            if place.is_none_or(|place| self.files[place.file].0 != shard) {
                return Err(bad(format!(
                    "places tensor {tensor} in {shard}, which does not hold it"
                )));
            }
        }
        Ok(())
    }

    fn add_file(&mut self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let map = MappedFile::open(&path)?;
        refuse_pointer(&path, &map)?;
        let bad = |problem: String| Error::content(path.display(), problem, "copy the file anew");
        let lies = |e| bad(format!("its header does not describe its content ({e})"));
        SafeTensors::deserialize(&map).map_err(lies)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(lies)?;
        let data = 8 + header;
        let file = self.files.len();
        for (tensor, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let place = TensorPlace {
                dtype: info.dtype,
                shape: info.shape.clone(),
                file,
                range: data + start..data + end,
            };
            if self.tensors.insert(tensor.clone(), place).is_some() {
                return Err(bad(format!(
                    "holds {tensor}, which another shard holds too"
                )));
            }
        }
        self.files.push((name.to_owned(), map));
        Ok(())
    }
}

fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(LFS) {
        return Ok(());
    }
    Err(Error::content(
        path.display(),
        "is a git-LFS pointer, not the file itself",
        "run git lfs pull in its folder",
    ))
}

pub(super) fn read_json(path: &Path) -> Result<Map<String, Json>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    refuse_pointer(path, &bytes)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::content(
            path.display(),
            format!("is not a JSON object ({e})"),
            "copy the file anew",
        )
    })
}
