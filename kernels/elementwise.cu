// Operations on each number alone. The first threads take a group of 16 bytes each, if all addresses are multiples of
// that, the others a number each; the launcher says how many groups there are.
#include <common.cuh>
#include <math.cuh>

using u64 = unsigned long long;

// y[i] = f(x[i], z[i]); z may be x, and y either of them.
template <class T, class F>
__device__ inline void zip(const T* x, const T* z, T* y, u64 groups, u64 len, F f) {
    constexpr int N = kLanes<T>;
    const u64 thread = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread < groups) {
        float a[N], b[N];
        load(x + thread * N, a);
        load(z + thread * N, b);
#pragma unroll
        for (int j = 0; j < N; ++j) a[j] = f(a[j], b[j]);
        store(y + thread * N, a);
        return;
    }
    const u64 i = groups * N + (thread - groups);
    if (i < len) y[i] = from_float<T>(f(to_float(x[i]), to_float(z[i])));
}

template <class From, class To>
__device__ inline void cast(const From* x, To* y, u64 len) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < len) y[i] = from_float<To>(to_float(x[i]));
}

// A piece of a tensor that is cast along with others: where it lies and where it goes, and how many numbers it has.
struct Piece {
    u64 from, to, len;
};

// A block for each piece.
template <class To> __device__ inline void cast_all(const Piece* pieces) {
    const Piece piece = pieces[blockIdx.x];
    const float* x = reinterpret_cast<const float*>(piece.from);
    To* y = reinterpret_cast<To*>(piece.to);
    constexpr int N = kLanes<float>;
    const int len = static_cast<int>(piece.len), groups = aligned<float>(0, x, y) ? len / N : 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < groups; i += blockDim.x) {
        float v[N];
        load(x + N * i, v);
        store(y + N * i, v);
    }
    for (int i = N * groups + threadIdx.x; i < len; i += blockDim.x) y[i] = from_float<To>(x[i]);
}

extern "C" __global__ void cast_all_f16(const Piece* pieces) { cast_all<__half>(pieces); }
extern "C" __global__ void cast_all_bf16(const Piece* pieces) { cast_all<__nv_bfloat16>(pieces); }

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void add_##t(const T* x, const T* z, T* y, u64 groups, u64 len) {                         \
        zip(x, z, y, groups, len, [](float x, float z) { return x + z; });                                                     \
    }                                                                                                                  \
    extern "C" __global__ void relu_##t(const T* x, T* y, u64 groups, u64 len) {                                    \
        zip(x, x, y, groups, len, [](float x, float) { return x < 0.0f ? 0.0f : x; });                                         \
    }                                                                                                                  \
    extern "C" __global__ void relu_backward_##t(const T* dy, const T* y, T* dx, u64 groups, u64 len) {             \
        zip(dy, y, dx, groups, len, [](float dy, float y) { return y > 0.0f ? dy : 0.0f; });                                   \
    }                                                                                                                  \
    extern "C" __global__ void sigmoid_##t(const T* x, T* y, u64 groups, u64 len) {                                 \
        zip(x, x, y, groups, len, [](float x, float) { return sigmoid(x); });                                                  \
    }                                                                                                                  \
    extern "C" __global__ void sigmoid_backward_##t(const T* dy, const T* y, T* dx, u64 groups, u64 len) {          \
        zip(dy, y, dx, groups, len, [](float dy, float y) { return dy * sigmoid_derivative(y); });                             \
    }                                                                                                                  \
    extern "C" __global__ void gelu_##t(const T* x, T* y, u64 groups, u64 len) {                                    \
        zip(x, x, y, groups, len, [](float x, float) { return gelu(x); });                                                     \
    }                                                                                                                  \
    extern "C" __global__ void gelu_backward_##t(const T* dy, const T* x, T* dx, u64 groups, u64 len) {             \
        zip(dy, x, dx, groups, len, [](float dy, float x) { return dy * gelu_derivative(x); });                                \
    }                                                                                                                  \
    extern "C" __global__ void cast_f32_##t(const T* x, float* y, u64, u64 len) { cast(x, y, len); }         \
    extern "C" __global__ void cast_f16_##t(const T* x, __half* y, u64, u64 len) { cast(x, y, len); }        \
    extern "C" __global__ void cast_bf16_##t(const T* x, __nv_bfloat16* y, u64, u64 len) { cast(x, y, len); }
FOR_TYPES(KERNELS)
