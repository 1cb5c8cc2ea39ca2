// Sums of what ranks exchanged, in an order that depends on the number of parts alone.
#include "elem.cuh"

HOST_CONSTANT int kTreeSumThreads = 256;
// Levels of the tree: as many as 1024 parts make.
constexpr int kTreeSumLevels = 11;

// tree_sum_<f32|bf16>: y = Σ over parts of x in a balanced binary tree.
// Math     : y(i) = ((x(0,i) + x(1,i)) + (x(2,i) + x(3,i))) + …; a part without a neighbour goes up a level as it is
// Tensors  : y elem [n] | x elem [parts, n]           alignment: 16 B, any n
// Grid     : ceil(n / (256 · 16 B)) blocks            Block: 256 threads, one 16-byte vector a thread
// Smem     : none                                     Registers: a vector a level, no spills
// Work     : (parts − 1)·n flop; reads parts·n·e B, writes n·e B       bound: memory
// Accuracy : f32 sums, ⌈log₂ parts⌉ roundings deep, rounded once to the storage type
// Ragged   : where n is no whole number of vectors, element by element
// Order    : deterministic: the tree of parts
// Source   : -
template <class T>
DEVICE void tree_sum(T* y, const T* x, int parts, int64_t n) {
    const int64_t first = (int64_t(blockIdx.x) * kTreeSumThreads + threadIdx.x) * kVector<T>;
    if (first >= n) return;
    const int columns = int(min(n - first, int64_t(kVector<T>)));
    const bool vectors = n % kVector<T> == 0;
    // Sums of complete subtrees by their depth, as the digits of a binary counter.
    float sums[kTreeSumLevels][kVector<T>] = {};
    float sum[kVector<T>];
    for (int part = 0; part < parts; ++part) {
        load_columns(sum, x + part * n + first, 0, columns, vectors);
        bool carries = true;
        // Unrolled, so that every level has registers of its own.
        UNROLL
        for (int depth = 0; depth < kTreeSumLevels; ++depth) {
            if (!carries) continue;
            carries = (part >> depth & 1) != 0;
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) {
                if (carries)
                    sum[i] = sums[depth][i] + sum[i];
                else
                    sums[depth][i] = sum[i];
            }
        }
    }
    // What is left on the right is added first.
    bool is_first = true;
    UNROLL
    for (int depth = 0; depth < kTreeSumLevels; ++depth) {
        if ((parts >> depth & 1) == 0) continue;
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) sum[i] = is_first ? sums[depth][i] : sums[depth][i] + sum[i];
        is_first = false;
    }
    store_columns(y + first, sum, 0, columns, columns == kVector<T>);
}
extern "C" __global__ void __launch_bounds__(kTreeSumThreads) tree_sum_f32(float* y, const float* x, int parts, int64_t n) { tree_sum(y, x, parts, n); }
KERNEL(tree_sum_f32, kTreeSumThreads)
extern "C" __global__ void __launch_bounds__(kTreeSumThreads) tree_sum_bf16(bf16* y, const bf16* x, int parts, int64_t n) { tree_sum(y, x, parts, n); }
KERNEL(tree_sum_bf16, kTreeSumThreads)

// tree_sum_backward_<f32|bf16>: dx = dy for every part.
// Math     : dx(part, i) = dy(i)
// Tensors  : dx elem [parts, n] | dy elem [n]         alignment: elem, any n
// Grid     : (ceil(n / 256), parts) blocks            Block: 256 threads, one element a thread
// Smem     : none
// Work     : reads n·e B, writes parts·n·e B          bound: memory
// Accuracy : exact
// Ragged   : any n
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void tree_sum_backward(T* dx, const T* dy, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * kTreeSumThreads + threadIdx.x;
    if (i < n) dx[int64_t(blockIdx.y) * n + i] = dy[i];
}
extern "C" __global__ void __launch_bounds__(kTreeSumThreads) tree_sum_backward_f32(float* dx, const float* dy, int64_t n) { tree_sum_backward(dx, dy, n); }
KERNEL(tree_sum_backward_f32, kTreeSumThreads)
extern "C" __global__ void __launch_bounds__(kTreeSumThreads) tree_sum_backward_bf16(bf16* dx, const bf16* dy, int64_t n) { tree_sum_backward(dx, dy, n); }
KERNEL(tree_sum_backward_bf16, kTreeSumThreads)
