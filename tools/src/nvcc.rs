//! `cargo tool nvcc`: installs NVIDIA's compiler from the Python package index under `target/`, where the build script
//! finds it. Every package is pinned: the compiler's own package asks for the others without a version, and a mixture of
//! releases prints its version happily and then refuses every file.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler, its front end, its headers and the run-time headers: all of one release.
const COMPILER: [&str; 4] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
];

/// Tools that read images. They exist only from a later release on, so they get a folder of their own.
const READERS: [&str; 2] = [
    "nvidia-cuda-cuobjdump==13.2.51",
    "nvidia-cuda-nvdisasm==13.2.51",
];

/// Installs both sets and proves the compiler.
pub fn run(arguments: &[String]) -> Result<(), String> {
    if !arguments.is_empty() {
        return Err(format!(
            "nvcc takes no arguments, but was given {arguments:?}"
        ));
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let compiler = target.join("nvcc");
    let is_new = [
        install(&compiler, &COMPILER)?,
        install(&target.join("nvcc-readers"), &READERS)?,
    ];
    let nvcc = compiler.join("nvidia/cu13/bin/nvcc");
    prove(&nvcc, &target)?;
    if is_new.contains(&true) {
        look_again()?;
    }
    println!(
        "{} works; the next cargo build compiles the kernels for GPUs",
        nvcc.display()
    );
    Ok(())
}

/// Makes the next build look for the compiler again: cargo runs the build script when one of its files is newer.
fn look_again() -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/nvcc.rs");
    std::fs::File::options()
        .append(true)
        .open(&script)
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .map_err(|error| format!("cannot touch {}: {error}", script.display()))
}

/// Installs what is not there yet; tells whether that was anything.
fn install(folder: &Path, packages: &[&str]) -> Result<bool, String> {
    let stamp = folder.join("installed");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(false);
    }
    println!(
        "installing {} into {}",
        packages.join(", "),
        folder.display()
    );
    if folder.exists() {
        std::fs::remove_dir_all(folder)
            .map_err(|error| format!("cannot empty {}: {error}", folder.display()))?;
    }
    let status = Command::new(python()?)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .arg("--target")
        .arg(folder)
        .args(packages)
        .status()
        .map_err(|error| format!("cannot start pip: {error}"))?;
    if !status.success() {
        return Err(format!(
            "pip could not install {}; check the network, or install CUDA 13 and set CUDA_HOME",
            packages.join(", ")
        ));
    }
    std::fs::write(&stamp, wanted)
        .map_err(|error| format!("cannot write {}: {error}", stamp.display()))?;
    Ok(true)
}

fn python() -> Result<&'static str, String> {
    ["python3", "python"]
        .into_iter()
        .find(|name| {
            let output = Command::new(name).args(["-m", "pip", "--version"]).output();
            output.is_ok_and(|output| output.status.success())
        })
        .ok_or_else(|| "no python3 with pip was found; install both".to_owned())
}

/// Compiles an empty kernel for the newest chip the project supports.
fn prove(nvcc: &Path, target: &Path) -> Result<(), String> {
    let source: PathBuf = target.join("nvcc-trial.cu");
    std::fs::write(
        &source,
        "extern \"C\" __global__ void trial(int* p) { *p = 1; }\n",
    )
    .map_err(|error| format!("cannot write {}: {error}", source.display()))?;
    let output = Command::new(nvcc)
        .args(["-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-o"])
        .arg(target.join("nvcc-trial.cubin"))
        .arg(&source)
        .output()
        .map_err(|error| format!("cannot start {}: {error}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{} was installed but cannot compile: {}",
        nvcc.display(),
        String::from_utf8_lossy(&output.stderr)
    ))
}
