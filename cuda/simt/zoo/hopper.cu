// The zoo, the Hopper tier: rings of copies by tensor maps that feed products of a warpgroup, stores by tensor maps, clusters; each
// mistake of their protocols by itself. Maps: `a` bf16 [128, K], boxes of 64 × 64; `b` and `b_half` bf16 [64, K], boxes of 8 × 64
// and 32 × 64; `o` f32 [64, 32] of `out`, a box. All permute 128 bytes, and K is 64 a round.
#include "../../elem.cuh"
#include "../../hopper.cuh"
#include "../../ptx/barrier.cuh"
#include "../../ptx/hopper/cluster.cuh"
#include "../../ptx/hopper/tensor_copy.cuh"
#include "../../ptx/hopper/warp.cuh"
#include "../../ptx/hopper/wgmma.cuh"

#define ZOO_PARAMETERS \
    float *out, int rounds, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, \
        const __grid_constant__ TensorMap b_half, const __grid_constant__ TensorMap o
#define USE_ALL (void)out, (void)rounds, (void)a, (void)b, (void)b_half, (void)o

struct NoStorage {
    uint32_t word;
};
#define ZOO(name, threads, Storage, body) \
    extern "C" __global__ void zoo_hopper_##name(ZOO_PARAMETERS) { \
        USE_ALL; \
        body; \
    } \
    KERNEL(zoo_hopper_##name, threads, Storage)

// d [64, 8] of the second warpgroup to out.
template <int kRegisters>
DEVICE void keep_product(float* out, const float (&d)[kRegisters]) {
    const int thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}

// ---- A ring of two stages: one thread of the first warpgroup brings, the second multiplies ----

constexpr int kStages = 2;
constexpr uint32_t kBytesOfA = 8192, kBytesOfB = 1024;

struct ProductRing {
    alignas(1024) unsigned char a[kStages][kBytesOfA];
    alignas(1024) unsigned char b[kStages][kBytesOfB];
    alignas(8) uint64_t full[kStages], empty[kStages];
};

enum RingBug {
    kClean, kNoInitFence, kNoInit, kInitTwice, kConsumerParity, kProducerParity, kExpectTooFew, kExpectTooMany, kExpectTwice,
    kNoFullWait, kNoEmptyWait, kReleasedBeforeWait, kAllRelease, kEmptyOfTwo, kMisalignedBox, kBoxOutside, kWrongRank,
    kNoLoadOfB, kBarrierOverwritten, kBarrierRead, kNoProductFence, kAccumulatorRead, kAccumulatorWritten, kNoCommit,
    kNoProductWait, kThreeWarps, kDescriptorsDiffer, kWrongStride, kNoSwizzle, kStartInsideAtom, kDescriptorOutside, kCommitMissed,
};

template <RingBug kBug>
DEVICE void prepare_ring(ProductRing& ring) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            if (kBug != kNoInit || stage == 0) mbarrier_init(shared_address(&ring.full[stage]), 1);
            mbarrier_init(shared_address(&ring.empty[stage]), kBug == kEmptyOfTwo ? 2 : 1);
        }
        if (kBug == kInitTwice) mbarrier_init(shared_address(&ring.full[0]), 1);
        if (kBug != kNoInitFence) fence_barrier_init();
    }
    __syncthreads();  // the barriers are made
}

template <RingBug kBug>
DEVICE void bring_round(ProductRing& ring, const TensorMap& a, const TensorMap& b, int round) {
    const int stage = round % kStages;
    const uint32_t full = shared_address(&ring.full[stage]), empty = shared_address(&ring.empty[stage]);
    const uint32_t parity = round / kStages % 2;
    if (kBug != kNoEmptyWait) mbarrier_wait(empty, kBug == kProducerParity ? parity : parity ^ 1);
    uint32_t bytes = kBytesOfA + kBytesOfB;
    if (kBug == kExpectTooFew || kBug == kNoLoadOfB) bytes = kBytesOfA;
    if (kBug == kExpectTooMany) bytes += 16;
    if (kBug == kBarrierOverwritten && round == 1) ring.full[0] = 0;
    mbarrier_arrive_expect(full, bytes);
    if (kBug == kExpectTwice) mbarrier_arrive_expect(full, 0);
    const uint32_t skew = kBug == kMisalignedBox ? 128 : kBug == kBoxOutside ? 1u << 16 : 0;
    tensor_load_2d(shared_address(ring.a[stage]) + skew, a, 64 * round, 0, full);
    if (kBug == kWrongRank) {
        tensor_load_3d(shared_address(ring.b[stage]), b, 64 * round, 0, 0, full);
    } else if (kBug != kNoLoadOfB) {
        tensor_load_2d(shared_address(ring.b[stage]), b, 64 * round, 0, full);
    }
}

template <RingBug kBug>
DEVICE uint64_t faulty_descriptor(uint32_t address) {
    if (kBug == kStartInsideAtom) address += 128;
    if (kBug == kDescriptorOutside) address += 0x8000;
    uint64_t descriptor = tile_descriptor(address);
    if (kBug == kWrongStride) descriptor += 1ull << 32;
    if (kBug == kNoSwizzle) descriptor &= ~(3ull << 62);
    if (kBug == kDescriptorsDiffer && threadIdx.x == 130) descriptor += 2;
    return descriptor;
}

template <RingBug kBug>
DEVICE void multiply_round(ProductRing& ring, float (&d)[4], int round) {
    const int stage = round % kStages;
    const uint32_t full = shared_address(&ring.full[stage]), empty = shared_address(&ring.empty[stage]);
    const uint32_t parity = round / kStages % 2;
    if (kBug != kNoFullWait) mbarrier_wait(full, kBug == kConsumerParity ? parity ^ 1 : parity);
    if (kBug == kBarrierRead && ring.empty[0] == 1) d[0] = 0.0f;
    if (kBug != kNoProductFence) wgmma_fence();
    const uint32_t tile_a = shared_address(ring.a[stage]), tile_b = shared_address(ring.b[stage]);
    if (kBug != kThreeWarps || threadIdx.x < 224) {
        for (int step = 0; step < 4; ++step)
            wgmma<8, false, false>(d, faulty_descriptor<kBug>(tile_a + 32 * step), tile_descriptor(tile_b + 32 * step),
                                   round + step > 0);
    }
    if (kBug != kNoCommit && (kBug != kCommitMissed || threadIdx.x >= 160)) wgmma_commit();
    if (kBug == kAccumulatorRead && d[1] == 1.0f) d[2] = 0.0f;
    if (kBug == kAccumulatorWritten) d[3] = 0.0f;
    if (kBug == kReleasedBeforeWait && threadIdx.x == 128) mbarrier_arrive(empty);
    if (kBug != kNoProductWait) wgmma_wait<0>();
    if (kBug == kAllRelease || (kBug != kReleasedBeforeWait && threadIdx.x == 128)) mbarrier_arrive(empty);
}

template <RingBug kBug>
DEVICE void product_ring(float* out, int rounds, const TensorMap& a, const TensorMap& b) {
    SHARED_STORAGE(ProductRing, ring);
    prepare_ring<kBug>(ring);
    if (threadIdx.x < 128) {
        if (threadIdx.x == 0)
            for (int round = 0; round < rounds; ++round) bring_round<kBug>(ring, a, b, round);
    } else {
        float d[4];
        for (int round = 0; round < rounds; ++round) multiply_round<kBug>(ring, d, round);
        keep_product(out, d);
    }
}

#define RING(name, bug) ZOO(name, 256, ProductRing, product_ring<bug>(out, rounds, a, b))
RING(clean_ring, kClean)
RING(no_init_fence, kNoInitFence)
RING(no_init, kNoInit)
RING(init_twice, kInitTwice)
RING(consumer_parity, kConsumerParity)
RING(producer_parity, kProducerParity)
RING(expect_too_few, kExpectTooFew)
RING(expect_too_many, kExpectTooMany)
RING(expect_twice, kExpectTwice)
RING(no_full_wait, kNoFullWait)
RING(no_empty_wait, kNoEmptyWait)
RING(released_before_wait, kReleasedBeforeWait)
RING(all_release, kAllRelease)
RING(empty_of_two, kEmptyOfTwo)
RING(misaligned_box, kMisalignedBox)
RING(box_outside, kBoxOutside)
RING(wrong_rank, kWrongRank)
RING(no_load_of_b, kNoLoadOfB)
RING(barrier_overwritten, kBarrierOverwritten)
RING(barrier_read, kBarrierRead)
RING(no_product_fence, kNoProductFence)
RING(accumulator_read, kAccumulatorRead)
RING(accumulator_written, kAccumulatorWritten)
RING(no_commit, kNoCommit)
RING(no_product_wait, kNoProductWait)
RING(three_warps, kThreeWarps)
RING(descriptors_differ, kDescriptorsDiffer)
RING(wrong_stride, kWrongStride)
RING(no_swizzle, kNoSwizzle)
RING(start_inside_atom, kStartInsideAtom)
RING(descriptor_outside, kDescriptorOutside)
RING(commit_missed, kCommitMissed)

// ---- Products of what ordinary stores left, and from registers ----

struct ProductTiles {
    alignas(1024) unsigned char a[kBytesOfA];
    alignas(1024) unsigned char b[8 * kBytesOfA];
    alignas(8) uint64_t full;
};

enum TileBug {
    kCleanTile, kNoProxyFence, kFenceOfOne, kUnswizzled, kFragmentAfterFence, kFragmentWhileOwned, kRefillWhileRead,
};

// A by ordinary stores of all threads, whole numbers (row + k) % 5; B by a tensor map.
template <TileBug kBug>
DEVICE void staged_product(float* out, const TensorMap& b) {
    SHARED_STORAGE(ProductTiles, tiles);
    const int thread = threadIdx.x;
    if (thread == 0) {
        mbarrier_init(shared_address(&tiles.full), 1);
        fence_barrier_init();
    }
    __syncthreads();  // the barrier is made
    if (thread == 0) {
        mbarrier_arrive_expect(shared_address(&tiles.full), kBytesOfB);
        tensor_load_2d(shared_address(tiles.b), b, 0, 0, shared_address(&tiles.full));
    }
    for (int i = thread; i < 64 * 64; i += 128) {
        const int row = i / 64, k = i % 64;
        uint32_t place = uint32_t(row * 128 + k * 2);
        if (kBug != kUnswizzled) place ^= uint32_t(row % 8 * 16);
        *reinterpret_cast<bf16*>(tiles.a + place) = from_float<bf16>(float((row + k) % 5));
    }
    if (kBug != kNoProxyFence && (kBug != kFenceOfOne || thread == 0)) fence_proxy_async();
    mbarrier_wait(shared_address(&tiles.full), 0);
    __syncthreads();  // every element is written and fenced
    float d[4];
    wgmma_fence();
    for (int step = 0; step < 4; ++step)
        wgmma<8, false, false>(d, tile_descriptor(shared_address(tiles.a) + 32 * step),
                               tile_descriptor(shared_address(tiles.b) + 32 * step), step > 0);
    wgmma_commit();
    if (kBug == kRefillWhileRead) tiles.a[thread * 64] = 0;
    wgmma_wait<0>();
    keep_product(out, d);
}
#define STAGED(name, bug) ZOO(name, 128, ProductTiles, staged_product<bug>(out, b))
STAGED(clean_staged, kCleanTile)
STAGED(no_proxy_fence, kNoProxyFence)
STAGED(fence_of_one, kFenceOfOne)
STAGED(unswizzled, kUnswizzled)
STAGED(refill_while_read, kRefillWhileRead)

// The same product with A in registers.
template <TileBug kBug>
DEVICE void fragment_product(float* out, const TensorMap& b) {
    SHARED_STORAGE(ProductTiles, tiles);
    const int thread = threadIdx.x;
    if (thread == 0) {
        mbarrier_init(shared_address(&tiles.full), 1);
        fence_barrier_init();
    }
    __syncthreads();  // the barrier is made
    if (thread == 0) {
        mbarrier_arrive_expect(shared_address(&tiles.full), kBytesOfB);
        tensor_load_2d(shared_address(tiles.b), b, 0, 0, shared_address(&tiles.full));
    }
    mbarrier_wait(shared_address(&tiles.full), 0);
    uint32_t fragment[4][4];
    auto fill = [&](int step) {
        for (int i = 0; i < 4; ++i) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8, k = 16 * step + thread % 4 * 2 + i / 2 * 8;
            fragment[step][i] = bf16_pair_bits(float((row + k) % 5), float((row + k + 1) % 5));
        }
    };
    for (int step = 0; step < 4; ++step) fill(step);
    float d[4];
    wgmma_fence();
    for (int step = 0; step < 4; ++step) {
        if (kBug == kFragmentAfterFence) fill(step);
        wgmma_fragment<8, false>(d, fragment[step], tile_descriptor(shared_address(tiles.b) + 32 * step), step > 0);
    }
    wgmma_commit();
    if (kBug == kFragmentWhileOwned) fragment[3][thread % 4] = 0;
    wgmma_wait<0>();
    keep_product(out, d);
}
#define FRAGMENT(name, bug) ZOO(name, 128, ProductTiles, fragment_product<bug>(out, b))
FRAGMENT(clean_fragment, kCleanTile)
FRAGMENT(fragment_after_fence, kFragmentAfterFence)
FRAGMENT(fragment_while_owned, kFragmentWhileOwned)

// B [64 k, 128], MN-major, as two boxes of `a` side by side: out [64, 8] = A · B's columns 64..71, with A by ordinary stores as
// above. The descriptor's distance between boxes is `box_bytes`.
DEVICE void boxes_product(float* out, const TensorMap& a, uint32_t box_bytes) {
    SHARED_STORAGE(ProductTiles, tiles);
    const int thread = threadIdx.x;
    const uint32_t full = shared_address(&tiles.full), tile_b = shared_address(tiles.b);
    if (thread == 0) {
        mbarrier_init(full, 1);
        fence_barrier_init();
    }
    __syncthreads();  // the barrier is made
    if (thread == 0) {
        mbarrier_arrive_expect(full, 2 * kBytesOfA);
        tensor_load_2d(tile_b, a, 0, 0, full);
        tensor_load_2d(tile_b + kBytesOfA, a, 64, 0, full);
    }
    for (int i = thread; i < 64 * 64; i += 128) {
        const int row = i / 64, k = i % 64;
        const uint32_t place = uint32_t(row * 128 + k * 2) ^ uint32_t(row % 8 * 16);
        *reinterpret_cast<bf16*>(tiles.a + place) = from_float<bf16>(float((row + k) % 5));
    }
    fence_proxy_async();
    mbarrier_wait(full, 0);
    __syncthreads();  // every element is written and fenced
    float d[64];
    wgmma_fence();
    for (int step = 0; step < 4; ++step)
        wgmma<128, false, true>(d, tile_descriptor(shared_address(tiles.a) + 32 * step),
                                tile_descriptor(tile_b + 2048 * step, box_bytes), step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    float kept[4];
    for (int i = 0; i < 4; ++i) kept[i] = d[32 + i];
    keep_product(out, kept);
}
ZOO(clean_boxes, 128, ProductTiles, boxes_product(out, a, kBytesOfA))
ZOO(wrong_leading, 128, ProductTiles, boxes_product(out, a, 2 * kBytesOfA))
ZOO(leading_no_atom, 128, ProductTiles, boxes_product(out, a, kBytesOfA + 512))

// ---- Stores by tensor maps: a tile of 64 rows of 32 floats, written twice ----

struct StoreTile {
    alignas(1024) float value[64 * 32];
};

enum StoreBug {
    kCleanStore, kNoStoreFence, kStoreFenceOfOne, kNoStoreBarrier, kRewrittenBeforeRead, kNoStoreCommit, kNoStoreWait, kReadOnlyMap,
};

template <StoreBug kBug>
DEVICE void store_tile(const TensorMap& a, const TensorMap& o) {
    SHARED_STORAGE(StoreTile, tile);
    const int thread = threadIdx.x;
    for (int round = 0; round < 2; ++round) {
        for (int i = thread; i < 64 * 32; i += 128) {
            const int row = i / 32, column = i % 32;
            tile.value[(row * 32 + column) ^ row % 8 * 4] = float(i + round);
        }
        if (kBug != kNoStoreFence && (kBug != kStoreFenceOfOne || thread == 0)) fence_proxy_async();
        if (kBug != kNoStoreBarrier) __syncthreads();  // every float is written and fenced
        if (thread == 0) {
            tensor_store_2d(kBug == kReadOnlyMap ? a : o, 0, 0, shared_address(tile.value));
            if (kBug != kNoStoreCommit) bulk_commit();
            if (kBug != kRewrittenBeforeRead && kBug != kNoStoreWait) bulk_wait_read<0>();
        }
        __syncthreads();  // the tile has been read
    }
    if (kBug != kNoStoreWait) bulk_wait<0>();
}
#define STORE(name, bug) ZOO(name, 128, StoreTile, store_tile<bug>(a, o))
STORE(clean_store, kCleanStore)
STORE(no_store_fence, kNoStoreFence)
STORE(store_fence_of_one, kStoreFenceOfOne)
STORE(no_store_barrier, kNoStoreBarrier)
STORE(rewritten_before_read, kRewrittenBeforeRead)
STORE(no_store_commit, kNoStoreCommit)
STORE(no_store_wait, kNoStoreWait)
STORE(read_only_map, kReadOnlyMap)

// ---- A cluster of two: each block brings its own A and half of B for both ----

struct ClusterRing {
    alignas(1024) unsigned char a[kStages][kBytesOfA];
    alignas(1024) unsigned char b[kStages][kBytesOfA];
    alignas(8) uint64_t full[kStages], empty[kStages];
};

enum ClusterBug {
    kCleanCluster, kNoFirstBarrier, kNoLastBarrier, kOwnReleaseOnly, kEmptyOfOneBlock, kMaskTooWide, kPeerTooFar, kNotMapped,
    kNoRemoteFence, kArriveTwice, kWaitFirst, kReturnInside, kExpectHalf,
};

template <ClusterBug kBug>
DEVICE void bring_cluster_round(ClusterRing& ring, const TensorMap& a, const TensorMap& b_half, int round) {
    const int stage = round % kStages, rank = int(cluster_rank());
    const uint32_t full = shared_address(&ring.full[stage]);
    mbarrier_wait(shared_address(&ring.empty[stage]), (round / kStages % 2) ^ 1);
    mbarrier_arrive_expect(full, kBug == kExpectHalf ? kBytesOfA + kBytesOfA / 2 : 2 * kBytesOfA);
    tensor_load_2d(shared_address(ring.a[stage]), a, 64 * round, 64 * rank, full);
    tensor_load_2d_multicast(shared_address(ring.b[stage]) + kBytesOfA / 2 * rank, b_half, 64 * round, 32 * rank, full,
                             kBug == kMaskTooWide ? 7 : 3);
}

template <ClusterBug kBug>
DEVICE void release_cluster_stage(uint32_t empty) {
    if (threadIdx.x != 128) return;
    if (kBug == kOwnReleaseOnly) return mbarrier_arrive(empty);
    const uint32_t last = kBug == kPeerTooFar ? 2 : 1;
    for (uint32_t rank = 0; rank <= last; ++rank) mbarrier_arrive_remote(kBug == kNotMapped ? empty : map_peer(empty, rank));
}

template <ClusterBug kBug>
DEVICE void cluster_ring(float* out, int rounds, const TensorMap& a, const TensorMap& b_half) {
    SHARED_STORAGE(ClusterRing, ring);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            mbarrier_init(shared_address(&ring.full[stage]), 1);
            mbarrier_init(shared_address(&ring.empty[stage]), kBug == kOwnReleaseOnly || kBug == kEmptyOfOneBlock ? 1 : 2);
        }
        if (kBug != kNoRemoteFence) fence_barrier_init();
    }
    if (kBug == kWaitFirst) cluster_wait();
    if (kBug == kNoFirstBarrier) {
        __syncthreads();
    } else {
        cluster_arrive();
        if (kBug == kArriveTwice) cluster_arrive();
        if (kBug == kReturnInside && cluster_rank() == 1 && threadIdx.x >= 224) return;
        cluster_wait();  // both blocks' barriers are made
    }
    if (threadIdx.x < 128) {
        if (threadIdx.x == 0)
            for (int round = 0; round < rounds; ++round) bring_cluster_round<kBug>(ring, a, b_half, round);
    } else {
        float d[32];
        for (int round = 0; round < rounds; ++round) {
            const int stage = round % kStages;
            mbarrier_wait(shared_address(&ring.full[stage]), round / kStages % 2);
            wgmma_fence();
            for (int step = 0; step < 4; ++step)
                wgmma<64, false, false>(d, tile_descriptor(shared_address(ring.a[stage]) + 32 * step),
                                        tile_descriptor(shared_address(ring.b[stage]) + 32 * step), round + step > 0);
            wgmma_commit();
            wgmma_wait<0>();
            release_cluster_stage<kBug>(shared_address(&ring.empty[stage]));
        }
        keep_product(out + 512 * cluster_rank(), d);
    }
    if (kBug != kNoLastBarrier) {
        cluster_arrive();
        cluster_wait();  // nothing is on its way to a block that has ended
    }
}
#define CLUSTER(name, bug) \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) zoo_hopper_##name(ZOO_PARAMETERS) { \
        USE_ALL; \
        cluster_ring<bug>(out, rounds, a, b_half); \
    } \
    KERNEL(zoo_hopper_##name, 256, ClusterRing)
CLUSTER(clean_cluster, kCleanCluster)
CLUSTER(no_first_barrier, kNoFirstBarrier)
CLUSTER(no_last_barrier, kNoLastBarrier)
CLUSTER(own_release_only, kOwnReleaseOnly)
CLUSTER(empty_of_one_block, kEmptyOfOneBlock)
CLUSTER(mask_too_wide, kMaskTooWide)
CLUSTER(peer_too_far, kPeerTooFar)
CLUSTER(not_mapped, kNotMapped)
CLUSTER(no_remote_fence, kNoRemoteFence)
CLUSTER(arrive_twice, kArriveTwice)
CLUSTER(wait_first, kWaitFirst)
CLUSTER(return_inside, kReturnInside)
CLUSTER(expect_half, kExpectHalf)

// ---- Registers of threads, lanes ----

// The first warpgroup gives, the second takes.
template <int kGiven, int kTaken>
DEVICE void exchange_registers(float* out) {
    if (threadIdx.x < 128) {
        decrease_registers<kGiven>();
    } else {
        increase_registers<kTaken>();
    }
    if (threadIdx.x < 128) out[threadIdx.x] = 1.0f;
}
ZOO(clean_registers, 256, NoStorage, (exchange_registers<40, 256>(out)))
ZOO(registers_beyond_file, 384, NoStorage, (exchange_registers<160, 184>(out)))
ZOO(registers_odd, 256, NoStorage, (exchange_registers<44, 256>(out)))
ZOO(registers_too_few, 256, NoStorage, (exchange_registers<16, 256>(out)))
ZOO(registers_not_less, 384, NoStorage, (exchange_registers<176, 184>(out)))

ZOO(half_warp_elects, 128, NoStorage, out[threadIdx.x] = threadIdx.x % 32 < 16 && elect_one() ? 1.0f : 0.0f)

DEVICE void store_matrix_row(float* out, uint32_t skew) {
    SHARED_STORAGE(StoreTile, tile);
    const uint32_t registers[4] = {1, 2, 3, 4};
    if (threadIdx.x < 32) stmatrix_x4(shared_address(&tile.value[4 * threadIdx.x]) + skew, registers);
    __syncthreads();
    out[threadIdx.x] = tile.value[threadIdx.x];
}
ZOO(row_misaligned, 128, StoreTile, store_matrix_row(out, 4))
ZOO(row_outside, 128, StoreTile, store_matrix_row(out, 8192))
