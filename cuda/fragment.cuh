// Matrix products by a warp: tiles in shared memory, operand fragments in registers, accumulators in f32. The storage type
// decides how: bf16 goes to the tensor cores as it is; f32 is split into three bf16, and six products make one of f32
// accuracy. A kernel written with these functions is the same text for both.
//
//     Tile<T, rows, columns>          a tile in shared memory
//     load_tile_async                 global → shared, edges filled with zero; then cp_async_commit, cp_async_wait, a barrier
//     load_a, load_b, ..._transposed  shared → fragments
//     accumulators_to_a               a result becomes the left operand of the next product
//     multiply_add                    acc [16,8] += a [16,16] · b [16,8]
//
// One product is C(m,n) += Σ over k of A(m,k)·B(k,n) with m 16, n 8, k 16. Each operand's tile may lie either way round:
//     load_a             tile[m][k]        load_b             tile[n][k]         k runs along a row
//     load_a_transposed  tile[k][m]        load_b_transposed  tile[k][n]         k runs down the rows
// A bf16 fragment may also be read from an f32 tile: it is rounded on the way.
// All 32 lanes of the warp take part in every call but the copies.
#pragma once
#include "elem.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

constexpr int kFragmentRows = 16;     // m of one product
constexpr int kFragmentColumns = 8;   // n of one product
constexpr int kFragmentDepth = 16;    // k of one product

// ---- Tiles in shared memory ----

// kRows × kColumns elements. The rows of a tile are spread over the banks so that an ldmatrix, which reads the same 16 bytes of
// eight rows, meets no bank twice: by a pad at the end of each row, or, with kPad_ 0, by exchanging the 16-byte pieces of a
// row of 64 or 128 bytes among each other (an XOR with the row's number). A pad makes 16-byte copies of rows shorter than 128
// bytes meet a bank twice, because it comes between rows that are copied at once; the exchange does not. For f32 a pad of 8
// suits fragments along k and 4 those of transposed loads; the other kind then takes two turns.
template <class T, int kRows_, int kColumns_, int kPad_ = 8>
struct Tile {
    using Element = T;
    static constexpr int kRows = kRows_, kColumns = kColumns_, kPitch = kColumns_ + kPad_;
    static constexpr bool kIsExchanged = kPad_ == 0;
    static constexpr int kPieces = kColumns / kVector<T>;
    static_assert(kColumns % 16 == 0 && kPad_ % kVector<T> == 0, "rows are aligned to 16 bytes");
    static_assert(!kIsExchanged || kPieces == 4 || kPieces == 8, "rows are exchanged within the 128 bytes of all banks");
    alignas(16) T element[kRows][kPitch];

    // Where the element (row, column) lies, and its place in its row. The 16 bytes that begin at a multiple of them stay together.
    DEVICE_MEMBER T* at(int row, int column) { return &element[row][place(row, column)]; }
    DEVICE_MEMBER const T* at(int row, int column) const { return &element[row][place(row, column)]; }
    DEVICE_MEMBER static int place(int row, int column) {
        if constexpr (kIsExchanged) {
            // Two rows of 64 bytes lie side by side in the banks, so two have the same exchange.
            return column ^ (row / (8 / kPieces) % kPieces) * kVector<T>;
        }
        return column;
    }
};

// A row-major matrix in global memory, as the tile loader wants it.
template <class T>
struct Matrix {
    const T* data;
    int64_t pitch;      // elements from row to row
    int rows, columns;
    int access;         // bytes one copy may take: 16, 8, 4 or 2, by the alignment of data and pitch
};

// The matrix [rows, columns] whose row r starts at data + r·pitch.
template <class T>
DEVICE Matrix<T> matrix(const T* data, int rows, int columns, int64_t pitch) {
    const uint64_t alignment = uint64_t(uintptr_t(data)) | uint64_t(pitch) * sizeof(T);
    const int access = alignment % 16 == 0 ? 16 : alignment % 8 == 0 ? 8 : alignment % 4 == 0 ? 4 : 2;
    return {data, pitch, rows, columns, access};
}
template <class T>
DEVICE Matrix<T> matrix(const T* data, int rows, int columns) {
    return matrix(data, rows, columns, int64_t(columns));
}

// The bytes of a piece of kBytes of which `inside` elements (any number, less than one is none) lie within the matrix.
template <int kBytes, class T>
DEVICE uint32_t bytes_inside(int inside) {
    return uint32_t(min(max(inside, 0), kBytes / int(sizeof(T)))) * uint32_t(sizeof(T));
}

// One asynchronous copy of a piece of kBytes from global to shared memory: `bytes` are read, the rest becomes zero. Two bytes
// have no asynchronous copy and are moved on the spot.
template <int kBytes, class T>
DEVICE void copy_piece(T* to, const T* from, uint32_t bytes CALLER) {
    if constexpr (kBytes == 16) {
        cp_async_16(shared_address(to), from, bytes FOR_CALLER);
    } else if constexpr (kBytes == 8) {
        cp_async_8(shared_address(to), from, bytes FOR_CALLER);
    } else if constexpr (kBytes == 4) {
        cp_async_4(shared_address(to), from, bytes FOR_CALLER);
    } else {
        *to = bytes ? *from : T{};
    }
}

template <int kBytes, int kThreads, class SharedTile, class T>
DEVICE void copy_tile(SharedTile& tile, const Matrix<T>& from, int first_row, int first_column, int thread CALLER) {
    constexpr int kElements = kBytes / int(sizeof(T)), kAcross = SharedTile::kColumns / kElements;
    constexpr int kDown = kThreads / kAcross, kPieces = SharedTile::kRows * kAcross;
    // Eight rows further on the pieces of a row are exchanged as here.
    constexpr bool kIsBelow = !SharedTile::kIsExchanged || kDown % 8 == 0;
    if constexpr (kBytes >= 8 && kIsBelow && kThreads % kAcross == 0 && SharedTile::kRows % kDown == 0) {
        // Each thread stays in its column of pieces and takes every kDown-th row, by additions alone.
        const int row = thread / kAcross, column = thread % kAcross * kElements, rows = from.rows - first_row - row;
        const uint32_t bytes = bytes_inside<kBytes, T>(from.columns - (first_column + column));
        const T* source = from.data + int64_t(first_row + row) * from.pitch + first_column + column;
        const int place = SharedTile::place(row, column);
        if constexpr (kBytes == 16) {
            UNROLL
            for (int turn = 0; turn < SharedTile::kRows; turn += kDown, source += kDown * from.pitch)
                copy_piece<kBytes>(&tile.element[row + turn][place], source, turn < rows ? bytes : 0 FOR_CALLER);
        } else {
            // Not unrolled, as every kernel has this text besides the usual one.
            ROLLED
            for (int turn = 0; turn < SharedTile::kRows; turn += kDown, source += kDown * from.pitch)
                copy_piece<kBytes>(&tile.element[row + turn][place], source, turn < rows ? bytes : 0 FOR_CALLER);
        }
    } else {
        // What narrow copies need is not kept from step to step, and they are not unrolled: registers would be full.
        ROLLED
        for (int piece = thread; piece < kPieces; piece += kThreads) {
            const int row = piece / kAcross, column = piece % kAcross * kElements;
            const T* source = from.data + int64_t(first_row + row) * from.pitch + first_column + column;
            const int inside = first_row + row < from.rows ? from.columns - (first_column + column) : 0;
            copy_piece<kBytes>(tile.at(row, column), source, bytes_inside<kBytes, T>(inside) FOR_CALLER);
        }
    }
}

// Starts to copy the part of `from` that begins at (first_row, first_column) into `tile`, by threads 0..kThreads-1 of the
// block (`thread` is the caller's number among them); what lies outside the matrix becomes zero. first_column is a
// multiple of 8. The tile may be read behind cp_async_commit, cp_async_wait and a barrier. bf16 rows at odd places have
// no asynchronous copy: they are read and written on the spot, and need the barrier only.
template <int kThreads, class SharedTile, class T>
DEVICE void load_tile_async(SharedTile& tile, const Matrix<T>& from, int first_row, int first_column, int thread CALLER) {
    if (from.access == 16) {
        copy_tile<16, kThreads>(tile, from, first_row, first_column, thread FOR_CALLER);
    } else if (from.access == 8) {
        copy_tile<8, kThreads>(tile, from, first_row, first_column, thread FOR_CALLER);
    } else if (sizeof(T) == 4 || from.access == 4) {
        copy_tile<4, kThreads>(tile, from, first_row, first_column, thread FOR_CALLER);
    } else {
        copy_tile<int(sizeof(T)), kThreads>(tile, from, first_row, first_column, thread FOR_CALLER);
    }
}

// ---- Fragments ----

// How many bf16 make up one element: an f32 is exactly the sum of three (8 + 8 + 8 bits).
template <class T> constexpr int kParts = sizeof(T) == 2 ? 1 : 3;

// A [16,16] and B [16,8] over the lanes of a warp, as ptx/mma.cuh describes; the largest part comes first.
template <class T> struct FragmentA { uint32_t part[kParts<T>][4]; };
template <class T> struct FragmentB { uint32_t part[kParts<T>][2]; };

// This lane's place in an accumulator float[4], C [16,8]: element i lies at (accumulator_row(i), accumulator_column(i)).
// Elements 0 and 1 are neighbours in a row, 2 and 3 lie eight rows below them. The four lanes 4g..4g+3 share rows g, g+8.
DEVICE int accumulator_row(int i) { return int(threadIdx.x) % kWarpLanes / 4 + i / 2 * 8; }
DEVICE int accumulator_column(int i) { return int(threadIdx.x) % 4 * 2 + i % 2; }

// Writes elements 0 and 1, or 2 and 3, of an accumulator in one access: neighbours in a row, aligned to their size.
DEVICE void store_pair(float* to, float low, float high) { *reinterpret_cast<float2*>(to) = make_float2(low, high); }
DEVICE void store_pair(bf16* to, float low, float high) { *reinterpret_cast<uint32_t*>(to) = bf16_pair_bits(low, high); }

// Puts two f32 into register `i` of a fragment: bf16 rounds them, f32 splits them into three parts. The split is exact unless
// the value is beyond the largest bf16 (3.39e38, infinity too: the result is NaN) or so small that its last bits are below
// 2^-133.
template <class Fragment>
DEVICE void put(Fragment& fragment, int i, float low, float high) {
    constexpr int kCount = int(sizeof(fragment.part) / sizeof(fragment.part[0]));
    UNROLL
    for (int part = 0; part < kCount; ++part) {
        const uint32_t pair = bf16_pair_bits(low, high);
        fragment.part[part][i] = pair;
        low -= low_to_float(pair);
        high -= high_to_float(pair);
    }
}

// ldmatrix: where this lane's row of 16 bytes starts, in the 16 × 16 elements at (row, column) of a tile. Matrix q of four is
// given by lanes 8q..8q+7: 1 lies below 0 and 2 beside it where `down_first`, else 1 lies beside 0 and 2 below it.
template <class SharedTile>
DEVICE uint32_t matrix_row(const SharedTile& tile, int row, int column, bool down_first CALLER) {
    const int lane = int(threadIdx.x) % kWarpLanes, q = lane / 8;
    const int down = down_first ? q % 2 : q / 2, across = down_first ? q / 2 : q % 2;
    return shared_address(tile.at(row + down * 8 + lane % 8, column + across * 8) FOR_CALLER);
}

// A from tile[m][k] at row m = `row`, column k.
template <int kRows, int kColumns, int kPad>
DEVICE void load_a(FragmentA<bf16>& a, const Tile<bf16, kRows, kColumns, kPad>& tile, int row, int k CALLER) {
    ldmatrix_x4(a.part[0], matrix_row(tile, row, k, true FOR_CALLER) FOR_CALLER);
}
template <class T, int kRows, int kColumns, int kPad>
DEVICE void load_a(FragmentA<T>& a, const Tile<float, kRows, kColumns, kPad>& tile, int row, int k) {
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const float2 pair = *reinterpret_cast<const float2*>(
            &tile.element[row + accumulator_row(0) + i % 2 * 8][k + accumulator_column(0) + i / 2 * 8]);
        put(a, i, pair.x, pair.y);
    }
}

// A from tile[k][m] at row k, column m = `row`.
template <int kRows, int kColumns, int kPad>
DEVICE void load_a_transposed(FragmentA<bf16>& a, const Tile<bf16, kRows, kColumns, kPad>& tile, int row, int k CALLER) {
    ldmatrix_x4_transposed(a.part[0], matrix_row(tile, k, row, false FOR_CALLER) FOR_CALLER);
}
template <class T, int kRows, int kColumns, int kPad>
DEVICE void load_a_transposed(FragmentA<T>& a, const Tile<float, kRows, kColumns, kPad>& tile, int row, int k) {
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const int depth = k + accumulator_column(0) + i / 2 * 8, m = row + accumulator_row(0) + i % 2 * 8;
        put(a, i, tile.element[depth][m], tile.element[depth + 1][m]);
    }
}

// B for columns n..n+7 and n+8..n+15 from tile[n][k] at row n, column k.
template <int kRows, int kColumns, int kPad>
DEVICE void load_b_pair(FragmentB<bf16> (&b)[2], const Tile<bf16, kRows, kColumns, kPad>& tile, int n, int k CALLER) {
    uint32_t registers[4];
    ldmatrix_x4(registers, matrix_row(tile, n, k, false FOR_CALLER) FOR_CALLER);
    UNROLL
    for (int i = 0; i < 4; ++i) b[i / 2].part[0][i % 2] = registers[i];
}
// B for columns n..n+7 alone.
template <int kRows, int kColumns, int kPad>
DEVICE void load_b(FragmentB<bf16>& b, const Tile<bf16, kRows, kColumns, kPad>& tile, int n, int k CALLER) {
    const int lane = int(threadIdx.x) % 16;  // the other lanes' addresses are not used
    ldmatrix_x2(b.part[0], shared_address(tile.at(n + lane % 8, k + lane / 8 * 8) FOR_CALLER) FOR_CALLER);
}
template <class T, int kRows, int kColumns, int kPad>
DEVICE void load_b(FragmentB<T>& b, const Tile<float, kRows, kColumns, kPad>& tile, int n, int k) {
    UNROLL
    for (int i = 0; i < 2; ++i) {
        const float2 pair = *reinterpret_cast<const float2*>(
            &tile.element[n + accumulator_row(0)][k + accumulator_column(0) + i * 8]);
        put(b, i, pair.x, pair.y);
    }
}
template <class T, int kRows, int kColumns, int kPad>
DEVICE void load_b_pair(FragmentB<T> (&b)[2], const Tile<float, kRows, kColumns, kPad>& tile, int n, int k) {
    load_b(b[0], tile, n, k);
    load_b(b[1], tile, n + 8, k);
}

// B for columns n..n+7 and n+8..n+15 from tile[k][n] at row k, column n.
template <int kRows, int kColumns, int kPad>
DEVICE void load_b_pair_transposed(FragmentB<bf16> (&b)[2], const Tile<bf16, kRows, kColumns, kPad>& tile, int n, int k CALLER) {
    uint32_t registers[4];
    ldmatrix_x4_transposed(registers, matrix_row(tile, k, n, true FOR_CALLER) FOR_CALLER);
    UNROLL
    for (int i = 0; i < 4; ++i) b[i / 2].part[0][i % 2] = registers[i];
}
// B for columns n..n+7 alone.
template <int kRows, int kColumns, int kPad>
DEVICE void load_b_transposed(FragmentB<bf16>& b, const Tile<bf16, kRows, kColumns, kPad>& tile, int n, int k CALLER) {
    const int lane = int(threadIdx.x) % 16;  // the other lanes' addresses are not used
    ldmatrix_x2_transposed(b.part[0], shared_address(tile.at(k + lane, n) FOR_CALLER) FOR_CALLER);
}
template <class T, int kRows, int kColumns, int kPad>
DEVICE void load_b_transposed(FragmentB<T>& b, const Tile<float, kRows, kColumns, kPad>& tile, int n, int k) {
    UNROLL
    for (int i = 0; i < 2; ++i) {
        const int depth = k + accumulator_column(0) + i * 8, column = n + accumulator_row(0);
        put(b, i, tile.element[depth][column], tile.element[depth + 1][column]);
    }
}
template <class T, int kRows, int kColumns, int kPad>
DEVICE void load_b_pair_transposed(FragmentB<T> (&b)[2], const Tile<float, kRows, kColumns, kPad>& tile, int n, int k) {
    load_b_transposed(b[0], tile, n, k);
    load_b_transposed(b[1], tile, n + 8, k);
}

// The accumulators of columns 0..7 (`left`) and 8..15 (`right`) as the left operand of a next product, without a way
// through memory: bf16 rounds them, f32 splits them.
template <class T>
DEVICE void accumulators_to_a(FragmentA<T>& a, const float (&left)[4], const float (&right)[4]) {
    UNROLL
    for (int i = 0; i < 2; ++i) {
        put(a, i, left[2 * i], left[2 * i + 1]);
        put(a, 2 + i, right[2 * i], right[2 * i + 1]);
    }
}

// ---- The product ----

// acc += a·b. f32: the six products of parts that matter, small ones first; what is left out is below 2^-25 of |a|·|b|.
// Tensor cores cut off where they add to their accumulator instead of rounding, which over a long k adds up to more than
// f32's own error; so the six are summed apart and added with rounding.
// Source: Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores", section 4.
DEVICE void multiply_add(float (&acc)[4], const FragmentA<bf16>& a, const FragmentB<bf16>& b CALLER) {
    mma_bf16_16x8x16(acc, a.part[0], b.part[0][0], b.part[0][1] FOR_CALLER);
}
DEVICE void multiply_add(float (&acc)[4], const FragmentA<float>& a, const FragmentB<float>& b CALLER) {
    float sum[4] = {};
    UNROLL
    for (int order = 2; order >= 0; --order) {
        UNROLL
        for (int part = 0; part <= order; ++part)
            mma_bf16_16x8x16(sum, a.part[part], b.part[order - part][0], b.part[order - part][1] FOR_CALLER);
    }
    UNROLL
    for (int i = 0; i < 4; ++i) acc[i] += sum[i];
}
