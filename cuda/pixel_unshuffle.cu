// Neighbouring image tokens merged into wider ones, and the reverse.
#include "moves.cuh"

// pixel_unshuffle_<merge|spread>_<f32|bf16>: merges f × f fine tokens of C elements into one of f²·C, or spreads them again.
// Math     : merged(b, (r/f)·(w/f) + s/f, ((r mod f)·f + s mod f)·C + c) = fine(b, r·w + s, c)
// Tensors  : fine elem [B, h·w, C] | merged elem [B, h·w/f², f²·C]             alignment: 16 B
// Grid     : a thread for each 16-byte vector of the fine tokens               Block: 256 threads
// Smem     : none
// Work     : no flop; reads and writes B·h·w·C·e B                             bound: memory
// Accuracy : exact
// Ragged   : any B, C; h and w are multiples of f
// Order    : every element by one thread
// Source   : Chen et al. 2024 (InternVL), the connector's pixel unshuffle
template <bool kMerges, class T>
DEVICE void pixel_unshuffle(T* to, const T* from, int64_t rows, int columns, int height, int width, int factor) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int64_t grid = int64_t(height) * width, batch = at.row / grid;
    const int place = int(at.row % grid), row = place / width, column = place % width;
    const int64_t square = int64_t(row / factor) * (width / factor) + column / factor;
    const int64_t within = row % factor * factor + column % factor;
    const int64_t merged = batch * grid + square * factor * factor + within;  // in fine tokens
    float values[kVector<T>];
    load_columns(values, from + (kMerges ? at.row : merged) * columns, at.column, columns, at.has_vectors);
    store_columns(to + (kMerges ? merged : at.row) * columns, values, at.column, columns, at.has_vectors);
}

#define PIXEL_UNSHUFFLE_KERNEL(name, merges, T) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) name(T* to, const T* from, int64_t rows, int columns, int height, \
                                                                   int width, int factor) { \
        pixel_unshuffle<merges>(to, from, rows, columns, height, width, factor); \
    } \
    KERNEL(name, kMoveThreads)
PIXEL_UNSHUFFLE_KERNEL(pixel_unshuffle_merge_f32, true, float)
PIXEL_UNSHUFFLE_KERNEL(pixel_unshuffle_merge_bf16, true, bf16)
PIXEL_UNSHUFFLE_KERNEL(pixel_unshuffle_spread_f32, false, float)
PIXEL_UNSHUFFLE_KERNEL(pixel_unshuffle_spread_bf16, false, bf16)
