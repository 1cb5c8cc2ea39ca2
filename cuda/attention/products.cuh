// The two kinds of product attention is made of, for the rows of one warp, and how its results get to memory.
// `groups` has a bit for each 16 columns of a block of scores that some row of the warp sees. With kWhole all are set, and
// the loop over them is free of branches; at the edge of a mask or of the tokens, groups that nobody sees are left out.
#pragma once
#include "geometry.cuh"

// Rows of a tile as left operand: the first kHeld columns are kept in registers from `hold` on, the others read every time.
template <class T, int kRowFragments, int kHeld, class SharedTile>
struct LeftRows {
    const SharedTile& tile;
    int row;
    FragmentA<T> regs[kRowFragments][kHeld > 0 ? kHeld / kFragmentDepth : 1];

    DEVICE_MEMBER LeftRows(const SharedTile& tile, int row) : tile(tile), row(row) {}
    DEVICE_MEMBER void hold() {
        UNROLL
        for (int r = 0; r < kRowFragments; ++r) {
            UNROLL
            for (int k = 0; k < kHeld / kFragmentDepth; ++k)
                load_a(regs[r][k], tile, row + r * kFragmentRows, k * kFragmentDepth);
        }
    }
    // `k` is a constant where loops are unrolled.
    DEVICE_MEMBER FragmentA<T> fragment(int r, int k) const {
        if (k < kHeld / kFragmentDepth) return regs[r][k];
        FragmentA<T> a;
        load_a(a, tile, row + r * kFragmentRows, k * kFragmentDepth);
        return a;
    }
};

// acc(m, n) += Σ over the head dim of left(m, d)·right(n, d): scores, and the gradients of probabilities.
template <bool kWhole, int kDim, class T, int kRowFragments, int kColumnFragments, class Left, class SharedTile>
DEVICE void multiply_along_dim(float (&acc)[kRowFragments][kColumnFragments][4], const Left& left, const SharedTile& right,
                               uint32_t groups) {
    UNROLL
    for (int k = 0; k < kDim / kFragmentDepth; ++k) {
        FragmentA<T> a[kRowFragments];
        UNROLL
        for (int r = 0; r < kRowFragments; ++r) a[r] = left.fragment(r, k);
        UNROLL
        for (int j = 0; j < kColumnFragments / 2; ++j) {
            if (!kWhole && !(groups >> j & 1)) continue;
            FragmentB<T> b[2];
            load_b_pair(b, right, 16 * j, k * kFragmentDepth);
            UNROLL
            for (int r = 0; r < kRowFragments; ++r) {
                multiply_add(acc[r][2 * j], a[r], b[0]);
                multiply_add(acc[r][2 * j + 1], a[r], b[1]);
            }
        }
    }
}

// acc(m, d) += Σ over the columns of left(m, n)·right(n, d), d from `first_dim` on: outputs, and the gradients of queries, keys
// and values.
template <bool kWhole, class T, int kRowFragments, int kColumnFragments, int kDimFragments, class SharedTile>
DEVICE void multiply_along_columns(float (&acc)[kRowFragments][kDimFragments][4],
                                   const float (&left)[kRowFragments][kColumnFragments][4], const SharedTile& right,
                                   uint32_t groups, int first_dim = 0) {
    UNROLL
    for (int j = 0; j < kColumnFragments / 2; ++j) {
        if (!kWhole && !(groups >> j & 1)) continue;
        FragmentA<T> a[kRowFragments];
        UNROLL
        for (int r = 0; r < kRowFragments; ++r) accumulators_to_a(a[r], left[r][2 * j], left[r][2 * j + 1]);
        UNROLL
        for (int n = 0; n < kDimFragments / 2; ++n) {
            FragmentB<T> b[2];
            load_b_pair_transposed(b, right, first_dim + 16 * n, 16 * j);
            UNROLL
            for (int r = 0; r < kRowFragments; ++r) {
                multiply_add(acc[r][2 * n], a[r], b[0]);
                multiply_add(acc[r][2 * n + 1], a[r], b[1]);
            }
        }
    }
}

// Writes the first `rows` rows of acc·factor to `to`, a head's rows, from column `first_dim` on, by way of `tile`, where this
// warp alone uses those columns of the rows from `row` on: so every access to global memory has 16 bytes.
template <class T, int kRowFragments, int kDimFragments, class SharedTile>
DEVICE void store_rows(T* to, int64_t pitch, int rows, int dim, SharedTile& tile, int row,
                       const float (&acc)[kRowFragments][kDimFragments][4], const float (&factor)[kRowFragments][2],
                       int first_dim = 0) {
    __syncwarp();  // every lane has read the rows that are overwritten now
    UNROLL
    for (int r = 0; r < kRowFragments; ++r) {
        UNROLL
        for (int n = 0; n < kDimFragments; ++n) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int column = first_dim + n * kFragmentColumns + accumulator_column(0);
                store_pair(&tile.element[row + r * kFragmentRows + accumulator_row(2 * half)][column],
                           acc[r][n][2 * half] * factor[r][half], acc[r][n][2 * half + 1] * factor[r][half]);
            }
        }
    }
    if (!PLANTED_BUG("attention: no warp barrier before the rows are stored")) {
        __syncwarp();  // the rows are written before other lanes pick them up
    }
    constexpr int kAcross = kDimFragments * kFragmentColumns / kVector<T>;
    for (int i = int(threadIdx.x) % kWarpLanes; i < kRowFragments * kFragmentRows * kAcross; i += kWarpLanes) {
        const int r = i / kAcross, column = first_dim + i % kAcross * kVector<T>;
        if (r < rows && column < dim)
            store_16_bytes(to + r * pitch + column, load_16_bytes(&tile.element[row + r][column]));
    }
}
