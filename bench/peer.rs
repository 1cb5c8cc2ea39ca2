//! The Python that work is compared with.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `python` about to run a script of `bench/peers`. Cargo starts benchmarks in bench/, but whoever names a Python by a
/// relative path names it from the root.
pub fn peer(python: &str, script: &str) -> Command {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = bench.parent().expect("bench/ stands in the repository");
    let python = if python.contains('/') {
        root.join(python)
    } else {
        PathBuf::from(python)
    };
    let mut command = Command::new(python);
    command
        .current_dir(root)
        .arg(bench.join("peers").join(script));
    command
}
