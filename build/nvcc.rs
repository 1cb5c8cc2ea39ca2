//! Images for the GPU: one fatbin per file of cuda/, with machine code for sm_80 and sm_90a and PTX for newer chips.
//! `KEEL_CUDA` decides: `auto` (the default: use nvcc when there is one), `require` (an error without), `off`.

use super::cache::{Cache, key};
use super::{Image, stem};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Compiles every source with nvcc, or returns nothing when there is no usable one.
pub fn build(root: &Path, cache: &Cache, sources: &[PathBuf]) -> Vec<Image> {
    for name in [
        "KEEL_CUDA",
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "NVCC_CCBIN",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let wish = std::env::var("KEEL_CUDA").unwrap_or_else(|_| "auto".to_owned());
    match wish.as_str() {
        "off" => return Vec::new(),
        "auto" | "require" | "" => {}
        other => panic!("KEEL_CUDA must be auto, require or off, but is {other:?}"),
    }
    let nvcc = match find(root, cache) {
        Ok(nvcc) => nvcc,
        Err(reason) if wish == "require" => panic!("KEEL_CUDA=require, but {reason}"),
        Err(reason) => {
            println!(
                "cargo:warning=the CUDA kernels are not built for GPUs: {reason}; everything else works"
            );
            return Vec::new();
        }
    };
    // Made once: each is named by a hash of all that its source includes.
    let places: Vec<(PathBuf, PathBuf)> = sources
        .iter()
        .map(|source| paths(&nvcc, cache, source))
        .collect();
    let missing: Vec<(&PathBuf, &(PathBuf, PathBuf))> = sources
        .iter()
        .zip(&places)
        .filter(|(_, (fatbin, _))| !fatbin.exists())
        .collect();
    // Each nvcc is several processes in a row; a few at a time fill the machine.
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(missing.len()) {
            scope.spawn(|| {
                while let Some((source, (fatbin, ptxas))) =
                    missing.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    compile(&nvcc, cache, source, fatbin, ptxas);
                }
            });
        }
    });
    let images = sources.iter().zip(places);
    let images = images.map(|(source, (fatbin, ptxas))| Image {
        stem: stem(source),
        toolkit: toolkit(&nvcc.version),
        fatbin,
        ptxas,
        census: None,
    });
    let mut images: Vec<Image> = images.collect();
    super::readers::count(root, &nvcc.path, cache, &mut images);
    images
}

/// 13000 for the version text of nvcc 13.0: `… release 13.0, V13.0.88`.
fn toolkit(version: &str) -> i32 {
    let release = version.split("release ").nth(1);
    let release = release.and_then(|rest| rest.split(',').next());
    let numbers = release.and_then(|release| release.trim().split_once('.'));
    let number = numbers.and_then(|(major, minor)| {
        Some(1000 * major.parse::<i32>().ok()? + 10 * minor.parse::<i32>().ok()?)
    });
    number.unwrap_or_else(|| panic!("nvcc --version names no release in {version:?}"))
}

/// A compiler that has proven itself.
struct Nvcc {
    path: PathBuf,
    version: String,
}

/// What a file is compiled for. Files named `…_sm90` use instructions that only that chip has.
fn flags(source: &Path) -> Vec<String> {
    let mut flags: Vec<String> = [
        "-fatbin",
        "-O3",
        "-std=c++17",
        "-lineinfo",
        "-Xptxas=-v,-warn-spills",
    ]
    .map(str::to_owned)
    .to_vec();
    flags.push("-gencode=arch=compute_90a,code=sm_90a".to_owned());
    // Files of the Hopper tier use instructions that other chips lack. Their text is for the machine of tools/ptx: no driver
    // compiles it for a newer chip.
    if stem(source).ends_with("_sm90") {
        flags.push("-gencode=arch=compute_90a,code=compute_90a".to_owned());
    } else {
        flags.push("-gencode=arch=compute_80,code=sm_80".to_owned());
        flags.push("-gencode=arch=compute_80,code=compute_80".to_owned());
    }
    if let Ok(host) = std::env::var("NVCC_CCBIN") {
        flags.push(format!("-ccbin={host}"));
    }
    flags
}

/// Where the image of `source` lies, and what ptxas said about it.
fn paths(nvcc: &Nvcc, cache: &Cache, source: &Path) -> (PathBuf, PathBuf) {
    let mut settings = flags(source);
    settings.push(nvcc.version.clone());
    let key = key(source, &settings);
    (cache.path(&key, "fatbin"), cache.path(&key, "ptxas"))
}

fn compile(nvcc: &Nvcc, cache: &Cache, source: &Path, fatbin: &Path, ptxas: &Path) {
    let partial = fatbin.with_extension(format!("{}.nvcc", std::process::id()));
    let output = Command::new(&nvcc.path)
        .args(flags(source))
        .arg("-o")
        .arg(&partial)
        .arg(source)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", nvcc.path.display()));
    if !output.status.success() {
        panic!("nvcc refuses {}:\n{}", source.display(), text(&output));
    }
    cache.store_text(&text(&output), ptxas);
    cache.store(&partial, fatbin);
    std::fs::remove_file(&partial).ok();
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The first compiler that works, in the documented order, or why there is none. One that `NVCC` names and that does not
/// work is an error: someone asked for it.
fn find(root: &Path, cache: &Cache) -> Result<Nvcc, String> {
    if let Some(named) = std::env::var_os("NVCC").filter(|value| !value.is_empty()) {
        return prove(Path::new(&named), cache)
            .map_err(|reason| panic!("NVCC={}: {reason}", named.display()));
    }
    let mut candidates: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(std::env::var_os)
        .map(|home| PathBuf::from(home).join("bin/nvcc"))
        .collect();
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    }
    candidates.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    candidates.push(root.join("target/nvcc/nvidia/cu13/bin/nvcc"));
    let mut reason = "no nvcc was found (`cargo tool nvcc` installs one under target/)".to_owned();
    for candidate in candidates.iter().filter(|path| path.is_file()) {
        match prove(candidate, cache) {
            Ok(nvcc) => return Ok(nvcc),
            Err(problem) => reason = format!("{} does not work: {problem}", candidate.display()),
        }
    }
    Err(reason)
}

/// Compiles an empty kernel: a mixture of package versions prints its version happily and then fails on everything.
fn prove(path: &Path, cache: &Cache) -> Result<Nvcc, String> {
    let version = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let version_text = text(&version);
    if !version.status.success() || !version_text.contains("Cuda compilation tools") {
        return Err("it does not answer --version as nvcc does".to_owned());
    }
    // An nvcc without a host compiler answers --version and compiles nothing, so it is tried once; the proof is kept
    // under what it depends on.
    let mut settings = flags(Path::new("trial"));
    settings.push(version_text.clone());
    settings.push(path.display().to_string());
    let trial = cache.path("trial", "cu");
    let proof = {
        cache.store_text(
            "extern \"C\" __global__ void trial(int* p) { *p = 1; }\n",
            &trial,
        );
        cache.path(&key(&trial, &settings), "proof")
    };
    if !proof.exists() {
        let output = Command::new(path)
            .args(flags(Path::new("trial")))
            .arg("-o")
            .arg(proof.with_extension("trial"))
            .arg(&trial)
            .output()
            .map_err(|error| format!("it cannot be started: {error}"))?;
        if !output.status.success() {
            return Err(text(&output).lines().take(3).collect::<Vec<_>>().join(" "));
        }
        std::fs::remove_file(proof.with_extension("trial")).ok();
        cache.store_text(&version_text, &proof);
    }
    Ok(Nvcc {
        path: path.to_owned(),
        version: version_text,
    })
}
