// One row out of the tokens of each batch row: their mean, a weighted sum, or one of them; and the gradient of the tokens.
#include "moves.cuh"

constexpr int kPoolWarps = 8;
constexpr int kPoolThreads = kPoolWarps * kWarpLanes;

template <class T>
struct PoolingStorage {
    float partial[kPoolWarps][kWarpLanes * kVector<T>];
};

// The factor of a token: given, 1 at the index and 0 elsewhere, or the same for all.
DEVICE float pooling_factor(const float* weights, const int32_t* index, float equal, int64_t batch, int token, int tokens) {
    if (weights != nullptr) return weights[batch * tokens + token];
    if (index != nullptr) return index[batch] == token ? 1.0f : 0.0f;
    return equal;
}

// pooling_forward_<f32|bf16>: y[b] = Σ_t w[b,t] x[b,t].
// Math     : y(b,c) = Σ over t of w(b,t)·x(b,t,c), w given, 1/T, or 1 at index(b)
// Tensors  : x elem [B,T,C] | weights f32 [B,T] or null | index i32 [B] or null | y elem [B,C]        alignment: 16 B
// Grid     : (B, ceil(C / 32 vectors))              Block: 256 threads = 8 warps, every eighth token each
// Smem     : sizeof(PoolingStorage): f32 4 KB, bf16 8 KB
// Work     : 2·B·T·C flop; reads B·T·C·e B, with an index B·C·e B; writes B·C·e B            bound: memory
// Accuracy : f32 sums
// Ragged   : any B, T, C; an index outside 0..T gives zeros
// Order    : deterministic: tokens ascending within a warp, then warps ascending
// Source   : -
template <class T>
DEVICE void pooling_forward(T* y, const T* x, const float* weights, const int32_t* index, float equal, int tokens, int columns) {
    SHARED_STORAGE(PoolingStorage<T>, storage);
    constexpr int kWidth = kVector<T>;
    const int lane = int(threadIdx.x) % kWarpLanes, warp = int(threadIdx.x) / kWarpLanes;
    const int64_t batch = blockIdx.x;
    const int column = (int(blockIdx.y) * kWarpLanes + lane) * kWidth;
    const bool vectors = columns % kWidth == 0;
    float sums[kWidth] = {};
    for (int token = warp; token < tokens; token += kPoolWarps) {
        const float factor = pooling_factor(weights, index, equal, batch, token, tokens);
        if (factor == 0.0f) continue;
        float values[kWidth];
        load_columns(values, x + (batch * tokens + token) * columns, column, columns, vectors);
        UNROLL
        for (int i = 0; i < kWidth; ++i) sums[i] += factor * values[i];
    }
    UNROLL
    for (int i = 0; i < kWidth; ++i) storage.partial[warp][lane * kWidth + i] = sums[i];
    if (!PLANTED_BUG("pooling: no barrier before the warps' sums are read")) {
        __syncthreads();  // every warp's sums are there
    }
    if (warp != 0) return;
    UNROLL
    for (int i = 0; i < kWidth; ++i) {
        sums[i] = 0.0f;
        UNROLL
        for (int w = 0; w < kPoolWarps; ++w) sums[i] += storage.partial[w][lane * kWidth + i];
    }
    if (column < columns) store_columns(y + batch * columns, sums, column, columns, vectors);
}

// pooling_backward_<f32|bf16>: dx[b,t] = w[b,t] dy[b] + addend[b,t].
// Math     : dx(b,t,c) = w(b,t)·dy(b,c) + addend(b,t,c)
// Tensors  : dy elem [B,C] | weights, index as above | addend, dx elem [B,T,C], addend null or dx itself    alignment: 16 B
// Grid     : a thread for each 16-byte vector of dx           Block: 256 threads
// Smem     : none
// Work     : 2·B·T·C flop; reads B·C·e B (and the addend), writes B·T·C·e B                  bound: memory
// Accuracy : f32, rounded once
// Ragged   : any B, T, C
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void pooling_backward(T* dx, const T* dy, const float* weights, const int32_t* index, const T* addend, float equal,
                             int64_t rows, int tokens, int columns) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int64_t batch = at.row / tokens;
    const float factor = pooling_factor(weights, index, equal, batch, int(at.row % tokens), tokens);
    float values[kVector<T>], sums[kVector<T>] = {};
    load_columns(values, dy + batch * columns, at.column, columns, at.has_vectors);
    if (addend != nullptr) load_columns(sums, addend + at.row * columns, at.column, columns, at.has_vectors);
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) sums[i] += factor * values[i];
    store_columns(dx + at.row * columns, sums, at.column, columns, at.has_vectors);
}

#define POOLING_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kPoolThreads) pooling_forward_##suffix( \
        T* y, const T* x, const float* weights, const int32_t* index, float equal, int tokens, int columns) { \
        pooling_forward(y, x, weights, index, equal, tokens, columns); \
    } \
    KERNEL(pooling_forward_##suffix, kPoolThreads, PoolingStorage<T>) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) pooling_backward_##suffix( \
        T* dx, const T* dy, const float* weights, const int32_t* index, const T* addend, float equal, int64_t rows, int tokens, \
        int columns) { \
        pooling_backward(dx, dy, weights, index, addend, equal, rows, tokens, columns); \
    } \
    KERNEL(pooling_backward_##suffix, kMoveThreads)
POOLING_KERNELS(f32, float)
POOLING_KERNELS(bf16, bf16)
