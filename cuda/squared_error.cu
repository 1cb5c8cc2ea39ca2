// The mean squared difference of two tensors, and its gradient.
#include "elem.cuh"
#include "reduce.cuh"

HOST_CONSTANT int kErrorThreads = 256;
// The most blocks that sum squares: those that fill kMultiprocessors.
HOST_CONSTANT int kErrorBlocks = 8 * kMultiprocessors;
constexpr int kErrorWarps = kErrorThreads / kWarpLanes;

struct ErrorSums {
    float partial[1][kErrorWarps];
};

// squared_error_forward_<f32|bf16>: each block's part of the sum of squared differences.
// Math     : partials[b] = sum of (x - y)^2 over the vectors b·256 + t, b·256 + t + 256·blocks, ...
// Tensors  : partials f32 [blocks] | x, y elem [n]                             alignment: 16 B, any n
// Grid     : persistent: at most 1056 blocks, by n alone
// Block    : 256 threads, one 16-byte vector a thread and round
// Smem     : 32 B
// Work     : 3·n flop; reads 2·n·e B             bound: memory
// Accuracy : f32 sums
// Ragged   : the last vector goes element by element
// Order    : deterministic (vectors by thread number, fixed reduction tree)
// Source   : -
template <class T>
DEVICE void squared_error_forward(float* partials, const T* x, const T* y, int64_t n) {
    SHARED_STORAGE(ErrorSums, storage);
    constexpr int kWidth = kVector<T>;
    float sum[1] = {0.0f};
    const int64_t step = int64_t(gridDim.x) * kErrorThreads * kWidth;
    for (int64_t i = (int64_t(blockIdx.x) * kErrorThreads + threadIdx.x) * kWidth; i < n; i += step) {
        const int count = int(min(n - i, int64_t(kWidth)));
        float a[kWidth], b[kWidth], squares = 0.0f;
        load_columns(a, x + i, 0, count, count == kWidth);
        load_columns(b, y + i, 0, count, count == kWidth);
        UNROLL
        for (int k = 0; k < kWidth; ++k) squares += (a[k] - b[k]) * (a[k] - b[k]);
        sum[0] += squares;
    }
    block_sum<kErrorWarps>(sum, storage.partial);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum[0];
}

// squared_error_total_f32: the mean from the blocks' sums.
// Math     : error = scale · sum of partials, scale = 1 / n
// Tensors  : error f32 [1] | partials f32 [count]
// Grid     : 1 block                             Block: 256 threads
// Smem     : 32 B
// Work     : count flop; reads 4·count B         bound: launch
// Accuracy : f32 sums
// Ragged   : any count
// Order    : deterministic (fixed reduction tree)
// Source   : -
extern "C" __global__ void __launch_bounds__(kErrorThreads) squared_error_total_f32(float* error, const float* partials, int count,
                                                                                    float scale) {
    SHARED_STORAGE(ErrorSums, storage);
    float sum[1] = {0.0f};
    for (int i = int(threadIdx.x); i < count; i += kErrorThreads) sum[0] += partials[i];
    block_sum<kErrorWarps>(sum, storage.partial);
    if (threadIdx.x == 0) error[0] = scale * sum[0];
}
KERNEL(squared_error_total_f32, kErrorThreads, ErrorSums)

// squared_error_backward_<f32|bf16>: the gradient of the first tensor.
// Math     : dx = scale · derror · (x - y), scale = 2 / n
// Tensors  : dx, x, y elem [n] | derror f32 [1]                                alignment: 16 B, any n
// Grid     : ⌈n / (256 · 16 bytes)⌉ blocks       Block: 256 threads
// Smem     : none
// Work     : 2·n flop; reads 2·n·e B, writes n·e B                             bound: memory
// Accuracy : f32, rounded once
// Ragged   : the last vector goes element by element
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void squared_error_backward(T* dx, const T* x, const T* y, const float* derror, int64_t n, float scale) {
    constexpr int kWidth = kVector<T>;
    const int64_t first = (int64_t(blockIdx.x) * kErrorThreads + threadIdx.x) * kWidth;
    if (first >= n) return;
    const int count = int(min(n - first, int64_t(kWidth)));
    float a[kWidth], b[kWidth];
    load_columns(a, x + first, 0, count, count == kWidth);
    load_columns(b, y + first, 0, count, count == kWidth);
    const float factor = scale * derror[0];
    UNROLL
    for (int k = 0; k < kWidth; ++k) a[k] = factor * (a[k] - b[k]);
    store_columns(dx + first, a, 0, count, count == kWidth);
}

#define SQUARED_ERROR_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kErrorThreads) squared_error_forward_##suffix(float* partials, const T* x, const T* y, \
                                                                                               int64_t n) { \
        squared_error_forward(partials, x, y, n); \
    } \
    KERNEL(squared_error_forward_##suffix, kErrorThreads, ErrorSums) \
    extern "C" __global__ void __launch_bounds__(kErrorThreads) squared_error_backward_##suffix( \
        T* dx, const T* x, const T* y, const float* derror, int64_t n, float scale) { \
        squared_error_backward(dx, x, y, derror, n, scale); \
    } \
    KERNEL(squared_error_backward_##suffix, kErrorThreads)
SQUARED_ERROR_KERNELS(f32, float)
SQUARED_ERROR_KERNELS(bf16, bf16)
