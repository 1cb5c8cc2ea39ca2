//! The emulator itself: it reports every planted mistake, leaves clean kernels alone, and refuses impossible launches.

mod fragment;
mod launches;
mod zoo;

use keel::executor::simt::Emulator;

/// The emulator, or `None` where this program was built without a C++ compiler; the caller then has nothing to prove.
fn emulator() -> Option<Emulator> {
    Emulator::new()
        .inspect_err(|reason| eprintln!("not run: {reason}"))
        .ok()
}
