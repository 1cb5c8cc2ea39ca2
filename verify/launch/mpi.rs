//! The engine over MPI against threads of one process, byte by byte: this program starts itself under `mpirun` with 2 and 4
//! ranks.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Signal, getpid, kill_process};

use keel::ranks::control::{ANOTHER_RANK, Patience, end_process};
use keel::ranks::join::{Memory, join};
use keel::ranks::launch::{Launcher, Meeting, RanksFrom};

use super::rounds::{received, received_by_a_thread, rounds};

/// Set in children: what they do.
const CHILD: &str = "KEEL_VERIFY_MPI";

/// `ranks` ranks of this program, doing `act`, under the mpirun that there is.
fn mpirun(ranks: usize, act: &str) -> Output {
    let mut command = Command::new("mpirun");
    let said = Command::new("mpirun")
        .arg("--version")
        .output()
        .expect("feature mpi needs mpirun");
    if String::from_utf8_lossy(&said.stdout).contains("Open MPI") {
        // More ranks than cores, and a container's only user.
        command.args(["--oversubscribe", "--allow-run-as-root"]);
    }
    let program = std::env::current_exe().expect("this program has a path");
    command
        .args(["-n", &ranks.to_string()])
        .arg(Path::new(&program))
        .args([
            "--exact",
            "launch::mpi::child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD, act)
        .stdin(Stdio::null())
        .output()
        .expect("mpirun starts")
}

/// A rank under mpirun; nothing in the test's own process.
#[test]
fn child() {
    let Ok(act) = std::env::var(CHILD) else {
        return;
    };
    let end = Box::new(end_process);
    let joined = join(RanksFrom::Any, Memory::Host, Patience::default(), end).unwrap();
    let (place, seat) = (joined.place, joined.seat);
    assert!(place.launcher.is_some_and(Launcher::is_mpi));
    assert!(matches!(place.meeting, Meeting::Mpi { .. }));
    if act == "kill" && place.rank == 1 {
        kill_process(getpid(), Signal::KILL).unwrap();
    }
    let rounds = rounds(20_261_130, 12);
    let found = received(&mut **seat.engine().unwrap().lock().unwrap(), &rounds);
    let want = received_by_a_thread(place.rank, place.ranks, &rounds);
    assert!(
        found == want,
        "rank {} received other bytes than a thread",
        place.rank
    );
    joined.control.unwrap().leave().unwrap();
    println!("rank {} of {} agrees", place.rank, place.ranks);
}

#[test]
fn ranks_under_mpirun_receive_what_threads_receive() {
    for ranks in [2, 4] {
        let output = mpirun(ranks, "agree");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        for rank in 0..ranks {
            let line = format!("rank {rank} of {ranks} agrees");
            assert!(said.contains(&line), "{line} is not in {output:?}");
        }
    }
}

#[test]
fn a_rank_that_is_killed_under_mpirun_ends_all() {
    let output = mpirun(3, "kill");
    // Open MPI ends with the signal's code, MPICH with a rank's.
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| [137, ANOTHER_RANK, 9].contains(&code)),
        "{output:?}"
    );
}
