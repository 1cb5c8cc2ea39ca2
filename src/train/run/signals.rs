//! Signals to a training run: TERM and INT save and end it at the next step boundary, USR1 saves and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use keel_base::error::{Error, Result};

/// What was signalled so far. Without [`Signals::heed`] nothing ever is.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// The number of the last TERM or INT; 0 for none.
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
}

impl Stop {
    /// Its name without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Terminate => "TERM",
            Stop::Interrupt => "INT",
        }
    }

    /// The exit code of a run that it ended: 128 and its number, as shells report it.
    pub fn exit_code(self) -> u8 {
        match self {
            Stop::Terminate => 143,
            Stop::Interrupt => 130,
        }
    }
}

impl Signals {
    /// Takes the process's TERM, INT and USR1 from here on. The first TERM or INT is remembered; a second one of either
    /// ends the process at once, with 128 and its number.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses a handler.
    pub fn heed() -> Result<Signals> {
        let signals = Signals::default();
        let armed = Arc::new(AtomicBool::new(false));
        let register = || -> std::io::Result<()> {
            // Handlers run in the order they are registered in: both exits first, so that the signal that arms them is
            // not the one that fires them.
            for number in [SIGTERM, SIGINT] {
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

    /// The signal that asks the run to end, if one came.
    pub fn stop(&self) -> Option<Stop> {
        match self.stop.load(Ordering::SeqCst) {
            0 => None,
            number if number == SIGINT as usize => Some(Stop::Interrupt),
            _ => Some(Stop::Terminate),
        }
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::SeqCst)
    }
}
