//! Whole training steps: timed by criterion, profiled op by op, or side by side with PyTorch.
//!
//!     cargo bench --bench steps                                  criterion
//!     cargo bench --bench steps -- --profile                     where the time of a step goes
//!     cargo bench --bench steps -- --against-pytorch [PYTHON]    both, in turn, with ratios
//!     steps --one STEP --device cpu|simt|cuda                    one line of JSON, on any device
//!     steps --list-steps DEVICE                                  the steps that the device is timed with

mod lead;
mod peer;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use keel::executor::Executor;

use keel::executor::{CpuExecutor, Device, SelectedDevice};
use keel::report::profile_table;
use keel::train::Profile;
use lead::{GPU_STEP, STEPS, load};

/// Steps that are run before any is counted.
const WARM_UP: usize = 2;
/// Steps of one measurement.
const REPEATS: usize = 8;
/// Times that each program is started in the comparison.
const ROUNDS: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |flag: &str| {
        arguments
            .iter()
            .position(|a| a == flag)
            .map(|at| arguments.get(at + 1))
    };
    if let Some(step) = after("--one") {
        let step = step.expect("--one is followed by a step's name");
        return match choose(after("--device").flatten().map(String::as_str)) {
            Ok(selected) => {
                println!("{}", measure(step, &selected));
                ExitCode::SUCCESS
            }
            Err(problem) => {
                eprintln!("error: {problem}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(device) = after("--list-steps") {
        STEPS.iter().for_each(|(step, _)| println!("{step}"));
        if device.is_some_and(|device| device == "cuda") {
            println!("{}", GPU_STEP.0);
        }
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--profile") {
        STEPS.iter().for_each(|(step, _)| profile(step));
        return ExitCode::SUCCESS;
    }
    if let Some(python) = after("--against-pytorch") {
        let python = python
            .filter(|p| !p.starts_with("--"))
            .map_or("python3", String::as_str);
        return match compare(python) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("error: {problem}");
                ExitCode::FAILURE
            }
        };
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_secs(8))
        .configure_from_args();
    for (step, _) in STEPS {
        let mut lead = load(step, &SelectedDevice::processor(threads()));
        let mut group = criterion.benchmark_group("step");
        // Elements are floating-point operations: criterion prints them a second.
        group.throughput(Throughput::Elements(
            lead.session.program().cost().flops as u64,
        ));
        group.bench_function(step, |bencher| {
            bencher.iter(|| lead.session.run().expect("the processor cannot fail"));
        });
        group.finish();
    }
    criterion.final_summary();
    ExitCode::SUCCESS
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The device of that name: `cuda` is what the command line takes for it.
fn choose(device: Option<&str>) -> keel::error::Result<SelectedDevice> {
    let device = match device {
        None | Some("cpu") => Device::Cpu,
        Some("simt") => Device::Simt,
        Some("cuda") => Device::Cuda,
        Some(other) => {
            return Err(keel::error::Error::setting(
                "--device",
                "cpu, simt or cuda",
                other,
            ));
        }
    };
    SelectedDevice::new(device, threads(), None)
}

/// The fastest the processor can go, flop/s.
fn peak_flops() -> f64 {
    let executor = CpuExecutor::new(0, threads()).expect("threads can be had");
    executor.peak_flops()
}

/// The most memory this process has had, in MiB.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// One process's measurement of a step, as a line of JSON.
fn measure(step: &str, selected: &SelectedDevice) -> serde_json::Value {
    let before = peak_memory();
    let mut lead = load(step, selected);
    let mut times: Vec<f64> = (0..WARM_UP + REPEATS)
        .map(|_| {
            let start = Instant::now();
            lead.session.run().expect("a step runs");
            // On a GPU the step is done when something of it has been read.
            lead.session
                .read_f32("gradient_norm")
                .expect("every step has it");
            start.elapsed().as_secs_f64() * 1e3
        })
        .skip(WARM_UP)
        .collect();
    times.sort_by(f64::total_cmp);
    let flops = lead.session.program().cost().flops;
    let peak = selected.describe().starts_with("cpu").then(peak_flops);
    let median = times[times.len() / 2];
    serde_json::json!({
        "kind": "step",
        "step": step,
        "device": lead.executor.describe(),
        "threads": threads(),
        "median_ms": median,
        "min_ms": times[0],
        "max_ms": times[times.len() - 1],
        "gflop": flops / 1e9,
        "gflop_per_s": flops / median / 1e6,
        "share_of_peak": peak.map(|peak| flops / (median / 1e3) / peak),
        "rss_before_mib": before,
        "rss_peak_mib": peak_memory(),
        "planned_mib": lead.planned_bytes as f64 / (1 << 20) as f64,
    })
}

/// Prints where the time of a step goes.
fn profile(step: &str) {
    let mut lead = load(step, &SelectedDevice::processor(threads()));
    let (session, executor) = (lead.session.as_mut(), lead.executor.as_ref());
    let profile = Profile::of_session(session, executor, &lead.stage, REPEATS);
    print!(
        "{}",
        profile_table(&profile.expect("the processor cannot fail"))
    );
}

/// Runs Keel and PyTorch in turn and prints both with the ratio.
fn compare(python: &str) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|problem| problem.to_string())?;
    println!(
        "| step | Keel f32 | PyTorch eager f32 | ratio | tuned allocator | ratio | eager bf16 | ratio | peak memory: Keel (plan) | PyTorch |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (step, _) in STEPS {
        let mut keel = Vec::new();
        let mut peers: [Vec<serde_json::Value>; 3] = Default::default();
        for _ in 0..ROUNDS {
            keel.push(run(Command::new(&own).args(["--one", step]))?);
            for (form, flag) in peers
                .iter_mut()
                .zip([None, Some("--tuned"), Some("--bf16")])
            {
                let repeats = REPEATS.to_string();
                let warm_up = WARM_UP.to_string();
                let mut command = peer::peer(python, "steps.py");
                command.args([step, "--warm-up", &warm_up, "--repeats", &repeats]);
                form.push(run(command.args(flag))?);
            }
        }
        let number = |rows: &[serde_json::Value], key: &str| {
            let mut values: Vec<f64> = rows.iter().filter_map(|row| row[key].as_f64()).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let ours = number(&keel, "median_ms");
        let [eager, tuned, half] = [0, 1, 2].map(|form| number(&peers[form], "median_ms"));
        println!(
            "| {step} | {ours:.0} ms, {:.0} % of peak | {eager:.0} ms | **{:.2}×** | {tuned:.0} ms | {:.2}× | {half:.0} ms | {:.2}× | {:.0} MiB ({:.0} MiB) | {:.0} MiB |",
            100.0 * number(&keel, "share_of_peak"),
            eager / ours,
            tuned / ours,
            half / ours,
            number(&keel, "rss_peak_mib"),
            number(&keel, "planned_mib"),
            number(&peers[0], "rss_peak_mib"),
        );
    }
    Ok(())
}

/// Runs a program and reads the last line of JSON it prints.
fn run(command: &mut Command) -> Result<serde_json::Value, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|problem| {
        format!(
            "{name}: {problem}; give the python of an environment with bench/peers/requirements.txt"
        )
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    match (output.status.success(), line) {
        (true, Some(line)) => {
            serde_json::from_str(line).map_err(|problem| format!("{name}: {problem}"))
        }
        _ => Err(format!(
            "{name} failed: {}; it needs what bench/peers/requirements.txt names",
            String::from_utf8_lossy(&output.stderr)
                .lines()
                .last()
                .unwrap_or("no output")
        )),
    }
}
