//! `cargo tool kernels`: holds the kernels' images to `cuda/budget.toml`, or writes that file and the page
//! `docs/reference/kernels.md` anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Builds the report with the images and lets it compare them with what was agreed.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let write = match arguments {
        [] => false,
        [flag] if flag == "--write" => true,
        other => {
            return Err(format!(
                "kernels takes --write or nothing, but was given {other:?}"
            ));
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut options = vec!["--budget", "cuda/budget.toml"];
    if write {
        options.push("--write");
    }
    let output = keel(&root, &options)?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        return Err("the kernels break their budget".to_owned());
    }
    let page: PathBuf = root.join("docs/reference/kernels.md");
    let output = keel(&root, &["--markdown"])?;
    if !output.status.success() {
        return Err("kernel-report --markdown failed".to_owned());
    }
    if write {
        return std::fs::write(&page, &output.stdout)
            .map_err(|problem| format!("cannot write {}: {problem}", page.display()));
    }
    match std::fs::read(&page) {
        Ok(found) if found == output.stdout => Ok(()),
        _ => Err(
            "docs/reference/kernels.md is out of date; cargo tool kernels --write writes it"
                .to_owned(),
        ),
    }
}

/// The report with `options`; without images it does not build.
fn keel(root: &Path, options: &[&str]) -> Result<Output, String> {
    Command::new(std::env::var("CARGO").unwrap_or("cargo".into()))
        .args(["run", "--quiet", "--example", "kernel-report", "--"])
        .args(options)
        .current_dir(root)
        .env("KEEL_CUDA", "require")
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|problem| format!("cannot run cargo: {problem}"))
}
