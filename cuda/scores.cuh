// Scores: the products S = A·Bᵀ that a softmax follows, of which only statistics and gradients are ever wanted. The tiles of
// S live in registers. What leaves them is per tile, not per element: the log-sums of a tile's rows and columns; or it is
// the gradient of one row block, small enough that its memory stays within a constant times that of A and B.
//
// A log-sum is kept as (top, sum) with Σ e^s = sum·e^top, so that no exponent is positive and two of them can be merged.
// Row blocks are worked on one launch after another, and everything within is merged in a fixed order.
#pragma once
#include "product.cuh"
#include "reduce.cuh"

// The tiles of scores: large ones whatever the sizes, so that the rows of statistics have one layout.
template <class T> using ScoreShape = typename ProductShapes<T>::Large;
template <class T> using ScoreStorage = ProductStorage<ScoreShape<T>, RowsOperand<T>, RowsOperand<T>>;

// ---- Log-sums ----

struct LogSum {
    float top, sum;
};
DEVICE LogSum no_log_sum() { return {-INFINITY, 0.0f}; }
// A score of -∞ (outside the matrix) adds nothing, whatever the top; NaN goes through.
DEVICE float term(float score, float top) { return score == -INFINITY ? 0.0f : expf(score - top); }
DEVICE LogSum merge(LogSum a, LogSum b) {
    const float top = fmaxf(a.top, b.top);
    if (top == -INFINITY) return {top, a.sum + b.sum};
    return {top, a.sum * expf(a.top - top) + b.sum * expf(b.top - top)};
}
DEVICE float finish(LogSum value) { return value.top + logf(value.sum); }

DEVICE LogSum load_log_sum(const float* from, int64_t index) {
    const float2 pair = reinterpret_cast<const float2*>(from)[index];
    return {pair.x, pair.y};
}
DEVICE void store_log_sum(float* to, int64_t index, LogSum value) {
    reinterpret_cast<float2*>(to)[index] = make_float2(value.top, value.sum);
}

// Merges the log-sums of a row's tiles; every lane receives the result. All 32 lanes take part.
DEVICE LogSum merge_row(const float* part, int64_t row, int tiles) {
    const int lane = int(threadIdx.x) % kWarpLanes;
    LogSum all = no_log_sum();
    for (int tile = lane; tile < tiles; tile += kWarpLanes) all = merge(all, load_log_sum(part, row * tiles + tile));
    UNROLL
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
        const LogSum other{__shfl_xor_sync(kAllLanes, all.top, distance), __shfl_xor_sync(kAllLanes, all.sum, distance)};
        all = merge(all, other);
    }
    return all;
}

// Where the warps of a block leave their log-sums of the tile's rows, and of its columns.
template <class Shape>
struct RowLogSums {
    LogSum part[Shape::kWarpsN][Shape::kTileM];
    DEVICE_MEMBER LogSum merged(int row) const {
        LogSum all = part[0][row];
        UNROLL
        for (int w = 1; w < Shape::kWarpsN; ++w) all = merge(all, part[w][row]);
        return all;
    }
};
template <class Shape>
struct ColumnLogSums {
    LogSum part[Shape::kWarpsM][Shape::kTileN];
    DEVICE_MEMBER LogSum merged(int column) const {
        LogSum all = part[0][column];
        UNROLL
        for (int w = 1; w < Shape::kWarpsM; ++w) all = merge(all, part[w][column]);
        return all;
    }
};

// This warp's log-sums of the rows of its fragments, over the tile's first `columns` columns. To be read behind a barrier.
template <class Shape>
DEVICE void row_log_sums(RowLogSums<Shape>& sums, const Accumulators<Shape>& scores, int columns) {
    const int m = warp_row<Shape>(), n = warp_column<Shape>(), warp = int(threadIdx.x) / kWarpLanes % Shape::kWarpsN;
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const auto score = [&](int j, int e) {
                const int column = n + j * kFragmentColumns + accumulator_column(e);
                return column < columns ? scores[i][j][2 * half + e] : -INFINITY;
            };
            LogSum own = no_log_sum();
            UNROLL
            for (int j = 0; j < Shape::kFragmentsN; ++j) own.top = fmaxf(own.top, fmaxf(score(j, 0), score(j, 1)));
            UNROLL
            for (int distance = 1; distance <= 2; distance *= 2)
                own.top = fmaxf(own.top, __shfl_xor_sync(kAllLanes, own.top, distance));
            UNROLL
            for (int j = 0; j < Shape::kFragmentsN; ++j) own.sum += term(score(j, 0), own.top) + term(score(j, 1), own.top);
            UNROLL
            for (int distance = 1; distance <= 2; distance *= 2) own.sum += __shfl_xor_sync(kAllLanes, own.sum, distance);
            if (threadIdx.x % 4 == 0) sums.part[warp][m + i * kFragmentRows + accumulator_row(2 * half)] = own;
        }
    }
}

// The same of the columns, over the tile's first `rows` rows.
template <class Shape>
DEVICE void column_log_sums(ColumnLogSums<Shape>& sums, const Accumulators<Shape>& scores, int rows) {
    const int m = warp_row<Shape>(), n = warp_column<Shape>(), warp = int(threadIdx.x) / kWarpLanes / Shape::kWarpsN;
    UNROLL
    for (int j = 0; j < Shape::kFragmentsN; ++j) {
        UNROLL
        for (int e = 0; e < 2; ++e) {
            const auto score = [&](int i, int half) {
                const int row = m + i * kFragmentRows + accumulator_row(2 * half);
                return row < rows ? scores[i][j][2 * half + e] : -INFINITY;
            };
            LogSum own = no_log_sum();
            UNROLL
            for (int i = 0; i < Shape::kFragmentsM; ++i) own.top = fmaxf(own.top, fmaxf(score(i, 0), score(i, 1)));
            UNROLL
            for (int distance = 4; distance <= 16; distance *= 2)
                own.top = fmaxf(own.top, __shfl_xor_sync(kAllLanes, own.top, distance));
            UNROLL
            for (int i = 0; i < Shape::kFragmentsM; ++i) own.sum += term(score(i, 0), own.top) + term(score(i, 1), own.top);
            UNROLL
            for (int distance = 4; distance <= 16; distance *= 2) own.sum += __shfl_xor_sync(kAllLanes, own.sum, distance);
            if (threadIdx.x % kWarpLanes < 4) sums.part[warp][n + j * kFragmentColumns + accumulator_column(e)] = own;
        }
    }
}

// ---- Sums of parts ----

HOST_CONSTANT int kReduceWarps = 8, kReduceThreads = kReduceWarps * kWarpLanes;
constexpr int kTotalWarps = 32, kTotalThreads = kTotalWarps * kWarpLanes;

// out(i) = Σ over p of part(p·count + i) for this thread's 16 bytes of out, rounded once.
template <class T>
DEVICE void sum_parts(T* out, const float* part, int64_t count, int64_t stride, int parts) {
    constexpr int kWidth = kVector<T>;
    const int64_t first = (int64_t(blockIdx.x) * kReduceThreads + threadIdx.x) * kWidth;
    if (first >= count) return;
    const int left = int(min(count - first, int64_t(kWidth)));
    const bool vectors = count % kWidth == 0 && stride % 4 == 0 && has_vectors(part, 4) && has_vectors(out, kWidth);
    float sums[kWidth] = {};
    for (int p = 0; p < parts; ++p) {
        UNROLL
        for (int quarter = 0; quarter < kWidth; quarter += 4) {
            float values[4];
            load_columns(values, part + p * stride + first, quarter, left, vectors);
            UNROLL
            for (int i = 0; i < 4; ++i) sums[quarter + i] += values[i];
        }
    }
    store_columns(out + first, sums, 0, left, vectors);
}

// part(split) = the part of A·B that falls to this block's split, f32 [rows, columns] each; B lies with k down its rows.
template <class Shape, class A, class B>
DEVICE void product_part(ProductStorage<Shape, A, B>& storage, float* part, const A& a, const B& b, ProductPlace place,
                         int64_t stride, int rows, int columns, int inner, int steps) {
    const int all_steps = (inner + Shape::kTileK - 1) / Shape::kTileK;
    const int first_step = int(blockIdx.z) * steps, end_step = min(first_step + steps, all_steps);
    float* out = part + int64_t(blockIdx.z) * stride;
    const bool vectors = has_vectors(out, columns);
    product<4, Shape>(storage, a, b, place, rows, columns, first_step, end_step, NothingBesides{},
                      [&](int row, int column, float (&values)[4]) {
                          store_columns(out + int64_t(row) * columns, values, column, columns, vectors);
                      });
}
