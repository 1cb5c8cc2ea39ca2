//! The optimiser's state of one rank among several: a file beside the checkpoint's own.
//!
//! Each rank writes the moments that it keeps, as pieces named by parameter and first element: `first_moment.vision.blocks.3.mlp.up.weight@1048576`.
//! The checkpoint's own file, with parameters and position, is written last and names all of them with their hashes. It is
//! the index: without it there is no checkpoint, and how many ranks wrote the pieces matters to nobody who reads them.

use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::disk::{Disk, has_room, parent_of, uninterrupted, write_durably_with};
use super::file::{damaged, header, view};
use super::optimizer_state::OptimizerValues;
use keel_base::error::{Error, Result};
use keel_base::mapped_file::MappedFile;
use keel_engine::executor::Session;
use keel_engine::program::Program;
use keel_engine::tape::{OptimizerState, ParameterLayout};
use keel_ranks::World;

/// A file with a rank's part of the optimiser's state, as the checkpoint's own file names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Its name in the folder of the checkpoint.
    pub name: String,
    /// The BLAKE3 hash of its bytes.
    pub blake3: String,
}

/// What stands between a checkpoint's name and a rank's.
const RANK: &str = ".rank-";

/// The file of a rank's part of the checkpoint `path`.
pub(super) fn shard_path(path: &Path, world: World) -> PathBuf {
    let World { rank, ranks, .. } = world;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}{RANK}{rank:04}-of-{ranks:04}.safetensors"))
}

/// The checkpoint that a file is a rank's part of; nothing where it is none.
pub(crate) fn checkpoint_of_shard(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (stem, _) = name.split_once(RANK)?;
    Some(path.with_file_name(format!("{stem}.safetensors")))
}

/// Removes a checkpoint: its own file first, so that what is left is none, then the ranks' files.
///
/// # Errors
/// [`Error::Io`] naming the file or folder.
pub(crate) fn remove_checkpoint(disk: &dyn Disk, path: &Path) -> Result<()> {
    let remove = |path: &Path| {
        let removed = uninterrupted(|| disk.remove(path));
        removed.map_err(|problem| Error::io(path, "remove the file", problem))
    };
    remove(path)?;
    let folder = parent_of(path);
    let entries = std::fs::read_dir(folder);
    let entries = entries.map_err(|problem| Error::io(folder, "read the folder", problem))?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut shards = files.filter(|file| checkpoint_of_shard(file).as_deref() == Some(path));
    shards.try_for_each(|shard| remove(&shard))
}

/// A rank's part of the optimiser's state, copied out of its session.
#[derive(Debug)]
pub(super) struct OptimizerShard {
    /// By name, rising.
    pieces: Vec<(String, Vec<f32>)>,
}

impl OptimizerShard {
    /// Copies what `session` holds.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn take(session: &dyn Session, layout: &ParameterLayout) -> Result<OptimizerShard> {
        let values = OptimizerValues::read(session)?;
        Ok(OptimizerShard::of(&values, session.program(), layout))
    }

    /// Of what a rank keeps of slots of `program`.
    pub fn of(
        values: &OptimizerValues,
        program: &Program,
        layout: &ParameterLayout,
    ) -> OptimizerShard {
        let cut = *program.shards().expect("ranks keep their own slices");
        let rank = program.world().rank;
        let mut pieces = Vec::new();
        for (slot, values) in values.slots() {
            for bucket in 0..cut.buckets() {
                let slice = cut.slice_of(bucket, rank);
                for entry in program.gradient_entries() {
                    let known = layout.get(&entry.parameter);
                    let known = known.expect("trained parameters are laid out");
                    let last = entry.offset + known.spec.shape.numel();
                    let (first, end) = (slice.start.max(entry.offset), slice.end.min(last));
                    if first < end {
                        let name = format!("{slot}.{}@{}", entry.parameter, first - entry.offset);
                        let at = bucket * cut.slice() + first - slice.start;
                        pieces.push((name, values[at..at + end - first].to_vec()));
                    }
                }
            }
        }
        pieces.sort_by(|(one, _), (other, _)| one.cmp(other));
        OptimizerShard { pieces }
    }

    /// Writes the file; returns the hash of its bytes.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, disk: &dyn Disk, path: &Path) -> Result<String> {
        let views = self.pieces.iter();
        let views: Vec<_> = views
            .map(|(name, values)| (name.clone(), view(&[values.len()], values)))
            .collect();
        let header = header(&views, None);
        let bytes: usize = views.iter().map(|(_, view)| view.data().len()).sum();
        has_room(path, (header.len() + bytes) as u64)?;
        let mut hasher = blake3::Hasher::new();
        write_durably_with(disk, path, &mut |file: &mut dyn Write| {
            hasher.reset();
            let parts = [&header[..]].into_iter();
            let mut parts = parts.chain(views.iter().map(|(_, view)| view.data()));
            parts.try_for_each(|part| {
                hasher.update(part);
                file.write_all(part)
            })
        })?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// The files of ranks beside the checkpoint `path`, each held to its hash.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file.
pub(super) fn open_shards(path: &Path, shards: &[ShardFile]) -> Result<Vec<(PathBuf, MappedFile)>> {
    let open = |shard: &ShardFile| {
        let file = parent_of(path).join(&shard.name);
        let is_its_own = checkpoint_of_shard(&file).as_deref() == Some(path);
        if !is_its_own || file.parent() != Some(parent_of(path)) {
            return Err(damaged(
                path,
                format!("it names the foreign file {}", shard.name),
            ));
        }
        let bytes = MappedFile::open(&file)?;
        if blake3::hash(&bytes).to_hex().as_str() != shard.blake3 {
            return Err(damaged(&file, "its content does not match its checksum"));
        }
        Ok((file, bytes))
    };
    shards.iter().map(open).collect()
}

/// Puts together the whole state that `program` keeps from the pieces of the checkpoint `path`.
///
/// # Errors
/// As [`open_shards`]; [`Error::Content`] where elements are missing.
pub(super) fn load_shards(
    path: &Path,
    shards: &[ShardFile],
    layout: &ParameterLayout,
    program: &Program,
    elements: usize,
) -> Result<Vec<(OptimizerState, Vec<f32>)>> {
    let opened = open_shards(path, shards)?;
    let mut files = Vec::new();
    for (file, bytes) in &opened {
        let tensors = SafeTensors::deserialize(bytes);
        files.push((file, tensors.map_err(|problem| damaged(file, problem))?));
    }
    let mut slots = Vec::new();
    for slot in program.optimizer_state() {
        let mut values = vec![0.0f32; elements];
        for entry in program.gradient_entries() {
            let known = layout.get(&entry.parameter);
            let numel = known
                .expect("trained parameters are laid out")
                .spec
                .shape
                .numel();
            let places = &mut values[entry.offset..entry.offset + numel];
            let prefix = format!("{}.{}@", slot.name, entry.parameter);
            let mut filled = 0;
            for (file, tensors) in &files {
                for (name, tensor) in tensors.iter() {
                    let Some(first) = name.strip_prefix(&prefix) else {
                        continue;
                    };
                    let first: usize = first.parse().map_err(|problem| damaged(file, problem))?;
                    let fours = tensor.data().as_chunks::<4>().0;
                    let end = first.saturating_add(fours.len());
                    if tensor.dtype() != Dtype::F32 || end > numel {
                        return Err(damaged(
                            file,
                            format!("the piece {name} is not of its parameter"),
                        ));
                    }
                    for (place, bytes) in places[first..end].iter_mut().zip(fours) {
                        *place = f32::from_le_bytes(*bytes);
                    }
                    filled += fours.len();
                }
            }
            if filled != numel {
                let problem =
                    format!("its ranks saved {filled} of the {numel} elements of {prefix}");
                return Err(damaged(path, problem));
            }
        }
        slots.push((*slot, values));
    }
    Ok(slots)
}
