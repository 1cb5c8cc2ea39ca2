// Rows moved from place to place: a thread for each 16-byte vector of a tensor [rows, columns].
#pragma once
#include "elem.cuh"

HOST_CONSTANT int kMoveThreads = 256;

// The part of a tensor that this thread moves.
struct RowVector {
    int64_t row;
    int column;
    bool is_inside;     // false: this thread has nothing to do
    bool has_vectors;   // rows hold whole vectors
};

// Thread i takes vector i of the tensor, row by row; a row of C elements has ceil(C / kVector) of them.
template <class T>
DEVICE RowVector row_vector(int64_t rows, int columns) {
    const int64_t across = (columns + kVector<T> - 1) / kVector<T>;
    const int64_t index = int64_t(blockIdx.x) * kMoveThreads + threadIdx.x;
    return {index / across, int(index % across) * kVector<T>, index < rows * across, columns % kVector<T> == 0};
}

// A row of zeros, or the row `from`.
template <class T>
DEVICE void move_or_clear(T* to, const T* from, const RowVector& at, int columns) {
    float values[kVector<T>] = {};
    if (from != nullptr) load_columns(values, from, at.column, columns, at.has_vectors);
    store_columns(to, values, at.column, columns, at.has_vectors);
}
