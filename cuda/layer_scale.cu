// The gradients of a residual branch scaled per channel; the scale itself is in the epilogue of linear_forward.
#include "partials.cuh"
#include "elem.cuh"

constexpr int kScaleThreads = 256;
constexpr int kScaleWarps = kScaleThreads / kWarpLanes;

struct ScaleSums {
    alignas(16) float sum[kScaleWarps][kWarpLanes * 8];  // 32 lanes with 4 or 8 columns each
};

// layer_scale_backward_<f32|bf16>: dx, and each block's part of dgamma.
// Math     : dx = gamma * dy, dgamma = sum over rows of dy * x
// Tensors  : dx, x, dy elem [N,C] | gamma f32 [C] | partials f32 [chunks, C]                          alignment: 16 B
// Grid     : column tiles of 32 vectors × chunks of rows, by shape alone         Block: 256 threads = 8 warps, a row each
// Smem     : sizeof(ScaleSums) = 8 KiB                    Registers: <= 48, no spills
// Work     : 3·N·C flop; reads 2·N·C·e, writes N·C·e + 4·chunks·C B                                   bound: memory
// Accuracy : f32
// Ragged   : any N; C that is not a multiple of 16 bytes goes element by element
// Order    : deterministic (rows by chunk and warp number, warps added in order, no float atomics)
// Source   : Touvron et al. 2021, eq. 4, differentiated
template <class T>
DEVICE void layer_scale_backward(T* dx, float* partials, const T* x, const float* __restrict__ gamma, const T* dy,
                                 int64_t rows, int columns, int chunks) {
    SHARED_STORAGE(ScaleSums, storage);
    constexpr int kTile = kWarpLanes * kVector<T>;
    const bool vectors = columns % kVector<T> == 0;
    const int tile = int(blockIdx.x) / chunks, chunk = int(blockIdx.x) % chunks;
    const int warp = int(threadIdx.x) / kWarpLanes, lane = int(threadIdx.x) % kWarpLanes;
    const int column = tile * kTile + lane * kVector<T>;
    float scale[kVector<T>], sum[kVector<T>];
    load_floats(scale, gamma, column, columns, vectors);
    UNROLL
    for (int k = 0; k < kVector<T>; ++k) sum[k] = 0.0f;
    for (int64_t row = int64_t(chunk) * kScaleWarps + warp; row < rows; row += int64_t(chunks) * kScaleWarps) {
        float branch[kVector<T>], d[kVector<T>];
        load_columns(branch, x + row * columns, column, columns, vectors);
        load_columns(d, dy + row * columns, column, columns, vectors);
        UNROLL
        for (int k = 0; k < kVector<T>; ++k) {
            sum[k] += d[k] * branch[k];
            d[k] *= scale[k];
        }
        store_columns(dx + row * columns, d, column, columns, vectors);
    }
    store_floats(storage.sum[warp], sum, lane * kVector<T>, kTile, true);
    if (!PLANTED_BUG("layer_scale: no barrier before the warps' sums are added")) {
        __syncthreads();  // every warp has written its sums
    }
    const int own = int(threadIdx.x);
    if (own >= kTile || tile * kTile + own >= columns) return;
    float total = 0.0f;
    UNROLL
    for (int w = 0; w < kScaleWarps; ++w) total += storage.sum[w][own];
    partials[int64_t(chunk) * columns + tile * kTile + own] = total;
}

#define LAYER_SCALE_KERNELS(T, dtype)                                                                                     \
    extern "C" __global__ void __launch_bounds__(kScaleThreads)                                                           \
        layer_scale_backward_##dtype(T* dx, float* partials, const T* x, const float* gamma, const T* dy, int64_t rows,   \
                                     int columns, int chunks) {                                                           \
        layer_scale_backward(dx, partials, x, gamma, dy, rows, columns, chunks);                                          \
    }                                                                                                                     \
    KERNEL(layer_scale_backward_##dtype, kScaleThreads, ScaleSums)
LAYER_SCALE_KERNELS(float, f32)
LAYER_SCALE_KERNELS(bf16, bf16)

// layer_scale_backward_gamma_f32: adds up what the chunks of layer_scale_backward left.
// Math     : dgamma[c] = sum over chunks of partials[k,c]
// Tensors  : dgamma f32 [C] | partials f32 [chunks, C]                                                alignment: 4 B
// Grid     : ceil(C / 32)                                 Block: 256 threads = 8 groups of chunks for 32 columns
// Smem     : 1 KiB                                        Registers: <= 32, no spills
// Work     : chunks·C flop; reads 4·chunks·C B            bound: memory
// Accuracy : f32
// Ragged   : any C, any number of chunks
// Order    : deterministic (by chunk number)
// Source   : -
extern "C" __global__ void __launch_bounds__(kPartialThreads)
    layer_scale_backward_gamma_f32(float* dgamma, const float* partials, int chunks, int columns) {
    SHARED_STORAGE(PartialSums, storage);
    add_partials(storage, dgamma, partials, chunks, columns, columns);
}
KERNEL(layer_scale_backward_gamma_f32, kPartialThreads, PartialSums)
