// The zoo, wrappers: each instruction of cuda/ptx by itself, in a kernel `zoo_wrapper_<its wrapper>`. nvcc compiles this file
// too, so that what the emulator does and what the PTX says are held to the same values. `in` and `out` are 512 words each.
#include "../../ptx/barrier.cuh"
#include "../../ptx/convert.cuh"
#include "../../ptx/cp_async.cuh"
#include "../../ptx/ldmatrix.cuh"
#include "../../ptx/math.cuh"
#include "../../ptx/mma.cuh"

struct Words {
    alignas(16) uint32_t word[512];
};

#define WRAPPER(name) extern "C" __global__ void zoo_wrapper_##name(uint32_t* out, const uint32_t* in)

// ---- One lane, one value ----

WRAPPER(bf16_bits) { out[threadIdx.x] = bf16_bits(__uint_as_float(in[threadIdx.x])); }
KERNEL(zoo_wrapper_bf16_bits, 128)

WRAPPER(bf16_pair_bits) {
    out[threadIdx.x] = bf16_pair_bits(__uint_as_float(in[threadIdx.x]), __uint_as_float(in[128 + threadIdx.x]));
}
KERNEL(zoo_wrapper_bf16_pair_bits, 128)

WRAPPER(exp2_approximate) { out[threadIdx.x] = __float_as_uint(exp2_approximate(__uint_as_float(in[threadIdx.x]))); }
KERNEL(zoo_wrapper_exp2_approximate, 128)

WRAPPER(reciprocal_approximate) { out[threadIdx.x] = __float_as_uint(reciprocal_approximate(__uint_as_float(in[threadIdx.x]))); }
KERNEL(zoo_wrapper_reciprocal_approximate, 128)

// The distance of every word from the first, in bytes.
WRAPPER(shared_address) {
    SHARED_STORAGE(Words, shared);
    shared.word[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = shared_address(&shared.word[threadIdx.x]) - shared_address(&shared.word[0]);
}
KERNEL(zoo_wrapper_shared_address, 128, Words)

// ---- Copies: a thread brings four words, of which another thread reads what came ----

DEVICE void read_neighbour(uint32_t* out, const Words& shared) {
    __syncthreads();  // every thread has waited for its own copies
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = shared.word[4 * (threadIdx.x ^ 1) + i];
}

// Of 0 to 16 bytes, by the thread.
WRAPPER(cp_async_16) {
    SHARED_STORAGE(Words, shared);
    cp_async_16(shared_address(&shared.word[4 * threadIdx.x]), in + 4 * threadIdx.x, threadIdx.x % 17);
    cp_async_commit();
    cp_async_wait<0>();
    read_neighbour(out, shared);
}
KERNEL(zoo_wrapper_cp_async_16, 128, Words)

WRAPPER(cp_async_8) {
    SHARED_STORAGE(Words, shared);
    const int place = 4 * int(threadIdx.x);
    cp_async_8(shared_address(&shared.word[place]), in + place, threadIdx.x % 9);
    cp_async_8(shared_address(&shared.word[place + 2]), in + place + 2);
    cp_async_commit();
    cp_async_wait<0>();
    read_neighbour(out, shared);
}
KERNEL(zoo_wrapper_cp_async_8, 128, Words)

WRAPPER(cp_async_4) {
    SHARED_STORAGE(Words, shared);
    const int place = 4 * int(threadIdx.x);
    for (int i = 0; i < 3; ++i) cp_async_4(shared_address(&shared.word[place + i]), in + place + 3 - i);
    cp_async_4(shared_address(&shared.word[place + 3]), in + place, threadIdx.x % 5);
    cp_async_commit();
    cp_async_wait<0>();
    read_neighbour(out, shared);
}
KERNEL(zoo_wrapper_cp_async_4, 128, Words)

// The first group is there while the second is under way; that one is read after the second wait.
WRAPPER(cp_async_wait) {
    SHARED_STORAGE(Words, shared);
    const int place = 2 * int(threadIdx.x);
    cp_async_8(shared_address(&shared.word[place]), in + place);
    cp_async_commit();
    cp_async_8(shared_address(&shared.word[256 + place]), in + 256 + place);
    cp_async_commit();
    cp_async_wait<1>();
    for (int i = 0; i < 2; ++i) out[place + i] = shared.word[place + i];
    cp_async_wait<0>();
    for (int i = 0; i < 2; ++i) out[256 + place + i] = shared.word[256 + place + i];
}
KERNEL(zoo_wrapper_cp_async_wait, 128, Words)

// A copy that was not committed belongs to no group that the wait leaves open: to the one that the commit closes.
WRAPPER(cp_async_commit) {
    SHARED_STORAGE(Words, shared);
    const int place = 4 * int(threadIdx.x);
    cp_async_commit();
    cp_async_16(shared_address(&shared.word[place]), in + place);
    cp_async_commit();
    cp_async_commit();
    cp_async_wait<1>();
    read_neighbour(out, shared);
    cp_async_wait<0>();
}
KERNEL(zoo_wrapper_cp_async_commit, 128, Words)

WRAPPER(cp_async_wait_all) {
    SHARED_STORAGE(Words, shared);
    const int place = 4 * int(threadIdx.x);
    cp_async_8(shared_address(&shared.word[place]), in + place);
    cp_async_commit();
    cp_async_8(shared_address(&shared.word[place + 2]), in + place + 2);
    cp_async_wait_all();
    read_neighbour(out, shared);
}
KERNEL(zoo_wrapper_cp_async_wait_all, 128, Words)

// ---- Matrices: one warp; row r of the 32 rows of 16 bytes is given by lane 5·r mod 32 ----

template <int kMatrices, class Load>
DEVICE void load_rows(uint32_t* out, const uint32_t* in, const Load& load) {
    SHARED_STORAGE(Words, shared);
    const int lane = threadIdx.x;
    for (int i = lane; i < 128; i += kWarpLanes) shared.word[i] = in[i];
    __syncwarp();
    uint32_t registers[kMatrices];
    load(registers, shared_address(&shared.word[lane * 5 % 32 * 4]));
    for (int i = 0; i < kMatrices; ++i) out[kMatrices * lane + i] = registers[i];
}

WRAPPER(ldmatrix_x4) {
    load_rows<4>(out, in, [](uint32_t (&to)[4], uint32_t row) { ldmatrix_x4(to, row); });
}
KERNEL(zoo_wrapper_ldmatrix_x4, 32, Words)
WRAPPER(ldmatrix_x4_transposed) {
    load_rows<4>(out, in, [](uint32_t (&to)[4], uint32_t row) { ldmatrix_x4_transposed(to, row); });
}
KERNEL(zoo_wrapper_ldmatrix_x4_transposed, 32, Words)
WRAPPER(ldmatrix_x2) {
    load_rows<2>(out, in, [](uint32_t (&to)[2], uint32_t row) { ldmatrix_x2(to, row); });
}
KERNEL(zoo_wrapper_ldmatrix_x2, 32, Words)
WRAPPER(ldmatrix_x2_transposed) {
    load_rows<2>(out, in, [](uint32_t (&to)[2], uint32_t row) { ldmatrix_x2_transposed(to, row); });
}
KERNEL(zoo_wrapper_ldmatrix_x2_transposed, 32, Words)

// in: of each lane four words of A, two of B and four floats of D.
WRAPPER(mma_bf16_16x8x16) {
    const uint32_t* own = in + 10 * threadIdx.x;
    const uint32_t a[4] = {own[0], own[1], own[2], own[3]};
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(own[6 + i]);
    mma_bf16_16x8x16(d, a, own[4], own[5]);
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = __float_as_uint(d[i]);
}
KERNEL(zoo_wrapper_mma_bf16_16x8x16, 32)

// ---- Named barriers: four warps ----

// Warps 0 and 1 exchange over barrier 1, warps 2 and 3 over barrier 2, twice as often.
WRAPPER(barrier_sync) {
    SHARED_STORAGE(Words, shared);
    const int thread = threadIdx.x;
    uint32_t sum = 0;
    for (int round = 0; round < 1 + thread / 64; ++round) {
        shared.word[thread] = in[thread] + round;
        barrier_sync(1 + thread / 64, 64);
        sum += shared.word[thread ^ 33];
        barrier_sync(1 + thread / 64, 64);
    }
    out[thread] = sum;
}
KERNEL(zoo_wrapper_barrier_sync, 128, Words)

// Warp 0 leaves two rounds for the other three, which say when they have read the first.
WRAPPER(barrier_arrive) {
    SHARED_STORAGE(Words, shared);
    const int thread = threadIdx.x;
    uint32_t sum = 0;
    for (int round = 0; round < 2; ++round) {
        if (thread < kWarpLanes) {
            if (round > 0) barrier_sync(4, 128);
            shared.word[thread] = in[thread] + round;
            barrier_arrive(3, 128);
        } else {
            barrier_sync(3, 128);
            sum += shared.word[31 - thread % kWarpLanes];
            if (round == 0) barrier_arrive(4, 128);
        }
    }
    out[thread] = sum;
}
KERNEL(zoo_wrapper_barrier_arrive, 128, Words)
