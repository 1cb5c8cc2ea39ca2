//! The optimiser's state of one rank among several: a file beside the checkpoint's own.
//!
//! Each rank writes the moments that it keeps, and its part of sharded master weights, as pieces named by parameter and first
//! element: `first_moment.vision.blocks.3.mlp.up.weight@1048576`.
//! The checkpoint's own file, with parameters and position, is written last and names all of them with their hashes. It is
//! the index: without it there is no checkpoint, and how many ranks wrote the pieces matters to nobody who reads them.

use std::collections::HashMap;
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
use keel_engine::ops::MASTER_STATE;
use keel_engine::program::Program;
use keel_engine::tape::{OptimizerState, ParameterEntry, ParameterLayout};
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
        let found = values.by_parameter(program.gradient_entries(), layout);
        let named = found.into_iter().map(|piece| {
            let name = format!("{}.{}@{}", piece.slot, piece.entry.parameter, piece.first);
            (name, piece.values.to_vec())
        });
        let mut pieces: Vec<(String, Vec<f32>)> = named.collect();
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

/// The tensors in files of ranks.
///
/// # Errors
/// [`Error::Content`] naming the file.
pub(super) fn tensors_of(files: &[(PathBuf, MappedFile)]) -> Result<Vec<ShardTensors<'_>>> {
    let mut all = Vec::new();
    for (file, bytes) in files {
        let tensors = SafeTensors::deserialize(bytes);
        let tensors = tensors.map_err(|problem| damaged(file, problem))?;
        all.push((file.as_path(), tensors));
    }
    Ok(all)
}

/// A rank's file and what is in it.
pub(super) type ShardTensors<'a> = (&'a Path, SafeTensors<'a>);

/// Gives `take` each piece of the slot `slot`: its parameter, the first of its elements, and the bytes of each. A tensor without
/// a first element in its name, as in a checkpoint's own file, is of the whole parameter.
///
/// # Errors
/// [`Error::Content`] naming a file with a piece that is not of its parameter; whatever `take` reports.
pub(super) fn each_piece(
    files: &[ShardTensors<'_>],
    layout: &ParameterLayout,
    slot: &str,
    mut take: impl FnMut(&ParameterEntry, usize, &[[u8; 4]]) -> Result<()>,
) -> Result<()> {
    for (file, tensors) in files {
        for (name, tensor) in tensors.iter() {
            let piece = name.strip_prefix(slot);
            let Some(piece) = piece.and_then(|name| name.strip_prefix('.')) else {
                continue;
            };
            let (parameter, first) = piece.split_once('@').unwrap_or((piece, "0"));
            let first: usize = first.parse().map_err(|problem| damaged(file, problem))?;
            let fours = tensor.data().as_chunks::<4>().0;
            let known = layout.get(parameter).filter(|entry| {
                first.saturating_add(fours.len()) <= entry.spec.shape.numel()
                    && tensor.dtype() == Dtype::F32
            });
            let foreign = || damaged(file, format!("the piece {name} is not of its parameter"));
            take(known.ok_or_else(foreign)?, first, fours)?;
        }
    }
    Ok(())
}

/// Refuses the checkpoint `path` where elements of a parameter are missing in the slot `slot` that others are in.
///
/// # Errors
/// As [`each_piece`]; [`Error::Content`] naming the parameter.
pub(super) fn expect_whole(
    path: &Path,
    files: &[ShardTensors<'_>],
    layout: &ParameterLayout,
    slot: &str,
) -> Result<()> {
    let mut filled: HashMap<String, usize> = HashMap::new();
    each_piece(files, layout, slot, |entry, _, fours| {
        *filled.entry(entry.spec.name.clone()).or_default() += fours.len();
        Ok(())
    })?;
    for (name, filled) in filled {
        let known = layout.get(&name).expect("its pieces are of it");
        expect_filled(path, slot, known, filled)?;
    }
    Ok(())
}

fn expect_filled(path: &Path, slot: &str, entry: &ParameterEntry, filled: usize) -> Result<()> {
    let (name, numel) = (&entry.spec.name, entry.spec.shape.numel());
    if filled == numel {
        return Ok(());
    }
    let problem = format!("its ranks saved {filled} of the {numel} elements of {slot}.{name}");
    Err(damaged(path, problem))
}

/// Puts together the whole state that `program` keeps from the pieces of the checkpoint `path`. `whole` gives a parameter's values
/// as the checkpoint's own file has them, which are those of [`MASTER_STATE`] where no rank has a part.
///
/// # Errors
/// [`Error::Content`] where elements are missing; whatever `whole` reports.
pub(super) fn load_shards(
    path: &Path,
    files: &[ShardTensors<'_>],
    layout: &ParameterLayout,
    program: &Program,
    whole: impl Fn(&ParameterEntry, &mut [f32]) -> Result<()>,
) -> Result<Vec<(OptimizerState, Vec<f32>)>> {
    let entries = program.gradient_entries().iter();
    let places: HashMap<&str, usize> = entries
        .map(|entry| (entry.parameter.as_str(), entry.offset))
        .collect();
    let mut slots = Vec::new();
    for slot in program.optimizer_state() {
        let mut values = vec![0.0f32; program.trained_elements()];
        let mut filled: HashMap<String, usize> = HashMap::new();
        let kept: Vec<&ParameterEntry> = kept_of(program, slot, layout).collect();
        if slot.name == MASTER_STATE {
            for entry in &kept {
                let first = places[entry.spec.name.as_str()];
                whole(entry, &mut values[first..][..entry.spec.shape.numel()])?;
            }
        }
        each_piece(files, layout, slot.name, |entry, first, fours| {
            let name = entry.spec.name.as_str();
            if let Some(offset) = places.get(name) {
                let places = &mut values[offset + first..][..fours.len()];
                for (place, bytes) in places.iter_mut().zip(fours) {
                    *place = f32::from_le_bytes(*bytes);
                }
                *filled.entry(name.to_owned()).or_default() += fours.len();
            }
            Ok(())
        })?;
        for entry in kept {
            let filled = filled.get(&entry.spec.name).copied().unwrap_or_default();
            if filled > 0 || slot.name != MASTER_STATE {
                expect_filled(path, slot.name, entry, filled)?;
            }
        }
        slots.push((slot.clone(), values));
    }
    Ok(slots)
}

/// The trained parameters of which `slot` keeps something.
pub(super) fn kept_of<'a>(
    program: &'a Program,
    slot: &'a OptimizerState,
    layout: &'a ParameterLayout,
) -> impl Iterator<Item = &'a ParameterEntry> {
    let entries = program.gradient_entries().iter();
    let kept = entries.filter(|entry| slot.keeps(&(entry.offset..entry.offset + entry.reserved)));
    kept.map(|entry| {
        let known = layout.get(&entry.parameter);
        known.expect("trained parameters are laid out")
    })
}
