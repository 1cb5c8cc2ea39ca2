// Learned tokens among those of every batch row, and the gradients of both.
#include "moves.cuh"

// insert_tokens_forward_<f32|bf16>: y[b] = x[b] up to `place`, then the tokens, then the rest of x[b].
// Math     : y(b,t) = x(b,t) for t < place, tokens(t - place) for t < place + R, x(b, t - R) behind
// Tensors  : x elem [B,T,C] | tokens elem [R,C] | y elem [B,T+R,C]              alignment: 16 B
// Grid     : a thread for each 16-byte vector of y            Block: 256 threads
// Smem     : none
// Work     : no flop; reads B·T·C·e + R·C·e B, writes B·(T+R)·C·e B            bound: memory
// Accuracy : exact
// Ragged   : any B, T, R, C; place from 0 to T
// Order    : every element by one thread
// Source   : Darcet et al. 2024, section 2.2; Touvron et al. 2021, section 4
template <class T>
DEVICE void insert_tokens_forward(T* y, const T* x, const T* inserted, int64_t rows, int tokens, int place, int count,
                                  int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int64_t batch = at.row / tokens;
    const int token = int(at.row % tokens);
    const bool is_inserted = token >= place && token < place + count;
    const int64_t source = batch * (tokens - count) + (token < place ? token : token - count);
    const T* from = is_inserted ? inserted + int64_t(token - place) * columns : x + source * columns;
    move_or_clear(y + at.row * columns, from, at, columns);
}

// insert_tokens_backward_<f32|bf16>: dy without the rows of the inserted tokens.
// Math     : dx(b,t) = dy(b,t) for t < place, dy(b, t + R) behind
// Tensors  : dy elem [B,T+R,C] | dx elem [B,T,C]                               alignment: 16 B
// Grid     : a thread for each 16-byte vector of dx           Block: 256 threads
// Smem     : none
// Work     : no flop; reads and writes B·T·C·e B                               bound: memory
// Accuracy : exact
// Ragged   : any B, T, R, C
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void insert_tokens_backward(T* dx, const T* dy, int64_t rows, int tokens, int place, int count, int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int64_t batch = at.row / tokens;
    const int token = int(at.row % tokens), source = token < place ? token : token + count;
    move_or_clear(dx + at.row * columns, dy + (batch * (tokens + count) + source) * columns, at, columns);
}

// insert_tokens_backward_tokens_<f32|bf16>: the gradient of the inserted tokens.
// Math     : dtokens(r,c) = Σ over b of dy(b, place + r, c)
// Tensors  : dy elem [B,T+R,C] | dtokens elem [R,C]                             alignment: 16 B
// Grid     : a thread for each 16-byte vector of dy's type of dtokens          Block: 256 threads
// Smem     : none
// Work     : B·R·C flop; reads B·R·C·e B, writes R·C·4 B                       bound: memory
// Accuracy : f32 sums
// Ragged   : any B, T, R, C
// Order    : deterministic, batch rows ascending
// Source   : -
template <class T>
DEVICE void insert_tokens_backward_tokens(float* dtokens, const T* dy, int64_t rows, int batch, int tokens, int place,
                                          int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    float sums[kVector<T>] = {};
    for (int b = 0; b < batch; ++b) {
        float values[kVector<T>];
        load_columns(values, dy + (int64_t(b) * tokens + place + at.row) * columns, at.column, columns, at.has_vectors);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) sums[i] += values[i];
    }
    store_floats(dtokens + at.row * columns, sums, at.column, columns, at.has_vectors);
}

#define INSERT_TOKENS_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) insert_tokens_forward_##suffix( \
        T* y, const T* x, const T* inserted, int64_t rows, int tokens, int place, int count, int columns) { \
        insert_tokens_forward(y, x, inserted, rows, tokens, place, count, columns); \
    } \
    KERNEL(insert_tokens_forward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) insert_tokens_backward_##suffix( \
        T* dx, const T* dy, int64_t rows, int tokens, int place, int count, int columns) { \
        insert_tokens_backward(dx, dy, rows, tokens, place, count, columns); \
    } \
    KERNEL(insert_tokens_backward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) insert_tokens_backward_tokens_##suffix( \
        float* dtokens, const T* dy, int64_t rows, int batch, int tokens, int place, int columns) { \
        insert_tokens_backward_tokens(dtokens, dy, rows, batch, tokens, place, columns); \
    } \
    KERNEL(insert_tokens_backward_tokens_##suffix, kMoveThreads)
INSERT_TOKENS_KERNELS(f32, float)
INSERT_TOKENS_KERNELS(bf16, bf16)
