//! Compiles the kernels of cuda/ twice: with the host C++ compiler into the emulator library (build/emulator.rs), and
//! with nvcc, where there is one, into images for the GPU (build/nvcc.rs). Neither is needed to build: what is missing is
//! said once and left out. Everything is cached by content under the target folder (build/cache.rs).
//!
//! Which kernels there are, what they take and the constants they share with the engine is read from their sources
//! (build/source.rs), so that the table in Rust (build/table.rs) is the same whichever compilers a machine has.

mod cache;
mod emulator;
mod nvcc;
mod readers;
pub mod sass;
mod source;
mod table;

use std::path::{Path, PathBuf};

/// Compiles what there is to compile and writes the table of kernels. Called by build.rs.
pub fn run() {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = package
        .ancestors()
        .nth(2)
        .expect("src/engine stands in the repository");
    // Compilers that are named by a relative path are looked for from the root, as whoever named them did.
    std::env::set_current_dir(root).expect("the repository can be entered");
    for watched in ["build.rs", "build", "cuda"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rustc-check-cfg=cfg(keel_simt)");
    let out = PathBuf::from(variable("OUT_DIR"));
    let cache = cache::Cache::beside(&out);
    let cuda = root.join("cuda");
    let sources = files(&cuda, "cu");
    let read: Vec<source::Source> = sources
        .iter()
        .map(|path| source::read(&cuda, path))
        .collect();
    emulator::build(root, &out, &cache, &sources, &read);
    let wrappers = ["wrappers", "wrappers_sm90"];
    let wrapper_sources = wrappers.map(|stem| cuda.join(format!("simt/zoo/{stem}.cu")));
    let compiled = [sources.as_slice(), &wrapper_sources].concat();
    let mut images = nvcc::build(root, &cache, &compiled);
    // The wrappers' own kernels are for tests: they find them beside the table, which does not name them.
    for stem in wrappers.iter().rev() {
        let aside = out.join(format!("{stem}.fatbin"));
        match images.pop() {
            Some(image) => cache.store(&image.fatbin, &aside),
            None => drop(std::fs::remove_file(&aside)),
        }
    }
    write(&out.join("kernels.rs"), &table::kernels(&read));
    write(
        &out.join("kernel_table.rs"),
        &table::images(&sources, &images),
    );
}

/// What nvcc made of one file: the image, what ptxas said about it, and the census of its instructions.
struct Image {
    stem: String,
    /// The version of CUDA that nvcc is of, for example 13000.
    toolkit: i32,
    fatbin: PathBuf,
    ptxas: PathBuf,
    census: Option<PathBuf>,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// Every file of a folder with this extension, sorted; none when there is no such folder.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .expect("a source file has a name")
        .to_string_lossy()
        .into_owned()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
