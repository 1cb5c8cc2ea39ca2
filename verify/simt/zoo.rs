//! The zoo of cuda/simt/zoo: small kernels with one mistake each. The plain build must catch all but a few in at least one
//! of its runs, by a report or by a wrong result; the checked build must report every one in every run. The clean kernels
//! must give the right result in every run of both.

use super::emulator;
use keel::error::Result;
use keel::executor::simt::{Argument, CopyTiming, Element, Emulator, Options, Schedule};
use std::time::Duration;

const THREADS: usize = 128;

/// What the plain build owes.
#[derive(Clone, Copy, PartialEq)]
enum Plain {
    /// A report, in every run.
    Report,
    /// A report or a wrong result, in some run.
    Sometimes,
    /// Nothing: only the checked build can see it.
    Blind,
}
use Plain::{Blind, Report, Sometimes};

/// One faulty kernel.
struct Fault {
    kernel: &'static str,
    /// The kernel's `n`.
    n: i32,
    plain: Plain,
    /// The checked build's report holds one of these.
    says: &'static [&'static str],
    /// The right output, where the plain build is judged by results.
    right: fn(&[f32], i32) -> Vec<f32>,
}

fn any(_: &[f32], _: i32) -> Vec<f32> {
    Vec::new()
}
fn reversed(input: &[f32], _: i32) -> Vec<f32> {
    (0..THREADS).map(|i| input[127 - i]).collect()
}
fn neighbours(input: &[f32], _: i32) -> Vec<f32> {
    (0..THREADS).map(|i| input[i ^ 1]).collect()
}
fn same(input: &[f32], _: i32) -> Vec<f32> {
    input[..THREADS].to_vec()
}
fn repeated(input: &[f32], rounds: i32) -> Vec<f32> {
    let sum = |i: usize| (0..rounds).map(|round| input[127 - i] + round as f32).sum();
    (0..THREADS).map(sum).collect()
}
fn first_half_summed(input: &[f32], _: i32) -> Vec<f32> {
    vec![input[..64].iter().sum(); THREADS]
}
fn ring(input: &[f32], rounds: i32) -> Vec<f32> {
    let element =
        |round: usize, place: usize| input[round * 128 + 4 * (place / 4 % 32) + place % 4];
    let sum = |i: usize| {
        (0..rounds as usize)
            .map(|round| element(round, 511 - i))
            .sum()
    };
    (0..THREADS).map(sum).collect()
}

/// What the checker calls an access that nothing orders; by the schedule, it may come even before the write.
const RACE: &[&str] = &["is a race", "uninitialised", "has not been waited for"];
const PENDING: &[&str] = &["has not been waited for"];

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    Fault { kernel: "zoo_global_read_past_end", n: 600, plain: Report, says: &["of 2080 bytes"], right: any },
    Fault { kernel: "zoo_global_write_past_end", n: 600, plain: Report, says: &["of 516 bytes"], right: any },
    Fault { kernel: "zoo_global_write_past_end", n: 2, plain: Report, says: &["past"], right: any },
    Fault { kernel: "zoo_input_written", n: 0, plain: Report, says: &["read-only"], right: any },
    Fault { kernel: "zoo_null_pointer", n: 3, plain: Report, says: &["a null pointer"], right: any },
    Fault { kernel: "zoo_misaligned_vector", n: 1, plain: Report, says: &["not aligned to 16 bytes"], right: any },
    Fault { kernel: "zoo_misaligned_cast", n: 1, plain: Blind, says: &["not aligned to 16 bytes"], right: any },
    Fault { kernel: "zoo_shared_write_past_end", n: 130, plain: Report, says: &["shared storage of 512 bytes"], right: any },
    Fault { kernel: "zoo_shared_write_before_start", n: 3, plain: Report, says: &["shared storage of 512 bytes"], right: any },
    Fault { kernel: "zoo_shared_read_past_end", n: 1, plain: Report, says: &["shared storage of 512 bytes"], right: any },
    Fault { kernel: "zoo_shared_read_uninitialised", n: 100, plain: Sometimes, says: &["uninitialised"], right: same },
    Fault { kernel: "zoo_stack_overflow", n: 0, plain: Report, says: &["below the thread's stack"], right: any },
    Fault { kernel: "zoo_division_by_zero", n: 7, plain: Report, says: &["divided by zero"], right: any },
    Fault { kernel: "zoo_local_array_overrun", n: 1, plain: Blind, says: &["outside"], right: any },
    Fault { kernel: "zoo_shift_too_far", n: 31, plain: Blind, says: &["shift"], right: any },
    Fault { kernel: "zoo_missing_barrier", n: 0, plain: Sometimes, says: RACE, right: reversed },
    Fault { kernel: "zoo_missing_warp_sync", n: 0, plain: Sometimes, says: RACE, right: neighbours },
    Fault { kernel: "zoo_shuffle_instead_of_warp_sync", n: 0, plain: Blind, says: RACE, right: any },
    Fault { kernel: "zoo_reused_without_barrier", n: 3, plain: Sometimes, says: RACE, right: repeated },
    Fault { kernel: "zoo_lost_update", n: 0, plain: Blind, says: RACE, right: any },
    Fault { kernel: "zoo_atomic_meets_plain_read", n: 0, plain: Sometimes, says: RACE, right: first_half_summed },
    Fault { kernel: "zoo_barrier_in_branches", n: 0, plain: Report, says: &["divergent code"], right: any },
    Fault { kernel: "zoo_early_return", n: 100, plain: Report, says: &["owes", "returns while"], right: any },
    Fault { kernel: "zoo_barrier_skipped", n: 16, plain: Report, says: &["divergent code"], right: any },
    Fault { kernel: "zoo_shuffle_mask_too_wide", n: 0, plain: Report, says: &["deadlock"], right: any },
    Fault { kernel: "zoo_shuffle_from_outside_mask", n: 0, plain: Report, says: &["does not take part"], right: any },
    Fault { kernel: "zoo_mask_without_caller", n: 0, plain: Report, says: &["does not name the calling lane"], right: any },
    Fault { kernel: "zoo_lanes_disagree", n: 0, plain: Report, says: &["disagree"], right: any },
    Fault { kernel: "zoo_named_barrier_short", n: 0, plain: Report, says: &["64 of 96 threads"], right: any },
    Fault { kernel: "zoo_named_barrier_counts_differ", n: 0, plain: Report, says: &["threads"], right: any },
    Fault { kernel: "zoo_half_warp_product", n: 0, plain: Report, says: &["all 32 lanes"], right: any },
    Fault { kernel: "zoo_copy_short_wait", n: 3, plain: Sometimes, says: PENDING, right: ring },
    Fault { kernel: "zoo_copy_without_wait", n: 3, plain: Sometimes, says: PENDING, right: ring },
    Fault { kernel: "zoo_copy_without_commit", n: 3, plain: Sometimes, says: PENDING, right: ring },
    Fault { kernel: "zoo_copy_without_barrier", n: 3, plain: Sometimes, says: RACE, right: ring },
    Fault { kernel: "zoo_refill_before_barrier", n: 3, plain: Sometimes, says: RACE, right: ring },
    Fault { kernel: "zoo_copy_left_open", n: 0, plain: Report, says: &["that no wait covers"], right: any },
    Fault { kernel: "zoo_copy_misaligned", n: 1, plain: Report, says: &["not aligned to 16 bytes"], right: any },
    Fault { kernel: "zoo_copy_source_past_end", n: 12, plain: Report, says: &["of 2080 bytes"], right: any },
    Fault { kernel: "zoo_copy_outside_shared", n: 200, plain: Report, says: &["outside the shared storage"], right: any },
    Fault { kernel: "zoo_matrix_row_misaligned", n: 2, plain: Report, says: &["not aligned to 16 bytes"], right: any },
    Fault { kernel: "zoo_matrix_row_outside", n: 80, plain: Report, says: &["outside the shared storage", "uninitialised"], right: any },
];

/// Runs one zoo kernel; the output is its first 128 floats.
fn run(
    emulator: &Emulator,
    kernel: &str,
    n: i32,
    grid: u32,
    options: &Options<'_>,
) -> Result<Vec<f32>> {
    let kernel = emulator.kernel(kernel)?;
    let mut input = emulator.allocate(Element::F32, 520)?;
    let mut output = emulator.allocate(Element::F32, THREADS + 1)?;
    input.write(&input_values())?;
    output.write(&[0.0f32; THREADS + 1])?;
    let block = [kernel.threads.expect("zoo kernels have fixed blocks"), 1, 1];
    let arguments = [
        Argument::whole(&output),
        Argument::whole(&input),
        Argument::I32(n),
    ];
    input.read_only(|| {
        emulator.launch(
            &kernel,
            [grid, 1, 1],
            block,
            kernel.shared_bytes,
            &arguments,
            options,
        )
    })?;
    Ok(output.read::<f32>()?[..THREADS].to_vec())
}

fn input_values() -> Vec<f32> {
    (0..520).map(|i| (i % 37 + 1) as f32).collect()
}

/// Both schedules, both directions, all copy timings, several seeds.
fn runs() -> Vec<Options<'static>> {
    let mut runs = Vec::new();
    for seed in 0..6 {
        for schedule in [Schedule::RunAhead, Schedule::Priority] {
            for copies in [CopyTiming::Early, CopyTiming::Late, CopyTiming::Random] {
                runs.push(Options {
                    schedule,
                    copies,
                    seed,
                    workers: 1,
                    ..Options::default()
                });
            }
        }
    }
    runs
}

#[test]
fn every_fault_of_the_zoo_is_caught() {
    let Some(emulator) = emulator() else { return };
    let mut missed = Vec::new();
    for fault in FAULTS {
        let right = (fault.right)(&input_values(), fault.n);
        let runs = runs();
        let (mut reports, mut wrong, mut said) = (0, 0, 0);
        let mut last = String::new();
        for options in &runs {
            match run(&emulator, fault.kernel, fault.n, 1, options) {
                Ok(output) => wrong += usize::from(!right.is_empty() && output != right),
                Err(error) => {
                    reports += 1;
                    last = error.to_string();
                    said += usize::from(
                        fault.says.iter().any(|part| last.contains(part)) && last.contains("cuda/"),
                    );
                }
            }
        }
        let caught = match (emulator.is_checked(), fault.plain) {
            (true, _) => said == runs.len(),
            (false, Report) => reports == runs.len(),
            (false, Sometimes) => reports + wrong > 0,
            (false, Blind) => true,
        };
        println!(
            "{:36} n {:5}: {reports} reports, {wrong} wrong of {}",
            fault.kernel,
            fault.n,
            runs.len()
        );
        println!("    {}", last.lines().next().unwrap_or("no report"));
        if !caught {
            missed.push(format!("{} (n {}): {last}", fault.kernel, fault.n));
        }
    }
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

#[test]
fn a_wait_for_another_block_ends_at_the_time_limit() {
    let Some(emulator) = emulator() else { return };
    let options = Options {
        time_limit: Duration::from_millis(60),
        workers: 1,
        ..Options::default()
    };
    let error = run(&emulator, "zoo_wait_for_another_block", 0, 2, &options)
        .expect_err("block 0 waits for block 1, which cannot start");
    assert!(error.to_string().contains("time limit of 60 ms"), "{error}");
    assert!(
        error.to_string().contains("cuda/simt/zoo/sync.cu:"),
        "{error}"
    );
}

#[test]
fn clean_kernels_give_the_right_result_under_every_schedule() {
    let Some(emulator) = emulator() else { return };
    let input = input_values();
    let clean: [(&str, i32, Vec<f32>); 7] = [
        (
            "zoo_clean_copy",
            5,
            (0..THREADS).map(|i| input[127 - i] + 5.0).collect(),
        ),
        ("zoo_clean_warp_exchange", 0, neighbours(&input, 0)),
        ("zoo_clean_named_barriers", 5, named_barriers(&input, 5)),
        (
            "zoo_clean_shared_counter",
            0,
            vec![input[..THREADS].iter().sum(); THREADS],
        ),
        ("zoo_clean_votes", 0, votes(&input)),
        ("zoo_clean_ring", 3, ring(&input, 3)),
        ("zoo_clean_tile_product", 0, tile_product(&input)),
    ];
    for (kernel, n, right) in &clean {
        for options in runs() {
            let output = run(&emulator, kernel, *n, 1, &options)
                .unwrap_or_else(|error| panic!("{kernel} under {options:?}: {error}"));
            assert_eq!(&output, right, "{kernel} under {options:?}");
        }
    }
}

fn named_barriers(input: &[f32], rounds: i32) -> Vec<f32> {
    let consumed = |i: usize| {
        (1..=rounds)
            .map(|round| input[63 - i % 64] * round as f32)
            .sum()
    };
    (0..THREADS)
        .map(|i| if i < 64 { 0.0 } else { consumed(i) })
        .collect()
}

fn votes(input: &[f32]) -> Vec<f32> {
    let one = |i: usize| {
        let warp = &input[i / 32 * 32..i / 32 * 32 + 32];
        let partner = if i % 8 + 3 < 8 {
            input[i + 3]
        } else {
            input[i]
        };
        let most = warp.iter().copied().fold(0.0, f32::max);
        16.0 + 800.0 + partner * 1000.0 + warp.iter().sum::<f32>() + most
    };
    (0..THREADS).map(one).collect()
}

/// D [16,8] = A [16,16] · B [16,8], whole numbers that bf16 and f32 hold exactly.
fn tile_product(input: &[f32]) -> Vec<f32> {
    let element = |row: usize, column: usize| {
        (0..16)
            .map(|k| input[row * 16 + k] * input[256 + k * 8 + column])
            .sum()
    };
    (0..THREADS).map(|i| element(i / 8, i % 8)).collect()
}
