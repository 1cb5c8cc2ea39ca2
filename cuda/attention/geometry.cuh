// What the attention kernels share: where a head's rows lie, which keys a query sees, and how a warp masks a block of scores.
#pragma once
#include "../fragment.cuh"
#include "../ptx/math.cuh"

constexpr float kMinusInfinity = -__builtin_huge_valf();

// The sizes of one attention, as src/engine/ops/attention/geometry.rs has them.
struct Geometry {
    int batch, heads, group, dim;     // B, H, H / Hk, D
    int query_tokens, key_tokens;     // Tq, T
    int seen_by_all;                  // keys that every query sees; beyond them a query sees those up to its own position
    int64_t query_pitch, query_batch; // elements from a query row to the next, and from a batch row to the next (0: one for all)
    int64_t key_pitch, key_batch;     // the same of keys and values
    const int32_t* segments;          // [B, T] or null

    // Query `query` sees the keys 0..limit; never less than an earlier query.
    DEVICE_MEMBER int limit(int query) const { return min(max(seen_by_all, query + 1), key_tokens); }
    // The first element of a head that lies in a tensor like the queries, or like the keys.
    DEVICE_MEMBER int64_t query_head(int row, int head) const { return row * query_batch + int64_t(head) * dim; }
    DEVICE_MEMBER int64_t key_head(int row, int head) const { return row * key_batch + int64_t(head) * dim; }
    // The same of tensors [B, Tq, H, D], and their pitch. Made anew where it is needed: kept, it would take registers that the
    // gradients lack.
    DEVICE_MEMBER int64_t output_pitch() const { return int64_t(heads) * dim; }
    DEVICE_MEMBER int64_t output_head(int row, int head) const {
        return ((int64_t(row) * query_tokens) * heads + head) * dim;
    }
    // The first row of a query head in tensors [B, H, Tq].
    DEVICE_MEMBER int64_t statistics(int row, int head) const { return (int64_t(row) * heads + head) * query_tokens; }
    DEVICE_MEMBER const int32_t* segments_of(int row) const {
        return segments ? segments + int64_t(row) * key_tokens : nullptr;
    }
};

// The element type behind the suffix of a kernel's name.
#define ELEMENT_f32 float
#define ELEMENT_bf16 bf16

// The parameters of an entry point that make up its Geometry.
#define GEOMETRY_PARAMETERS \
    const int32_t *segments, int batch, int heads, int group, int dim, int query_tokens, int key_tokens, int seen_by_all, \
        int64_t query_pitch, int64_t query_batch, int64_t key_pitch, int64_t key_batch
#define GEOMETRY \
    (Geometry{batch, heads, group, dim, query_tokens, key_tokens, seen_by_all, query_pitch, query_batch, key_pitch, \
              key_batch, segments})

// What a block works on: one tile of one head. Tiles of one head follow each other, so that blocks running at the same time
// read the same keys; the last tile, which a causal mask makes the longest, comes first.
struct Place {
    int row, head, tile;
};
DEVICE Place place(int heads, int tiles) {
    const int tile = int(blockIdx.x) % tiles, item = int(blockIdx.x) / tiles;
    return {item / heads, item % heads, tiles - 1 - tile};
}

// The rows [rows, dim] of one head. D is a multiple of 8 and tensors start at multiples of 16 bytes: so do all rows.
template <class T>
DEVICE Matrix<T> head_rows(const T* first, int64_t pitch, int rows, int dim) {
    return {first, pitch, rows, dim, 16};
}

// ---- Segments ----

// The segments, plus one, that a run of tokens may have; (largest, 0) when all of them are padding.
struct SegmentRange {
    uint32_t least, most;
};
// Of the tokens first..end. The whole warp takes part and gets the same, and so does every other warp.
DEVICE SegmentRange segment_range(const int32_t* segments, int first, int end) {
    uint32_t least = 0xffffffffu, most = 0;
    for (int token = first + int(threadIdx.x) % kWarpLanes; token < end; token += kWarpLanes) {
        const int segment = segments[token];
        if (segment < 0) continue;
        least = min(least, uint32_t(segment) + 1);
        most = max(most, uint32_t(segment) + 1);
    }
    return {__reduce_min_sync(kAllLanes, least), __reduce_max_sync(kAllLanes, most)};
}
// Whether no token of one can see one of the other.
DEVICE bool are_apart(SegmentRange a, SegmentRange b) { return a.most < b.least || b.most < a.least; }

// ---- Masks ----

// What decides whether a query sees a key: the query's limit or the key's number, and the segment. Those of padding differ.
struct Line {
    int position, segment;
};
DEVICE Line query_line(const Geometry& g, const int32_t* segments, int query) {
    const int segment = segments == nullptr ? 0 : query < g.query_tokens ? segments[query] : -1;
    return {g.limit(query), segment < 0 ? -1 : segment};
}
DEVICE Line key_line(const Geometry& g, const int32_t* segments, int key) {
    const int segment = segments == nullptr ? 0 : key < g.key_tokens ? segments[key] : -1;
    return {key, segment < 0 ? -2 : segment};
}
DEVICE bool sees(Line query, Line key) { return key.position < query.position && query.segment == key.segment; }

// Every group, for kernels whose registers have no room for the branches that leaving some out takes.
constexpr uint32_t kAllGroups = ~0u;

// Sets to −∞ the scores of pairs that do not see each other, in the groups of 16 columns that are asked for (products.cuh). Rows
// are queries and columns keys, or the other way round; `row` and `column` are the numbers of the first of each.
template <bool kQueryRows, int kRowFragments, int kColumnFragments>
DEVICE void mask(float (&scores)[kRowFragments][kColumnFragments][4], const Geometry& g, const int32_t* segments, int row,
                 int column, uint32_t groups) {
    Line down[kRowFragments][2];
    UNROLL
    for (int r = 0; r < kRowFragments; ++r) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int at = row + r * kFragmentRows + accumulator_row(2 * half);
            down[r][half] = kQueryRows ? query_line(g, segments, at) : key_line(g, segments, at);
        }
    }
    UNROLL
    for (int j = 0; j < kColumnFragments; ++j) {
        if (!(groups >> j / 2 & 1)) continue;
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const int at = column + j * kFragmentColumns + accumulator_column(i);
            const Line across = kQueryRows ? key_line(g, segments, at) : query_line(g, segments, at);
            UNROLL
            for (int r = 0; r < kRowFragments; ++r) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    const bool seen = kQueryRows ? sees(down[r][half], across) : sees(across, down[r][half]);
                    if (!seen) scores[r][j][2 * half + i] = kMinusInfinity;
                }
            }
        }
    }
}
