// Several losses made one.
#include "kernel.cuh"

// weighted_sum_f32: y = weight · x + addend, one term of a weighted sum of scalars.
// Math     : y = weight·x + addend
// Tensors  : y, x f32 [1] | addend f32 [1] or null, y itself from the second term on
// Grid     : 1 block                                Block: 32 threads, of which the first works
// Smem     : none
// Work     : 2 flop, 12 B                           bound: launch
// Accuracy : two roundings a term
// Ragged   : -
// Order    : terms in the order of the launches
// Source   : -
extern "C" __global__ void __launch_bounds__(32) weighted_sum_f32(float* y, const float* x, const float* addend, float weight) {
    if (threadIdx.x == 0) *y = weight * *x + (addend != nullptr ? *addend : 0.0f);
}
KERNEL(weighted_sum_f32, 32)
