// Values in another storage type.
#include "elem.cuh"

HOST_CONSTANT int kCastThreads = 256, kCastElements = 8;

// cast_<f32_to_bf16|bf16_to_f32>: y = x in another type.
// Math     : y = round(x)
// Tensors  : x, y elem [n]                                                     alignment: 16 B, any n
// Grid     : ceil(n / (256 · 8)) blocks             Block: 256 threads, eight elements each
// Smem     : none
// Work     : reads and writes 6·n B together        bound: memory
// Accuracy : to nearest, ties to even; f32 from bf16 is exact
// Ragged   : the last elements go one by one
// Order    : every element by one thread
// Source   : -
DEVICE void cast_eight(float (&values)[kCastElements], const bf16* x, int64_t at) { load_columns(values, x + at, 0, kCastElements, true); }
DEVICE void cast_eight(float (&values)[kCastElements], const float* x, int64_t at) { load_floats(values, x + at, 0, kCastElements, true); }
DEVICE void cast_eight(bf16* y, const float (&values)[kCastElements], int64_t at) { store_columns(y + at, values, 0, kCastElements, true); }
DEVICE void cast_eight(float* y, const float (&values)[kCastElements], int64_t at) { store_floats(y + at, values, 0, kCastElements, true); }
template <class To, class From>
DEVICE void cast(To* y, const From* x, int64_t n) {
    const int64_t first = (int64_t(blockIdx.x) * kCastThreads + threadIdx.x) * kCastElements;
    if (first + kCastElements <= n) {
        float values[kCastElements];
        cast_eight(values, x, first);
        cast_eight(y, values, first);
        return;
    }
    for (int64_t i = first; i < n; ++i) y[i] = from_float<To>(to_float(x[i]));
}
extern "C" __global__ void __launch_bounds__(kCastThreads) cast_f32_to_bf16(bf16* y, const float* x, int64_t n) { cast(y, x, n); }
KERNEL(cast_f32_to_bf16, kCastThreads)
extern "C" __global__ void __launch_bounds__(kCastThreads) cast_bf16_to_f32(float* y, const bf16* x, int64_t n) { cast(y, x, n); }
KERNEL(cast_bf16_to_f32, kCastThreads)
