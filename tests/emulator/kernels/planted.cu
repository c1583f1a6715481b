// Kernels with planted errors, which show that the emulator finds them, and correct ones that it has to accept.
#include <common.cuh>
#include <ptx.cuh>

// y = x + 1. With `count` larger than the allocations, an overrun.
extern "C" __global__ void planted_increment(const float* x, float* y, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = x[i] + 1.0f;
}

// The sum of each row of `c` numbers, one block for a row; 10 shuffles a thread.
extern "C" __global__ void planted_row_sums(const float* x, float* sums, int c) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) sum += x[static_cast<size_t>(blockIdx.x) * c + i];
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
