//! The machine itself, on PTX written for it: faults are reported with their place, and lanes meet again where they must.

use keel_ptx::{
    Allocation, Code, CopyTiming, Counts, Extent, Launch, Memory, Module, Options, launch,
};

/// A kernel of 64 threads and 256 bytes of shared memory, given two pointers to 256 bytes, of which the first may only be
/// read.
fn code(body: &str) -> Result<Code, String> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .extern .shared .align 16 .b8 keel_shared_storage[];\n\
         .const .align 4 .b8 keel_block_trial[12] = {{64, 0, 0, 0, 0, 1, 0, 0, 2}};\n\
         .visible .entry trial(\n.param .u64 trial_param_0,\n.param .u64 trial_param_1\n)\n.maxntid 64, 1, 1\n{{\n\
         .reg .pred %p<9>;\n.reg .b32 %r<30>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<9>;\n.loc 1 7 0\n\
         ld.param.u64 %rd1, [trial_param_0];\nld.param.u64 %rd2, [trial_param_1];\nmov.u32 %r1, %tid.x;\n\
         mov.u32 %r2, keel_shared_storage;\nmul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd1, %rd3;\n\
         add.s64 %rd5, %rd2, %rd3;\nshl.b32 %r3, %r1, 2;\nadd.s32 %r4, %r2, %r3;\n\
         .loc 1 9 5\n{body}\nret;\n}}\n.file 1 \"/somewhere/cuda/trial.cu\"\n"
    );
    Code::decode(&Module::parse(&text)?, "trial")
}

/// What it writes, given the numbers 0..64.
fn run_with(body: &str, options: &Options) -> Result<Vec<u32>, String> {
    counted(body, options).map(|(words, _)| words)
}

/// The same, with what it executed.
fn counted(body: &str, options: &Options) -> Result<(Vec<u32>, Counts), String> {
    let code = code(body)?;
    let mut counts = Counts::of(&code);
    let mut memory = Memory::default();
    let [from, to] = [256, 256].map(|bytes| memory.allocate(bytes));
    let numbers: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    memory.write(from, 0, &numbers);
    let extent = |allocation: usize, memory: &Memory, is_writable| Extent {
        start: memory.get(allocation).start,
        bytes: 256,
        is_writable,
        allocation,
    };
    let extents = [extent(from, &memory, false), extent(to, &memory, true)];
    let arguments = extents.map(|extent| extent.start);
    let trial = Launch {
        code: &code,
        grid: [1, 1, 1],
        threads: 64,
        arguments: &arguments,
        extents: &extents,
        maps: &[],
    };
    launch(&trial, [0], &mut memory, options, Some(&mut counts))?;
    let Allocation { data, .. } = memory.get(to);
    let words = data.chunks_exact(4);
    let words = words.map(|word| u32::from_le_bytes([0, 1, 2, 3].map(|i| word[i])));
    Ok((words.collect(), counts))
}

fn run(body: &str) -> Result<Vec<u32>, String> {
    run_with(body, &Options::default())
}

/// The report of a run that must fail.
fn fault(body: &str) -> String {
    run(body).expect_err("it does something wrong")
}

#[test]
fn a_form_that_is_not_executed_is_refused_by_name() {
    for (body, form) in [
        ("sin.approx.f32 %f1, %f2;", "sin.approx.f32"),
        ("atom.global.add.u32 %r5, [%rd2], 1;", "atom.global.add.u32"),
        (
            "ld.global.v4.f64 {%rd3, %rd3, %rd3, %rd3}, [%rd1];",
            "ld.global.v4.f64",
        ),
        ("setp.equ.s32 %p1, %r1, %r2;", "setp.equ.s32"),
        (
            "barrier.cluster.arrive.release.aligned;",
            "barrier.cluster.arrive.release.aligned",
        ),
    ] {
        let problem = code(body).unwrap_err();
        let wanted = format!("kernel trial: the form {form} is not executed");
        assert!(problem.starts_with(&wanted), "{problem}");
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    for (body, wanted) in [
        ("add.s32 %r1, %rd1, %r2;", "%rd1 is of another size"),
        ("add.s32 %r1, %r2;", "3 operands are wanted"),
        ("mov.u32 %x1, %r2;", "%x1 is not declared"),
        ("bra $nowhere;", "there is no label $nowhere"),
        (
            "ld.global.f32 %f1, [%r1];",
            "%r1 is no address of this memory",
        ),
        (
            "cp.async.cg.shared.global [%r4], [%rd4], 4;",
            "a copy of 4 bytes does not exist",
        ),
        (
            "ld.param.u64 %rd1, [trial_param_2];",
            "there is no parameter trial_param_2",
        ),
    ] {
        let problem = code(body).unwrap_err();
        assert!(problem.contains(wanted), "{body}: {problem}");
    }
}

#[test]
fn accesses_outside_an_argument_and_of_what_nobody_wrote_are_reported_with_their_line() {
    let outside = fault("ld.global.u32 %r5, [%rd4+4];");
    assert!(
        outside.contains("thread 63: it reads 4 bytes at byte 256 of an argument of 256 bytes"),
        "{outside}"
    );
    assert!(
        outside.contains("block [0, 0, 0], warp 1") && outside.contains("trial.cu:9"),
        "{outside}"
    );
    let forbidden = fault("st.global.u32 [%rd4], %r1;");
    assert!(forbidden.contains("that it may only read"), "{forbidden}");
    let unwritten = fault("ld.global.u32 %r5, [%rd5];");
    assert!(
        unwritten.contains("which nobody has written"),
        "{unwritten}"
    );
    let crooked = fault("ld.global.u32 %r5, [%rd4+2];");
    assert!(crooked.contains("is not aligned to 4 bytes"), "{crooked}");
    let shared = fault("ld.shared.u32 %r5, [%r4];");
    assert!(
        shared.contains("byte 0 of shared memory, which nobody has written"),
        "{shared}"
    );
    let beyond = fault("st.shared.u32 [%r4+4], %r1;");
    assert!(
        beyond.contains("at byte 256 of 256 bytes of shared memory"),
        "{beyond}"
    );
}

/// Every thread copies its number, another's is read behind a barrier.
fn copied(wait: &str, barrier: &str) -> String {
    format!(
        "cp.async.ca.shared.global [%r4], [%rd4], 4;\ncp.async.commit_group;\n{wait}\n{barrier}\n\
         xor.b32 %r5, %r3, 252;\nadd.s32 %r5, %r5, %r2;\nld.shared.u32 %r6, [%r5];\nst.global.u32 [%rd5], %r6;"
    )
}

#[test]
fn a_copy_is_there_behind_its_wait_and_not_before() {
    let right = copied("cp.async.wait_group 0;", "bar.sync 0;");
    let want: Vec<u32> = (0..64).rev().collect();
    for copies in [CopyTiming::Early, CopyTiming::Late] {
        let options = Options {
            copies,
            ..Options::default()
        };
        assert_eq!(run_with(&right, &options), Ok(want.clone()));
        let early = copied("", "bar.sync 0;");
        let problem = run_with(&early, &options).unwrap_err();
        assert!(
            problem.contains("to which a copy is under way"),
            "{problem}"
        );
        let short = copied("cp.async.wait_group 1;", "bar.sync 0;");
        assert!(
            run_with(&short, &options)
                .unwrap_err()
                .contains("to which a copy is under way")
        );
    }
    assert!(fault(&copied("cp.async.wait_group 0;", "")).contains("shared memory"));
}

#[test]
fn copies_without_a_wait_are_reported_when_their_thread_returns() {
    let problem = fault("cp.async.ca.shared.global [%r4], [%rd4], 4;");
    assert!(
        problem.contains("returns with 1 copies that no wait covers"),
        "{problem}"
    );
}

#[test]
fn a_copy_fills_what_it_does_not_read_with_zeros() {
    let found = run("and.b32 %r7, %r1, 1;\nshl.b32 %r7, %r7, 2;\n\
         cp.async.ca.shared.global [%r4], [%rd4], 4, %r7;\ncp.async.commit_group;\ncp.async.wait_group 0;\n\
         ld.shared.u32 %r6, [%r4];\nst.global.u32 [%rd5], %r6;");
    let want: Vec<u32> = (0..64).map(|i| if i % 2 == 1 { i } else { 0 }).collect();
    assert_eq!(found, Ok(want));
}

#[test]
fn lanes_that_part_meet_again() {
    // Odd lanes take another way round; the sum over neighbours needs both.
    let found = run(
        "and.b32 %r7, %r1, 1;\nsetp.eq.s32 %p1, %r7, 0;\n@%p1 bra $even;\nmul.lo.s32 %r8, %r1, 100;\n\
         bra.uni $together;\n$even:\nmov.u32 %r8, %r1;\n$together:\n\
         shfl.sync.bfly.b32 %r9|%p2, %r8, 1, 31, -1;\nst.global.u32 [%rd5], %r9;",
    );
    let want: Vec<u32> = (0..64)
        .map(|i| if i % 2 == 0 { (i + 1) * 100 } else { i - 1 })
        .collect();
    assert_eq!(found, Ok(want));
}

#[test]
fn a_barrier_that_some_lanes_never_reach_is_reported() {
    let problem = fault("setp.lt.s32 %p1, %r1, 5;\n@%p1 bra $out;\nbar.sync 0;\n$out:");
    assert!(
        problem.contains("returned") || problem.contains("wait for each other"),
        "{problem}"
    );
    let whole_warp = fault("setp.lt.s32 %p1, %r1, 32;\n@%p1 bra $out;\nbar.sync 0;\n$out:");
    assert!(
        whole_warp.contains("32 threads of the block have returned"),
        "{whole_warp}"
    );
    let parted = fault(
        "setp.lt.s32 %p1, %r1, 5;\n@%p1 bra $out;\nshfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\nret;\n$out:\n\
         shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;",
    );
    assert!(parted.contains("its lanes wait for each other"), "{parted}");
}

#[test]
fn a_lane_that_takes_no_part_gives_nothing() {
    let problem = fault(
        "setp.ge.s32 %p1, %r1, 16;\n@%p1 bra $out;\nshfl.sync.bfly.b32 %r9, %r1, 16, 31, 65535;\n$out:",
    );
    assert!(problem.contains("which takes no part"), "{problem}");
}

#[test]
fn roundings_are_those_of_the_isa() {
    let bits = |value: f32| format!("0f{:08X}", value.to_bits());
    let one = |instruction: &str, operands: &[f32]| -> f32 {
        let list: Vec<String> = operands.iter().map(|x| bits(*x)).collect();
        let body = format!(
            "{instruction} %f1, {};\nst.global.f32 [%rd5], %f1;",
            list.join(", ")
        );
        f32::from_bits(run(&body).expect("it is executed")[0])
    };
    let (big, small) = (1.0f32, 2f32.powi(-30));
    assert_eq!(one("add.f32", &[big, small]), 1.0);
    assert_eq!(one("add.rz.f32", &[big, -small]), 1f32.next_down());
    assert_eq!(one("add.rz.f32", &[-big, small]), -(1f32.next_down()));
    assert_eq!(one("add.rz.f32", &[big, small]), 1.0);
    assert_eq!(one("fma.rm.f32", &[big, big, -small]), 1f32.next_down());
    assert_eq!(one("fma.rm.f32", &[big, big, small]), 1.0);
    assert_eq!(one("fma.rm.f32", &[-big, big, -small]), (-1f32).next_down());
    // One rounding, not two: (1 + 2^-23)² = 1 + 2^-22 + 2^-46.
    let step = 1f32.next_up();
    assert_eq!(
        one("fma.rn.f32", &[step, step, -1.0 - 2f32.powi(-22)]),
        2f32.powi(-46)
    );
    assert_eq!(one("cvt.sat.f32.f32", &[1.5]), 1.0);
    assert_eq!(one("cvt.sat.f32.f32", &[f32::NAN]), 0.0);
    assert_eq!(one("min.f32", &[f32::NAN, 3.0]), 3.0);
    assert_eq!(one("copysign.f32", &[-0.0, 3.0]), -3.0);
    assert_eq!(one("ex2.approx.ftz.f32", &[-127.0]), 0.0);
    assert_eq!(one("cvt.rni.f32.f32", &[2.5]), 2.0);
}

#[test]
fn a_stray_address_of_a_null_pointer_is_outside_every_argument() {
    let problem = fault("mov.u64 %rd6, 0;\nld.global.u32 %r5, [%rd6+16];");
    assert!(
        problem.contains("at 0x10, outside every argument"),
        "{problem}"
    );
}

#[test]
fn turns_of_shared_memory_and_sectors_are_those_of_the_addresses() {
    let of = |body: &str| {
        let (_, counts) = counted(body, &Options::default()).expect("it is executed");
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        [
            sum(&counts.wavefronts),
            sum(&counts.ideal_wavefronts),
            sum(&counts.sectors),
            sum(&counts.bytes),
        ]
    };
    // Two warps, a word a lane: a turn each, and 128 bytes in four sectors.
    assert_eq!(of("st.shared.u32 [%r4], %r1;"), [2, 2, 0, 0]);
    assert_eq!(of("ld.global.u32 %r5, [%rd4];"), [0, 0, 8, 256]);
    // Every second word, within the 256 bytes: two words in half of the banks.
    let strided = "and.b32 %r5, %r1, 31;\nshl.b32 %r5, %r5, 3;\nadd.s32 %r5, %r5, %r2;\nst.shared.u32 [%r5], %r1;";
    assert_eq!(of(strided), [4, 2, 0, 0]);
    // One word for all: the lanes share it, and the bytes they ask for still fill a turn.
    assert_eq!(of("st.shared.u32 [%r2], %r1;"), [2, 2, 0, 0]);
    // Sixteen bytes a lane, eight lanes a turn; the lanes of one warp have them all.
    let wide = "and.b32 %r5, %r1, 15;\nshl.b32 %r5, %r5, 4;\nadd.s32 %r5, %r5, %r2;\n\
                setp.ge.s32 %p1, %r1, 16;\n@%p1 bra $out;\nst.shared.v4.u32 [%r5], {%r1, %r1, %r1, %r1};\n$out:";
    assert_eq!(of(wide), [2, 2, 0, 0]);
    // A word in every sector.
    let sparse = "and.b32 %r5, %r1, 7;\nmul.wide.u32 %rd6, %r5, 32;\nadd.s64 %rd6, %rd1, %rd6;\nld.global.u32 %r6, [%rd6];";
    assert_eq!(of(sparse), [0, 0, 16, 64]);
}
