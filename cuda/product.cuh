// Products of matrices by a block: C(m,n) = Σ over k of A(m,k)·B(n,k) for one tile of C, on tensor cores.
//
// The tile's operands stream through shared memory in steps of kTileK along k: a ring of kStages stages is filled by
// asynchronous copies kStages - 1 steps ahead, so that loads and products overlap and one barrier a step suffices. Each warp
// keeps its part of the tile in f32 accumulators. At the end they go through shared memory once more, so that the epilogue
// (bias, activation, residual, ...) sees whole rows and reads and writes 16 bytes at a time.
//
// What an operand is, is a policy: RowsOperand and ColumnsOperand are matrices either way round, cuda/patch_embed.cu gathers
// pixels. What happens to a result is a functor. A kernel that has fewer tiles than the chip has multiprocessors splits k
// over blockIdx.z; the partial results are summed by a second kernel in a fixed order.
//
// Bound: 2·m·n·k flop over the tensor cores' rate where m·n·k / (m·k + n·k + m·n) is large. A block of 128×128 reads
// 256·kTileK elements for 2·128·128·kTileK flop (bf16: 64 flop a byte from the second-level cache), and a warp of 64×64
// reads 128·16 elements of shared memory for 32 tensor instructions, half of what shared memory can give in that time.
#pragma once
#include "fragment.cuh"

// How a block works: a tile kTileM × kTileN of the result in steps of kTileK, kWarpsM × kWarpsN warps, kStages stages;
// kBlocks blocks shall fit on a multiprocessor, so that one computes while another waits.
template <class T_, int kTileM_, int kTileN_, int kTileK_, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocks_>
struct ProductShape {
    using T = T_;
    static constexpr int kTileM = kTileM_, kTileN = kTileN_, kTileK = kTileK_;
    static constexpr int kStages = kStages_, kBlocks = kBlocks_;
    static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kThreads = kWarpLanes * kWarpsM * kWarpsN;
    static constexpr int kWarpM = kTileM / kWarpsM, kWarpN = kTileN / kWarpsN;
    static constexpr int kFragmentsM = kWarpM / kFragmentRows, kFragmentsN = kWarpN / kFragmentColumns;
    static_assert(kWarpM % kFragmentRows == 0 && kWarpN % (2 * kFragmentColumns) == 0, "warps hold whole fragments");
    static_assert(kTileK % kFragmentDepth == 0 && kStages >= 2, "steps are whole fragments, and a ring has two stages");
};

// Rows and columns of a large and of a small tile, and the bytes along k of a step.
HOST_CONSTANT int kLargeTile = 128, kSmallTile = 64, kStepBytes = 64;
template <class T> constexpr int kStep = kStepBytes / int(sizeof(T));

// The shapes in use: the large one where there are tiles enough to fill the chip, the small one elsewhere. Rust chooses, in
// src/engine/ops/linear/tiles.rs. f32 has three registers to bf16's one for each fragment, so more and smaller warps, and
// stages twice as heavy, so shorter ones.
template <class T> struct ProductShapes;
template <> struct ProductShapes<bf16> {
    using Large = ProductShape<bf16, kLargeTile, kLargeTile, kStep<bf16>, 2, 2, 4, 2>;
    using Small = ProductShape<bf16, kSmallTile, kSmallTile, kStep<bf16>, 2, 2, 4, 3>;
};
template <> struct ProductShapes<float> {
    using Large = ProductShape<float, kLargeTile, kLargeTile, kStep<float>, 2, 4, 3, 1>;
    using Small = ProductShape<float, kSmallTile, kSmallTile, kStep<float>, 2, 2, 4, 3>;
};

// What ptxas may assume of a kernel that works in this shape.
#define PRODUCT_BOUNDS(Shape) __launch_bounds__(Shape::kThreads, Shape::kBlocks)

// ---- Operands ----

// Operand(i, k) = from[i][k]: k runs along the rows. x and W in x·Wᵀ.
template <class T>
struct RowsOperand {
    using Element = T;
    static constexpr bool kAcross = false;
    Matrix<T> from;
    template <int kThreads, class SharedTile>
    DEVICE_MEMBER void load(SharedTile& tile, int first, int k, int thread) const {
        load_tile_async<kThreads>(tile, from, first, k, thread);
    }
};
// Operand(i, k) = from[k][i]: k runs down the rows.
template <class T>
struct ColumnsOperand {
    using Element = T;
    static constexpr bool kAcross = true;
    Matrix<T> from;
    template <int kThreads, class SharedTile>
    DEVICE_MEMBER void load(SharedTile& tile, int first, int k, int thread) const {
        load_tile_async<kThreads>(tile, from, k, first, thread);
    }
};

// The shared tile of an operand: kOuter places along m or n, kDepth along k, spread over the banks in the way that suits how it
// is read: the short rows of bf16 by exchange, as a pad would cost each copy a second turn.
template <class Operand, int kOuter, int kDepth, bool kAcross = Operand::kAcross>
struct OperandTileOf {
    using Element = typename Operand::Element;
    using Type = Tile<Element, kOuter, kDepth, sizeof(Element) == 2 ? 0 : 8>;
};
template <class Operand, int kOuter, int kDepth>
struct OperandTileOf<Operand, kOuter, kDepth, true> {
    using Type = Tile<typename Operand::Element, kDepth, kOuter, kVector<typename Operand::Element>>;
};

template <class Shape, class A, class B>
struct ProductStorage {
    struct Stage {
        typename OperandTileOf<A, Shape::kTileM, Shape::kTileK>::Type a;
        typename OperandTileOf<B, Shape::kTileN, Shape::kTileK>::Type b;
    };
    // The pad keeps the lanes of a half warp on different banks when they lay out pairs of accumulators.
    struct Result {
        alignas(16) float element[Shape::kTileM][Shape::kTileN + 8];
    };
    union {
        Stage stage[Shape::kStages];
        Result result;
    };
};

// ---- The product ----

// A tile's place in C. Blocks that run at the same time take tiles in groups of eight rows of tiles, so that they share
// both operands in the second-level cache.
struct ProductPlace {
    int m, n;  // the first row and column of the tile
};
template <class Shape>
DEVICE ProductPlace product_place(int rows, int columns) {
    constexpr int kGroup = 8;
    const int tiles_m = (rows + Shape::kTileM - 1) / Shape::kTileM, tiles_n = (columns + Shape::kTileN - 1) / Shape::kTileN;
    const int block = blockIdx.x, group = block / (kGroup * tiles_n), within = block % (kGroup * tiles_n);
    const int height = min(tiles_m - group * kGroup, kGroup);
    return {(group * kGroup + within % height) * Shape::kTileM, within / height * Shape::kTileN};
}

template <class Shape, class A, class B>
DEVICE void load_stage(typename ProductStorage<Shape, A, B>::Stage& stage, const A& a, const B& b, ProductPlace place, int k) {
    a.template load<Shape::kThreads>(stage.a, place.m, k, threadIdx.x);
    b.template load<Shape::kThreads>(stage.b, place.n, k, threadIdx.x);
}

// A warp's accumulators: fragment (i, j) lies i·16 rows and j·8 columns past warp_row and warp_column in the tile.
template <class Shape> using Accumulators = float[Shape::kFragmentsM][Shape::kFragmentsN][4];
template <class Shape> DEVICE int warp_row() { return int(threadIdx.x) / kWarpLanes / Shape::kWarpsN * Shape::kWarpM; }
template <class Shape> DEVICE int warp_column() { return int(threadIdx.x) / kWarpLanes % Shape::kWarpsN * Shape::kWarpN; }

// This warp's products of one stage.
template <class Shape, class A, class B>
DEVICE void multiply_stage(Accumulators<Shape>& acc,
                           const typename ProductStorage<Shape, A, B>::Stage& stage) {
    using T = typename Shape::T;
    const int m = warp_row<Shape>(), n = warp_column<Shape>();
    UNROLL
    for (int k = 0; k < Shape::kTileK; k += kFragmentDepth) {
        FragmentB<T> b[Shape::kFragmentsN / 2][2];
        UNROLL
        for (int j = 0; j < Shape::kFragmentsN / 2; ++j) {
            if constexpr (B::kAcross)
                load_b_pair_transposed(b[j], stage.b, n + j * 2 * kFragmentColumns, k);
            else
                load_b_pair(b[j], stage.b, n + j * 2 * kFragmentColumns, k);
        }
        UNROLL
        for (int i = 0; i < Shape::kFragmentsM; ++i) {
            FragmentA<T> a;
            if constexpr (A::kAcross)
                load_a_transposed(a, stage.a, m + i * kFragmentRows, k);
            else
                load_a(a, stage.a, m + i * kFragmentRows, k);
            UNROLL
            for (int j = 0; j < Shape::kFragmentsN; ++j) multiply_add(acc[i][j], a, b[j / 2][j % 2]);
        }
    }
}

struct NothingBesides {
    template <class Stage>
    DEVICE_MEMBER void operator()(const Stage&, int) const {}
};

// Adds the tile of C at `place`, over the steps [first_step, end_step) of kTileK along k, to the accumulators.
// `besides(stage, step)` is called by every thread while a stage is in shared memory. All threads of the block take part.
// The storage may be used again behind a barrier.
template <class Shape, class A, class B, class Besides>
DEVICE void product_sums(Accumulators<Shape>& acc, ProductStorage<Shape, A, B>& storage, const A& a, const B& b,
                         ProductPlace place, int first_step, int end_step, Besides besides) {
    UNROLL
    for (int ahead = 0; ahead < Shape::kStages - 1; ++ahead) {
        if (first_step + ahead < end_step)
            load_stage<Shape>(storage.stage[ahead], a, b, place, (first_step + ahead) * Shape::kTileK);
        cp_async_commit();
    }
    int reads = 0, fills = Shape::kStages - 1;  // the stages of this step and of the one that is fetched now
    ROLLED
    for (int step = first_step; step < end_step; ++step) {
        if (!PLANTED_BUG("product: no wait for the copies of the step")) cp_async_wait<Shape::kStages - 2>();
        if (!PLANTED_BUG("product: no barrier between the steps")) {
            __syncthreads();  // the stage read now is filled, and the stage filled next has been read by every warp
        }
        const int ahead = step + Shape::kStages - 1;
        if (ahead < end_step) load_stage<Shape>(storage.stage[fills], a, b, place, ahead * Shape::kTileK);
        cp_async_commit();
        multiply_stage<Shape, A, B>(acc, storage.stage[reads]);
        besides(storage.stage[reads], step);
        reads = reads + 1 == Shape::kStages ? 0 : reads + 1;
        fills = fills + 1 == Shape::kStages ? 0 : fills + 1;
    }
}

// A lane's part of a row of results; neighbouring lanes have neighbouring parts.
DEVICE void load_result(float (&values)[4], const float* from) { load_elements(values, from); }
// Eight lanes read at once, 16 bytes each, and the eight elements of a lane are 32: four of the lanes begin with their second
// half, so that no bank is met twice.
DEVICE void load_result(float (&values)[8], const float* from) {
    const bool is_turned = threadIdx.x / 4 % 2 == 1;
    float first[4], second[4];
    load_elements(first, from + (is_turned ? 4 : 0));
    load_elements(second, from + (is_turned ? 0 : 4));
    UNROLL
    for (int i = 0; i < 4; ++i) {
        values[i] = is_turned ? second[i] : first[i];
        values[4 + i] = is_turned ? first[i] : second[i];
    }
}

// The tile of C at `place`, as product_sums makes it. `finish(row, column, values)` is called for each group of kWidth
// neighbouring columns of the tile that begins within C [rows, columns], once, by one thread; the last group of a row may
// reach past the end. All threads of the block take part. The storage may be used again behind a barrier.
template <int kWidth, class Shape, class A, class B, class Besides, class Finish>
DEVICE void product(ProductStorage<Shape, A, B>& storage, const A& a, const B& b, ProductPlace place, int rows, int columns,
                    int first_step, int end_step, Besides besides, Finish finish) {
    Accumulators<Shape> acc = {};
    product_sums<Shape>(acc, storage, a, b, place, first_step, end_step, besides);
    if (!PLANTED_BUG("product: no barrier before the result takes the stages' place")) {
        __syncthreads();  // every warp has read its last stage
    }
    const int m = warp_row<Shape>(), n = warp_column<Shape>();
    UNROLL
    for (int i = 0; i < Shape::kFragmentsM; ++i) {
        UNROLL
        for (int j = 0; j < Shape::kFragmentsN; ++j) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int row = m + i * kFragmentRows + accumulator_row(2 * half);
                const int column = n + j * kFragmentColumns + accumulator_column(0);
                *reinterpret_cast<float2*>(&storage.result.element[row][column]) =
                    make_float2(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
            }
        }
    }
    if (!PLANTED_BUG("product: no barrier before the result is read")) {
        __syncthreads();  // the whole tile is laid out
    }
    constexpr int kAcross = Shape::kTileN / kWidth;
    ROLLED
    for (int i = threadIdx.x; i < Shape::kTileM * kAcross; i += Shape::kThreads) {
        const int row = i / kAcross, column = i % kAcross * kWidth;
        if (place.m + row >= rows || place.n + column >= columns) continue;
        float values[kWidth];
        load_result(values, &storage.result.element[row][column]);
        finish(place.m + row, place.n + column, values);
    }
}

// Whether rows of `columns` elements from `data` on may be read and written 16 bytes at a time; null may.
template <class T>
DEVICE bool has_vectors(const T* data, int columns) {
    return uintptr_t(data) % 16 == 0 && columns % kVector<T> == 0;
}
