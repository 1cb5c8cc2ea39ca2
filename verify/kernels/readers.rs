//! Assembler text, disassembly, headers and occupancy.

use std::collections::HashMap;

use keel::executor::kernel_table::{IMAGES, KERNELS};
use keel_kernel_report::{CHIPS, Chip, Mix, catalogue, headers, read_assembler, sass};

const ASSEMBLER: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'tile_bf16' for 'sm_90a'
ptxas info    : Function properties for tile_bf16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'tile_bf16'
ptxas info    : Used 168 registers, used 3 barriers, 4096 bytes smem
ptxas info    : Compile time = 8.329 ms
ptxas info    : Compiling entry function 'tile_bf16' for 'sm_80'
ptxas warning : Registers are spilled to local memory in function 'tile_bf16', 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Function properties for tile_bf16
    24 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 400 bytes cmem[0]
ptxas info    : Function properties for helper
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";

#[test]
fn the_assemblers_numbers_and_remarks_are_read_for_each_architecture() {
    let report = read_assembler(ASSEMBLER);
    let [new, old] = &report.kernels[..] else {
        panic!("one kernel for two architectures, found {report:#?}");
    };
    assert_eq!(
        (new.kernel.as_str(), new.arch.as_str()),
        ("tile_bf16", "sm_90a")
    );
    let numbers = |a: &keel_kernel_report::Assembled| {
        [
            a.registers,
            a.barriers,
            a.static_shared_bytes,
            a.stack_bytes,
            a.spill_store_bytes,
            a.spill_load_bytes,
        ]
    };
    assert_eq!(numbers(new), [168, 3, 4096, 0, 0, 0]);
    assert_eq!(old.arch, "sm_80");
    // 40: the larger of the kernel's frame and that of a function it calls.
    assert_eq!(numbers(old), [255, 1, 0, 40, 12, 16]);
    assert_eq!(report.remarks.len(), 2, "{:?}", report.remarks);
    assert!(report.remarks[0].contains("C7510") && report.remarks[1].contains("spilled"));
}

const DISASSEMBLY: &str = "
\tcode for sm_80
\t\tFunction : tile_bf16
\t.headerflags\t@\"EF_CUDA_SM80\"
        /*0000*/                   MOV R1, c[0x0][0x28] ;            /* 0x00000a0000017a02 */
                                                                     /* 0x000fc40000000f00 */
        /*0010*/              @!P1 LDG.E.128.CONSTANT R4, [R2.64] ;  /* 0x0000000402047981 */
        /*0020*/                   LDG.E.U16 R5, [R2.64] ;           /* 0x0000000402057981 */
        /*0030*/                   LDG.E R6, [R2.64+0x8] ;           /* 0x0000080402067981 */
        /*0040*/                   LDGSTS.E.BYPASS.128 [R7], [R2.64] ; /* 0x0000000002077fae */
        /*0050*/               @P0 HMMA.16816.F32.BF16 R8, R4, R12, R8 ; /* 0x0000000c0408723c */
        /*0060*/                   LDSM.16.M88.4 R12, [R7] ;         /* 0x00000000070c783b */
        /*0070*/                   MUFU.EX2 R4, R4 ;                 /* 0x0000000400047308 */
        /*0080*/                   STL.64 [R1+0x8], R4 ;             /* 0x0000080401007387 */
        /*0090*/                   EXIT ;                            /* 0x000000000000794d */
        /*00a0*/                   NOP ;                             /* 0x0000000000007918 */
\tcode for sm_90a
\t\tFunction : tile_bf16
        /*0000*/                   EXIT ;                            /* 0x000000000000794d */
";

#[test]
fn instructions_are_counted_by_kernel_architecture_and_width() {
    let census = sass::count(DISASSEMBLY);
    assert_eq!(census.len(), 2);
    let key = |arch: &str| (arch.to_owned(), "tile_bf16".to_owned());
    let mix = Mix(census[&key("sm_80")].clone());
    assert_eq!(mix.all(), 10, "{mix:?}: padding does not count");
    assert_eq!((mix.tensor(), mix.local()), (1, 1));
    for (name, count) in [
        ("LDG", 3),
        ("LDG.128", 1),
        ("LDG.16", 1),
        ("LDG.32", 1),
        ("LDGSTS", 1),
        ("LDSM", 1),
        ("MUFU.EX2", 1),
        ("STL.64", 1),
        ("BAR", 0),
    ] {
        assert_eq!(mix.of(name), count, "{name} in {mix:?}");
    }
    assert_eq!(mix.landmarks(), ["HMMA", "LDSM", "LDGSTS", "LDG.128"]);
    assert_eq!(Mix(census[&key("sm_90a")].clone()).all(), 1);
    assert_eq!(sass::read(&sass::write(&census)), census);
}

/// Blocks a multiprocessor holds and what limits them, as NVIDIA's occupancy calculator gives them.
#[test]
fn occupancy_follows_the_limits_of_each_chip() {
    let chip = |name: &str| -> Chip {
        *CHIPS
            .iter()
            .find(|chip| chip.name == name)
            .expect("a known chip")
    };
    let kib = 1024;
    for (name, threads, registers, shared, blocks, percent, limit) in [
        ("A100", 256, 32, 0, 8, 100, "warps"),
        ("A100", 32, 16, 0, 32, 50, "blocks"),
        ("A100", 128, 255, 0, 2, 13, "registers"),
        ("A100", 256, 64, 0, 4, 50, "registers"),
        ("A100", 256, 32, 80 * kib, 2, 25, "shared memory"),
        ("RTX 3090", 256, 32, 0, 6, 100, "warps"),
        ("RTX 3090", 256, 64, 0, 4, 67, "registers"),
        ("RTX 3090", 128, 32, 99 * kib, 1, 8, "shared memory"),
        ("RTX 4090", 128, 32, 100 * kib, 0, 0, "shared memory"),
        ("H100", 384, 168, 227 * kib, 1, 19, "registers"),
        ("H100", 1024, 33, 0, 1, 50, "registers"),
    ] {
        let found = chip(name).occupancy(threads, registers, shared);
        assert_eq!(
            (found.blocks, found.percent, found.limit),
            (blocks, percent, limit),
            "{name}: {threads} threads, {registers} registers, {shared} bytes: {found:?}"
        );
    }
}

#[test]
fn headers_are_read_by_field_and_lines_run_on() {
    let source = "\
// The ops of a file.
#include \"elem.cuh\"

// scale_<f32|bf16>: y = a x,
// for everyone.
// Math     : y = a x
//            in f32
// Work     : n flop; reads n B       bound: memory
template <class T> DEVICE void scale() {}
// An ordinary remark: not a header.
";
    let found = headers(source);
    let [header] = &found[..] else {
        panic!("one header, found {found:#?}");
    };
    assert_eq!(header.title, "scale_<f32|bf16>");
    assert_eq!(header.sentence, "y = a x, for everyone.");
    assert_eq!(header.field("Math"), Some("y = a x in f32"));
    assert_eq!(header.bound(), Some("memory"));
}

#[test]
fn every_kernel_of_the_images_is_known_with_its_machine_code() {
    let catalogue = catalogue();
    assert_eq!(catalogue.kernels.len(), KERNELS.len());
    let mut codes = HashMap::new();
    for facts in &catalogue.kernels {
        codes.insert(facts.name, facts.codes.len());
        for code in &facts.codes {
            assert!(code.assembled.registers > 0, "{facts:?}");
            assert!(
                code.mix.as_ref().is_none_or(|mix| mix.of("EXIT") > 0),
                "{facts:?}"
            );
        }
    }
    if !IMAGES.is_empty() {
        for facts in &catalogue.kernels {
            let wanted = if facts.stem.ends_with("_sm90") { 1 } else { 2 };
            assert_eq!(
                codes[facts.name], wanted,
                "{}: sm_80 and sm_90a",
                facts.name
            );
        }
    }
}
