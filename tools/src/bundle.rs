//! `cargo tool bundle`: everything that `tools/gpu-run.sh` runs, in one folder that can be carried to a machine without
//! cargo: the program, the tests' binary, the benchmarks, and the commit they are of.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds optimised binaries and copies them into `target/gpu`.
pub fn run(arguments: &[String]) -> Result<(), String> {
    if !arguments.is_empty() {
        return Err(format!(
            "bundle takes no arguments, but was given {arguments:?}"
        ));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("target/gpu");
    std::fs::create_dir_all(&folder)
        .map_err(|problem| format!("cannot create {}: {problem}", folder.display()))?;
    let built = [
        ("keel", &["build", "--release", "--bin", "keel"][..]),
        (
            "verify",
            &["test", "--release", "--no-run", "--test", "verify"],
        ),
        (
            "kernel-report",
            &["build", "--release", "--example", "kernel-report"],
        ),
        ("kernels", &["bench", "--no-run", "--bench", "kernels"]),
        ("steps", &["bench", "--no-run", "--bench", "steps"]),
    ];
    for (name, arguments) in built {
        println!("— cargo {}", arguments.join(" "));
        let program = executable(&root, name, arguments)?;
        std::fs::copy(&program, folder.join(name))
            .map_err(|problem| format!("cannot copy {}: {problem}", program.display()))?;
    }
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(&root)
        .output()
        .map_err(|problem| format!("cannot run git: {problem}"))?;
    std::fs::write(folder.join("commit"), commit.stdout)
        .map_err(|problem| format!("cannot write into {}: {problem}", folder.display()))?;
    println!(
        "{} is ready: take it along with tools, bench and verify, and run tools/gpu-run.sh",
        folder.display()
    );
    Ok(())
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
