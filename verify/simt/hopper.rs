//! The zoo of the Hopper tier (cuda/simt/zoo/hopper.cu): each mistake in the protocols of tensor maps, barriers in shared memory,
//! products of a warpgroup and clusters is caught. The checked build reports every one in every run; the plain build what its
//! column says. Their twins without the mistake give the right result in every run of both.

use keel::error::Result;
use keel::executor::simt::{Argument, Buffer, CopyTiming, Element, Emulator, Options, Schedule};
use keel::launch::{KernelEntry, Mapped, Parameter, Swizzle, TensorMap, TensorMapShape};
use keel::tensor::DType;

use super::emulator;

/// 64 of k a round.
const ROUNDS: usize = 5;
const K: usize = 64 * ROUNDS;
const ROWS_OF_A: usize = 128;
const ROWS_OF_B: usize = 64;
const OUT: [usize; 2] = [64, 32];

/// What a build owes for a faulty kernel.
#[derive(Clone, Copy, PartialEq)]
enum Owed {
    /// A report, in every run.
    Report,
    /// A report or a wrong result, in some run.
    Sometimes,
    /// Nothing: only the checked build can see it.
    Blind,
    /// A wrong result in every run, of the checked build too: the kernel keeps every rule and computes something else.
    Wrong,
}
use Owed::{Blind, Report, Sometimes, Wrong};

struct Fault {
    kernel: &'static str,
    plain: Owed,
    /// The checked build's report holds one of these.
    says: &'static [&'static str],
    right: fn() -> Vec<f32>,
}

const fn fault(
    kernel: &'static str,
    plain: Owed,
    says: &'static [&'static str],
    right: fn() -> Vec<f32>,
) -> Fault {
    Fault {
        kernel,
        plain,
        says,
        right,
    }
}

/// What a read of bytes that no barrier has brought yet is called; by the schedule, it may come before their copy is asked for.
const UNWAITED: &[&str] = &["has not been waited for", "uninitialised", "is a race"];
/// A copy onto bytes that are still read, or on their way.
const OVERTAKEN: &[&str] = &[
    "still reads there",
    "has not been waited for",
    "lands after the phase",
    "is a race",
];

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    fault("no_init_fence", Report, &["made without fence_barrier_init"], ring),
    fault("no_init", Report, &["is not a barrier"], ring),
    fault("init_twice", Report, &["is a barrier already"], ring),
    fault("consumer_parity", Sometimes, &["has not been waited for", "uninitialised", "is a race", "deadlock"], ring),
    fault("producer_parity", Report, &["deadlock"], ring),
    fault("expect_too_few", Report, &["fewer than its copies bring", "deadlock", "has not been waited for", "uninitialised"], ring),
    fault("expect_too_many", Report, &["deadlock", "still wants 16 bytes"], ring),
    fault("expect_twice", Report, &["all have come", "lands after the phase", "deadlock"], ring),
    fault("no_full_wait", Sometimes, UNWAITED, ring),
    fault("no_empty_wait", Sometimes, &["still reads there", "has not been waited for", "lands after the phase", "is a race", "all have come"], ring),
    fault("released_before_wait", Sometimes, OVERTAKEN, ring),
    fault("all_release", Report, &["deadlock", "by parity they cannot tell", "has not been waited for", "all have come"], ring),
    fault("empty_of_two", Report, &["deadlock"], ring),
    fault("misaligned_box", Report, &["not aligned to 1024 bytes"], ring),
    fault("box_outside", Report, &["outside the shared storage"], ring),
    fault("wrong_rank", Report, &["has 2 dimensions, but 3 coordinates"], ring),
    fault("no_load_of_b", Sometimes, &["uninitialised"], ring),
    fault("barrier_overwritten", Report, &["meets a barrier"], ring),
    fault("barrier_read", Blind, &["meets a barrier"], ring),
    fault("no_product_fence", Report, &["no wgmma_fence stands before"], ring),
    fault("accumulator_read", Blind, &["read of accumulators"], ring),
    fault("accumulator_written", Sometimes, &["write of accumulators"], ring),
    fault("no_commit", Report, &["which no wgmma_wait covers", "that no wait covers", "still reads there"], ring),
    fault("no_product_wait", Report, &["which no wgmma_wait covers", "that no wait covers", "still reads there"], ring),
    fault("three_warps", Report, &["deadlock"], ring),
    fault("descriptors_differ", Report, &["disagree"], ring),
    fault("wrong_stride", Report, &["from one atom of eight rows to the next"], ring),
    fault("no_swizzle", Report, &["has swizzle 0"], ring),
    fault("start_inside_atom", Report, &["bytes into an atom"], ring),
    fault("descriptor_outside", Report, &["outside the shared storage"], ring),
    fault("commit_missed", Report, &["has committed", "that no wait covers", "still reads there"], ring),
    fault("no_proxy_fence", Blind, &["no fence_proxy_async"], staged),
    fault("fence_of_one", Blind, &["no fence_proxy_async"], staged),
    fault("unswizzled", Wrong, &[], staged),
    fault("refill_while_read", Sometimes, &["still reads there"], staged),
    fault("fragment_after_fence", Blind, &["fragment of A was accessed after"], staged),
    fault("fragment_while_owned", Sometimes, &["write of the fragment of A"], staged),
    fault("wrong_leading", Blind, &["uninitialised"], boxes),
    fault("leading_no_atom", Report, &["not a multiple of an atom's 1024"], boxes),
    fault("no_store_fence", Blind, &["no fence_proxy_async"], stored),
    fault("store_fence_of_one", Blind, &["no fence_proxy_async"], stored),
    fault("no_store_barrier", Sometimes, &["is a race", "uninitialised", "still reads there", "has not been waited for"], stored),
    fault("rewritten_before_read", Blind, &["still reads there"], stored),
    fault("no_store_commit", Report, &["that no wait covers", "still reads there"], stored),
    fault("no_store_wait", Report, &["that no wait covers", "still reads there"], stored),
    fault("read_only_map", Report, &["read-only", "shared storage"], stored),
    fault("no_first_barrier", Sometimes, &["is not a barrier", "is a race"], cluster),
    fault("no_last_barrier", Sometimes, &["a barrier of the cluster is missing"], cluster),
    fault("own_release_only", Sometimes, &["still reads there", "has not been waited for", "lands after the phase", "deadlock", "more bytes", "ends while", "cannot tell"], cluster),
    fault("empty_of_one_block", Sometimes, &["still reads there", "has not been waited for", "lands after the phase", "deadlock", "cannot tell", "all have come"], cluster),
    fault("mask_too_wide", Report, &["names blocks that the cluster of 2 does not have"], cluster),
    fault("peer_too_far", Report, &["block 2 is wanted of a cluster of 2"], cluster),
    fault("not_mapped", Report, &["no address that map_peer has made"], cluster),
    fault("no_remote_fence", Report, &["made without fence_barrier_init"], cluster),
    fault("arrive_twice", Report, &["has arrived and not yet waited"], cluster),
    fault("wait_first", Report, &["has not arrived"], cluster),
    fault("return_inside", Report, &["returns between arrival and wait", "returns while"], cluster),
    fault("expect_half", Report, &["fewer than its copies bring", "deadlock", "has not been waited for", "uninitialised"], cluster),
    fault("registers_beyond_file", Report, &["do not hold what its warps ask for"], ones),
    fault("registers_odd", Report, &["a multiple of 8 from 24 to 256"], ones),
    fault("registers_too_few", Report, &["a multiple of 8 from 24 to 256"], ones),
    fault("registers_not_less", Report, &["is no decrease"], ones),
    fault("half_warp_elects", Report, &["needs all 32 lanes"], ones),
    fault("row_misaligned", Report, &["not aligned to 16 bytes"], ones),
    fault("row_outside", Report, &["outside the shared storage"], ones),
];

/// A kernel without a mistake, and what it leaves.
type Clean = (&'static str, fn() -> Vec<f32>);

const CLEAN: [Clean; 7] = [
    ("clean_ring", ring),
    ("clean_staged", staged),
    ("clean_fragment", staged),
    ("clean_boxes", boxes),
    ("clean_store", stored),
    ("clean_cluster", cluster),
    ("clean_registers", ones),
];

/// Kernels of clusters of two blocks.
const CLUSTERS: &[&str] = &[
    "clean_cluster",
    "no_first_barrier",
    "no_last_barrier",
    "own_release_only",
    "empty_of_one_block",
    "mask_too_wide",
    "peer_too_far",
    "not_mapped",
    "no_remote_fence",
    "arrive_twice",
    "wait_first",
    "return_inside",
    "expect_half",
];

// ---- Operands and what is right: whole numbers that bf16 and all sums hold exactly ----

fn a(row: usize, k: usize) -> f32 {
    ((3 * row + 5 * k) % 7) as f32 - 3.0
}
fn b(row: usize, k: usize) -> f32 {
    ((5 * row + 2 * k) % 5) as f32 - 2.0
}
fn staged_a(row: usize, k: usize) -> f32 {
    ((row + k) % 5) as f32
}

/// [rows, 8] of left [rows, inner] · right [8, inner].
fn product(
    rows: usize,
    inner: usize,
    left: fn(usize, usize) -> f32,
    right: fn(usize, usize) -> f32,
) -> Vec<f32> {
    let element = |i: usize| {
        (0..inner)
            .map(|k| left(i / 8, k) * right(i % 8, k))
            .sum::<f32>()
    };
    (0..8 * rows).map(element).collect()
}
fn ring() -> Vec<f32> {
    product(64, K, a, b)
}
fn cluster() -> Vec<f32> {
    product(128, K, a, b)
}
fn staged() -> Vec<f32> {
    product(64, 64, staged_a, b)
}
fn boxes() -> Vec<f32> {
    product(64, 64, staged_a, |column, k| a(k, 64 + column))
}
fn stored() -> Vec<f32> {
    (0..OUT[0] * OUT[1]).map(|i| (i + 1) as f32).collect()
}
fn ones() -> Vec<f32> {
    vec![1.0; 128]
}

// ---- Running ----

static KERNEL: KernelEntry = KernelEntry {
    name: "zoo_hopper",
    stem: "hopper",
    parameters: &[Parameter::TensorMap],
    cluster: 1,
};

/// A map of a matrix of `rows` rows that lie one behind the other, with the 128-byte swizzle.
fn map(element: DType, [rows, columns]: [usize; 2], box_dims: [u32; 2]) -> Result<TensorMap> {
    let shape = TensorMapShape {
        dims: &[columns as u64, rows as u64],
        strides: &[(columns * element.size()) as u64],
        box_dims: &box_dims,
        swizzle: Swizzle::Span128,
    };
    TensorMap::new(&KERNEL, Mapped::Input(0), 0, element, shape)
}

fn matrix(emulator: &Emulator, rows: usize, value: fn(usize, usize) -> f32) -> Result<Buffer> {
    let mut buffer = emulator.allocate(Element::Bf16, rows * K)?;
    let bits = |i: usize| (value(i / K, i % K).to_bits() >> 16) as u16;
    buffer.write(&(0..rows * K).map(bits).collect::<Vec<u16>>())?;
    Ok(buffer)
}

fn run(emulator: &Emulator, name: &str, options: &Options<'_>) -> Result<Vec<f32>> {
    let kernel = emulator.kernel(&format!("zoo_hopper_{name}"))?;
    let left = matrix(emulator, ROWS_OF_A, a)?;
    let right = matrix(emulator, ROWS_OF_B, b)?;
    let mut output = emulator.allocate(Element::F32, OUT[0] * OUT[1])?;
    output.write(&vec![0.0f32; OUT[0] * OUT[1]])?;
    let whole = |buffer, map, is_writable| Argument::TensorMap {
        buffer,
        offset: 0,
        bytes: Buffer::bytes(buffer),
        map,
        is_writable,
    };
    let arguments = [
        Argument::whole(&output),
        Argument::I32(ROUNDS as i32),
        whole(&left, map(DType::Bf16, [ROWS_OF_A, K], [64, 64])?, false),
        whole(&right, map(DType::Bf16, [ROWS_OF_B, K], [64, 8])?, false),
        whole(&right, map(DType::Bf16, [ROWS_OF_B, K], [64, 32])?, false),
        whole(&output, map(DType::F32, OUT, [32, 64])?, true),
    ];
    let size = if CLUSTERS.contains(&name) { 2 } else { 1 };
    let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
    left.read_only(|| {
        right.read_only(|| {
            emulator.launch_clusters(
                &kernel,
                size,
                [size, 1, 1],
                block,
                kernel.shared_bytes,
                &arguments,
                options,
            )
        })
    })?;
    output.read()
}

/// Both schedules, both directions, all copy timings.
fn runs() -> Vec<Options<'static>> {
    let mut runs = Vec::new();
    for seed in 0..3 {
        for schedule in [Schedule::RunAhead, Schedule::Priority] {
            for copies in [CopyTiming::Early, CopyTiming::Late, CopyTiming::Random] {
                runs.push(Options {
                    schedule,
                    copies,
                    seed,
                    workers: 1,
                    shared_limit: 227 * 1024,
                    ..Options::default()
                });
            }
        }
    }
    runs
}

#[test]
fn every_fault_of_the_hopper_zoo_is_caught() {
    let Some(emulator) = emulator() else { return };
    let runs = runs();
    let mut missed = Vec::new();
    for fault in FAULTS {
        let right = (fault.right)();
        let (mut reports, mut wrong, mut said) = (0, 0, 0);
        let mut unsaid = String::new();
        for options in &runs {
            match run(&emulator, fault.kernel, options) {
                Ok(output) => {
                    let is_wrong = output[..right.len()] != right;
                    wrong += usize::from(is_wrong);
                    unsaid = format!("no report (wrong: {is_wrong}) under {options:?}");
                }
                Err(error) => {
                    reports += 1;
                    let text = error.to_string();
                    if fault.says.iter().any(|part| text.contains(part)) && text.contains("cuda/") {
                        said += 1;
                    } else {
                        unsaid = text;
                    }
                }
            }
        }
        let caught = match (emulator.is_checked(), fault.plain) {
            (_, Wrong) => wrong == runs.len(),
            (true, _) => said == runs.len(),
            (false, Report) => reports == runs.len(),
            (false, Sometimes) => reports + wrong > 0,
            (false, Blind) => true,
        };
        println!(
            "{:24} {reports} reports, {said} as told, {wrong} wrong of {}",
            fault.kernel,
            runs.len()
        );
        if !caught {
            missed.push(format!(
                "{}: {said} of {} reports as told, {wrong} wrong; {unsaid}",
                fault.kernel, reports
            ));
        }
    }
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

#[test]
fn clean_hopper_kernels_give_the_right_result_under_every_schedule() {
    let Some(emulator) = emulator() else { return };
    for (kernel, right) in CLEAN {
        let right = right();
        for options in runs() {
            let output = run(&emulator, kernel, &options)
                .unwrap_or_else(|error| panic!("{kernel} under {options:?}: {error}"));
            assert_eq!(output[..right.len()], right, "{kernel} under {options:?}");
        }
    }
}
