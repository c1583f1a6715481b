// Random masks, and what applies masks and factors.
//
// Element i of a mask is lane i mod 4 of the Philox counter i / 4, the same bits as src/random.rs. A thread makes 16 of
// them. Where all addresses are multiples of 16 bytes, the first threads of the others take a group of that size each,
// and the last ones a number.
#include <common.cuh>

using u64 = unsigned long long;
using u8 = unsigned char;

// Philox4x32-10 (Salmon et al., SC 2011).
__device__ inline void philox(unsigned (&counter)[4], u64 seed) {
    unsigned low = static_cast<unsigned>(seed), high = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = static_cast<u64>(counter[0]) * 0xD2511F53u, p1 = static_cast<u64>(counter[2]) * 0xCD9E8D57u;
        counter[0] = static_cast<unsigned>(p1 >> 32) ^ counter[1] ^ low;
        counter[1] = static_cast<unsigned>(p1);
        counter[2] = static_cast<unsigned>(p0 >> 32) ^ counter[3] ^ high;
        counter[3] = static_cast<unsigned>(p0);
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
}

// Elements of a mask that a thread makes.
constexpr int kElements = 16;

// The number in [0, 1) of a random word.
__device__ inline float unit(unsigned word) { return static_cast<float>(word >> 8) * (1.0f / (1 << 24)); }

// The four words of counter `index`.
__device__ inline void random_words(unsigned (&words)[4], u64 index, u64 seed, u64 stream) {
    words[0] = static_cast<unsigned>(index);
    words[1] = static_cast<unsigned>(index >> 32);
    words[2] = static_cast<unsigned>(stream);
    words[3] = static_cast<unsigned>(stream >> 32);
    philox(words, seed);
}

// mask[i] = 1 where the number in [0, 1) of word i is below `keep`, else 0. `mask` is a multiple of 16 bytes.
extern "C" __global__ void feature_mask(u8* mask, float keep, u64 seed, u64 stream, u64 len) {
    const u64 first = (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) * kElements;
    if (first >= len) return;
    Pack<u8, kElements> kept;
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
        unsigned words[4];
        random_words(words, (first + i) / 4, seed, stream);
#pragma unroll
        for (int j = 0; j < 4; ++j) kept.v[i + j] = unit(words[j]) < keep;
    }
    if (first + kElements <= len) {
        *reinterpret_cast<Pack<u8, kElements>*>(mask + first) = kept;
        return;
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
        if (first + i < len) mask[first + i] = kept.v[i];
    }
}

// factors[i] = 0 where the number in [0, 1) of word i is below the rate, else `kept`: the first half of the factors with
// the first two numbers.
extern "C" __global__ void drop_factors(float* factors, float rate0, float kept0, float rate1, float kept1, u64 seed,
                                        u64 stream, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    unsigned words[4];
    random_words(words, i / 4, seed, stream);
    const unsigned low = i % 2 ? words[1] : words[0], high = i % 2 ? words[3] : words[2];
    const bool first = i < len / 2;
    const bool dropped = unit(i % 4 < 2 ? low : high) < (first ? rate0 : rate1);
    factors[i] = dropped ? 0.0f : first ? kept0 : kept1;
}

// y[i] = x[i] where mask[i] is not 0, elsewhere 0.
template <class T>
__device__ void apply_mask(const T* x, const u8* mask, T* y, u64 groups, u64 len) {
    constexpr int N = kLanes<T>;
    const u64 thread = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread < groups) {
        Pack<T, N> v = reinterpret_cast<const Pack<T, N>*>(x)[thread];
        const Pack<u8, N> kept = reinterpret_cast<const Pack<u8, N>*>(mask)[thread];
#pragma unroll
        for (int j = 0; j < N; ++j) v.v[j] = kept.v[j] == 0 ? from_float<T>(0.0f) : v.v[j];
        reinterpret_cast<Pack<T, N>*>(y)[thread] = v;
        return;
    }
    const u64 i = groups * N + (thread - groups);
    if (i < len) y[i] = mask[i] == 0 ? from_float<T>(0.0f) : x[i];
}

// x, y (samples, pixels, C), and `more` or null, factors (samples, C): y[n, p, c] = x[n, p, c]·factors[n, c] +
// more[n, p, c]. `len` is a sample's numbers. `lanes` is N, and then C is 1 or a multiple of N and `len` is one, or 1.
// Grid: len/lanes threads, samples.
template <int N, class T>
__device__ void scale(const T* x, const T* more, T* y, const float* factors, int len, int c) {
    const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= static_cast<unsigned>(len)) return;
    const size_t at = static_cast<size_t>(blockIdx.y) * len + i;
    factors += static_cast<size_t>(blockIdx.y) * c + i % c;
    float v[N], add[N] = {};
    load(x + at, v);
    if (more) load(more + at, add);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = v[j] * factors[c == 1 ? 0 : j] + add[j];
    store(y + at, v);
}

#define KERNELS(T, t)                                                                                             \
    extern "C" __global__ void apply_mask_##t(const T* x, const u8* mask, T* y, u64 groups, u64 len) {            \
        apply_mask(x, mask, y, groups, len);                                                                      \
    }                                                                                                             \
    extern "C" __global__ void scale_##t(const T* x, const T* more, T* y, const float* factors, int len, int c,   \
                                         int lanes) {                                                             \
        if (lanes == 1) {                                                                                         \
            scale<1>(x, more, y, factors, len, c);                                                                \
        } else {                                                                                                  \
            scale<kLanes<T>>(x, more, y, factors, len, c);                                                        \
        }                                                                                                         \
    }
FOR_TYPES(KERNELS)
