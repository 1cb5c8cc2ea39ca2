// The zoo, asynchronous copies and the tensor path: missing and short waits, refills of a buffer in use, bad addresses.
#include "../../elem.cuh"
#include "../../ptx/cp_async.cuh"
#include "../../ptx/ldmatrix.cuh"
#include "../../ptx/mma.cuh"

// Two stages of 128 × 4 floats: thread i copies four floats a stage.
struct Ring {
    float stage[2][512];
};

// Adds up `rounds` rows of 512 floats through the ring; bug 0 is none.
enum RingBug { kClean, kShortWait, kNoWait, kNoBarrierAfterWait, kRefillBeforeBarrier, kNoCommit };
template <RingBug kBug>
DEVICE void sum_through_ring(float* out, const float* in, int rounds) {
    SHARED_STORAGE(Ring, ring);
    auto fetch = [&](int round) {
        if (round < rounds)
            cp_async_16(shared_address(&ring.stage[round % 2][4 * threadIdx.x]), in + round * 128 + 4 * (threadIdx.x % 32));
        if (kBug != kNoCommit) cp_async_commit();
    };
    fetch(0);
    float sum = 0.0f;
    for (int round = 0; round < rounds; ++round) {
        if (kBug == kRefillBeforeBarrier) fetch(round + 1);
        if (kBug == kShortWait) {
            cp_async_wait<1>();
        } else if (kBug == kRefillBeforeBarrier) {
            cp_async_wait<1>();
        } else if (kBug != kNoWait) {
            cp_async_wait<0>();
        }
        if (kBug != kNoBarrierAfterWait) __syncthreads();  // the stage is filled, and the other one is read
        if (kBug != kRefillBeforeBarrier) fetch(round + 1);
        if (kBug == kShortWait) cp_async_commit();
        sum += ring.stage[round % 2][511 - threadIdx.x];
    }
    cp_async_wait_all();
    out[threadIdx.x] = sum;
}

extern "C" __global__ void zoo_clean_ring(float* out, const float* in, int n) { sum_through_ring<kClean>(out, in, n); }
KERNEL(zoo_clean_ring, 128, Ring)
extern "C" __global__ void zoo_copy_short_wait(float* out, const float* in, int n) { sum_through_ring<kShortWait>(out, in, n); }
KERNEL(zoo_copy_short_wait, 128, Ring)
extern "C" __global__ void zoo_copy_without_wait(float* out, const float* in, int n) { sum_through_ring<kNoWait>(out, in, n); }
KERNEL(zoo_copy_without_wait, 128, Ring)
extern "C" __global__ void zoo_copy_without_barrier(float* out, const float* in, int n) {
    sum_through_ring<kNoBarrierAfterWait>(out, in, n);
}
KERNEL(zoo_copy_without_barrier, 128, Ring)
extern "C" __global__ void zoo_refill_before_barrier(float* out, const float* in, int n) {
    sum_through_ring<kRefillBeforeBarrier>(out, in, n);
}
KERNEL(zoo_refill_before_barrier, 128, Ring)
extern "C" __global__ void zoo_copy_without_commit(float* out, const float* in, int n) {
    sum_through_ring<kNoCommit>(out, in, n);
}
KERNEL(zoo_copy_without_commit, 128, Ring)

extern "C" __global__ void zoo_copy_left_open(float* out, const float* in, int) {
    SHARED_STORAGE(Ring, ring);
    cp_async_16(shared_address(&ring.stage[0][4 * threadIdx.x]), in + 4 * (threadIdx.x % 32));
    cp_async_commit();
    out[threadIdx.x] = in[threadIdx.x];
}
KERNEL(zoo_copy_left_open, 128, Ring)

extern "C" __global__ void zoo_copy_misaligned(float* out, const float* in, int n) {
    SHARED_STORAGE(Ring, ring);
    cp_async_16(shared_address(&ring.stage[0][4 * threadIdx.x + n]), in + 4 * (threadIdx.x % 32));
    cp_async_wait_all();
    __syncthreads();
    out[threadIdx.x] = ring.stage[0][threadIdx.x];
}
KERNEL(zoo_copy_misaligned, 128, Ring)

extern "C" __global__ void zoo_copy_source_past_end(float* out, const float* in, int n) {
    SHARED_STORAGE(Ring, ring);
    cp_async_16(shared_address(&ring.stage[0][4 * threadIdx.x]), in + n + 4 * threadIdx.x);
    cp_async_wait_all();
    __syncthreads();
    out[threadIdx.x] = ring.stage[0][threadIdx.x];
}
KERNEL(zoo_copy_source_past_end, 128, Ring)

extern "C" __global__ void zoo_copy_outside_shared(float* out, const float* in, int n) {
    SHARED_STORAGE(Ring, ring);
    cp_async_16(shared_address(&ring.stage[0][0]) + uint32_t(n + threadIdx.x) * 16, in);
    cp_async_wait_all();
    out[threadIdx.x] = in[threadIdx.x];
}
KERNEL(zoo_copy_outside_shared, 128, Ring)

// One warp's tile product D[16,8] = A[16,16]·B[16,8] in bf16, from shared memory: A as it is, B transposed on the way.
struct Tiles {
    alignas(16) bf16 a[16][24];
    alignas(16) bf16 b[16][24];
};
DEVICE void tile_product(float* out, const float* in, uint32_t skew) {
    SHARED_STORAGE(Tiles, tiles);
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += kWarpLanes) tiles.a[i / 16][i % 16] = from_float<bf16>(in[i]);
    for (int i = lane; i < 128; i += kWarpLanes) tiles.b[i / 8][i % 8] = from_float<bf16>(in[256 + i]);
    __syncwarp();
    uint32_t a[4], b[2];
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    ldmatrix_x4(a, shared_address(&tiles.a[lane % 16][lane / 16 * 8]) + skew);
    ldmatrix_x2_transposed(b, shared_address(&tiles.b[lane % 16][0]));
    mma_bf16_16x8x16(d, a, b[0], b[1]);
    const int row = lane / 4, column = lane % 4 * 2;
    out[row * 8 + column] = d[0];
    out[row * 8 + column + 1] = d[1];
    out[(row + 8) * 8 + column] = d[2];
    out[(row + 8) * 8 + column + 1] = d[3];
}
extern "C" __global__ void zoo_clean_tile_product(float* out, const float* in, int) { tile_product(out, in, 0); }
KERNEL(zoo_clean_tile_product, 32, Tiles)
extern "C" __global__ void zoo_matrix_row_misaligned(float* out, const float* in, int n) { tile_product(out, in, n); }
KERNEL(zoo_matrix_row_misaligned, 32, Tiles)
extern "C" __global__ void zoo_matrix_row_outside(float* out, const float* in, int n) { tile_product(out, in, 16 * n); }
KERNEL(zoo_matrix_row_outside, 32, Tiles)
