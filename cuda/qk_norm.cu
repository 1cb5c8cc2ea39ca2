// RMSNorm of every query and key head of packed rows, and its gradient. A head is held by the fewest lanes of a warp that
// are a power of two and hold it with 16 bytes each.
#include "partials.cuh"
#include "elem.cuh"

HOST_CONSTANT int kQkThreads = 256;
// The most blocks of the backward kernel, whose blocks take heads in turn.
HOST_CONSTANT int kQkBlocks = 4 * kMultiprocessors;

// How packed rows divide into heads.
struct QkHeads {
    int query;    // heads with the query's weight, from the first on
    int normed;   // heads that are normalised: queries, then keys
    int walked;   // heads that are visited: all of them where values are copied, else the normalised
    int total;    // heads of a row
    int dim;      // D
    int lanes;    // lanes a head
};

// The sum over `lanes` neighbouring lanes, for each of them. All 32 lanes of the warp take part.
DEVICE float lanes_sum(float value, int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// The element at which head `item` of the walk begins.
DEVICE int64_t head_start(const QkHeads& heads, int item) {
    return (int64_t(item / heads.walked) * heads.total + item % heads.walked) * heads.dim;
}

template <class T>
DEVICE float dot_columns(const float (&a)[kVector<T>], const float (&b)[kVector<T>]) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) sum += a[i] * b[i];
    return sum;
}

// qk_norm_forward_<f32|bf16>: normalises query and key heads; values are copied.
// Math     : r = (mean x^2 + eps)^(-1/2), y = x * r * w           w: the query's or the key's
// Tensors  : y, x elem [N, total·D], y may be x | query_weight, key_weight f32 [D]                   alignment: 16 B
// Grid     : ceil(N · heads / (256 / lanes a head))               Block: 256 threads
// Smem     : none                                                 Registers: <= 40, no spills
// Work     : 4·N·normed·D flop; reads and writes N·normed·D·e B, and the values where y is not x     bound: memory
// Accuracy : f32
// Ragged   : D a multiple of 8, up to 128 in f32 and 256 in bf16; any number of heads
// Order    : deterministic (fixed reduction tree)
// Source   : Zhang and Sennrich 2019, eq. 4; on heads: Dehghani et al. 2023, section 2
template <class T>
DEVICE void qk_norm_forward(T* y, const T* x, const float* query_weight, const float* key_weight, float epsilon,
                            const QkHeads& heads, int items) {
    const int group = int(threadIdx.x) / heads.lanes, lane = int(threadIdx.x) % heads.lanes;
    const int item = int(blockIdx.x) * (kQkThreads / heads.lanes) + group;
    // Lanes without an item of their own hold zeros and take part in the sums.
    const int columns = item < items ? heads.dim : 0, column = lane * kVector<T>;
    const int64_t start = columns > 0 ? head_start(heads, item) : 0;
    float values[kVector<T>], scale[kVector<T>];
    load_columns(values, x + start, column, columns, true);
    const float squares = lanes_sum(dot_columns<T>(values, values), heads.lanes);
    const int head = item % heads.walked;
    if (head < heads.normed) {
        const float rstd = 1.0f / sqrtf(squares / float(heads.dim) + epsilon);
        load_floats(scale, head < heads.query ? query_weight : key_weight, column, columns, true);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) values[i] *= rstd * scale[i];
    }
    store_columns(y + start, values, column, columns, true);
}

struct QkSums {
    alignas(16) float sum[2][kQkThreads * 8];  // of the query's and the key's weight: [groups, lanes · elements a lane]
};

// qk_norm_backward_<f32|bf16>: dx, and each block's part of the weights' gradients.
// Math     : g = dy * w; dx = r (g - x r^2 mean(g*x)); dw = sum over rows and heads of dy * x * r
// Tensors  : dx, x, dy elem [N, total·D], dx may be dy | weights f32 [D] | partials f32 [blocks, 2, D] or null
// Grid     : persistent: at most 528 blocks that take heads in turn, by shape alone                  alignment: 16 B
// Block    : 256 threads
// Smem     : sizeof(QkSums) = 16 KiB                              Registers: <= 64, no spills
// Work     : 9·N·normed·D flop; reads 2·N·normed·D·e, writes N·normed·D·e B, and the values where dx is not dy
//            bound: memory
// Accuracy : f32; r is computed again from x
// Ragged   : as forward
// Order    : deterministic (heads by block and group number, groups added in order, no float atomics)
// Source   : as forward, differentiated
template <class T>
DEVICE void qk_norm_backward(T* dx, float* partials, const T* x, const T* dy, const float* query_weight,
                             const float* key_weight, float epsilon, const QkHeads& heads, int items) {
    SHARED_STORAGE(QkSums, storage);
    const int groups = kQkThreads / heads.lanes;
    const int group = int(threadIdx.x) / heads.lanes, column = int(threadIdx.x) % heads.lanes * kVector<T>;
    float sums[2][kVector<T>];
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) sums[0][i] = sums[1][i] = 0.0f;
    // Every warp goes round as often as its block, so that all lanes meet in the sums.
    for (int first = int(blockIdx.x) * groups; first < items; first += int(gridDim.x) * groups) {
        const int item = first + group, columns = item < items ? heads.dim : 0;
        const int64_t start = columns > 0 ? head_start(heads, item) : 0;
        float h[kVector<T>], g[kVector<T>], scale[kVector<T>];
        load_columns(h, x + start, column, columns, true);
        load_columns(g, dy + start, column, columns, true);
        const float rstd = 1.0f / sqrtf(lanes_sum(dot_columns<T>(h, h), heads.lanes) / float(heads.dim) + epsilon);
        const int head = item % heads.walked;
        const bool is_query = head < heads.query, is_normed = head < heads.normed;
        load_floats(scale, is_query ? query_weight : key_weight, column, columns, true);
        float along = 0.0f;
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) {
            h[i] *= rstd;
            const float part = is_normed ? g[i] * h[i] : 0.0f;
            sums[0][i] += is_query ? part : 0.0f;
            sums[1][i] += is_query ? 0.0f : part;
            along += g[i] * scale[i] * h[i];
        }
        along = lanes_sum(along, heads.lanes) / float(heads.dim);
        if (is_normed) {
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) g[i] = rstd * (g[i] * scale[i] - h[i] * along);
        }
        store_columns(dx + start, g, column, columns, true);
    }
    if (partials == nullptr) return;
    const int pitch = heads.lanes * kVector<T>;
    store_floats(&storage.sum[0][group * pitch], sums[0], column, pitch, true);
    store_floats(&storage.sum[1][group * pitch], sums[1], column, pitch, true);
    if (!PLANTED_BUG("qk_norm: no barrier before the groups' sums are added")) {
        __syncthreads();  // every group has written its sums
    }
    for (int i = int(threadIdx.x); i < 2 * heads.dim; i += kQkThreads) {
        float total = 0.0f;
        for (int k = 0; k < groups; ++k) total += storage.sum[i / heads.dim][k * pitch + i % heads.dim];
        partials[int64_t(blockIdx.x) * 2 * heads.dim + i] = total;
    }
}

#define QK_NORM_KERNELS(T, dtype)                                                                                         \
    extern "C" __global__ void __launch_bounds__(kQkThreads)                                                              \
        qk_norm_forward_##dtype(T* y, const T* x, const float* query_weight, const float* key_weight, float epsilon,      \
                                int query, int normed, int total, int dim, int lanes, int items) {                        \
        const QkHeads heads{query, normed, y == x ? normed : total, total, dim, lanes};                                   \
        qk_norm_forward(y, x, query_weight, key_weight, epsilon, heads, items / total * heads.walked);                    \
    }                                                                                                                     \
    KERNEL(qk_norm_forward_##dtype, kQkThreads)                                                                           \
    extern "C" __global__ void __launch_bounds__(kQkThreads)                                                              \
        qk_norm_backward_##dtype(T* dx, float* partials, const T* x, const T* dy, const float* query_weight,              \
                                 const float* key_weight, float epsilon, int query, int normed, int total, int dim,       \
                                 int lanes, int items) {                                                                  \
        const QkHeads heads{query, normed, dx == dy ? normed : total, total, dim, lanes};                                 \
        qk_norm_backward(dx, partials, x, dy, query_weight, key_weight, epsilon, heads, items / total * heads.walked);    \
    }                                                                                                                     \
    KERNEL(qk_norm_backward_##dtype, kQkThreads, QkSums)
QK_NORM_KERNELS(float, f32)
QK_NORM_KERNELS(bf16, bf16)

// qk_norm_backward_weights_f32: adds up what the blocks of qk_norm_backward left.
// Math     : dquery[d] = sum over blocks of partials[b,0,d], dkey likewise of partials[b,1,d]
// Tensors  : dquery, dkey f32 [D] | partials f32 [blocks, 2, D]                                      alignment: 4 B
// Grid     : ceil(D / 32), 2                              Block: 256 threads = 8 groups of blocks for 32 columns
// Smem     : 1 KiB                                        Registers: <= 32, no spills
// Work     : 2·blocks·D flop; reads 8·blocks·D B          bound: launch
// Accuracy : f32
// Ragged   : any D, any number of blocks
// Order    : deterministic (by block number)
// Source   : -
extern "C" __global__ void __launch_bounds__(kPartialThreads)
    qk_norm_backward_weights_f32(float* dquery, float* dkey, const float* partials, int blocks, int dim) {
    SHARED_STORAGE(PartialSums, storage);
    const bool is_key = blockIdx.y == 1;
    add_partials(storage, is_key ? dkey : dquery, partials + (is_key ? dim : 0), blocks, int64_t(2) * dim, dim);
}
KERNEL(qk_norm_backward_weights_f32, kPartialThreads, PartialSums)
