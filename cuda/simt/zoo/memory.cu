// The zoo, memory: small kernels with one mistake each, which verify/simt demands to be reported, and clean ones that must
// never be. Built for the emulator only. All have 128 threads and take (out, in, n); n keeps the compiler from seeing through.
#include "../../elem.cuh"

struct Row {
    float value[128];
};

extern "C" __global__ void zoo_clean_copy(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row.value[127 - threadIdx.x] + float(n);
}
KERNEL(zoo_clean_copy, 128, Row)

extern "C" __global__ void zoo_global_read_past_end(float* out, const float* in, int n) {
    out[threadIdx.x] = in[threadIdx.x + n];
}
KERNEL(zoo_global_read_past_end, 128)

extern "C" __global__ void zoo_global_write_past_end(float* out, const float* in, int n) {
    out[threadIdx.x + n] = in[threadIdx.x];
}
KERNEL(zoo_global_write_past_end, 128)

extern "C" __global__ void zoo_input_written(float* out, const float* in, int) {
    const_cast<float*>(in)[threadIdx.x] = 0.0f;
    out[threadIdx.x] = 1.0f;
}
KERNEL(zoo_input_written, 128)

extern "C" __global__ void zoo_null_pointer(float* out, const float* in, int n) {
    float* nowhere = nullptr;
    asm volatile("" : "+r"(nowhere));
    nowhere[n] = in[0];
    out[threadIdx.x] = 1.0f;
}
KERNEL(zoo_null_pointer, 128)

extern "C" __global__ void zoo_misaligned_vector(float* out, const float* in, int n) {
    uint4 raw = load_16_bytes(in + n);
    out[threadIdx.x] = __uint_as_float(raw.x);
}
KERNEL(zoo_misaligned_vector, 128)

extern "C" __global__ void zoo_misaligned_cast(float* out, const float* in, int n) {
    const float4* vector = reinterpret_cast<const float4*>(in + n);
    out[threadIdx.x] = vector->x + vector->w;
}
KERNEL(zoo_misaligned_cast, 128)

extern "C" __global__ void zoo_shared_write_past_end(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    float* values = row.value;
    if (threadIdx.x == 0) values[n] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row.value[threadIdx.x];
}
KERNEL(zoo_shared_write_past_end, 128, Row)

extern "C" __global__ void zoo_shared_write_before_start(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    float* values = row.value;
    if (threadIdx.x == 0) values[-n] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row.value[threadIdx.x];
}
KERNEL(zoo_shared_write_before_start, 128, Row)

extern "C" __global__ void zoo_shared_read_past_end(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    row.value[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    float* values = row.value;
    out[threadIdx.x] = values[threadIdx.x + n];
}
KERNEL(zoo_shared_read_past_end, 128, Row)

extern "C" __global__ void zoo_shared_read_uninitialised(float* out, const float* in, int n) {
    SHARED_STORAGE(Row, row);
    if (int(threadIdx.x) < n) row.value[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row.value[threadIdx.x];
}
KERNEL(zoo_shared_read_uninitialised, 128, Row)

extern "C" __global__ void zoo_stack_overflow(float* out, const float* in, int) {
    volatile float large[40000];
    for (int i = 39999; i >= 0; i -= 100) large[i] = in[0];
    out[threadIdx.x] = large[99 + threadIdx.x * 100];
}
KERNEL(zoo_stack_overflow, 128)

extern "C" __global__ void zoo_division_by_zero(float* out, const float* in, int n) {
    out[threadIdx.x] = float(n / (int(in[threadIdx.x]) - n));
}
KERNEL(zoo_division_by_zero, 128)

extern "C" __global__ void zoo_local_array_overrun(float* out, const float* in, int n) {
    float values[8];
    for (int i = 0; i < 8; ++i) values[i] = in[i];
    out[threadIdx.x] = values[(threadIdx.x & 7) + n];
}
KERNEL(zoo_local_array_overrun, 128)

extern "C" __global__ void zoo_shift_too_far(float* out, const float* in, int n) {
    out[threadIdx.x] = float(uint32_t(in[0]) << (n + threadIdx.x / 64));
}
KERNEL(zoo_shift_too_far, 128)
