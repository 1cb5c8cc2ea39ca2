// Learned positions, the class token before them, and its removal.
#include "moves.cuh"

// position_forward_<f32|bf16>: y[b,t] = x[b,t - o] + p[t], the class token taking x's place at t = 0 where there is one.
// Math     : y(b,t,c) = x(b, t - o, c) + p(t,c), o = 1 and y(b,0,c) = class(c) + p(0,c) with a class token
// Tensors  : x elem [B,T,C] | position elem [P,C] | class_token f32 [C] or null | y elem [B,T+o,C], y may be x without a class token
// Grid     : a thread for each 16-byte vector of y            Block: 256 threads
// Smem     : none
// Work     : B·T·C flop; reads B·T·C·e + P·C·e B, writes B·T·C·e B             bound: memory
// Accuracy : f32, rounded once
// Ragged   : any B, T, C
// Order    : every element by one thread
// Source   : Dosovitskiy et al. 2021, eq. 1
template <class T>
DEVICE void position_forward(T* y, const T* x, const T* position, const float* class_token, int64_t rows, int tokens, int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int64_t batch = at.row / tokens;
    const int token = int(at.row % tokens), extra = class_token != nullptr ? 1 : 0;
    float values[kVector<T>], place[kVector<T>];
    if (token < extra)
        load_floats(values, class_token, at.column, columns, at.has_vectors);
    else
        load_columns(values, x + (batch * (tokens - extra) + token - extra) * columns, at.column, columns, at.has_vectors);
    load_columns(place, position + int64_t(token) * columns, at.column, columns, at.has_vectors);
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) values[i] += place[i];
    store_columns(y + at.row * columns, values, at.column, columns, at.has_vectors);
}

// position_backward_<f32|bf16>: the table's gradient, and its first row for the class token.
// Math     : dp(t,c) = Σ over b of dy(b,t,c), zeros for rows beyond the tokens; dclass = dp(0)
// Tensors  : dy elem [B,T,C] | dposition f32 [P,C] | dclass f32 [C] or null    alignment: 16 B
// Grid     : a thread for each 16-byte vector of dy's type of the table        Block: 256 threads
// Smem     : none
// Work     : B·T·C flop; reads B·T·C·e B, writes P·C·4 B                       bound: memory
// Accuracy : f32 sums
// Ragged   : any B, T, C, P
// Order    : deterministic, batch rows ascending
// Source   : -
template <class T>
DEVICE void position_backward(float* dposition, float* dclass, const T* dy, int64_t rows, int batch, int tokens, int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    float sums[kVector<T>] = {};
    for (int b = 0; at.row < tokens && b < batch; ++b) {
        float values[kVector<T>];
        load_columns(values, dy + (int64_t(b) * tokens + at.row) * columns, at.column, columns, at.has_vectors);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) sums[i] += values[i];
    }
    store_floats(dposition + at.row * columns, sums, at.column, columns, at.has_vectors);
    if (dclass != nullptr && at.row == 0) store_floats(dclass, sums, at.column, columns, at.has_vectors);
}

// position_shift_<f32|bf16>: the tokens of each batch row moved by `shift` places: drop_tokens and its reverse.
// Math     : y(b,t) = x(b, t + shift) where that is a token of x, zeros elsewhere
// Tensors  : x elem [B,Tx,C] | y elem [B,Ty,C]                                 alignment: 16 B
// Grid     : a thread for each 16-byte vector of y            Block: 256 threads
// Smem     : none
// Work     : no flop; reads and writes B·T·C·e B                               bound: memory
// Accuracy : exact
// Ragged   : any B, T, C
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void position_shift(T* y, const T* x, int64_t rows, int tokens, int source_tokens, int shift, int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int64_t batch = at.row / tokens;
    const int source = int(at.row % tokens) + shift;
    const bool is_there = source >= 0 && source < source_tokens;
    move_or_clear(y + at.row * columns, is_there ? x + (batch * source_tokens + source) * columns : nullptr, at, columns);
}

#define POSITION_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) position_forward_##suffix( \
        T* y, const T* x, const T* position, const float* class_token, int64_t rows, int tokens, int columns) { \
        position_forward(y, x, position, class_token, rows, tokens, columns); \
    } \
    KERNEL(position_forward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) position_backward_##suffix( \
        float* dposition, float* dclass, const T* dy, int64_t rows, int batch, int tokens, int columns) { \
        position_backward(dposition, dclass, dy, rows, batch, tokens, columns); \
    } \
    KERNEL(position_backward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) position_shift_##suffix( \
        T* y, const T* x, int64_t rows, int tokens, int source_tokens, int shift, int columns) { \
        position_shift(y, x, rows, tokens, source_tokens, shift, columns); \
    } \
    KERNEL(position_shift_##suffix, kMoveThreads)
POSITION_KERNELS(f32, float)
POSITION_KERNELS(bf16, bf16)
