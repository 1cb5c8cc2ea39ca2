//! Signals to a training run: TERM, INT and HUP save and end it at the next step boundary, USR1 saves and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::flag;

use keel_base::error::{Error, Result};

/// What was signalled so far. Without [`Signals::heed`] nothing ever is.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// The number of the last TERM, INT or HUP; 0 for none.
    stop: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
}

/// A signal that asks a run to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// TERM: a batch system or `kill`.
    Terminate,
    /// INT: control-C.
    Interrupt,
    /// HUP: the terminal was closed, or the connection to it broke.
    HangUp,
}

impl Stop {
    /// All of them.
    pub const ALL: [Stop; 3] = [Stop::Terminate, Stop::Interrupt, Stop::HangUp];

    /// Its name without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Terminate => "TERM",
            Stop::Interrupt => "INT",
            Stop::HangUp => "HUP",
        }
    }

    /// The exit code of a run that it ended: 128 and its number, as shells report it.
    pub fn exit_code(self) -> u8 {
        match self {
            Stop::Terminate => 143,
            Stop::Interrupt => 130,
            Stop::HangUp => 129,
        }
    }
}

impl Signals {
    /// Takes the process's TERM, INT, HUP and USR1 from here on. The first TERM, INT or HUP is remembered; a second one of any
    /// ends the process at once, with 128 and its number. HUP stays ignored where it is, as nohup has it.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses a handler.
    pub fn heed() -> Result<Signals> {
        let signals = Signals::default();
        let armed = Arc::new(AtomicBool::new(false));
        let register = || -> std::io::Result<()> {
            // Handlers run in the order they are registered in: both exits first, so that the signal that arms them is
            // not the one that fires them.
            let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
            for number in [SIGTERM, SIGINT].into_iter().chain(hang_up) {
                flag::register_conditional_shutdown(number, 128 + number, armed.clone())?;
                flag::register_usize(number, signals.stop.clone(), number as usize)?;
                flag::register(number, armed.clone())?;
            }
            flag::register(SIGUSR1, signals.save.clone())?;
            Ok(())
        };
        register().map_err(|problem| Error::io("signals", "install a handler", problem))?;
        Ok(signals)
    }

    /// From here on a file that would grow beyond the limit on its size (`ulimit -f`, a quota) fails its write, which is then
    /// said as any other failure is: the signal would end the process without a word.
    pub fn heed_file_size_limits() {
        // Where the system refuses, the process ends as it would have.
        let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    }

    /// Asks the run to end, as a signal of the process does.
    pub fn ask_to_stop(&self, stop: Stop) {
        let number = match stop {
            Stop::Terminate => SIGTERM,
            Stop::Interrupt => SIGINT,
            Stop::HangUp => SIGHUP,
        };
        self.stop.store(number as usize, Ordering::SeqCst);
    }

    /// Asks the run for a checkpoint, as USR1 does.
    pub fn ask_to_save(&self) {
        self.save.store(true, Ordering::SeqCst);
    }

    /// The signal that asks the run to end, if one came.
    pub fn stop(&self) -> Option<Stop> {
        match self.stop.load(Ordering::SeqCst) {
            0 => None,
            number if number == SIGINT as usize => Some(Stop::Interrupt),
            number if number == SIGHUP as usize => Some(Stop::HangUp),
            _ => Some(Stop::Terminate),
        }
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::SeqCst)
    }
}

/// Whether the process was started with a signal ignored. Only the kernel's own table says so without changing it; where there
/// is none, nothing is.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
