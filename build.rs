//! Build script. CUDA kernels are compiled here when a compiler for them is found.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
