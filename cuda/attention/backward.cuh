// The gradients, from the saved log-sum-exp (Dao 2023, algorithm 2), in two kernels that each sum in an order of their own:
// one owns queries and runs over keys, the other owns keys and runs over queries. Both compute the scores anew.
#pragma once
#include "products.cuh"

// Rows of a block where it is not split, and into how many parts an f32 head of more than kUnsplitDim columns is.
HOST_CONSTANT int kBackwardRows = 64, kBackwardSplit = 2, kUnsplitDim = 96;

// How the work is cut: `kRows` rows belong to a block (queries in one kernel, keys in the other), and tiles of `kTile` rows of the
// other side stream past them through two stages. A warp of bf16 has two fragments of 16 rows, so that what it reads from
// shared memory serves both: with one, those reads take longer than the products. f32, and the keys of wide heads, have
// registers for one. Where the gradients of keys and values are too many for the registers of a warp even so, kSplit warps
// share 16 keys: each computes all their scores and a part of the gradients' columns.
template <class T, int kDim>
struct BackwardShape {
    static constexpr int kSplit = sizeof(T) == 4 && kDim > kUnsplitDim ? kBackwardSplit : 1;
    static constexpr int kRows = kBackwardRows / kSplit;
    static constexpr int kQueryFragments = sizeof(T) == 2 ? 2 : 1, kKeyFragments = sizeof(T) == 2 && kDim <= 64 ? 2 : 1;
    static constexpr int kQueryThreads = kRows / (kQueryFragments * kFragmentRows) * kWarpLanes;
    static constexpr int kKeyValueThreads = kRows / (kKeyFragments * kFragmentRows) * kWarpLanes * kSplit;
    static constexpr int kTile = sizeof(T) == 2 || kDim <= 64 ? 32 : 16;
    // Columns of the block's own rows that stay in registers as left operands: of queries and of their output's gradients;
    // of keys, as many as two kinds of gradients leave room for; of values none.
    static constexpr int kQueryHeld = sizeof(T) == 2 && kDim <= 64 ? kDim : 0;
    static constexpr int kKeyHeld = sizeof(T) == 2 && kDim <= 64 ? 16 : 0;
    // Whether tiles that everybody sees whole get code of their own, without branches and masks. In f32 there are one or two
    // groups to branch over, and a mask is little next to six products.
    static constexpr bool kSplitsWhole = sizeof(T) == 2;
};

// A stage: two tiles of the side that streams.
template <class T, int kDim>
struct BackwardStage {
    Tile<T, BackwardShape<T, kDim>::kTile, kDim> first, second;
};

template <class T, int kDim>
struct QueryGradientStorage {
    Tile<T, BackwardShape<T, kDim>::kRows, kDim> query, d_output;
    BackwardStage<T, kDim> stage[2];  // keys, values
};

template <class T, int kDim>
struct KeyValueGradientStorage {
    using Shape = BackwardShape<T, kDim>;
    Tile<T, Shape::kRows, kDim> key, value;
    BackwardStage<T, kDim> stage[2];  // queries, gradients of the output
    alignas(16) float log_sum_exp[2][Shape::kTile];
    alignas(16) float delta[2][Shape::kTile];
};

// What both kernels read besides query, key and value.
template <class T>
struct Saved {
    const T* d_output;          // [B,Tq,H,D]
    const float* log_sum_exp;   // [B,H,Tq]
    const float* delta;         // [B,H,Tq]
};

// dq = D^-1/2 Σ over keys of dS·k for one tile of queries. With `partial`, in f32 [B,Tq,H,D], one for each batch row.
template <class T, int kDim>
DEVICE void query_gradient(T* d_query, float* partial, const T* query, const T* key, const T* value, const Saved<T>& saved,
                           float scale, const Geometry& g) {
    using Shape = BackwardShape<T, kDim>;
    using Storage = QueryGradientStorage<T, kDim>;
    constexpr int kThreads = Shape::kQueryThreads, kTile = Shape::kTile;
    constexpr int kFragments = Shape::kQueryFragments, kWarpRows = kFragments * kFragmentRows;
    SHARED_STORAGE(Storage, shared);
    const int thread = threadIdx.x, row = thread / kWarpLanes * kWarpRows;  // the warp's first in the tile
    const Place at = place(g.heads, (g.query_tokens + Shape::kRows - 1) / Shape::kRows);
    const int first = at.tile * Shape::kRows, last = min(first + Shape::kRows, g.query_tokens) - 1;
    const int warp_first = first + row, warp_last = min(warp_first + kWarpRows, g.query_tokens) - 1;
    const bool works = warp_first < g.query_tokens;
    const int limit = g.limit(last), least_limit = g.limit(warp_first), warp_limit = works ? g.limit(warp_last) : 0;
    const int64_t key_head = g.key_head(at.row, at.head / g.group);
    const Matrix<T> queries = head_rows(query + g.query_head(at.row, at.head), g.query_pitch, g.query_tokens, g.dim);
    const Matrix<T> d_outputs =
        head_rows(saved.d_output + g.output_head(at.row, at.head), g.output_pitch(), g.query_tokens, g.dim);
    const Matrix<T> keys = head_rows(key + key_head, g.key_pitch, g.key_tokens, g.dim);
    const Matrix<T> values = head_rows(value + key_head, g.key_pitch, g.key_tokens, g.dim);
    const int32_t* segments = g.segments_of(at.row);
    const SegmentRange own = segments ? segment_range(segments, first, last + 1) : SegmentRange{};
    // The first key tile from `tile` on that some query of the block may see; `limit` or more where none is left.
    const auto visible = [&](int tile) {
        while (segments && tile < limit && are_apart(own, segment_range(segments, tile, min(tile + kTile, limit))))
            tile += kTile;
        return tile;
    };
    const auto load = [&](int stage, int tile) {
        load_tile_async<kThreads>(shared.stage[stage].first, keys, tile, 0, thread);
        load_tile_async<kThreads>(shared.stage[stage].second, values, tile, 0, thread);
    };

    float shift[kFragments][2], delta[kFragments][2];  // of this lane's two rows of each fragment
    UNROLL
    for (int r = 0; r < kFragments; ++r) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int token = warp_first + r * kFragmentRows + accumulator_row(2 * half);
            const int64_t statistics = g.statistics(at.row, at.head) + token;
            shift[r][half] = token < g.query_tokens ? saved.log_sum_exp[statistics] * -kLog2E : 0.0f;
            delta[r][half] = token < g.query_tokens ? saved.delta[statistics] : 0.0f;
        }
    }
    float gradient[kFragments][kDim / kFragmentColumns][4] = {};
    LeftRows<T, kFragments, Shape::kQueryHeld, decltype(shared.query)> left(shared.query, row), d_left(shared.d_output, row);

    int tile = visible(0);
    if (tile < limit) {
        load_tile_async<kThreads>(shared.query, queries, first, 0, thread);
        load_tile_async<kThreads>(shared.d_output, d_outputs, first, 0, thread);
        load(0, tile);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // the queries and the gradients of their outputs are there
        left.hold();
        d_left.hold();
    }
    for (int stage = 0; tile < limit; stage ^= 1) {
        const int next = visible(tile + kTile);
        const bool refills_early = PLANTED_BUG("attention: keys are refilled while others read them");
        if (refills_early && next < limit) load(stage ^ 1, next);
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and nobody reads the other stage any more
        if (!refills_early && next < limit) load(stage ^ 1, next);
        cp_async_commit();

        const bool whole = Shape::kSplitsWhole && works && least_limit - tile >= kTile && segments == nullptr;
        const int seen = min(warp_limit - tile, kTile);
        const uint32_t groups = seen > 0 ? (1u << (seen + 15) / 16) - 1 : 0;
        const auto& key_tile = shared.stage[stage].first;
        const auto& value_tile = shared.stage[stage].second;
        float p[kFragments][kTile / kFragmentColumns][4] = {}, dp[kFragments][kTile / kFragmentColumns][4] = {};
        if (whole) {
            multiply_along_dim<true, kDim, T>(p, left, key_tile, groups);
            multiply_along_dim<true, kDim, T>(dp, d_left, value_tile, groups);
        } else if (groups) {
            multiply_along_dim<false, kDim, T>(p, left, key_tile, groups);
            multiply_along_dim<false, kDim, T>(dp, d_left, value_tile, groups);
            mask<true>(p, g, segments, warp_first, tile, kAllGroups);
        }
        // e^x as 2^(x·log2 e): the chip's own instruction is exp2, and the factor joins the scale in one multiply-add.
        // Masked scores are −inf, whose power is 0, so that dS needs no mask of its own.
        UNROLL
        for (int r = 0; r < kFragments; ++r) {
            UNROLL
            for (int j = 0; j < kTile / kFragmentColumns; ++j) {
                UNROLL
                for (int i = 0; i < 4; ++i)
                    p[r][j][i] = exp2_approximate(fmaf(p[r][j][i], scale * kLog2E, shift[r][i / 2])) *
                                 (dp[r][j][i] - delta[r][i / 2]);
            }
        }
        if (whole)
            multiply_along_columns<true, T>(gradient, p, key_tile, groups);
        else if (groups)
            multiply_along_columns<false, T>(gradient, p, key_tile, groups);
        tile = next;
    }
    if (!works) return;

    float factor[kFragments][2];
    UNROLL
    for (int r = 0; r < kFragments; ++r) factor[r][0] = factor[r][1] = scale;
    if (partial == nullptr) {
        T* to = d_query + g.query_head(at.row, at.head) + warp_first * g.query_pitch;
        store_rows(to, g.query_pitch, warp_last - warp_first + 1, g.dim, shared.query, row, gradient, factor);
        return;
    }
    UNROLL
    for (int r = 0; r < kFragments; ++r) {
        UNROLL
        for (int n = 0; n < kDim / kFragmentColumns; ++n) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const int token = warp_first + r * kFragmentRows + accumulator_row(i);
                const int column = n * kFragmentColumns + accumulator_column(i);
                if (token < g.query_tokens && column < g.dim)
                    partial[g.output_head(at.row, at.head) + token * g.output_pitch() + column] = gradient[r][n][i] * scale;
            }
        }
    }
}

// dk = D^-1/2 Σ dSᵀ·q and dv = Σ Pᵀ·do for one tile of keys, over the queries of all heads that share the key head.
// Scores are computed transposed: P and dS then lie in registers as the products want them.
template <class T, int kDim>
DEVICE void key_value_gradient(T* d_key, T* d_value, const T* query, const T* key, const T* value, const Saved<T>& saved,
                               float scale, const Geometry& g) {
    using Shape = BackwardShape<T, kDim>;
    using Storage = KeyValueGradientStorage<T, kDim>;
    constexpr int kThreads = Shape::kKeyValueThreads, kTile = Shape::kTile;
    constexpr int kSplit = Shape::kSplit, kOwnDim = kDim / kSplit;
    constexpr int kFragments = Shape::kKeyFragments, kWarpRows = kFragments * kFragmentRows;
    SHARED_STORAGE(Storage, shared);
    const int thread = threadIdx.x, warp = thread / kWarpLanes;
    const int row = warp / kSplit * kWarpRows, own_dim = warp % kSplit * kOwnDim;  // the first of each in the tile
    const Place at = place(g.heads / g.group, (g.key_tokens + Shape::kRows - 1) / Shape::kRows);
    const int first = at.tile * Shape::kRows, last = min(first + Shape::kRows, g.key_tokens) - 1;
    const int warp_first = first + row, warp_last = min(warp_first + kWarpRows, g.key_tokens) - 1;
    const bool works = warp_first < g.key_tokens;
    const int64_t key_head = g.key_head(at.row, at.head);
    const Matrix<T> keys = head_rows(key + key_head, g.key_pitch, g.key_tokens, g.dim);
    const Matrix<T> values = head_rows(value + key_head, g.key_pitch, g.key_tokens, g.dim);
    const int32_t* segments = g.segments_of(at.row);
    const SegmentRange own = segments ? segment_range(segments, first, last + 1) : SegmentRange{};
    // Query tiles of one head: those that see the block's first key; then the next head's.
    const int start = first < g.seen_by_all ? 0 : first / kTile * kTile;
    const int end_head = (at.head + 1) * g.group;
    struct Step {
        int head, tile;
    };
    // The first query tile from `step` on that may see some key of the block; of head `end_head` where none is left.
    const auto visible = [&](Step step) {
        while (step.head < end_head) {
            if (step.tile >= g.query_tokens) {
                step = {step.head + 1, start};
            } else if (segments && are_apart(own, segment_range(segments, step.tile,
                                                                min(step.tile + kTile, g.query_tokens)))) {
                step.tile += kTile;
            } else {
                break;
            }
        }
        return step;
    };
    const auto load = [&](int stage, Step step) {
        const Matrix<T> queries =
            head_rows(query + g.query_head(at.row, step.head), g.query_pitch, g.query_tokens, g.dim);
        const Matrix<T> d_outputs =
            head_rows(saved.d_output + g.output_head(at.row, step.head), g.output_pitch(), g.query_tokens, g.dim);
        load_tile_async<kThreads>(shared.stage[stage].first, queries, step.tile, 0, thread);
        load_tile_async<kThreads>(shared.stage[stage].second, d_outputs, step.tile, 0, thread);
        if (thread < kTile) {
            // Past the last query the rest of the stage is zero, and so is all that comes of it.
            const bool inside = step.tile + thread < g.query_tokens;
            const int64_t from = g.statistics(at.row, step.head) + (inside ? step.tile + thread : 0);
            cp_async_4(shared_address(&shared.log_sum_exp[stage][thread]), saved.log_sum_exp + from, inside ? 4 : 0);
            cp_async_4(shared_address(&shared.delta[stage][thread]), saved.delta + from, inside ? 4 : 0);
        }
    };

    float key_gradient[kFragments][kOwnDim / kFragmentColumns][4] = {};
    float value_gradient[kFragments][kOwnDim / kFragmentColumns][4] = {};
    LeftRows<T, kFragments, Shape::kKeyHeld, decltype(shared.key)> left(shared.key, row);
    const LeftRows<T, kFragments, 0, decltype(shared.value)> value_left(shared.value, row);

    Step step = visible({at.head * g.group, start});
    if (step.head < end_head) {
        load_tile_async<kThreads>(shared.key, keys, first, 0, thread);
        load_tile_async<kThreads>(shared.value, values, first, 0, thread);
        load(0, step);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // the keys and values are there
        left.hold();
    }
    for (int stage = 0; step.head < end_head; stage ^= 1) {
        const Step next = visible({step.head, step.tile + kTile});
        if (!PLANTED_BUG("attention: no wait for the queries")) cp_async_wait<0>();
        if (!PLANTED_BUG("attention: no barrier before the queries are read")) {
            __syncthreads();  // this tile is there, and nobody reads the other stage any more
        }
        if (next.head < end_head) load(stage ^ 1, next);
        cp_async_commit();

        // The groups of 16 queries whose last one sees the first key of this warp; later ones see no fewer.
        const bool whole = Shape::kSplitsWhole && works && warp_last < g.limit(step.tile) && segments == nullptr;
        uint32_t groups = 0;
        UNROLL
        for (int j = 0; j < kTile / 16; ++j) {
            const int query_number = step.tile + 16 * j;
            if (works && query_number < g.query_tokens && warp_first < g.limit(query_number + 15)) groups |= 1u << j;
        }
        const auto& query_tile = shared.stage[stage].first;
        const auto& d_output_tile = shared.stage[stage].second;
        float p[kFragments][kTile / kFragmentColumns][4] = {}, dp[kFragments][kTile / kFragmentColumns][4] = {};
        if (whole) {
            multiply_along_dim<true, kDim, T>(p, left, query_tile, groups);
            multiply_along_dim<true, kDim, T>(dp, value_left, d_output_tile, groups);
        } else if (groups) {
            multiply_along_dim<false, kDim, T>(p, left, query_tile, groups);
            multiply_along_dim<false, kDim, T>(dp, value_left, d_output_tile, groups);
            mask<false>(p, g, segments, warp_first, step.tile, kAllGroups);
        }
        UNROLL
        for (int j = 0; j < kTile / kFragmentColumns; ++j) {
            UNROLL
            for (int i = 0; i < 2; ++i) {
                const int column = j * kFragmentColumns + accumulator_column(i);
                const float shift = shared.log_sum_exp[stage][column] * -kLog2E, delta = shared.delta[stage][column];
                UNROLL
                for (int r = 0; r < kFragments; ++r) {
                    UNROLL
                    for (int at = i; at < 4; at += 2) {
                        p[r][j][at] = exp2_approximate(fmaf(p[r][j][at], scale * kLog2E, shift));
                        dp[r][j][at] = p[r][j][at] * (dp[r][j][at] - delta);
                    }
                }
            }
        }
        if (whole) {
            multiply_along_columns<true, T>(value_gradient, p, d_output_tile, groups, own_dim);
            multiply_along_columns<true, T>(key_gradient, dp, query_tile, groups, own_dim);
        } else if (groups) {
            multiply_along_columns<false, T>(value_gradient, p, d_output_tile, groups, own_dim);
            multiply_along_columns<false, T>(key_gradient, dp, query_tile, groups, own_dim);
        }
        step = next;
    }
    if (kSplit > 1) __syncthreads();  // the warps that share rows of keys and values have read them
    if (!works) return;

    float key_factor[kFragments][2], value_factor[kFragments][2];
    UNROLL
    for (int r = 0; r < kFragments; ++r) {
        key_factor[r][0] = key_factor[r][1] = scale;
        value_factor[r][0] = value_factor[r][1] = 1.0f;
    }
    const int64_t to = key_head + warp_first * g.key_pitch;
    const int rows = warp_last - warp_first + 1;
    store_rows(d_key + to, g.key_pitch, rows, g.dim, shared.key, row, key_gradient, key_factor, own_dim);
    store_rows(d_value + to, g.key_pitch, rows, g.dim, shared.value, row, value_gradient, value_factor, own_dim);
}
