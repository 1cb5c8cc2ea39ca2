//! From the environment that a launcher sets to a rank's place in its job, and to where the ranks meet.
//!
//! Four launchers are understood: Open MPI's `mpirun`, MPICH's hydra, Slurm's `srun`, and `torchrun` with whatever sets the same
//! variables. An environment that is half set, holds numbers that cannot be, or says two different things is refused with
//! both names and both values; nothing is guessed. Without a launcher there is one rank, and nothing changes.

use std::collections::BTreeMap;
use std::fmt;

use crate::World;
use keel_base::error::{Error, Result};

/// What started the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// `mpiexec` of MPICH and its like, which start ranks by hydra.
    Mpich,
    /// `torchrun`, or another that sets the same variables.
    Torchrun,
    /// Slurm's `srun`.
    Slurm,
}

/// Where a launcher writes a rank's numbers.
struct Names {
    rank: &'static str,
    ranks: &'static str,
    local_rank: &'static str,
    local_ranks: &'static str,
}

impl Launcher {
    /// All of them; where several agree, the first is taken to be the one that started the rank.
    pub const ALL: [Launcher; 4] = [
        Launcher::OpenMpi,
        Launcher::Mpich,
        Launcher::Torchrun,
        Launcher::Slurm,
    ];

    /// Its name in `--ranks-from`.
    pub fn name(self) -> &'static str {
        match self {
            Launcher::OpenMpi => "openmpi",
            Launcher::Mpich => "mpich",
            Launcher::Torchrun => "torchrun",
            Launcher::Slurm => "slurm",
        }
    }

    /// Whether it starts ranks of MPI.
    pub fn is_mpi(self) -> bool {
        matches!(self, Launcher::OpenMpi | Launcher::Mpich)
    }

    fn names(self) -> Names {
        let [rank, ranks, local_rank, local_ranks] = match self {
            Launcher::OpenMpi => [
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ],
            Launcher::Mpich => ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
            Launcher::Torchrun => ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
            // A batch script without srun has SLURM_NTASKS and SLURM_PROCID=0 too, of tasks that nobody started: only a step
            // has SLURM_STEP_NUM_TASKS.
            Launcher::Slurm => [
                "SLURM_PROCID",
                "SLURM_STEP_NUM_TASKS",
                "SLURM_LOCALID",
                "SLURM_STEP_TASKS_PER_NODE",
            ],
        };
        Names {
            rank,
            ranks,
            local_rank,
            local_ranks,
        }
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the ranks of a job find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// There is one rank.
    Alone,
    /// Rank 0 listens there.
    Address {
        /// A name or an address.
        host: String,
        /// A TCP port.
        port: u16,
    },
    /// Rank 0 listens where it likes and tells the others over MPI.
    Mpi {
        /// What they reach its host by, where the environment says.
        host: Option<String>,
    },
}

/// A rank's place in its job, as its launcher says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who says so; `None` where nothing started several ranks.
    pub launcher: Option<Launcher>,
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks of the job.
    pub ranks: usize,
    /// This rank among those of its host, from 0: which GPU it takes.
    pub local_rank: usize,
    /// Ranks on this host, where the launcher says.
    pub local_ranks: Option<usize>,
    /// Where the ranks meet.
    pub meeting: Meeting,
    /// What tells this job from another that meets at the same place by accident.
    pub job: String,
}

impl Place {
    /// The place of the only rank.
    pub fn alone() -> Place {
        Place {
            launcher: None,
            rank: 0,
            ranks: 1,
            local_rank: 0,
            local_ranks: Some(1),
            meeting: Meeting::Alone,
            job: String::new(),
        }
    }

    /// The same for engines; `local_ranks` is how many ranks have this rank's host, where the launcher does not say.
    pub fn world(&self, local_ranks: usize) -> World {
        World {
            rank: self.rank,
            ranks: self.ranks,
            local_rank: self.local_rank,
            local_ranks: self.local_ranks.unwrap_or(local_ranks),
        }
    }
}

/// Which environment is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RanksFrom {
    /// Whatever launcher there was.
    #[default]
    Any,
    /// This launcher's, whatever the others' variables say.
    Only(Launcher),
    /// None: one rank.
    Nothing,
}

impl RanksFrom {
    /// What can be asked for by name.
    pub const CHOICES: [RanksFrom; 5] = [
        RanksFrom::Only(Launcher::OpenMpi),
        RanksFrom::Only(Launcher::Mpich),
        RanksFrom::Only(Launcher::Torchrun),
        RanksFrom::Only(Launcher::Slurm),
        RanksFrom::Nothing,
    ];

    /// Its name in `--ranks-from`.
    pub fn name(self) -> &'static str {
        match self {
            RanksFrom::Any => "any",
            RanksFrom::Only(launcher) => launcher.name(),
            RanksFrom::Nothing => "none",
        }
    }
}

/// The environment variables of a process.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Environment {
        Environment(variables.into_iter().collect())
    }
}

impl Environment {
    /// Of this process. A variable that is not text is none that a launcher sets.
    pub fn of_process() -> Environment {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(text).collect()
    }

    /// A variable's value; an empty one counts as not set.
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?.trim();
        (!value.is_empty()).then_some(value)
    }

    fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>> {
        let parsed = self.get(name).map(|text| {
            let refused = |_| Error::setting(name, "a whole number that fits", text);
            text.parse().map_err(refused)
        });
        parsed.transpose()
    }

    /// `NAME=value`, for sentences.
    fn shown(&self, name: &str) -> String {
        match self.get(name) {
            Some(value) => format!("{name}={value}"),
            None => format!("no {name}"),
        }
    }

    /// The rank's place.
    ///
    /// `with_mpi` says whether this build has an engine over MPI; ranks that MPI started can then meet over it.
    ///
    /// # Errors
    /// [`Error::Setting`], naming the variables and their values, where a launcher's variables are half set, impossible, or
    /// contradict another launcher's, and where nothing says where several ranks meet.
    pub fn place(&self, from: RanksFrom, with_mpi: bool) -> Result<Place> {
        let claims = match from {
            RanksFrom::Nothing => Vec::new(),
            RanksFrom::Only(launcher) => vec![self.claim(launcher)?.ok_or_else(|| {
                let Names { rank, ranks, .. } = launcher.names();
                Error::setting(
                    format!("--ranks-from {launcher}"),
                    format!("the variables {rank} and {ranks}"),
                    "an environment without them",
                )
            })?],
            RanksFrom::Any => self.claims()?,
        };
        let first = |of: &dyn Fn(&Claim) -> bool| claims.iter().find(|claim| of(claim));
        let chosen = first(&|claim| with_mpi && claim.launcher.is_mpi())
            .or_else(|| first(&|claim| claim.launcher == Launcher::Torchrun))
            .or_else(|| claims.first());
        let Some(claim) = chosen else {
            return Ok(Place::alone());
        };
        Ok(Place {
            launcher: Some(claim.launcher),
            rank: claim.rank,
            ranks: claim.ranks,
            local_rank: claim.local_rank,
            local_ranks: claim.local_ranks,
            meeting: self.meeting(claim, with_mpi)?,
            job: self.job(claim.launcher),
        })
    }
}

/// What one launcher's variables say.
#[derive(Clone, Debug)]
struct Claim {
    launcher: Launcher,
    rank: usize,
    ranks: usize,
    local_rank: usize,
    local_ranks: Option<usize>,
}

impl Environment {
    /// What the launchers say, without those that only started another launcher.
    fn claims(&self) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for launcher in Launcher::ALL {
            // Slurm's own PMI sets hydra's variables but the local one.
            let is_slurms = launcher == Launcher::Mpich
                && self.get("MPI_LOCALRANKID").is_none()
                && self.in_step();
            if !is_slurms {
                claims.extend(self.claim(launcher)?);
            }
        }
        let agents: Option<usize> = self.number("GROUP_WORLD_SIZE")?;
        let inner = claims.clone();
        claims.retain(|outer| !inner.iter().any(|inner| is_nested(inner, outer, agents)));
        for pair in claims.windows(2) {
            self.check_agreement(&pair[0], &pair[1])?;
        }
        Ok(claims)
    }

    /// Whether srun started this process or one above it.
    fn in_step(&self) -> bool {
        self.get("SLURM_STEP_NUM_TASKS").is_some()
    }

    /// One launcher's numbers; `None` where it sets none of them.
    fn claim(&self, launcher: Launcher) -> Result<Option<Claim>> {
        let names = launcher.names();
        let essential = [names.rank, names.ranks, names.local_rank];
        let is_there = match launcher {
            // All others of Slurm's are set in batch scripts too.
            Launcher::Slurm => self.in_step(),
            _ => essential.iter().any(|name| self.get(name).is_some()),
        };
        if !is_there {
            return Ok(None);
        }
        if let Some(missing) = essential.iter().find(|name| self.get(name).is_none()) {
            let set = essential.iter().filter(|name| self.get(name).is_some());
            let set: Vec<String> = set.map(|name| self.shown(name)).collect();
            return Err(Error::setting(
                format!("the environment of {launcher}"),
                format!(
                    "{missing} beside {} (--ranks-from none starts one rank)",
                    set.join(" and ")
                ),
                format!("no {missing}"),
            ));
        }
        let number = |name| Ok::<usize, Error>(self.number(name)?.expect("it was just found"));
        let [rank, ranks, local_rank] = [
            number(names.rank)?,
            number(names.ranks)?,
            number(names.local_rank)?,
        ];
        let local_ranks = match launcher {
            Launcher::Slurm => self.slurm_local_ranks()?,
            _ => self.number(names.local_ranks)?,
        };
        self.check_bound(names.rank, names.ranks, 1)?;
        match local_ranks {
            Some(_) if launcher != Launcher::Slurm => {
                self.check_bound(names.local_rank, names.local_ranks, 1)?;
                self.check_bound(names.local_ranks, names.ranks, 0)?;
            }
            _ => self.check_bound(names.local_rank, names.ranks, 1)?,
        }
        Ok(Some(Claim {
            launcher,
            rank,
            ranks,
            local_rank,
            local_ranks,
        }))
    }

    /// Refuses a number that leaves less than `room` below another: 1 where it counts from 0.
    fn check_bound(&self, small: &str, large: &str, room: usize) -> Result<()> {
        let [one, of] = [small, large].map(|name| self.number::<usize>(name));
        let (one, of) = (one?.unwrap_or_default(), of?.unwrap_or_default());
        if one.checked_add(room).is_some_and(|least| least <= of) {
            return Ok(());
        }
        let want = if room == 0 {
            "at most"
        } else {
            "a number below"
        };
        Err(Error::setting(
            small,
            format!("{want} {}", self.shown(large)),
            one,
        ))
    }

    /// Refuses two launchers that say different things.
    fn check_agreement(&self, one: &Claim, other: &Claim) -> Result<()> {
        let (first, second) = (one.launcher.names(), other.launcher.names());
        let pairs = [
            (one.rank == other.rank, first.rank, second.rank),
            (one.ranks == other.ranks, first.ranks, second.ranks),
            (
                one.local_rank == other.local_rank,
                first.local_rank,
                second.local_rank,
            ),
        ];
        match pairs.into_iter().find(|(agree, ..)| !agree) {
            None => Ok(()),
            Some((_, first, second)) => Err(Error::setting(
                "the environment",
                format!(
                    "one launcher's variables, or --ranks-from {} or {}",
                    one.launcher, other.launcher
                ),
                format!(
                    "{} and {}, which disagree",
                    self.shown(first),
                    self.shown(second)
                ),
            )),
        }
    }

    /// The tasks of this node's step: `4(x2),3` is 4 on each of two nodes and 3 on a third.
    fn slurm_local_ranks(&self) -> Result<Option<usize>> {
        let name = "SLURM_STEP_TASKS_PER_NODE";
        let (Some(text), Some(node)) = (self.get(name), self.number::<usize>("SLURM_NODEID")?)
        else {
            return Ok(None);
        };
        let refused = || Error::setting(name, "counts such as 4(x2),3", text);
        let mut first = 0;
        for part in text.split(',') {
            let (count, nodes) = match part.split_once("(x") {
                Some((count, nodes)) => (count, nodes.strip_suffix(')').ok_or_else(refused)?),
                None => (part, "1"),
            };
            let [count, nodes] = [count, nodes].map(|text| text.parse::<u32>().ok());
            let (Some(count), Some(nodes)) = (count, nodes) else {
                return Err(refused());
            };
            first += nodes as usize;
            if node < first {
                return Ok(Some(count as usize));
            }
        }
        Err(Error::setting(
            format!("{name}={text}"),
            format!("a count for the node {}", self.shown("SLURM_NODEID")),
            format!("{first} nodes"),
        ))
    }

    /// Where the ranks meet.
    fn meeting(&self, claim: &Claim, with_mpi: bool) -> Result<Meeting> {
        if claim.ranks == 1 {
            return Ok(Meeting::Alone);
        }
        if claim.launcher.is_mpi() && with_mpi {
            let host = self.get("MASTER_ADDR").map(str::to_owned);
            return Ok(Meeting::Mpi { host });
        }
        let (mut host, mut port) = (
            self.get("MASTER_ADDR").map(str::to_owned),
            self.number::<u16>("MASTER_PORT")?,
        );
        match claim.launcher {
            Launcher::Slurm => {
                host = host.or(self.slurm_first_host()?);
                port = port.or(self.slurm_port()?);
            }
            // torchrun's agent may hold the port itself.
            Launcher::Torchrun => {
                port = match port {
                    Some(u16::MAX) => {
                        return Err(Error::setting(
                            "MASTER_PORT",
                            "a port below 65535",
                            u16::MAX,
                        ));
                    }
                    port => port.map(|port| port + 1),
                }
            }
            _ => {}
        }
        match (host, port) {
            (Some(host), Some(port)) => Ok(Meeting::Address { host, port }),
            (host, _) => {
                let missing = if host.is_none() {
                    "MASTER_ADDR"
                } else {
                    "MASTER_PORT"
                };
                let names = claim.launcher.names();
                Err(Error::setting(
                    format!("where the {} ranks of {} meet", claim.ranks, claim.launcher),
                    "MASTER_ADDR and MASTER_PORT, the host of rank 0 and a free port there",
                    format!("{} and no {missing}", self.shown(names.ranks)),
                ))
            }
        }
    }

    /// The first host of the step, which is rank 0's: `gpu[07-09,12]` begins with gpu07.
    fn slurm_first_host(&self) -> Result<Option<String>> {
        let name = "SLURM_STEP_NODELIST";
        let Some(list) = self.get(name) else {
            return Ok(None);
        };
        let refused = || Error::setting(name, "a list of hosts such as gpu[07-09,12]", list);
        let mut host = String::new();
        let mut rest = list;
        loop {
            let Some(at) = rest.find(['[', ',', ']']) else {
                host.push_str(rest);
                break;
            };
            host.push_str(&rest[..at]);
            if rest.as_bytes()[at] == b',' {
                break;
            }
            let inside = rest[at..].strip_prefix('[').ok_or_else(refused)?;
            let (range, after) = inside.split_once(']').ok_or_else(refused)?;
            let first = range.split(['-', ',']).next().unwrap_or_default();
            if first.is_empty() || range.contains('[') {
                return Err(refused());
            }
            host.push_str(first);
            rest = after;
        }
        if host.is_empty() {
            Err(refused())
        } else {
            Ok(Some(host))
        }
    }

    /// A port of the step's own, below those that systems hand out: steps of one job that run at once get different ones.
    fn slurm_port(&self) -> Result<Option<u16>> {
        let (job, step) = (
            self.number::<u64>("SLURM_JOB_ID")?,
            self.number::<u64>("SLURM_STEP_ID")?,
        );
        Ok(job.map(|job| {
            let place = (job % 10_000 * 13 + step.unwrap_or_default() % 10_000) % 10_000;
            20_000 + place as u16
        }))
    }

    /// What tells the job from another, by its launcher's own number. A start after a failure is another job.
    fn job(&self, launcher: Launcher) -> String {
        let names: &[&str] = match launcher {
            Launcher::OpenMpi => &["PMIX_NAMESPACE"],
            Launcher::Mpich => &["PMI_ID_JOB", "PMI_JOBID"],
            Launcher::Torchrun => &["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"],
            Launcher::Slurm => &["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"],
        };
        let values = names.iter().map(|name| self.get(name).unwrap_or("-"));
        format!("{launcher} {}", values.collect::<Vec<_>>().join("."))
    }
}

/// Whether the launcher of `outer` started that of `inner`, so that its numbers count agents and not ranks: `srun` with a
/// torchrun a node, or Open MPI's daemons in a job of Slurm. `agents` is torchrun's own count of them.
fn is_nested(inner: &Claim, outer: &Claim, agents: Option<usize>) -> bool {
    match (inner.launcher, outer.launcher) {
        (a, b) if a == b => false,
        (Launcher::Torchrun, _) => agents == Some(outer.ranks),
        (a, Launcher::Slurm) if a.is_mpi() => outer.ranks < inner.ranks,
        _ => false,
    }
}
