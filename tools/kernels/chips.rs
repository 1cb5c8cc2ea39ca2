//! The GPUs that the reports cover: what a multiprocessor holds, and what the chip can do in a second.

/// A GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chip {
    /// Its name in tables.
    pub name: &'static str,
    /// The machine code in our images that it runs.
    pub runs: &'static str,
    /// Warps that a multiprocessor holds.
    pub warps: u32,
    /// Blocks that a multiprocessor holds.
    pub blocks: u32,
    /// Shared memory of a multiprocessor, bytes.
    pub shared_bytes: u32,
    /// Shared memory that one block may ask for, bytes.
    pub block_shared_bytes: u32,
    /// bf16 products with f32 sums on the tensor cores, dense, flop/s.
    pub tensor_flops: f64,
    /// f32 arithmetic outside the tensor cores, flop/s.
    pub f32_flops: f64,
    /// Device memory, bytes/s.
    pub bandwidth: f64,
}

/// 32-bit registers of a multiprocessor, the same on all four chips.
const REGISTERS: u32 = 65_536;
/// Registers are given to a warp in multiples of this many.
const REGISTER_UNIT: u32 = 256;
/// A multiprocessor has this many parts with registers of their own; a warp lives in one.
const PARTS: u32 = 4;
/// Shared memory is given in multiples of this many bytes.
const SHARED_UNIT: u32 = 128;
/// What the system keeps of each block's shared memory, bytes.
const SHARED_RESERVED: u32 = 1024;

const KIB: u32 = 1024;

/// The chips, oldest first.
///
/// Sources: limits from NVIDIA's CUDA C++ Programming Guide 13.0, table "Technical Specifications per Compute Capability",
/// and the allocation units of its occupancy calculator; speeds from NVIDIA's A100 (80 GB SXM) and H100 (SXM5) data
/// sheets, the GA102 white paper (RTX 3090) and the Ada white paper (RTX 4090), without sparsity.
pub const CHIPS: [Chip; 4] = [
    Chip {
        name: "A100",
        runs: "sm_80",
        warps: 64,
        blocks: 32,
        shared_bytes: 164 * KIB,
        block_shared_bytes: 163 * KIB,
        tensor_flops: 312e12,
        f32_flops: 19.5e12,
        bandwidth: 2039e9,
    },
    Chip {
        name: "RTX 3090",
        runs: "sm_80",
        warps: 48,
        blocks: 16,
        shared_bytes: 100 * KIB,
        block_shared_bytes: 99 * KIB,
        tensor_flops: 71e12,
        f32_flops: 35.6e12,
        bandwidth: 936e9,
    },
    Chip {
        name: "RTX 4090",
        runs: "sm_80",
        warps: 48,
        blocks: 24,
        shared_bytes: 100 * KIB,
        block_shared_bytes: 99 * KIB,
        tensor_flops: 165.2e12,
        f32_flops: 82.6e12,
        bandwidth: 1008e9,
    },
    Chip {
        name: "H100",
        runs: "sm_90a",
        warps: 64,
        blocks: 32,
        shared_bytes: 228 * KIB,
        block_shared_bytes: 227 * KIB,
        tensor_flops: 989.4e12,
        f32_flops: 66.9e12,
        bandwidth: 3350e9,
    },
];

/// How full a multiprocessor gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Blocks it holds at once; 0 when not even one fits.
    pub blocks: u32,
    /// Warps of those blocks.
    pub warps: u32,
    /// Share of the warps it could hold, percent.
    pub percent: u32,
    /// What keeps it from holding more: `registers`, `shared memory`, `warps` or `blocks`.
    pub limit: &'static str,
}

impl Chip {
    /// The occupancy of a kernel of `threads` threads a block with `registers` a thread and `shared_bytes` a block.
    pub fn occupancy(&self, threads: u32, registers: u32, shared_bytes: u32) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        let warp_registers = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let register_warps = REGISTERS / PARTS / warp_registers * PARTS;
        let shared = (shared_bytes + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
        let by_shared = if shared_bytes > self.block_shared_bytes {
            0
        } else {
            self.shared_bytes / shared
        };
        // On a tie the first is named: threads and blocks are the kernel's shape, the others can be tuned.
        let limits = [
            (self.warps / warps, "warps"),
            (self.blocks, "blocks"),
            (register_warps / warps, "registers"),
            (by_shared, "shared memory"),
        ];
        let (blocks, limit) = limits
            .into_iter()
            .min_by_key(|(blocks, _)| *blocks)
            .expect("there are four limits");
        Occupancy {
            blocks,
            warps: blocks * warps,
            percent: (100 * blocks * warps + self.warps / 2) / self.warps,
            limit,
        }
    }
}
