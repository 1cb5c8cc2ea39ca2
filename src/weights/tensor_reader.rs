//! The values of a sub-model's parameters as f32, a piece at a time.

use half::{bf16, f16};
use safetensors::Dtype;

use super::pos_embed_interp::resized;
use super::{Folder, SubModel, SubModelConfig, TensorPlace};
use keel_base::error::{Error, Result};
use keel_engine::tape::ParameterEntry;

/// Elements that are widened at once.
const PIECE: usize = 1 << 20;

impl SubModel {
    /// Gives every value, widened to f32, to `write(parameter, element of it, values)`. Only a piece of about four megabytes
    /// is held at a time. `folder` is the one that the sub-model was found in.
    ///
    /// # Errors
    /// [`Error::Content`] naming the tensor of a type other than F32, F16 and BF16, with a value that is not finite, or, of
    /// a tied language model, with an output product that is no copy of its embedding.
    pub fn read(
        &self,
        folder: &Folder,
        write: &mut dyn FnMut(&ParameterEntry, usize, &[f32]),
    ) -> Result<()> {
        for (entry, source) in self.layout().entries().iter().zip(&self.sources) {
            let mut offset = 0;
            let mut table = None;
            let grids = self.grids(entry);
            // A table that is scaled is needed at once; every other parameter goes on piece by piece.
            if grids.is_some() {
                table = Some(Vec::new());
            }
            for (name, place) in &source.tensors {
                let bytes = folder.bytes(place);
                let size = element_size(folder, name, place)?;
                let piece = match source.patch {
                    // Rows are turned whole.
                    Some(patch) => 3 * patch * patch,
                    None => PIECE,
                };
                for bytes in bytes.chunks(piece * size) {
                    let mut values = widen(place.dtype, bytes);
                    if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
                        return Err(Error::content(
                            folder.path().display(),
                            format!("tensor {name} holds the value {bad}"),
                            "train from weights that are finite",
                        ));
                    }
                    if let Some(patch) = source.patch {
                        values = colours_first(&values, patch * patch);
                    }
                    match &mut table {
                        Some(table) => table.extend_from_slice(&values),
                        None => write(entry, offset, &values),
                    }
                    offset += values.len();
                }
            }
            if let (Some(table), Some(grids)) = (table, grids) {
                let width = entry.spec.shape.dims()[1];
                write(entry, 0, &resized(self.scaling(), &table, width, grids));
            }
        }
        self.hold_copy(folder)
    }

    /// The folder's grid and the sub-model's own, of a table of positions that must be scaled.
    fn grids(&self, entry: &ParameterEntry) -> Option<(usize, usize)> {
        let (SubModelConfig::Vision(config), Some(old)) = (self.config(), self.own_grid) else {
            return None;
        };
        (entry.spec.name == "vision.position").then(|| (old, config.grid()))
    }

    /// A tied output product that is stored all the same must be the embedding.
    fn hold_copy(&self, folder: &Folder) -> Result<()> {
        let Some(copy) = &self.copy else {
            return Ok(());
        };
        let table = self.layout().index("language.embedding");
        let table = table.map(|index| &self.sources[index].tensors[0].1);
        if table.is_some_and(|table| folder.bytes(table) == folder.bytes(&copy.1)) {
            return Ok(());
        }
        Err(Error::content(
            folder.path().display(),
            "lm_head.weight differs from the embedding, though config.json ties them",
            "set tie_word_embeddings to false",
        ))
    }
}

pub(super) fn element_size(folder: &Folder, name: &str, place: &TensorPlace) -> Result<usize> {
    match place.dtype {
        Dtype::F32 => Ok(4),
        Dtype::F16 | Dtype::BF16 => Ok(2),
        other => Err(Error::content(
            folder.path().display(),
            format!("tensor {name} is stored as {other:?}"),
            "store it as F32, F16 or BF16",
        )),
    }
}

/// `bytes` of whole elements of a type that [`element_size`] knows.
pub(super) fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => {
            let fours = bytes.as_chunks::<4>().0.iter();
            fours.map(|b| f32::from_le_bytes(*b)).collect()
        }
    }
}

/// One row over (pixel, colour) as (colour, pixel).
fn colours_first(row: &[f32], pixels: usize) -> Vec<f32> {
    let at = |i: usize| row[(i % pixels) * 3 + i / pixels];
    (0..row.len()).map(at).collect()
}
