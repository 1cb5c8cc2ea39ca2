//! Ranks as processes that die, hang, are stopped, cut off and delayed: all others end within a stated time, with one sentence that
//! names the rank, its host and the cause, and with the exit code that launchers start again for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, kill_process};

use keel::ranks::Votes;
use keel::ranks::control::{ANOTHER_RANK, Control, Door, Patience, Phase, Wait, end_process};
use keel::ranks::launch::{Environment, RanksFrom};

use keel::random::Stream;

/// Set in children: what their rank does, as `step:act`.
const ACT: &str = "KEEL_VERIFY_RANK";

/// Steps of a child that nothing happens to, where the test does not say otherwise.
const STEPS: u64 = 12;

/// In its place.
const MORE_STEPS: &str = "KEEL_VERIFY_STEPS";

/// How long silence and standing still may last in these tests, and how much later than that everyone has to be gone. Processes of
/// a machine that does other things too are slow to start and to wake.
const SILENCE: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_secs(10);

/// How long children wait for one another, where the test does not say otherwise.
const JOINING: &str = "KEEL_VERIFY_JOINING";

fn joining() -> Duration {
    let seconds = std::env::var(JOINING).map_or(60, |text| text.parse().expect("seconds"));
    Duration::from_secs(seconds)
}

fn patience() -> Patience {
    Patience {
        beat: Duration::from_millis(100),
        silence: SILENCE,
        step: SILENCE,
        joining: joining(),
        comparing: Duration::from_millis(500),
        ..Patience::default()
    }
}

/// The rank of a child process; nothing in the test's own.
#[test]
fn child() {
    let Ok(act) = std::env::var(ACT) else {
        return;
    };
    let (at, act) = act.split_once(':').expect("a step and an act");
    let at: u64 = at.parse().expect("a step");
    let place = Environment::of_process()
        .place(RanksFrom::Any, false)
        .unwrap();
    let host = std::env::var("KEEL_VERIFY_HOST").expect("a name for this rank's host");
    let door = Door::of(&place).unwrap();
    let control = Control::join(&place, door, &host, patience(), Box::new(end_process)).unwrap();
    let control = Arc::new(control);
    let mut random = Stream::of_seed(place.rank as u64);
    let steps = std::env::var(MORE_STEPS).map_or(STEPS, |text| text.parse().expect("a number"));
    for step in 0..steps {
        control.progress().enter(Phase::Data, Some(step));
        if step == at {
            match act {
                "kill" => kill_process(getpid(), Signal::KILL).unwrap(),
                "stop" => kill_process(getpid(), Signal::STOP).unwrap(),
                "hang" => std::thread::sleep(Duration::from_secs(600)),
                "err" => {
                    control.give_up_with("no space is left on its disk", 1);
                    std::process::exit(1);
                }
                // Its engine waits for what never comes.
                "engine" => control.progress().waiting(Wait::Collective(3), || {
                    std::thread::sleep(Duration::from_secs(600));
                }),
                "exit" => std::process::exit(0),
                _ => {}
            }
        }
        if act == "slow" {
            std::thread::sleep(Duration::from_millis(500));
        }
        if act == "late" {
            std::thread::sleep(Duration::from_millis(random.below(40) as u64));
        }
        control.progress().enter(Phase::Step, Some(step));
        if act == "straggle" {
            std::thread::sleep(Duration::from_millis(250));
        }
        let parts = control.gather("a step", &step.to_le_bytes()).unwrap();
        assert!(parts.iter().all(|part| *part == step.to_le_bytes()));
        println!("step {step}");
    }
    for line in control.take_warnings() {
        println!("warning: {line}");
    }
    control.leave().unwrap();
    println!("left");
}

/// A port that nothing listens at.
pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Sets what torchrun sets for a rank; rank 0's door is at `port`.
pub(super) fn as_rank(command: &mut Command, rank: usize, ranks: usize, port: u16) {
    command
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", ranks.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("LOCAL_WORLD_SIZE", ranks.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        // One below the door: torchrun's agent may hold its port itself.
        .env("MASTER_PORT", (port - 1).to_string());
}

/// A rank as a process that does `act`.
fn rank(rank: usize, ranks: usize, port: u16, act: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([
        "--exact",
        "launch::processes::child",
        "--nocapture",
        "--test-threads=1",
    ]);
    as_rank(&mut command, rank, ranks, port);
    command
        .env(ACT, act)
        .env(
            "KEEL_VERIFY_HOST",
            format!("node-{}", ["a", "b"][rank / 2 % 2]),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Four ranks, of which `odd` does `act` and the others nothing special.
struct Job {
    ranks: Vec<Child>,
}

impl Job {
    fn start(odd: usize, act: &str) -> Job {
        let port = free_port();
        let acts = (0..4).map(|one| if one == odd { act } else { "0:nothing" });
        let ranks = acts.enumerate().map(|(one, act)| {
            let started = rank(one, 4, port, act).spawn();
            started.expect("this program starts")
        });
        Job {
            ranks: ranks.collect(),
        }
    }

    /// The outcome of every rank but `odd`, which is killed once they have ended, and how long they took.
    fn others(mut self, odd: usize) -> (Vec<Output>, Duration) {
        let began = Instant::now();
        let mut stopped = self.ranks.remove(odd);
        let outcomes: Vec<Output> = self
            .ranks
            .into_iter()
            .map(|one| one.wait_with_output().unwrap())
            .collect();
        let time = began.elapsed();
        let _ = stopped.kill();
        let _ = stopped.wait();
        (outcomes, time)
    }
}

/// Asserts that all ended with the code of another rank's end, and one sentence with all of `parts`.
#[track_caller]
fn assert_ended(outcomes: &[Output], parts: &[&str]) {
    for outcome in outcomes {
        let said = String::from_utf8_lossy(&outcome.stderr);
        let sentences: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(outcome.status.code(), Some(ANOTHER_RANK), "{said}");
        assert_eq!(sentences.len(), 1, "{said}");
        for part in parts {
            assert!(sentences[0].contains(part), "{part:?} is not in {said}");
        }
    }
}

#[test]
fn a_rank_that_is_killed_is_named_by_all_others() {
    for (odd, step) in [(3, 5), (0, 2)] {
        let (outcomes, time) = Job::start(odd, &format!("{step}:kill")).others(odd);
        let host = ["a", "b"][odd / 2];
        assert_ended(&outcomes, &[&format!("rank {odd} (node-{host}) is gone")]);
        assert!(time < SLACK, "{time:?}");
    }
}

#[test]
fn a_rank_that_is_stopped_is_named_once_patience_ends() {
    let jobs = [2, 0].map(|odd| (odd, Job::start(odd, "4:stop")));
    for (odd, job) in jobs {
        let (outcomes, time) = job.others(odd);
        let host = ["a", "b"][odd / 2];
        let want = format!("nothing was heard of rank {odd} (node-{host}) for 3.");
        assert_ended(&outcomes, &[&want]);
        assert!(time < SILENCE + SLACK, "{time:?}");
    }
}

#[test]
fn a_rank_that_hangs_with_its_heart_beating_is_named_with_what_it_does() {
    let samples = [
        "rank 1 (node-a) did nothing for 3.",
        "at step 4, while it makes samples; ranks 0, 2, 3 wait in vote 5",
    ];
    let engine = ["rank 1 waits in collective 3, ranks 0, 2, 3 wait in vote 5 for 3."];
    let cases: [(&str, &[&str]); 2] = [("4:hang", &samples), ("4:engine", &engine)];
    let jobs = cases.map(|(act, parts)| (Job::start(1, act), parts));
    for (job, parts) in jobs {
        let (outcomes, time) = job.others(1);
        assert_ended(&outcomes, parts);
        assert!(time < SILENCE + SLACK, "{time:?}");
    }
}

#[test]
fn a_rank_that_fails_is_quoted_and_ends_with_its_own_code() {
    let port = free_port();
    let acts = ["0:nothing", "3:err", "0:nothing"];
    let start = |(one, act): (usize, &&str)| rank(one, 3, port, act).spawn().unwrap();
    let ranks: Vec<Child> = acts.iter().enumerate().map(start).collect();
    let outcomes: Vec<Output> = ranks
        .into_iter()
        .map(|one| one.wait_with_output().unwrap())
        .collect();
    assert_eq!(outcomes[1].status.code(), Some(1));
    let others = [outcomes[0].clone(), outcomes[2].clone()];
    assert_ended(
        &others,
        &["rank 1 (node-a) ended: no space is left on its disk"],
    );
}

/// Ranks that are late by turns, each by what its seed says, are waited for.
#[test]
fn ranks_that_are_late_are_waited_for() {
    let port = free_port();
    let start = |one| rank(one, 4, port, "0:late").spawn().unwrap();
    let ranks: Vec<Child> = (0..4).map(start).collect();
    for one in ranks {
        let outcome = one.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&outcome.stdout);
        assert!(
            outcome.status.success() && said.contains("left"),
            "{outcome:?}"
        );
    }
}

/// At random moments, from before they meet until after they left.
#[test]
fn kills_at_random_moments_leave_nobody_waiting() {
    let kills: u64 = std::env::var("KEEL_KILLS").map_or(3, |text| text.parse().unwrap());
    for seed in 0..kills {
        let mut random = Stream::of_seed(seed);
        let odd = random.below(4);
        let port = free_port();
        let start = |one| {
            rank(one, 4, port, "0:late")
                .env(JOINING, "8")
                .spawn()
                .unwrap()
        };
        let ranks: Vec<Child> = (0..4).map(start).collect();
        std::thread::sleep(Duration::from_millis(random.below(500) as u64));
        let signal = if random.below(2) == 0 {
            Signal::KILL
        } else {
            Signal::TERM
        };
        let pid = Pid::from_child(&ranks[odd]);
        kill_process(pid, signal).unwrap();
        let began = Instant::now();
        for (one, rank) in ranks.into_iter().enumerate() {
            let outcome = rank.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
            let is_fine = outcome.status.success()
                || one == odd
                // Before they met, a rank that does not come ends the meeting.
                || outcome.status.code() == Some(101) && said.contains("within")
                || outcome.status.code() == Some(ANOTHER_RANK) && said.contains(&format!("rank {odd} "));
            assert!(
                is_fine,
                "seed {seed}, rank {one} of a job that lost {odd}: {outcome:?}"
            );
        }
        assert!(
            began.elapsed() < Duration::from_secs(60) + SLACK,
            "seed {seed}: {:?}",
            began.elapsed()
        );
    }
}

/// Passes on what comes, until it is cut: then everything stays in it and nothing says so, as in a network that is lost.
fn pass_on(from: TcpStream, to: TcpStream, is_cut: Arc<AtomicBool>) {
    let (mut from, mut to) = (from, to);
    let mut bytes = [0; 4096];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 || !is_cut.load(Ordering::Relaxed) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    if !is_cut.load(Ordering::Relaxed) {
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_connection_that_is_cut_is_told_at_both_ends() {
    let port = free_port();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let through = door.local_addr().unwrap().port();
    let is_cut = Arc::new(AtomicBool::new(false));
    let cut = is_cut.clone();
    let mut far = rank(2, 3, through, "6:hang").spawn().unwrap();
    let near: Vec<Child> = (0..2)
        .map(|one| rank(one, 3, port, "0:nothing").spawn().unwrap())
        .collect();
    std::thread::spawn(move || {
        for inside in door.incoming().flatten() {
            // Until rank 0 listens, nobody is there.
            let Ok(outside) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            let copies = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
            let (one, other) = (cut.clone(), cut.clone());
            std::thread::spawn(move || pass_on(inside, outside, one));
            std::thread::spawn(move || pass_on(copies.1, copies.0, other));
        }
    });
    // The far rank hangs in its seventh step: the others wait for it by now, or will.
    std::thread::sleep(Duration::from_secs(1));
    is_cut.store(true, Ordering::Relaxed);
    let outcomes: Vec<Output> = near
        .into_iter()
        .map(|one| one.wait_with_output().unwrap())
        .collect();
    let far_said = {
        let outcome = far
            .try_wait()
            .unwrap()
            .unwrap_or_else(|| far.wait().unwrap());
        let mut said = String::new();
        far.stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (outcome.code(), said)
    };
    for outcome in &outcomes {
        let said = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(ANOTHER_RANK), "{said}");
        assert!(said.contains("rank 2 (node-b)"), "{said}");
    }
    assert_eq!(far_said.0, Some(ANOTHER_RANK), "{}", far_said.1);
    assert!(
        far_said.1.contains("nothing was heard of rank 0 (node-a)"),
        "{}",
        far_said.1
    );
}

/// What a script prints that makes a network of its own for this program's ranks, which write into `folder`. Nothing where the machine
/// gives no such network, which is said.
fn in_a_network(script: &str, folder: &Path) -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(["-Urn", "--mount", "sh", "-c", script, "sh"]);
    command.arg(std::env::current_exe().unwrap()).arg(folder);
    let Ok(output) = command.output() else {
        eprintln!("not run: this machine has no unshare");
        return None;
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || told.starts_with("no ") {
        eprintln!("not run: this machine gives no such network: {told}{output:?}");
        return None;
    }
    Some(told)
}

/// Two hosts: this one and another network namespace, joined by a cable. `$1` is the program; ranks 1 and 2 are over there.
const TWO_HOSTS: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip netns add b || { echo no namespaces; exit 0; }
ip link add va type veth peer name vb netns b || { echo no cable; exit 0; }
ip addr add 10.77.0.1/24 dev va && ip link set va up && ip link set lo up
ip -n b addr add 10.77.0.2/24 dev vb && ip -n b link set vb up
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29600 WORLD_SIZE=3 LOCAL_WORLD_SIZE=2 KEEL_VERIFY_RANK=0:slow
run() { "$@" launch::processes::child --exact --nocapture --test-threads=1; }
RANK=0 LOCAL_RANK=0 KEEL_VERIFY_HOST=node-a run "$1" > "$2/0" 2>&1 & first=$!
RANK=1 LOCAL_RANK=0 KEEL_VERIFY_HOST=node-b run ip netns exec b "$1" > "$2/1" 2>&1 & second=$!
RANK=2 LOCAL_RANK=1 KEEL_VERIFY_HOST=node-b run ip netns exec b "$1" > "$2/2" 2>&1 & third=$!
until grep -q 'step 1' "$2/0" "$2/1"; do sleep 0.05; done
ip link set va down
for one in $first $second $third; do code=0; wait $one || code=$?; echo $code; done
"#;

/// As [`TWO_HOSTS`], joined by a line on which packets are late and lost, until all have left: what it is like comes first. Where the
/// system cannot delay, a line of 64 kbit/s holds up what it cannot carry, and drops what it cannot hold.
const BAD_LINE: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip netns add b || { echo no namespaces; exit 0; }
ip link add va type veth peer name vb netns b || { echo no cable; exit 0; }
ip addr add 10.77.0.1/24 dev va && ip link set va up && ip link set lo up
ip -n b addr add 10.77.0.2/24 dev vb && ip -n b link set vb up
late='netem delay 20ms 10ms loss 5%' narrow='tbf rate 64kbit burst 1600 limit 3200'
for line in "$late" "$narrow" none; do
  [ "$line" = none ] && { echo no bad line; exit 0; }
  tc qdisc add dev va root $line 2> /dev/null && tc -n b qdisc add dev vb root $line && break
done
echo "$line"
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29600 WORLD_SIZE=3 LOCAL_WORLD_SIZE=2 KEEL_VERIFY_STEPS=40
run() { "$@" launch::processes::child --exact --nocapture --test-threads=1; }
RANK=0 LOCAL_RANK=0 KEEL_VERIFY_RANK=0:nothing KEEL_VERIFY_HOST=node-a run "$1" > "$2/0" 2>&1 & first=$!
RANK=1 LOCAL_RANK=0 KEEL_VERIFY_RANK=0:nothing KEEL_VERIFY_HOST=node-b run ip netns exec b "$1" > "$2/1" 2>&1 & second=$!
RANK=2 LOCAL_RANK=1 KEEL_VERIFY_RANK=0:straggle KEEL_VERIFY_HOST=node-b run ip netns exec b "$1" > "$2/2" 2>&1 & third=$!
for one in $first $second $third; do code=0; wait $one || code=$?; echo $code; done
"#;

#[test]
fn a_line_that_is_late_and_loses_packets_ends_no_rank_and_the_slow_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let Some(told) = in_a_network(BAD_LINE, folder.path()) else {
        return;
    };
    let said = |rank: usize| std::fs::read_to_string(folder.path().join(rank.to_string())).unwrap();
    let all: Vec<String> = (0..3).map(said).collect();
    let codes: Vec<&str> = told.lines().skip(1).collect();
    assert_eq!(codes, ["0", "0", "0"], "{told}{all:#?}");
    for said in &all {
        // Each has held what came of all others in every step to what was sent.
        assert_eq!(said.matches("step ").count(), 40, "{said}");
        assert!(said.contains("\nleft\n"), "{said}");
    }
    let warned = "warning: the other ranks wait for rank 2 (node-b): ";
    assert!(all[0].contains(warned), "{all:#?}");
}

#[test]
fn a_cable_that_is_pulled_between_two_hosts_is_told_on_both() {
    let folder = tempfile::tempdir().unwrap();
    let Some(codes) = in_a_network(TWO_HOSTS, folder.path()) else {
        return;
    };
    assert_eq!(
        codes.lines().collect::<Vec<_>>(),
        ["75", "75", "75"],
        "{codes}"
    );
    let said = |rank: usize| {
        let text = std::fs::read_to_string(folder.path().join(rank.to_string())).unwrap();
        let sentences = text.lines().filter(|line| line.starts_with("error: "));
        sentences.map(str::to_owned).collect::<Vec<_>>()
    };
    for (rank, lost) in [
        (0, "ranks 1, 2 (node-b)"),
        (1, "rank 0 (node-a)"),
        (2, "rank 0 (node-a)"),
    ] {
        let sentences = said(rank);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        let want = format!("nothing was heard of {lost} for 3.");
        assert!(
            sentences[0].contains(&want),
            "{want} is not in {sentences:?}"
        );
    }
}
