//! Runs the program as a user does, and holds it to its manners: an exit code, one sentence, never a panic.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use keel::train::BUILT_IN;
use rustix::process::{Pid, test_kill_process};
use safetensors::SafeTensors;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    pub fn of(output: Output) -> Answer {
        let answer = Answer {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        };
        for sign in ["panicked", "RUST_BACKTRACE", "stack overflow"] {
            let clean = !answer.stdout.contains(sign) && !answer.stderr.contains(sign);
            assert!(clean, "the program broke: {answer:#?}");
        }
        answer
    }

    /// Asserts an exit code.
    #[track_caller]
    pub fn code_is(self, code: i32) -> Answer {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Asserts success.
    #[track_caller]
    pub fn fine(self) -> Answer {
        self.code_is(0)
    }

    /// Asserts a mistake of the caller's: exit code 2 and one sentence on the error stream with all of `parts`.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) -> Answer {
        self.code_is(2).says(parts)
    }

    /// Asserts a failure while running: exit code 1 and one sentence on the error stream with all of `parts`.
    #[track_caller]
    pub fn failed(self, parts: &[&str]) -> Answer {
        self.code_is(1).says(parts)
    }

    /// Asserts a command line that is refused before any of it is looked at: exit code 2, all of `parts`, and where the help is.
    #[track_caller]
    pub fn misunderstood(self, parts: &[&str]) -> Answer {
        let answer = self.code_is(2);
        assert!(answer.stderr.starts_with("error: "), "{answer:#?}");
        assert!(answer.stderr.contains("--help"), "{answer:#?}");
        answer.holds(parts)
    }

    #[track_caller]
    fn says(self, parts: &[&str]) -> Answer {
        let sentence = self.stderr.strip_prefix("error: ");
        let sentence = sentence.unwrap_or_else(|| panic!("{self:#?}"));
        assert!(is_one_sentence(sentence), "{self:#?}");
        self.holds(parts)
    }

    #[track_caller]
    fn holds(self, parts: &[&str]) -> Answer {
        for part in parts {
            assert!(self.stderr.contains(part), "wanted {part} in {self:#?}");
        }
        self
    }
}

/// Whether a problem is told on one line, or on two where the first has a near miss and the second what there is.
pub fn is_one_sentence(problem: &str) -> bool {
    match problem.lines().collect::<Vec<_>>()[..] {
        [_] => true,
        [near, list] => near.ends_with("?)") && list.starts_with("  expected "),
        _ => false,
    }
}

/// The program, to be run in `folder`.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keel"));
    command
        .current_dir(folder)
        .args(args)
        .stdin(Stdio::null())
        .env_remove("RUST_BACKTRACE");
    command
}

/// Runs the program in `folder`.
pub fn keel(folder: &Path, args: &[&str]) -> Answer {
    Answer::of(command(folder, args).output().expect("the program starts"))
}

/// How folders begin that stay as long as the process; its number follows.
const SHARED: &str = "keel-verify-";

/// A folder that stays as long as the process. Those of processes that are gone are removed.
pub fn shared_folder() -> PathBuf {
    let root = std::env::temp_dir();
    for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| {
            let (process, _) = name.strip_prefix(SHARED)?.split_once('-')?;
            Pid::from_raw(process.parse().ok()?)
        });
        if process.is_some_and(|process| test_kill_process(process).is_err()) {
            // Another process may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{SHARED}{}-", std::process::id());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(root);
    folder.expect("a temporary folder").keep()
}

/// The folder of a run of the tiny recipe, two steps a stage, that stays as long as the process; and what it said.
pub fn tiny_run(more: &[&str]) -> (PathBuf, Answer) {
    let folder = shared_folder();
    let args = [
        "train",
        "--recipe",
        "tiny",
        "--max-steps",
        "2",
        "--out",
        "run",
    ];
    let answer = keel(&folder, &[&args[..], more].concat()).fine();
    (folder.join("run"), answer)
}

/// The text of the tiny recipe with only these of its stages.
pub fn tiny_recipe(stages: &[&str]) -> String {
    built_in_recipe("tiny", stages)
}

/// The text of a built-in recipe with only these of its stages.
pub fn built_in_recipe(name: &str, stages: &[&str]) -> String {
    let (_, text) = BUILT_IN.iter().find(|(of, _)| *of == name).unwrap();
    let mut parts = text.split("[[stage]]");
    let mut kept = parts.next().unwrap().to_owned();
    let parts: Vec<&str> = parts.collect();
    for stage in stages {
        let name = format!("name = \"{stage}\"\n");
        let part = parts.iter().find(|part| part.contains(&name));
        kept += "[[stage]]";
        kept += part.expect("a stage of the recipe");
    }
    kept
}

/// Every tensor of a checkpoint as bytes.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let owned =
        |(name, view): (String, safetensors::tensor::TensorView<'_>)| (name, view.data().to_vec());
    tensors.tensors().into_iter().map(owned).collect()
}

pub fn checkpoint(run: &Path, label: &str) -> PathBuf {
    run.join("checkpoints").join(format!("{label}.safetensors"))
}

/// Names of a run's checkpoints, in order of the alphabet.
pub fn checkpoints(run: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
