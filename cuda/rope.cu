// Rotary position embedding of packed query and key rows.
#include "elem.cuh"

constexpr int kRopeThreads = 256;
HOST_CONSTANT int kRopeRows = 8;
HOST_CONSTANT int kRopePairs = 128;  // half the largest head dim

// Cosines and sines of the block's rows.
struct RopeTable {
    alignas(16) float cosine[kRopeRows][kRopePairs];
    alignas(16) float sine[kRopeRows][kRopePairs];
};

// Where a token's position comes from.
struct RopePositions {
    const int32_t* given;  // [N, axes], or null
    int64_t tokens;        // rows after which positions begin again
    int before;            // rows before the grid, which do not turn
    int height;            // of the grid, whose places are centres; 0: they are counted
    int width;             // of the grid; 0: one axis
};

// What the pairs of axis `axis` of row `row` multiply their frequency with.
DEVICE double rope_position(const RopePositions& positions, int64_t row, int axes, int axis) {
    if (positions.given != nullptr) return double(positions.given[row * axes + axis]);
    const int64_t token = row % positions.tokens;
    if (positions.width == 0) return double(token);
    if (positions.height == 0) return double(axis == 0 ? token / positions.width : token % positions.width);
    if (token < positions.before) return 0.0;
    constexpr double kTurn = 6.283185307179586;  // 2π
    const int64_t patch = token - positions.before;
    const int64_t place = axis == 0 ? patch / positions.width : patch % positions.width;
    return kTurn * (double(2 * place + 1) / double(axis == 0 ? positions.height : positions.width) - 1.0);
}

// Turns kCount pairs: `first` and `second` point to their halves, in the input and in the output.
template <int kCount, class T>
DEVICE void turn_pairs(T* y_first, T* y_second, const T* x_first, const T* x_second, const float* cosine, const float* sine) {
    float first[kCount], second[kCount];
    load_elements(first, x_first);
    load_elements(second, x_second);
    UNROLL
    for (int i = 0; i < kCount; ++i) {
        const float a = first[i], b = second[i];
        first[i] = a * cosine[i] - b * sine[i];
        second[i] = b * cosine[i] + a * sine[i];
    }
    store_elements(y_first, first);
    store_elements(y_second, second);
}

// Turns the heads of the block's rows, kCount pairs at a time.
template <int kCount, class T>
DEVICE void turn_rows(const RopeTable& table, T* y, const T* x, int here, int heads, int pairs, int64_t pitch) {
    const int across = pairs / kCount;
    for (int i = int(threadIdx.x); i < here * heads * across; i += kRopeThreads) {
        const int pair = i % across * kCount, head = i / across % heads, row = i / across / heads;
        const int64_t at = row * pitch + int64_t(head) * 2 * pairs + pair;
        turn_pairs<kCount>(y + at, y + at + pairs, x + at, x + at + pairs, &table.cosine[row][pair], &table.sine[row][pair]);
    }
}

// rope_<f32|bf16>: turns the queries and keys of packed rows by their positions, or back; values are copied.
// Math     : phi = position * theta^(-i/(D/2/axes)) for pair i of its axis;
//            y[i] = x[i] cos phi - x[i+D/2] sin phi, y[i+D/2] = x[i+D/2] cos phi + x[i] sin phi; backward by -phi;
//            position = 2 pi ((2 place + 1) / count - 1) on a centred grid, and 0 before it
// Tensors  : y, x elem [N, (turning+rest)·D], y may be x | given i32 [N, axes] or null                alignment: 16 B
// Grid     : ceil(N / 8) blocks                           Block: 256 threads, eight rows
// Smem     : sizeof(RopeTable) = 8 KiB                    Registers: <= 64, no spills
// Work     : 3·N·turning·D flop; reads and writes N·turning·D·e B, and the rest where y is not x     bound: memory
// Accuracy : the angle in turns, in f64, reduced to half a turn before it becomes f32: positions of any size keep their
//            digits; then sincospi (1 ulp)
// Ragged   : any N; D a multiple of 8 up to 256; bf16 heads of odd multiples of 8 take 8-byte accesses
// Order    : every element by one thread, read before it is written
// Source   : Su et al. 2021, section 3.2.2, in the rotate-half order of GPT-NeoX; Siméoni et al. 2025, section 3.2
template <class T>
DEVICE void rope(T* y, const T* x, const RopePositions& positions, int axes, double log2_theta, float sign, int turning,
                 int rest, int dim, int64_t rows) {
    SHARED_STORAGE(RopeTable, table);
    const int64_t first = int64_t(blockIdx.x) * kRopeRows;
    if (first >= rows) return;  // the whole block
    const int here = int(min(rows - first, int64_t(kRopeRows))), pairs = dim / 2, of_axis = pairs / axes;
    for (int i = int(threadIdx.x); i < here * pairs; i += kRopeThreads) {
        const int row = i / pairs, pair = i % pairs;
        constexpr double kLog2OfTurn = 2.6514961294723187;  // log2(2π)
        const double frequency = exp2(-log2_theta * double(pair % of_axis) / double(of_axis) - kLog2OfTurn);
        const double turns = rope_position(positions, first + row, axes, pair / of_axis) * frequency;
        float sine, cosine;
        sincospif(2.0f * float(turns - rint(turns)), &sine, &cosine);
        table.cosine[row][pair] = cosine;
        table.sine[row][pair] = sign * sine;
    }
    if (!PLANTED_BUG("rope: no barrier before the table is read")) {
        __syncthreads();  // the table is complete
    }
    const int64_t pitch = int64_t(turning + rest) * dim;
    const T* from = x + first * pitch;
    T* to = y + first * pitch;
    if (pairs % kVector<T> == 0)
        turn_rows<kVector<T>>(table, to, from, here, turning, pairs, pitch);
    else
        turn_rows<4>(table, to, from, here, turning, pairs, pitch);
    if (y == x) return;
    const int across = rest * dim / kVector<T>;
    for (int i = int(threadIdx.x); i < here * across; i += kRopeThreads) {
        const int64_t at = i / across * pitch + int64_t(turning) * dim + i % across * kVector<T>;
        store_16_bytes(to + at, load_16_bytes(from + at));
    }
}
#define ROPE_KERNEL(T, dtype)                                                                                             \
    extern "C" __global__ void __launch_bounds__(kRopeThreads)                                                            \
        rope_##dtype(T* y, const T* x, const int32_t* given, int64_t tokens, int before, int grid_height, int grid_width, \
                     int axes, int64_t log2_theta_bits, float sign, int turning, int rest, int dim, int64_t rows) {       \
        const RopePositions positions{given, tokens, before, grid_height, grid_width};                                    \
        rope(y, x, positions, axes, __longlong_as_double(log2_theta_bits), sign, turning, rest, dim, rows);               \
    }                                                                                                                     \
    KERNEL(rope_##dtype, kRopeThreads, RopeTable)
ROPE_KERNEL(float, f32)
ROPE_KERNEL(bf16, bf16)
