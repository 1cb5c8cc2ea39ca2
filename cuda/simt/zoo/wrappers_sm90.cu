// The zoo, wrappers of the Hopper tier: each instruction of cuda/ptx/hopper in a kernel `zoo_wrapper_<its wrapper>`, as wrappers.cu
// has it for the others. `in` and `out` are 512 words each; maps are of `in`, or of `out` where the kernel stores by them.
#include "../../hopper.cuh"
#include "../../ptx/convert.cuh"
#include "../../ptx/hopper/cluster.cuh"
#include "../../ptx/hopper/tensor_copy.cuh"
#include "../../ptx/hopper/warp.cuh"
#include "../../ptx/hopper/wgmma.cuh"

struct BarrierWords {
    alignas(1024) uint32_t word[2048];
    alignas(8) uint64_t barrier[4];
};

#define WRAPPER(name) extern "C" __global__ void zoo_wrapper_##name(uint32_t* out, const uint32_t* in)
#define MAPPED_WRAPPER(name) \
    extern "C" __global__ void zoo_wrapper_##name(uint32_t* out, const uint32_t*, const __grid_constant__ TensorMap map)

// One thread makes barriers of `count` arrivals for all.
DEVICE void make_barriers(BarrierWords& shared, uint32_t count) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; ++i) mbarrier_init(shared_address(&shared.barrier[i]), count);
        fence_barrier_init();
    }
    __syncthreads();
}

// ---- Barriers: four warps, of which each leaves words for the next ----

// Two phases, at each of which all 128 threads arrive: what a thread reads was written by another before that one arrived.
WRAPPER(mbarrier_arrive) {
    SHARED_STORAGE(BarrierWords, shared);
    make_barriers(shared, 128);
    const uint32_t barrier = shared_address(&shared.barrier[1]), thread = threadIdx.x;
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 2; ++round) {
        shared.word[thread + 128 * round] = in[thread] + round;
        mbarrier_arrive(barrier);
        mbarrier_wait(barrier, round);
        sum += shared.word[(thread + 32) % 128 + 128 * round];
    }
    out[thread] = sum;
}
KERNEL(zoo_wrapper_mbarrier_arrive, 128, BarrierWords)

// A fresh barrier lets pass who waits for parity 1; freed, its bytes are memory, and may become a barrier of another count.
WRAPPER(mbarrier_invalidate) {
    SHARED_STORAGE(BarrierWords, shared);
    make_barriers(shared, 1);
    const uint32_t barrier = shared_address(&shared.barrier[2]), thread = threadIdx.x;
    mbarrier_wait(barrier, 1);
    __syncthreads();  // all have passed
    if (thread == 0) {
        mbarrier_invalidate(barrier);
        shared.barrier[2] = in[0];
    }
    __syncthreads();  // the word is there
    out[thread] = uint32_t(shared.barrier[2]) + thread;
    __syncthreads();  // and read
    if (thread == 0) {
        mbarrier_init(barrier, 64);
        fence_barrier_init();
    }
    __syncthreads();
    if (thread < 64) {
        shared.word[thread] = in[thread];
        mbarrier_arrive(barrier);
    } else {
        mbarrier_wait(barrier, 0);
        out[128 + thread] = shared.word[127 - thread];
    }
}
KERNEL(zoo_wrapper_mbarrier_invalidate, 128, BarrierWords)

// ---- Copies by tensor maps: a box comes, and every thread reads four of its words ----

template <class Load>
DEVICE void bring(uint32_t* out, BarrierWords& shared, uint32_t bytes, const Load& load) {
    make_barriers(shared, 1);
    const uint32_t barrier = shared_address(&shared.barrier[0]);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        load(shared_address(&shared.word[0]), barrier);
    }
    mbarrier_wait(barrier, 0);
    for (uint32_t i = threadIdx.x; i < bytes / 4; i += 128) out[i] = shared.word[i];
}

// 8 rows of 32 words of a tensor of 14 rows of 32: permuted, the last two rows past the end. Elements are bf16.
MAPPED_WRAPPER(tensor_load_2d) {
    SHARED_STORAGE(BarrierWords, shared);
    bring(out, shared, 1024, [&](uint32_t to, uint32_t barrier) { tensor_load_2d(to, map, 0, 8, barrier); });
}
KERNEL(zoo_wrapper_tensor_load_2d, 128, BarrierWords)

// Two boxes side by side count at one barrier.
MAPPED_WRAPPER(mbarrier_arrive_expect) {
    SHARED_STORAGE(BarrierWords, shared);
    bring(out, shared, 2048, [&](uint32_t to, uint32_t barrier) {
        tensor_load_2d(to + 1024, map, 0, 0, barrier);
        tensor_load_2d(to, map, -8, -2, barrier);
    });
}
KERNEL(zoo_wrapper_mbarrier_arrive_expect, 128, BarrierWords)

// Boxes of 4 × 3 × 4 words out of 8 × 7 × 5.
MAPPED_WRAPPER(tensor_load_3d) {
    SHARED_STORAGE(BarrierWords, shared);
    bring(out, shared, 192, [&](uint32_t to, uint32_t barrier) { tensor_load_3d(to, map, 4, 5, 2, barrier); });
}
KERNEL(zoo_wrapper_tensor_load_3d, 128, BarrierWords)

// Boxes of 4 × 2 × 3 × 2 words out of 8 × 3 × 4 × 5.
MAPPED_WRAPPER(tensor_load_4d) {
    SHARED_STORAGE(BarrierWords, shared);
    bring(out, shared, 192, [&](uint32_t to, uint32_t barrier) { tensor_load_4d(to, map, 4, 1, 2, 3, barrier); });
}
KERNEL(zoo_wrapper_tensor_load_4d, 128, BarrierWords)

// Words by ordinary stores, rows by two stores of boxes in a group each; the first is waited for while the second may read.
extern "C" __global__ void zoo_wrapper_tensor_store_2d(uint32_t*, const uint32_t* in, const __grid_constant__ TensorMap map) {
    SHARED_STORAGE(BarrierWords, shared);
    for (uint32_t i = threadIdx.x; i < 512; i += 128) shared.word[i] = in[i];
    fence_proxy_async();
    __syncthreads();  // every word is written and fenced
    if (threadIdx.x == 0) {
        tensor_store_2d(map, 0, 0, shared_address(&shared.word[0]));
        bulk_commit();
        tensor_store_2d(map, 0, 10, shared_address(&shared.word[256]));
        bulk_commit();
        bulk_wait_read<1>();
        shared.word[0] = 0;
        bulk_wait<0>();
    }
}
KERNEL(zoo_wrapper_tensor_store_2d, 128, BarrierWords)

// ---- Clusters of two blocks ----

// Block r's thread t leaves in[t] + r; the other block is asked for its number by an arrival at its barrier.
extern "C" __global__ void __cluster_dims__(2, 1, 1) zoo_wrapper_mbarrier_arrive_remote(uint32_t* out, const uint32_t* in) {
    SHARED_STORAGE(BarrierWords, shared);
    make_barriers(shared, 128);
    cluster_arrive();
    cluster_wait();  // both blocks' barriers are made
    const uint32_t rank = cluster_rank(), barrier = shared_address(&shared.barrier[0]);
    mbarrier_arrive_remote(map_peer(barrier, rank ^ 1));
    mbarrier_wait(barrier, 0);
    out[128 * rank + threadIdx.x] = in[threadIdx.x] + rank;
    cluster_arrive();
    cluster_wait();  // no arrival is on its way to a block that has ended
}
KERNEL(zoo_wrapper_mbarrier_arrive_remote, 128, BarrierWords)

// Each block brings half of what both read.
extern "C" __global__ void __cluster_dims__(2, 1, 1)
    zoo_wrapper_tensor_load_2d_multicast(uint32_t* out, const uint32_t*, const __grid_constant__ TensorMap map) {
    SHARED_STORAGE(BarrierWords, shared);
    make_barriers(shared, 1);
    const uint32_t rank = cluster_rank(), barrier = shared_address(&shared.barrier[0]);
    cluster_arrive();
    cluster_wait();  // both blocks' barriers are made
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 1024);
        tensor_load_2d_multicast(shared_address(&shared.word[128 * rank]), map, 0, 4 * int(rank), barrier, 3);
    }
    mbarrier_wait(barrier, 0);
    for (uint32_t i = threadIdx.x; i < 256; i += 128) out[256 * rank + i] = shared.word[i] + rank;
    cluster_arrive();
    cluster_wait();  // the other's copy to this block has come, and this one's to the other
}
KERNEL(zoo_wrapper_tensor_load_2d_multicast, 128, BarrierWords)

// ---- Warps ----

// How many lanes of each warp are elected, and whether it is the same one again.
WRAPPER(elect_one) {
    const bool first = elect_one(), second = elect_one();
    out[threadIdx.x] = __popc(__ballot_sync(kAllLanes, first)) + (first == second ? 16 : 0) + in[threadIdx.x];
}
KERNEL(zoo_wrapper_elect_one, 128)

template <class Store>
DEVICE void store_rows(uint32_t* out, const uint32_t* in, const Store& store) {
    SHARED_STORAGE(BarrierWords, shared);
    const int lane = threadIdx.x;
    uint32_t registers[4];
    for (int i = 0; i < 4; ++i) registers[i] = in[4 * lane + i];
    store(shared_address(&shared.word[lane * 5 % 32 * 4]), registers);
    __syncwarp();
    for (int i = lane; i < 128; i += kWarpLanes) out[i] = shared.word[i];
}
WRAPPER(stmatrix_x4) {
    store_rows(out, in, [](uint32_t row, const uint32_t (&from)[4]) { stmatrix_x4(row, from); });
}
KERNEL(zoo_wrapper_stmatrix_x4, 32, BarrierWords)
WRAPPER(stmatrix_x4_transposed) {
    store_rows(out, in, [](uint32_t row, const uint32_t (&from)[4]) { stmatrix_x4_transposed(row, from); });
}
KERNEL(zoo_wrapper_stmatrix_x4_transposed, 32, BarrierWords)

// ---- Products of a warpgroup: A [64, 64] and B [8, 64] or [64, 64] of bf16, told by two maps ----

struct GroupTiles {
    alignas(1024) uint32_t a[2048];
    alignas(1024) uint32_t b[2048];
    alignas(8) uint64_t barrier;
};

#define GROUP_WRAPPER(name) \
    extern "C" __global__ void zoo_wrapper_##name(uint32_t* out, const uint32_t*, const __grid_constant__ TensorMap map_a, \
                                                  const __grid_constant__ TensorMap map_b)

// Brings both tiles.
DEVICE void bring_tiles(GroupTiles& shared, const TensorMap& map_a, const TensorMap& map_b, uint32_t bytes) {
    const uint32_t barrier = shared_address(&shared.barrier);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        tensor_load_2d(shared_address(shared.a), map_a, 0, 0, barrier);
        tensor_load_2d(shared_address(shared.b), map_b, 0, 0, barrier);
    }
    mbarrier_wait(barrier, 0);
}

// d [64, 8] to out [64, 8], as the fragments stand.
DEVICE void keep(uint32_t* out, const float (&d)[4]) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + column + i % 2] = __float_as_uint(d[i]);
}

// A [64, 64 k] and B [8, 64 k], both K-major: two groups, of which the second is waited for last.
GROUP_WRAPPER(wgmma) {
    SHARED_STORAGE(GroupTiles, shared);
    bring_tiles(shared, map_a, map_b, 8192 + 1024);
    const uint32_t a = shared_address(shared.a), b = shared_address(shared.b);
    float d[4];
    wgmma_fence();
    wgmma<8, false, false>(d, tile_descriptor(a), tile_descriptor(b), false);
    wgmma<8, false, false>(d, tile_descriptor(a + 32), tile_descriptor(b + 32), true);
    wgmma_commit();
    wgmma<8, false, false>(d, tile_descriptor(a + 64), tile_descriptor(b + 64), true);
    wgmma<8, false, false>(d, tile_descriptor(a + 96), tile_descriptor(b + 96), true);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_wait<0>();
    settle_accumulators(d);
    keep(out, d);
}
KERNEL(zoo_wrapper_wgmma, 128, GroupTiles)

// A from registers, row r and column k the whole number (r + 2·k) % 7; B [64 k, 64] MN-major, of whose 64 columns 8 are kept.
GROUP_WRAPPER(wgmma_fragment) {
    SHARED_STORAGE(GroupTiles, shared);
    bring_tiles(shared, map_a, map_b, 8192 + 8192);
    const uint32_t b = shared_address(shared.b);
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    uint32_t a[4][4];
    float d[32];
    for (int step = 0; step < 4; ++step) {
        for (int i = 0; i < 4; ++i) {
            const int r = row + i % 2 * 8, k = 16 * step + column + i / 2 * 8;
            a[step][i] = bf16_pair_bits(float((r + 2 * k) % 7), float((r + 2 * k + 2) % 7));
        }
    }
    wgmma_fence();
    UNROLL
    for (int step = 0; step < 4; ++step) wgmma_fragment<64, true>(d, a[step], tile_descriptor(b + 2048 * step), step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    settle_accumulators(d);
    float kept[4];
    for (int i = 0; i < 4; ++i) kept[i] = d[20 + i];
    keep(out, kept);
}
KERNEL(zoo_wrapper_wgmma_fragment, 128, GroupTiles)

// A and B both MN-major.
GROUP_WRAPPER(tile_descriptor) {
    SHARED_STORAGE(GroupTiles, shared);
    bring_tiles(shared, map_a, map_b, 8192 + 8192);
    const uint32_t a = shared_address(shared.a), b = shared_address(shared.b);
    float d[32];
    wgmma_fence();
    UNROLL
    for (int step = 0; step < 4; ++step)
        wgmma<64, true, true>(d, tile_descriptor(a + 2048 * step, 8192), tile_descriptor(b + 2048 * step, 8192), step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    settle_accumulators(d);
    float kept[4];
    for (int i = 0; i < 4; ++i) kept[i] = d[4 + i];
    keep(out, kept);
}
KERNEL(zoo_wrapper_tile_descriptor, 128, GroupTiles)

// One warpgroup gives up registers, which the other takes.
extern "C" __global__ void __launch_bounds__(256, 1) zoo_wrapper_increase_registers(uint32_t* out, const uint32_t* in) {
    if (threadIdx.x < 128) {
        decrease_registers<24>();
        out[threadIdx.x] = in[threadIdx.x];
    } else {
        increase_registers<256>();
        out[threadIdx.x] = in[threadIdx.x] + 1;
    }
}
KERNEL(zoo_wrapper_increase_registers, 256)
