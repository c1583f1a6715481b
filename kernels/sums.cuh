// Sums in double precision whose order the launch alone decides.
#pragma once
#include <common.cuh>

// The sum over a block of a power of two of threads, the same in every thread; `scratch` is a double of shared memory
// for each thread. Every thread has to come here.
__device__ inline double block_total(double x, double* scratch) {
    const int thread = threadIdx.x;
    __syncthreads();  // The scratch may still be in use for something else.
    scratch[thread] = x;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) scratch[thread] += scratch[thread + half];
    }
    __syncthreads();
    return scratch[0];
}

// The sum over the block of partial[0], partial[stride], ...: `parts` numbers.
__device__ inline double total_of(const double* partial, int parts, int stride, double* scratch) {
    double sum = 0.0;
    for (int part = threadIdx.x; part < parts; part += blockDim.x) sum += partial[static_cast<size_t>(part) * stride];
    return block_total(sum, scratch);
}
