//! Compiles the kernels of cuda/ with nvcc, where there is one, and for the emulator: see the package in build/.

fn main() {
    keel_build::run();
}
