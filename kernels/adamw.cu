// AdamW over all parameters at once, and the norm of all gradients.
//
// A table lists the parameters, then chunks of them: a block takes a chunk of 4096 numbers of one parameter. First the
// sum of squares of each chunk of the gradients, then their total, of which the host hears and on which the third
// launch depends: where a gradient is infinite or not a number it changes nothing. Squares of floats cannot overflow a
// double, so the total is finite exactly if every gradient is.
//
// The arithmetic is that of the CPU, rounding by rounding.
#include <sums.cuh>

constexpr int kThreads = 256;
constexpr int kChunk = 4096;

struct Parameter {
    unsigned long long value, gradient, m, v, len;
    // 1 − lr·decay
    float keep;
    int unused;
};

struct Chunk {
    int parameter, index;
};

// What the launches tell each other: the first two numbers are for the host.
struct State {
    float norm, overflow, factor;
};

template <class T> __device__ inline T* pointer(unsigned long long address) { return reinterpret_cast<T*>(address); }

// Zero for what the CPU takes for zero.
__device__ inline float flush(float x) { return fabsf(x) < 1e-30f ? 0.0f : x; }

// partial (chunks): the sum of the squares of gradient · unscale; nothing is added for a gradient that is missing.
// A block for each chunk. Shared memory: a double for each thread.
extern "C" __global__ void adamw_squares(const Parameter* parameters, const Chunk* chunks, double* partial,
                                         float unscale) {
    const Chunk chunk = chunks[blockIdx.x];
    const Parameter parameter = parameters[chunk.parameter];
    const size_t first = static_cast<size_t>(chunk.index) * kChunk;
    const int n = static_cast<int>(min(static_cast<unsigned long long>(kChunk), parameter.len - first));
    double sum = 0.0;
    const auto add = [&](float g) {
        const double x = __fmul_rn(g, unscale);
        sum += x * x;
    };
    if (parameter.gradient) {
        const float* gradient = pointer<const float>(parameter.gradient) + first;
        const int groups = aligned<float>(0, gradient) ? n / 4 : 0;
#pragma unroll 4
        for (int i = threadIdx.x; i < groups; i += kThreads) {
            float g[4];
            load(gradient + 4 * i, g);
#pragma unroll
            for (int j = 0; j < 4; ++j) add(g[j]);
        }
        for (int i = 4 * groups + threadIdx.x; i < n; i += kThreads) add(gradient[i]);
    }
    sum = block_total(sum, shared_memory<double>());
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// The norm, whether a gradient was not finite, and unscale · min(1, max_norm/norm). A block; shared memory: a double for each
// thread.
extern "C" __global__ void __launch_bounds__(1024)
    adamw_norm(const double* partial, State* state, int parts, float unscale, float max_norm) {
    const double norm = sqrt(total_of(partial, parts, 1, shared_memory<double>()));
    if (threadIdx.x > 0) return;
    state->norm = static_cast<float>(norm);
    state->overflow = isfinite(norm) ? 0.0f : 1.0f;
    state->factor = norm > max_norm ? unscale * static_cast<float>(max_norm / norm) : unscale;
}

struct Rule {
    float rate, unbias, beta2, eps, c1, c2;
};

__device__ inline void update(float& p, float g, float& m, float& v, float keep, const Rule& rule) {
    m = flush(fmaf(rule.c1, __fsub_rn(g, m), m));
    const float s = fabsf(g) < 1e-15f ? 0.0f : g;
    v = flush(fmaf(v, rule.beta2, __fmul_rn(__fmul_rn(rule.c2, s), s)));
    const float denominator = fmaf(__fsqrt_rn(v), rule.unbias, rule.eps);
    p = fmaf(p, keep, __fmul_rn(-rule.rate, __fdiv_rn(m, denominator)));
}

// A block for each chunk.
extern "C" __global__ void adamw_update(const Parameter* parameters, const Chunk* chunks, const State* state,
                                        float rate, float unbias, float beta2, float eps, float c1, float c2) {
    if (state->overflow != 0.0f) return;
    const Chunk chunk = chunks[blockIdx.x];
    const Parameter parameter = parameters[chunk.parameter];
    const size_t first = static_cast<size_t>(chunk.index) * kChunk;
    const int n = static_cast<int>(min(static_cast<unsigned long long>(kChunk), parameter.len - first));
    const Rule rule = {rate, unbias, beta2, eps, c1, c2};
    const float factor = state->factor;
    float* value = pointer<float>(parameter.value) + first;
    float* m = pointer<float>(parameter.m) + first;
    float* v = pointer<float>(parameter.v) + first;
    const bool has_gradient = parameter.gradient != 0;
    const float* gradient = has_gradient ? pointer<const float>(parameter.gradient) + first : value;
    const int groups = aligned<float>(0, value, m, v, gradient) ? n / 4 : 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < groups; i += kThreads) {
        float x[4], y[4], z[4], g[4] = {};
        load(value + 4 * i, x);
        load(m + 4 * i, y);
        load(v + 4 * i, z);
        if (has_gradient) load(gradient + 4 * i, g);
#pragma unroll
        for (int j = 0; j < 4; ++j) update(x[j], __fmul_rn(g[j], factor), y[j], z[j], parameter.keep, rule);
        store(value + 4 * i, x);
        store(m + 4 * i, y);
        store(v + 4 * i, z);
    }
    for (int i = 4 * groups + threadIdx.x; i < n; i += kThreads) {
        const float g = has_gradient ? gradient[i] : 0.0f;
        update(value[i], __fmul_rn(g, factor), m[i], v[i], parameter.keep, rule);
    }
}
