// The end of semantic consistency inference (equations 1 to 5): y0 = first − step·(first − second) and
// y1 = second + step·(first − second), where step = g·λ·m at each pixel. In the paper first and second are streams 0
// and 1 of x, and g is 1 where their cosine is below τ, else 0. The published network has g = 1, and first and second
// are streams 1 and 0.
//
// A group of lanes, as many as the channels of a pixel need, but at most a warp, takes a pixel. What g and the gradient
// of the step need of its channels is summed up first; the numbers are then read again, from the cache.
//
// forward: reads x once from memory (twice from the cache in the paper's way), writes y once.
// backward: reads x and dy once from memory (dy twice from the cache), writes dx once; a partial sum of dλ for each
// block, which `gate_sum` adds up.
#include <math.cuh>
#include <pixels.cuh>

// The lower bound of a norm in the cosine similarity.
constexpr float kSmallestNorm = 1e-8f;

// Whether the pixel's streams say different things, from a·b, a·a and b·b.
__device__ inline float open(float dot, float aa, float bb, float tau) {
    return dot / (fmaxf(sqrtf(aa), kSmallestNorm) * fmaxf(sqrtf(bb), kSmallestNorm)) < tau ? 1.0f : 0.0f;
}

// m(pixel, end, group) is the mask of the group's pixel, in each of its lanes; a lane's channels are below `end`.
template <int N, class T, class M>
__device__ void forward_pixels(const T* first, const T* second, M m, float lambda, T* y0, T* y1, int pixels, int c,
                               int gated, float tau) {
    const Group<N> group(c);
#pragma unroll 1
    for (long long base = group.first; base < pixels; base += group.stride) {
        const long long pixel = base + group.group;
        // A group without a pixel takes no channels.
        const int end = pixel < pixels ? c : 0;
        const size_t at = static_cast<size_t>(pixel) * c;
        float step = lambda * m(pixel, end, group);
        if (gated) {
            float dot = 0.0f, aa = 0.0f, bb = 0.0f;
#pragma unroll 1
            for (int i = group.start; i < end; i += group.step) {
                const Pack<T, N> a = load_pack<N>(first + at + i), b = load_pack<N>(second + at + i);
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    const float u = to_float(a.v[j]), v = to_float(b.v[j]);
                    dot += u * v;
                    aa += u * u;
                    bb += v * v;
                }
            }
            dot = group_sum(dot, group.width);
            aa = group_sum(aa, group.width);
            bb = group_sum(bb, group.width);
            step *= open(dot, aa, bb, tau);
        }
#pragma unroll 1
        for (int i = group.start; i < end; i += group.step) {
            Pack<T, N> a = load_pack<N>(first + at + i), b = load_pack<N>(second + at + i);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float u = to_float(a.v[j]), v = to_float(b.v[j]), delta = step * (u - v);
                a.v[j] = from_float<T>(u - delta);
                b.v[j] = from_float<T>(v + delta);
            }
            store_pack(y0 + at + i, a);
            store_pack(y1 + at + i, b);
        }
    }
}

// x, y (2, pixels, C); `vectors`: what m reads can be moved by 16 bytes. Any grid.
template <class T, class M>
__device__ void forward_maps(const T* x, M m, bool vectors, float lambda, T* y, int pixels, int c, int gated,
                             float tau) {
    const size_t half = static_cast<size_t>(pixels) * c;
    const T* first = gated ? x : x + half;
    const T* second = gated ? x + half : x;
    if (vectors && aligned<T>(c, x, y)) {
        forward_pixels<kLanes<T>>(first, second, m, lambda, y, y + half, pixels, c, gated, tau);
    } else {
        forward_pixels<1>(first, second, m, lambda, y, y + half, pixels, c, gated, tau);
    }
}

// m (pixels), λ a number in memory.
template <class T>
__device__ void forward(const T* x, const T* m, const float* lambda, T* y, int pixels, int c, int gated, float tau) {
    const auto mask = [&](long long pixel, int, const auto&) { return pixel < pixels ? to_float(m[pixel]) : 0.0f; };
    forward_maps(x, mask, true, *lambda, y, pixels, c, gated, tau);
}

// m = σ(hidden·weight + bias): hidden (pixels, C), weight (C).
template <class T> struct Scored {
    const T* hidden;
    const float* weight;
    float bias;
    int c;

    template <int N> __device__ float operator()(long long pixel, int end, const Group<N>& group) const {
        const T* row = hidden + static_cast<size_t>(pixel) * c;
        float dot = 0.0f;
#pragma unroll 1
        for (int i = group.start; i < end; i += group.step) {
            const Pack<T, N> h = load_pack<N>(row + i);
#pragma unroll
            for (int j = 0; j < N; ++j) dot += to_float(h.v[j]) * weight[i + j];
        }
        return sigmoid(group_sum(dot, group.width) + bias);
    }
};

// `forward` with such an m.
template <class T>
__device__ void scored(const T* x, const T* hidden, const float* weight, float bias, float lambda, T* y, int pixels,
                       int c, int gated, float tau) {
    forward_maps(x, Scored<T>{hidden, weight, bias, c}, aligned<T>(c, hidden), lambda, y, pixels, c, gated, tau);
}

// Returns what this thread has of dλ.
template <int N, class T>
__device__ float backward_pixels(const T* d0, const T* d1, const T* first, const T* second, const T* m, float lambda,
                                 T* d_first, T* d_second, T* dm, int pixels, int c, int gated, float tau) {
    const Group<N> group(c);
    float d_lambda = 0.0f;
#pragma unroll 1
    for (long long base = group.first; base < pixels; base += group.stride) {
        const long long pixel = base + group.group;
        const int end = pixel < pixels ? c : 0;
        const size_t at = static_cast<size_t>(pixel) * c;
        // d_step is what is left of the step's own gradient.
        float dot = 0.0f, aa = 0.0f, bb = 0.0f, d_step = 0.0f;
#pragma unroll 1
        for (int i = group.start; i < end; i += group.step) {
            const Pack<T, N> a = load_pack<N>(first + at + i), b = load_pack<N>(second + at + i);
            const Pack<T, N> d = load_pack<N>(d0 + at + i), e = load_pack<N>(d1 + at + i);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float u = to_float(a.v[j]), v = to_float(b.v[j]);
                d_step += (to_float(e.v[j]) - to_float(d.v[j])) * (u - v);
                dot += u * v;
                aa += u * u;
                bb += v * v;
            }
        }
        d_step = group_sum(d_step, group.width);
        float g = 1.0f;
        if (gated) {
            dot = group_sum(dot, group.width);
            aa = group_sum(aa, group.width);
            bb = group_sum(bb, group.width);
            g = open(dot, aa, bb, tau);
        }
        const float weight = pixel < pixels ? to_float(m[pixel]) : 0.0f, step = g * lambda * weight;
        if (group.start == 0 && pixel < pixels) {
            dm[pixel] = from_float<T>(g * lambda * d_step);
            d_lambda += g * weight * d_step;
        }
#pragma unroll 1
        for (int i = group.start; i < end; i += group.step) {
            Pack<T, N> d = load_pack<N>(d0 + at + i), e = load_pack<N>(d1 + at + i);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float u = to_float(d.v[j]), v = to_float(e.v[j]), delta = step * (v - u);
                d.v[j] = from_float<T>(u + delta);
                e.v[j] = from_float<T>(v - delta);
            }
            store_pack(d_first + at + i, d);
            store_pack(d_second + at + i, e);
        }
    }
    return d_lambda;
}

// dy, x, dx (2, pixels, C), m, dm (pixels), λ a number in memory; partial: a part of dλ for each block. Any grid.
// Shared memory: 32 floats.
template <class T>
__device__ void backward(const T* dy, const T* x, const T* m, const float* lambda, T* dx, T* dm, float* partial,
                         int pixels, int c, int gated, float tau) {
    const size_t half = static_cast<size_t>(pixels) * c;
    // The halves of x and dx that are `first` and `second`.
    const size_t one = gated ? 0 : half, two = gated ? half : 0;
    float d_lambda;
    if (aligned<T>(c, dy, x, dx)) {
        d_lambda = backward_pixels<kLanes<T>>(dy, dy + half, x + one, x + two, m, *lambda, dx + one, dx + two, dm,
                                              pixels, c, gated, tau);
    } else {
        d_lambda = backward_pixels<1>(dy, dy + half, x + one, x + two, m, *lambda, dx + one, dx + two, dm, pixels, c,
                                      gated, tau);
    }
    d_lambda = block_sum(d_lambda, shared_memory<float>());
    if (threadIdx.x == 0) partial[blockIdx.x] = d_lambda;
}

// y[0] = the sum of x (len). One block. Shared memory: 32 floats.
extern "C" __global__ void __launch_bounds__(1024) gate_sum(const float* x, float* y, int len) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < len; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) y[0] = sum;
}

#define KERNELS(T, t)                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                        \
        gate_##t(const T* x, const T* m, const float* lambda, T* y, int pixels, int c, int gated, float tau) {       \
        forward(x, m, lambda, y, pixels, c, gated, tau);                                                             \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                        \
        gate_scored_##t(const T* x, const T* hidden, const float* weight, float bias, float lambda, T* y,            \
                        int pixels, int c, int gated, float tau) {                                                   \
        scored(x, hidden, weight, bias, lambda, y, pixels, c, gated, tau);                                           \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                        \
        gate_backward_##t(const T* dy, const T* x, const T* m, const float* lambda, T* dx, T* dm, float* partial,    \
                          int pixels, int c, int gated, float tau) {                                                 \
        backward(dy, x, m, lambda, dx, dm, partial, pixels, c, gated, tau);                                          \
    }
FOR_TYPES(KERNELS)
