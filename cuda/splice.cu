// Image tokens put in the place of placeholder tokens, and both gradients. A warp takes one row; where it needs to know how
// many placeholders stand before a place it counts them, 32 ids at a time.
#include "elem.cuh"

HOST_CONSTANT int kSpliceWarps = 8;
constexpr int kSpliceThreads = kSpliceWarps * kWarpLanes;

// The number of placeholders before `place`. All lanes take part and receive it.
DEVICE int placeholders_before(const int32_t* ids, int place, int image_id) {
    const int lane = int(threadIdx.x) % kWarpLanes;
    int count = 0;
    for (int first = 0; first < place; first += kWarpLanes) {
        const bool is_placeholder = first + lane < place && ids[first + lane] == image_id;
        count += __popc(__ballot_sync(kAllLanes, is_placeholder));
    }
    return count;
}

// The place of placeholder number `rank`, or -1 when there are fewer. All lanes take part and receive it.
DEVICE int place_of(const int32_t* ids, int tokens, int rank, int image_id) {
    const int lane = int(threadIdx.x) % kWarpLanes;
    for (int first = 0; first < tokens; first += kWarpLanes) {
        const bool is_placeholder = first + lane < tokens && ids[first + lane] == image_id;
        uint32_t found = __ballot_sync(kAllLanes, is_placeholder);
        const int here = __popc(found);
        if (rank < here) {
            for (; rank > 0; --rank) found &= found - 1;
            return first + __ffs(int(found)) - 1;
        }
        rank -= here;
    }
    return -1;
}

// to = from + addend, a row by a warp; null counts as zeros.
template <class T>
DEVICE void splice_row(T* to, const T* from, const T* addend, int columns) {
    const bool vectors = columns % kVector<T> == 0;
    for (int column = int(threadIdx.x) % kWarpLanes * kVector<T>; column < columns; column += kWarpLanes * kVector<T>) {
        float values[kVector<T>] = {}, more[kVector<T>] = {};
        if (from != nullptr) load_columns(values, from, column, columns, vectors);
        if (addend != nullptr) load_columns(more, addend, column, columns, vectors);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) values[i] += more[i];
        store_columns(to, values, column, columns, vectors);
    }
}

// splice_forward_<f32|bf16>: y = text, with image token k in the place of placeholder k of its batch row.
// Math     : y(b,t) = image(b,k) where ids(b,t) is the k-th placeholder and k < Ti, text(b,t) elsewhere
// Tensors  : text, y elem [B,T,D], y may be text | ids i32 [B,T] | image elem [B,Ti,D]       alignment: 16 B
// Grid     : ceil(B·T / 8) blocks                   Block: 256 threads = 8 warps, one row each
// Smem     : none
// Work     : reads and writes B·T·D·e B; a placeholder's warp also reads the ids before it, T·4 B at most, from cache
//            bound: memory
// Accuracy : exact
// Ragged   : any B, T, D
// Order    : every row by one warp
// Source   : -
template <class T>
DEVICE void splice_forward(T* y, const T* text, const int32_t* ids, const T* image, int64_t rows, int tokens, int columns,
                           int image_tokens, int image_id) {
    const int64_t row = int64_t(blockIdx.x) * kSpliceWarps + threadIdx.x / kWarpLanes;
    if (row >= rows) return;
    const int64_t batch = row / tokens;
    const int place = int(row % tokens);
    const int32_t* line = ids + batch * tokens;
    const T* from = text + row * columns;
    if (line[place] == image_id) {
        const int rank = placeholders_before(line, place, image_id);
        if (rank < image_tokens) from = image + (batch * image_tokens + rank) * columns;
    }
    splice_row<T>(y + row * columns, from, nullptr, columns);
}

// splice_backward_text_<f32|bf16>: dtext = dy, zeros where an image token took the place.
// Math     : dtext(b,t) = 0 where ids(b,t) is the k-th placeholder and k < Ti, dy(b,t) elsewhere
// Tensors  : dy, dtext elem [B,T,D], dtext may be dy | ids i32 [B,T]           alignment: 16 B
// Grid     : as splice_forward                      Block: 256 threads
// Smem     : none
// Work     : reads and writes B·T·D·e B             bound: memory
// Accuracy : exact
// Ragged   : any B, T, D
// Order    : every row by one warp
// Source   : -
template <class T>
DEVICE void splice_backward_text(T* dtext, const T* dy, const int32_t* ids, int64_t rows, int tokens, int columns,
                                 int image_tokens, int image_id) {
    const int64_t row = int64_t(blockIdx.x) * kSpliceWarps + threadIdx.x / kWarpLanes;
    if (row >= rows) return;
    const int place = int(row % tokens);
    const int32_t* line = ids + row / tokens * tokens;
    const T* from = dy + row * columns;
    if (line[place] == image_id && placeholders_before(line, place, image_id) < image_tokens) from = nullptr;
    splice_row<T>(dtext + row * columns, from, nullptr, columns);
}

// splice_backward_image_<f32|bf16>: dimage[b,k] = dy at the place of placeholder k, zeros without one, plus a gradient.
// Math     : dimage(b,k) = addend(b,k) + dy(b, place of k)
// Tensors  : dy elem [B,T,D] | ids i32 [B,T] | addend, dimage elem [B,Ti,D], addend null or dimage itself    alignment: 16 B
// Grid     : ceil(B·Ti / 8) blocks                  Block: 256 threads = 8 warps, one row each
// Smem     : none
// Work     : reads B·Ti·D·e B, with an addend twice that, writes B·Ti·D·e B; each warp reads T ids at most, from cache
//            bound: memory
// Accuracy : one rounding
// Ragged   : any B, T, Ti, D
// Order    : every row by one warp
// Source   : -
template <class T>
DEVICE void splice_backward_image(T* dimage, const T* dy, const int32_t* ids, const T* addend, int64_t rows, int tokens,
                                  int columns, int image_tokens, int image_id) {
    const int64_t row = int64_t(blockIdx.x) * kSpliceWarps + threadIdx.x / kWarpLanes;
    if (row >= rows) return;
    const int64_t batch = row / image_tokens;
    const int place = place_of(ids + batch * tokens, tokens, int(row % image_tokens), image_id);
    const T* from = place < 0 ? nullptr : dy + (batch * tokens + place) * columns;
    splice_row(dimage + row * columns, from, addend == nullptr ? nullptr : addend + row * columns, columns);
}

#define SPLICE_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kSpliceThreads) splice_forward_##suffix( \
        T* y, const T* text, const int32_t* ids, const T* image, int64_t rows, int tokens, int columns, int image_tokens, \
        int image_id) { \
        splice_forward(y, text, ids, image, rows, tokens, columns, image_tokens, image_id); \
    } \
    KERNEL(splice_forward_##suffix, kSpliceThreads) \
    extern "C" __global__ void __launch_bounds__(kSpliceThreads) splice_backward_text_##suffix( \
        T* dtext, const T* dy, const int32_t* ids, int64_t rows, int tokens, int columns, int image_tokens, int image_id) { \
        splice_backward_text(dtext, dy, ids, rows, tokens, columns, image_tokens, image_id); \
    } \
    KERNEL(splice_backward_text_##suffix, kSpliceThreads) \
    extern "C" __global__ void __launch_bounds__(kSpliceThreads) splice_backward_image_##suffix( \
        T* dimage, const T* dy, const int32_t* ids, const T* addend, int64_t rows, int tokens, int columns, \
        int image_tokens, int image_id) { \
        splice_backward_image(dimage, dy, ids, addend, rows, tokens, columns, image_tokens, image_id); \
    } \
    KERNEL(splice_backward_image_##suffix, kSpliceThreads)
SPLICE_KERNELS(f32, float)
SPLICE_KERNELS(bf16, bf16)
