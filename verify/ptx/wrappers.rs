//! Each wrapper of `cuda/ptx` by itself, in the kernels of `cuda/simt/zoo/wrappers.cu`: the emulator's counterpart of the
//! instruction and the PTX that nvcc made of it are both held to what the PTX ISA says.

use std::collections::BTreeSet;
use std::path::Path;

use keel::error::Result;
use keel::executor::simt::{self, Argument, Element, Emulator};
use keel_ptx::{
    Approximation, Code, CopyTiming, Extent, Launch, Memory, Module, Options, launch, wrappers_text,
};

/// Words of a kernel's input and of its output.
pub const WORDS: usize = 512;

/// What a kernel must leave, of its input. Words that it does not write stay zero.
type Right = fn(&[u32]) -> Vec<u32>;

/// One wrapper.
struct Wrapper {
    name: &'static str,
    input: fn() -> Vec<u32>,
    right: Right,
    /// The results are f32, and may be this share of theirs away.
    relative_error: f64,
}

const fn exact(name: &'static str, input: fn() -> Vec<u32>, right: Right) -> Wrapper {
    Wrapper {
        name,
        input,
        right,
        relative_error: 0.0,
    }
}

const WRAPPERS: &[Wrapper] = &[
    exact("shared_address", numbers, |_| {
        (0..128).map(|i| 4 * i).collect()
    }),
    exact("bf16_bits", floats, |input| {
        input[..128].iter().map(|x| bf16(*x)).collect()
    }),
    exact("bf16_pair_bits", floats, |input| {
        let pair = |i: usize| bf16(input[i]) | bf16(input[128 + i]) << 16;
        (0..128).map(pair).collect()
    }),
    Wrapper {
        name: "exp2_approximate",
        input: exponents,
        right: |input| {
            let power = |x: &u32| (f64::from(f32::from_bits(*x)).exp2() as f32).to_bits();
            input[..128].iter().map(power).collect()
        },
        // The error that the ISA states, and the rounding of what is right.
        relative_error: 1.0 / (1 << 22) as f64 + 1.0 / (1 << 24) as f64,
    },
    Wrapper {
        name: "reciprocal_approximate",
        input: exponents,
        right: |input| {
            let one_over = |x: &u32| (1.0 / f64::from(f32::from_bits(*x)) as f32).to_bits();
            input[..128].iter().map(one_over).collect()
        },
        // One unit in the last place, and the rounding of what is right.
        relative_error: 1.0 / (1 << 23) as f64 + 1.0 / (1 << 24) as f64,
    },
    exact("cp_async_16", numbers, |input| {
        let word = |i: usize| cut(input[i], i / 4 % 17, i % 4);
        by_neighbour(word)
    }),
    exact("cp_async_8", numbers, |input| {
        by_neighbour(|i| match i % 4 {
            0 | 1 => cut(input[i], i / 4 % 9, i % 4),
            _ => input[i],
        })
    }),
    exact("cp_async_4", numbers, |input| {
        by_neighbour(|i| match i % 4 {
            3 => cut(input[i - 3], i / 4 % 5, 0),
            place => input[i - place + 3 - place],
        })
    }),
    exact("cp_async_commit", numbers, |input| {
        by_neighbour(|i| input[i])
    }),
    exact("cp_async_wait", numbers, <[u32]>::to_vec),
    exact("cp_async_wait_all", numbers, |input| {
        by_neighbour(|i| input[i])
    }),
    exact("ldmatrix_x4", numbers, |input| {
        matrices(input, 4, |g, t| [(g, 2 * t), (g, 2 * t + 1)])
    }),
    exact("ldmatrix_x4_transposed", numbers, |input| {
        matrices(input, 4, |g, t| [(2 * t, g), (2 * t + 1, g)])
    }),
    exact("ldmatrix_x2", numbers, |input| {
        matrices(input, 2, |g, t| [(g, 2 * t), (g, 2 * t + 1)])
    }),
    exact("ldmatrix_x2_transposed", numbers, |input| {
        matrices(input, 2, |g, t| [(2 * t, g), (2 * t + 1, g)])
    }),
    exact("mma_bf16_16x8x16", fragments, product),
    exact("barrier_sync", numbers, |input| {
        let of = |i: usize| {
            let other = input[i ^ 33];
            if i < 64 {
                other
            } else {
                other.wrapping_mul(2).wrapping_add(1)
            }
        };
        (0..128).map(of).collect()
    }),
    exact("barrier_arrive", numbers, |input| {
        let of = |i: usize| match i {
            0..32 => 0,
            _ => input[31 - i % 32].wrapping_mul(2).wrapping_add(1),
        };
        (0..128).map(of).collect()
    }),
];

// ---- Inputs ----

/// Words that all differ, in every byte.
pub fn numbers() -> Vec<u32> {
    (1..=WORDS as u32)
        .map(|i| i.wrapping_mul(0x9e37_79b1))
        .collect()
}

/// Floats of all sizes: halfway between two bf16, infinities, NaN, subnormal numbers.
fn floats() -> Vec<u32> {
    let special = [
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x3f80_7fff,
        0x7f7f_ffff,
        0xff80_0000,
        0x7f80_0000,
        0x7fc0_0001,
        0xffc0_0000,
        0x7f80_0001,
        0x0000_8000,
        0x8001_8000,
    ];
    let mut all = numbers();
    all[..special.len()].copy_from_slice(&special);
    all[128 + 64..][..special.len()].copy_from_slice(&special);
    all
}

/// From -126, below which results are flushed to zero, to 127.
fn exponents() -> Vec<u32> {
    let mut all = vec![0; WORDS];
    for (i, word) in all.iter_mut().enumerate() {
        *word = (i as f32 * 1.984 - 126.0).to_bits();
    }
    all[0] = f32::NEG_INFINITY.to_bits();
    all[1] = 0.0f32.to_bits();
    all[2] = 1.0f32.to_bits();
    all
}

/// Of each lane four words of A, two of B and four floats of D: whole numbers that all sums hold exactly.
fn fragments() -> Vec<u32> {
    let half = |i: usize| bf16(((i * 7 % 23) as f32 - 11.0).to_bits());
    let mut all = vec![0; WORDS];
    for (i, word) in all.iter_mut().enumerate().take(320) {
        *word = match i % 10 {
            0..6 => half(2 * i) | half(2 * i + 1) << 16,
            _ => (i as f32).to_bits(),
        };
    }
    all
}

// ---- What is right ----

/// To the nearest bf16, ties to even; of a NaN 0x7fff.
pub fn bf16(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() {
        return 0x7fff;
    }
    let below = bits >> 16;
    match (bits & 0xffff).cmp(&0x8000) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Greater => below + 1,
        std::cmp::Ordering::Equal => below + below % 2,
    }
}

/// Of word number `place` of a copy of which `bytes` bytes are read.
fn cut(word: u32, bytes: usize, place: usize) -> u32 {
    let kept = bytes.saturating_sub(4 * place).min(4);
    match kept {
        4 => word,
        _ => word & ((1 << (8 * kept)) - 1),
    }
}

/// What thread i reads of thread i ^ 1, whose words are those of `word`.
fn by_neighbour(word: impl Fn(usize) -> u32) -> Vec<u32> {
    (0..WORDS).map(|i| word(i ^ 4)).collect()
}

/// What each lane receives of `count` matrices, whose rows are given by lanes in another order: of lane 4g + t the two
/// elements that `places` names by row and column.
fn matrices(
    input: &[u32],
    count: usize,
    places: fn(usize, usize) -> [(usize, usize); 2],
) -> Vec<u32> {
    let element = |matrix: usize, (row, column): (usize, usize)| {
        let from = (8 * matrix + row) * 5 % 32;
        input[4 * from + column / 2] >> (16 * (column % 2)) & 0xffff
    };
    let of = |i: usize| {
        let (lane, matrix) = (i / count, i % count);
        let [low, high] = places(lane / 4, lane % 4).map(|place| element(matrix, place));
        low | high << 16
    };
    (0..32 * count).map(of).collect()
}

/// D + A · B, by the layout of the fragments in the PTX ISA, "Matrix Fragments for mma.m16n8k16".
fn product(input: &[u32]) -> Vec<u32> {
    let value = |word: u32, half: usize| f32::from_bits(word >> (16 * half) << 16);
    let (mut a, mut b, mut d) = ([[0.0f32; 16]; 16], [[0.0f32; 8]; 16], [[0.0f32; 8]; 16]);
    for lane in 0..32 {
        let (own, g, t) = (&input[10 * lane..][..10], lane / 4, lane % 4);
        for half in 0..2 {
            for i in 0..4 {
                a[g + 8 * (i % 2)][2 * t + half + 8 * (i / 2)] = value(own[i], half);
            }
            for i in 0..2 {
                b[2 * t + half + 8 * i][g] = value(own[4 + i], half);
                d[g + 8 * i][2 * t + half] = f32::from_bits(own[6 + 2 * i + half]);
            }
        }
    }
    let element = |row: usize, column: usize| {
        let sum: f32 = (0..16).map(|k| a[row][k] * b[k][column]).sum();
        (d[row][column] + sum).to_bits()
    };
    let of = |i: usize| {
        let (lane, i) = (i / 4, i % 4);
        element(lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2)
    };
    (0..128).map(of).collect()
}

// ---- Running ----

fn on_the_emulator(
    emulator: &Emulator,
    wrapper: &Wrapper,
    options: &simt::Options<'_>,
) -> Result<Vec<u32>> {
    let kernel = emulator.kernel(&format!("zoo_wrapper_{}", wrapper.name))?;
    let mut input = emulator.allocate(Element::U32, WORDS)?;
    let mut output = emulator.allocate(Element::U32, WORDS)?;
    input.write(&(wrapper.input)())?;
    output.write(&[0u32; WORDS])?;
    let arguments = [Argument::whole(&output), Argument::whole(&input)];
    let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
    let bytes = kernel.shared_bytes;
    emulator.launch(&kernel, [1, 1, 1], block, bytes, &arguments, options)?;
    output.read()
}

fn on_the_machine(
    module: &Module,
    wrapper: &Wrapper,
    options: &Options,
) -> std::result::Result<Vec<u32>, String> {
    let code = Code::decode(module, &format!("zoo_wrapper_{}", wrapper.name))?;
    let mut memory = Memory::default();
    let [to, from] = [0; 2].map(|_| memory.allocate(4 * WORDS));
    let bytes = |words: &[u32]| {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        bytes.collect::<Vec<u8>>()
    };
    memory.write(from, 0, &bytes(&(wrapper.input)()));
    memory.write(to, 0, &[0; 4 * WORDS]);
    let extents = [(to, true), (from, false)].map(|(allocation, is_writable)| Extent {
        start: memory.get(allocation).start,
        bytes: 4 * WORDS as u64,
        is_writable,
        allocation,
    });
    let launched = Launch {
        code: &code,
        grid: [1, 1, 1],
        threads: code.threads,
        arguments: &extents.map(|extent| extent.start),
        extents: &extents,
        maps: &[],
    };
    launch(&launched, [0], &mut memory, options, None)?;
    let words = memory.get(to).data.chunks_exact(4);
    let words = words.map(|word| u32::from_le_bytes([0, 1, 2, 3].map(|i| word[i])));
    Ok(words.collect())
}

/// Whether `found` is what the wrapper must leave.
fn hold(wrapper: &Wrapper, where_: &str, found: &[u32]) {
    let mut right = (wrapper.right)(&(wrapper.input)());
    right.resize(WORDS, 0);
    for (at, (found, right)) in found.iter().zip(&right).enumerate() {
        let [found_value, right_value] =
            [found, right].map(|bits| f64::from(f32::from_bits(*bits)));
        let allowed = wrapper.relative_error * right_value.abs();
        let is_near = wrapper.relative_error > 0.0 && (found_value - right_value).abs() <= allowed;
        assert!(
            found == right || is_near,
            "{} {where_}: word {at} is {found:#010x}, not {right:#010x}",
            wrapper.name
        );
    }
}

#[test]
fn each_wrapper_does_on_the_emulator_what_the_isa_says() {
    let Ok(emulator) = Emulator::new().inspect_err(|reason| eprintln!("not run: {reason}")) else {
        return;
    };
    for wrapper in WRAPPERS {
        for options in simt::Options::proof(7) {
            let found = on_the_emulator(&emulator, wrapper, &options)
                .unwrap_or_else(|problem| panic!("{}: {problem}", wrapper.name));
            hold(wrapper, "on the emulator", &found);
        }
    }
}

#[test]
fn each_wrapper_is_ptx_that_does_what_the_isa_says() {
    let text = match wrappers_text("wrappers") {
        Ok(text) => text,
        Err(reason) => return eprintln!("PTX is not run: {reason}"),
    };
    let module = Module::parse(&text).expect("the machine reads it");
    let late = Options::default();
    let early = Options {
        copies: CopyTiming::Early,
        runs_backwards: true,
        approximation: Approximation::Moved(7),
        ..late
    };
    for wrapper in WRAPPERS {
        for options in [late, early] {
            let found = on_the_machine(&module, wrapper, &options)
                .unwrap_or_else(|problem| panic!("{}: {problem}", wrapper.name));
            hold(wrapper, "as PTX", &found);
        }
    }
}

/// The device functions that the headers of a folder declare, those of its folders left out.
pub fn declared(folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut declared = BTreeSet::new();
    for file in std::fs::read_dir(folder).expect("it is part of the repository") {
        let file = file.expect("it is listed").path();
        if file.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(file).expect("it is text");
        for line in text.lines() {
            let Some(rest) = line.trim_start().strip_prefix("DEVICE ") else {
                continue;
            };
            let (head, _) = rest.split_once('(').expect("a wrapper is a function");
            let name = head.rsplit(' ').next().expect("it has a name");
            // One shape of a product is reached by the wrapper of all shapes alone.
            if !name.ends_with("_shape") {
                declared.insert(name.to_owned());
            }
        }
    }
    declared
}

#[test]
fn every_wrapper_of_cuda_ptx_is_tried_by_itself() {
    let tried = WRAPPERS.iter().map(|wrapper| wrapper.name.to_owned());
    let tried: BTreeSet<String> = tried.collect();
    assert_eq!(declared("cuda/ptx"), tried);
}
