// Rows divided by their length, and the gradient. Widths as in norm.cu: `_narrow` a warp a row, `_middle` two, plain four,
// `_broad` eight, `_wide` sixteen.
#include "rows.cuh"

template <int kWarps>
struct L2Storage {
    float squares[1][kWarps], largest[kWarps], scaled[1][kWarps];
};

// l2_normalize_forward<|_narrow|_middle|_broad|_wide>_<f32|bf16>: y = x / max(|x|, eps).
// Math     : n = sqrt(sum x^2), y = x / max(n, eps)
// Tensors  : y, x elem [N,C], y may be x | norms f32 [N] or null                                      alignment: 16 B
// Grid     : N blocks, narrow ceil(N / 4)
// Block    : 128 threads = one row, narrow 4 rows; middle 64 threads, broad 256, wide 512
// Smem     : 48 B, narrow 12 B, wide 192 B      Registers: the row, 16 a thread; <= 64, no spills
// Work     : 3·N·C flop; reads N·C·e, writes N·C·e + 4·N B                                            bound: memory
// Accuracy : sums in f32; rows whose squares leave the range of f32 are measured in units of their largest element
// Ragged   : any N; C that is not a multiple of 16 bytes goes element by element
// Order    : deterministic (fixed reduction tree)
// Source   : PyTorch's normalize
template <class T, int kWarps>
DEVICE void l2_normalize_forward(T* y, float* norms, const T* x, float epsilon, int64_t rows, int columns) {
    using Group = RowGroup<kWarps>;
    SHARED_STORAGE(L2Storage<kWarps>, storage);
    const int64_t row = int64_t(blockIdx.x) * Group::kGroups + int(threadIdx.x) / Group::kThreads;
    if (row >= rows) return;  // a whole group, which owes no other a barrier
    RowRegs<T> regs;
    load_row<kWarps>(regs, x + row * columns, columns);
    float squares[1] = {0.0f};
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) squares[0] += regs[j][i] * regs[j][i];
    }
    group_sum<kWarps>(squares, storage.squares);
    float norm = sqrtf(squares[0]);
    constexpr float kLargestFinite = 3.4028235e38f;
    // The same for the whole group. Also where a square is not a number.
    if (!(squares[0] > 1e-30f && squares[0] <= kLargestFinite)) {
        float largest = 0.0f;
        UNROLL
        for (int j = 0; j < kRowRegVectors<T>; ++j) {
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) largest = fmaxf(largest, fabsf(regs[j][i]));
        }
        largest = team_max<kWarps>(largest, storage.largest);
        norm = largest;
        if (largest > 0.0f && largest <= kLargestFinite) {
            float scaled[1] = {0.0f};
            UNROLL
            for (int j = 0; j < kRowRegVectors<T>; ++j) {
                UNROLL
                for (int i = 0; i < kVector<T>; ++i) {
                    const float part = regs[j][i] / largest;
                    scaled[0] += part * part;
                }
            }
            group_sum<kWarps>(scaled, storage.scaled);
            norm = largest * sqrtf(scaled[0]);
        }
    }
    if (norms != nullptr && int(threadIdx.x) % Group::kThreads == 0) norms[row] = norm;
    const float divisor = fmaxf(norm, epsilon);
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) regs[j][i] /= divisor;
    }
    store_row<kWarps>(y + row * columns, regs, columns);
}

template <int kWarps>
struct L2BackwardStorage {
    float along[1][kWarps];
};

// l2_normalize_backward<|_narrow|_middle|_broad|_wide>_<f32|bf16>: dx of a row divided by its length.
// Math     : dx = (dy - y <y, dy>) / n where n > eps, else dy / eps
// Tensors  : dx, y, dy elem [N,C], dx may be dy | norms f32 [N]                                       alignment: 16 B
// Grid     : as forward                         Block: as forward
// Smem     : 16 B, narrow 4 B, wide 64 B        Registers: two rows, 32 a thread; <= 64, no spills
// Work     : 5·N·C flop; reads 2·N·C·e + 4·N, writes N·C·e B                                          bound: memory
// Accuracy : f32
// Ragged   : as forward
// Order    : deterministic (fixed reduction tree)
// Source   : PyTorch's normalize, differentiated
template <class T, int kWarps>
DEVICE void l2_normalize_backward(T* dx, const T* y, const float* norms, const T* dy, float epsilon, int64_t rows, int columns) {
    using Group = RowGroup<kWarps>;
    SHARED_STORAGE(L2BackwardStorage<kWarps>, storage);
    const int64_t row = int64_t(blockIdx.x) * Group::kGroups + int(threadIdx.x) / Group::kThreads;
    if (row >= rows) return;  // a whole group, which owes no other a barrier
    RowRegs<T> unit, d;
    load_row<kWarps>(unit, y + row * columns, columns);
    load_row<kWarps>(d, dy + row * columns, columns);
    float along[1] = {0.0f};
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) along[0] += unit[j][i] * d[j][i];
    }
    group_sum<kWarps>(along, storage.along);
    const float norm = norms[row];
    const bool is_long = norm > epsilon;
    const float factor = 1.0f / (is_long ? norm : epsilon), part = is_long ? along[0] : 0.0f;
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) d[j][i] = (d[j][i] - unit[j][i] * part) * factor;
    }
    store_row<kWarps>(dx + row * columns, d, columns);
}

#define L2_KERNELS(width, warps, T, dtype)                                                                                \
    extern "C" __global__ void __launch_bounds__(RowGroup<warps>::kBlockThreads) l2_normalize_forward##width##_##dtype(    \
        T* y, float* norms, const T* x, float epsilon, int64_t rows, int columns) {                                       \
        l2_normalize_forward<T, warps>(y, norms, x, epsilon, rows, columns);                                              \
    }                                                                                                                     \
    KERNEL(l2_normalize_forward##width##_##dtype, RowGroup<warps>::kBlockThreads, L2Storage<warps>)                        \
    extern "C" __global__ void __launch_bounds__(RowGroup<warps>::kBlockThreads) l2_normalize_backward##width##_##dtype(   \
        T* dx, const T* y, const float* norms, const T* dy, float epsilon, int64_t rows, int columns) {                   \
        l2_normalize_backward<T, warps>(dx, y, norms, dy, epsilon, rows, columns);                                        \
    }                                                                                                                     \
    KERNEL(l2_normalize_backward##width##_##dtype, RowGroup<warps>::kBlockThreads, L2BackwardStorage<warps>)
#define L2_WIDTHS(T, dtype)                     \
    L2_KERNELS(_narrow, kNarrowWarps, T, dtype) \
    L2_KERNELS(_middle, kMiddleWarps, T, dtype) \
    L2_KERNELS(, kUsualWarps, T, dtype)         \
    L2_KERNELS(_broad, kBroadWarps, T, dtype)   \
    L2_KERNELS(_wide, kWideWarps, T, dtype)
L2_WIDTHS(float, f32)
L2_WIDTHS(bf16, bf16)
