// LayerNorm and RMSNorm, with or without a residual added before, and their gradients. Every kernel comes in five widths:
// `_narrow` gives a row to one warp (C <= 512), `_middle` to two (C <= 1024), the plain one to four (C <= 2048), `_broad` to
// eight (C <= 4096), `_wide` to sixteen (C <= 8192).
#include "partials.cuh"
#include "rows.cuh"

template <int kWarps>
struct NormForwardStorage {
    float partial[2][1][kWarps];  // in turn for one sum and the next
};

// Adds a row to one in registers, rounded as it will be stored.
template <class T, int kWarps>
DEVICE void add_residual(RowRegs<T>& regs, const T* residual, int columns) {
    RowRegs<T> addend;
    load_row<kWarps>(addend, residual, columns);
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        if (!is_inside<T, kWarps>(j, columns)) continue;
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) regs[j][i] = to_float(from_float<T>(regs[j][i] + addend[j][i]));
    }
}

// A thread's part of the sum of squared distances from `mean`.
template <class T, int kWarps>
DEVICE float squares_around(const RowRegs<T>& regs, float mean, int columns) {
    const bool vectors = has_whole_vectors<T>(columns);
    float squares = 0.0f;
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        if (!is_inside<T, kWarps>(j, columns)) continue;
        // Past the end a row holds zeros, which lie `mean` away from the mean; whole vectors need not ask for each element.
        const int inside = columns - row_column<T, kWarps>(j);
        if (vectors) {
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) squares += (regs[j][i] - mean) * (regs[j][i] - mean);
        } else {
            UNROLL
            for (int i = 0; i < kVector<T>; ++i)
                if (i < inside) squares += (regs[j][i] - mean) * (regs[j][i] - mean);
        }
    }
    return squares;
}

// <layer|rms>_norm_forward<|_narrow|_middle|_broad|_wide>_<f32|bf16>: normalises every row and keeps its statistics.
// Math     : s = x + residual; y = (s - mean(s)) * rstd * weight + bias        rstd = 1/sqrt(var + eps), var biased
//            RMSNorm: mean = 0, no bias
// Tensors  : x, residual, sum, y elem [N,C] | weight, bias f32 [C] | statistics f32 [N,2] = (mean, rstd)
//            residual and sum null without a residual; sum may be x or residual, y may be x       alignment: 16 B
// Grid     : ceil(N / 8) blocks that take rows in turn, up to N where those would not fill a chip; narrow a fourth of that
// Block    : 128 threads = one row, narrow 4 rows; middle 64 threads, broad 256, wide 512
// Smem     : 32 B, narrow 8 B, wide 128 B       Registers: row, weight and bias, 48 a thread; <= 112, no spills
// Work     : 8·N·C flop; reads N·C·e + 8·blocks·C B, writes N·C·e + 8·N B; with a residual N·C·e B more either way
//            bound: memory. Weight and bias stay in registers from row to row: read for every row, they would be twice the
//            bytes of the row itself in bf16, and the second-level cache would bind
// Accuracy : sums in f32, variance in two passes over the registers; y is made from the sum as it is stored, so that
//            backward differentiates what was computed
// Ragged   : any N; C that is not a multiple of 16 bytes goes element by element
// Order    : deterministic (fixed reduction tree, no float atomics)
// Source   : Ba et al. 2016, eq. 3-4; Zhang and Sennrich 2019, eq. 4
template <class T, bool kIsLayer, int kWarps>
DEVICE void norm_forward(T* sum, T* y, float* statistics, const T* x, const T* residual, const float* __restrict__ weight,
                         const float* __restrict__ bias, float epsilon, int64_t rows, int columns) {
    using Group = RowGroup<kWarps>;
    SHARED_STORAGE(NormForwardStorage<kWarps>, storage);
    const bool vectors = has_whole_vectors<T>(columns);
    RowRegs<T> scale, shift;
    load_row_floats<T, kWarps>(scale, weight, columns);
    if constexpr (kIsLayer) load_row_floats<T, kWarps>(shift, bias, columns);
    int turn = 0;
    const int64_t step = int64_t(gridDim.x) * Group::kGroups;
    for (int64_t row = int64_t(blockIdx.x) * Group::kGroups + int(threadIdx.x) / Group::kThreads; row < rows; row += step) {
        const int64_t start = row * columns;
        RowRegs<T> regs;
        load_row<kWarps>(regs, x + start, columns);
        if (residual != nullptr) {
            add_residual<T, kWarps>(regs, residual + start, columns);
            store_row<kWarps>(sum + start, regs, columns);
        }
        // Two arrays in turn, for a row's two sums or for RMSNorm's one and the next row's: who is ahead writes the one while
        // others still read the other.
        float mean = 0.0f;
        if constexpr (kIsLayer) {
            float total[1] = {0.0f};
            UNROLL
            for (int j = 0; j < kRowRegVectors<T>; ++j) {
                if (!is_inside<T, kWarps>(j, columns)) continue;
                UNROLL
                for (int i = 0; i < kVector<T>; ++i) total[0] += regs[j][i];
            }
            group_sum<kWarps>(total, storage.partial[turn]);
            turn ^= 1;
            mean = total[0] / float(columns);
        }
        float squares[1] = {squares_around<T, kWarps>(regs, mean, columns)};
        group_sum<kWarps>(squares, storage.partial[PLANTED_BUG("norm: the same partial sums for every sum") ? 0 : turn]);
        turn ^= 1;
        const float rstd = 1.0f / sqrtf(squares[0] / float(columns) + epsilon);
        if (int(threadIdx.x) % Group::kThreads == 0) {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = rstd;
        }
        UNROLL
        for (int j = 0; j < kRowRegVectors<T>; ++j) {
            if (!is_inside<T, kWarps>(j, columns)) continue;
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) {
                regs[j][i] = (regs[j][i] - mean) * rstd * scale[j][i];
                if constexpr (kIsLayer) regs[j][i] += shift[j][i];
            }
            store_columns(y + start, regs[j], row_column<T, kWarps>(j), columns, vectors);
        }
    }
}

template <int kWarps, bool kIsLayer>
struct NormBackwardStorage {
    float partial[2][kIsLayer ? 2 : 1][kWarps];  // in turn for one row and the next
};
// The groups of a narrow block share one partial sum.
template <bool kIsLayer>
struct NormBackwardStorage<1, kIsLayer> {
    float partial[2][kIsLayer ? 2 : 1][1];
    alignas(16) float sums[RowGroup<1>::kGroups][RowGroup<1>::kColumns];
};

// Writes a thread's sums over its group's rows to the block's partial sums, `partial` [C].
template <class T, int kWarps, bool kIsLayer>
DEVICE void store_partial(NormBackwardStorage<kWarps, kIsLayer>& storage, float* partial, const RowRegs<T>& sums, int columns) {
    const bool vectors = has_whole_vectors<T>(columns);
    if constexpr (kWarps > 1) {
        UNROLL
        for (int j = 0; j < kRowRegVectors<T>; ++j)
            if (is_inside<T, kWarps>(j, columns)) store_floats(partial, sums[j], row_column<T, kWarps>(j), columns, vectors);
    } else {
        using Group = RowGroup<1>;
        const int team = int(threadIdx.x) / Group::kThreads;
        UNROLL
        for (int j = 0; j < kRowRegVectors<T>; ++j)
            store_floats(storage.sums[team], sums[j], row_column<T, 1>(j), Group::kColumns, true);
        if (!PLANTED_BUG("norm: no barrier before the teams' sums are added")) {
            __syncthreads();  // every group has written its sums
        }
        for (int column = int(threadIdx.x); column < columns; column += Group::kBlockThreads) {
            float total = 0.0f;
            UNROLL
            for (int t = 0; t < Group::kGroups; ++t) total += storage.sums[t][column];
            partial[column] = total;
        }
        if (!PLANTED_BUG("norm: no barrier before the sums are written again")) {
            __syncthreads();  // everyone has read them, and the next sums may take their place
        }
    }
}

// <layer|rms>_norm_backward<|_narrow|_middle|_broad|_wide>_<f32|bf16>: dx, and each block's part of dweight and dbias.
// Math     : h = (x - mean) * rstd, g = dy * weight; dx = rstd * (g - mean(g) - h * mean(g*h)) + addend
//            dweight = sum over rows of dy * h, dbias = sum over rows of dy; RMSNorm: without mean(g) and dbias
// Tensors  : dx, dy, x, addend elem [N,C], addend null or dx where nothing else is added to | weight f32 [C] |
//            statistics f32 [N,2] | partials f32 [blocks, 2 or 1, C], null where no parameter is owed   alignment: 16 B
// Grid     : persistent: at most 528 blocks (middle 1056, broad 264, wide 132) that take rows in turn, by shape alone
// Block    : as forward
// Smem     : 64 B, narrow 8 KiB, wide 256 B     Registers: x, dy, weight and two sums, 80 a thread; <= 128, no spills
// Work     : 14·N·C flop; reads 2·N·C·e, writes N·C·e B, and 8·blocks·C B of partial sums              bound: memory
// Accuracy : sums in f32, of at most ceil(N / blocks) rows at a time
// Ragged   : any N; C that is not a multiple of 16 bytes goes element by element
// Order    : deterministic (rows by block number, fixed reduction tree, no float atomics)
// Source   : Ba et al. 2016, eq. 3-4, differentiated; Zhang and Sennrich 2019, eq. 4, differentiated
template <class T, bool kIsLayer, int kWarps>
DEVICE void norm_backward(T* dx, float* partials, const T* __restrict__ dy, const T* __restrict__ x,
                          const float* __restrict__ weight, const float* __restrict__ statistics, const T* addend,
                          int64_t rows, int columns) {
    using Group = RowGroup<kWarps>;
    using Storage = NormBackwardStorage<kWarps, kIsLayer>;
    SHARED_STORAGE(Storage, storage);
    const bool vectors = has_whole_vectors<T>(columns);
    RowRegs<T> scale, dweight, dbias;
    load_row_floats<T, kWarps>(scale, weight, columns);
    UNROLL
    for (int j = 0; j < kRowRegVectors<T>; ++j) {
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) dweight[j][i] = dbias[j][i] = 0.0f;
    }
    int turn = 0;
    const int64_t step = int64_t(gridDim.x) * Group::kGroups;
    for (int64_t row = int64_t(blockIdx.x) * Group::kGroups + int(threadIdx.x) / Group::kThreads; row < rows; row += step) {
        const int64_t start = row * columns;
        const float mean = statistics[2 * row], rstd = statistics[2 * row + 1];
        RowRegs<T> h, g;
        load_row<kWarps>(h, x + start, columns);
        load_row<kWarps>(g, dy + start, columns);
        float sums[kIsLayer ? 2 : 1] = {};  // of g·h, and of g
        UNROLL
        for (int j = 0; j < kRowRegVectors<T>; ++j) {
            if (!is_inside<T, kWarps>(j, columns)) continue;
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) {
                h[j][i] = (h[j][i] - mean) * rstd;
                dweight[j][i] += g[j][i] * h[j][i];
                if constexpr (kIsLayer) dbias[j][i] += g[j][i];
                g[j][i] *= scale[j][i];
                sums[0] += g[j][i] * h[j][i];
                if constexpr (kIsLayer) sums[1] += g[j][i];
            }
        }
        // Two arrays in turn: who is ahead writes the next row's sums while others still read this row's.
        group_sum<kWarps>(sums, storage.partial[PLANTED_BUG("norm: the same partial sums for every row") ? 0 : turn]);
        turn ^= 1;
        const float mean_gh = sums[0] / float(columns);
        float mean_g = 0.0f;
        if constexpr (kIsLayer) mean_g = sums[1] / float(columns);
        UNROLL
        for (int j = 0; j < kRowRegVectors<T>; ++j) {
            const int column = row_column<T, kWarps>(j);
            if (!is_inside<T, kWarps>(j, columns)) continue;
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) g[j][i] = rstd * (g[j][i] - mean_g - h[j][i] * mean_gh);
            if (addend != nullptr) {
                float before[kVector<T>];
                load_columns(before, addend + start, column, columns, vectors);
                UNROLL
                for (int i = 0; i < kVector<T>; ++i) g[j][i] += before[i];
            }
            store_columns(dx + start, g[j], column, columns, vectors);
        }
    }
    if (partials == nullptr) return;
    float* own = partials + int64_t(blockIdx.x) * (kIsLayer ? 2 : 1) * columns;
    store_partial<T, kWarps>(storage, own, dweight, columns);
    if constexpr (kIsLayer) store_partial<T, kWarps>(storage, own + columns, dbias, columns);
}

#define NORM_KERNELS(norm, is_layer, width, warps, T, dtype)                                                              \
    extern "C" __global__ void ROW_BOUNDS(warps) norm##_forward##width##_##dtype(                                         \
        T* sum, T* y, float* statistics, const T* x, const T* residual, const float* weight, const float* bias,           \
        float epsilon, int64_t rows, int columns) {                                                                       \
        norm_forward<T, is_layer, warps>(sum, y, statistics, x, residual, weight, bias, epsilon, rows, columns);          \
    }                                                                                                                     \
    KERNEL(norm##_forward##width##_##dtype, RowGroup<warps>::kBlockThreads, NormForwardStorage<warps>)                     \
    extern "C" __global__ void ROW_BOUNDS(warps) norm##_backward##width##_##dtype(                                        \
        T* dx, float* partials, const T* dy, const T* x, const float* weight, const float* statistics, const T* addend,   \
        int64_t rows, int columns) {                                                                                      \
        norm_backward<T, is_layer, warps>(dx, partials, dy, x, weight, statistics, addend, rows, columns);                \
    }                                                                                                                     \
    KERNEL(norm##_backward##width##_##dtype, RowGroup<warps>::kBlockThreads, NormBackwardStorage<warps, is_layer>)
#define NORM_WIDTHS(norm, is_layer, T, dtype)                      \
    NORM_KERNELS(norm, is_layer, _narrow, kNarrowWarps, T, dtype)  \
    NORM_KERNELS(norm, is_layer, _middle, kMiddleWarps, T, dtype)  \
    NORM_KERNELS(norm, is_layer, , kUsualWarps, T, dtype)          \
    NORM_KERNELS(norm, is_layer, _broad, kBroadWarps, T, dtype)    \
    NORM_KERNELS(norm, is_layer, _wide, kWideWarps, T, dtype)

NORM_WIDTHS(layer_norm, true, float, f32)
NORM_WIDTHS(layer_norm, true, bf16, bf16)
NORM_WIDTHS(rms_norm, false, float, f32)
NORM_WIDTHS(rms_norm, false, bf16, bf16)

// norm_backward_parameters_f32: adds up what the blocks of norm_backward left.
// Math     : dweight[c] = sum over blocks of partials[b,0,c], dbias likewise of partials[b,1,c]
// Tensors  : dweight, dbias f32 [C], dbias null for RMSNorm | partials f32 [blocks, 2 or 1, C]       alignment: 4 B
// Grid     : ceil(C / 32), 2 for dbias           Block: 256 threads = 8 groups of blocks for 32 columns
// Smem     : 1 KiB                               Registers: <= 32, no spills
// Work     : 2·blocks·C flop; reads 8·blocks·C B, writes 8·C B                                       bound: memory
// Accuracy : f32
// Ragged   : any C, any number of blocks
// Order    : deterministic (by block number)
// Source   : -
extern "C" __global__ void __launch_bounds__(kPartialThreads)
    norm_backward_parameters_f32(float* dweight, float* dbias, const float* partials, int blocks, int columns) {
    SHARED_STORAGE(PartialSums, storage);
    const int64_t pitch = int64_t(dbias != nullptr ? 2 : 1) * columns;
    const bool is_bias = blockIdx.y == 1;
    add_partials(storage, is_bias ? dbias : dweight, partials + (is_bias ? columns : 0), blocks, pitch, columns);
}
KERNEL(norm_backward_parameters_f32, kPartialThreads, PartialSums)
