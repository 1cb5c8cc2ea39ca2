//! Compiles the kernels of cuda/ twice: with the host C++ compiler into the emulator library (build/emulator.rs), and
//! with nvcc, where there is one, into images for the GPU (build/nvcc.rs). Neither is needed to build: what is missing is
//! said once and left out. Everything is cached by content under the target folder (build/cache.rs).

mod cache;
mod emulator;
mod nvcc;
mod readers;
pub mod sass;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Compiles what there is to compile and writes the table of kernels. Called by build.rs.
pub fn run() {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().nth(2).expect("src/engine stands in the repository");
    // Compilers that are named by a relative path are looked for from the root, as whoever named them did.
    std::env::set_current_dir(root).expect("the repository can be entered");
    for watched in ["build.rs", "build", "cuda"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rustc-check-cfg=cfg(keel_simt)");
    let out = PathBuf::from(variable("OUT_DIR"));
    let cache = cache::Cache::beside(&out);
    let sources = sources(&root.join("cuda"));
    let kernels = emulator::build(root, &out, &cache, &sources);
    let images = nvcc::build(root, &cache, &sources);
    write_table(&out, &sources, &kernels, &images);
}

/// A kernel and the file it stands in.
struct Kernel {
    name: String,
    stem: String,
}

/// What nvcc made of one file: the image, what ptxas said about it, and the census of its instructions.
struct Image {
    stem: String,
    fatbin: PathBuf,
    ptxas: PathBuf,
    census: Option<PathBuf>,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// Every `.cu` file of a folder, sorted; none when there is no such folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    files(folder, "cu")
}

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

/// The table src/engine/executor/kernel_table.rs includes.
fn write_table(out: &Path, sources: &[PathBuf], kernels: &[Kernel], images: &[Image]) {
    let mut text =
        String::from("/// Every kernel of `cuda/`.\npub static KERNELS: &[KernelEntry] = &[\n");
    for kernel in kernels {
        writeln!(
            text,
            "    KernelEntry {{ name: {:?}, stem: {:?} }},",
            kernel.name, kernel.stem
        )
        .expect("writing to a string cannot fail");
    }
    text.push_str(
        "];\n\n/// The files of `cuda/`: stem and text.\npub static SOURCES: &[(&str, &str)] = &[\n",
    );
    for source in sources {
        writeln!(text, "    ({:?}, include_str!({source:?})),", stem(source))
            .expect("writing to a string cannot fail");
    }
    text.push_str(
        "];\n\n/// What nvcc built; empty without nvcc.\npub static IMAGES: &[KernelImage] = &[\n",
    );
    for image in images {
        let census = match &image.census {
            Some(path) => format!("include_str!({path:?})"),
            None => "\"\"".to_owned(),
        };
        writeln!(
            text,
            "    KernelImage {{ stem: {:?}, fatbin: include_bytes!({:?}), ptxas: include_str!({:?}), census: {census} }},",
            image.stem, image.fatbin, image.ptxas
        )
        .expect("writing to a string cannot fail");
    }
    text.push_str("];\n");
    let path = out.join("kernel_table.rs");
    std::fs::write(&path, text)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
