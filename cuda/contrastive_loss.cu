// Contrastive losses between N images u and N texts v [N,E]: InfoNCE and sigmoid, in blocks of rows of S = e^a·u·vᵀ + b.
//
// Forward makes S once and keeps log-sums of rows and columns (InfoNCE) or one sum (sigmoid). Backward makes each row block of S
// once more, writes its gradient e^a·G to the workspace, and multiplies it with v for ∂u and, transposed, with u for ∂v, which
// grows from block to block in f32 (linear_backward_weight of linear.cu). That is four products of 2·N²·E flop in all, and
// memory for one block of at most a few thousand rows, never for N².
//
// Where some rows are text without an image, `pairs` i32 [1] says how many rows M, the first ones, are pairs: the loss is that
// of the first M of both sides, and the gradients of all other rows are 0. Without it (null) all N are. Tiles beyond M are
// computed like the others and left out of every sum: what a grid covers is fixed when a program is made, M is not.
//
// Where images or texts of a batch are equal, `images` and `texts` i32 [N] number those that are: a score off the diagonal
// whose rows agree in either number, and not by 0, is masked. It is −∞ to the log-sums, adds nothing to the sigmoid sum, and
// has no gradient. Numbers are compared in the tile, so that no mask is stored. Without them (null) nothing is masked.
//
// Over several ranks u and v are gathered from all of them, `share` rows from each (share < N), and `pairs` i32 [ranks + 1] says
// how many of each rank's rows are pairs, the first ones, and then how many there are in all. A rank computes its own rows of
// S, and of Sᵀ for the columns, and leaves out the scores of rows that are no pairs. With share = N all is one rank's.
#include "activation.cuh"
#include "scores.cuh"

// How many of N rows are pairs.
DEVICE int pairs_of(const int* pairs, int n) { return pairs ? min(max(pairs[0], 0), n) : n; }

// Which of N rows are pairs, of which each rank has `share`.
struct Pairs {
    const int* counts;
    int n, share;
    DEVICE_MEMBER bool is_of_ranks() const { return share < n; }
    // Beyond this row there is no pair.
    DEVICE_MEMBER int end() const { return is_of_ranks() ? n : pairs_of(counts, n); }
    DEVICE_MEMBER int count() const { return is_of_ranks() ? counts[n / share] : end(); }
    DEVICE_MEMBER bool takes_part(int row) const { return !is_of_ranks() || row % share < counts[row / share]; }
};

// Which images and which texts are equal.
struct Identities {
    const int* images;
    const int* texts;
};
// One row's numbers. Most rows of most batches are like no other, and need no comparisons.
struct Identity {
    int image, text;
    DEVICE_MEMBER bool is_shared() const { return (image | text) != 0; }
};
DEVICE Identity identity_of(Identities all, int row) {
    if (!all.images) return {0, 0};
    return {all.images[row], all.texts[row]};
}
// Whether rows of these numbers are equal in one of them; for rows that are not the same one.
DEVICE bool are_equal(Identity a, Identity b) { return (a.image != 0 && a.image == b.image) || (a.text != 0 && a.text == b.text); }

// Sets the masked scores of a tile to −∞. A pass of its own, over registers, because the sums read a tile twice.
template <class Shape>
DEVICE void mask_equal(Accumulators<Shape>& scores, Identities identities, ProductPlace place, int n, int first_row, int rows) {
    if (!identities.images) return;
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int row = place.m + warp_row<Shape>() + i * kFragmentRows + accumulator_row(2 * half);
            const Identity own = row < rows ? identity_of(identities, first_row + row) : Identity{0, 0};
            if (!own.is_shared()) continue;
            UNROLL
            for (int j = 0; j < Shape::kFragmentsN; ++j) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    const int column = place.n + warp_column<Shape>() + j * kFragmentColumns + accumulator_column(e);
                    const bool is_other = column < n && column != first_row + row;
                    if (is_other && are_equal(own, identity_of(identities, column))) scores[i][j][2 * half + e] = -INFINITY;
                }
            }
        }
    }
}

// Sets the scores of columns that are no pairs of their rank to −∞.
template <class Shape>
DEVICE void mask_absent(Accumulators<Shape>& scores, Pairs pairs, ProductPlace place) {
    if (!pairs.is_of_ranks()) return;
    UNROLL
    for (int j = 0; j < Shape::kFragmentsN; ++j) {
        UNROLL
        for (int e = 0; e < 2; ++e) {
            const int column = place.n + warp_column<Shape>() + j * kFragmentColumns + accumulator_column(e);
            if (column >= pairs.n || pairs.takes_part(column)) continue;
            UNROLL
            for (int i = 0; i < Shape::kFragmentsM; ++i) scores[i][j][e] = scores[i][j][2 + e] = -INFINITY;
        }
    }
}

// The rows [first_row, first_row + rows) of S as operands.
template <class T>
DEVICE RowsOperand<T> rows_of(const T* x, int e, int first_row, int rows) {
    return {matrix(x + int64_t(first_row) * e, rows, e)};
}
// A tile of u·vᵀ in the accumulators.
template <class T>
DEVICE void similarities(Accumulators<ScoreShape<T>>& acc, ScoreStorage<T>& storage, const T* u, const T* v, ProductPlace place,
                         int n, int e, int first_row, int rows) {
    using Shape = ScoreShape<T>;
    product_sums<Shape>(acc, storage, rows_of(u, e, first_row, rows), rows_of(v, e, 0, n), place, 0,
                        (e + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{});
}

template <class T>
struct InfoNceStorage {
    ScoreStorage<T> product;
    RowLogSums<ScoreShape<T>> rows;
    ColumnLogSums<ScoreShape<T>> columns;
};

// contrastive_loss_info_nce_forward: log-sums of the rows and columns of each tile of a row block of S, and the diagonal of S.
// Math     : S = e^a·u·vᵀ, −∞ where masked     row_part(i, tile) = log-sum of S(i, tile's columns)     column_part(tile, j) likewise
// Tensors  : u, v elem [N,E] | log_scale f32 [1] | pairs i32 [1], [ranks + 1] or null | images, texts i32 [N] or null
//            row_part f32 [rows, ⌈N/128⌉, 2] | column_part f32 [⌈rows/128⌉, N, 2]
//            own f32 [N], of which those of the block are written
// Grid     : tiles of the row block, 128×128      Block: bf16 128 threads, f32 256
// Smem     : bf16 72 KB, f32 78 KB
// Work     : 2·rows·N·E flop and two exponentials an element; reads (rows + N)·E·e     bound: tensor cores from E of 128 on
// Accuracy : products as linear_forward; log-sums in f32, relative to the largest score
// Ragged   : any N, E
// Order    : deterministic: columns of a lane ascending, lanes, warps; tiles by the kernels below
// Source   : Radford et al. 2021; the merge of log-sums is Milakov and Gimelshein 2018
template <class T>
DEVICE void info_nce_forward(float* row_part, float* column_part, float* own, const T* u, const T* v, const float* log_scale,
                             Pairs pairs, Identities identities, int n, int e, int first_row, int rows) {
    using Shape = ScoreShape<T>;
    SHARED_STORAGE(InfoNceStorage<T>, storage);
    const ProductPlace place = product_place<Shape>(rows, n);
    Accumulators<Shape> acc = {};
    similarities(acc, storage.product, u, v, place, n, e, first_row, rows);
    const float scale = expf(log_scale[0]);
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int j = 0; j < Shape::kFragmentsN; ++j) {
            UNROLL
            for (int k = 0; k < 4; ++k) {
                acc[i][j][k] *= scale;
                const int row = first_row + place.m + warp_row<Shape>() + i * kFragmentRows + accumulator_row(k);
                const int column = place.n + warp_column<Shape>() + j * kFragmentColumns + accumulator_column(k);
                if (row == column && row < first_row + rows) own[row] = acc[i][j][k];
            }
        }
    }
    mask_equal<Shape>(acc, identities, place, n, first_row, rows);
    mask_absent<Shape>(acc, pairs, place);
    const int m = pairs.end();
    row_log_sums(storage.rows, acc, m - place.n);
    column_log_sums(storage.columns, acc, min(rows, m - first_row) - place.m);
    if (!PLANTED_BUG("info_nce_forward: no barrier before the warps' log-sums are merged")) {
        __syncthreads();  // every warp's log-sums are there
    }
    const int tiles = (n + Shape::kTileN - 1) / Shape::kTileN;
    for (int i = threadIdx.x; i < Shape::kTileM; i += Shape::kThreads) {
        if (place.m + i < rows)
            store_log_sum(row_part, int64_t(place.m + i) * tiles + place.n / Shape::kTileN, storage.rows.merged(i));
    }
    for (int j = threadIdx.x; j < Shape::kTileN; j += Shape::kThreads) {
        if (place.n + j < n)
            store_log_sum(column_part, int64_t(place.m / Shape::kTileM) * n + place.n + j, storage.columns.merged(j));
    }
}

// Where a block adds up kValues numbers of its threads, behind the product.
template <class T, int kValues>
struct SumStorage {
    ScoreStorage<T> product;
    float partial[kValues][ScoreShape<T>::kThreads / kWarpLanes];
};

// contrastive_loss_sigmoid_forward: the sum of the losses of each tile of a row block.
// Math     : S = e^a·u·vᵀ + b     part(tile) += Σ softplus(S) − Σ over the diagonal of S, but for masked scores
// Tensors  : u, v elem [N,E] | log_scale, bias f32 [1] | pairs i32 [1], [ranks + 1] or null | images, texts i32 [N] or null
//            part f32 [blocks], added to unless is_first
// Grid     : tiles of the row block      Block: as contrastive_loss_info_nce_forward
// Smem     : bf16 68 KB, f32 72 KB
// Work     : 2·rows·N·E flop, one exponential and one logarithm an element; reads (rows + N)·E·e     bound: tensor cores
// Accuracy : f32 sums of at most 128 terms a thread, then a tree
// Ragged   : any N, E
// Order    : deterministic: a thread's elements, lanes, warps; row blocks ascending
// Source   : Zhai et al. 2023
template <class T>
DEVICE void sigmoid_forward(float* part, const T* u, const T* v, const float* log_scale, const float* bias, Pairs pairs,
                            Identities identities, int n, int e, int first_row, int rows, int is_first) {
    using Shape = ScoreShape<T>;
    using Storage = SumStorage<T, 1>;
    SHARED_STORAGE(Storage, storage);
    const ProductPlace place = product_place<Shape>(rows, n);
    Accumulators<Shape> acc = {};
    similarities(acc, storage.product, u, v, place, n, e, first_row, rows);
    // Before the scale, which may have underflowed to 0: 0·−∞ is no number.
    mask_equal<Shape>(acc, identities, place, n, first_row, rows);
    mask_absent<Shape>(acc, pairs, place);
    const float scale = expf(log_scale[0]), shift = bias[0];
    const int m = pairs.end(), last_row = min(rows, m - first_row);
    float sum[1] = {};
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int j = 0; j < Shape::kFragmentsN; ++j) {
            UNROLL
            for (int k = 0; k < 4; ++k) {
                const int row = place.m + warp_row<Shape>() + i * kFragmentRows + accumulator_row(k);
                const int column = place.n + warp_column<Shape>() + j * kFragmentColumns + accumulator_column(k);
                const float score = scale * acc[i][j][k] + shift;
                const float loss = fmaxf(score, 0.0f) + log1pf(expf(-fabsf(score)));
                const bool takes_part = row < last_row && column < m && acc[i][j][k] != -INFINITY;
                if (takes_part && pairs.takes_part(first_row + row)) sum[0] += first_row + row == column ? loss - score : loss;
            }
        }
    }
    block_sum(sum, storage.partial);
    if (threadIdx.x == 0) part[blockIdx.x] = is_first ? sum[0] : part[blockIdx.x] + sum[0];
}

// contrastive_loss_row_sums: r(i) from the log-sums of its tiles.
// Math     : r(i) = log Σ over tiles of e^part(i, tile); 0 for rows that are no pairs
// Tensors  : part f32 [rows, tiles, 2] | pairs i32 [1] or null | out f32 [rows]
// Grid     : ⌈rows/8⌉ blocks      Block: 256 threads, one row a warp
// Smem     : none
// Work     : two exponentials a tile; reads rows·tiles·8 B     bound: memory
// Accuracy : f32
// Ragged   : any
// Order    : deterministic: a lane's tiles ascending, then lanes
// Source   : -
extern "C" __global__ void __launch_bounds__(kReduceThreads) contrastive_loss_row_sums_f32(float* out, const float* part,
                                                                                          const int* pairs, int n, int first_row,
                                                                                          int rows, int tiles) {
    const int row = int(blockIdx.x) * kReduceWarps + int(threadIdx.x) / kWarpLanes;
    if (row >= rows) return;
    const LogSum all = merge_row(part, row, tiles);
    if (threadIdx.x % kWarpLanes == 0) out[row] = first_row + row < pairs_of(pairs, n) ? finish(all) : 0.0f;
}
KERNEL(contrastive_loss_row_sums_f32, kReduceThreads)

// contrastive_loss_column_sums: the log-sums of columns so far, and c(j) after the last row block.
// Math     : state(j) = merge of state(j) (unless is_first) and part(tile, j) over tiles; out(j) = log of it if is_last,
//            0 for columns that are no pairs
// Tensors  : part f32 [tiles, N, 2] | state f32 [N, 2] | pairs i32 [1] or null | out f32 [N]
// Grid     : ⌈N/256⌉ blocks      Block: 256 threads, one column each
// Smem     : none
// Work     : two exponentials a tile; reads tiles·N·8 B     bound: memory
// Accuracy : f32
// Ragged   : any N
// Order    : deterministic, tiles ascending
// Source   : -
extern "C" __global__ void __launch_bounds__(kReduceThreads) contrastive_loss_column_sums_f32(float* out, float* state,
                                                                                             const float* part, const int* pairs,
                                                                                             int n, int tiles, int is_first,
                                                                                             int is_last) {
    const int column = int(blockIdx.x) * kReduceThreads + int(threadIdx.x);
    if (column >= n) return;
    LogSum all = is_first ? no_log_sum() : load_log_sum(state, column);
    for (int tile = 0; tile < tiles; ++tile) all = merge(all, load_log_sum(part, int64_t(tile) * n + column));
    store_log_sum(state, column, all);
    if (is_last) out[column] = column < pairs_of(pairs, n) ? finish(all) : 0.0f;
}
KERNEL(contrastive_loss_column_sums_f32, kReduceThreads)

struct TotalStorage {
    float partial[1][kTotalWarps];
};

// contrastive_loss_info_nce_total: the loss.
// Math     : L = Σ over i < M of ((r(i) − own(i)) + (c(i) − own(i))) / 2K; 0 without pairs
// Tensors  : row, column, own f32 [N] | pairs i32 [1], M, or null | all_pairs i32 [1], K, or null for M | loss f32 [1]
// Grid     : 1 block      Block: 1024 threads
// Smem     : 128 B
// Work     : 4·N flop; reads 12·N B     bound: launch
// Accuracy : f32 sums
// Ragged   : any N
// Order    : deterministic: a thread's pairs ascending, lanes, warps
// Source   : -
extern "C" __global__ void __launch_bounds__(kTotalThreads) contrastive_loss_info_nce_total_f32(float* loss, const float* row,
                                                                                               const float* column,
                                                                                               const float* own,
                                                                                               const int* pairs,
                                                                                               const int* all_pairs, int n) {
    SHARED_STORAGE(TotalStorage, storage);
    const int m = pairs_of(pairs, n);
    float sum[1] = {};
    for (int i = threadIdx.x; i < m; i += kTotalThreads) sum[0] += (row[i] - own[i]) + (column[i] - own[i]);
    block_sum(sum, storage.partial);
    if (threadIdx.x == 0) loss[0] = sum[0] / (2.0f * float(max(all_pairs ? all_pairs[0] : m, 1)));
}
KERNEL(contrastive_loss_info_nce_total_f32, kTotalThreads, TotalStorage)

// contrastive_loss_total: a scalar from the blocks' parts.
// Math     : out = Σ part / divisor, or / max(M, 1) where there is a number of pairs
// Tensors  : part f32 [count] | pairs i32 [1] or null | out f32 [1]
// Grid     : 1 block      Block: 1024 threads
// Smem     : 128 B
// Work     : count flop; reads count·4 B     bound: launch
// Accuracy : f32 sums
// Ragged   : any count
// Order    : deterministic: a thread's parts ascending, lanes, warps
// Source   : -
extern "C" __global__ void __launch_bounds__(kTotalThreads) contrastive_loss_total_f32(float* out, const float* part,
                                                                                      const int* pairs, int count, float divisor) {
    SHARED_STORAGE(TotalStorage, storage);
    float sum[1] = {};
    for (int i = threadIdx.x; i < count; i += kTotalThreads) sum[0] += part[i];
    block_sum(sum, storage.partial);
    if (threadIdx.x == 0) out[0] = sum[0] / (pairs ? float(max(pairs[0], 1)) : divisor);
}
KERNEL(contrastive_loss_total_f32, kTotalThreads, TotalStorage)

// contrastive_loss_<info_nce|sigmoid>_backward: the gradient of a row block of u·vᵀ, and its share of those of the scale and the bias.
// Math     : G = ∂L/∂S     InfoNCE (e^(S − r) + e^(S − c) − 2δ)·dL/2M     sigmoid (σ(S) − δ)·dL/M, 0 outside the pairs
//            and where masked
//            gradient = e^a·G     scale_part(tile) += Σ G·e^a·u·vᵀ     bias_part(tile) += Σ G
// Tensors  : u, v elem [N,E] | log_scale, bias, dloss f32 [1] | row, column f32 [N]: InfoNCE, else null; bias: sigmoid, else null
//            pairs i32 [1], [ranks + 1] or null | images, texts i32 [N] or null
//            gradient elem [rows,N] | scale_part, bias_part f32 [blocks], added to unless is_first; bias_part may be null
// Grid     : tiles of the row block      Block: as contrastive_loss_info_nce_forward
// Smem     : bf16 68 KB, f32 72 KB
// Work     : 2·rows·N·E flop, two exponentials an element; reads (rows + N)·E·e, writes rows·N·e     bound: tensor cores from E of
//            about 256 on, the block's traffic below
// Accuracy : S has the bits of the forward pass; G in f32, rounded once to elem
// Ragged   : any N, E
// Order    : deterministic, as the forward pass
// Source   : Radford et al. 2021; Zhai et al. 2023
template <class T, bool kIsSigmoid>
DEVICE void contrastive_backward(T* gradient, float* scale_part, float* bias_part, const T* u, const T* v, const float* log_scale,
                                 const float* bias, const float* row_sums, const float* column_sums, const float* dloss,
                                 Pairs pairs, Identities identities, int n, int e, int first_row, int rows, int is_first) {
    using Shape = ScoreShape<T>;
    using Storage = SumStorage<T, 2>;
    SHARED_STORAGE(Storage, storage);
    constexpr int kWidth = kVector<T>;
    const float scale = expf(log_scale[0]), shift = kIsSigmoid ? bias[0] : 0.0f;
    const int m = pairs.end(), count = max(pairs.count(), 1);
    const float factor = dloss[0] / (kIsSigmoid ? float(count) : 2.0f * float(count));
    const bool vectors = has_vectors(gradient, n);
    float sums[2] = {};  // of the scale and of the bias
    product<kWidth, Shape>(
        storage.product, rows_of(u, e, first_row, rows), rows_of(v, e, 0, n), product_place<Shape>(rows, n), rows, n, 0,
        (e + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{}, [&](int row, int column, float (&values)[kWidth]) {
            const float row_sum = kIsSigmoid ? 0.0f : row_sums[first_row + row];
            const Identity own = identity_of(identities, first_row + row);
            UNROLL
            for (int i = 0; i < kWidth; ++i) {
                const float dot = scale * values[i];
                const bool is_own = first_row + row == column + i;
                values[i] = 0.0f;
                if (column + i >= m || first_row + row >= m) continue;
                if (!pairs.takes_part(first_row + row) || !pairs.takes_part(column + i)) continue;
                if (own.is_shared() && !is_own && are_equal(own, identity_of(identities, column + i))) continue;
                float change;
                if constexpr (kIsSigmoid)
                    change = factor * (sigmoid<float>(dot + shift) - (is_own ? 1.0f : 0.0f));
                else
                    change = factor * ((expf(dot - row_sum) - (is_own ? 1.0f : 0.0f)) +
                                       (expf(dot - column_sums[column + i]) - (is_own ? 1.0f : 0.0f)));
                sums[0] += change * dot;
                sums[1] += change;
                values[i] = scale * change;
            }
            store_columns(gradient + int64_t(row) * n, values, column, n, vectors);
        });
    block_sum(sums, storage.partial);
    if (threadIdx.x != 0) return;
    scale_part[blockIdx.x] = is_first ? sums[0] : scale_part[blockIdx.x] + sums[0];
    if (bias_part) bias_part[blockIdx.x] = is_first ? sums[1] : bias_part[blockIdx.x] + sums[1];
}

#define CONTRASTIVE_SCORES(T, suffix) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) contrastive_loss_info_nce_forward##suffix( \
        float* row_part, float* column_part, float* own, const T* u, const T* v, const float* log_scale, const int* pairs, \
        const int* images, const int* texts, int n, int share, int e, int first_row, int rows) { \
        info_nce_forward(row_part, column_part, own, u, v, log_scale, Pairs{pairs, n, share}, Identities{images, texts}, n, e, first_row, rows); \
    } \
    KERNEL(contrastive_loss_info_nce_forward##suffix, ScoreShape<T>::kThreads, InfoNceStorage<T>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) contrastive_loss_sigmoid_forward##suffix( \
        float* part, const T* u, const T* v, const float* log_scale, const float* bias, const int* pairs, const int* images, \
        const int* texts, int n, int share, int e, int first_row, int rows, int is_first) { \
        sigmoid_forward(part, u, v, log_scale, bias, Pairs{pairs, n, share}, Identities{images, texts}, n, e, first_row, rows, is_first); \
    } \
    KERNEL(contrastive_loss_sigmoid_forward##suffix, ScoreShape<T>::kThreads, SumStorage<T, 1>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) contrastive_loss_info_nce_backward##suffix( \
        T* gradient, float* scale_part, const T* u, const T* v, const float* log_scale, const float* row, const float* column, \
        const float* dloss, const int* pairs, const int* images, const int* texts, int n, int share, int e, int first_row, \
        int rows, int is_first) { \
        contrastive_backward<T, false>(gradient, scale_part, nullptr, u, v, log_scale, nullptr, row, column, dloss, Pairs{pairs, n, share}, \
                                       Identities{images, texts}, n, e, first_row, rows, is_first); \
    } \
    KERNEL(contrastive_loss_info_nce_backward##suffix, ScoreShape<T>::kThreads, SumStorage<T, 2>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ScoreShape<T>) contrastive_loss_sigmoid_backward##suffix( \
        T* gradient, float* scale_part, float* bias_part, const T* u, const T* v, const float* log_scale, const float* bias, \
        const float* dloss, const int* pairs, const int* images, const int* texts, int n, int share, int e, int first_row, \
        int rows, int is_first) { \
        contrastive_backward<T, true>(gradient, scale_part, bias_part, u, v, log_scale, bias, nullptr, nullptr, dloss, Pairs{pairs, n, share}, \
                                      Identities{images, texts}, n, e, first_row, rows, is_first); \
    } \
    KERNEL(contrastive_loss_sigmoid_backward##suffix, ScoreShape<T>::kThreads, SumStorage<T, 2>)

CONTRASTIVE_SCORES(float, _f32)
CONTRASTIVE_SCORES(bf16, _bf16)

// contrastive_loss_product: parts of ∂u of a row block, whose long sum over N is split over blocks.
// Math     : part(split) = gradient(·, split's columns)·v(split's rows, ·)
// Tensors  : gradient elem [rows,N] | v elem [N,E] | part f32 [splits,rows,E]
// Grid     : (tiles of [rows,E], 1, splits)      Block: as linear_backward_input
// Smem     : as linear_backward_input
// Work     : 2·rows·N·E flop; reads rows·N·e and N·E·e     bound: tensor cores
// Accuracy : as linear_forward; parts in f32
// Ragged   : any N, E
// Order    : deterministic, columns ascending; parts by contrastive_loss_finish
// Source   : -
#define CONTRASTIVE_PRODUCT(Size, suffix, T) \
    extern "C" __global__ void PRODUCT_BOUNDS(ProductShapes<T>::Size) contrastive_loss_product##suffix( \
        float* part, const T* gradient, const T* v, int rows, int n, int e, int steps) { \
        using Shape = ProductShapes<T>::Size; \
        using Storage = ProductStorage<Shape, RowsOperand<T>, ColumnsOperand<T>>; \
        SHARED_STORAGE(Storage, storage); \
        product_part(storage, part, RowsOperand<T>{matrix(gradient, rows, n)}, ColumnsOperand<T>{matrix(v, n, e)}, \
                     product_place<Shape>(rows, e), int64_t(rows) * e, rows, e, n, steps); \
    } \
    KERNEL(contrastive_loss_product##suffix, ProductShapes<T>::Size::kThreads, \
           ProductStorage<ProductShapes<T>::Size, RowsOperand<T>, ColumnsOperand<T>>)

CONTRASTIVE_PRODUCT(Large, _f32, float)
CONTRASTIVE_PRODUCT(Large, _bf16, bf16)
CONTRASTIVE_PRODUCT(Small, _small_f32, float)
CONTRASTIVE_PRODUCT(Small, _small_bf16, bf16)

// contrastive_loss_finish: features' gradients from their parts.
// Math     : out(i) = Σ over p of part(p·count + i)
// Tensors  : part f32 [parts, count] | out elem [count]
// Grid     : ⌈count / (256 · 16 bytes)⌉ blocks      Block: 256 threads, 16 bytes of out each
// Smem     : none
// Work     : parts·count flop; reads parts·count·4 B, writes count·e     bound: memory
// Accuracy : f32 sums, rounded once
// Ragged   : any count
// Order    : deterministic, parts ascending
// Source   : -
extern "C" __global__ void __launch_bounds__(kReduceThreads) contrastive_loss_finish_f32(float* out, const float* part,
                                                                                        int64_t count, int parts) {
    sum_parts(out, part, count, count, parts);
}
KERNEL(contrastive_loss_finish_f32, kReduceThreads)
extern "C" __global__ void __launch_bounds__(kReduceThreads) contrastive_loss_finish_bf16(bf16* out, const float* part,
                                                                                         int64_t count, int parts) {
    sum_parts(out, part, count, count, parts);
}
KERNEL(contrastive_loss_finish_bf16, kReduceThreads)
