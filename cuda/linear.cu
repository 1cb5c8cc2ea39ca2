// Products with a weight matrix: y = f(x·Wᵀ + b) and its gradients. Row-major tensors throughout; nothing is transposed in
// memory, because fragments are read from shared memory either way round. Every product comes in two sizes: tiles of
// 128×128, and of 64×64 (`_small`) where the large ones would not fill the chip; src/engine/ops/linear/tiles.rs chooses.
#include "activation.cuh"
#include "weight_gradient.cuh"

// linear_forward: y = scale · f(x·Wᵀ + bias) + residual, and z = x·Wᵀ + bias where backward wants it.
// Math     : z(r,n) = Σ over k of x(r,k)·W(n,k) + bias(n)     y = scale(n) · f(z) + residual
// Tensors  : x elem [M,K] | weight elem [N,K] | bias, scale f32 [N] or null | residual, y elem [M,N] | z elem [M,N] or null
//            residual may be null or y itself: each element is read by the thread that then writes it
// Grid     : tiles of the result      Block: bf16 128 threads; f32 256, small 128
// Smem     : the stages of product.cuh: bf16 68 KB, f32 72 KB; small bf16 32 KB, f32 48 KB
// Work     : 2·M·N·K flop; reads (M·K + N·K)·e, writes M·N·e, twice with z     bound: tensor cores from M, N, K of about 500 on
// Accuracy : f32 accumulators; bf16: f(z) by approximate instructions (activation.cuh), rounded once, at the end; f32:
//            three-way split, errors as of f32 products
// Ragged   : any M, N, K; rows that are not whole multiples of 16 bytes take narrower copies
// Order    : deterministic, one accumulator an element, k ascending
// Source   : Hendrycks and Gimpel 2016, section 2; the scale: Touvron et al. 2021, eq. 4
template <class Shape, class T = typename Shape::T>
DEVICE void linear_forward(T* y, T* z, const T* x, const T* weight, const float* bias, const T* residual,
                           const float* scale, int m, int n, int k, int activation) {
    using Operand = RowsOperand<T>;
    using Storage = ProductStorage<Shape, Operand, Operand>;
    SHARED_STORAGE(Storage, storage);
    constexpr int kWidth = kVector<T>;
    const bool vectors = has_vectors(y, n) && has_vectors(z, n) && has_vectors(residual, n);
    const bool factor_vectors = n % kWidth == 0 && has_vectors(bias, n) && has_vectors(scale, n);
    product<kWidth, Shape>(
        storage, Operand{matrix(x, m, k)}, Operand{matrix(weight, n, k)}, product_place<Shape>(m, n), m, n, 0,
        (k + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{}, [&](int row, int column, float (&values)[kWidth]) {
            const int64_t offset = int64_t(row) * n;
            if (bias) {
                float shift[kWidth];
                load_floats(shift, bias, column, n, factor_vectors);
                UNROLL
                for (int i = 0; i < kWidth; ++i) values[i] += shift[i];
            }
            if (z) store_columns(z + offset, values, column, n, vectors);
            if (activation != kNoActivation) {
                UNROLL
                for (int i = 0; i < kWidth; ++i) values[i] = activate<T>(activation, values[i]);
            }
            if (scale) {
                float factor[kWidth];
                load_floats(factor, scale, column, n, factor_vectors);
                UNROLL
                for (int i = 0; i < kWidth; ++i) values[i] *= factor[i];
            }
            if (residual) {
                float before[kWidth];
                load_columns(before, residual + offset, column, n, vectors);
                UNROLL
                for (int i = 0; i < kWidth; ++i) values[i] += before[i];
            }
            store_columns(y + offset, values, column, n, vectors);
        });
}

// linear_backward_input: dx = dy·W, then ⊙ f′(z) or + a gradient that is there already.
// Math     : dx(r,k) = Σ over n of dy(r,n)·W(n,k)     with an activation · f′(other(r,k)), else + other(r,k)
// Tensors  : dy elem [M,N] | weight elem [N,K] | other elem [M,K] or null, dx itself where it is added | dx elem [M,K]
// Grid     : tiles of dx      Block: as linear_forward
// Smem     : the stages of product.cuh: bf16 68 KB, f32 68 KB; small bf16 34 KB, f32 41 KB
// Work     : 2·M·N·K flop; reads (M·N + N·K)·e and other, writes M·K·e     bound: tensor cores
// Accuracy : as linear_forward; f′ in f32 of the stored z, for bf16 by approximate instructions
// Ragged   : any M, N, K
// Order    : deterministic
// Source   : -
template <class Shape, class T = typename Shape::T>
DEVICE void linear_backward_input(T* dx, const T* dy, const T* weight, const T* other, int m, int n, int k, int activation) {
    using Left = RowsOperand<T>;
    using Right = ColumnsOperand<T>;
    using Storage = ProductStorage<Shape, Left, Right>;
    SHARED_STORAGE(Storage, storage);
    constexpr int kWidth = kVector<T>;
    const bool vectors = has_vectors(dx, k) && has_vectors(other, k);
    product<kWidth, Shape>(
        storage, Left{matrix(dy, m, n)}, Right{matrix(weight, n, k)}, product_place<Shape>(m, k), m, k, 0,
        (n + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{}, [&](int row, int column, float (&values)[kWidth]) {
            const int64_t offset = int64_t(row) * k;
            if (other) {
                float operand[kWidth];
                load_columns(operand, other + offset, column, k, vectors);
                UNROLL
                for (int i = 0; i < kWidth; ++i) {
                    if (activation != kNoActivation)
                        values[i] *= activation_derivative<T>(activation, operand[i]);
                    else
                        values[i] += operand[i];
                }
            }
            store_columns(dx + offset, values, column, k, vectors);
        });
}

// linear_backward_weight: dW = dyᵀ·x (+ addend), and parts of db = Σ over rows of dy.
// Math     : dW(n,k) = Σ over r of dy(r,n)·x(r,k)     db(n) = Σ over r of dy(r,n)
// Tensors  : dy elem [M,N] | x elem [M,K] | addend f32 [N,K] or null, dw itself too | dw f32 [splits,N,K] | sums f32
//            [splits · tiles across K, N] or null
// Grid     : (tiles of dW, 1, splits)      Block: as linear_forward
// Smem     : the stages of product.cuh: bf16 68 KB, f32 68 KB; small bf16 36 KB, f32 34 KB
// Work     : 2·M·N·K flop; reads (M·N + M·K)·e, writes N·K·4 a split     bound: tensor cores where the splits fill the chip
// Accuracy : f32 accumulators over M / splits rows; split parts are summed in f32
// Ragged   : any M, N, K
// Order    : deterministic: rows ascending within a split, splits in order (linear_sum_f32)
// Source   : -
template <class Shape, class T = typename Shape::T>
DEVICE void linear_backward_weight(float* dw, float* sums, const float* addend, const T* dy, const T* x, int m, int n, int k,
                                   int steps) {
    using Storage = ProductStorage<Shape, ColumnsOperand<T>, ColumnsOperand<T>>;
    SHARED_STORAGE(Storage, storage);
    weight_gradient<Shape>(storage, dw, sums, addend, dy, ColumnsOperand<T>{matrix(x, m, k)}, m, n, k, steps);
}

// The kernels of one size and type.
#define LINEAR_PRODUCTS(Size, suffix, T) \
    extern "C" __global__ void PRODUCT_BOUNDS(ProductShapes<T>::Size) linear_forward##suffix( \
        T* y, T* z, const T* x, const T* weight, const float* bias, const T* residual, const float* scale, int m, int n, int k, \
        int activation) { \
        linear_forward<ProductShapes<T>::Size>(y, z, x, weight, bias, residual, scale, m, n, k, activation); \
    } \
    KERNEL(linear_forward##suffix, ProductShapes<T>::Size::kThreads, \
           ProductStorage<ProductShapes<T>::Size, RowsOperand<T>, RowsOperand<T>>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ProductShapes<T>::Size) linear_backward_input##suffix( \
        T* dx, const T* dy, const T* weight, const T* other, int m, int n, int k, int activation) { \
        linear_backward_input<ProductShapes<T>::Size>(dx, dy, weight, other, m, n, k, activation); \
    } \
    KERNEL(linear_backward_input##suffix, ProductShapes<T>::Size::kThreads, \
           ProductStorage<ProductShapes<T>::Size, RowsOperand<T>, ColumnsOperand<T>>) \
    extern "C" __global__ void PRODUCT_BOUNDS(ProductShapes<T>::Size) linear_backward_weight##suffix( \
        float* dw, float* sums, const float* addend, const T* dy, const T* x, int m, int n, int k, int steps) { \
        linear_backward_weight<ProductShapes<T>::Size>(dw, sums, addend, dy, x, m, n, k, steps); \
    } \
    KERNEL(linear_backward_weight##suffix, ProductShapes<T>::Size::kThreads, \
           ProductStorage<ProductShapes<T>::Size, ColumnsOperand<T>, ColumnsOperand<T>>)

LINEAR_PRODUCTS(Large, _f32, float)
LINEAR_PRODUCTS(Large, _bf16, bf16)
LINEAR_PRODUCTS(Small, _small_f32, float)
LINEAR_PRODUCTS(Small, _small_bf16, bf16)

HOST_CONSTANT int kElementwiseThreads = 256;

// linear_sum: out = addend + Σ over parts, what a split product and the sums of columns leave behind.
// Math     : out(i) = addend(i) + Σ over p of part(p·count + i)
// Tensors  : part f32 [parts, count] | addend f32 [count] or null, out itself too | out f32 [count]
// Grid     : ⌈count / 1024⌉ blocks      Block: 256 threads, four elements each
// Smem     : none
// Work     : parts·count flop; reads (parts + 1)·count·4 B, writes count·4 B     bound: memory
// Accuracy : f32 sums
// Ragged   : any count
// Order    : deterministic, parts ascending
// Source   : -
extern "C" __global__ void __launch_bounds__(kElementwiseThreads) linear_sum_f32(float* out, const float* part,
                                                                                const float* addend, int64_t count, int parts) {
    const int64_t first = (int64_t(blockIdx.x) * kElementwiseThreads + threadIdx.x) * 4;
    if (first >= count) return;
    const int left = int(min(count - first, int64_t(4)));
    const bool vectors = count % 4 == 0 && has_vectors(out, 4) && has_vectors(part, 4) && has_vectors(addend, 4);
    float sums[4] = {};
    if (addend) load_columns(sums, addend + first, 0, left, vectors);
    for (int p = 0; p < parts; ++p) {
        float values[4];
        load_columns(values, part + p * count + first, 0, left, vectors);
        UNROLL
        for (int i = 0; i < 4; ++i) sums[i] += values[i];
    }
    store_columns(out + first, sums, 0, left, vectors);
}
KERNEL(linear_sum_f32, kElementwiseThreads)

constexpr int kSumWarps = 8;
template <class T>
struct ColumnSumStorage {
    float partial[kSumWarps][kWarpLanes * kVector<T>];
};

// linear_backward_bias: sums of the columns of dy over `height` rows a block.
// Math     : part(b,n) = Σ over r in [b·height, (b + 1)·height) of dy(r,n)
// Tensors  : dy elem [M,N] | part f32 [⌈M/height⌉, N]
// Grid     : (⌈N / 16 bytes of 32 lanes⌉, ⌈M/height⌉)      Block: 256 threads = 8 warps, rows in turn; a lane 16 bytes
// Smem     : bf16 8 KB, f32 4 KB
// Work     : M·N flop; reads M·N·e     bound: memory
// Accuracy : f32 sums
// Ragged   : any M, N
// Order    : deterministic: a warp's rows ascending, then warps ascending; blocks by linear_sum_f32
// Source   : -
template <class T>
DEVICE void linear_backward_bias(float* part, const T* dy, int m, int n, int height) {
    SHARED_STORAGE(ColumnSumStorage<T>, storage);
    constexpr int kWidth = kVector<T>, kColumns = kWarpLanes * kWidth;
    const int lane = int(threadIdx.x) % kWarpLanes, warp = int(threadIdx.x) / kWarpLanes;
    const int first = int(blockIdx.x) * kColumns, end = min((int(blockIdx.y) + 1) * height, m);
    const bool vectors = has_vectors(dy, n);
    float sums[kWidth] = {};
    for (int row = int(blockIdx.y) * height + warp; row < end; row += kSumWarps) {
        float values[kWidth];
        load_columns(values, dy + int64_t(row) * n, first + lane * kWidth, n, vectors);
        UNROLL
        for (int i = 0; i < kWidth; ++i) sums[i] += values[i];
    }
    UNROLL
    for (int i = 0; i < kWidth; ++i) storage.partial[warp][lane * kWidth + i] = sums[i];
    if (!PLANTED_BUG("linear_backward_bias: no barrier before the warps' sums are read")) {
        __syncthreads();  // every warp's sums are there
    }
    const int column = int(threadIdx.x);
    if (column >= kColumns || first + column >= n) return;
    float sum = 0.0f;
    UNROLL
    for (int w = 0; w < kSumWarps; ++w) sum += storage.partial[w][column];
    part[int64_t(blockIdx.y) * n + first + column] = sum;
}
extern "C" __global__ void __launch_bounds__(kSumWarps* kWarpLanes) linear_backward_bias_f32(float* part, const float* dy, int m,
                                                                                             int n, int height) {
    linear_backward_bias(part, dy, m, n, height);
}
KERNEL(linear_backward_bias_f32, kSumWarps* kWarpLanes, ColumnSumStorage<float>)
extern "C" __global__ void __launch_bounds__(kSumWarps* kWarpLanes) linear_backward_bias_bf16(float* part, const bf16* dy, int m,
                                                                                              int n, int height) {
    linear_backward_bias(part, dy, m, n, height);
}
KERNEL(linear_backward_bias_bf16, kSumWarps* kWarpLanes, ColumnSumStorage<bf16>)

// linear_forward_activation: y = f(z), where no single product makes z.
// Math     : y = f(z)
// Tensors  : z, y elem [count]
// Grid     : ⌈count / (256 · 16 bytes)⌉ blocks      Block: 256 threads
// Smem     : none
// Work     : about 20 flop an element; reads e, writes e an element       bound: memory
// Accuracy : f as activate<T>, rounded once
// Ragged   : any count
// Order    : deterministic
// Source   : -
template <class T>
DEVICE void linear_forward_activation(T* y, const T* z, int64_t count, int activation) {
    constexpr int kWidth = kVector<T>;
    const int64_t first = (int64_t(blockIdx.x) * kElementwiseThreads + threadIdx.x) * kWidth;
    if (first >= count) return;
    const int left = int(min(count - first, int64_t(kWidth)));
    const bool vectors = left == kWidth && has_vectors(y, kWidth) && has_vectors(z, kWidth);
    float values[kWidth];
    load_columns(values, z + first, 0, left, vectors);
    UNROLL
    for (int i = 0; i < kWidth; ++i) values[i] = activate<T>(activation, values[i]);
    store_columns(y + first, values, 0, left, vectors);
}
extern "C" __global__ void __launch_bounds__(kElementwiseThreads) linear_forward_activation_f32(
    float* y, const float* z, int64_t count, int activation) {
    linear_forward_activation(y, z, count, activation);
}
KERNEL(linear_forward_activation_f32, kElementwiseThreads)
extern "C" __global__ void __launch_bounds__(kElementwiseThreads) linear_forward_activation_bf16(
    bf16* y, const bf16* z, int64_t count, int activation) {
    linear_forward_activation(y, z, count, activation);
}
KERNEL(linear_forward_activation_bf16, kElementwiseThreads)

// linear_backward_activation: dz = dy ⊙ f′(z), where no product could do that on the way.
// Math     : dz = dy · f′(z)
// Tensors  : dy, z, dz elem [count]; dz may be dy: each element is read by the thread that writes it
// Grid     : ⌈count / (256 · 16 bytes)⌉ blocks      Block: 256 threads
// Smem     : none
// Work     : about 30 flop an element; reads 2·e, writes e an element     bound: memory
// Accuracy : f′ in f32, for bf16 by approximate instructions (activation.cuh), rounded once
// Ragged   : any count
// Order    : deterministic
// Source   : -
template <class T>
DEVICE void linear_backward_activation(T* dz, const T* dy, const T* z, int64_t count, int activation) {
    constexpr int kWidth = kVector<T>;
    const int64_t first = (int64_t(blockIdx.x) * kElementwiseThreads + threadIdx.x) * kWidth;
    if (first >= count) return;
    const int left = int(min(count - first, int64_t(kWidth)));
    const bool vectors = left == kWidth && has_vectors(dz, kWidth) && has_vectors(dy, kWidth) && has_vectors(z, kWidth);
    float gradient[kWidth], values[kWidth];
    load_columns(gradient, dy + first, 0, left, vectors);
    load_columns(values, z + first, 0, left, vectors);
    UNROLL
    for (int i = 0; i < kWidth; ++i) gradient[i] *= activation_derivative<T>(activation, values[i]);
    store_columns(dz + first, gradient, 0, left, vectors);
}
extern "C" __global__ void __launch_bounds__(kElementwiseThreads) linear_backward_activation_f32(
    float* dz, const float* dy, const float* z, int64_t count, int activation) {
    linear_backward_activation(dz, dy, z, count, activation);
}
KERNEL(linear_backward_activation_f32, kElementwiseThreads)
extern "C" __global__ void __launch_bounds__(kElementwiseThreads) linear_backward_activation_bf16(
    bf16* dz, const bf16* dy, const bf16* z, int64_t count, int activation) {
    linear_backward_activation(dz, dy, z, count, activation);
}
KERNEL(linear_backward_activation_bf16, kElementwiseThreads)
