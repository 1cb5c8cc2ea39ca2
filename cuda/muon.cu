// Muon: momentum, and what stands between the matrix products of its Newton-Schulz steps.
#include "elem.cuh"

HOST_CONSTANT int kMuonThreads = 256;
// Elements of a thread, whatever their storage type.
HOST_CONSTANT int kMuonElements = 8;

DEVICE bool is_finite_factor(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// Elements [start, start + 8) of a flat range of n, as f32.
template <class T>
DEVICE void load_eight(float (&values)[kMuonElements], const T* from, int64_t start, int64_t n) {
    const int count = int(min(n - start, int64_t(kMuonElements)));
    const bool whole = count == kMuonElements;
    constexpr int kEach = kVector<T>;
    UNROLL
    for (int part = 0; part < kMuonElements / kEach; ++part) {
        float some[kEach];
        load_columns(some, from + start, part * kEach, count, whole);
        UNROLL
        for (int i = 0; i < kEach; ++i) values[part * kEach + i] = some[i];
    }
}

// Writes the same elements.
template <class T>
DEVICE void store_eight(T* to, const float (&values)[kMuonElements], int64_t start, int64_t n) {
    const int count = int(min(n - start, int64_t(kMuonElements)));
    const bool whole = count == kMuonElements;
    constexpr int kEach = kVector<T>;
    UNROLL
    for (int part = 0; part < kMuonElements / kEach; ++part) {
        float some[kEach];
        UNROLL
        for (int i = 0; i < kEach; ++i) some[i] = values[part * kEach + i];
        store_columns(to + start, some, part * kEach, count, whole);
    }
}

DEVICE int64_t first_element() { return (int64_t(blockIdx.x) * kMuonThreads + threadIdx.x) * kMuonElements; }

// muon_momentum_f32: the momentum of a range of gradients, and Nesterov's direction from it.
// Math     : g = gradient * scale; m = m + rest*(g - m); direction = g + momentum*(m - g), rest = 1 - momentum;
//            where scale is not finite m stays and the direction is 0
// Tensors  : momentum (new and before, which may be the same), direction (which may be the gradients), gradients f32 [n] |
//            scale f32 [1]                               alignment: 16 B, scale 4 B, any n
// Grid     : ceil(n / 2048) blocks                       Block: 256 threads, eight elements a thread
// Smem     : none                                        Registers: <= 48, no spills
// Work     : 7·n flop; reads 8·n, writes 8·n B           bound: memory
// Accuracy : f32, one rounding of each operation
// Ragged   : the last eight go element by element
// Order    : every element by one thread
// Source   : Jordan et al. 2024 (Muon); torch.optim.Muon
extern "C" __global__ void __launch_bounds__(kMuonThreads)
    muon_momentum_f32(float* momentum, float* direction, const float* gradients, const float* momentum_before, const float* scale,
                      float mu, float rest, int64_t n) {
    const int64_t start = first_element();
    if (start >= n) return;
    float g[kMuonElements], m[kMuonElements];
    load_eight(g, gradients, start, n);
    load_eight(m, momentum_before, start, n);
    const float factor = scale[0];
    const bool moves = is_finite_factor(factor);
    UNROLL
    for (int i = 0; i < kMuonElements; ++i) {
        const float gradient = g[i] * factor;
        if (moves) m[i] = m[i] + rest * (gradient - m[i]);
        g[i] = moves ? gradient + mu * (m[i] - gradient) : 0.0f;
    }
    store_eight(momentum, m, start, n);
    store_eight(direction, g, start, n);
}
KERNEL(muon_momentum_f32, kMuonThreads)

// muon_normalize_<f32|bf16>: a direction divided by its norm.
// Math     : x = direction / max(norm, 1e-7)
// Tensors  : x elem [n] | direction f32 [n], norm f32 [1]                                       alignment: 16 B, norm 4 B
// Grid     : ceil(n / 2048) blocks                       Block: 256 threads, eight elements a thread
// Smem     : none                                        Registers: <= 32, no spills
// Work     : n flop; reads 4·n, writes n·e B             bound: memory
// Accuracy : f32, rounded to elem once
// Ragged   : the last eight go element by element
// Order    : every element by one thread
// Source   : Jordan et al. 2024 (Muon); torch.optim.Muon
template <class T>
DEVICE void muon_normalize(T* x, const float* direction, const float* norm, int64_t n) {
    const int64_t start = first_element();
    if (start >= n) return;
    float values[kMuonElements];
    load_eight(values, direction, start, n);
    const float length = fmaxf(norm[0], 1e-7f);
    UNROLL
    for (int i = 0; i < kMuonElements; ++i) values[i] = values[i] / length;
    store_eight(x, values, start, n);
}

// muon_polynomial_<f32|bf16>: what a Newton-Schulz step multiplies with.
// Math     : q = a·I + b·gram + c·square
// Tensors  : q, gram, square elem [k,k]                  alignment: 16 B, any k
// Grid     : ceil(k·k / 2048) blocks                     Block: 256 threads, eight elements a thread
// Smem     : none                                        Registers: <= 48, no spills
// Work     : 4·k² flop; reads 2·k²·e, writes k²·e B      bound: memory
// Accuracy : f32, rounded to elem once
// Ragged   : the last eight go element by element
// Order    : every element by one thread
// Source   : Jordan et al. 2024 (Muon), the quintic iteration
template <class T>
DEVICE void muon_polynomial(T* q, const T* gram, const T* square, float a, float b, float c, int k) {
    const int64_t n = int64_t(k) * k, start = first_element();
    if (start >= n) return;
    float g[kMuonElements], s[kMuonElements];
    load_eight(g, gram, start, n);
    load_eight(s, square, start, n);
    UNROLL
    for (int i = 0; i < kMuonElements; ++i) {
        const float diagonal = (start + i) % (int64_t(k) + 1) == 0 ? a : 0.0f;
        g[i] = diagonal + (b * g[i] + c * s[i]);
    }
    store_eight(q, g, start, n);
}

// muon_update_<f32|bf16>: the step of one matrix.
// Math     : p = p*(1 - rate*decay) - (rate*factor)*x; bf16 copy = bf16(p); where scale is not finite nothing changes
// Tensors  : p (new and before, which may be the same) f32 [n], bf16 copy bf16 [n] or null | x elem [n] |
//            the group's f32 [2], scale f32 [1]          alignment: 16 B, numbers 4 B, any n
// Grid     : ceil(n / 2048) blocks                       Block: 256 threads, eight elements a thread
// Smem     : none                                        Registers: <= 48, no spills
// Work     : 3·n flop; reads 4·n + n·e, writes 4·n B and 2·n for the bf16 copy                              bound: memory
// Accuracy : f32, one rounding of each operation
// Ragged   : the last eight go element by element
// Order    : every element by one thread
// Source   : Jordan et al. 2024 (Muon); torch.optim.Muon; the factor: Liu et al. 2025 (arXiv 2502.16982), eq. 4
template <class T>
DEVICE void muon_update(float* p, bf16* bf16_copy, const float* before, const T* x, const float* group, const float* scale,
                        float factor, int64_t n) {
    const int64_t start = first_element();
    if (start >= n) return;
    float values[kMuonElements], step[kMuonElements];
    load_eight(values, before, start, n);
    load_eight(step, x, start, n);
    const float keep = 1.0f - group[0] * group[1], rate = group[0] * factor;
    if (is_finite_factor(scale[0])) {
        UNROLL
        for (int i = 0; i < kMuonElements; ++i) values[i] = values[i] * keep - rate * step[i];
    }
    store_eight(p, values, start, n);
    if (bf16_copy != nullptr) store_eight(bf16_copy, values, start, n);
}

#define MUON_KERNELS(T, dtype)                                                                                            \
    extern "C" __global__ void __launch_bounds__(kMuonThreads)                                                            \
        muon_normalize_##dtype(T* x, const float* direction, const float* norm, int64_t n) {                              \
        muon_normalize<T>(x, direction, norm, n);                                                                         \
    }                                                                                                                     \
    KERNEL(muon_normalize_##dtype, kMuonThreads)                                                                          \
    extern "C" __global__ void __launch_bounds__(kMuonThreads)                                                            \
        muon_polynomial_##dtype(T* q, const T* gram, const T* square, float a, float b, float c, int k) {                 \
        muon_polynomial<T>(q, gram, square, a, b, c, k);                                                                  \
    }                                                                                                                     \
    KERNEL(muon_polynomial_##dtype, kMuonThreads)                                                                         \
    extern "C" __global__ void __launch_bounds__(kMuonThreads)                                                            \
        muon_update_##dtype(float* p, bf16* bf16_copy, const float* before, const T* x, const float* group,               \
                            const float* scale, float factor, int64_t n) {                                                \
        muon_update<T>(p, bf16_copy, before, x, group, scale, factor, n);                                                 \
    }                                                                                                                     \
    KERNEL(muon_update_##dtype, kMuonThreads)

MUON_KERNELS(float, f32)
MUON_KERNELS(bf16, bf16)
