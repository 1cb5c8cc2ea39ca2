//! `keel train` as one of the ranks that mpirun, srun or torchrun started: a process a rank.

use std::fs::File;
use std::io::Read;
use std::sync::PoisonError;
use std::time::Duration;

use super::Failure;
use keel_base::error::{Error, Result};
use keel_data::pairs::PairSource;
use keel_engine::executor::{Device, SelectedDevice, usable_cores};
use keel_ranks::control::{Fact, Patience, check_alike, end_process};
use keel_ranks::join::{HAS_MPI, Joined, Memory, join};
use keel_ranks::launch::{Environment, Launcher, Place, RanksFrom};
use keel_train::{HeldOutPairs, Recipe};

/// This process's place, as its launcher says.
///
/// # Errors
/// As [`Environment::place`].
pub(super) fn place(from: Option<RanksFrom>) -> Result<Place> {
    Environment::of_process().place(from.unwrap_or_default(), HAS_MPI)
}

/// Takes the process's seat among the ranks. `silence` is how long one may be silent.
///
/// # Errors
/// As [`join`].
pub(super) fn take_seat(
    from: Option<RanksFrom>,
    device: Device,
    silence: Duration,
) -> Result<Joined> {
    let memory = match device {
        Device::Cuda => Memory::Gpu,
        _ => Memory::Host,
    };
    let patience = Patience {
        silence,
        ..Patience::default()
    };
    join(
        from.unwrap_or_default(),
        memory,
        patience,
        Box::new(end_process),
    )
}

/// The threads of this rank, where the user does not say: the cores that it may use, divided among the ranks that may use the
/// same ones. A launcher may have given each rank cores of its own.
pub(super) fn threads(joined: &Joined) -> usize {
    (usable_cores() / joined.sharers).max(1)
}

/// Refuses ranks that were not started alike: with another program, recipe, data or device.
///
/// # Errors
/// As [`check_alike`]; [`Error::Io`] when this program cannot be read.
pub(super) fn check(
    joined: &Joined,
    recipe: &Recipe,
    compute: &SelectedDevice,
    pairs: Option<&dyn PairSource>,
    held_out: Option<&HeldOutPairs>,
) -> Result<()> {
    let Some(control) = &joined.control else {
        return Ok(());
    };
    let digests = pairs.map_or(Ok(Vec::new()), PairSource::digests)?;
    let data: Vec<String> = digests.iter().map(|digest| digest.text()).collect();
    let held_out = held_out.map(HeldOutPairs::inputs).transpose()?;
    let held_out = held_out.map_or("none".to_owned(), |inputs| inputs.text());
    let target = compute.compile_target();
    let facts = [
        Fact::new("program", program()?),
        Fact::new("recipe", short(recipe.to_toml().as_bytes())),
        Fact::new("data", data.join(", ")),
        Fact::new("held-out samples", held_out),
        Fact::new(
            "device",
            format!("{} in {}", compute.device().name(), target.precision),
        ),
        Fact::new("way of computing products", compute.way_of_products()),
    ];
    check_alike(&**control, control.hosts(), &facts)
}

/// The version of this program and the first digits of the hash of its file: two builds of one version differ too.
fn program() -> Result<String> {
    let path = std::env::current_exe().map_err(|source| Error::io("keel", "find", source))?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; 1 << 20];
    let mut file = File::open(&path).map_err(|source| Error::io(&path, "read", source))?;
    loop {
        let count = file
            .read(&mut bytes)
            .map_err(|source| Error::io(&path, "read", source))?;
        if count == 0 {
            break;
        }
        hasher.update(&bytes[..count]);
    }
    let hash = hasher.finalize().to_hex();
    Ok(format!("{} ({})", env!("CARGO_PKG_VERSION"), &hash[..12]))
}

/// The first digits of a hash.
fn short(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..12].to_owned()
}

/// Ends this rank's part of the job, with all others where it went well or where all end alike, and otherwise by telling them why.
pub(super) fn leave(joined: &Joined, outcome: Result<(), Failure>) -> Result<(), Failure> {
    let Some(control) = &joined.control else {
        return outcome;
    };
    match &outcome {
        Err(failure) if !failure.is_shared() => {
            control.give_up_with(failure.sentence(), failure.code().into());
        }
        // All ranks come here at the same step.
        _ => control.leave()?,
    }
    outcome
}

/// What is said of the ranks before they begin.
pub(super) fn described(joined: &Joined) -> String {
    let place = &joined.place;
    let launcher = place.launcher.map_or("nothing", Launcher::name);
    let engine = joined.seat.engine().map(|engine| {
        let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.name()
    });
    match engine {
        Some(engine) => format!(
            "ranks: {}, started by {launcher}, over {engine}",
            place.ranks
        ),
        None => format!("ranks: 1, as {launcher} says"),
    }
}
