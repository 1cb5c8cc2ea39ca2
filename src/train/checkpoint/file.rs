//! Checkpoints: one safetensors file with every parameter, the optimiser's state in the middle of a stage, and the
//! position. A file is written beside its final name, flushed to the disk and renamed: what carries the name is whole.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::disk::{Disk, LocalDisk, has_room, write_durably_with};
use super::optimizer_state::OptimizerValues;
use super::shard::{ShardFile, each_piece, expect_whole, load_shards, open_shards, tensors_of};
use crate::guard::Guard;
use crate::run::RunInputs;
use crate::validation::ValidationHistory;
use keel_base::error::{Error, Result};
use keel_base::files::open_regular;
use keel_base::mapped_file::MappedFile;
use keel_engine::executor::{Executor, Session};
use keel_engine::ops::{EMA_STATE, MASTER_STATE, OPTIMIZER_STATE};
use keel_engine::program::Program;
use keel_engine::tape::{GradientEntry, ParameterEntry, ParameterLayout};

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Index of the stage that comes next or is under way.
    pub stage: usize,
    /// Its name; empty after the last stage.
    pub stage_name: String,
    /// Steps of that stage that are done.
    pub step: u64,
    /// The run's seed.
    pub seed: u64,
    /// Samples skipped so far.
    pub skipped: u64,
    /// What is known of the losses of the stage under way.
    #[serde(default)]
    pub guard: Guard,
    /// What is known of the validations of the stage under way.
    #[serde(default, skip_serializing_if = "ValidationHistory::is_empty")]
    pub validations: ValidationHistory,
    /// The recipe, every default written out.
    pub recipe: String,
    /// What the bits depend on beside it.
    #[serde(default)]
    pub inputs: RunInputs,
    /// The program that wrote the file.
    pub version: String,
    /// The files with the optimiser's state, where several ranks have saved it; otherwise it is in this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardFile>,
    /// Whether those files hold sharded master weights too, of which this one has the bf16 copies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_masters_in_shards: bool,
}

/// What a checkpoint holds beside parameters.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the run stood.
    pub position: Position,
    /// The optimiser's state; nothing between stages.
    pub optimizer: Option<OptimizerValues>,
}

/// The key of the file's one metadata entry: a checksum, a space, and the position as JSON. The checksum is the BLAKE3
/// hash of the position and of every tensor's name, shape and values.
const KEY: &str = "keel.position";

/// A checkpoint's content, copied out of a run at one step.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) position: Position,
    /// Names, shapes and places of parameters.
    layout: Arc<ParameterLayout>,
    /// All parameters in arena order.
    parameters: Vec<f32>,
    /// The optimiser's state, with what says where each parameter's lies.
    optimizer: Option<(OptimizerValues, Vec<GradientEntry>)>,
}

impl Snapshot {
    /// Copies the parameters that `executor` holds and, where there is a `session`, the optimiser's state.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn take(
        position: Position,
        layout: &Arc<ParameterLayout>,
        executor: &dyn Executor,
        session: Option<&dyn Session>,
    ) -> Result<Snapshot> {
        let optimizer = match session {
            Some(session) => {
                let entries = session.program().gradient_entries().to_vec();
                Some((OptimizerValues::read(session)?, entries))
            }
            None => None,
        };
        let mut parameters = vec![0.0f32; layout.elements()];
        executor.read_parameters(0, &mut parameters)?;
        Ok(Snapshot {
            position,
            layout: layout.clone(),
            parameters,
            optimizer,
        })
    }

    /// Adds what an optimiser of `program` has kept.
    pub(super) fn keep(&mut self, values: OptimizerValues, program: &Program) {
        self.optimizer = Some((values, program.gradient_entries().to_vec()));
    }

    /// Writes the checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, also where the disk has no room for it; what was there before is untouched.
    pub fn write(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        let mut views: Vec<(String, TensorView<'_>)> = Vec::new();
        for entry in self.layout.entries() {
            let dims = entry.spec.shape.dims();
            let end = entry.offset + entry.spec.shape.numel();
            views.push((
                entry.spec.name.clone(),
                view(dims, &self.parameters[entry.offset..end]),
            ));
        }
        if let Some((state, entries)) = &self.optimizer {
            for piece in state.by_parameter(entries, &self.layout) {
                let parameter = &piece.entry.parameter;
                let known = self.layout.get(parameter);
                let shape = known.expect("trained parameters are laid out").spec.shape;
                let name = format!("{}.{parameter}", piece.slot);
                views.push((name, view(shape.dims(), piece.values)));
            }
        }
        let text = serde_json::to_string(&self.position).expect("a position is plain data");
        let sum = checksum(
            &text,
            views.iter().map(|(name, view)| (name.as_str(), view)),
        );
        views.sort_by(|(one, _), (other, _)| one.cmp(other));
        let header = header(&views, Some(format!("{sum} {text}")));
        let bytes: usize = views.iter().map(|(_, view)| view.data().len()).sum();
        has_room(path, (header.len() + bytes) as u64)?;
        // Tensor by tensor: the file is never in memory beside the values.
        write_durably_with(disk, path, &mut |file| {
            file.write_all(&header)?;
            views
                .iter()
                .try_for_each(|(_, view)| file.write_all(view.data()))
        })
    }
}

/// What stands before the tensors in a safetensors file that holds `views` one after the other: the length of the rest, then
/// JSON, padded so that the tensors begin at a multiple of eight.
pub(super) fn header(views: &[(String, TensorView<'_>)], position: Option<String>) -> Vec<u8> {
    let mut json = serde_json::Map::new();
    if let Some(position) = position {
        json.insert("__metadata__".into(), json!({ KEY: position }));
    }
    let mut offset = 0;
    for (name, view) in views {
        let end = offset + view.data().len();
        let entry = json!({"dtype": "F32", "shape": view.shape(), "data_offsets": [offset, end]});
        json.insert(name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::to_string(&json)
        .expect("names and numbers")
        .into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..]].concat()
}

/// Writes a checkpoint. `session` adds the optimiser's state.
///
/// # Errors
/// As [`Snapshot::take`] and [`Snapshot::write`].
pub fn save(
    path: &Path,
    position: &Position,
    layout: &Arc<ParameterLayout>,
    executor: &dyn Executor,
    session: Option<&dyn Session>,
) -> Result<()> {
    Snapshot::take(position.clone(), layout, executor, session)?.write(&LocalDisk, path)
}

fn checksum<'a>(
    position: &str,
    tensors: impl Iterator<Item = (&'a str, &'a TensorView<'a>)>,
) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut hasher = blake3::Hasher::new();
    hasher.update(position.as_bytes());
    for (name, tensor) in tensors {
        hasher.update(format!("\n{name} {:?}\n", tensor.shape()).as_bytes());
        hasher.update(tensor.data());
    }
    hasher.finalize().to_hex().to_string()
}

pub(super) fn view<'a>(dims: &[usize], values: &'a [f32]) -> TensorView<'a> {
    TensorView::new(Dtype::F32, dims.to_vec(), bytemuck::cast_slice(values))
        .expect("the layout's shapes count their elements")
}

/// Reads the position alone, from the file's header.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file.
pub fn read_position(path: &Path) -> Result<Position> {
    let io = |problem| Error::io(path, "read the checkpoint", problem);
    let mut file = open_regular(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut read = |count: u64, bytes: &mut Vec<u8>| -> Result<()> {
        let part = file.by_ref().take(count).read_to_end(bytes);
        part.map(drop).map_err(io)
    };
    let mut bytes = Vec::new();
    read(POINTER.len() as u64, &mut bytes)?;
    refuse_pointer(path, &bytes)?;
    let length = bytes.first_chunk::<8>();
    let length = length.ok_or_else(|| damaged(path, "it has no header"))?;
    let length = u64::from_le_bytes(*length);
    if length > size {
        return Err(damaged(path, "its header is longer than the file"));
    }
    let end = 8 + length as usize;
    read(end.saturating_sub(bytes.len()) as u64, &mut bytes)?;
    let header = &bytes[8..end.min(bytes.len())];
    let header: Header =
        serde_json::from_slice(header).map_err(|problem| damaged(path, problem))?;
    position_of(path, &entry_of(path, header.metadata.get(KEY))?.1)
}

/// What a safetensors header says beside its tensors.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    metadata: HashMap<String, String>,
}

/// Mapped, not read: of a large model no second copy is held while its values go where they belong.
fn read_bytes(path: &Path) -> Result<MappedFile> {
    MappedFile::open(path)
}

/// What takes a parameter's values, from an element of the arena on, a piece at a time.
pub type Sink<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// Elements that are handed on at once.
const PIECE: usize = 1 << 20;

pub(super) fn damaged(path: &Path, problem: impl Display) -> Error {
    Error::content(
        path.display(),
        format!("the checkpoint is damaged: {problem}"),
        "remove it, and the run goes on from the one before",
    )
}

/// A whole file that belongs to another model.
fn misfit(path: &Path, problem: String) -> Error {
    Error::content(
        path.display(),
        problem,
        "go on with the recipe that the run was begun with",
    )
}

/// The checksum and the position's text in a checkpoint's header.
fn header_of(path: &Path, bytes: &[u8]) -> Result<(String, String)> {
    refuse_pointer(path, bytes)?;
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|problem| damaged(path, problem))?;
    let entry = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(KEY));
    entry_of(path, entry)
}

/// How a Git LFS pointer begins.
const POINTER: &[u8] = b"version https://git-lfs";

fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(POINTER) {
        return Ok(());
    }
    let problem = "this is a Git LFS pointer, not the file it stands for";
    Err(Error::content(path.display(), problem, "run git lfs pull"))
}

/// The checksum and the position's text in the metadata's one entry.
fn entry_of(path: &Path, entry: Option<&String>) -> Result<(String, String)> {
    let parts = entry
        .and_then(|entry| entry.split_once(' '))
        .ok_or_else(|| {
            let problem = "it has no position of a run";
            Error::content(path.display(), problem, "give a checkpoint written by Keel")
        })?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

fn position_of(path: &Path, text: &str) -> Result<Position> {
    serde_json::from_str(text).map_err(|problem| damaged(path, problem))
}

/// Reads a checkpoint whole, with the files of its ranks, and holds its content to its checksums; returns the position.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file.
pub fn check(path: &Path) -> Result<Position> {
    let bytes = read_bytes(path)?;
    let (wanted, text) = header_of(path, &bytes)?;
    hold_checksum(path, &bytes, &wanted, &text)?;
    let position = position_of(path, &text)?;
    open_shards(path, &position.shards)?;
    Ok(position)
}

fn hold_checksum<'a>(
    path: &Path,
    bytes: &'a [u8],
    wanted: &str,
    position: &str,
) -> Result<SafeTensors<'a>> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|problem| damaged(path, problem))?;
    let all = tensors.tensors();
    let views = all.iter().map(|(name, view)| (name.as_str(), view));
    if checksum(position, views) == wanted {
        Ok(tensors)
    } else {
        Err(damaged(path, "its content does not match its checksum"))
    }
}

/// Reads a checkpoint for a model and gives its parameters to `sink`. `program` says what the optimiser keeps and where; its
/// state is left out without a program, and where the file has none. Nothing is given before the whole file has been held to its checksum.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file and the tensor; whatever the sink reports.
pub fn load(
    path: &Path,
    layout: &ParameterLayout,
    program: Option<&Program>,
    sink: Sink<'_>,
) -> Result<Checkpoint> {
    let bytes = read_bytes(path)?;
    let (wanted, text) = header_of(path, &bytes)?;
    let position = position_of(path, &text)?;
    let tensors = hold_checksum(path, &bytes, &wanted, &text)?;
    let all = tensors.tensors();
    let find = |name: &str, dims: &[usize]| -> Result<TensorView<'_>> {
        let tensor = tensors.tensor(name).map_err(|_| {
            misfit(
                path,
                format!("the tensor {name}, which the model has, is missing"),
            )
        })?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != dims {
            let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
            return Err(misfit(
                path,
                format!("the tensor {name} is {found}, not F32 {dims:?}"),
            ));
        }
        Ok(tensor)
    };
    let values = |bytes: &[u8]| -> Vec<f32> {
        let fours = bytes.as_chunks::<4>().0.iter();
        fours.map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let copy = |name: &str, dims: &[usize], place: &mut [f32]| -> Result<()> {
        let tensor = find(name, dims)?;
        for (place, bytes) in place.chunks_mut(PIECE).zip(tensor.data().chunks(4 * PIECE)) {
            place.copy_from_slice(&values(bytes));
        }
        Ok(())
    };
    let foreign = all.iter().find(|(name, _)| {
        let slots = OPTIMIZER_STATE.iter();
        let mut of = slots.filter_map(|slot| name.strip_prefix(slot)?.strip_prefix('.'));
        layout.get(of.next().unwrap_or(name)).is_none()
    });
    if let Some((name, _)) = foreign {
        let problem = format!("it holds the tensor {name}, which the model does not have");
        return Err(misfit(path, problem));
    }
    // All of them before the first is given away: a file of another model changes nothing.
    let found = layout.entries().iter();
    let found = found.map(|entry| find(&entry.spec.name, entry.spec.shape.dims()));
    let found = found.collect::<Result<Vec<_>>>()?;
    let shards = match &position.shards[..] {
        shards if program.is_some() || position.has_masters_in_shards => open_shards(path, shards)?,
        _ => Vec::new(),
    };
    let shards = tensors_of(&shards)?;
    if position.has_masters_in_shards {
        expect_whole(path, &shards, layout, MASTER_STATE)?;
    }
    for (entry, tensor) in layout.entries().iter().zip(found) {
        for (index, bytes) in tensor.data().chunks(4 * PIECE).enumerate() {
            sink(entry.offset + index * PIECE, &values(bytes))?;
        }
    }
    if position.has_masters_in_shards {
        each_piece(&shards, layout, MASTER_STATE, |entry, first, fours| {
            for (index, fours) in fours.chunks(PIECE).enumerate() {
                sink(
                    entry.offset + first + index * PIECE,
                    &values(fours.as_flattened()),
                )?;
            }
            Ok(())
        })?;
    }
    let has_state = |program: &Program| {
        let state = program.optimizer_state().iter();
        let mut of_entries = state.flat_map(|slot| {
            let entries = program.gradient_entries().iter();
            entries.map(|entry| format!("{}.{}", slot.name, entry.parameter))
        });
        of_entries.any(|name| tensors.tensor(&name).is_ok())
    };
    let has_any = |program: &&Program| !shards.is_empty() || has_state(program);
    let whole = |entry: &ParameterEntry, place: &mut [f32]| {
        copy(&entry.spec.name, entry.spec.shape.dims(), place)
    };
    let optimizer = match program.filter(has_any) {
        None => None,
        Some(program) if !shards.is_empty() => {
            let slots = load_shards(path, &shards, layout, program, whole)?;
            Some(OptimizerValues::of_rank(slots, program))
        }
        Some(program) => {
            let mut slots = Vec::new();
            for slot in program.optimizer_state() {
                let mut values = vec![0.0f32; program.trained_elements()];
                for entry in program.gradient_entries() {
                    if !slot.keeps(&(entry.offset..entry.offset + entry.reserved)) {
                        continue;
                    }
                    let known = layout.get(&entry.parameter);
                    let known = known.expect("trained parameters are laid out");
                    let shape = known.spec.shape;
                    let place = &mut values[entry.offset..entry.offset + shape.numel()];
                    if slot.name == MASTER_STATE {
                        whole(known, place)?;
                    } else {
                        let name = format!("{}.{}", slot.name, entry.parameter);
                        copy(&name, shape.dims(), place)?;
                    }
                }
                slots.push((slot.clone(), values));
            }
            Some(OptimizerValues::of_rank(slots, program))
        }
    };
    Ok(Checkpoint {
        position,
        optimizer,
    })
}

/// Gives `sink` the averages in a checkpoint, where its stage has kept any, and the parameters of what that stage did not train.
///
/// # Errors
/// As [`load`]; [`Error::Setting`] naming a checkpoint without averages.
pub fn load_averages(path: &Path, layout: &ParameterLayout, sink: Sink<'_>) -> Result<()> {
    let position = load(path, layout, None, &mut *sink)?.position;
    let own = (path.to_owned(), read_bytes(path)?);
    let mut files = open_shards(path, &position.shards)?;
    files.push(own);
    let mut found = false;
    // Whole in the checkpoint's own file, in pieces in those of ranks.
    each_piece(
        &tensors_of(&files)?,
        layout,
        EMA_STATE,
        |entry, first, fours| {
            found = true;
            let values = fours.iter().map(|bytes| f32::from_le_bytes(*bytes));
            sink(entry.offset + first, &values.collect::<Vec<f32>>())
        },
    )?;
    if !found {
        return Err(Error::setting(
            "--ema",
            "a checkpoint of a stage with ema_decay, which keeps averages",
            format!("{}, which has none", path.display()),
        ));
    }
    Ok(())
}

/// A checkpoint's parameters in arena order.
///
/// # Errors
/// As [`load`].
pub fn parameters(path: &Path, layout: &ParameterLayout) -> Result<Vec<f32>> {
    let mut parameters = vec![0.0f32; layout.elements()];
    load(path, layout, None, &mut |offset, values| {
        parameters[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    })?;
    Ok(parameters)
}
