// Next-token loss fused with the output product, and the word of the largest logit. Logits h·Wᵀ are made tile by tile and
// never stored whole: forward keeps the log-sums of each row's tiles; backward makes a block of rows again, writes the
// block's gradient to the workspace and multiplies it with W for ∂h (linear_backward_input) or with h for ∂W
// (linear_backward_weight). A row block is as large as h and W together, or 128 rows.
#include "scores.cuh"

// A tile of h·Wᵀ in the accumulators.
template <class T>
DEVICE void logits(Accumulators<ScoreShape<T>>& acc, ScoreStorage<T>& storage, const T* hidden, const T* weight,
                   ProductPlace place, int n, int v, int d) {
    using Shape = ScoreShape<T>;
    product_sums<Shape>(acc, storage, RowsOperand<T>{matrix(hidden, n, d)}, RowsOperand<T>{matrix(weight, v, d)}, place, 0,
                        (d + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{});
}

template <class T>
struct CrossEntropyStorage {
    ScoreStorage<T> product;
    RowLogSums<ScoreShape<T>> rows;
};

// linear_cross_entropy_forward_<f32|bf16>: log-sums of each row's tiles of logits, and the logit of its target.
// Math     : z = h·Wᵀ     part(n, tile) = log-sum of z(n, tile's words)     own(n) = z(n, target(n))
// Tensors  : hidden elem [N,D] | weight elem [V,D] | targets i32 [N] | part f32 [N, ceil(V/128), 2] | own f32 [N], written where
//            the target is a word                                              alignment: 16 B
// Grid     : tiles of [N,V], 128×128                Block: bf16 128 threads, f32 256
// Smem     : sizeof(CrossEntropyStorage): the stages of product.cuh and 2 KB
// Work     : 2·N·V·D flop and an exponential a logit; reads (N + V)·D·e B, writes 8·N·V/128 B       bound: tensor cores
// Accuracy : products as linear_forward; log-sums in f32, relative to the largest logit
// Ragged   : any N, V, D
// Order    : deterministic: a lane's words ascending, lanes, warps; tiles by linear_cross_entropy_rows
// Source   : Milakov and Gimelshein 2018 (online softmax); Wijmans et al. 2024 (no logits in memory)
template <class T>
DEVICE void cross_entropy_forward(float* part, float* own, const T* hidden, const T* weight, const int32_t* targets, int n, int v,
                                  int d) {
    using Shape = ScoreShape<T>;
    SHARED_STORAGE(CrossEntropyStorage<T>, storage);
    const ProductPlace place = product_place<Shape>(n, v);
    Accumulators<Shape> acc = {};
    logits(acc, storage.product, hidden, weight, place, n, v, d);
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int row = place.m + warp_row<Shape>() + i * kFragmentRows + accumulator_row(2 * half);
            const int target = row < n ? targets[row] : -1;
            if (target < 0 || target >= v) continue;
            UNROLL
            for (int j = 0; j < Shape::kFragmentsN; ++j) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    const int column = place.n + warp_column<Shape>() + j * kFragmentColumns + accumulator_column(e);
                    if (column == target) own[row] = acc[i][j][2 * half + e];
                }
            }
        }
    }
    row_log_sums(storage.rows, acc, v - place.n);
    if (!PLANTED_BUG("linear_cross_entropy_forward: no barrier before the warps' log-sums are merged")) {
        __syncthreads();  // every warp's log-sums are there
    }
    const int tiles = (v + Shape::kTileN - 1) / Shape::kTileN;
    for (int i = threadIdx.x; i < Shape::kTileM; i += Shape::kThreads) {
        if (place.m + i < n)
            store_log_sum(part, int64_t(place.m + i) * tiles + place.n / Shape::kTileN, storage.rows.merged(i));
    }
}

// linear_cross_entropy_rows_f32: the log-sum of each row and its loss.
// Math     : lse(n) = log-sum over tiles of part(n, tile)     loss(n) = lse(n) − own(n), NaN for a target of V or above
// Tensors  : part f32 [N, tiles, 2] | own f32 [N] | targets i32 [N] | lse, loss f32 [N]; both 0 for a negative target
// Grid     : ceil(N / 8) blocks                     Block: 256 threads = 8 warps, one row each
// Smem     : none
// Work     : about 10·N·tiles flop; reads 8·N·tiles B          bound: memory
// Accuracy : f32, relative to the largest logit
// Ragged   : any N, V
// Order    : deterministic: a lane's tiles ascending, then lanes
// Source   : Milakov and Gimelshein 2018
extern "C" __global__ void __launch_bounds__(kReduceThreads) linear_cross_entropy_rows_f32(
    float* lse, float* loss, const float* part, const float* own, const int32_t* targets, int n, int tiles, int vocabulary) {
    const int row = int(blockIdx.x) * kReduceWarps + int(threadIdx.x) / kWarpLanes;
    if (row >= n) return;
    const int target = targets[row];
    const float value = target < 0 ? 0.0f : finish(merge_row(part, row, tiles));
    if (threadIdx.x % kWarpLanes != 0) return;
    lse[row] = value;
    loss[row] = target < 0 ? 0.0f : target < vocabulary ? value - own[row] : NAN;
}
KERNEL(linear_cross_entropy_rows_f32, kReduceThreads)

struct CrossEntropyTotalStorage {
    float partial[2][kTotalWarps];
};

// linear_cross_entropy_total_f32: the weighted mean of the rows' losses.
// Math     : total = Σ w(n)     loss = Σ w(n)·loss(n) / total over supervised n, 0 where total is 0
// Tensors  : row_loss, weights f32 [N] | targets i32 [N] | loss, total f32 [1]
// Grid     : 1 block                                Block: 1024 threads
// Smem     : 256 B
// Work     : 3·N flop; reads 12·N B                 bound: launch
// Accuracy : f32 sums of N / 1024 terms, then a tree
// Ragged   : any N
// Order    : deterministic: a thread's rows ascending, lanes, warps
// Source   : -
extern "C" __global__ void __launch_bounds__(kTotalThreads) linear_cross_entropy_total_f32(
    float* loss, float* total, const float* row_loss, const float* weights, const int32_t* targets, int n) {
    SHARED_STORAGE(CrossEntropyTotalStorage, storage);
    float sums[2] = {};
    for (int i = threadIdx.x; i < n; i += kTotalThreads) {
        if (targets[i] < 0) continue;
        sums[0] += weights[i] * row_loss[i];
        sums[1] += weights[i];
    }
    block_sum(sums, storage.partial);
    if (threadIdx.x != 0) return;
    loss[0] = sums[1] == 0.0f ? 0.0f : sums[0] / sums[1];
    total[0] = sums[1];
}
KERNEL(linear_cross_entropy_total_f32, kTotalThreads, CrossEntropyTotalStorage)

// linear_cross_entropy_backward_<f32|bf16>: the gradient of a row block of logits, made again.
// Math     : gradient(i, v) = (e^(z(n,v) − lse(n)) − [v = target(n)])·w(n)·dloss / total, n = first_row + i; 0 for a negative
//            target and where total is 0
// Tensors  : hidden elem [N,D] | weight elem [V,D] | targets i32, weights, lse f32 [N] | total, dloss f32 [1] |
//            gradient elem [rows,V]                                            alignment: 16 B
// Grid     : tiles of the row block, 128×128        Block: bf16 128 threads, f32 256
// Smem     : the stages of product.cuh
// Work     : 2·rows·V·D flop and an exponential a logit; reads (rows + V)·D·e B, writes rows·V·e B   bound: tensor cores from D of
//            about 500 on, the row block's traffic below
// Accuracy : logits have the bits of the forward pass; rounded once to elem
// Ragged   : any rows, V, D
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void cross_entropy_backward(T* gradient, const T* hidden, const T* weight, const int32_t* targets, const float* weights,
                                   const float* lse, const float* total, const float* dloss, int first_row, int rows, int v, int d) {
    using Shape = ScoreShape<T>;
    using Storage = ScoreStorage<T>;
    SHARED_STORAGE(Storage, storage);
    constexpr int kWidth = kVector<T>;
    const float factor = total[0] == 0.0f ? 0.0f : dloss[0] / total[0];
    const bool vectors = has_vectors(gradient, v);
    product<kWidth, Shape>(
        storage, RowsOperand<T>{matrix(hidden + int64_t(first_row) * d, rows, d)}, RowsOperand<T>{matrix(weight, v, d)},
        product_place<Shape>(rows, v), rows, v, 0, (d + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{},
        [&](int row, int column, float (&values)[kWidth]) {
            const int target = targets[first_row + row];
            const float share = target < 0 ? 0.0f : factor * weights[first_row + row];
            const float log_sum = lse[first_row + row];
            UNROLL
            for (int i = 0; i < kWidth; ++i) {
                const float own = column + i == target ? 1.0f : 0.0f;
                values[i] = target < 0 ? 0.0f : share * (expf(values[i] - log_sum) - own);
            }
            store_columns(gradient + int64_t(row) * v, values, column, v, vectors);
        });
}

// A logit and its word.
struct Best {
    float logit;
    int word;
};
// The larger logit; the smaller word where they are equal.
DEVICE Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.word < a.word) ? b : a;
}
DEVICE Best exchange(Best own, int distance) {
    return better(own, {__shfl_xor_sync(kAllLanes, own.logit, distance), __shfl_xor_sync(kAllLanes, own.word, distance)});
}

template <class T>
struct ArgmaxStorage {
    ScoreStorage<T> product;
    Best best[ScoreShape<T>::kWarpsN][ScoreShape<T>::kTileM];
};

// linear_argmax_tiles_<f32|bf16>: the largest logit of each row in each tile, and its word.
// Math     : part(n, tile) = (max, argmax) of z(n, tile's words), z = h·Wᵀ
// Tensors  : hidden elem [N,D] | weight elem [V,D] | logit f32, word i32 [N, ceil(V/128)]           alignment: 16 B
// Grid     : tiles of [N,V], 128×128                Block: bf16 128 threads, f32 256
// Smem     : sizeof(ArgmaxStorage): the stages of product.cuh and 2 KB
// Work     : 2·N·V·D flop; reads (N + V)·D·e B, writes 8·N·V/128 B              bound: tensor cores
// Accuracy : products as linear_forward
// Ragged   : any N, V, D
// Order    : independent of it: ties go to the smaller word
// Source   : -
template <class T>
DEVICE void argmax_tiles(float* logit, int32_t* word, const T* hidden, const T* weight, int n, int v, int d) {
    using Shape = ScoreShape<T>;
    SHARED_STORAGE(ArgmaxStorage<T>, storage);
    const ProductPlace place = product_place<Shape>(n, v);
    Accumulators<Shape> acc = {};
    logits(acc, storage.product, hidden, weight, place, n, v, d);
    const int m = warp_row<Shape>(), warp = int(threadIdx.x) / kWarpLanes % Shape::kWarpsN;
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            Best own{-INFINITY, 0x7fffffff};
            UNROLL
            for (int j = 0; j < Shape::kFragmentsN; ++j) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    const int column = place.n + warp_column<Shape>() + j * kFragmentColumns + accumulator_column(e);
                    if (column < v) own = better(own, {acc[i][j][2 * half + e], column});
                }
            }
            own = exchange(exchange(own, 1), 2);
            if (threadIdx.x % 4 == 0) storage.best[warp][m + i * kFragmentRows + accumulator_row(2 * half)] = own;
        }
    }
    if (!PLANTED_BUG("linear_argmax_tiles: no barrier before the warps' words are compared")) {
        __syncthreads();  // every warp's words are there
    }
    const int tiles = (v + Shape::kTileN - 1) / Shape::kTileN;
    for (int i = threadIdx.x; i < Shape::kTileM; i += Shape::kThreads) {
        if (place.m + i >= n) continue;
        Best all = storage.best[0][i];
        UNROLL
        for (int w = 1; w < Shape::kWarpsN; ++w) all = better(all, storage.best[w][i]);
        const int64_t at = int64_t(place.m + i) * tiles + place.n / Shape::kTileN;
        logit[at] = all.logit;
        word[at] = all.word;
    }
}

// linear_argmax_rows_f32: the word of the largest logit of each row.
// Math     : next(n) = word(n, argmax over tiles of logit(n, tile))
// Tensors  : logit f32, word i32 [N, tiles] | next i32 [N]
// Grid     : ceil(N / 8) blocks                     Block: 256 threads = 8 warps, one row each
// Smem     : none
// Work     : N·tiles comparisons; reads 8·N·tiles B            bound: memory
// Accuracy : exact
// Ragged   : any N, tiles
// Order    : independent of it: ties go to the smaller word
// Source   : -
extern "C" __global__ void __launch_bounds__(kReduceThreads) linear_argmax_rows_f32(int32_t* next, const float* logit,
                                                                                   const int32_t* word, int n, int tiles) {
    const int row = int(blockIdx.x) * kReduceWarps + int(threadIdx.x) / kWarpLanes;
    if (row >= n) return;
    Best all{-INFINITY, 0x7fffffff};
    for (int tile = int(threadIdx.x) % kWarpLanes; tile < tiles; tile += kWarpLanes) {
        const int64_t at = int64_t(row) * tiles + tile;
        all = better(all, {logit[at], word[at]});
    }
    UNROLL
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) all = exchange(all, distance);
    if (threadIdx.x % kWarpLanes == 0) next[row] = all.word;
}
KERNEL(linear_argmax_rows_f32, kReduceThreads)

#define CROSS_ENTROPY_KERNELS(suffix, T) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) linear_cross_entropy_forward_##suffix( \
        float* part, float* own, const T* hidden, const T* weight, const int32_t* targets, int n, int v, int d) { \
        cross_entropy_forward(part, own, hidden, weight, targets, n, v, d); \
    } \
    KERNEL(linear_cross_entropy_forward_##suffix, ScoreShape<T>::kThreads, CrossEntropyStorage<T>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) linear_cross_entropy_backward_##suffix( \
        T* gradient, const T* hidden, const T* weight, const int32_t* targets, const float* weights, const float* lse, \
        const float* total, const float* dloss, int first_row, int rows, int v, int d) { \
        cross_entropy_backward(gradient, hidden, weight, targets, weights, lse, total, dloss, first_row, rows, v, d); \
    } \
    KERNEL(linear_cross_entropy_backward_##suffix, ScoreShape<T>::kThreads, ScoreStorage<T>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) linear_argmax_tiles_##suffix( \
        float* logit, int32_t* word, const T* hidden, const T* weight, int n, int v, int d) { \
        argmax_tiles(logit, word, hidden, weight, n, v, d); \
    } \
    KERNEL(linear_argmax_tiles_##suffix, ScoreShape<T>::kThreads, ArgmaxStorage<T>)
CROSS_ENTROPY_KERNELS(f32, float)
CROSS_ENTROPY_KERNELS(bf16, bf16)
