// The gated activation of decoders and its gradient.
#include "elem.cuh"

constexpr int kSwigluThreads = 256;

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The rows of y that block b of a tile kernel works on, in vectors: calls work(row, column) for each of its own.
template <class T, class Work>
DEVICE void for_each_vector(int64_t rows, int width, int rows_per_block, Work work) {
    const int64_t first = int64_t(blockIdx.x) * rows_per_block;
    const int here = int(min(rows - first, int64_t(rows_per_block)));
    const int across = (width + kVector<T> - 1) / kVector<T>;
    for (int i = int(threadIdx.x); i < here * across; i += kSwigluThreads)
        work(first + i / across, i % across * kVector<T>);
}

// swiglu_forward_<f32|bf16>: y = silu(gate) * up.
// Math     : y = gate * s * up                            s = 1 / (1 + exp(-gate))
// Tensors  : y elem [N,F] | gate_up elem [N,2F], the gate in the first F columns                     alignment: 16 B
// Grid     : ceil(N / rows a block), about 1024 vectors of 16 B a block          Block: 256 threads
// Smem     : none                                         Registers: <= 48, no spills
// Work     : 16·N·F flop; reads 2·N·F·e, writes N·F·e B   bound: memory
// Accuracy : f32 with expf (2 ulp), one rounding
// Ragged   : F that is not a multiple of 16 bytes goes element by element
// Order    : every element by one thread
// Source   : Shazeer 2020, eq. 6 (SwiGLU)
template <class T>
DEVICE void swiglu_forward(T* y, const T* gate_up, int64_t rows, int width, int rows_per_block) {
    const bool vectors = width % kVector<T> == 0;
    for_each_vector<T>(rows, width, rows_per_block, [&](int64_t row, int column) {
        const T* from = gate_up + row * 2 * width;
        float gate[kVector<T>], up[kVector<T>];
        load_columns(gate, from, column, width, vectors);
        load_columns(up, from + width, column, width, vectors);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) gate[i] = gate[i] * sigmoid(gate[i]) * up[i];
        store_columns(y + row * width, gate, column, width, vectors);
    });
}
extern "C" __global__ void __launch_bounds__(kSwigluThreads)
    swiglu_forward_f32(float* y, const float* gate_up, int64_t rows, int width, int rows_per_block) {
    swiglu_forward(y, gate_up, rows, width, rows_per_block);
}
KERNEL(swiglu_forward_f32, kSwigluThreads)
extern "C" __global__ void __launch_bounds__(kSwigluThreads)
    swiglu_forward_bf16(bf16* y, const bf16* gate_up, int64_t rows, int width, int rows_per_block) {
    swiglu_forward(y, gate_up, rows, width, rows_per_block);
}
KERNEL(swiglu_forward_bf16, kSwigluThreads)

// swiglu_backward_<f32|bf16>: the gradients of gate and up, which may take their place.
// Math     : dgate = dy * up * s * (1 + gate * (1 - s)), dup = dy * gate * s      s = 1 / (1 + exp(-gate))
// Tensors  : dy elem [N,F] | gate_up, gradient elem [N,2F], gradient may be gate_up                  alignment: 16 B
// Grid     : as forward                                   Block: 256 threads
// Smem     : none                                         Registers: <= 64, no spills
// Work     : 24·N·F flop; reads 3·N·F·e, writes 2·N·F·e B bound: memory
// Accuracy : f32 with expf (2 ulp), one rounding
// Ragged   : F that is not a multiple of 16 bytes goes element by element
// Order    : every element by one thread, read before it is written
// Source   : Shazeer 2020, eq. 6, differentiated
template <class T>
DEVICE void swiglu_backward(T* gradient, const T* dy, const T* gate_up, int64_t rows, int width, int rows_per_block) {
    const bool vectors = width % kVector<T> == 0;
    for_each_vector<T>(rows, width, rows_per_block, [&](int64_t row, int column) {
        const T* from = gate_up + row * 2 * width;
        float gate[kVector<T>], up[kVector<T>], d[kVector<T>];
        load_columns(gate, from, column, width, vectors);
        load_columns(up, from + width, column, width, vectors);
        load_columns(d, dy + row * width, column, width, vectors);
        UNROLL
        for (int i = 0; i < kVector<T>; ++i) {
            const float s = sigmoid(gate[i]), dgate = d[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
            up[i] = d[i] * gate[i] * s;
            gate[i] = dgate;
        }
        T* to = gradient + row * 2 * width;
        store_columns(to, gate, column, width, vectors);
        store_columns(to + width, up, column, width, vectors);
    });
}
extern "C" __global__ void __launch_bounds__(kSwigluThreads)
    swiglu_backward_f32(float* gradient, const float* dy, const float* gate_up, int64_t rows, int width, int rows_per_block) {
    swiglu_backward(gradient, dy, gate_up, rows, width, rows_per_block);
}
KERNEL(swiglu_backward_f32, kSwigluThreads)
extern "C" __global__ void __launch_bounds__(kSwigluThreads)
    swiglu_backward_bf16(bf16* gradient, const bf16* dy, const bf16* gate_up, int64_t rows, int width, int rows_per_block) {
    swiglu_backward(gradient, dy, gate_up, rows, width, rows_per_block);
}
KERNEL(swiglu_backward_bf16, kSwigluThreads)
