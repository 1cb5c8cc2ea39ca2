//! `cargo tool bundle`: everything that `tools/gpu-run.sh` runs, in one archive that can be carried to a machine without
//! cargo: the program, the tests' binary, the report on kernels, the steps, what every case should give, the script itself,
//! PyTorch's side of the benchmarks, and the commit they are of.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A machine may be had for minutes, and the way there may be slow.
const LARGEST_BYTES: u64 = 40_000_000;

/// The seed of drawn cases, which `tools/gpu-run.sh` sets too: it runs the cases whose values are written here.
const SEED: &str = "20261123";

/// The cases whose values are carried along, and those of goldens, which are for the reference.
const CASES: [&str; 5] = [
    "ops::",
    "devices::steps",
    "devices::ten_steps",
    "--skip",
    "pytorch",
];

/// Builds optimised binaries into `target/gpu`, and the archive `target/keel-gpu.tar.xz` of them.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let profile = match arguments {
        [] => "release",
        [flag, profile] if flag == "--profile" => profile,
        other => {
            return Err(format!(
                "bundle takes --profile NAME or nothing, but was given {other:?}"
            ));
        }
    };
    let tools = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = tools.parent().expect("tools/ stands in the repository");
    let folder = root.join("target/gpu");
    std::fs::create_dir_all(&folder)
        .map_err(|problem| format!("cannot create {}: {problem}", folder.display()))?;
    for (name, arguments) in [
        ("keel", &["build", "--bin", "keel"][..]),
        ("verify", &["test", "--no-run", "--test", "verify"]),
        ("kernel-report", &["build", "--example", "kernel-report"]),
        ("steps", &["bench", "--no-run", "--bench", "steps"]),
    ] {
        let arguments = [arguments, &["--profile", profile]].concat();
        println!("— cargo {}", arguments.join(" "));
        let program = executable(root, name, &arguments)?;
        expect_success(
            Command::new("strip")
                .arg("-s")
                .arg("-o")
                .arg(folder.join(name))
                .arg(&program),
        )?;
    }
    println!("— what every case should give");
    let expected = folder.join("expected");
    std::fs::remove_file(&expected).ok();
    expect_success(
        Command::new(folder.join("verify"))
            .arg("--quiet")
            .args(CASES)
            .current_dir(root)
            .env("KEEL_EXPECTED", format!("write:{}", expected.display()))
            .env("PROPTEST_RNG_SEED", SEED),
    )?;
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(root)
        .output()
        .map_err(|problem| format!("cannot run git: {problem}"))?;
    std::fs::write(folder.join("commit"), commit.stdout)
        .map_err(|problem| format!("cannot write into {}: {problem}", folder.display()))?;
    let archive = root.join("target/keel-gpu.tar.xz");
    let bytes = pack(root, &archive)?;
    let size = format!("{} has {:.1} MB", archive.display(), bytes as f64 / 1e6);
    if bytes > LARGEST_BYTES {
        return Err(format!(
            "{size}, more than the {} MB that a bundle may have: carry fewer cases along",
            LARGEST_BYTES / 1_000_000
        ));
    }
    println!("{size}: unpack it where the GPU is, and run keel-gpu/tools/gpu-run.sh");
    Ok(())
}

/// Writes the archive and returns its size in bytes.
fn pack(root: &Path, archive: &Path) -> Result<u64, String> {
    println!("— {}", archive.display());
    let failed = |problem: std::io::Error| format!("cannot write {}: {problem}", archive.display());
    let mut xz = Command::new("xz")
        // The images are part of every binary: a window that holds all of them keeps one.
        .args(["--stdout", "--lzma2=preset=6,dict=256MiB"])
        .stdin(Stdio::piped())
        .stdout(File::create(archive).map_err(failed)?)
        .spawn()
        .map_err(|problem| format!("cannot run xz: {problem}"))?;
    let mut tar = tar::Builder::new(xz.stdin.take().expect("it was asked for"));
    let within = Path::new("keel-gpu");
    for folder in ["target/gpu", "bench/peers"] {
        for file in files(&root.join(folder))? {
            let name = file.file_name().expect("it was listed");
            tar.append_path_with_name(&file, within.join(folder).join(name))
                .map_err(failed)?;
        }
    }
    let script = "tools/gpu-run.sh";
    tar.append_path_with_name(root.join(script), within.join(script))
        .map_err(failed)?;
    drop(tar.into_inner().map_err(failed)?);
    let status = xz.wait().map_err(failed)?;
    if !status.success() {
        return Err(format!("xz failed on {}", archive.display()));
    }
    Ok(archive.metadata().map_err(failed)?.len())
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder)
        .map_err(|problem| format!("cannot read {}: {problem}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

fn expect_success(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .map_err(|problem| format!("cannot run {name}: {problem}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{name} failed ({status})"))
    }
}

/// Builds, with the GPU's images required, and returns the path of the executable called `name`.
fn executable(root: &Path, name: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    let output = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()))
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root)
        .env("KEEL_CUDA", "require")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|problem| format!("cannot run cargo: {problem}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", arguments.join(" ")));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| format!("cargo built no executable called {name}"))
}
