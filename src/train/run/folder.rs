//! The folder of a run: who may write it, and where things lie in it. What a run reports is written there by recorder.rs.

use std::cmp::Ordering;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::checkpoint::{
    Disk, LocalDisk, Position, checkpoint_of_shard, create_folders, create_inside, parent_of,
    read_position, remove_checkpoint, remove_unfinished, uninterrupted, write_durably_on,
};
use crate::out_folder::refuse_foreign;
use crate::recipe::Recipe;
use keel_base::error::{Error, Found, Result, near_miss};
use keel_base::files::{Writing, open_own};

/// The settings in a run's folder; a folder without them is none.
const RECIPE: &str = "recipe.toml";
/// A published tokeniser in a run's folder.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// Holds a folder, `what` in an error, for as long as the file is open: to the end of the process at the latest, however it
/// ends.
///
/// # Errors
/// [`Error::Setting`] when another process holds it.
pub(crate) fn held(folder: &Path, what: &str) -> Result<File> {
    let path = folder.join("lock");
    let lock = open_own(&path, Writing::Append);
    let lock = lock.map_err(|problem| Error::io(&path, "create the file", problem))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::setting(
            format!("{what} {}", folder.display()),
            "a folder that no other process trains in (wait for it, or choose another --out)",
            "one that is in use",
        )),
        Err(problem) => Err(Error::io(&path, "lock the file", problem.into())),
    }
}

/// An exclusively held run folder. The lock goes when the value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    /// Held by the rank that writes the folder.
    _lock: Option<File>,
}

impl RunFolder {
    /// Creates a new run in `path`, or in the next free `runs/<name>-<n>`.
    ///
    /// # Errors
    /// [`Error::Setting`] when the folder already holds a run or anything else, or another process writes to it.
    pub fn create(disk: Arc<dyn Disk>, path: Option<&Path>, name: &str) -> Result<RunFolder> {
        let path = match path {
            Some(path) => {
                // A run is refused below, under the lock, in a sentence of its own.
                if !path.join(RECIPE).exists() {
                    refuse_foreign(path, is_begun)?;
                }
                path.to_owned()
            }
            None => next_free(disk.as_ref(), name)?,
        };
        let folder = RunFolder::open(disk, path)?;
        // Asked under the lock: another process may just have begun a run here.
        if folder.path.join(RECIPE).exists() {
            return Err(Error::setting(
                format!("--out {}", folder.path.display()),
                "a folder without a run (continue that run with --resume, or choose another folder)",
                "a run",
            ));
        }
        Ok(folder)
    }

    /// The folder `path` of a run that another rank writes.
    pub(crate) fn of_another_rank(disk: Arc<dyn Disk>, path: PathBuf) -> RunFolder {
        RunFolder {
            path,
            disk,
            _lock: None,
        }
    }

    /// Opens the folder of an existing run to continue it.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no run or another process writes to it.
    pub fn resume(disk: Arc<dyn Disk>, path: &Path) -> Result<RunFolder> {
        recipe_of(path)?;
        RunFolder::open(disk, path.to_owned())
    }

    fn open(disk: Arc<dyn Disk>, path: PathBuf) -> Result<RunFolder> {
        create_folders(disk.as_ref(), &path)?;
        let checkpoints = create_inside(disk.as_ref(), &path, "checkpoints")?;
        let lock = held(&path, "run folder")?;
        remove_unfinished(disk.as_ref(), &checkpoints, |name| {
            let is_shard = checkpoint_of_shard(Path::new(name)).is_some();
            let stem = name.strip_suffix(".safetensors");
            let is_own = |stem: &str| place_of(stem).is_some() || stem.ends_with(BEST);
            is_shard || stem.is_some_and(is_own)
        })?;
        remove_orphans(disk.as_ref(), &checkpoints)?;
        Ok(RunFolder {
            _lock: Some(lock),
            disk,
            path,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What writes the folder.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The checkpoint's file for `label`, for example `2-stage-ii`.
    pub fn checkpoint(&self, label: &str) -> PathBuf {
        self.path
            .join("checkpoints")
            .join(format!("{label}.safetensors"))
    }

    /// Removes the checkpoints inside stage `number` (from 1) but the `newest` furthest on, those at multiples of `every`
    /// steps (0 for none), and the one at which the losses of late were lowest. The one after a stage stays.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file or folder.
    pub fn rotate(&self, number: u64, newest: u64, every: u64) -> Result<()> {
        let all = inside_stage(&self.path, number)?;
        if all.len() as u64 <= newest {
            return Ok(());
        }
        // One that cannot be read is nothing to keep.
        let positions = all.iter().map(|path| read_position(path).ok());
        let positions: Vec<Option<Position>> = positions.collect();
        let typical = |index: usize| positions[index].as_ref()?.guard.typical_loss();
        let best = (0..all.len())
            .filter(|index| typical(*index).is_some())
            .min_by(|a, b| {
                typical(*a)
                    .partial_cmp(&typical(*b))
                    .unwrap_or(Ordering::Equal)
            });
        let stays = |index: usize| {
            let step = positions[index].as_ref().map(|position| position.step);
            let is_milestone = every > 0 && step.is_some_and(|step| step.is_multiple_of(every));
            is_milestone || best == Some(index)
        };
        let old = all.iter().enumerate().skip(newest as usize);
        for (_, path) in old.filter(|(index, _)| !stays(*index)) {
            remove_checkpoint(self.disk.as_ref(), path)?;
        }
        Ok(())
    }

    /// Writes a file into a folder of the run durably.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write_in(&self, folder: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let folder = create_inside(self.disk.as_ref(), &self.path, folder)?;
        write_durably_on(self.disk.as_ref(), &folder.join(name), bytes)
    }

    /// Writes a file of the run durably.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_durably_on(self.disk.as_ref(), &self.path.join(name), bytes)
    }
}

/// Whether an entry of a folder can be of a run that ended before its recipe was written: nothing is lost by beginning another
/// one there.
fn is_begun(name: &str) -> bool {
    ["checkpoints", "lock", "metrics.jsonl", "log.txt"].contains(&name)
        || name.starts_with("events.out.tfevents.")
        || name.starts_with(RECIPE)
}

/// The recipe of the run in the folder `run`.
///
/// # Errors
/// [`Error::Setting`] when the folder holds no run, with the runs that are near.
pub fn recipe_of(run: &Path) -> Result<PathBuf> {
    let recipe = run.join(RECIPE);
    if recipe.is_file() {
        return Ok(recipe);
    }
    let found = if run.is_dir() {
        "a folder without one"
    } else if run.exists() {
        "a file"
    } else {
        "nothing there"
    };
    let near = runs_near(run);
    let names: Vec<&str> = near.iter().filter_map(|run| name_in(run)).collect();
    let meant = name_in(run)
        .and_then(|name| near_miss(name, &names))
        .and_then(|name| near.iter().find(|run| name_in(run) == Some(name)));
    let mut want = "the folder of a run (with a recipe.toml)".to_owned();
    if !near.is_empty() {
        let listed = near.iter().take(RUNS_LISTED);
        let listed: Vec<String> = listed.map(|run| run.display().to_string()).collect();
        want += &format!(" such as {}", listed.join(", "));
        if near.len() > RUNS_LISTED {
            want += &format!(" ({} more)", near.len() - RUNS_LISTED);
        }
    }
    let meant = meant.map(|run| run.display());
    Err(Error::setting(
        format!("run {}", run.display()),
        want,
        Found::near(found, meant),
    ))
}

/// Reads the recipe of the run in the folder `run`, whatever its name is made of, with the settings `sets`.
///
/// # Errors
/// As [`recipe_of`] and [`Recipe::parse`]; [`Error::Io`] when it cannot be read.
pub fn recipe_in(run: &Path, sets: &[String]) -> Result<Recipe> {
    let path = recipe_of(run)?;
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|problem| Error::io(&path, "read the recipe", problem))?;
    Recipe::parse(&path.display().to_string(), &text, sets)
}

/// Runs that are named to whoever asked for one that is not there.
const RUNS_LISTED: usize = 8;

fn name_in(run: &Path) -> Option<&str> {
    run.file_name()?.to_str()
}

/// The runs beside and in the folder `path`, and in runs/, the newest first.
fn runs_near(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let beside = path.parent().unwrap_or(Path::new(""));
    for folder in [path, beside, Path::new("runs")] {
        // The parent of `mine` is the empty path.
        let read = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        for entry in std::fs::read_dir(read).into_iter().flatten().flatten() {
            let run = folder.join(entry.file_name());
            let recipe = std::fs::metadata(run.join(RECIPE));
            if let Ok(Ok(begun)) = recipe.map(|recipe| recipe.modified())
                && !found.iter().any(|(_, known)| *known == run)
            {
                found.push((begun, run));
            }
        }
    }
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    found.into_iter().map(|(_, run)| run).collect()
}

/// The run that a checkpoint lies in; nothing for one that lies elsewhere.
pub(crate) fn run_of(checkpoint: &Path) -> Option<&Path> {
    let folder = checkpoint.parent()?;
    let run = folder.parent().unwrap_or(Path::new("."));
    folder.ends_with("checkpoints").then_some(run)
}

/// The folder for what is measured of a checkpoint, made where there is none: in its run, or beside a checkpoint that lies
/// outside one.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub(crate) fn evaluations_folder(checkpoint: &Path) -> Result<PathBuf> {
    let root = run_of(checkpoint).unwrap_or_else(|| parent_of(checkpoint));
    create_inside(&LocalDisk, root, "evaluations")
}

/// Creates the next free `runs/<name>-<n>`; creating it settles who has it.
fn next_free(disk: &dyn Disk, name: &str) -> Result<PathBuf> {
    let runs = Path::new("runs");
    create_folders(disk, runs)?;
    for number in 1..10_000 {
        let path = runs.join(format!("{name}-{number}"));
        let created = uninterrupted(|| disk.create_folder(&path));
        match created.and_then(|()| uninterrupted(|| disk.flush_folder(runs))) {
            Ok(()) => return Ok(path),
            Err(problem) if problem.kind() == ErrorKind::AlreadyExists => {}
            Err(problem) => return Err(Error::io(&path, "create the folder", problem)),
        }
    }
    Err(Error::setting(
        "runs",
        "room for another run folder",
        "10,000 runs of that name",
    ))
}

/// The newest checkpoint of a run folder: the one furthest on, by the stage's number and the step in its name; `None`
/// in a run that stopped before its first.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn newest_checkpoint(run: &Path) -> Result<Option<PathBuf>> {
    Ok(checkpoints_by_place(run)?.pop().map(|(_, path)| path))
}

/// All checkpoints of a run, the newest first.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub(crate) fn newest_first(run: &Path) -> Result<Vec<PathBuf>> {
    let found = checkpoints_by_place(run)?.into_iter().rev();
    Ok(found.map(|(_, path)| path).collect())
}

/// The checkpoints inside stage `number` (from 1), the furthest on first.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub(crate) fn inside_stage(run: &Path, number: u64) -> Result<Vec<PathBuf>> {
    let mut found = checkpoints_by_place(run)?;
    found.retain(|((stage, step), _)| *stage == number && *step != STAGE_END);
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

/// The checkpoints after each stage, in the stages' order, with the names of the stages.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn stage_checkpoints(run: &Path) -> Result<Vec<(String, PathBuf)>> {
    let after_stages = checkpoints_by_place(run)?.into_iter();
    Ok(after_stages
        .filter(|((_, step), _)| *step == STAGE_END)
        .filter_map(|(_, path)| {
            let (_, stage) = path.file_stem()?.to_str()?.split_once('-')?;
            Some((stage.to_owned(), path))
        })
        .collect())
}

/// A run's checkpoints with the stage's number and the step of each, in the order in which they were reached.
fn checkpoints_by_place(run: &Path) -> Result<Vec<((u64, u64), PathBuf)>> {
    let folder = run.join("checkpoints");
    let entries = std::fs::read_dir(&folder)
        .map_err(|problem| Error::io(&folder, "read the folder", problem))?;
    let mut found: Vec<((u64, u64), PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .filter(|path| checkpoint_of_shard(path).is_none())
        .filter_map(|path| Some((place_of(path.file_stem()?.to_str()?)?, path)))
        .collect();
    found.sort();
    Ok(found)
}

/// Removes the files of ranks whose checkpoint was never written.
fn remove_orphans(disk: &dyn Disk, checkpoints: &Path) -> Result<()> {
    let entries = std::fs::read_dir(checkpoints);
    let entries = entries.map_err(|problem| Error::io(checkpoints, "read the folder", problem))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if checkpoint_of_shard(&path).is_some_and(|checkpoint| !checkpoint.exists()) {
            let removed = uninterrupted(|| disk.remove(&path));
            removed.map_err(|problem| Error::io(&path, "remove the file", problem))?;
        }
    }
    Ok(())
}

/// How the checkpoint after a stage, `number` from 1, is called.
pub(crate) fn stage_label(number: usize, name: &str) -> String {
    format!("{number}-{name}")
}

/// How the checkpoint after `step` steps of a stage, `number` from 1, is called.
pub(crate) fn step_label(number: usize, name: &str, step: u64) -> String {
    format!("{number}-{name}.step-{step}")
}

/// How the best checkpoint of a stage, `number` from 1, is called.
pub(crate) fn best_label(number: usize, name: &str) -> String {
    format!("{number}-{name}{BEST}")
}

/// How the names of best checkpoints end, which no name of a stage does.
const BEST: &str = ".best";

/// The step of the checkpoint after a stage's last.
const STAGE_END: u64 = u64::MAX;

/// Stage number and step of a checkpoint called `2-warm-up.step-40`, or `2-warm-up` after the stage's last step; nothing for
/// one that no run goes on from.
fn place_of(stem: &str) -> Option<(u64, u64)> {
    if stem.ends_with(BEST) {
        return None;
    }
    let (stage, _) = stem.split_once('-')?;
    let step = match stem.rsplit_once(".step-") {
        Some((_, step)) => step.parse().ok()?,
        None => STAGE_END,
    };
    Some((stage.parse().ok()?, step))
}
