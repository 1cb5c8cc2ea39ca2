//! The engine over MPI against threads of one process, byte by byte: this program starts itself under `mpirun` with 2 and 4
//! ranks.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Signal, getpid, kill_process};

use keel::ranks::control::{ANOTHER_RANK, Patience, end_process};
use keel::ranks::join::{Memory, join};
use keel::ranks::launch::{Launcher, Meeting, RanksFrom};

use keel::train::stage_checkpoints;

use super::rounds::{received, received_by_a_thread, rounds};
use crate::command::tensors;

/// Set in children: what they do.
const CHILD: &str = "KEEL_VERIFY_MPI";

/// `ranks` processes of a program, under the mpirun that there is.
fn under_mpirun(ranks: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    let said = Command::new("mpirun").arg("--version").output();
    let said = said.expect("the feature mpi needs mpirun");
    if String::from_utf8_lossy(&said.stdout).contains("Open MPI") {
        // More ranks than cores, and a container's only user.
        command.args(["--oversubscribe", "--allow-run-as-root"]);
    }
    command
        .args(["-n", &ranks.to_string()])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// `ranks` ranks of this program that do `act`.
fn mpirun(ranks: usize, act: &str) -> Output {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = under_mpirun(ranks, &program);
    command.args([
        "--exact",
        "launch::mpi::child",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(CHILD, act).output().expect("mpirun starts")
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

/// Trains in `folder` with `args`, under mpirun where ranks are processes.
fn train(folder: &Path, processes: Option<usize>, more: &[&str]) {
    let program = env!("CARGO_BIN_EXE_keel");
    let mut command = match processes {
        Some(ranks) => under_mpirun(ranks, Path::new(program)),
        None => Command::new(program),
    };
    let args = [
        "train",
        "--recipe",
        "tiny",
        "--max-steps",
        "2",
        "--no-evaluation",
        "--device",
        "cpu",
    ];
    let output = command
        .current_dir(folder)
        .args(args)
        .args(more)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn training_under_mpirun_gives_the_bits_of_training_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), Some(2), &["--out", "processes"]);
    train(folder.path(), None, &["--ranks", "2", "--out", "threads"]);
    let stages = |run: &str| stage_checkpoints(&folder.path().join(run)).unwrap();
    let (processes, threads) = (stages("processes"), stages("threads"));
    assert!(threads.len() >= 4 && processes.len() == threads.len());
    for ((stage, found), (_, want)) in processes.iter().zip(&threads) {
        assert!(tensors(found) == tensors(want), "{stage} has other bits");
    }
}
