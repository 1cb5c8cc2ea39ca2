// The sum of gradients that come one after the other, in an order that depends on their number alone.
#include "elem.cuh"

HOST_CONSTANT int kTreeAccumulateThreads = 256;
HOST_CONSTANT int kTreeAccumulateElements = 4;

// tree_accumulate_f32: adds a part to the sums of complete subtrees that wait, as to the digits of a binary counter.
// Math     : level by level, sum = waiting(level) + sum where the level's bit of index is set; where it is not, the sum
//            waits there and stops, but for the last part, which goes on
// Tensors  : sum, part f32 [n], which may be the same | waiting (new and before, which may be the same) f32 [levels, n]
//            index i32 [1], below count                     alignment: 16 B, index 4 B, any n
// Grid     : ceil(n / 1024) blocks                          Block: 256 threads, four elements a thread
// Smem     : none                                           Registers: <= 32, no spills
// Work     : up to levels·n flop, one on average; reads 4·n to 4·(levels + 1)·n, writes 8·n B      bound: memory
// Accuracy : f32, one rounding of each addition
// Ragged   : where n is no multiple of four, element by element
// Order    : deterministic: the tree of count parts
// Source   : -
extern "C" __global__ void __launch_bounds__(kTreeAccumulateThreads)
    tree_accumulate_f32(float* sum, float* waiting, const float* part, const float* waiting_before, const int* index, int count, int levels, int64_t n) {
    const int64_t first = (int64_t(blockIdx.x) * kTreeAccumulateThreads + threadIdx.x) * kTreeAccumulateElements;
    if (first >= n) return;
    const int columns = int(min(n - first, int64_t(kTreeAccumulateElements)));
    // Every level starts at a whole vector only then.
    const bool vectors = n % kTreeAccumulateElements == 0;
    const bool in_place = waiting == waiting_before;
    const int at = index[0];
    const bool is_last = at + 1 == count;
    float sums[kTreeAccumulateElements], held[kTreeAccumulateElements];
    load_columns(sums, part + first, 0, columns, vectors);
    bool has_come = true;
    for (int level = 0; level < levels && (has_come || !in_place); ++level) {
        const int64_t place = level * n + first;
        const bool adds = (at >> level & 1) != 0;
        const bool waits = has_come && !adds && !is_last;
        if ((has_come && adds) || (!waits && !in_place)) {
            load_columns(held, waiting_before + place, 0, columns, vectors);
            if (!in_place) store_columns(waiting + place, held, 0, columns, vectors);
        }
        if (has_come && adds) {
            UNROLL
            for (int i = 0; i < kTreeAccumulateElements; ++i) sums[i] = held[i] + sums[i];
        }
        if (waits) {
            store_columns(waiting + place, sums, 0, columns, vectors);
            has_come = false;
        }
    }
    store_columns(sum + first, sums, 0, columns, vectors);
}
KERNEL(tree_accumulate_f32, kTreeAccumulateThreads)
