//! Ranks as processes: how they are started, found and watched.

mod control;
mod environment;
mod processes;
mod simulate;
