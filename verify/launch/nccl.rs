//! The engine over NCCL between processes, on stand-ins for the driver and for NCCL (nccl.cpp): the very calls, one by one and
//! captured, against threads of one process; and the words for what goes wrong.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keel::executor::{CudaExecutor, Executor, cuda};
use keel::ops::{all_gather, exchange, tree_sum};
use keel::program::{CompileOptions, Program};
use keel::ranks::control::{Patience, end_process};
use keel::ranks::join::{Memory, join};
use keel::ranks::launch::RanksFrom;
use keel::ranks::nccl::Library;
use keel::ranks::order::BUCKET;
use keel::ranks::{Collective, Kind, Received, Seat, Sent, Votes};
use keel::tape::{ParameterLayout, Tape, Target};
use keel::tensor::{DType, TensorType};

use super::device::Device;
use super::processes::{as_rank, free_port};
use super::rounds::{received_by_a_thread, rounds, sent};
use crate::cuda::{compile, executing_driver, folder};
use crate::harness::images;

/// Set in children: what they do.
const ACT: &str = "KEEL_VERIFY_NCCL";

/// The folder of the stand-in for NCCL under the one name that NVIDIA's wheels give it.
pub(super) fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("verify/launch/nccl.cpp");
        let text = std::fs::read(&source).expect("it is part of the repository");
        let folder = folder(&format!("nccl-{}", &blake3::hash(&text).to_hex()[..16]));
        let library = folder.join("libnccl.so.2");
        if !library.exists() {
            let partial = folder.join(format!("partial.{}", std::process::id()));
            let arguments = [
                "-fvisibility=hidden",
                &source.to_string_lossy(),
                "-ldl",
                "-lrt",
            ];
            compile(&arguments, &partial);
            std::fs::rename(&partial, &library).expect("the target folder can be written");
        }
        folder
    })
}

/// Settings of the two stand-ins.
#[derive(Clone, Copy, Default)]
struct Settings<'a> {
    cuda: &'a str,
    nccl: &'a str,
}

/// Ranks that do `act`, each with a GPU of its own; `None` where this program was built without the emulator.
fn start(ranks: usize, act: &str, settings: Settings<'_>) -> Option<Vec<Child>> {
    let driver = executing_driver()?;
    let port = free_port();
    let paths = format!("{}:{}", library().display(), driver.display());
    let child = |rank| {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args([
            "--exact",
            "launch::nccl::child",
            "--nocapture",
            "--test-threads=1",
        ]);
        as_rank(&mut command, rank, ranks, port);
        command
            .env(
                "LOCAL_RANK",
                if act == "one GPU" { 0 } else { rank }.to_string(),
            )
            .env(ACT, act)
            .env("LD_LIBRARY_PATH", &paths)
            .env(
                "KEEL_FAKE_CUDA",
                format!("devices={ranks} {}", settings.cuda),
            )
            .env("KEEL_FAKE_NCCL", settings.nccl)
            .env_remove("KEEL_NCCL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("this program starts")
    };
    Some((0..ranks).map(child).collect())
}

fn outcomes(children: Vec<Child>) -> Vec<Output> {
    let wait = |child: Child| child.wait_with_output().expect("it was started");
    children.into_iter().map(wait).collect()
}

fn said(output: &Output) -> String {
    let [one, other] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{one}{other}")
}

/// A rank; nothing in the test's own process.
#[test]
fn child() {
    let Ok(act) = std::env::var(ACT) else {
        return;
    };
    let patience = Patience {
        beat: Duration::from_millis(100),
        step: Duration::from_secs(3),
        load: Duration::from_secs(3),
        ..Patience::default()
    };
    let joined = join(RanksFrom::Any, Memory::Gpu, patience, Box::new(end_process));
    let joined = joined.unwrap_or_else(|problem| {
        println!("refused: {problem}");
        std::process::exit(1);
    });
    let (seat, place) = (joined.seat, joined.place);
    let control = joined.control.expect("several ranks were started");
    let outcome = match &*act {
        "apart" => begin_apart(&seat),
        _ => {
            agree_one_by_one(&seat);
            agree_in_a_graph(&seat);
            refuse_what_is_not_joined(&seat);
            agree_as_a_program(&seat, place.local_rank);
            Ok(())
        }
    };
    if let Err(problem) = outcome {
        control.give_up(&problem);
        println!("failed: {problem}");
        std::process::exit(1);
    }
    control.leave().unwrap();
    drop(seat);
    println!("rank {} of {} agrees", place.rank, place.ranks);
}

/// Every round, one call after the other.
fn agree_one_by_one(seat: &Seat) {
    let (world, rounds) = (seat.world(), rounds(20_261_130, 8));
    let mut want = received_by_a_thread(world.rank, world.ranks, &rounds).into_iter();
    let mut engine = seat.engine().unwrap().lock().unwrap();
    let device = Device::new();
    let stream = device.stream();
    let mut number = 0;
    for round in &rounds {
        let mut begun = Vec::new();
        for collective in round {
            let bytes = sent(world.rank, number, collective.sent(world.ranks));
            number += 1;
            let from = device.allocate(bytes.len());
            let to = device.allocate(collective.received(world.ranks));
            // What is sent is made on the stream that computes: the engine has to wait for it.
            let source = device.allocate(bytes.len());
            device.write(source, &bytes);
            if !bytes.is_empty() {
                device.copy(from, source, bytes.len());
            }
            let ticket = engine
                .begin(*collective, Sent::Device { from, to, stream })
                .unwrap();
            begun.push((ticket, to));
        }
        for (ticket, to) in begun.into_iter().rev() {
            let count = ticket.collective.received(world.ranks);
            engine.finish(ticket, Received::Device { stream }).unwrap();
            assert!(
                device.read(to, count) == want.next().unwrap(),
                "rank {}",
                world.rank
            );
        }
    }
}

/// One of each kind, captured with the copies around them and launched with other bytes each time.
fn agree_in_a_graph(seat: &Seat) {
    const SLICE: usize = 5003;
    let world = seat.world();
    let kinds = [Kind::Exchange, Kind::AllGather];
    let round: Vec<Collective> = kinds
        .iter()
        .map(|kind| Collective {
            kind: *kind,
            slice: SLICE,
        })
        .collect();
    let device = Device::new();
    let stream = device.stream();
    let all = SLICE * world.ranks;
    let places: Vec<[u64; 4]> = kinds
        .iter()
        .map(|_| [0; 4].map(|_| device.allocate(all)))
        .collect();
    let mut engine = seat.engine().unwrap().lock().unwrap();
    let graph = device.capture(|| {
        let begun: Vec<_> = round
            .iter()
            .zip(&places)
            .map(|(collective, [source, from, to, _])| {
                device.copy(*from, *source, all);
                let sent = Sent::Device {
                    from: *from,
                    to: *to,
                    stream,
                };
                engine.begin(*collective, sent).unwrap()
            })
            .collect();
        for (ticket, [_, _, to, result]) in begun.into_iter().zip(&places) {
            engine.finish(ticket, Received::Device { stream }).unwrap();
            device.copy(*result, *to, all);
        }
    });
    let graph = graph.expect("everything that was begun was finished");
    for launch in 0..4 {
        // Numbers as of rounds of their own, so that threads can be asked for the same.
        let rounds = vec![round.clone(); launch + 1];
        let want = received_by_a_thread(world.rank, world.ranks, &rounds);
        for (index, ([source, ..], collective)) in places.iter().zip(&round).enumerate() {
            let number = launch * round.len() + index;
            device.write(
                *source,
                &sent(world.rank, number, collective.sent(world.ranks)),
            );
        }
        graph.launch();
        for (index, [.., result]) in places.iter().enumerate() {
            // Of a round, threads finish the last that was begun first.
            let place = launch * round.len() + round.len() - 1 - index;
            assert!(
                device.read(*result, all) == want[place],
                "launch {launch}, collective {index}"
            );
        }
    }
}

/// A program that sums over ranks and gives all of them the sum, on the executor of GPUs: kernels and collectives in turn.
fn agree_as_a_program(seat: &Seat, ordinal: usize) {
    const ROWS: usize = 37;
    let ranks = seat.world().ranks;
    let tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let mut tape = tape.over_ranks(seat.world(), BUCKET);
    let x = tape.input("x", TensorType::f32([ranks * ROWS, 3]));
    let parts = exchange(&mut tape, x).unwrap();
    let sum = tree_sum(&mut tape, parts, ranks).unwrap();
    let all = all_gather(&mut tape, sum).unwrap();
    tape.output(all, "sum");
    let program = Arc::new(Program::compile(tape, &CompileOptions::new(Target::Cuda)).unwrap());
    let found = cuda::probe_ordinal(ordinal).unwrap();
    let executor = CudaExecutor::with_images(found, 4, images()).unwrap();
    let mut executor = executor.in_precision(DType::F32);
    assert!(
        executor.load(program.clone()).is_err(),
        "it has no engine yet"
    );
    executor.join(seat.engine().unwrap().clone()).unwrap();
    let mut session = executor.load(program).unwrap();
    // Small whole numbers are added exactly in any order.
    let x = |rank: usize, run: usize| {
        let numbers =
            (0..ranks * ROWS * 3).map(move |i| ((i * 7 + rank * 31 + run * 13) % 101) as f32);
        numbers.collect::<Vec<f32>>()
    };
    for run in 0..3 {
        session.write_f32("x", &x(seat.world().rank, run)).unwrap();
        session.run().unwrap();
        let mut want = x(0, run);
        for rank in 1..ranks {
            want.iter_mut()
                .zip(x(rank, run))
                .for_each(|(sum, x)| *sum += x);
        }
        assert!(session.read_f32("sum").unwrap() == want, "run {run}");
    }
}

/// What is begun in a capture and not finished there: the driver refuses the graph.
fn refuse_what_is_not_joined(seat: &Seat) {
    let device = Device::new();
    let stream = device.stream();
    let [from, to] = [0; 2].map(|_| device.allocate(64 * seat.world().ranks));
    let mut engine = seat.engine().unwrap().lock().unwrap();
    let collective = Collective {
        kind: Kind::AllGather,
        slice: 64,
    };
    let mut begun = None;
    let ended = device.capture(|| {
        begun = Some(
            engine
                .begin(collective, Sent::Device { from, to, stream })
                .unwrap(),
        );
    });
    assert_eq!(ended.err(), Some(904), "CUDA_ERROR_STREAM_CAPTURE_UNJOINED");
    // Outside of it the same is whole.
    let ticket = engine
        .begin(collective, Sent::Device { from, to, stream })
        .unwrap();
    engine.finish(ticket, Received::Device { stream }).unwrap();
    engine
        .finish(begun.unwrap(), Received::Device { stream })
        .unwrap();
    device.wait();
}

/// Rank 1 comes to another collective than the others: the next call says so.
fn begin_apart(seat: &Seat) -> Result<(), String> {
    let device = Device::new();
    let stream = device.stream();
    let [from, to] = [0; 2].map(|_| device.allocate(64 * seat.world().ranks));
    let mut engine = seat.engine().unwrap().lock().unwrap();
    let slice = if seat.world().rank == 1 { 32 } else { 64 };
    for _ in 0..2 {
        let collective = Collective {
            kind: Kind::AllGather,
            slice,
        };
        let begun = engine.begin(collective, Sent::Device { from, to, stream });
        let finished = begun.and_then(|ticket| engine.finish(ticket, Received::Device { stream }));
        finished.map_err(|problem| problem.to_string())?;
        device.wait();
    }
    Err("nothing was noticed".to_owned())
}

#[test]
fn ranks_over_nccl_receive_what_threads_receive_one_by_one_and_in_graphs() {
    for (ranks, cuda) in [(2, "late"), (3, "")] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let nccl = format!("log={}", log.path().display());
        let Some(children) = start(ranks, "agree", Settings { cuda, nccl: &nccl }) else {
            return;
        };
        for (rank, output) in outcomes(children).iter().enumerate() {
            let line = format!("rank {rank} of {ranks} agrees");
            assert!(
                output.status.success() && said(output).contains(&line),
                "{}",
                said(output)
            );
        }
        let calls = std::fs::read_to_string(log.path()).unwrap();
        for rank in 0..ranks {
            assert!(
                calls.contains(&format!("communicator of {rank} ends")),
                "{calls}"
            );
        }
    }
}

/// What every rank says where ranks are refused, or fail, together.
fn all_say(act: &str, settings: Settings<'_>, parts: &[&str]) {
    let Some(children) = start(2, act, settings) else {
        return;
    };
    let outcomes = outcomes(children);
    assert!(
        outcomes
            .iter()
            .all(|output| output.status.code() != Some(0)),
        "{outcomes:?}"
    );
    let told: String = outcomes.iter().map(said).collect();
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
}

#[test]
fn what_nccl_cannot_do_is_said_before_a_step() {
    let nccl = |nccl| Settings { nccl, cuda: "" };
    all_say(
        "one GPU",
        Settings::default(),
        &["the GPUs of the ranks: expected one for each, found GPU 0 of "],
    );
    let old = ["libnccl.so.2 is version 2.18.3", "install 2.19.0 or newer"];
    all_say("old", nccl("version=21803"), &old);
    let failed = [
        "NCCL 2.29.0: ncclCommInitRank: unhandled system error",
        "NCCL_DEBUG=INFO",
    ];
    all_say("fail", nccl("fail=ncclCommInitRank:1:2"), &failed);
    let apart = [
        "collective ",
        "remote process exited or there was a network error",
    ];
    all_say("apart", Settings::default(), &apart);
}

#[test]
fn a_collective_that_never_comes_back_ends_all_ranks_in_a_sentence() {
    // The third, after the two that make connections.
    all_say(
        "hang",
        Settings {
            cuda: "",
            nccl: "hang=3:1",
        },
        &["did nothing for 3."],
    );
}

#[test]
fn a_machine_without_nccl_is_told_what_to_install() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "launch::nccl::nccl_is_missing", "--nocapture"])
        .env(ACT, "missing")
        .env("KEEL_NCCL", "/nowhere/libnccl.so.2")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// In a child of its own: which libraries there are is settled when a process starts.
#[test]
fn nccl_is_missing() {
    if std::env::var(ACT).is_ok_and(|act| act == "missing") {
        let problem = Library::load()
            .err()
            .expect("there is no such file")
            .to_string();
        for part in [
            "NCCL: it cannot be loaded (/nowhere/libnccl.so.2: ",
            "KEEL_NCCL",
        ] {
            assert!(problem.contains(part), "{problem}");
        }
    }
}
