// The zoo, fragments: cuda/fragment.cuh by itself. Two warps compute D [m,n] = A·B and E [m,n] = D·C for m <= 32,
// n <= 16, k <= 48, every operand either way round.
#include "../../fragment.cuh"

template <class T>
struct FragmentTiles {
    Tile<T, 32, 48> a;             // A[m][k]
    Tile<T, 48, 32, 16 / sizeof(T)> a_transposed;  // A[k][m]
    Tile<T, 16, 48> b;             // B[n][k]
    Tile<T, 48, 16, 16 / sizeof(T)> b_transposed;  // B[k][n]
    Tile<T, 16, 16> c;             // C[n][n'], or [n'][n]
};

// `turned` bit 0: a is [k,m], else [m,k]; bit 1: b is [k,n], else [n,k]; bit 2: c is [n,n'], else [n',n].
template <class T>
DEVICE void fragments(float* d, float* e, const T* a, const T* b, const T* c, int m, int n, int k, int turned) {
    SHARED_STORAGE(FragmentTiles<T>, tiles);
    constexpr int kThreads = 2 * kWarpLanes;
    const int thread = threadIdx.x, warp = thread / kWarpLanes;
    if (turned & 1)
        load_tile_async<kThreads>(tiles.a_transposed, matrix(a, k, m), 0, 0, thread);
    else
        load_tile_async<kThreads>(tiles.a, matrix(a, m, k), 0, 0, thread);
    if (turned & 2)
        load_tile_async<kThreads>(tiles.b_transposed, matrix(b, k, n), 0, 0, thread);
    else
        load_tile_async<kThreads>(tiles.b, matrix(b, n, k), 0, 0, thread);
    load_tile_async<kThreads>(tiles.c, matrix(c, n, n), 0, 0, thread);
    cp_async_commit();
    if (!PLANTED_BUG("fragment: no wait for the tiles")) cp_async_wait<0>();
    if (!PLANTED_BUG("fragment: no barrier before the tiles are read")) {
        __syncthreads();  // the tiles are there
    }
    float acc[2][4] = {};
    for (int depth = 0; depth < 48; depth += kFragmentDepth) {
        FragmentA<T> left;
        FragmentB<T> right[2];
        if (turned & 1)
            load_a_transposed(left, tiles.a_transposed, 16 * warp, depth);
        else
            load_a(left, tiles.a, 16 * warp, depth);
        if (turned & 2)
            load_b_pair_transposed(right, tiles.b_transposed, 0, depth);
        else
            load_b_pair(right, tiles.b, 0, depth);
        for (int j = 0; j < 2; ++j) multiply_add(acc[j], left, right[j]);
    }
    FragmentA<T> product;
    accumulators_to_a(product, acc[0], acc[1]);
    for (int j = 0; j < 2; ++j) {
        FragmentB<T> right;
        if (turned & 4)
            load_b_transposed(right, tiles.c, 8 * j, 0);
        else
            load_b(right, tiles.c, 8 * j, 0);
        float next[4] = {};
        multiply_add(next, product, right);
        for (int i = 0; i < 4; ++i) {
            const int row = 16 * warp + accumulator_row(i), column = 8 * j + accumulator_column(i);
            if (row < m && column < n) {
                d[row * n + column] = acc[j][i];
                e[row * n + column] = next[i];
            }
        }
    }
}
extern "C" __global__ void zoo_clean_fragments_f32(float* d, float* e, const float* a, const float* b, const float* c,
                                                   int m, int n, int k, int turned) {
    fragments(d, e, a, b, c, m, n, k, turned);
}
KERNEL(zoo_clean_fragments_f32, 64, FragmentTiles<float>)
extern "C" __global__ void zoo_clean_fragments_bf16(float* d, float* e, const bf16* a, const bf16* b, const bf16* c,
                                                    int m, int n, int k, int turned) {
    fragments(d, e, a, b, c, m, n, k, turned);
}
KERNEL(zoo_clean_fragments_bf16, 64, FragmentTiles<bf16>)
