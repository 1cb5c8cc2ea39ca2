//! `cargo tool ptx`: executes the PTX that nvcc made of the kernels, and says what agreed. The work is done by the tests
//! `ops::` and `ptx::`, which leave a record; a record of an earlier run can be given. With `--counts` it counts what the kernels
//! execute at the large shapes, and holds it to `cuda/counts.toml`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is asked for.
struct Options {
    /// Every case, not only some of each kernel.
    all: bool,
    /// The record of a run that there was already.
    record: Option<PathBuf>,
    /// Counts instead of cases.
    counts: bool,
    /// The counts are written anew.
    write: bool,
}

/// Runs the cases, or reads what a run left, and prints the sums.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let options = parse(arguments)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if options.counts {
        return counts(&root, options.write);
    }
    let path = match options.record {
        Some(path) => path,
        None => {
            let path = root.join("target/ptx.record");
            test(&root, &path, options.all)?;
            path
        }
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|problem| format!("cannot read {}: {problem}", path.display()))?;
    let record =
        Record::read(&text).ok_or_else(|| format!("{} is no record of a run", path.display()))?;
    let kernels = kernels(&root)?;
    print!("{}", record.text(&kernels));
    let missing: Vec<&String> = kernels.iter().filter(|name| !record.has(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} kernels were not executed: {missing:?}",
        missing.len()
    ))
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        all: false,
        record: None,
        counts: false,
        write: false,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--all" => options.all = true,
            "--counts" => options.counts = true,
            "--write" => options.write = true,
            "--record" => {
                let path = rest.next().ok_or("--record takes a file")?;
                options.record = Some(PathBuf::from(path));
            }
            other => {
                return Err(format!(
                    "ptx takes --all, --record FILE, --counts, --counts --write or nothing, but was given {other}"
                ));
            }
        }
    }
    if options.all && options.record.is_some() {
        return Err("--all runs the cases and --record does not; give one of them".to_owned());
    }
    if options.write && !options.counts {
        return Err("--write writes the counts anew; give --counts too".to_owned());
    }
    if options.counts && (options.all || options.record.is_some()) {
        return Err("--counts runs no cases; give it alone or with --write".to_owned());
    }
    Ok(options)
}

/// Counts what the kernels execute and holds it to the file of counts, or writes this anew with its page.
fn counts(root: &Path, write: bool) -> Result<(), String> {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    command
        .args(["run", "--quiet", "--example", "kernel-report", "--"])
        .args(["--counts", "cuda/counts.toml"])
        .args(write.then_some("--write"))
        .current_dir(root)
        .env("KEEL_CUDA", "require");
    let status = command
        .status()
        .map_err(|problem| format!("cannot run cargo: {problem}"))?;
    if status.success() {
        return Ok(());
    }
    Err("the kernels execute more than was agreed".to_owned())
}

/// Runs the tests that execute PTX.
fn test(root: &Path, record: &Path, all: bool) -> Result<(), String> {
    if record.exists() {
        std::fs::remove_file(record)
            .map_err(|problem| format!("cannot remove {}: {problem}", record.display()))?;
    }
    let mut command = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    command
        .args([
            "test", "--quiet", "--test", "verify", "--", "ops::", "ptx::",
        ])
        .current_dir(root)
        .env("KEEL_CUDA", "require")
        .env(
            "KEEL_PTX_RECORD",
            std::path::absolute(record).unwrap_or(record.to_owned()),
        );
    if all {
        command.env("KEEL_PTX", "all");
    }
    let output = command
        .output()
        .map_err(|problem| format!("cannot run cargo: {problem}"))?;
    if output.status.success() {
        return Ok(());
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    Err("a case fails on the PTX of its kernels".to_owned())
}

/// The kernels of `cuda/`, from the budget that names each.
fn kernels(root: &Path) -> Result<Vec<String>, String> {
    let path = root.join("cuda/budget.toml");
    let text = std::fs::read_to_string(&path)
        .map_err(|problem| format!("cannot read {}: {problem}", path.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .collect())
}

/// One kernel of a record: launches, those compared with the emulator, those that had to have the same bits, those that had
/// them, the largest difference as a share of what is allowed, and instructions of warps.
struct Line {
    name: String,
    launches: u64,
    compared: u64,
    exact: u64,
    same_bits: u64,
    share: f64,
    instructions: u64,
}

/// What the tests left (verify/harness/ptx.rs).
struct Record {
    cases: u64,
    lines: Vec<Line>,
    forms: usize,
}

impl Record {
    fn read(text: &str) -> Option<Record> {
        let mut record = Record {
            cases: 0,
            lines: Vec::new(),
            forms: 0,
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["cases", count] => record.cases = count.parse().ok()?,
                ["form", _] => record.forms += 1,
                [
                    "kernel",
                    name,
                    launches,
                    compared,
                    exact,
                    same_bits,
                    share,
                    instructions,
                ] => {
                    record.lines.push(Line {
                        name: name.to_owned(),
                        launches: launches.parse().ok()?,
                        compared: compared.parse().ok()?,
                        exact: exact.parse().ok()?,
                        same_bits: same_bits.parse().ok()?,
                        share: share.parse().ok()?,
                        instructions: instructions.parse().ok()?,
                    });
                }
                _ => return None,
            }
        }
        (record.cases > 0).then_some(record)
    }

    fn has(&self, kernel: &str) -> bool {
        self.lines.iter().any(|line| line.name == kernel)
    }

    fn text(&self, kernels: &[String]) -> String {
        let sum = |of: fn(&Line) -> u64| self.lines.iter().map(of).sum::<u64>();
        let agreed = kernels.iter().filter(|name| self.has(name)).count();
        let worst = self.lines.iter().max_by(|a, b| a.share.total_cmp(&b.share));
        let worst = worst.map_or(String::new(), |line| {
            format!(
                "; the furthest, {}, used {:.2} of what is allowed",
                line.name, line.share
            )
        });
        format!(
            "{} cases: {} launches, {:.1} million instructions of warps in {} forms\n\
             {} launches compared with the emulator: {} had to have the same bits and had them, {} of the others had them \
             too{worst}\n\
             {agreed} of {} kernels agree\n",
            self.cases,
            sum(|line| line.launches),
            sum(|line| line.instructions) as f64 / 1e6,
            self.forms,
            sum(|line| line.compared),
            sum(|line| line.exact),
            sum(|line| line.same_bits) - sum(|line| line.exact),
            kernels.len(),
        )
    }
}
