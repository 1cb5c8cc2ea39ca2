//! Ranks as processes: how they are started, found and watched.

mod environment;
mod simulate;
