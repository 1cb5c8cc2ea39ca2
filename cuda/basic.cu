// The ops of the tape itself: a sum, a copy, a constant.
#include "elem.cuh"

HOST_CONSTANT int kBasicThreads = 256;

// add_<f32|bf16>: y = a + b, elementwise; how gradients are accumulated where no producer can.
// Math     : y = a + b, rounded once to the storage type
// Tensors  : y, a, b elem [n], y may be a or b    alignment: 16 B, any n
// Grid     : ceil(n / (256 · 16 B)) blocks            Block: 256 threads, one 16-byte vector a thread
// Smem     : none
// Work     : n flop; reads 2n·e B, writes n·e B       bound: memory
// Accuracy : exact to one rounding
// Ragged   : the last vector goes element by element
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void add(T* y, const T* a, const T* b, int64_t n) {
    const int64_t first = (int64_t(blockIdx.x) * kBasicThreads + threadIdx.x) * kVector<T>;
    if (first >= n) return;
    const int columns = int(min(n - first, int64_t(kVector<T>)));
    const bool whole = columns == kVector<T>;
    float left[kVector<T>], right[kVector<T>];
    load_columns(left, a + first, 0, columns, whole);
    load_columns(right, b + first, 0, columns, whole);
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) left[i] += right[i];
    store_columns(y + first, left, 0, columns, whole);
}
extern "C" __global__ void __launch_bounds__(kBasicThreads) add_f32(float* y, const float* a, const float* b, int64_t n) { add(y, a, b, n); }
KERNEL(add_f32, kBasicThreads)
extern "C" __global__ void __launch_bounds__(kBasicThreads) add_bf16(bf16* y, const bf16* a, const bf16* b, int64_t n) { add(y, a, b, n); }
KERNEL(add_bf16, kBasicThreads)

// copy_<f32|bf16|i32>: y = x in memory of its own.
// Math     : y = x
// Tensors  : y, x elem [n]                            alignment: 16 B, any n
// Grid     : as add                                   Block: 256 threads
// Smem     : none
// Work     : reads n·e B, writes n·e B                bound: memory
// Accuracy : exact
// Ragged   : the last vector goes element by element
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void copy(T* y, const T* x, int64_t n) {
    constexpr int kElements = 16 / int(sizeof(T));
    const int64_t first = (int64_t(blockIdx.x) * kBasicThreads + threadIdx.x) * kElements;
    if (first + kElements <= n) {
        store_16_bytes(y + first, load_16_bytes(x + first));
        return;
    }
    for (int64_t i = first; i < n; ++i) y[i] = x[i];
}
extern "C" __global__ void __launch_bounds__(kBasicThreads) copy_f32(float* y, const float* x, int64_t n) { copy(y, x, n); }
KERNEL(copy_f32, kBasicThreads)
extern "C" __global__ void __launch_bounds__(kBasicThreads) copy_bf16(bf16* y, const bf16* x, int64_t n) { copy(y, x, n); }
KERNEL(copy_bf16, kBasicThreads)
extern "C" __global__ void __launch_bounds__(kBasicThreads) copy_i32(int32_t* y, const int32_t* x, int64_t n) { copy(y, x, n); }
KERNEL(copy_i32, kBasicThreads)

// fill_<f32|bf16>: every element the same number.
// Math     : y = value
// Tensors  : y elem [n]                               alignment: none
// Grid     : ceil(n / 256) blocks                     Block: 256 threads, one element a thread
// Smem     : none
// Work     : writes n·e B; used on scalars            bound: launch
// Accuracy : one rounding
// Ragged   : any n
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void fill(T* y, float value, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * kBasicThreads + threadIdx.x;
    if (i < n) y[i] = from_float<T>(value);
}
extern "C" __global__ void __launch_bounds__(kBasicThreads) fill_f32(float* y, float value, int64_t n) { fill(y, value, n); }
KERNEL(fill_f32, kBasicThreads)
extern "C" __global__ void __launch_bounds__(kBasicThreads) fill_bf16(bf16* y, float value, int64_t n) { fill(y, value, n); }
KERNEL(fill_bf16, kBasicThreads)
