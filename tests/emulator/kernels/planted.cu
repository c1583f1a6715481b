// Kernels with planted errors, which show that the emulator finds them, and correct ones that it has to accept.
#include <common.cuh>
#include <ptx.cuh>

// y = x + 1. With `count` larger than the allocations, an overrun.
extern "C" __global__ void planted_increment(const float* x, float* y, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = x[i] + 1.0f;
}

// All kinds of parameters.
extern "C" __global__ void planted_parameters(float* y, int i, unsigned long long u, float f) {
    if (threadIdx.x == 0) *y = static_cast<float>(i) + static_cast<float>(u) + f;
}

// Where each thread is.
extern "C" __global__ void __launch_bounds__(128) planted_positions(int* to) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    to[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

// The sum of each row of `c` numbers, one block for a row; 10 shuffles a thread.
extern "C" __global__ void planted_row_sums(const float* x, float* sums, int c) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) sum += x[static_cast<size_t>(blockIdx.x) * c + i];
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Four numbers at once from an address that may be no multiple of 16.
extern "C" __global__ void planted_vector(const float* x, float* y, int offset) {
    float v[4];
    load(x + offset, v);
    for (int i = 0; i < 4; ++i) y[i] = v[i];
}

// A copy with memcpy, which is no access to a number.
extern "C" __global__ void planted_memcpy(const float* x, float* y, int count) { memcpy(y, x, 4 * count); }

// Each thread writes to shared memory and reads what its neighbour wrote. `count` is how many numbers are written,
// `barrier` whether there is one between.
extern "C" __global__ void planted_neighbour(float* y, int count, int barrier) {
    float* shared = shared_memory<float>();
    const int i = threadIdx.x, n = blockDim.x;
    shared[i] = -1.0f;
    __syncthreads();
    if (i < count) shared[i] = i;
    if (barrier) __syncthreads();
    y[i] = shared[(i + 1) % n];
}

// Within a warp: 0 no barrier, 1 __syncwarp of all lanes, 2 __syncwarp of pairs, which is enough for the neighbour in
// the pair, 3 __syncwarp of the wrong pairs, 4 a vote and 5 a shuffle, which are no barriers.
extern "C" __global__ void planted_warp_neighbour(float* y, int barrier) {
    float* shared = shared_memory<float>();
    const int i = threadIdx.x, lane = i % kWarp;
    shared[i] = -1.0f;
    __syncwarp();
    shared[i] = i;
    if (barrier == 1) __syncwarp();
    if (barrier == 2) __syncwarp(3u << lane / 2 * 2);
    if (barrier == 3) __syncwarp(lane == 0 || lane == 31 ? 0x80000001u : 3u << (lane + 1) / 2 * 2 - 1);
    if (barrier == 4) __ballot_sync(0xffffffffu, i > 0);
    if (barrier == 5) __shfl_xor_sync(0xffffffffu, i, 1);
    y[i] = shared[i ^ 1];
}

// A reduction in place whose last steps lack their barriers: the error is a read of what is then written.
extern "C" __global__ void planted_reduction(float* y, int barrier) {
    float* shared = shared_memory<float>();
    const int i = threadIdx.x;
    shared[i] = 1.0f;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (i < half) shared[i] += shared[i + half];
        if (barrier) __syncthreads();
    }
    if (i == 0) *y = shared[0];
}

// Reads shared memory that nobody wrote.
extern "C" __global__ void planted_uninitialised(float* y) { y[threadIdx.x] = shared_memory<float>()[threadIdx.x]; }

// Threads up to `count` come to a barrier, the others to none, or to another one.
extern "C" __global__ void planted_divergent_barrier(float* y, int count) {
    if (static_cast<int>(threadIdx.x) < count) __syncthreads();
    y[threadIdx.x] = 1.0f;
}

// Lanes up to `count` shuffle with `mask`, and the others have returned, or wait at a barrier.
extern "C" __global__ void planted_divergent_shuffle(float* y, int count, int mask, int barrier) {
    const int lane = threadIdx.x % kWarp;
    float x = lane;
    if (lane < count) x = __shfl_sync(mask, x, 0);
    if (barrier) __syncthreads();
    y[threadIdx.x] = x;
}

// Every shuffle and vote: 16 numbers for each lane.
extern "C" __global__ void planted_shuffles(int* y) {
    const int lane = threadIdx.x;
    const unsigned all = 0xffffffffu;
    y += 16 * lane;
    y[0] = __shfl_sync(all, lane, 5);
    y[1] = __shfl_sync(all, lane, lane + 9);
    y[2] = __shfl_sync(all, lane, 3, 8);
    y[3] = __shfl_up_sync(all, lane, 2);
    y[4] = __shfl_up_sync(all, lane, 2, 8);
    y[5] = __shfl_down_sync(all, lane, 3);
    y[6] = __shfl_down_sync(all, lane, 3, 16);
    y[7] = __shfl_xor_sync(all, lane, 17);
    y[8] = __shfl_xor_sync(all, lane, 9, 8);
    y[9] = static_cast<int>(__shfl_sync(all, 1ll << lane, 31 - lane) >> (31 - lane));
    y[10] = static_cast<int>(__ballot_sync(all, lane % 3 == 0));
    y[11] = __any_sync(all, lane == 7) + 2 * __any_sync(all, lane == 40);
    y[12] = __all_sync(all, lane < 32) + 2 * __all_sync(all, lane < 31);
    y[13] = __shfl_xor_sync(lane < 16 ? 0x0000ffffu : 0xffff0000u, lane, 1);
    y[14] = lane % 2 == 0 ? __shfl_sync(0x55555555u, lane, 30) : __shfl_sync(0xaaaaaaaau, lane, 31);
    y[15] = static_cast<int>(__half2float(__shfl_xor_sync(all, __float2half_rn(lane), 2)));
}

// Counts the threads of all blocks, in global memory and in shared memory.
extern "C" __global__ void planted_count(int* global, unsigned* from_shared) {
    unsigned* count = shared_memory<unsigned>();
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    atomicAdd(global, 1);
    atomicAdd(count, 2u);
    __syncthreads();
    if (threadIdx.x == 0) from_shared[blockIdx.x] = *count;
}

// All 16-bit patterns to f32, and f32 to 16 bits.
template <class T> __device__ void from_bits(const T* x, float* y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = to_float(x[i]);
}
template <class T> __device__ void to_bits(const float* x, T* y, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = from_float<T>(x[i]);
}

// d = a·b + d for a (16, 16), b (16, 8) and d (16, 8), row-major; a and b come through shared memory.
template <class T> __device__ void mma(const T* a, const T* b, float* d) {
    T* shared = shared_memory<T>();
    const int lane = threadIdx.x, group = lane / 4, member = lane % 4;
    for (int i = lane; i < 256; i += kWarp) shared[i] = a[i];
    T* right = shared + 256;
    for (int i = lane; i < 128; i += kWarp) right[i] = b[i];
    __syncwarp();
    // Matrices 0 to 3 of a: upper left, lower left, upper right, lower right.
    unsigned fragment[4], rows[4];
    ldmatrix_x4(fragment, shared + (lane % 8 + lane / 8 % 2 * 8) * 16 + lane / 16 * 8);
    // b is stored by rows and wanted by columns.
    ldmatrix_x4_trans(rows, right + lane % 16 * 8);
    const unsigned columns[2] = {rows[0], rows[1]};
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = d[(group + i / 2 * 8) * 8 + member * 2 + i % 2];
    mma_m16n8k16(sums, fragment, columns, T());
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = sums[i];
}

// The registers of ldmatrix for shared memory that holds 0, 1, 2, …: 4 for each lane.
extern "C" __global__ void planted_ldmatrix(unsigned* y, int transposed) {
    unsigned short* shared = shared_memory<unsigned short>();
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += kWarp) shared[i] = i;
    __syncwarp();
    unsigned r[4];
    if (transposed) {
        ldmatrix_x4_trans(r, shared + lane * 8);
    } else {
        ldmatrix_x4(r, shared + lane * 8);
    }
    for (int i = 0; i < 4; ++i) y[lane * 4 + i] = r[i];
}

#define KERNELS(T, name)                                                                                            \
    extern "C" __global__ void planted_from_##name(const T* x, float* y) { from_bits(x, y); }                       \
    extern "C" __global__ void planted_to_##name(const float* x, T* y, int count) { to_bits(x, y, count); }
FOR_TYPES(KERNELS)

extern "C" __global__ void planted_mma_f16(const __half* a, const __half* b, float* d) { mma(a, b, d); }
extern "C" __global__ void planted_mma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d) { mma(a, b, d); }

// y = x by asynchronous copies in two groups; threads from `count` on give zeros. The first group is read once
// `waited`, the second always.
extern "C" __global__ void planted_copy_async(const float4* x, float4* y, int count, int waited) {
    float4* shared = shared_memory<float4>();
    const int i = threadIdx.x, n = blockDim.x;
    cp_async_16(shared + i, x + i, i < count);
    cp_async_commit();
    cp_async_16(shared + n + i, x + n + i, i < count);
    cp_async_commit();
    if (waited) cp_async_wait<1>();
    __syncthreads();
    y[n - 1 - i] = shared[n - 1 - i];
    cp_async_wait<0>();
    __syncthreads();
    y[n + n - 1 - i] = shared[n + n - 1 - i];
}
