// A narrower matrix added to some columns of a wider one, and the gradient of that.
#include "moves.cuh"

// add_columns_forward_<f32|bf16>: y = x with `part` added to its columns from `first` on.
// Math     : y(n,c) = x(n,c) + part(n, c - first) where 0 <= c - first < W, x(n,c) elsewhere
// Tensors  : x, y elem [N,C] | part elem [N,W]; y may be x                     alignment: 16 B
// Grid     : a thread for each 16-byte vector of y            Block: 256 threads
// Smem     : none
// Work     : N·W flop; reads N·(C + W)·e B, writes N·C·e B; reads 2·N·W·e B, writes N·W·e B where y is x      bound: memory
// Accuracy : f32, rounded once
// Ragged   : any N, C, W, first
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void add_columns_forward(T* y, const T* x, const T* part, int64_t rows, int columns, int first, int width) {
    const RowVector at = row_vector<T>(rows, columns);
    if (!at.is_inside) return;
    const bool is_beside = at.column + kVector<T> <= first || at.column >= first + width;
    if (is_beside && y == x) return;
    float values[kVector<T>];
    load_columns(values, x + at.row * columns, at.column, columns, at.has_vectors);
    if (!is_beside) {
        const T* row = part + at.row * width;
        if (at.has_vectors && first % kVector<T> == 0 && width % kVector<T> == 0) {
            float added[kVector<T>];
            load_columns(added, row, at.column - first, width, true);
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) values[i] += added[i];
        } else {
            for (int i = 0; i < kVector<T>; ++i) {
                const int column = at.column + i - first;
                if (column >= 0 && column < width) values[i] += to_float(row[column]);
            }
        }
    }
    store_columns(y + at.row * columns, values, at.column, columns, at.has_vectors);
}

// add_columns_backward_<f32|bf16>: the columns from `first` on of dy.
// Math     : dpart(n,c) = dy(n, first + c)
// Tensors  : dy elem [N,C] | dpart elem [N,W]                                  alignment: 16 B
// Grid     : a thread for each 16-byte vector of dpart        Block: 256 threads
// Smem     : none
// Work     : no flop; reads N·W·e B, writes N·W·e B                            bound: memory
// Accuracy : exact
// Ragged   : any N, C, W, first
// Order    : every element by one thread
// Source   : -
template <class T>
DEVICE void add_columns_backward(T* dpart, const T* dy, int64_t rows, int columns, int first, int width) {
    const RowVector at = row_vector<T>(rows, width);
    if (!at.is_inside) return;
    const bool is_aligned = at.has_vectors && columns % kVector<T> == 0 && first % kVector<T> == 0;
    float values[kVector<T>];
    load_columns(values, dy + at.row * columns + first, at.column, width, is_aligned);
    store_columns(dpart + at.row * width, values, at.column, width, at.has_vectors);
}

#define ADD_COLUMNS_KERNELS(suffix, T) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) add_columns_forward_##suffix( \
        T* y, const T* x, const T* part, int64_t rows, int columns, int first, int width) { \
        add_columns_forward(y, x, part, rows, columns, first, width); \
    } \
    KERNEL(add_columns_forward_##suffix, kMoveThreads) \
    extern "C" __global__ void __launch_bounds__(kMoveThreads) add_columns_backward_##suffix( \
        T* dpart, const T* dy, int64_t rows, int columns, int first, int width) { \
        add_columns_backward(dpart, dy, rows, columns, first, width); \
    } \
    KERNEL(add_columns_backward_##suffix, kMoveThreads)
ADD_COLUMNS_KERNELS(f32, float)
ADD_COLUMNS_KERNELS(bf16, bf16)
