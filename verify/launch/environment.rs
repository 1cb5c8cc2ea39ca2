//! From a launcher's variables to a rank's place: every launcher's numbers are understood, and what is half set, impossible
//! or contradictory is refused with the variables and their values.

use proptest::prelude::*;

use keel::ranks::launch::{Environment, Launcher, Meeting, Place, RanksFrom};

type Variables = Vec<(String, String)>;

fn variables(pairs: &[(&str, &dyn ToString)]) -> Variables {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.to_string()))
        .collect()
}

fn place(variables: &Variables) -> Result<Place, String> {
    placed(variables, RanksFrom::Any, false)
}

fn placed(variables: &Variables, from: RanksFrom, with_mpi: bool) -> Result<Place, String> {
    let environment: Environment = variables.iter().cloned().collect();
    environment
        .place(from, with_mpi)
        .map_err(|problem| problem.to_string())
}

/// What a launcher sets for rank `rank` of `hosts` × `per_host` ranks, numbered host by host.
fn set_by(launcher: Launcher, rank: usize, hosts: usize, per_host: usize) -> Variables {
    let (ranks, local) = (hosts * per_host, rank % per_host);
    match launcher {
        Launcher::OpenMpi => variables(&[
            ("OMPI_COMM_WORLD_RANK", &rank),
            ("OMPI_COMM_WORLD_SIZE", &ranks),
            ("OMPI_COMM_WORLD_LOCAL_RANK", &local),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", &per_host),
            ("PMIX_NAMESPACE", &"prterun-node-7@1"),
            ("MASTER_ADDR", &"node-a"),
            ("MASTER_PORT", &29_500),
        ]),
        Launcher::Mpich => variables(&[
            ("PMI_RANK", &rank),
            ("PMI_SIZE", &ranks),
            ("MPI_LOCALRANKID", &local),
            ("MPI_LOCALNRANKS", &per_host),
            ("MASTER_ADDR", &"node-a"),
            ("MASTER_PORT", &29_500),
        ]),
        Launcher::Torchrun => variables(&[
            ("RANK", &rank),
            ("WORLD_SIZE", &ranks),
            ("LOCAL_RANK", &local),
            ("LOCAL_WORLD_SIZE", &per_host),
            ("GROUP_RANK", &(rank / per_host)),
            ("GROUP_WORLD_SIZE", &hosts),
            ("MASTER_ADDR", &"node-a"),
            ("MASTER_PORT", &29_499),
        ]),
        Launcher::Slurm => variables(&[
            ("SLURM_PROCID", &rank),
            ("SLURM_STEP_NUM_TASKS", &ranks),
            ("SLURM_LOCALID", &local),
            ("SLURM_NODEID", &(rank / per_host)),
            (
                "SLURM_STEP_TASKS_PER_NODE",
                &format!("{per_host}(x{hosts})"),
            ),
            ("SLURM_STEP_NODELIST", &"node-[a,b]"),
            ("SLURM_JOB_ID", &4_711_000_001_u64),
            ("SLURM_STEP_ID", &3),
        ]),
    }
}

/// The variables without which a launcher's numbers are not whole.
fn essential(launcher: Launcher) -> [&'static str; 3] {
    match launcher {
        Launcher::OpenMpi => [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ],
        Launcher::Mpich => ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
        Launcher::Torchrun => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
        Launcher::Slurm => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
    }
}

fn launchers() -> impl Strategy<Value = Launcher> {
    prop::sample::select(Launcher::ALL.to_vec())
}

/// A rank of up to 8 × 8: rank, hosts, ranks a host.
fn ranks() -> impl Strategy<Value = (usize, usize, usize)> {
    (1..=8_usize, 1..=8_usize).prop_flat_map(|(hosts, per_host)| {
        (0..hosts * per_host).prop_map(move |rank| (rank, hosts, per_host))
    })
}

fn without(variables: &Variables, name: &str) -> Variables {
    let kept = variables.iter().filter(|(other, _)| other != name);
    kept.cloned().collect()
}

fn with(variables: &Variables, name: &str, value: impl ToString) -> Variables {
    let mut changed = without(variables, name);
    changed.push((name.to_owned(), value.to_string()));
    changed
}

proptest! {
    #[test]
    fn every_launcher_s_numbers_are_understood(
        launcher in launchers(), (rank, hosts, per_host) in ranks(), with_mpi: bool,
    ) {
        let set = set_by(launcher, rank, hosts, per_host);
        let place = placed(&set, RanksFrom::Any, with_mpi).unwrap();
        prop_assert_eq!(place.launcher, Some(launcher));
        prop_assert_eq!((place.rank, place.ranks), (rank, hosts * per_host));
        prop_assert_eq!(place.local_rank, rank % per_host);
        prop_assert_eq!(place.local_ranks, Some(per_host));
        let meeting = match launcher {
            _ if hosts * per_host == 1 => Meeting::Alone,
            Launcher::OpenMpi | Launcher::Mpich if with_mpi => Meeting::Mpi { host: Some("node-a".into()) },
            Launcher::Slurm => Meeting::Address { host: "node-a".into(), port: 20_016 },
            // torchrun's agent may hold its port itself.
            _ => Meeting::Address { host: "node-a".into(), port: 29_500 },
        };
        prop_assert_eq!(place.meeting, meeting);
        prop_assert_eq!(placed(&set, RanksFrom::Nothing, with_mpi).unwrap(), Place::alone());
    }

    #[test]
    fn half_an_environment_is_refused_with_what_is_there_and_what_is_not(
        launcher in launchers(), numbers in ranks(), missing in 0..3_usize,
    ) {
        let (rank, hosts, per_host) = numbers;
        let names = essential(launcher);
        let half = without(&set_by(launcher, rank, hosts, per_host), names[missing]);
        let refused = place(&half);
        // Without a step, Slurm's variables are those of a batch script: one rank.
        if launcher == Launcher::Slurm && missing == 1 {
            prop_assert_eq!(refused.unwrap(), Place::alone());
            return Ok(());
        }
        let said = refused.unwrap_err();
        prop_assert!(said.contains(&format!("no {}", names[missing])), "{}", said);
        prop_assert!(said.contains(&format!("{}=", names[(missing + 1) % 3])), "{}", said);
    }

    #[test]
    fn a_rank_outside_of_its_job_is_refused(launcher in launchers(), numbers in ranks(), beyond in 0..9_usize) {
        let (rank, hosts, per_host) = numbers;
        let [name, all, local] = essential(launcher);
        let set = set_by(launcher, rank, hosts, per_host);
        for (name, least) in [(name, hosts * per_host), (local, hosts * per_host)] {
            let said = place(&with(&set, name, least + beyond)).unwrap_err();
            prop_assert!(said.contains(name) && said.contains(&(least + beyond).to_string()), "{}", said);
        }
        let said = place(&with(&set, all, "-1")).unwrap_err();
        prop_assert!(said.contains(all) && said.contains("-1"), "{}", said);
    }

    #[test]
    fn two_launchers_agree_or_are_refused_with_both(
        pair in prop::sample::subsequence(Launcher::ALL.to_vec(), 2), one in ranks(), other in ranks(),
    ) {
        let set = |launcher, (rank, hosts, per_host)| set_by(launcher, rank, hosts, per_host);
        let agreeing = [set(pair[0], one), without(&set(pair[1], one), "GROUP_WORLD_SIZE")].concat();
        prop_assert!(place(&without(&agreeing, "GROUP_WORLD_SIZE")).is_ok());
        let both = [set(pair[0], one), set(pair[1], other)].concat();
        let both = without(&both, "GROUP_WORLD_SIZE");
        let numbers = |(rank, hosts, per_host)| (rank, hosts * per_host, rank % per_host);
        // Fewer tasks of Slurm than ranks of MPI: the tasks are daemons.
        let are_daemons = pair[0].is_mpi() && pair[1] == Launcher::Slurm && other.1 * other.2 < one.1 * one.2;
        if numbers(one) != numbers(other) && !are_daemons {
            let said = place(&both).unwrap_err();
            prop_assert!(said.contains("disagree"), "{}", said);
            let named = pair.iter().all(|one| essential(*one).iter().any(|name| said.contains(&format!("{name}="))));
            prop_assert!(named, "{}", said);
            for (launcher, (rank, ..)) in [(pair[0], one), (pair[1], other)] {
                let chosen = placed(&both, RanksFrom::Only(launcher), false).unwrap();
                prop_assert_eq!((chosen.launcher, chosen.rank), (Some(launcher), rank));
            }
        }
    }

    /// One srun task a host starts torchrun, which starts the ranks.
    #[test]
    fn a_launcher_that_started_another_counts_agents_and_not_ranks(
        (rank, hosts, per_host) in ranks(),
        outer in prop::sample::select(vec![Launcher::OpenMpi, Launcher::Slurm]),
        with_mpi: bool,
    ) {
        let inner = set_by(Launcher::Torchrun, rank, hosts, per_host);
        let both = [set_by(outer, rank / per_host, hosts, 1), inner.clone()].concat();
        let place = placed(&both, RanksFrom::Any, with_mpi).unwrap();
        prop_assert_eq!(place.launcher, Some(Launcher::Torchrun));
        prop_assert_eq!((place.rank, place.ranks, place.local_rank), (rank, hosts * per_host, rank % per_host));
    }

    #[test]
    fn no_text_in_the_variables_of_slurm_makes_it_panic(list in "[a-z0-9,()x\\[\\]-]{0,24}", tasks in "[0-9,()x]{0,16}") {
        let set = set_by(Launcher::Slurm, 5, 2, 4);
        let set = with(&with(&set, "SLURM_STEP_NODELIST", list), "SLURM_STEP_TASKS_PER_NODE", tasks);
        let _ = place(&set);
    }
}

#[test]
fn without_a_launcher_there_is_one_rank() {
    assert_eq!(place(&Vec::new()).unwrap(), Place::alone());
    // A batch script that no srun started: its tasks are the job's, and it is none of them.
    let script = variables(&[
        ("SLURM_NTASKS", &8),
        ("SLURM_PROCID", &0),
        ("SLURM_LOCALID", &0),
        ("SLURM_NODEID", &0),
        ("SLURM_JOB_ID", &17),
    ]);
    assert_eq!(place(&script).unwrap(), Place::alone());
    // What is set to nothing is not set.
    assert_eq!(
        place(&variables(&[("RANK", &""), ("MASTER_ADDR", &"a")])).unwrap(),
        Place::alone()
    );
}

#[test]
fn srun_for_one_task_is_one_rank_that_says_so() {
    let place = place(&set_by(Launcher::Slurm, 0, 1, 1)).unwrap();
    assert_eq!((place.launcher, place.ranks), (Some(Launcher::Slurm), 1));
    assert_eq!(place.meeting, Meeting::Alone);
}

#[test]
fn slurm_s_own_pmi_is_no_second_launcher() {
    let pmi = variables(&[("PMI_RANK", &5), ("PMI_SIZE", &8)]);
    let both = [set_by(Launcher::Slurm, 5, 2, 4), pmi].concat();
    assert_eq!(place(&both).unwrap().launcher, Some(Launcher::Slurm));
}

#[test]
fn the_first_host_and_the_tasks_of_a_node_are_read_from_slurm_s_lists() {
    let set = set_by(Launcher::Slurm, 5, 2, 4);
    for (list, first) in [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("a,b", "a"),
        ("rack[2,4]-node[01-16].site", "rack2-node01.site"),
    ] {
        let place = place(&with(&set, "SLURM_STEP_NODELIST", list)).unwrap();
        let Meeting::Address { host, .. } = place.meeting else {
            panic!("{list}: {:?}", place.meeting);
        };
        assert_eq!(host, first, "{list}");
    }
    for list in ["gpu[", "gpu]", "[-3]", ","] {
        let said = place(&with(&set, "SLURM_STEP_NODELIST", list)).unwrap_err();
        assert!(
            said.contains("SLURM_STEP_NODELIST") && said.contains(list),
            "{said}"
        );
    }
    for (tasks, count) in [("3,5", 5), ("4(x2)", 4), ("2,6(x3),1", 6)] {
        let place = place(&with(&set, "SLURM_STEP_TASKS_PER_NODE", tasks)).unwrap();
        assert_eq!(place.local_ranks, Some(count), "{tasks}");
    }
    let said = place(&with(&set, "SLURM_STEP_TASKS_PER_NODE", "8")).unwrap_err();
    assert!(
        said.contains("SLURM_STEP_TASKS_PER_NODE=8") && said.contains("SLURM_NODEID=1"),
        "{said}"
    );
}

#[test]
fn ranks_that_nothing_tells_where_to_meet_are_refused() {
    for launcher in [Launcher::OpenMpi, Launcher::Mpich, Launcher::Torchrun] {
        for missing in ["MASTER_ADDR", "MASTER_PORT"] {
            let said = place(&without(&set_by(launcher, 1, 1, 2), missing)).unwrap_err();
            assert!(said.contains(&format!("no {missing}")), "{said}");
        }
    }
    let said = place(&with(
        &set_by(Launcher::Torchrun, 1, 1, 2),
        "MASTER_PORT",
        65_535,
    ))
    .unwrap_err();
    assert!(
        said.contains("MASTER_PORT") && said.contains("65535"),
        "{said}"
    );
    // Slurm's places can be replaced, one by one.
    let chosen = with(&set_by(Launcher::Slurm, 1, 1, 2), "MASTER_PORT", 40_000);
    let meeting = Meeting::Address {
        host: "node-a".into(),
        port: 40_000,
    };
    assert_eq!(place(&chosen).unwrap().meeting, meeting);
}

#[test]
fn a_launcher_that_is_asked_for_has_to_be_there() {
    let set = set_by(Launcher::Torchrun, 1, 1, 2);
    let said = placed(&set, RanksFrom::Only(Launcher::Slurm), false).unwrap_err();
    assert!(
        said.contains("--ranks-from slurm") && said.contains("SLURM_PROCID"),
        "{said}"
    );
}
