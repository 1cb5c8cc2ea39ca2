// Attention backward, in three steps: δ, the gradient of the queries, the gradients of keys and values; a fourth where all
// batch rows share their queries. The forward pass is in attention.cu.
#include "attention/backward.cuh"

HOST_CONSTANT int kElementThreads = 256;
HOST_CONSTANT int kDeltaLanes = 8;  // lanes that share a row of one head
constexpr int kLargestDim = 128;

// attention_backward_delta_<f32|bf16>: how much of the output's gradient lies along the output.
// Math     : δ = Σ over d of o·do
// Tensors  : delta f32 [B,H,Tq] | o, d_output elem [B,Tq,H,D]      alignment: 16 B, D % 8 == 0
// Grid     : ceil(8·B·Tq·H / 256) blocks      Block: 256 threads, eight a row of one head
// Smem     : none
// Work     : 2·D flop a row; reads 2·B·Tq·H·D·e B, writes 4·B·Tq·H B      bound: memory, 0.85 of its peak expected: every
//            read is 16 bytes of a contiguous stream
// Accuracy : sum in f32
// Ragged   : D up to 128; below 8 vectors some lanes are idle
// Order    : deterministic: a fixed tree over eight lanes
// Source   : Dao 2023 (FlashAttention-2), algorithm 2, line 4
template <class T>
DEVICE void attention_delta(float* delta, const T* o, const T* d_output, int64_t rows, int heads, int dim, int query_tokens) {
    const int64_t item = (int64_t(blockIdx.x) * kElementThreads + threadIdx.x) / kDeltaLanes;  // (b, t, h)
    const int lane = int(threadIdx.x) % kDeltaLanes;
    float sum = 0.0f;
    if (item < rows) {
        UNROLL
        for (int step = 0; step < kLargestDim / (kDeltaLanes * kVector<T>); ++step) {
            const int column = (step * kDeltaLanes + lane) * kVector<T>;
            if (column >= dim) break;
            float left[kVector<T>], right[kVector<T>];
            load_columns(left, o + item * dim, column, dim, true);
            load_columns(right, d_output + item * dim, column, dim, true);
            UNROLL
            for (int i = 0; i < kVector<T>; ++i) sum = fmaf(left[i], right[i], sum);
        }
    }
    UNROLL
    for (int distance = kDeltaLanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    if (item >= rows || lane != 0) return;
    const int64_t token = item / heads, head = item % heads;
    delta[(token / query_tokens * heads + head) * query_tokens + token % query_tokens] = sum;
}

// attention_backward_query_d<32|64|96|128>_<f32|bf16>: the gradient of the queries.
// Math     : p = exp(s − lse)    dS = p ∘ (do vᵀ − δ)    dq = D^-1/2 dS k      with s as in attention.cu
// Tensors  : d_query elem, in the layout of query; or partial f32 [B,Tq,H,D] where all batch rows share their queries (else
//            null) | d_output elem [B,Tq,H,D] | log_sum_exp, delta f32 [B,H,Tq] | the rest as in attention.cu
// Grid     : B·H·ceil(Tq / rows) blocks      Block: bf16 64 threads = 2 warps of 32 queries; f32 128 = 4 of 16,
//            of D > 96 64
// Smem     : sizeof(QueryGradientStorage) = (2 rows + 4 tile)·(D + 8)·e: bf16 37 KB for D 64, 70 KB for D 128; f32 at most
//            80 KB (D 96): all below the 99 KB of the smallest sm_8x
// Work     : 6·D flop a visible pair (s and dp anew, dq); reads q, do, lse, δ once, k and v once a block; writes dq
//            bound: tensor cores in bf16, as a fragment of keys serves 32 queries: with 16, shared memory would bind. f32
//            takes about ten times as long (six products of parts, and the splitting of operands). Predicted times:
//            docs/reference/counts.md
// Accuracy : sums in f32; bf16 rounds dS once before dS·k
// Ragged   : as attention forward
// Order    : deterministic: keys in order within a block
// Source   : Dao 2023 (FlashAttention-2), algorithm 2, with the loops the other way round for dq
#define ATTENTION_BACKWARD_QUERY(T, kDim) \
    extern "C" __global__ void __launch_bounds__(BackwardShape<ELEMENT_##T, kDim>::kQueryThreads, 1) \
        attention_backward_query_d##kDim##_##T(ELEMENT_##T* d_query, float* partial, const ELEMENT_##T* query, \
                                               const ELEMENT_##T* key, const ELEMENT_##T* value, \
                                               const ELEMENT_##T* d_output, const float* log_sum_exp, const float* delta, \
                                               float scale, GEOMETRY_PARAMETERS) { \
        query_gradient<ELEMENT_##T, kDim>(d_query, partial, query, key, value, {d_output, log_sum_exp, delta}, scale, \
                                          GEOMETRY); \
    } \
    KERNEL(attention_backward_query_d##kDim##_##T, (BackwardShape<ELEMENT_##T, kDim>::kQueryThreads), \
           QueryGradientStorage<ELEMENT_##T, kDim>)

// attention_backward_key_value_d<32|64|96|128>_<f32|bf16>: the gradients of the keys and values.
// Math     : dv = pᵀ do    dk = D^-1/2 dSᵀ q      summed over the query heads that share a key head; p, dS as above
// Tensors  : d_key, d_value elem, in the layout of key and value | the rest as above
// Grid     : B·Hk·ceil(T / rows) blocks      Block: bf16 of D <= 64 64 threads = 2 warps of 32 keys; else 128 = 4 of 16;
//            f32 of D > 96 two warps for 16 keys, each with all their scores and half the gradients' columns, which do not
//            fit the registers of one
// Smem     : sizeof(KeyValueGradientStorage): as above and 16 B for each row of a tile
// Work     : 8·D flop a visible pair (s and dp anew, dk, dv); reads k, v once, q, do, lse, δ once a block; writes dk, dv
//            bound: bf16 of D <= 64 as above, else shared memory; together the two kernels do 14·D flop a pair where 10·D are needed: the price of
//            sums in a fixed order without a [T,T] matrix or atomic additions
// Accuracy : sums in f32; bf16 rounds p and dS once before the products
// Ragged   : as attention forward; queries past the end are zeros
// Order    : deterministic: heads, then queries in order within a block
// Source   : Dao 2023 (FlashAttention-2), algorithm 2; grouped heads: Ainslie et al. 2023
#define ATTENTION_BACKWARD_KEY_VALUE(T, kDim) \
    extern "C" __global__ void __launch_bounds__(BackwardShape<ELEMENT_##T, kDim>::kKeyValueThreads, 1) \
        attention_backward_key_value_d##kDim##_##T(ELEMENT_##T* d_key, ELEMENT_##T* d_value, const ELEMENT_##T* query, \
                                                   const ELEMENT_##T* key, const ELEMENT_##T* value, \
                                                   const ELEMENT_##T* d_output, const float* log_sum_exp, \
                                                   const float* delta, float scale, GEOMETRY_PARAMETERS) { \
        key_value_gradient<ELEMENT_##T, kDim>(d_key, d_value, query, key, value, {d_output, log_sum_exp, delta}, scale, \
                                              GEOMETRY); \
    } \
    KERNEL(attention_backward_key_value_d##kDim##_##T, (BackwardShape<ELEMENT_##T, kDim>::kKeyValueThreads), \
           KeyValueGradientStorage<ELEMENT_##T, kDim>)

// attention_backward_query_sum_<f32|bf16>: the gradient of queries that all batch rows share.
// Math     : y = Σ over b of partial_b
// Tensors  : y elem [n] | partial f32 [B,n]      alignment: none
// Grid     : ceil(n / 256) blocks      Block: 256 threads, one element a thread
// Smem     : none
// Work     : B·n flop; reads 4·B·n B, writes n·e B      bound: memory; n is a few heads of one query, so launch
// Accuracy : sum in f32, one rounding
// Ragged   : any n, any B
// Order    : deterministic: batch rows in order
// Source   : -
template <class T>
DEVICE void attention_query_sum(T* y, const float* partial, int64_t n, int batch) {
    const int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
    if (i >= n) return;
    float sum = 0.0f;
    for (int b = 0; b < batch; ++b) sum += partial[b * n + i];
    y[i] = from_float<T>(sum);
}

#define ATTENTION_BACKWARD(T) \
    extern "C" __global__ void __launch_bounds__(kElementThreads) attention_backward_delta_##T( \
        float* delta, const ELEMENT_##T* o, const ELEMENT_##T* d_output, int64_t rows, int heads, int dim, \
        int query_tokens) { \
        attention_delta(delta, o, d_output, rows, heads, dim, query_tokens); \
    } \
    KERNEL(attention_backward_delta_##T, kElementThreads) \
    extern "C" __global__ void __launch_bounds__(kElementThreads) attention_backward_query_sum_##T( \
        ELEMENT_##T* y, const float* partial, int64_t n, int batch) { \
        attention_query_sum(y, partial, n, batch); \
    } \
    KERNEL(attention_backward_query_sum_##T, kElementThreads) \
    ATTENTION_BACKWARD_QUERY(T, 32) \
    ATTENTION_BACKWARD_QUERY(T, 64) \
    ATTENTION_BACKWARD_QUERY(T, 96) \
    ATTENTION_BACKWARD_QUERY(T, 128) \
    ATTENTION_BACKWARD_KEY_VALUE(T, 32) \
    ATTENTION_BACKWARD_KEY_VALUE(T, 64) \
    ATTENTION_BACKWARD_KEY_VALUE(T, 96) \
    ATTENTION_BACKWARD_KEY_VALUE(T, 128)

ATTENTION_BACKWARD(f32)
ATTENTION_BACKWARD(bf16)
