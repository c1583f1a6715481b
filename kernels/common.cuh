// What every kernel uses: element types, vector access, sums over warps and blocks.
//
// The same source is compiled by nvcc for the device and by the host's C++ compiler for the emulator of the tests.
// So a kernel keeps to this:
// - its only shared memory is the dynamic one, `shared_memory<T>()`;
// - every thread of a block reaches every __syncthreads, and every lane of a warp every shuffle;
// - inline PTX is in ptx.cuh alone;
// - sums are in f32, in an order that shape and alignment alone decide: no atomics on floats;
// - `restrict` stands only where the launcher never passes one buffer twice.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// The types that kernels store numbers in, and their names: FOR_TYPES(M) is M(float, f32) M(__half, f16) ...
#define FOR_TYPES(M) M(float, f32) M(__half, f16) M(__nv_bfloat16, bf16)

constexpr int kWarp = 32;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> struct From;
template <> struct From<float> { __device__ static float from(float x) { return x; } };
template <> struct From<__half> { __device__ static __half from(float x) { return __float2half_rn(x); } };
template <> struct From<__nv_bfloat16> {
    __device__ static __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};
template <class T> __device__ inline T from_float(float x) { return From<T>::from(x); }

// N numbers that are loaded or stored at once.
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };

// How many numbers of type T make 16 bytes.
template <class T> constexpr int kLanes = 16 / static_cast<int>(sizeof(T));

template <int N, class T> __device__ inline void load(const T* from, float (&x)[N]) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = to_float(pack.v[i]);
}

template <int N, class T> __device__ inline void store(T* to, const float (&x)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(x[i]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Whether rows of `c` numbers of type T can be moved by 16 bytes at a time at all of the addresses.
template <class T, class... P> __device__ inline bool aligned(int c, const P*... addresses) {
    return c % kLanes<T> == 0 && ((reinterpret_cast<unsigned long long>(addresses) % 16 == 0) && ...);
}

// How the threads along x of a grid share rows of c numbers. A lane takes up to `packs` packs of N numbers of a row,
// and more where a warp does not suffice. As many lanes as that needs, rounded up to a power of two and at most a warp,
// are a group and take a row. The groups of a warp take rows side by side.
template <int N> struct Group {
    int width;                // Lanes of a group.
    int start, step;          // The first number of this lane in a row, and from one pack to the next.
    long long first, stride;  // The warp's first row, and to its next; the group's own is `group` further on.
    int group;

    __device__ explicit Group(int c, int packs = 1) {
        const int lanes = (c + N * packs - 1) / (N * packs), warps = blockDim.x / kWarp;
        width = 1;
        while (width < lanes && width < kWarp) width *= 2;
        start = threadIdx.x % width * N;
        step = width * N;
        group = threadIdx.x % kWarp / width;
        const int at_once = kWarp / width;
        first = (static_cast<long long>(blockIdx.x) * warps + threadIdx.x / kWarp) * at_once;
        stride = static_cast<long long>(gridDim.x) * warps * at_once;
    }
};

// Sums over the 32 lanes of a warp, the same in every lane.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// The emulator of the tests has these functions too, the second one as a single operation of the warp.
#ifndef EMULATED
// The dynamic shared memory of the block; its size is the launch's.
template <class T> __device__ inline T* shared_memory() {
    extern __shared__ __align__(32) unsigned char shared_bytes[];
    return reinterpret_cast<T*>(shared_bytes);
}

// y = x of the lane whose number differs in `bits`; every lane has to come here.
template <int N> __device__ inline void shuffle_xor(const float (&x)[N], float (&y)[N], int bits) {
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = __shfl_xor_sync(0xffffffffu, x[i], bits);
}
#endif

// The sum over a block of whole warps, the same in every thread; `scratch` is 32 floats of shared memory. Every
// thread has to come here.
__device__ inline float block_sum(float x, float* scratch) {
    const int thread = threadIdx.x, warps = blockDim.x / kWarp;
    x = warp_sum(x);
    __syncthreads();  // The scratch may still be in use by an earlier sum.
    if (thread % kWarp == 0) scratch[thread / kWarp] = x;
    __syncthreads();
    x = thread % kWarp < warps ? scratch[thread % kWarp] : 0.0f;
    return warp_sum(x);
}
