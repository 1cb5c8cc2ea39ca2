// Rows of a table by their ids, and the gradient of the table: it sorts the places by id, sums runs of equal ids in that
// order, and touches only the rows that were looked up. No float atomics, no search for every row of a large table, and an
// id that stands in thousands of places, as that of image tokens does, is shared among many warps.
#include "moves.cuh"

// embedding_forward_<f32|bf16>: y[n] = table[ids[n]], zeros for an id outside the table.
// Math     : y(n,c) = table(ids(n), c)
// Tensors  : table elem [V,C] | ids i32 [N] | y elem [N,C]                     alignment: 16 B
// Grid     : a thread for each 16-byte vector of y        Block: 256 threads
// Smem     : none
// Work     : no flop; reads N·C·e + N·4 B, writes N·C·e B                      bound: memory
// Accuracy : exact
// Ragged   : any N, C; rows that are not whole vectors go element by element
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

HOST_CONSTANT int kOrderThreads = 256;

struct OrderStorage {
    alignas(16) int32_t keys[kOrderThreads];
};

// embedding_backward_order_i32: the places sorted by id, equal ids by place; places outside the table last.
// Math     : key = id inside the table, else V; rank[n] = #{m : key[m] < key[n], or equal and m < n}; order[rank[n]] = n
// Tensors  : order, keys i32 [N], both sorted | ids i32 [N]                                           alignment: 4 B
// Grid     : ceil(N / 256)                                Block: 256 threads, a place each
// Smem     : sizeof(OrderStorage) = 1 KiB                 Registers: <= 32, no spills
// Work     : N² comparisons (67 M for N 8192, a few microseconds); reads N²/256·4 B of the cache     bound: instructions
// Accuracy : exact
// Ragged   : any N
// Order    : a rank is a count, whatever the order of counting
// Source   : rank sort, Knuth, The Art of Computer Programming 3, 5.2 algorithm C
extern "C" __global__ void __launch_bounds__(kOrderThreads)
    embedding_backward_order_i32(int32_t* order, int32_t* keys, const int32_t* ids, int count, int vocabulary) {
    SHARED_STORAGE(OrderStorage, storage);
    const auto key_of = [=](int64_t place) {
        const int id = ids[place];
        return id >= 0 && id < vocabulary ? id : vocabulary;
    };
    const int64_t place = int64_t(blockIdx.x) * kOrderThreads + threadIdx.x;
    const int own = place < count ? key_of(place) : 0;
    int rank = 0;
    for (int64_t first = 0; first < count; first += kOrderThreads) {
        const int64_t other = first + threadIdx.x;
        storage.keys[threadIdx.x] = other < count ? key_of(other) : INT32_MAX;  // past the end: after every place
        if (!PLANTED_BUG("embedding: no barrier before the keys are compared")) {
            __syncthreads();  // the whole tile of keys is there
        }
        const int64_t earlier = place - first;  // keys of the tile before this one also count when equal
        ROLLED
        for (int j = 0; j < kOrderThreads; j += 4) {
            const uint4 four = load_16_bytes(storage.keys + j);
            rank += int(four.x) < own + (j < earlier);
            rank += int(four.y) < own + (j + 1 < earlier);
            rank += int(four.z) < own + (j + 2 < earlier);
            rank += int(four.w) < own + (j + 3 < earlier);
        }
        if (!PLANTED_BUG("embedding: no barrier before the next keys are written")) {
            __syncthreads();  // nobody reads this tile any more
        }
    }
    if (place >= count) return;
    order[rank] = int(place);
    keys[rank] = own;
}
KERNEL(embedding_backward_order_i32, kOrderThreads, OrderStorage)

constexpr int kSumThreads = 128;
HOST_CONSTANT int kSumWarps = kSumThreads / kWarpLanes;
HOST_CONSTANT int kChunkPlaces = kWarpLanes;

// embedding_backward_rows_<f32|bf16>: sums of 32 sorted places at a time.
// Math     : dtable[v] += sum of dy[n] over the chunk's places with ids[n] = v; a run of equal ids that began in an earlier
//            chunk leaves its part in heads[chunk] instead
// Tensors  : dtable f32 [V,C] | heads f32 [ceil(N/32),C] | order, keys i32 [N] | dy elem [N,C]        alignment: 16 B
// Grid     : ceil(ceil(N/32)·tiles / 4), tiles of 32 vectors        Block: 128 threads = 4 warps, a chunk and a tile each
// Smem     : none                                         Registers: <= 64, no spills
// Work     : N·C flop; reads N·C·e, reads and writes 4·C B for every row looked up and chunk          bound: memory
// Accuracy : f32 sums of at most 32, then of chunks
// Ragged   : any N; C that is not a multiple of 16 bytes goes element by element
// Order    : deterministic (by id, then by place; a row of dtable has one writer)
// Source   : -
template <class T>
DEVICE void embedding_backward_rows(float* dtable, float* heads, const int32_t* order, const int32_t* keys, const T* dy,
                                    int count, int vocabulary, int columns, int tiles) {
    const bool vectors = columns % kVector<T> == 0;
    const int64_t item = int64_t(blockIdx.x) * kSumWarps + int(threadIdx.x) / kWarpLanes;
    const int64_t chunk = item / tiles, first = chunk * kChunkPlaces;
    if (first >= count) return;  // a whole warp
    const int lane = int(threadIdx.x) % kWarpLanes;
    const int column = (int(item - chunk * tiles) * kWarpLanes + lane) * kVector<T>;
    const int here = int(min(count - first, int64_t(kChunkPlaces)));
    const int own_place = lane < here ? order[first + lane] : 0;
    const int own_key = lane < here ? keys[first + lane] : vocabulary;
    float sum[kVector<T>];
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) sum[i] = 0.0f;
    int run = __shfl_sync(kAllLanes, own_key, 0);
    bool is_head = first > 0 && keys[first - 1] == run;
    for (int j = 0; j <= here; ++j) {
        const int key = j < here ? __shfl_sync(kAllLanes, own_key, j) : vocabulary;
        const int place = __shfl_sync(kAllLanes, own_place, j % kWarpLanes);
        if (key != run) {
            float* to = is_head ? heads + chunk * columns : dtable + int64_t(run) * columns;
            if (!is_head) {
                float there[kVector<T>];
                load_floats(there, to, column, columns, vectors);
                UNROLL
                for (int i = 0; i < kVector<T>; ++i) sum[i] = there[i] + sum[i];
            }
            store_floats(to, sum, column, columns, vectors);
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) sum[i] = 0.0f;
            is_head = false;
            run = key;
        }
        if (run == vocabulary) return;  // the rest is outside the table: the same for the whole warp
        float part[kVector<T>];
        load_columns(part, dy + int64_t(place) * columns, column, columns, vectors);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) sum[i] += part[i];
    }
}

// embedding_backward_heads_f32: adds the parts of runs that are longer than a chunk.
// Math     : dtable[v] += heads[k] + heads[k+1] + ... for the chunks k into which a run of v goes on
// Tensors  : dtable f32 [V,C] | heads f32 [ceil(N/32),C] | keys i32 [N]                               alignment: 16 B
// Grid     : ceil(ceil(N/32)·tiles / 4), tiles of 128 columns       Block: 128 threads = 4 warps, a chunk and a tile each
// Smem     : none                                         Registers: <= 40, no spills
// Work     : at most N/32·C flop; reads at most N/32·4·C B                                            bound: latency
// Accuracy : f32
// Ragged   : as embedding_backward_rows
// Order    : deterministic (by chunk; the warp of a run's first head adds them all)
// Source   : -
extern "C" __global__ void __launch_bounds__(kSumThreads)
    embedding_backward_heads_f32(float* dtable, const float* heads, const int32_t* keys, int count, int vocabulary,
                                 int columns, int tiles) {
    constexpr int kColumns = kVector<float>;
    const bool vectors = columns % kColumns == 0;
    const int64_t item = int64_t(blockIdx.x) * kSumWarps + int(threadIdx.x) / kWarpLanes;
    const int64_t chunk = item / tiles, first = chunk * kChunkPlaces;
    if (chunk == 0 || first >= count) return;
    const int run = keys[first];
    if (run == vocabulary || keys[first - 1] != run) return;
    const int64_t previous = first - kChunkPlaces;
    if (previous > 0 && keys[previous] == run && keys[previous - 1] == run) return;  // not the run's first head
    const int lane = int(threadIdx.x) % kWarpLanes;
    const int column = (int(item - chunk * tiles) * kWarpLanes + lane) * kColumns;
    float sum[kColumns];
    load_floats(sum, dtable + int64_t(run) * columns, column, columns, vectors);
    for (int64_t k = chunk; k * kChunkPlaces < count && keys[k * kChunkPlaces] == run; ++k) {
        float part[kColumns];
        load_floats(part, heads + k * columns, column, columns, vectors);
        UNROLL
        for (int i = 0; i < kColumns; ++i) sum[i] += part[i];
    }
    store_floats(dtable + int64_t(run) * columns, sum, column, columns, vectors);
}
KERNEL(embedding_backward_heads_f32, kSumThreads)

#define EMBEDDING_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) embedding_forward_##suffix( \
        T* y, const T* table, const int32_t* ids, int64_t rows, int columns, int vocabulary) { \
        embedding_forward(y, table, ids, rows, columns, vocabulary); \
    } \
    KERNEL(embedding_forward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kSumThreads) embedding_backward_rows_##suffix( \
        float* dtable, float* heads, const int32_t* order, const int32_t* keys, const T* dy, int count, int vocabulary, \
        int columns, int tiles) { \
        embedding_backward_rows(dtable, heads, order, keys, dy, count, vocabulary, columns, tiles); \
    } \
    KERNEL(embedding_backward_rows_##suffix, kSumThreads)
EMBEDDING_KERNELS(f32, float)
EMBEDDING_KERNELS(bf16, bf16)
