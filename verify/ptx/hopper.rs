//! Each wrapper of `cuda/ptx/hopper` by itself, in the kernels of `cuda/simt/zoo/wrappers_sm90.cu`: what the emulator does for it, and
//! the PTX that nvcc made of it, are held to what the PTX ISA says. The layouts in shared memory are computed here once more, from the ISA's formulas.

use std::collections::BTreeSet;

use keel::error::Result;
use keel::executor::simt::{Argument, Element, Emulator, Options};
use keel::launch::{KernelEntry, Mapped, Parameter, Swizzle, TensorMap, TensorMapShape};
use keel::tensor::DType;
use keel_ptx::{
    Code, CopyTiming, Extent, Launch, Memory, Module, TensorArgument, launch, wrappers_text,
};

use super::wrappers::{WORDS, bf16, declared, numbers};

/// A tensor map of the kernel's input, or of its output.
struct Map {
    is_of_output: bool,
    offset: usize,
    element: DType,
    shape: TensorMapShape<'static>,
}

/// One kernel and the wrappers that it tries.
struct Wrapper {
    name: &'static str,
    tries: &'static [&'static str],
    cluster: u32,
    maps: &'static [Map],
    input: fn() -> Vec<u32>,
    right: fn(&[u32]) -> Vec<u32>,
}

/// 14 rows of 32 words, boxes of 8 rows.
const ROWS: Map = Map {
    is_of_output: false,
    offset: 0,
    element: DType::Bf16,
    shape: TensorMapShape {
        dims: &[64, 14],
        strides: &[128],
        box_dims: &[64, 8],
        swizzle: Swizzle::Span128,
    },
};
/// 64 rows of 64 bf16 that overlap: each starts 16 bytes behind the last, so that they fit into the input.
const TILE: TensorMapShape<'static> = TensorMapShape {
    dims: &[64, 64],
    strides: &[16],
    box_dims: &[64, 64],
    swizzle: Swizzle::Span128,
};
/// Where the second tile starts, in bytes.
const SECOND: usize = 512;

const fn tile(offset: usize, shape: TensorMapShape<'static>) -> Map {
    Map {
        is_of_output: false,
        offset,
        element: DType::Bf16,
        shape,
    }
}

const fn alone(
    name: &'static str,
    tries: &'static [&'static str],
    maps: &'static [Map],
    right: fn(&[u32]) -> Vec<u32>,
) -> Wrapper {
    Wrapper {
        name,
        tries,
        cluster: 1,
        maps,
        input: numbers,
        right,
    }
}

const WRAPPERS: &[Wrapper] = &[
    alone(
        "mbarrier_arrive",
        &[
            "mbarrier_arrive",
            "mbarrier_init",
            "fence_barrier_init",
            "mbarrier_wait",
        ],
        &[],
        |input| {
            let of = |i: usize| input[(i + 32) % 128].wrapping_mul(2).wrapping_add(1);
            (0..128).map(of).collect()
        },
    ),
    alone(
        "mbarrier_invalidate",
        &["mbarrier_invalidate"],
        &[],
        |input| {
            let of = |i: usize| match i {
                0..128 => input[0].wrapping_add(i as u32),
                192..256 => input[255 - i],
                _ => 0,
            };
            (0..256).map(of).collect()
        },
    ),
    alone("tensor_load_2d", &["tensor_load_2d"], &[ROWS], |input| {
        permuted(|row, word| match row + 8 {
            row @ 0..14 => input[32 * row + word],
            _ => 0,
        })
    }),
    alone(
        "mbarrier_arrive_expect",
        &["mbarrier_arrive_expect"],
        &[ROWS],
        |input| {
            let mut both = permuted(|row, word| match (row, word) {
                (2.., 4..) => input[32 * (row - 2) + word - 4],
                _ => 0,
            });
            both.extend(permuted(|row, word| input[32 * row + word]));
            both
        },
    ),
    alone(
        "tensor_load_3d",
        &["tensor_load_3d"],
        &[Map {
            is_of_output: false,
            offset: 0,
            element: DType::F32,
            shape: TensorMapShape {
                dims: &[8, 7, 5],
                strides: &[32, 224],
                box_dims: &[4, 3, 4],
                swizzle: Swizzle::None,
            },
        }],
        |input| {
            let of = |i: usize| match [4 + i % 4, 5 + i / 4 % 3, 2 + i / 12] {
                [x, y @ 0..7, z @ 0..5] => input[x + 8 * (y + 7 * z)],
                _ => 0,
            };
            (0..48).map(of).collect()
        },
    ),
    alone(
        "tensor_load_4d",
        &["tensor_load_4d"],
        &[Map {
            is_of_output: false,
            offset: 0,
            element: DType::F32,
            shape: TensorMapShape {
                dims: &[8, 3, 4, 5],
                strides: &[32, 96, 384],
                box_dims: &[4, 2, 3, 2],
                swizzle: Swizzle::None,
            },
        }],
        |input| {
            let of = |i: usize| match [4 + i % 4, 1 + i / 4 % 2, 2 + i / 8 % 3, 3 + i / 24] {
                [x, y, z @ 0..4, w] => input[x + 8 * (y + 3 * (z + 4 * w))],
                _ => 0,
            };
            (0..48).map(of).collect()
        },
    ),
    alone(
        "tensor_store_2d",
        &[
            "tensor_store_2d",
            "bulk_commit",
            "bulk_wait",
            "bulk_wait_read",
            "fence_proxy_async",
        ],
        &[Map {
            is_of_output: true,
            ..ROWS
        }],
        |input| {
            let mut all = vec![0; WORDS];
            for row in 0..8 {
                for word in 0..32 {
                    let from = place(row, word);
                    all[32 * row + word] = input[from];
                    // Rows 14 and 15 lie outside the map.
                    if row < 4 {
                        all[32 * (10 + row) + word] = input[256 + from];
                    }
                }
            }
            all
        },
    ),
    Wrapper {
        cluster: 2,
        ..alone(
            "mbarrier_arrive_remote",
            &[
                "mbarrier_arrive_remote",
                "cluster_rank",
                "map_peer",
                "cluster_arrive",
                "cluster_wait",
            ],
            &[],
            |input| {
                let of = |i: usize| input[i % 128].wrapping_add(i as u32 / 128);
                (0..256).map(of).collect()
            },
        )
    },
    Wrapper {
        cluster: 2,
        ..alone(
            "tensor_load_2d_multicast",
            &["tensor_load_2d_multicast"],
            &[tile(
                0,
                TensorMapShape {
                    dims: &[64, 16],
                    strides: &[128],
                    box_dims: &[64, 4],
                    swizzle: Swizzle::None,
                },
            )],
            |input| {
                let of = |i: usize| input[i % 256].wrapping_add(i as u32 / 256);
                (0..512).map(of).collect()
            },
        )
    },
    alone("elect_one", &["elect_one"], &[], |input| {
        input[..128].iter().map(|x| x.wrapping_add(17)).collect()
    }),
    alone("stmatrix_x4", &["stmatrix_x4"], &[], |input| {
        matrices(|matrix, row, column| {
            input[4 * (4 * row + column / 2) + matrix] >> (16 * (column % 2))
        })
    }),
    alone(
        "stmatrix_x4_transposed",
        &["stmatrix_x4_transposed"],
        &[],
        |input| {
            matrices(|matrix, row, column| {
                input[4 * (4 * column + row / 2) + matrix] >> (16 * (row % 2))
            })
        },
    ),
    Wrapper {
        input: halves,
        ..alone(
            "wgmma",
            &[
                "wgmma",
                "wgmma_fence",
                "wgmma_commit",
                "wgmma_wait",
                "settle_accumulators",
            ],
            &[
                tile(0, TILE),
                tile(
                    SECOND,
                    TensorMapShape {
                        box_dims: &[64, 8],
                        ..TILE
                    },
                ),
            ],
            |input| {
                product(
                    |row, k| of_tile(input, 0, row, k),
                    |k, column| of_tile(input, SECOND, column, k),
                )
            },
        )
    },
    Wrapper {
        input: halves,
        ..alone(
            "wgmma_fragment",
            &["wgmma_fragment"],
            &[tile(0, TILE), tile(SECOND, TILE)],
            |input| {
                product(
                    |row, k| ((row + 2 * k) % 7) as f32,
                    |k, column| of_tile(input, SECOND, k, 40 + column),
                )
            },
        )
    },
    Wrapper {
        input: halves,
        ..alone(
            "tile_descriptor",
            &["tile_descriptor"],
            &[tile(0, TILE), tile(SECOND, TILE)],
            |input| {
                product(
                    |row, k| of_tile(input, 0, k, row),
                    |k, column| of_tile(input, SECOND, k, 8 + column),
                )
            },
        )
    },
    alone(
        "increase_registers",
        &["increase_registers", "decrease_registers"],
        &[],
        |input| {
            let of = |i: usize| input[i].wrapping_add(i as u32 / 128);
            (0..256).map(of).collect()
        },
    ),
];

// ---- Inputs and what is right ----

/// Pairs of bf16: whole numbers that all sums hold exactly.
fn halves() -> Vec<u32> {
    let half = |i: usize| bf16(((i * 7 % 23) as f32 - 11.0).to_bits());
    (0..WORDS)
        .map(|i| half(2 * i) | half(2 * i + 1) << 16)
        .collect()
}

/// Where a box with the 128-byte swizzle has a word, counted from its start: the 16-byte pieces of row r change places by r.
/// PTX ISA, "Tensors: Swizzling Modes".
fn place(row: usize, word: usize) -> usize {
    32 * row + 4 * ((word / 4) ^ (row % 8)) + word % 4
}

/// 8 rows of 32 words as such a box lies.
fn permuted(word_of: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    let mut all = vec![0; 256];
    for row in 0..8 {
        for word in 0..32 {
            all[place(row, word)] = word_of(row, word);
        }
    }
    all
}

/// Four matrices whose rows are stored where lane 8·matrix + row says: row r of the 32 at the place of row 5·r mod 32.
fn matrices(element: impl Fn(usize, usize, usize) -> u32) -> Vec<u32> {
    let mut all = vec![0; 128];
    for (matrix, row, word) in (0..128).map(|i| (i / 32, i / 4 % 8, i % 4)) {
        let [low, high] =
            [2 * word, 2 * word + 1].map(|column| element(matrix, row, column) & 0xffff);
        all[4 * ((8 * matrix + row) * 5 % 32) + word] = low | high << 16;
    }
    all
}

/// An element of a tile whose rows start 16 bytes behind each other.
fn of_tile(input: &[u32], offset: usize, row: usize, column: usize) -> f32 {
    let half = offset / 2 + 8 * row + column;
    f32::from_bits(input[half / 2] >> (16 * (half % 2)) << 16)
}

/// [64, 8] of sums over 64 of k.
fn product(a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32) -> Vec<u32> {
    let element = |i: usize| (0..64).map(|k| a(i / 8, k) * b(k, i % 8)).sum::<f32>();
    (0..512).map(|i| element(i).to_bits()).collect()
}

// ---- Running ----

static KERNEL: KernelEntry = KernelEntry {
    name: "zoo_wrapper",
    stem: "wrappers_sm90",
    parameters: &[Parameter::TensorMap],
    cluster: 1,
};

fn on_the_emulator(
    emulator: &Emulator,
    wrapper: &Wrapper,
    options: &Options<'_>,
) -> Result<Vec<u32>> {
    let kernel = emulator.kernel(&format!("zoo_wrapper_{}", wrapper.name))?;
    let mut input = emulator.allocate(Element::U32, WORDS)?;
    let mut output = emulator.allocate(Element::U32, WORDS)?;
    input.write(&(wrapper.input)())?;
    output.write(&[0u32; WORDS])?;
    let mut arguments = vec![Argument::whole(&output), Argument::whole(&input)];
    for map in wrapper.maps {
        let buffer = if map.is_of_output { &output } else { &input };
        arguments.push(Argument::TensorMap {
            buffer,
            offset: map.offset,
            bytes: buffer.bytes() - map.offset,
            map: TensorMap::new(
                &KERNEL,
                Mapped::Input(0),
                map.offset,
                map.element,
                map.shape,
            )?,
            is_writable: map.is_of_output,
        });
    }
    let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
    emulator.launch_clusters(
        &kernel,
        wrapper.cluster,
        [wrapper.cluster, 1, 1],
        block,
        kernel.shared_bytes,
        &arguments,
        options,
    )?;
    output.read()
}

#[test]
fn each_wrapper_of_the_hopper_tier_does_on_the_emulator_what_the_isa_says() {
    let Ok(emulator) = Emulator::new().inspect_err(|reason| eprintln!("not run: {reason}")) else {
        return;
    };
    for wrapper in WRAPPERS {
        let mut right = (wrapper.right)(&(wrapper.input)());
        right.resize(WORDS, 0);
        for options in Options::proof(7) {
            let found = on_the_emulator(&emulator, wrapper, &options)
                .unwrap_or_else(|problem| panic!("{}: {problem}", wrapper.name));
            for (at, (found, right)) in found.iter().zip(&right).enumerate() {
                assert_eq!(
                    found, right,
                    "{}: word {at} under {options:?}",
                    wrapper.name
                );
            }
        }
    }
}

/// The kernel's PTX on the machine, which executes single blocks.
fn on_the_machine(
    module: &Module,
    wrapper: &Wrapper,
    options: &keel_ptx::Options,
) -> std::result::Result<Vec<u32>, String> {
    let code = Code::decode(module, &format!("zoo_wrapper_{}", wrapper.name))?;
    let mut memory = Memory::default();
    let [to, from] = [0; 2].map(|_| memory.allocate(4 * WORDS));
    memory.write(from, 0, bytemuck::cast_slice(&(wrapper.input)()));
    memory.write(to, 0, &[0; 4 * WORDS]);
    let extents = [(to, true), (from, false)].map(|(allocation, is_writable)| Extent {
        start: memory.get(allocation).start,
        bytes: 4 * WORDS as u64,
        is_writable,
        allocation,
    });
    let mut arguments: Vec<u64> = extents.iter().map(|extent| extent.start).collect();
    let mut maps = Vec::new();
    for map in wrapper.maps {
        arguments.push(TensorArgument::bits(maps.len()));
        let start = extents[usize::from(!map.is_of_output)].start;
        let made = TensorMap::new(
            &KERNEL,
            Mapped::Input(0),
            map.offset,
            map.element,
            map.shape,
        );
        maps.push(TensorArgument {
            address: start + map.offset as u64,
            map: made.map_err(|problem| problem.to_string())?,
        });
    }
    let launched = Launch {
        code: &code,
        grid: [1, 1, 1],
        threads: code.threads,
        arguments: &arguments,
        extents: &extents,
        maps: &maps,
    };
    launch(&launched, [0], &mut memory, options, None)?;
    let words = memory.get(to).data.chunks_exact(4);
    let words = words.map(|word| u32::from_le_bytes([0, 1, 2, 3].map(|i| word[i])));
    Ok(words.collect())
}

#[test]
fn each_wrapper_of_the_hopper_tier_is_ptx_that_does_what_the_isa_says() {
    let text = match wrappers_text("wrappers_sm90") {
        Ok(text) => text,
        Err(reason) => return eprintln!("PTX is not run: {reason}"),
    };
    let module = Module::parse(&text).expect("the machine reads it");
    let late = keel_ptx::Options::default();
    let early = keel_ptx::Options {
        copies: CopyTiming::Early,
        runs_backwards: true,
        ..late
    };
    for wrapper in WRAPPERS {
        if wrapper.cluster > 1 {
            let problem =
                on_the_machine(&module, wrapper, &late).expect_err("clusters are not executed");
            assert!(problem.contains("is not"), "{problem}");
            continue;
        }
        let mut right = (wrapper.right)(&(wrapper.input)());
        right.resize(WORDS, 0);
        for options in [late, early] {
            let found = on_the_machine(&module, wrapper, &options)
                .unwrap_or_else(|problem| panic!("{}: {problem}", wrapper.name));
            for (at, (found, right)) in found.iter().zip(&right).enumerate() {
                assert_eq!(
                    found, right,
                    "{}: word {at} as PTX, {options:?}",
                    wrapper.name
                );
            }
        }
    }
}

#[test]
fn every_wrapper_of_the_hopper_tier_is_tried_by_itself() {
    let tried = WRAPPERS.iter().flat_map(|wrapper| wrapper.tries);
    let tried: BTreeSet<String> = tried.map(|name| name.to_string()).collect();
    assert_eq!(declared("cuda/ptx/hopper"), tried);
}

// ---- Layouts ----

/// The byte at which a copy with the 128-byte swizzle puts an element of bf16, for a box of rows of 64 that starts at a multiple of
/// 1024: row after row, the 16-byte pieces of the 128 bytes exchanged by the row's number.
fn copied(row: usize, column: usize) -> usize {
    let [piece, within] = [column / 8, column % 8];
    128 * row + 16 * (piece ^ (row % 8)) + 2 * within
}

/// Swizzle<3, 4, 3>: bits 4 to 6 of an address are exchanged by bits 7 to 9.
fn swizzled(address: usize) -> usize {
    address ^ ((address >> 7 & 7) << 4)
}

/// The byte of element (mn, k) of a product's 16 of k, by the canonical layouts of the PTX ISA ("Matrix Descriptor Format", 128-byte
/// swizzle, units of 16 bytes hold T = 8 elements), in bytes.
fn described(
    start: usize,
    leading: usize,
    stride: usize,
    is_transposed: bool,
    mn: usize,
    k: usize,
) -> usize {
    swizzled(
        start
            + match is_transposed {
                // K-major: ((8, m), (T, 2)) : ((8·T, stride), (1, T))
                false => 128 * (mn % 8) + stride * (mn / 8) + 16 * (k / 8) + 2 * (k % 8),
                // MN-major: ((T, 8, m), (8, k)) : ((1, T, leading), (8·T, stride))
                true => {
                    2 * (mn % 8)
                        + 16 * (mn / 8 % 8)
                        + leading * (mn / 64)
                        + 128 * (k % 8)
                        + stride * (k / 8)
                }
            },
    )
}

#[test]
fn descriptors_tell_the_bytes_that_copies_wrote() {
    // K-major tiles of up to 256 rows of 64 k: steps of 16 k are 32 bytes.
    for rows in [8, 64, 128, 256] {
        for (row, k) in (0..rows).flat_map(|row| (0..64).map(move |k| (row, k))) {
            let told = described(32 * (k / 16), 16, 1024, false, row, k % 16);
            assert_eq!(told, copied(row, k), "row {row} of {rows}, k {k}");
        }
    }
    // MN-major: up to four boxes of 64 k rows of 64 columns; steps of 16 k are 2048 bytes.
    let bytes = 64 * 128;
    for columns in [64, 128, 256] {
        for (column, k) in (0..columns).flat_map(|column| (0..64).map(move |k| (column, k))) {
            let told = described(2048 * (k / 16), bytes, 1024, true, column, k % 16);
            let wrote = bytes * (column / 64) + copied(k, column % 64);
            assert_eq!(told, wrote, "column {column} of {columns}, k {k}");
        }
    }
}
