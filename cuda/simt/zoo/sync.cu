// The zoo, synchronisation: missing, misplaced and divergent barriers, wrong masks, endless waits.
#include "../../ptx/barrier.cuh"
#include "../../ptx/mma.cuh"
#include "../../reduce.cuh"

struct Row {
    float value[128];
};
struct Counter {
    uint32_t count;
};

extern "C" __global__ void zoo_clean_warp_exchange(float* out, const float* in, int) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    out[threadIdx.x] = row.value[threadIdx.x ^ 1];
}
KERNEL(zoo_clean_warp_exchange, 128, Row)

// Two warps produce for the other two, over and over, with named barriers in both directions.
extern "C" __global__ void zoo_clean_named_barriers(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    const int lane = threadIdx.x % 64;
    float sum = 0.0f;
    for (int round = 0; round < n; ++round) {
        if (threadIdx.x < 64) {
            if (round > 0) barrier_sync(2, 128);  // the consumers have read the last round
            row.value[lane] = in[lane] * float(round + 1);
            barrier_arrive(1, 128);
        } else {
            barrier_sync(1, 128);  // this round's values are written
            sum += row.value[63 - lane];
            if (round + 1 < n) barrier_arrive(2, 128);
        }
    }
    out[threadIdx.x] = sum;
}
KERNEL(zoo_clean_named_barriers, 128, Row)

extern "C" __global__ void zoo_clean_shared_counter(float* out, const float* in, int) {
    SHARED_STORAGE(Counter, counter);
    if (threadIdx.x == 0) counter.count = 0;
    __syncthreads();
    atomicAdd(&counter.count, uint32_t(in[threadIdx.x]));
    __syncthreads();
    out[threadIdx.x] = float(counter.count);
}
KERNEL(zoo_clean_shared_counter, 128, Counter)

extern "C" __global__ void zoo_clean_votes(float* out, const float* in, int) {
    const int lane = threadIdx.x % kWarpLanes;
    uint32_t even = __ballot_sync(kAllLanes, lane % 2 == 0);
    uint32_t alike = __match_any_sync(kAllLanes, uint32_t(lane / 8));
    float partner = __shfl_down_sync(kAllLanes, in[threadIdx.x], 3, 8);
    float sum = warp_sum(in[threadIdx.x]), most = warp_max(in[threadIdx.x]);
    out[threadIdx.x] = float(__popc(even)) + float(__popc(alike)) * 100.0f + partner * 1000.0f + sum + most;
}
KERNEL(zoo_clean_votes, 128)

extern "C" __global__ void zoo_missing_barrier(float* out, const float* in, int) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = row.value[127 - threadIdx.x];
}
KERNEL(zoo_missing_barrier, 128, Row)

extern "C" __global__ void zoo_missing_warp_sync(float* out, const float* in, int) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = row.value[threadIdx.x ^ 1];
}
KERNEL(zoo_missing_warp_sync, 128, Row)

// A shuffle makes the lanes meet, but orders no memory.
extern "C" __global__ void zoo_shuffle_instead_of_warp_sync(float* out, const float* in, int) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    float sum = warp_sum(in[threadIdx.x]);
    out[threadIdx.x] = row.value[threadIdx.x ^ 1] + sum * 0.0f;
}
KERNEL(zoo_shuffle_instead_of_warp_sync, 128, Row)

extern "C" __global__ void zoo_reused_without_barrier(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    float sum = 0.0f;
    for (int round = 0; round < n; ++round) {
        row.value[threadIdx.x] = in[threadIdx.x] + float(round);
        __syncthreads();
        sum += row.value[127 - threadIdx.x];  // missing: a barrier before the next round writes
    }
    out[threadIdx.x] = sum;
}
KERNEL(zoo_reused_without_barrier, 128, Row)

extern "C" __global__ void zoo_lost_update(float* out, const float*, int) {
    SHARED_STORAGE(Counter, counter);
    if (threadIdx.x == 0) counter.count = 0;
    __syncthreads();
    counter.count = counter.count + 1;
    __syncthreads();
    out[threadIdx.x] = float(counter.count);
}
KERNEL(zoo_lost_update, 128, Counter)

extern "C" __global__ void zoo_barrier_in_branches(float* out, const float* in, int) {
    if (threadIdx.x < 64) {
        __syncthreads();
        out[threadIdx.x] = in[threadIdx.x];
    } else {
        out[threadIdx.x] = 0.0f;
        __syncthreads();
    }
}
KERNEL(zoo_barrier_in_branches, 128)

extern "C" __global__ void zoo_early_return(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    if (int(threadIdx.x) >= n) return;
    row.value[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row.value[threadIdx.x];
}
KERNEL(zoo_early_return, 128, Row)

extern "C" __global__ void zoo_barrier_skipped(float* out, const float* in, int n) {
    if (int(threadIdx.x) < n) __syncthreads();
    __syncwarp();
    out[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
}
KERNEL(zoo_barrier_skipped, 128)

extern "C" __global__ void zoo_shuffle_mask_too_wide(float* out, const float* in, int) {
    float value = in[threadIdx.x];
    if (threadIdx.x % kWarpLanes < 16) value += __shfl_xor_sync(kAllLanes, value, 1);
    __syncthreads();
    out[threadIdx.x] = value;
}
KERNEL(zoo_shuffle_mask_too_wide, 128)

extern "C" __global__ void zoo_shuffle_from_outside_mask(float* out, const float* in, int) {
    float value = in[threadIdx.x];
    if (threadIdx.x % kWarpLanes < 16) value += __shfl_xor_sync(0xffffu, value, 16);
    out[threadIdx.x] = value;
}
KERNEL(zoo_shuffle_from_outside_mask, 128)

extern "C" __global__ void zoo_mask_without_caller(float* out, const float* in, int) {
    out[threadIdx.x] = in[threadIdx.x] + __shfl_xor_sync(0xfffeu, in[threadIdx.x], 1);
}
KERNEL(zoo_mask_without_caller, 128)

extern "C" __global__ void zoo_lanes_disagree(float* out, const float* in, int) {
    float value = in[threadIdx.x];
    if (threadIdx.x % kWarpLanes < 16) {
        value += __shfl_xor_sync(kAllLanes, value, 1);
    } else {
        __syncwarp();
    }
    out[threadIdx.x] = value;
}
KERNEL(zoo_lanes_disagree, 128)

extern "C" __global__ void zoo_named_barrier_short(float* out, const float* in, int) {
    if (threadIdx.x < 64) barrier_sync(1, 96);
    out[threadIdx.x] = in[threadIdx.x];
}
KERNEL(zoo_named_barrier_short, 128)

extern "C" __global__ void zoo_named_barrier_counts_differ(float* out, const float* in, int) {
    barrier_sync(1, threadIdx.x < 64 ? 128 : 64);
    out[threadIdx.x] = in[threadIdx.x];
}
KERNEL(zoo_named_barrier_counts_differ, 128)

extern "C" __global__ void zoo_half_warp_product(float* out, const float* in, int) {
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    const uint32_t a[4] = {__float_as_uint(in[0]), 0, 0, 0};
    if (threadIdx.x % kWarpLanes < 16) mma_bf16_16x8x16(d, a, 0, 0);
    out[threadIdx.x] = d[0];
}
KERNEL(zoo_half_warp_product, 128)

// Plain reads of a counter that others change atomically.
extern "C" __global__ void zoo_atomic_meets_plain_read(float* out, const float* in, int) {
    SHARED_STORAGE(Counter, counter);
    if (threadIdx.x == 0) counter.count = 0;
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&counter.count, uint32_t(in[threadIdx.x]));
    out[threadIdx.x] = float(counter.count);
}
KERNEL(zoo_atomic_meets_plain_read, 128, Counter)

// Waits for a value that another block would write: on a GPU this hangs when that block is not resident.
extern "C" __global__ void zoo_wait_for_another_block(float* out, const float*, int) {
    volatile float* flag = out + 128;
    if (blockIdx.x == 0) {
        while (*flag != 1.0f) {
        }
    }
    if (blockIdx.x == 1) *flag = 1.0f;
    out[threadIdx.x] = 1.0f;
}
KERNEL(zoo_wait_for_another_block, 128)
