// The forward pass: one tile of queries against key tile after key tile (Dao 2023, algorithm 1).
#pragma once
#include "products.cuh"

// Queries of a block, by storage type.
HOST_CONSTANT int kForwardQueriesBf16 = 128, kForwardQueriesF32 = 64;

// How the work is cut. bf16: 32 queries a warp, so that a fragment of keys serves two of queries. f32: operands have three
// parts, registers hold half as many.
template <class T, int kDim>
struct ForwardShape {
    static constexpr int kWarps = 4, kThreads = kWarps * kWarpLanes;
    static constexpr int kQueries = sizeof(T) == 2 ? kForwardQueriesBf16 : kForwardQueriesF32;
    static constexpr int kWarpQueries = kQueries / kWarps, kRowFragments = kWarpQueries / kFragmentRows;
    static constexpr int kKeys = sizeof(T) == 4 ? 32 : kDim <= 64 ? 64 : kDim == 96 ? 48 : 32;
    // Columns of the queries that stay in registers.
    static constexpr int kHeld = sizeof(T) == 2 && kDim <= 64 ? kDim : 0;
};

template <class T, int kDim>
struct ForwardStorage {
    using Shape = ForwardShape<T, kDim>;
    Tile<T, Shape::kQueries, kDim> query;
    Tile<T, Shape::kKeys, kDim> key;
    Tile<T, Shape::kKeys, kDim, kVector<T>> value;
};

// The running softmax of a warp's rows (Milakov and Gimelshein 2018): the largest score, and this lane's share of the sum of
// exponentials. Each lane has rows g and g + 8 of a fragment.
template <int kRowFragments>
struct RunningSoftmax {
    float largest[kRowFragments][2], sum[kRowFragments][2];
};

// Replaces scores by their exponentials against the largest so far, and brings sum and output to that. Of columns in no group
// (products.cuh) nobody asks for the exponentials.
template <bool kWhole, int kRowFragments, int kColumnFragments, int kDimFragments>
DEVICE void softmax_step(RunningSoftmax<kRowFragments>& softmax, float (&scores)[kRowFragments][kColumnFragments][4],
                         float (&output)[kRowFragments][kDimFragments][4], float scale_log2, uint32_t groups) {
    UNROLL
    for (int r = 0; r < kRowFragments; ++r) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const float before = softmax.largest[r][half];
            float largest = before;
            UNROLL
            for (int j = 0; j < kColumnFragments; ++j) {
                if (!kWhole && !(groups >> j / 2 & 1)) continue;
                largest = fmaxf(largest, fmaxf(scores[r][j][2 * half], scores[r][j][2 * half + 1]));
            }
            // The four lanes of a row.
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            // While a row has seen nothing, −∞ less 0 keeps its exponentials 0.
            const float shift = largest == kMinusInfinity ? 0.0f : largest * scale_log2;
            const float factor = exp2_approximate(before * scale_log2 - shift);
            float sum = softmax.sum[r][half] * factor;
            UNROLL
            for (int j = 0; j < kColumnFragments; ++j) {
                if (!kWhole && !(groups >> j / 2 & 1)) continue;
                UNROLL
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[r][j][i] = exp2_approximate(fmaf(scores[r][j][i], scale_log2, -shift));
                    sum += scores[r][j][i];
                }
            }
            UNROLL
            for (int n = 0; n < kDimFragments; ++n) {
                output[r][n][2 * half] *= factor;
                output[r][n][2 * half + 1] *= factor;
            }
            softmax.largest[r][half] = largest;
            softmax.sum[r][half] = sum;
        }
    }
}

template <class T, int kDim>
DEVICE void attention_forward(T* o, float* log_sum_exp, const T* query, const T* key, const T* value, float scale,
                              const Geometry& g) {
    using Shape = ForwardShape<T, kDim>;
    using Storage = ForwardStorage<T, kDim>;
    constexpr int kThreads = Shape::kThreads, kKeys = Shape::kKeys, kRowFragments = Shape::kRowFragments;
    SHARED_STORAGE(Storage, shared);
    const int thread = threadIdx.x, warp = thread / kWarpLanes;
    const Place at = place(g.heads, (g.query_tokens + Shape::kQueries - 1) / Shape::kQueries);
    const int first = at.tile * Shape::kQueries, last = min(first + Shape::kQueries, g.query_tokens) - 1;
    const int row = warp * Shape::kWarpQueries, warp_first = first + row;  // in the tile; among the queries
    const int warp_last = min(warp_first + Shape::kWarpQueries, g.query_tokens) - 1;
    const int limit = g.limit(last), least_limit = g.limit(warp_first), warp_limit = g.limit(warp_last);
    const Matrix<T> queries =
        head_rows(query + g.query_head(at.row, at.head), g.query_pitch, g.query_tokens, g.dim);
    const int64_t key_head = g.key_head(at.row, at.head / g.group);
    const Matrix<T> keys = head_rows(key + key_head, g.key_pitch, g.key_tokens, g.dim);
    const Matrix<T> values = head_rows(value + key_head, g.key_pitch, g.key_tokens, g.dim);
    const int32_t* segments = g.segments_of(at.row);
    const SegmentRange own = segments ? segment_range(segments, first, last + 1) : SegmentRange{};
    // The first key tile from `tile` on that some query of the block may see; `limit` or more where none is left.
    const auto visible = [&](int tile) {
        while (segments && tile < limit && are_apart(own, segment_range(segments, tile, min(tile + kKeys, limit))))
            tile += kKeys;
        return tile;
    };

    float output[kRowFragments][kDim / kFragmentColumns][4] = {};
    RunningSoftmax<kRowFragments> softmax;
    UNROLL
    for (int r = 0; r < kRowFragments; ++r) {
        softmax.largest[r][0] = softmax.largest[r][1] = kMinusInfinity;
        softmax.sum[r][0] = softmax.sum[r][1] = 0.0f;
    }
    LeftRows<T, kRowFragments, Shape::kHeld, decltype(shared.query)> left(shared.query, row);

    int tile = visible(0);
    if (tile < limit) {
        load_tile_async<kThreads>(shared.query, queries, first, 0, thread);
        load_tile_async<kThreads>(shared.key, keys, tile, 0, thread);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // the queries are there
        left.hold();
    }
    while (tile < limit) {
        if (!PLANTED_BUG("attention: no wait for the keys")) cp_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads the values of the last tile any more
        load_tile_async<kThreads>(shared.value, values, tile, 0, thread);
        cp_async_commit();

        // What some row of this warp sees of the tile; nothing for a warp without queries.
        const bool whole = warp_first < g.query_tokens && least_limit - tile >= kKeys && segments == nullptr;
        const int seen = warp_first < g.query_tokens ? min(warp_limit - tile, kKeys) : 0;
        const uint32_t groups = seen > 0 ? (1u << (seen + 15) / 16) - 1 : 0;
        float scores[kRowFragments][kKeys / kFragmentColumns][4] = {};
        if (whole) {
            multiply_along_dim<true, kDim, T>(scores, left, shared.key, groups);
        } else if (groups) {
            multiply_along_dim<false, kDim, T>(scores, left, shared.key, groups);
            mask<true>(scores, g, segments, warp_first, tile, kDim <= 64 ? groups : kAllGroups);
        }

        cp_async_wait<0>();
        if (!PLANTED_BUG("attention: no barrier between the keys and the values")) {
            __syncthreads();  // the values are there, and nobody reads the keys any more
        }
        tile = visible(tile + kKeys);
        if (tile < limit) load_tile_async<kThreads>(shared.key, keys, tile, 0, thread);
        cp_async_commit();

        if constexpr (kDim <= 64) {
            if (whole)
                softmax_step<true>(softmax, scores, output, scale * kLog2E, groups);
            else if (groups)
                softmax_step<false>(softmax, scores, output, scale * kLog2E, groups);
        } else if (groups) {
            // One text for both: of wider heads the registers are full.
            softmax_step<true>(softmax, scores, output, scale * kLog2E, groups);
        }
        if (whole)
            multiply_along_columns<true, T>(output, scores, shared.value, groups);
        else if (groups)
            multiply_along_columns<false, T>(output, scores, shared.value, groups);
    }
    if (warp_first >= g.query_tokens) return;

    float factor[kRowFragments][2];
    UNROLL
    for (int r = 0; r < kRowFragments; ++r) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            float sum = softmax.sum[r][half];
            sum += __shfl_xor_sync(kAllLanes, sum, 1);
            sum += __shfl_xor_sync(kAllLanes, sum, 2);
            factor[r][half] = sum > 0.0f ? 1.0f / sum : 0.0f;
            const int token = warp_first + r * kFragmentRows + accumulator_row(2 * half);
            // Of padding: finite, so that a probability of 0 stays one.
            if (log_sum_exp != nullptr && thread % 4 == 0 && token < g.query_tokens)
                log_sum_exp[g.statistics(at.row, at.head) + token] =
                    sum > 0.0f ? softmax.largest[r][half] * scale + logf(sum) : 0.0f;
        }
    }
    const int64_t pitch = int64_t(g.heads) * g.dim;
    T* to = o + (int64_t(at.row) * g.query_tokens + warp_first) * pitch + int64_t(at.head) * g.dim;
    store_rows(to, pitch, warp_last - warp_first + 1, g.dim, shared.query, row, output, factor);
}
