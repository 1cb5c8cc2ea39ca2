//! Whole training steps: timed by criterion, profiled op by op, or side by side with PyTorch.
//!
//!     cargo bench --bench steps                                  criterion
//!     cargo bench --bench steps -- --profile [--precision bf16]  where the time of a step goes
//!     cargo bench --bench steps -- --against-pytorch [PYTHON]    both, burst by burst in turn, with ratios; --step STEP: one step
//!     cargo bench --bench steps -- --precisions                  f32 and bf16 in turn, with wall and processor time
//!     steps --one STEP --device cpu|simt|cuda                    one line of JSON, on any device
//!     steps --serve STEP [--precision bf16]                      a burst of steps for each line of input
//!     steps --list-steps DEVICE                                  the steps that the device is timed with

mod compare;
mod lead;
mod peer;
mod precisions;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use keel::executor::Executor;

use keel::executor::{CpuExecutor, Device, Precision, SelectedDevice};
use keel::report::profile_table;
use keel::train::Profile;
use lead::{GPU_STEP, PUBLISHED_STEP, STEPS, load};

/// Steps that are run before any is counted.
const WARM_UP: usize = 2;
/// Steps of one measurement.
const REPEATS: usize = 8;

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
    if let Some(step) = after("--serve") {
        let precision = after("--precision").flatten().map(String::as_str);
        let step = step.expect("--serve is followed by a step's name");
        compare::serve(step, &processor(precision));
        return ExitCode::SUCCESS;
    }
    if let Some(device) = after("--list-steps") {
        STEPS.iter().for_each(|(step, _)| println!("{step}"));
        if device.is_some_and(|device| device == "cuda") {
            println!("{}", GPU_STEP.0);
        }
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--precisions") {
        return match precisions::compare() {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("error: {problem}");
                ExitCode::FAILURE
            }
        };
    }
    if arguments.iter().any(|a| a == "--profile") {
        let precision = after("--precision").flatten().map(String::as_str);
        let selected = processor(precision);
        let steps = STEPS.into_iter().chain([PUBLISHED_STEP]);
        steps.for_each(|(step, _)| profile(step, &selected));
        return ExitCode::SUCCESS;
    }
    if let Some(python) = after("--against-pytorch") {
        let python = python
            .filter(|p| !p.starts_with("--"))
            .map_or("python3", String::as_str);
        let only = after("--step").flatten().map(String::as_str);
        return match compare::compare(python, only) {
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
            lead.run();
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

/// The processor, in f32 or, where asked, in bf16.
fn processor(precision: Option<&str>) -> SelectedDevice {
    let precision = match precision {
        Some("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    let selected = SelectedDevice::new(Device::Cpu, threads(), Some(precision));
    selected.expect("the processor is always there")
}

/// Prints where the time of a step goes.
fn profile(step: &str, selected: &SelectedDevice) {
    let mut lead = load(step, selected);
    let (session, executor) = (lead.session.as_mut(), lead.executor.as_ref());
    let profile = Profile::of_session(session, executor, &lead.stage, REPEATS);
    print!(
        "{}",
        profile_table(&profile.expect("the processor cannot fail"))
    );
}
