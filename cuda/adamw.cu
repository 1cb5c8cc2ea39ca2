// The update of parameters, moments and bf16 copies over flat ranges of the arenas.
#include "elem.cuh"

HOST_CONSTANT int kAdamwThreads = 256;
HOST_CONSTANT int kAdamwElements = 4;

// The numbers of the input `optimizer_scalars`, which all parameters share; src/engine/ops/adamw.rs says what they are.
enum OptimizerScalar { kBeta1, kBeta2, kEpsilon, kLargestNorm, kCorrection1, kCorrection2, kRest1, kRest2, kStep, kGradientScale };

// The numbers of a parameter group in the input `group_scalars`.
enum GroupScalar { kRate, kDecay };

// The finaliser of SplitMix64 (Steele et al. 2014): a bijection whose every output bit depends on every input bit.
DEVICE uint64_t mixed(uint64_t bits) {
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
    return bits ^ (bits >> 31);
}

// bf16 of `value`, upwards in magnitude with the probability that keeps the mean; `random` is uniform in 0..2^16-1.
DEVICE uint16_t bf16_bits_at_random(float value, uint32_t random) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bf16_bits(value);  // infinity and NaN have no neighbours to choose from
    return uint16_t((bits + random) >> 16);
}

DEVICE bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// adamw_f32: one step of AdamW for a range of parameters of one group.
// Math     : g = gradient * scale; m = beta1*m + rest1*g; v = beta2*v + rest2*g^2;
//            p = p*(1 - rate*decay) - rate/correction1 * m / (sqrt(v)/sqrt(correction2) + eps); bf16 copy = bf16(p)
//            random rounding: bits of p + r, cut off, with r the 16 bits at place i%4 of
//            mixed(mixed(seed + step*gamma) + (first+i)/4*gamma), gamma = 0x9e3779b97f4a7c15
//            where scale is not finite nothing changes, the bf16 copy neither
// Tensors  : parameters, moments (new and before, which may be the same), gradients f32 [n] | bf16 copy bf16 [n] or null |
//            scalars f32 [10], the group's f32 [2], scale f32 [1]
//            alignment: 16 B, bf16 copy 8 B, numbers 4 B, any n; first % 4 == 0
// Grid     : ceil(n / 1024) blocks                       Block: 256 threads, four elements a thread
// Smem     : none                                        Registers: <= 64, no spills
// Work     : 12·n flop; reads 16·n, writes 12·n B and 2·n for the bf16 copy                                 bound: memory
// Accuracy : f32; the step's corrections come from the host in f64, rounded once
// Ragged   : the last four go element by element
// Order    : every element by one thread
// Source   : Loshchilov and Hutter 2019, algorithm 2; random rounding: Gupta et al. 2015, section 3
extern "C" __global__ void __launch_bounds__(kAdamwThreads)
    adamw_f32(float* parameters, float* first_moments, float* second_moments, bf16* bf16_copy, const float* parameters_before,
              const float* gradients, const float* first_before, const float* second_before, const bf16* bf16_copy_before,
              const float* scalars, const float* group, const float* scale, int rounds_at_random, int64_t seed, int64_t first,
              int64_t n) {
    const int64_t start = (int64_t(blockIdx.x) * kAdamwThreads + threadIdx.x) * kAdamwElements;
    if (start >= n) return;
    const int count = int(min(n - start, int64_t(kAdamwElements)));
    const bool whole = count == kAdamwElements;
    float p[kAdamwElements], g[kAdamwElements], m[kAdamwElements], v[kAdamwElements];
    load_columns(p, parameters_before + start, 0, count, whole);
    load_columns(g, gradients + start, 0, count, whole);
    load_columns(m, first_before + start, 0, count, whole);
    load_columns(v, second_before + start, 0, count, whole);
    const float factor = scale[0];
    uint16_t rounded[kAdamwElements];
    if (is_finite(factor)) {
        const float beta1 = scalars[kBeta1], beta2 = scalars[kBeta2], rest1 = scalars[kRest1], rest2 = scalars[kRest2];
        const float keep = 1.0f - group[kRate] * group[kDecay];  // exactly 1 where nothing decays
        const float rate = group[kRate] / scalars[kCorrection1], root = 1.0f / sqrtf(scalars[kCorrection2]);
        const float epsilon = scalars[kEpsilon];
        UNROLL
        for (int i = 0; i < kAdamwElements; ++i) {
            const float gradient = g[i] * factor;
            m[i] = beta1 * m[i] + rest1 * gradient;
            v[i] = beta2 * v[i] + rest2 * (gradient * gradient);
            p[i] = p[i] * keep - rate * m[i] / (sqrtf(v[i]) * root + epsilon);
            rounded[i] = bf16_bits(p[i]);
        }
        if (rounds_at_random != 0) {
            constexpr uint64_t kGamma = 0x9e3779b97f4a7c15ull;
            const uint64_t key = mixed(uint64_t(seed) + uint64_t(scalars[kStep]) * kGamma);
            const uint64_t random = mixed(key + uint64_t(first + start) / kAdamwElements * kGamma);
            UNROLL
            for (int i = 0; i < kAdamwElements; ++i)
                rounded[i] = bf16_bits_at_random(p[i], uint32_t(random >> (16 * i)) & 0xffffu);
        }
    } else if (bf16_copy != nullptr) {
        UNROLL
        for (int i = 0; i < kAdamwElements; ++i) rounded[i] = i < count ? bf16_copy_before[start + i].bits : 0;
    }
    store_columns(parameters + start, p, 0, count, whole);
    store_columns(first_moments + start, m, 0, count, whole);
    store_columns(second_moments + start, v, 0, count, whole);
    if (bf16_copy == nullptr) return;
    if (whole) {
        store_8_bytes(bf16_copy + start, make_uint2(rounded[0] | uint32_t(rounded[1]) << 16, rounded[2] | uint32_t(rounded[3]) << 16));
        return;
    }
    UNROLL
    for (int i = 0; i < kAdamwElements; ++i)
        if (i < count) bf16_copy[start + i].bits = rounded[i];
}
KERNEL(adamw_f32, kAdamwThreads)

// clamp_f32: holds scalar parameters between two numbers.
// Math     : y = min(max(x, least), most); NaN stays
// Tensors  : y, x f32 [n], y may be x                    alignment: 4 B
// Grid     : ceil(n / 256) blocks                        Block: 256 threads, one element a thread
// Smem     : none                                        Registers: <= 16
// Work     : 2·n flop; used on scalars                   bound: launch
// Accuracy : exact
// Ragged   : any n
// Order    : every element by one thread
// Source   : -
extern "C" __global__ void __launch_bounds__(kAdamwThreads) clamp_f32(float* y, const float* x, float least, float most, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * kAdamwThreads + threadIdx.x;
    if (i >= n) return;
    const float value = x[i];
    y[i] = value < least ? least : value > most ? most : value;
}
KERNEL(clamp_f32, kAdamwThreads)
