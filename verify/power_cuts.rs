//! Disks that die after any operation, and power cuts after any operation: what a run has saved is there, and the run
//! goes on from it to the same bits.
//!
//! A power cut may leave any folder that POSIX allows. Until a file is flushed, its content may be what was last flushed,
//! a beginning, zeros, or all of it. Until a folder is flushed, each change of a name in it may have happened or not,
//! whatever happened to the others.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use keel::executor::{Device, SelectedDevice};
use keel::model::declare;
use keel::train::{
    Disk, LocalDisk, OpenFile, Recipe, RunFolder, TrainOptions, Trainer, load, newest_checkpoint,
};

use crate::command::{checkpoint, tensors, tiny_recipe};
use crate::harness::Random;

#[derive(Clone, Debug)]
enum Operation {
    CreateFolder(PathBuf),
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Flush(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    FlushFolder(PathBuf),
}

/// This machine's disk, which keeps what was asked of it and dies after so many operations.
#[derive(Clone, Debug)]
struct Recorder {
    asked: Arc<Mutex<Vec<Operation>>>,
    dies_after: usize,
}

impl Recorder {
    fn new(dies_after: usize) -> Recorder {
        Recorder {
            asked: Arc::default(),
            dies_after,
        }
    }

    /// Does `work`, unless the disk is dead.
    fn ask<T>(&self, operation: Operation, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut asked = self.asked.lock().unwrap();
        if asked.len() >= self.dies_after {
            return Err(io::Error::other("the disk is dead"));
        }
        let done = work()?;
        asked.push(operation);
        Ok(done)
    }

    fn operations(&self) -> Vec<Operation> {
        self.asked.lock().unwrap().clone()
    }
}

#[derive(Debug)]
struct Recorded {
    recorder: Recorder,
    path: PathBuf,
    file: Box<dyn OpenFile>,
}

impl Disk for Recorder {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::CreateFolder(path.into()), || {
            LocalDisk.create_folder(path)
        })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = self.ask(Operation::Create(path.into()), || LocalDisk.create(path))?;
        Ok(Box::new(Recorded {
            recorder: self.clone(),
            path: path.into(),
            file,
        }))
    }

    // What a run appends to its log is not promised to outlive a power cut: these two are left alone.
    fn append(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        LocalDisk.append(path)
    }

    fn shorten(&self, path: &Path, length: u64) -> io::Result<()> {
        LocalDisk.shorten(path, length)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(Operation::Rename(from.into(), to.into()), || {
            LocalDisk.rename(from, to)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::Remove(path.into()), || LocalDisk.remove(path))
    }

    fn flush_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::FlushFolder(path.into()), || {
            LocalDisk.flush_folder(path)
        })
    }
}

impl OpenFile for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = &mut self.file;
        let operation = Operation::Write(self.path.clone(), bytes.to_vec());
        let written = self.recorder.ask(operation, || {
            let count = file.write(bytes)?;
            assert_eq!(count, bytes.len(), "this disk takes all at once");
            Ok(count)
        });
        if written.is_err() {
            // It dies in the middle of it.
            file.write(&bytes[..bytes.len() / 2])?;
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = &mut self.file;
        self.recorder
            .ask(Operation::Flush(self.path.clone()), || file.flush())
    }
}

#[derive(Clone, Copy, Debug)]
enum Node {
    Folder,
    /// Its index among the volume's contents.
    File(usize),
}

/// A change of the names in a folder.
#[derive(Debug)]
enum Change {
    Link(PathBuf, Node),
    Rename(PathBuf, PathBuf, Node),
    Unlink(PathBuf),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Change::Link(path, node) => {
                names.insert(path.clone(), *node);
            }
            Change::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
            Change::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

/// What programs wrote to a file, and what of it is on the disk for certain.
#[derive(Debug, Default)]
struct Content {
    written: Vec<u8>,
    flushed: Vec<u8>,
    is_flushed: bool,
}

/// A file system, as programs see it and as it is on the disk.
#[derive(Debug, Default)]
struct Volume {
    contents: Vec<Content>,
    /// What programs see.
    names: BTreeMap<PathBuf, Node>,
    /// What is on the disk for certain.
    flushed: BTreeMap<PathBuf, Node>,
    /// What is not, by folder.
    pending: BTreeMap<PathBuf, Vec<Change>>,
}

/// Files by path; folders have no content.
type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

impl Volume {
    fn change(&mut self, folder: &Path, change: Change) {
        change.apply(&mut self.names);
        self.pending.entry(folder.into()).or_default().push(change);
    }

    fn content(&mut self, path: &Path) -> &mut Content {
        match self.names[path] {
            Node::File(index) => &mut self.contents[index],
            Node::Folder => panic!("{} is a folder", path.display()),
        }
    }

    fn apply(&mut self, operation: &Operation) {
        let folder = |path: &PathBuf| path.parent().unwrap().to_owned();
        match operation {
            Operation::CreateFolder(path) => {
                self.change(&folder(path), Change::Link(path.clone(), Node::Folder));
            }
            Operation::Create(path) if self.names.contains_key(path) => {
                let content = self.content(path);
                content.written.clear();
                content.is_flushed = false;
            }
            Operation::Create(path) => {
                let node = Node::File(self.contents.len());
                self.contents.push(Content::default());
                self.change(&folder(path), Change::Link(path.clone(), node));
            }
            Operation::Write(path, bytes) => {
                let content = self.content(path);
                content.written.extend(bytes);
                content.is_flushed = false;
            }
            Operation::Flush(path) => {
                let content = self.content(path);
                content.flushed = content.written.clone();
                content.is_flushed = true;
            }
            Operation::Rename(from, to) => {
                let node = self.names[from];
                let change = Change::Rename(from.clone(), to.clone(), node);
                self.change(&folder(from), change);
            }
            Operation::Remove(path) => self.change(&folder(path), Change::Unlink(path.clone())),
            Operation::FlushFolder(path) => {
                for change in self.pending.remove(path).unwrap_or_default() {
                    change.apply(&mut self.flushed);
                }
            }
        }
    }

    /// What a power cut may leave. `happened` decides on each change of a name, `kept` on each content that is not flushed.
    fn cut(
        &self,
        mut happened: impl FnMut() -> bool,
        mut kept: impl FnMut(&Content) -> Vec<u8>,
    ) -> Files {
        let mut names = self.flushed.clone();
        for change in self.pending.values().flatten() {
            if happened() {
                change.apply(&mut names);
            }
        }
        let mut files = Files::new();
        for (path, node) in &names {
            // What lies in a folder that is not there is not there.
            let parent = path.parent().unwrap();
            if !files.contains_key(parent) && !self.is_root(parent) {
                continue;
            }
            let content = match node {
                Node::Folder => None,
                Node::File(index) => {
                    let content = &self.contents[*index];
                    Some(if content.is_flushed {
                        content.flushed.clone()
                    } else {
                        kept(content)
                    })
                }
            };
            files.insert(path.clone(), content);
        }
        files
    }

    /// Nothing was seen to create it: it was there before.
    fn is_root(&self, folder: &Path) -> bool {
        !self.names.contains_key(folder)
    }

    /// Some of the folders that a power cut may leave: nothing that need not be there, everything, and drawn ones.
    fn cuts(&self, random: &mut Random) -> Vec<Files> {
        let half = |content: &Content| content.written[..content.written.len() / 2].to_vec();
        let mut cuts = vec![
            self.cut(|| false, |content| content.flushed.clone()),
            self.cut(|| true, half),
        ];
        for _ in 0..8 {
            let mut changes = Random::new(random.below(1 << 30) as u64);
            cuts.push(self.cut(
                || changes.below(2) == 1,
                |content| match random.below(4) {
                    0 => content.flushed.clone(),
                    1 => content.written[..random.below(content.written.len() + 1)].to_vec(),
                    2 => vec![0; content.written.len()],
                    _ => content.written.clone(),
                },
            ));
        }
        cuts
    }
}

/// Puts files that lay in `root` into another folder.
fn lay_out(files: &Files, root: &Path, folder: &Path) {
    for (path, content) in files {
        let path = folder.join(path.strip_prefix(root).unwrap());
        match content {
            None => std::fs::create_dir(path).unwrap(),
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
        }
    }
}

/// The names that checkpoints have been given and that are on the disk for certain, in order, after each operation.
fn promises(operations: &[Operation]) -> Vec<Vec<PathBuf>> {
    let (mut named, mut kept) = (Vec::new(), Vec::new());
    let mut all = vec![Vec::new()];
    for operation in operations {
        match operation {
            Operation::Rename(_, to) if to.extension().is_some_and(|e| e == "safetensors") => {
                named.push(to.clone());
            }
            Operation::FlushFolder(folder) if folder.ends_with("checkpoints") => {
                kept.clone_from(&named);
            }
            _ => {}
        }
        all.push(kept.clone());
    }
    all
}

/// Two stages of three steps each.
fn recipe(folder: &Path) -> Recipe {
    let path = folder.join("two.toml");
    std::fs::write(&path, tiny_recipe(&["warm-up", "fine-grained"])).unwrap();
    let sets = ["warm-up", "fine-grained"].map(|stage| format!("stage.{stage}.steps=3"));
    Recipe::load(path.to_str().unwrap(), &sets).unwrap()
}

/// Trains with a checkpoint after every step, one of them kept.
fn train(recipe: &Recipe, run: &Path, disk: Arc<dyn Disk>) -> keel::error::Result<()> {
    let goes_on = run.join("recipe.toml").exists();
    let options = TrainOptions {
        out: (!goes_on).then(|| run.to_owned()),
        resume: goes_on.then(|| run.to_owned()),
        save_every: 1,
        disk,
        ..TrainOptions::new(SelectedDevice::new(Device::Cpu, 1, None).unwrap())
    };
    Trainer::new(recipe.clone(), options, None)?.run().map(drop)
}

/// A run that nothing happened to: what it asked of the disk, and its folder.
fn whole_run(folder: &Path, recipe: &Recipe) -> (Vec<Operation>, PathBuf) {
    let run = folder.join("runs/whole");
    let recorder = Recorder::new(usize::MAX);
    train(recipe, &run, Arc::new(recorder.clone())).unwrap();
    (recorder.operations(), run)
}

const LAST: &str = "2-fine-grained";

#[test]
fn whatever_a_power_cut_leaves_the_newest_saved_checkpoint_is_there_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let (operations, run) = whole_run(folder.path(), &recipe);
    let promises = promises(&operations);
    // Two stages of three steps, the last of each under its stage's name.
    let saved = promises.last().unwrap();
    assert_eq!(saved.len(), 6, "{saved:?}");
    let wanted = tensors(&checkpoint(&run, LAST));
    let mut volume = Volume::default();
    let mut random = Random::new(1);
    let (mut seen, mut resumed) = (HashSet::new(), 0);
    for (count, operation) in operations.iter().enumerate() {
        volume.apply(operation);
        for files in volume.cuts(&mut random) {
            let mut hasher = blake3::Hasher::new();
            hasher.update(format!("{:?}", promises[count + 1]).as_bytes());
            for (path, content) in &files {
                let length = content.as_ref().map(Vec::len);
                hasher.update(format!("{path:?} {length:?}").as_bytes());
                hasher.update(content.as_deref().unwrap_or_default());
            }
            if !seen.insert(hasher.finalize()) {
                continue;
            }
            let left = tempfile::tempdir().unwrap();
            lay_out(&files, folder.path(), left.path());
            let left_run = left.path().join("runs/whole");
            let place = format!("after operation {count}, {operation:.80?}");
            for path in files.keys() {
                if path.extension().is_some_and(|e| e == "safetensors") {
                    let path = left.path().join(path.strip_prefix(folder.path()).unwrap());
                    load(&path, &layout, None, &mut |_, _| Ok(()))
                        .unwrap_or_else(|e| panic!("{place}: {e}"));
                }
            }
            let Some(promised) = promises[count + 1].last() else {
                continue;
            };
            drop(RunFolder::resume(Arc::new(LocalDisk), &left_run).expect(&place));
            let newest = newest_checkpoint(&left_run).unwrap();
            let newest = newest.unwrap_or_else(|| panic!("{place}: no checkpoint"));
            let rank = |path: &Path| saved.iter().position(|s| s.file_name() == path.file_name());
            assert!(rank(&newest) >= rank(promised), "{place}: {newest:?}");
            // Some are continued to the end.
            if seen.len().is_multiple_of(9) {
                train(&recipe, &left_run, Arc::new(LocalDisk)).expect(&place);
                assert!(tensors(&checkpoint(&left_run, LAST)) == wanted, "{place}");
                resumed += 1;
            }
        }
    }
    println!(
        "{} operations, {} folders, {resumed} of them continued",
        operations.len(),
        seen.len()
    );
    assert!(seen.len() > operations.len() && resumed >= 3);
}

#[test]
fn a_disk_that_dies_after_any_operation_costs_nothing_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let (operations, run) = whole_run(folder.path(), &recipe);
    let wanted = tensors(&checkpoint(&run, LAST));
    for dies_after in 0..operations.len() {
        let place = format!("dead after {dies_after}");
        let own = tempfile::tempdir().unwrap();
        let run = own.path().join("runs/dying");
        let recorder = Recorder::new(dies_after);
        let outcome = train(&recipe, &run, Arc::new(recorder.clone()));
        let problem = outcome.expect_err(&place).to_string();
        assert!(
            problem.contains("the disk is dead") && problem.contains("/runs"),
            "{place}: {problem}"
        );
        let saved = promises(&recorder.operations()).pop().unwrap();
        if let Some(saved) = saved.last() {
            assert!(saved.exists(), "{place}: {}", saved.display());
        }
        if dies_after % 4 == 0 {
            train(&recipe, &run, Arc::new(LocalDisk)).expect(&place);
            assert!(tensors(&checkpoint(&run, LAST)) == wanted, "{place}");
        }
    }
    println!("{} disks", operations.len());
}
