// The second half of every sum over rows: blocks have written partial sums, and these are added up in a fixed order.
#pragma once
#include "kernel.cuh"

constexpr int kPartialThreads = 256;
// Columns that a block sums.
HOST_CONSTANT int kPartialColumns = kWarpLanes;
constexpr int kPartialGroups = kPartialThreads / kWarpLanes;

struct PartialSums {
    float sum[kPartialGroups][kPartialColumns];
};

// total[c] = Σ over i < count of partials[i·pitch + c], for the 32 columns from 32·blockIdx.x on. Warp w of eight adds up
// i = w, w + 8, ...; then the eight are added in order. All 256 threads of the block take part, once.
DEVICE void add_partials(PartialSums& storage, float* total, const float* partials, int count, int64_t pitch, int columns) {
    const int group = int(threadIdx.x) / kWarpLanes, lane = int(threadIdx.x) % kWarpLanes;
    const int column = int(blockIdx.x) * kPartialColumns + lane;
    float sum = 0.0f;
    if (column < columns)
        for (int i = group; i < count; i += kPartialGroups) sum += partials[i * pitch + column];
    storage.sum[group][lane] = sum;
    if (!PLANTED_BUG("add_partials: no barrier before the groups' sums are added")) {
        __syncthreads();  // all groups have written their sums
    }
    if (group != 0 || column >= columns) return;
    UNROLL
    for (int g = 1; g < kPartialGroups; ++g) sum += storage.sum[g][lane];
    total[column] = sum;
}
