// Rows held in registers: a group of kWarps warps takes one row, 16 elements a thread, so that a row is read once however
// often its sums are needed. One warp holds 512 columns, 2 warps 1024, 4 warps 2048, 8 warps 4096, 16 warps 8192; the host
// takes the fewest (src/engine/ops/rows.rs), because what a warp does for a sum it does for few columns as for many. Thread t of a group holds the 16-byte vectors t, t + threads, t + 2·threads, ... of its row.
#pragma once
#include "elem.cuh"
#include "reduce.cuh"

// How many elements of a row a thread holds.
constexpr int kRowRegElements = 16;

// The widths in use: warps of a group, and the columns they hold.
constexpr int kNarrowWarps = 1, kMiddleWarps = 2, kUsualWarps = 4, kBroadWarps = 8, kWideWarps = 16;
HOST_CONSTANT int kNarrowColumns = kNarrowWarps * kWarpLanes * kRowRegElements;
HOST_CONSTANT int kMiddleColumns = kMiddleWarps * kWarpLanes * kRowRegElements;
HOST_CONSTANT int kUsualColumns = kUsualWarps * kWarpLanes * kRowRegElements;
HOST_CONSTANT int kBroadColumns = kBroadWarps * kWarpLanes * kRowRegElements;
HOST_CONSTANT int kWideColumns = kWideWarps * kWarpLanes * kRowRegElements;
// Rows that a block takes at a time: narrow groups share a block of the usual size, as a multiprocessor has room for no more
// than 32 blocks. Blocks of two warps fill it even so, and a block of one group needs no barrier narrower than its own.
HOST_CONSTANT int kNarrowTeams = kUsualWarps / kNarrowWarps;
// Blocks that a multiprocessor holds of each size, in kernels whose blocks take rows in turn.
HOST_CONSTANT int kMiddleResident = 8, kUsualResident = 4, kBroadResident = 2, kWideResident = 1;

// How a block of threads is divided among rows.
template <int kWarps>
struct RowGroup {
    static constexpr int kThreads = kWarps * kWarpLanes;
    static constexpr int kBlockThreads = kWarps == kNarrowWarps ? kNarrowTeams * kThreads : kThreads;
    static constexpr int kGroups = kBlockThreads / kThreads;
    static constexpr int kColumns = kThreads * kRowRegElements;
};

// What ptxas may assume of kernels whose blocks take rows in turn: 128 registers a thread. Told nothing, it spills a few of
// them to fit one block more.
#define ROW_BOUNDS(warps) __launch_bounds__(RowGroup<warps>::kBlockThreads, 512 / RowGroup<warps>::kBlockThreads)

// A thread's part of a row, as f32.
template <class T> constexpr int kRowRegVectors = kRowRegElements / kVector<T>;
template <class T> using RowRegs = float[kRowRegVectors<T>][kVector<T>];

// The first column of a thread's vector `vector`.
template <class T, int kWarps>
DEVICE int row_column(int vector) {
    constexpr int kThreads = RowGroup<kWarps>::kThreads;
    return (vector * kThreads + int(threadIdx.x) % kThreads) * kVector<T>;
}

// Whether a thread's vector lies in a row of `columns` elements at all. Work on vectors is skipped where it does not: a row of
// 768 leaves half of the second vectors of a group of two warps empty, which is one whole warp's.
template <class T, int kWarps>
DEVICE bool is_inside(int vector, int columns) {
    return row_column<T, kWarps>(vector) < columns;
}

// Whether rows of `columns` elements can be accessed in whole vectors.
template <class T>
DEVICE bool has_whole_vectors(int columns) {
    return columns % kVector<T> == 0;
}

// This thread's part of the row of `columns` elements at `row`; zeros past the end.
template <int kWarps, class T>
DEVICE void load_row(RowRegs<T>& regs, const T* row, int columns) {
    const bool vectors = has_whole_vectors<T>(columns);
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) regs[j][i] = 0.0f;
        if (is_inside<T, kWarps>(j, columns)) load_columns(regs[j], row, row_column<T, kWarps>(j), columns, vectors);
    }
}

// This thread's part of `columns` f32 that belong to the columns of rows of T; zeros past the end.
template <class T, int kWarps>
DEVICE void load_row_floats(RowRegs<T>& regs, const float* from, int columns) {
    const bool vectors = has_whole_vectors<T>(columns);
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) regs[j][i] = 0.0f;
        if (is_inside<T, kWarps>(j, columns)) load_floats(regs[j], from, row_column<T, kWarps>(j), columns, vectors);
    }
}

template <int kWarps, class T>
DEVICE void store_row(T* row, const RowRegs<T>& regs, int columns) {
    const bool vectors = has_whole_vectors<T>(columns);
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j)
        if (is_inside<T, kWarps>(j, columns)) store_columns(row, regs[j], row_column<T, kWarps>(j), columns, vectors);
}

// Each of `values` becomes its sum over the group, for every thread of it; `partial` as block_sum wants it.
template <int kWarps, int kValues>
DEVICE void group_sum(float (&values)[kValues], float (&partial)[kValues][kWarps]) {
    if constexpr (kWarps == 1) {
        UNROLL
        for (int i = 0; i < kValues; ++i) values[i] = warp_sum(values[i]);
    } else {
        block_sum<kWarps>(values, partial);
    }
}

// The largest of the group's values, for every thread of it; `partial` as block_sum wants it.
template <int kWarps>
DEVICE float team_max(float value, float (&partial)[kWarps]) {
    value = warp_max(value);
    if constexpr (kWarps > 1) {
        if (threadIdx.x % kWarpLanes == 0) partial[threadIdx.x / kWarpLanes] = value;
        if (!PLANTED_BUG("team_max: no barrier before the warps' maxima are compared")) {
            __syncthreads();  // every warp has written its maximum
        }
        UNROLL
        for (int w = 0; w < kWarps; ++w) value = fmaxf(value, partial[w]);
    }
    return value;
}
