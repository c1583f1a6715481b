// The part of CUDA C++ that kernels use, for the host's compiler. It is included within an unnamed namespace.
#pragma once

#define __global__ EMULATED_GLOBAL
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __restrict__
#define __restrict__ __restrict
#endif

#define threadIdx (emulated_thread.thread)
#define blockIdx (emulated_thread.block)
#define blockDim (emulated_thread.block_dim)
#define gridDim (emulated_thread.grid_dim)
#define warpSize 32

template <class T> inline T* shared_memory() { return reinterpret_cast<T*>(emulated_thread.shared); }

#define EMULATED_VECTORS(T, name, size)                                                             \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                              \
    struct name##3 { T x, y, z; };                                                                  \
    struct alignas(size) name##4 { T x, y, z, w; };                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                      \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                              \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float, 16)
EMULATED_VECTORS(int, int, 16)
EMULATED_VECTORS(unsigned, uint, 16)
EMULATED_VECTORS(short, short, 8)
EMULATED_VECTORS(unsigned short, ushort, 8)
EMULATED_VECTORS(signed char, char, 4)
EMULATED_VECTORS(unsigned char, uchar, 4)
#undef EMULATED_VECTORS

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline void __syncthreads() { emulated_block_barrier(); }

enum { kEmulatedSync, kEmulatedShuffle, kEmulatedBallot, kEmulatedMatrices, kEmulatedTransposed, kEmulatedMmaF16,
       kEmulatedMmaBf16 };

inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated_warp(kEmulatedSync, mask, nullptr); }

template <class T> inline T emulated_shuffle(unsigned mask, T x, unsigned source) {
    static_assert(sizeof(T) <= 64, "a shuffle moves at most 64 bytes");
    constexpr unsigned kWords = (sizeof(T) + 3) / 4;
    alignas(16) unsigned words[kWords + 1] = {};
    __builtin_memcpy(words, &x, sizeof x);
    words[kWords] = source;
    emulated_warp(kEmulatedShuffle | kWords << 8, mask, words);
    __builtin_memcpy(&x, words, sizeof x);
    return x;
}

template <class T> inline T __shfl_sync(unsigned mask, T x, int source, int width = 32) {
    const unsigned lane = emulated_thread.lane, segment = lane & ~(width - 1u);
    return emulated_shuffle(mask, x, segment | (source & (width - 1u)));
}
template <class T> inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32) {
    const unsigned lane = emulated_thread.lane, within = lane & (width - 1u);
    return emulated_shuffle(mask, x, within >= delta ? lane - delta : lane);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32) {
    const unsigned lane = emulated_thread.lane, within = lane & (width - 1u);
    return emulated_shuffle(mask, x, within + delta < unsigned(width) ? lane + delta : lane);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32) {
    const unsigned lane = emulated_thread.lane, other = lane ^ unsigned(bits);
    return emulated_shuffle(mask, x, other <= (lane | (width - 1u)) ? other : lane);
}

template <int N> inline void shuffle_xor(const float (&x)[N], float (&y)[N], int bits) {
    struct alignas(16) All { float v[N]; } all;
    for (int i = 0; i < N; ++i) all.v[i] = x[i];
    all = __shfl_xor_sync(0xffffffffu, all, bits);
    for (int i = 0; i < N; ++i) y[i] = all.v[i];
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned words[1] = {predicate != 0};
    emulated_warp(kEmulatedBallot, mask, words);
    return words[0];
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int atomicAdd(int* to, int x) {
    return static_cast<int>(emulated_atomic_add(reinterpret_cast<unsigned*>(to), static_cast<unsigned>(x)));
}
inline unsigned atomicAdd(unsigned* to, unsigned x) { return emulated_atomic_add(to, x); }

#ifdef EMULATED_CHECKED
inline void* memcpy(void* to, const void* from, size_t bytes) { return __tsan_memcpy(to, from, bytes); }
inline void* memset(void* to, int byte, size_t bytes) { return __tsan_memset(to, byte, bytes); }
#endif

template <class T> inline T __ldg(const T* from) { return *from; }

#define EMULATED_MIN_MAX(T)                                      \
    inline T min(T a, T b) { return b < a ? b : a; }             \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }

inline unsigned __float_as_uint(float x) { unsigned u; __builtin_memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int i) { return __uint_as_float(static_cast<unsigned>(i)); }

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((1ull * a * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((1ll * a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return ::sqrtf(a); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
inline float __saturatef(float x) { return ::fminf(::fmaxf(x, 0.0f), 1.0f); }
inline float __expf(float x) { return ::expf(x); }
inline float __logf(float x) { return ::logf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float __powf(float x, float y) { return ::powf(x, y); }
inline float __sinf(float x) { return ::sinf(x); }
inline float __cosf(float x) { return ::cosf(x); }
inline int __float2int_rn(float x) { return static_cast<int>(::rintf(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(::floorf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
