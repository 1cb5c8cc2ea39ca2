// Sums and maxima over a warp and over a block, in a fixed order: the same bits on every run.
#pragma once
#include "kernel.cuh"

// Every lane receives the sum over the warp. All 32 lanes take part.
DEVICE float warp_sum(float value) {
    UNROLL
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// Every lane receives the maximum over the warp.
DEVICE float warp_max(float value) {
    UNROLL
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
    return value;
}

// Replaces each of `values` by its sum over the block's kWarps warps, for every thread. All threads of the block take
// part. `partial` is written before the one barrier inside and read behind it: two calls in a row need two different
// arrays, or a barrier between them.
template <int kWarps, int kValues>
DEVICE void block_sum(float (&values)[kValues], float (&partial)[kValues][kWarps]) {
    const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
    UNROLL
    for (int i = 0; i < kValues; ++i) {
        values[i] = warp_sum(values[i]);
        if (lane == 0) partial[i][warp] = values[i];
    }
    if (!PLANTED_BUG("block_sum: no barrier before the partial sums are read")) {
        __syncthreads();  // partial sums are written before anyone adds them up
    }
    UNROLL
    for (int i = 0; i < kValues; ++i) {
        values[i] = 0.0f;
        UNROLL
        for (int w = 0; w < kWarps; ++w) values[i] += partial[i][w];
    }
}
