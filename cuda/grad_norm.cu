// The norm of the whole gradient and the factor that clips it: squares by many blocks, then one block.
#include "elem.cuh"

constexpr int kNormThreads = 256;
// The most blocks that sum squares: those that fill kMultiprocessors, each with four vectors a thread before there is
// another.
HOST_CONSTANT int kNormBlocks = 8 * kMultiprocessors;
HOST_CONSTANT int kNormBlockElements = 16 * kNormThreads;
constexpr int kNormWarps = kNormThreads / kWarpLanes;

struct NormSums {
    double sum[kNormWarps];
};

// The sum over the block, for every thread. All threads take part, once.
DEVICE double block_sum_f64(double value, NormSums& storage) {
    UNROLL
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(kAllLanes, value, distance);
    if (threadIdx.x % kWarpLanes == 0) storage.sum[threadIdx.x / kWarpLanes] = value;
    if (!PLANTED_BUG("grad_norm: no barrier before the warps' sums are added")) {
        __syncthreads();  // every warp has written its sum
    }
    double total = 0.0;
    UNROLL
    for (int warp = 0; warp < kNormWarps; ++warp) total += storage.sum[warp];
    return total;
}

// grad_norm_squares_f32: each block's part of the sum of squares.
// Math     : partials[b] = sum of g^2 over the vectors b·256 + t, b·256 + t + 256·blocks, ...
// Tensors  : partials f64 [blocks] in memory of twice as many f32 | g f32 [n]       alignment: 16 B, partials 8 B
// Grid     : persistent: at most 1056 blocks, by n alone
// Block    : 256 threads, one 16-byte vector a thread and round
// Smem     : 64 B                                Registers: <= 40, no spills
// Work     : 2·n flop in f64; reads 4·n B        bound: memory
// Accuracy : squares and sums in f64: what is finite in f32 cannot overflow
// Ragged   : the last vector goes element by element
// Order    : deterministic (vectors by thread number, fixed reduction tree)
// Source   : Pascanu et al. 2013
extern "C" __global__ void __launch_bounds__(kNormThreads) grad_norm_squares_f32(float* partials, const float* g, int64_t n) {
    SHARED_STORAGE(NormSums, storage);
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    const int64_t step = int64_t(gridDim.x) * kNormThreads * 4;
    for (int64_t i = (int64_t(blockIdx.x) * kNormThreads + threadIdx.x) * 4; i < n; i += step) {
        const int count = int(min(n - i, int64_t(4)));
        float values[4];
        load_columns(values, g + i, 0, count, count == 4);
        UNROLL
        for (int k = 0; k < 4; ++k) sums[k] += double(values[k]) * double(values[k]);
    }
    const double total = block_sum_f64((sums[0] + sums[1]) + (sums[2] + sums[3]), storage);
    if (threadIdx.x == 0) reinterpret_cast<double*>(partials)[blockIdx.x] = total;
}
KERNEL(grad_norm_squares_f32, kNormThreads, NormSums)

// The norm and the factor that clips it, from the sum of all squares.
DEVICE void store_norm(float* norm, float* factor, double total, const float* scalars) {
    constexpr double kLargestFinite = 1.7976931348623157e308;
    const double gradient_scale = double(scalars[9]), largest = double(scalars[3]);
    const double length = gradient_scale * sqrt(total);
    double scale = gradient_scale;
    if (!(length <= kLargestFinite))
        scale = length - length;  // infinity and NaN alike give NaN
    else if (largest > 0.0)
        scale = gradient_scale * min(largest / (length + 1e-6), 1.0);
    norm[0] = float(length);
    factor[0] = float(scale);
}

// grad_norm_factor_f32: the norm, and the factor that clips it.
// Math     : norm = s·sqrt(sum of partials), s = scalars[9]; factor = s·min(1, largest / (norm + 1e-6)) where
//            largest = scalars[3] > 0, else s; NaN where the norm is not finite, by which the update knows a bad step
// Tensors  : norm, factor f32 [1] | partials f64 [count] in memory of twice as many f32 | scalars f32 [10]
// Grid     : 1 block                             Block: 256 threads
// Smem     : 64 B                                Registers: <= 40, no spills
// Work     : count flop in f64; reads 8·count B  bound: launch
// Accuracy : f64, rounded to f32 at the end
// Ragged   : any count
// Order    : deterministic (fixed reduction tree)
// Source   : Pascanu et al. 2013; 1e-6 as PyTorch's clip_grad_norm_
extern "C" __global__ void __launch_bounds__(kNormThreads)
    grad_norm_factor_f32(float* norm, float* factor, const float* partials, int count, const float* scalars) {
    SHARED_STORAGE(NormSums, storage);
    double sum = 0.0;
    for (int i = int(threadIdx.x); i < count; i += kNormThreads) sum += reinterpret_cast<const double*>(partials)[i];
    const double total = block_sum_f64(sum, storage);
    if (threadIdx.x != 0) return;
    store_norm(norm, factor, total, scalars);
}
KERNEL(grad_norm_factor_f32, kNormThreads, NormSums)

// atom_squares_f32: the sum of squares of each atom of the gradients that a rank owns.
// Math     : sums[b] = sum of g^2 over the atom's vectors t, t + 256, ...
// Tensors  : sums f64 [atoms] in memory of twice as many f32 | g f32 [atoms·elements]     alignment: 16 B, sums 8 B
// Grid     : one block an atom                   Block: 256 threads, one 16-byte vector a thread and round
// Smem     : 64 B                                Registers: <= 40, no spills
// Work     : 2·n flop in f64; reads 4·n B        bound: memory
// Accuracy : squares and sums in f64: what is finite in f32 cannot overflow
// Ragged   : atoms are whole vectors
// Order    : deterministic (vectors by thread number, fixed reduction tree)
// Source   : Pascanu et al. 2013
extern "C" __global__ void __launch_bounds__(kNormThreads) atom_squares_f32(float* atom_sums, const float* g, int elements) {
    SHARED_STORAGE(NormSums, storage);
    const float* atom = g + int64_t(blockIdx.x) * elements;
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    for (int i = int(threadIdx.x) * 4; i < elements; i += kNormThreads * 4) {
        float values[4];
        load_columns(values, atom + i, 0, 4, true);
        UNROLL
        for (int k = 0; k < 4; ++k) sums[k] += double(values[k]) * double(values[k]);
    }
    const double total = block_sum_f64((sums[0] + sums[1]) + (sums[2] + sums[3]), storage);
    if (threadIdx.x == 0) reinterpret_cast<double*>(atom_sums)[blockIdx.x] = total;
}
KERNEL(atom_squares_f32, kNormThreads, NormSums)

// norm_of_atoms_f32: the norm over all ranks, and the factor that clips it.
// Math     : as grad_norm_factor, from the sums of all atoms in their order among all gradients: bucket, rank, atom of the
//            rank's slice; they lie in the order rank, bucket, atom
// Tensors  : norm, factor f32 [1] | sums f64 [ranks, buckets, atoms] in memory of twice as many f32 | scalars f32 [10]
// Grid     : 1 block                             Block: 256 threads
// Smem     : 64 B                                Registers: <= 40, no spills
// Work     : a flop an atom in f64; reads 8 B an atom      bound: launch
// Accuracy : f64, rounded to f32 at the end
// Ragged   : any counts
// Order    : deterministic (atoms by thread number, fixed reduction tree), whatever the number of ranks
// Source   : as grad_norm_factor
extern "C" __global__ void __launch_bounds__(kNormThreads)
    norm_of_atoms_f32(float* norm, float* factor, const float* atom_sums, int ranks, int buckets, int atoms, const float* scalars) {
    SHARED_STORAGE(NormSums, storage);
    double sum = 0.0;
    for (int i = int(threadIdx.x); i < ranks * buckets * atoms; i += kNormThreads) {
        const int atom = i % atoms, rank = i / atoms % ranks, bucket = i / atoms / ranks;
        sum += reinterpret_cast<const double*>(atom_sums)[(rank * buckets + bucket) * atoms + atom];
    }
    const double total = block_sum_f64(sum, storage);
    if (threadIdx.x != 0) return;
    store_norm(norm, factor, total, scalars);
}
KERNEL(norm_of_atoms_f32, kNormThreads, NormSums)
