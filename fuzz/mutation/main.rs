//! Files that are changed inside:
//!
//! - `keel-mutation check KIND SEEDS` holds a reader to what is asked of it, as the fuzz target of that kind does;
//! - `keel-mutation replay KIND FILE...` does so with the choices in these files: inputs of the fuzz target of that kind;
//! - `keel-mutation read KIND SEEDS FOLDER` writes a folder for each seed with its file, and readings.jsonl with what Keel reads from
//!   them, for tools/differential.py.

use std::path::Path;
use std::process::ExitCode;

use keel_mutation::check::{CHECKS, Check};
use keel_mutation::choices_of;
use keel_mutation::reading::{KINDS, reading};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["check", kind, seeds] => check(kind, seeds),
        ["replay", kind, ref files @ ..] if !files.is_empty() => replay(kind, files),
        ["read", kind, seeds, folder] => read(kind, seeds, Path::new(folder)),
        _ => Err(
            "keel-mutation check KIND SEEDS, replay KIND FILE..., or read KIND SEEDS FOLDER"
                .to_owned(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn count(seeds: &str) -> Result<u64, String> {
    seeds
        .parse()
        .map_err(|_| format!("{seeds}: a number of seeds is wanted"))
}

fn check_of(kind: &str) -> Result<Check, String> {
    let names = CHECKS.map(|(name, _)| name).join(", ");
    let found = CHECKS.iter().find(|(name, _)| *name == kind);
    let (_, check) = found.ok_or_else(|| format!("{kind}: one of {names} is wanted"))?;
    Ok(*check)
}

fn check(kind: &str, seeds: &str) -> Result<(), String> {
    let check = check_of(kind)?;
    let seeds = count(seeds)?;
    let read = (0..seeds).filter(|seed| check(&choices_of(*seed))).count();
    println!("{kind}: {read} of {seeds} read");
    Ok(())
}

fn replay(kind: &str, files: &[&str]) -> Result<(), String> {
    let check = check_of(kind)?;
    for file in files {
        let choices = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
        let outcome = if check(&choices) { "read" } else { "refused" };
        println!("{file}: {outcome}");
    }
    Ok(())
}

fn read(kind: &str, seeds: &str, folder: &Path) -> Result<(), String> {
    if !KINDS.contains(&kind) {
        return Err(format!("{kind}: one of {} is wanted", KINDS.join(", ")));
    }
    let mut lines = String::new();
    for seed in 0..count(seeds)? {
        let own = folder.join(seed.to_string());
        std::fs::create_dir_all(&own).map_err(|e| format!("{}: {e}", own.display()))?;
        lines += &format!("{}\n", reading(kind, seed, &own));
    }
    let path = folder.join("readings.jsonl");
    std::fs::write(&path, lines).map_err(|e| format!("{}: {e}", path.display()))
}
