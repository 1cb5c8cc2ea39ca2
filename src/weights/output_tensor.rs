//! Writes tensors as Hugging Face folders hold them: `model.safetensors`, or shards and their index. A tensor is converted
//! when its turn comes, so that no second copy of the model is held.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::View;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Map, json};

use super::folder::INDEX;
use keel_base::error::{Error, Result};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct OutputTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// Type of its elements in the file: F32, F16 or BF16 where there are values.
    pub dtype: Dtype,
    /// What it holds.
    pub content: Content<'a>,
}

/// What a tensor holds.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// Values that are rounded to the tensor's type, to the nearest and on ties to even.
    Values {
        /// Row-major.
        values: &'a [f32],
        /// Side of a patch, where rows of (colour, row, column) are written as (row, column, colour).
        patch: Option<usize>,
    },
    /// Bytes that are passed on.
    Bytes(&'a [u8]),
}

impl View for &OutputTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.content {
            Content::Bytes(bytes) => Cow::Borrowed(bytes),
            Content::Values { values, patch } => {
                let turned = patch.map(|side| {
                    let rows = values.chunks(3 * side * side);
                    rows.flat_map(|row| colours_last(row, side * side))
                        .collect()
                });
                let turned: Option<Vec<f32>> = turned;
                Cow::Owned(narrow(self.dtype, turned.as_deref().unwrap_or(values)))
            }
        }
    }

    fn data_len(&self) -> usize {
        match self.content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Values { values, .. } => values.len() * self.dtype.bitsize() / 8,
        }
    }
}

fn narrow(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => {
            let halves = values.iter().map(|x| f16::from_f32(*x).to_le_bytes());
            halves.flatten().collect()
        }
        Dtype::BF16 => {
            let halves = values.iter().map(|x| bf16::from_f32(*x).to_le_bytes());
            halves.flatten().collect()
        }
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// One row over (colour, pixel) as (pixel, colour).
fn colours_last(row: &[f32], pixels: usize) -> impl Iterator<Item = f32> {
    (0..row.len()).map(move |i| row[(i % 3) * pixels + i / 3])
}

/// Lets everybody read a file of tensors: it is written under a temporary name that only its owner may read.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub(super) fn open_to_all(path: &Path) -> Result<()> {
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path, open).map_err(|e| Error::io(path, "open to all", e))
}

/// Writes `tensors` into `folder`, in `whole` or in files of at most `shard_bytes` bytes of tensors unless one tensor is larger. Returns
/// the number of files of tensors.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file that cannot be written.
pub fn write_tensors(
    folder: &Path,
    whole: &str,
    tensors: &[OutputTensor<'_>],
    shard_bytes: u64,
) -> Result<usize> {
    let mut shards: Vec<(u64, Vec<&OutputTensor<'_>>)> = vec![(0, Vec::new())];
    for tensor in tensors {
        let bytes = tensor.data_len() as u64;
        let (held, shard) = shards.last_mut().expect("there is one");
        if *held + bytes > shard_bytes && !shard.is_empty() {
            shards.push((bytes, vec![tensor]));
        } else {
            *held += bytes;
            shard.push(tensor);
        }
    }
    let count = shards.len();
    let mut index = Map::new();
    for (number, (_, shard)) in shards.iter().enumerate() {
        let name = match count {
            1 => whole.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let path = folder.join(&name);
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let views = shard.iter().map(|tensor| (tensor.name.clone(), *tensor));
        serialize_to_file(views, Some(metadata), &path).map_err(|problem| {
            Error::content(
                path.display(),
                format!("cannot be written ({problem})"),
                "make room",
            )
        })?;
        open_to_all(&path)?;
        index.extend(
            shard
                .iter()
                .map(|tensor| (tensor.name.clone(), json!(name))),
        );
    }
    if count > 1 {
        let total: u64 = shards.iter().map(|(bytes, _)| bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": index });
        let text = serde_json::to_string_pretty(&index).expect("an index is plain data");
        let path = folder.join(INDEX);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, "write", e))?;
    }
    Ok(count)
}
