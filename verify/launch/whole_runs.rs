//! Whole runs that lose their network or stand still: ranks as processes on the stand-ins for the driver and for NCCL, which join,
//! train and save as `keel train` does, on two hosts where the machine gives network namespaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use keel::ranks::control::ANOTHER_RANK;

use super::gpu_runs::{OUT, PATIENCE, QUIET, on_stand_ins};
use super::processes::free_port;
use crate::command::{checkpoint, tensors};
use crate::cuda::executing_driver;

/// How much later than their patience everyone has to be gone, on a machine that does other things too.
const SLACK: Duration = Duration::from_secs(15);

/// A checkpoint inside the first stage, and one after which the run is cut off.
fn saved(run: &Path) -> PathBuf {
    checkpoint(run, "1-warm-up.step-2")
}

/// What a rank said as it ended, in one sentence.
#[track_caller]
fn assert_said(text: &str, want: &str) {
    let sentences = text.lines().filter(|line| line.starts_with("error: "));
    let sentences: Vec<&str> = sentences.collect();
    assert_eq!(sentences.len(), 1, "{text}");
    assert!(sentences[0].contains(want), "{want:?} is not in {text}");
    assert!(
        sentences[0].ends_with("go on from the newest checkpoint with --resume"),
        "{text}"
    );
}

/// Two hosts: this one and another network namespace, joined by a cable, each with a name, a rank and a GPU of its own. `$1` is the
/// program, `$2` where ranks write what they say, `$3` the file after which the cable is pulled; the rest is the program's.
/// Prints the exit codes, and the seconds from the cut to the last of them.
const TWO_HOSTS: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip netns add b || { echo no namespaces; exit 0; }
ip link add va type veth peer name vb netns b || { echo no cable; exit 0; }
ip addr add 10.77.0.1/24 dev va && ip link set va up && ip link set lo up
ip -n b addr add 10.77.0.2/24 dev vb && ip -n b link set vb up && ip -n b link set lo up
hostname node-a || { echo no names; exit 0; }
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29600 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2
program=$1 said=$2 saved=$3; shift 3
RANK=0 LOCAL_RANK=0 "$program" "$@" > /dev/null 2> "$said/0" & first=$!
RANK=1 LOCAL_RANK=1 ip netns exec b unshare --uts sh -c 'hostname node-b && exec "$@"' sh "$program" "$@" > /dev/null 2> "$said/1" & second=$!
until [ -e "$saved" ]; do kill -0 $first && kill -0 $second || break; sleep 0.05; done 2> /dev/null
ip link set va down; cut=$(date +%s)
for one in $first $second; do code=0; wait $one || code=$?; echo $code; done
echo $(($(date +%s) - cut))
"#;

#[test]
fn a_run_whose_network_is_cut_between_two_hosts_ends_on_both_with_a_whole_checkpoint() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut script = Command::new("unshare");
    // The script gives ranks their places.
    on_stand_ins(&mut script, 0, free_port(), driver, "");
    script
        .args(["-Urn", "--mount", "--uts", "sh", "-c", TWO_HOSTS, "sh"])
        .arg(std::env::current_exe().unwrap())
        .arg(folder.path())
        .arg(saved(&run))
        .args(QUIET.split(' '))
        .env(OUT, &run)
        .env(PATIENCE, "3");
    let Ok(output) = script.output() else {
        eprintln!("not run: this machine has no unshare");
        return;
    };
    let codes = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || codes.starts_with("no ") {
        eprintln!("not run: this machine gives no network namespaces: {codes}{output:?}");
        return;
    }
    let said = |rank: usize| {
        let text = fs::read_to_string(folder.path().join(rank.to_string()));
        text.unwrap()
    };
    let want = ANOTHER_RANK.to_string();
    let told: Vec<&str> = codes.lines().collect();
    let [first, second, seconds] = told[..] else {
        panic!("{output:?}");
    };
    let all = format!("{output:?}\n{}\n{}", said(0), said(1));
    assert_eq!([first, second], [&want, &want], "{all}");
    let seconds: u64 = seconds.parse().unwrap();
    assert!(Duration::from_secs(seconds) < SLACK, "{seconds} s");
    for (rank, lost) in [(0, "rank 1 (node-b, GPU 1)"), (1, "rank 0 (node-a, GPU 0)")] {
        assert_said(&said(rank), &format!("nothing was heard of {lost} for "));
    }
    assert!(!tensors(&saved(&run)).is_empty());
}

#[test]
fn a_run_that_stands_still_longer_than_patience_ends_on_all_ranks() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (run, port) = (folder.path().join("run"), free_port());
    let began = Instant::now();
    let ranks = [0, 1].map(|rank| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        on_stand_ins(&mut command, rank, port, driver, "");
        command
            .args(QUIET.split(' '))
            .env(OUT, &run)
            .env(PATIENCE, "3")
            // Of a step behind the checkpoint, by the collectives of a step.
            .env("KEEL_FAKE_NCCL", "hang=60:1");
        command.spawn().expect("this program starts")
    });
    let outcomes: [Output; 2] = ranks.map(|rank| rank.wait_with_output().unwrap());
    for outcome in &outcomes {
        assert_eq!(outcome.status.code(), Some(ANOTHER_RANK), "{outcome:#?}");
        let said = String::from_utf8_lossy(&outcome.stderr);
        assert_said(&said, " did nothing for ");
    }
    // Patience is ten steps where these are slow: on a machine that does other things too.
    assert!(began.elapsed() < 8 * SLACK, "{:?}", began.elapsed());
    assert!(!tensors(&saved(&run)).is_empty());
}
