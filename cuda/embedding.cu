// Rows of a table by their ids, and the gradient of the table.
#include "moves.cuh"

// embedding_forward_<f32|bf16>: y[n] = table[ids[n]], zeros for an id outside the table.
// Math     : y(n,c) = table(ids(n), c)
// Tensors  : table elem [V,C] | ids i32 [N] | y elem [N,C]                     alignment: 16 B
// Grid     : a thread for each 16-byte vector of y        Block: 256 threads
// Smem     : none
// Work     : no flop; reads N·C·e + N·4 B, writes N·C·e B                      bound: memory
// Accuracy : exact
// Ragged   : any N, C; rows that are no whole vectors go element by element
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void embedding_forward(T* y, const T* table, const int32_t* ids, int64_t rows, int columns, int vocabulary) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const int id = ids[at.row];
    const bool is_known = id >= 0 && id < vocabulary;
    move_or_clear(y + at.row * columns, is_known ? table + int64_t(id) * columns : nullptr, at, columns);
}
// embedding_start_f32: what the table's gradient is before the rows of a step are added: zeros, or a gradient that is there.
// Math     : dtable = addend or 0
// Tensors  : dtable, addend f32 [V·C]; addend null for zeros, dtable itself where it lies in place (then nothing is done)
// Grid     : a thread for each 16 bytes             Block: 256 threads
// Smem     : none
// Work     : writes V·C·4 B                         bound: memory
// Accuracy : exact
// Ragged   : any length
// Order    : every element by one thread
// Source   : -
extern "C" __global__ void __launch_bounds__(kMoveThreads) embedding_start_f32(float* dtable, const float* addend, int64_t n) {
    if (addend == dtable) return;
    const int64_t first = (int64_t(blockIdx.x) * kMoveThreads + threadIdx.x) * 4;
    if (first >= n) return;
    const int count = int(min(n - first, int64_t(4)));
    float values[4] = {};
    if (addend != nullptr) load_columns(values, addend + first, 0, count, count == 4);
    store_columns(dtable + first, values, 0, count, count == 4);
}
KERNEL(embedding_start_f32, kMoveThreads)

constexpr int kGatherThreads = 128;

// Columns column..column + 3 of a row, those past the end as zero; `vectors` says that rows hold whole fours.
DEVICE void load_four(float (&values)[4], const float* row, int column, int columns, bool vectors CALLER) {
    load_floats(values, row, column, columns, vectors FOR_CALLER);
}
DEVICE void load_four(float (&values)[4], const bf16* row, int column, int columns, bool vectors CALLER) {
    if (vectors && column < columns) {
        const uint2 raw = load_8_bytes(row + column FOR_CALLER);
        values[0] = low_to_float(raw.x);
        values[1] = high_to_float(raw.x);
        values[2] = low_to_float(raw.y);
        values[3] = high_to_float(raw.y);
        return;
    }
    UNROLL
    for (int i = 0; i < 4; ++i) values[i] = column + i < columns ? to_float(row[column + i]) : 0.0f;
}

// embedding_backward_<f32|bf16>: adds the rows of dy to the rows of the table that they came from. A block stands for one
// place n. It looks whether the id of n occurred before; if so, that place's block does the work. If not, it walks all later
// places with the same id and adds their rows in order, so that no two blocks write the same row and no atomics are needed.
// Math     : dtable(v,c) += Σ over n with ids(n) = v of dy(n,c)
// Tensors  : dy elem [N,C] | ids i32 [N] | dtable f32 [V,C], started by embedding_start      alignment: 16 B
// Grid     : (N, ceil(C / 512))                     Block: 128 threads, four columns each
// Smem     : none
// Work     : N·C flop; reads N·C·e B, reads and writes the touched rows of dtable, and compares N² ids a column block, 32 at
//            a time from cache: at N = 8192 that is 2 M loads of 128 B, less than the rows themselves from C = 512 on
//            bound: memory up to N of about 20,000, comparisons beyond
// Accuracy : f32 sums
// Ragged   : any N, C
// Order    : deterministic, places ascending
// Source   : -
template <class T>
DEVICE void embedding_backward(float* dtable, const T* dy, const int32_t* ids, int places, int columns, int vocabulary) {
    const int place = int(blockIdx.x), lane = int(threadIdx.x) % kWarpLanes;
    const int id = ids[place];
    if (id < 0 || id >= vocabulary) return;
    for (int first = 0; first < place; first += kWarpLanes) {
        const bool is_same = first + lane < place && ids[first + lane] == id;
        if (__any_sync(kAllLanes, is_same)) return;  // every warp of the block finds the same and leaves
    }
    const int column = (int(blockIdx.y) * kGatherThreads + int(threadIdx.x)) * 4;
    const bool vectors = columns % 4 == 0;
    float sums[4] = {};
    for (int first = place / kWarpLanes * kWarpLanes; first < places; first += kWarpLanes) {
        const int other = first + lane;
        uint32_t matches = __ballot_sync(kAllLanes, other >= place && other < places && ids[other] == id);
        while (matches != 0) {
            const T* row = dy + int64_t(first + __ffs(int(matches)) - 1) * columns;
            matches &= matches - 1;
            float values[4];
            load_four(values, row, column, columns, vectors);
            UNROLL
            for (int i = 0; i < 4; ++i) sums[i] += values[i];
        }
    }
    if (column >= columns) return;
    float* to = dtable + int64_t(id) * columns;
    float before[4];
    load_floats(before, to, column, columns, vectors);
    UNROLL
    for (int i = 0; i < 4; ++i) sums[i] += before[i];
    store_floats(to, sums, column, columns, vectors);
}


#define EMBEDDING_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) embedding_forward_##suffix( \
        T* y, const T* table, const int32_t* ids, int64_t rows, int columns, int vocabulary) { \
        embedding_forward(y, table, ids, rows, columns, vocabulary); \
    } \
    KERNEL(embedding_forward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kGatherThreads) embedding_backward_##suffix( \
        float* dtable, const T* dy, const int32_t* ids, int places, int columns, int vocabulary) { \
        embedding_backward(dtable, dy, ids, places, columns, vocabulary); \
    } \
    KERNEL(embedding_backward_##suffix, kGatherThreads)
EMBEDDING_KERNELS(f32, float)
EMBEDDING_KERNELS(bf16, bf16)
