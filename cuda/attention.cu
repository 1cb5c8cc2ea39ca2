// Attention forward; the gradients are in attention_backward.cu.
#include "attention/forward.cuh"

// attention_forward_d<32|64|96|128>_<f32|bf16>: softmax(D^-1/2·q·kᵀ)·v of every head, without a [T,T] matrix in memory.
// Math     : s = D^-1/2 q kᵀ, −∞ where the mask hides the key    p = exp(s − lse)    o = p v    lse = log Σ exp s
//            computed as o = Σ 2^(s' − m) v / Σ 2^(s' − m) with s' = s·log2 e and m the running maximum; a query that sees
//            nothing (padding) gets o = 0 and lse = 0
// Tensors  : o elem [B,Tq,H,D] | lse f32 [B,H,Tq] or null | query, key, value elem, heads side by side in rows of any pitch;
//            key head h / group serves query head h | segments i32 [B,T] or null      alignment: 16 B, D % 8 == 0
// Grid     : B·H·ceil(Tq / queries) blocks      Block: 128 threads = 4 warps; 32 queries a warp in bf16, 16 in f32
// Smem     : sizeof(ForwardStorage) = (queries + 2 keys)·(D + pad)·e: bf16 37 KB for D 64, 52 KB for D 128; f32 at most 69 KB
// Work     : 4·D flop for each pair the mask lets see, in tiles of 64 keys (bf16; 48 and 32 for D 96 and 128, whose outputs
//            fill the registers) or 32 (f32), six times that in products of parts for f32; reads q once, k and v once a
//            block (from L2 but the first time); writes o, lse
//            bound: tensor cores above about 200 keys. Expected on H100, bf16, T >= 1024: 0.3 of the dense peak for D 64
//            (mma.sync reaches about 0.6 of it, and the exponential, maximum and sum of a score take nearly as long as its
//            products and overlap only with those of other warps), 0.35 for D 128; f32: a tenth of that (six products of
//            parts, and the splitting of operands)
// Accuracy : scores, softmax and sums in f32; bf16 rounds p once before p·v (the sum of p is taken before); exp2 to 2^-22
// Ragged   : D is padded with zeros in shared memory to the next of 32, 64, 96, 128; any Tq and T: groups of 16 keys that no
//            row of a warp sees are left out, and whole key tiles that mask or segments hide from the block
// Order    : deterministic: keys in order within a block, no exchange between blocks
// Source   : Vaswani et al. 2017, eq. 1; Dao 2023 (FlashAttention-2), algorithm 1; Milakov and Gimelshein 2018
#define ATTENTION_FORWARD(T, kDim) \
    extern "C" __global__ void __launch_bounds__(128, 1) attention_forward_d##kDim##_##T( \
        ELEMENT_##T* o, float* lse, const ELEMENT_##T* query, const ELEMENT_##T* key, const ELEMENT_##T* value, float scale, \
        GEOMETRY_PARAMETERS) { \
        attention_forward<ELEMENT_##T, kDim>(o, lse, query, key, value, scale, GEOMETRY); \
    } \
    KERNEL(attention_forward_d##kDim##_##T, 128, ForwardStorage<ELEMENT_##T, kDim>)

ATTENTION_FORWARD(f32, 32)
ATTENTION_FORWARD(f32, 64)
ATTENTION_FORWARD(f32, 96)
ATTENTION_FORWARD(f32, 128)
ATTENTION_FORWARD(bf16, 32)
ATTENTION_FORWARD(bf16, 64)
ATTENTION_FORWARD(bf16, 96)
ATTENTION_FORWARD(bf16, 128)
