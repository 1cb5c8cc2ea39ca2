//! How a process takes its seat among the ranks that a launcher started: it reads its place, meets the others, and joins the
//! engine that moves what its programs send.

use std::sync::Arc;

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::control::{Control, Door, End, Patience, machine};
use crate::launch::{Environment, Meeting, Place, RanksFrom};
use crate::{Engine, Seat, Votes, nccl};
use keel_base::error::{Error, Result};

/// Where programs keep what they send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In host memory: ranks on processors and on the emulator.
    Host,
    /// In that of GPUs, the one with the rank's number on its host.
    Gpu,
}

/// A process among the ranks of a job.
pub struct Joined {
    /// Its seat; that of the one rank where no launcher started several.
    pub seat: Seat,
    /// The channel that watches the others, where there are others.
    pub control: Option<Arc<Control>>,
    /// Its place, as its launcher says.
    pub place: Place,
    /// How many ranks may use the same cores, this one among them.
    pub sharers: usize,
}

/// Whether this build can join ranks over MPI.
pub const HAS_MPI: bool = cfg!(feature = "mpi");

/// Takes the seat that the launcher's environment says. `end` is called when the job ends for another rank's sake.
///
/// # Errors
/// As [`Environment::place`]; [`Error::Setting`] for ranks on processors in a build without MPI; whatever meeting the others and
/// joining their engine reports.
pub fn join(from: RanksFrom, memory: Memory, patience: Patience, end: End) -> Result<Joined> {
    let place = Environment::of_process().place(from, HAS_MPI)?;
    if place.ranks == 1 {
        return Ok(Joined {
            seat: Seat::default(),
            control: None,
            place,
            sharers: 1,
        });
    }
    let host = host(&place, memory);
    match memory {
        Memory::Gpu => on_gpus(place, &host, patience, end),
        Memory::Host => on_processors(place, &host, patience, end),
    }
}

/// What sentences call a rank's place: its host and, where it has one, its GPU.
fn host(place: &Place, memory: Memory) -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    match memory {
        Memory::Host => name,
        Memory::Gpu => format!("{name}, GPU {}", place.local_rank),
    }
}

fn seated(
    place: Place,
    control: Control,
    engine: impl FnOnce(&Control) -> Result<Box<dyn Engine>>,
) -> Result<Joined> {
    let control = Arc::new(control);
    let made = engine(&control).and_then(|engine| Ok((engine, sharers(&control)?)));
    let (engine, sharers) = made.inspect_err(|problem| control.give_up(&problem.to_string()))?;
    Ok(Joined {
        seat: Seat::new(control.watch(engine), control.clone()),
        control: Some(control),
        place,
        sharers,
    })
}

/// How many ranks of this host may use cores that this one may use too.
fn sharers(control: &Control) -> Result<usize> {
    let own = cores();
    let all = control.gather("which cores they may use", &own)?;
    let hosts = control.hosts();
    let rank = control.world().rank;
    let is_here = |other: &usize| machine(&hosts[*other]) == machine(&hosts[rank]);
    let shares = |other: &usize| {
        all[*other]
            .iter()
            .zip(&own)
            .any(|(one, other)| one & other != 0)
    };
    let here = (0..all.len()).filter(is_here);
    Ok(here.filter(|other| *other == rank || shares(other)).count())
}

/// The cores that this process may use, a bit each; none where the system does not say.
fn cores() -> Vec<u8> {
    let mut bytes = vec![0; CpuSet::MAX_CPU / 8];
    if let Ok(set) = sched_getaffinity(None) {
        for core in (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)) {
            bytes[core / 8] |= 1 << (core % 8);
        }
    }
    bytes
}

fn on_gpus(place: Place, host: &str, patience: Patience, end: End) -> Result<Joined> {
    let control = match place.meeting {
        Meeting::Mpi { .. } => meet_over_mpi(&place, host, patience, end)?,
        _ => Control::join(&place, Door::of(&place)?, host, patience, end)?,
    };
    let ordinal = place.local_rank as i32;
    // Where one rank lacks the library, the others hear of it.
    seated(place, control, |control| {
        nccl::engine(nccl::Library::load()?, control, control.hosts(), ordinal)
    })
}

#[cfg(feature = "mpi")]
fn on_processors(place: Place, host: &str, patience: Patience, end: End) -> Result<Joined> {
    let Meeting::Mpi { host: address } = &place.meeting else {
        return Err(without_mpi(&place, "start with mpirun"));
    };
    let mut mpi = crate::mpi::Mpi::start(&place)?;
    let door = mpi.door(host, address.as_deref())?;
    let control = Control::join(&place, door, host, patience, end)?;
    seated(place, control, |control| Ok(mpi.engine(control.world())))
}

#[cfg(not(feature = "mpi"))]
fn on_processors(place: Place, _: &str, _: Patience, _: End) -> Result<Joined> {
    let remedy = "build with --features mpi and start with mpirun";
    Err(without_mpi(&place, remedy))
}

fn without_mpi(place: &Place, remedy: &str) -> Error {
    let launcher = place
        .launcher
        .map_or("a launcher", |launcher| launcher.name());
    Error::setting(
        format!("the {} ranks that {launcher} started", place.ranks),
        format!(
            "an engine between processors, which is MPI: {remedy}, or compute with --device gpu"
        ),
        "none",
    )
}

/// Only the meeting is MPI's: NCCL moves the bytes.
#[cfg(feature = "mpi")]
fn meet_over_mpi(place: &Place, host: &str, patience: Patience, end: End) -> Result<Control> {
    let Meeting::Mpi { host: address } = &place.meeting else {
        unreachable!("asked for such a place alone");
    };
    let mut mpi = crate::mpi::Mpi::start(place)?;
    let door = mpi.door(host, address.as_deref())?;
    Control::join(place, door, host, patience, end)
}

#[cfg(not(feature = "mpi"))]
fn meet_over_mpi(_: &Place, _: &str, _: Patience, _: End) -> Result<Control> {
    unreachable!("without MPI no place meets over it")
}
