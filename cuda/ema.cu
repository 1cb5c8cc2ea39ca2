// The exponential moving average of parameters, over flat ranges of the arenas.
#include "elem.cuh"

HOST_CONSTANT int kEmaThreads = 256;
HOST_CONSTANT int kEmaElements = 4;

// ema_f32: moves the average of a range of parameters towards them.
// Math     : average = average + rest * (parameter - average); where scale is not finite nothing changes
// Tensors  : average (new and before, which may be the same), parameters f32 [n] | scale f32 [1]
//            alignment: 16 B, scale 4 B, any n
// Grid     : ceil(n / 1024) blocks                       Block: 256 threads, four elements a thread
// Smem     : none                                        Registers: <= 32, no spills
// Work     : 3·n flop; reads 8·n, writes 4·n B           bound: memory
// Accuracy : f32, one rounding of each operation
// Ragged   : the last four go element by element
// Order    : every element by one thread
// Source   : Polyak and Juditsky 1992; torch.optim.swa_utils.get_ema_multi_avg_fn
extern "C" __global__ void __launch_bounds__(kEmaThreads)
    ema_f32(float* average, const float* average_before, const float* parameters, const float* scale, float rest, int64_t n) {
    const int64_t start = (int64_t(blockIdx.x) * kEmaThreads + threadIdx.x) * kEmaElements;
    if (start >= n) return;
    const int count = int(min(n - start, int64_t(kEmaElements)));
    const bool whole = count == kEmaElements;
    float e[kEmaElements], p[kEmaElements];
    load_columns(e, average_before + start, 0, count, whole);
    load_columns(p, parameters + start, 0, count, whole);
    const bool moves = (__float_as_uint(scale[0]) & 0x7f800000u) != 0x7f800000u;
    UNROLL
    for (int i = 0; i < kEmaElements; ++i)
        if (moves) e[i] = e[i] + rest * (p[i] - e[i]);
    store_columns(average + start, e, 0, count, whole);
}
KERNEL(ema_f32, kEmaThreads)
