//! `cargo tool`: the chores of this repository, runnable when the engine itself does not build.

fn main() {
    eprintln!("usage: cargo tool check");
    std::process::exit(2);
}
