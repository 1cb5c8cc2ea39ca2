// The gradient of a weight from those of a product's rows: dW [N,K] = Σ over rows of dy [rows,N]ᵀ · x [rows,K], and the bias's
// gradient db [N] = Σ over rows of dy on the way. Linear layers and the patch embedding share it; x is a policy.
#pragma once
#include "product.cuh"

// Sums the columns of the dy tiles that pass through shared memory: thread i those of the tile's column i. The blocks of a
// row of tiles all see the same dy, so each takes the steps whose number falls to it, and nobody does the work twice.
template <class Shape>
struct ColumnSums {
    int turn, turns;  // this block's place in its row of tiles, and the row's length; turns 0: no sums are wanted
    float& sum;
    template <class Stage>
    DEVICE_MEMBER void operator()(const Stage& stage, int step) const {
        if (turns == 0 || step % turns != turn || int(threadIdx.x) >= Shape::kTileM) return;
        UNROLL
        for (int k = 0; k < Shape::kTileK; ++k) sum += to_float(stage.a.element[k][threadIdx.x]);
    }
};

// Block (tile, 0, split): the sum over the split's `steps` steps of kTileK rows. With one split dw becomes addend + dW, where
// there is an addend (it may be dw itself: each element is read by the thread that writes it). With more, split s writes
// its part to dw + s·N·K and the parts are summed later. sums, where not null, [splits · tiles across K, N] f32: parts
// of db.
template <class Shape, class T, class X>
DEVICE void weight_gradient(ProductStorage<Shape, ColumnsOperand<T>, X>& storage, float* dw, float* sums, const float* addend,
                            const T* dy, const X& x, int rows, int n, int k, int steps) {
    const ProductPlace place = product_place<Shape>(n, k);
    const int all_steps = (rows + Shape::kTileK - 1) / Shape::kTileK;
    const int first_step = int(blockIdx.z) * steps, end_step = min(first_step + steps, all_steps);
    const int turns = (k + Shape::kTileN - 1) / Shape::kTileN, turn = place.n / Shape::kTileN;
    float* out = dw + int64_t(blockIdx.z) * n * k;
    const bool vectors = has_vectors(out, k) && has_vectors(addend, k);
    float sum = 0.0f;
    product<4, Shape>(
        storage, ColumnsOperand<T>{matrix(dy, rows, n)}, x, place, n, k, first_step, end_step,
        ColumnSums<Shape>{turn, sums ? turns : 0, sum}, [&](int row, int column, float (&values)[4]) {
            const int64_t offset = int64_t(row) * k;
            if (addend) {
                float before[4];
                load_columns(before, addend + offset, column, k, vectors);
                UNROLL
                for (int i = 0; i < 4; ++i) values[i] += before[i];
            }
            store_columns(out + offset, values, column, k, vectors);
        });
    const int column = place.m + int(threadIdx.x);
    if (sums && int(threadIdx.x) < Shape::kTileM && column < n)
        sums[(int64_t(blockIdx.z) * turns + turn) * n + column] = sum;
}
