// The fused picture: σ of the last layer of ReLU of the fusion head's 3×3 convolution, of which the two pictures are read
// here and the aligned maps come as the products of its taps (resized_taps.cuh).
//
// A thread has one column and a few channels; the threads of a pixel add up the last layer in shared memory. Reads the
// pictures and the maps once (again from the cache), writes three bytes a pixel.
#include <math.cuh>
#include <picture.cuh>
#include <resized_taps.cuh>

// Numbers of both pictures that the convolution reads for a pixel: nine taps of three channels of two streams.
constexpr int kPatch = 9 * 6;

// To the nearest of 0 .. 255; NaN becomes 0.
__device__ inline unsigned char to_byte(float x) {
    return static_cast<unsigned char>(fminf(fmaxf(roundf(255.0f * x), 0.0f), 255.0f));
}

template <int N, class X, class T>
__device__ void fuse_strip(const X* pictures, const Map<T> (&maps)[kMaps], const float* weights, unsigned char* fused,
                           float* image, int height, int width, int o, int strip) {
    const int groups = o / N, columns = blockDim.x / groups, per_block = columns * groups;
    const int numbers = (kPatch + 1 + 3) * o + 3;
    float* const shared = shared_memory<float>();
    for (int i = threadIdx.x; i < numbers; i += blockDim.x) shared[i] = weights[i];
    float* const partial = shared + (numbers + 3) / 4 * 4;
    Blend* const tables = reinterpret_cast<Blend*>(partial + (3 * blockDim.x + 3) / 4 * 4);
    const float* const bias = shared + kPatch * o;
    const float* const last = bias + o;
    const size_t plane = static_cast<size_t>(height) * width * 3, stream = gridDim.z * plane;
    const X* const picture = pictures + blockIdx.z * plane;

    const auto begin = [&](int line, int column, int channel, float(&sum)[N]) {
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] = bias[channel + j];
#pragma unroll 1
        for (int tap = 0; tap < 9; ++tap) {
            const int y = line + tap / 3 - 1, x = column + tap % 3 - 1;
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            const X* const from = picture + (static_cast<size_t>(y) * width + x) * 3;
#pragma unroll
            for (int k = 0; k < 6; ++k) {
                const float v = number(from[k / 3 * stream + k % 3]);
                const float* const weight = shared + (tap * 6 + k) * o + channel;
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += v * weight[j];
            }
        }
    };
    const auto end = [&](int line, int, int channel, const float(&sum)[N], bool inside) {
        if (inside) {
#pragma unroll
            for (int colour = 0; colour < 3; ++colour) {
                float dot = 0.0f;
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    dot += (sum[j] < 0.0f ? 0.0f : sum[j]) * last[colour * o + channel + j];
                }
                partial[3 * threadIdx.x + colour] = dot;
            }
        }
        __syncthreads();
        const int first = blockIdx.x * columns, pixels = min(columns, width - first);
        for (int i = threadIdx.x; i < 3 * pixels; i += blockDim.x) {
            float sum = last[3 * o + i % 3];
            for (int group = 0; group < groups; ++group) sum += partial[3 * (i / 3 * groups + group) + i % 3];
            const float y = sigmoid(sum);
            const size_t to = blockIdx.z * plane + (static_cast<size_t>(line) * width + first) * 3 + i;
            fused[to] = to_byte(y);
            if (image) image[to] = y;
        }
        __syncthreads();
    };
    walk_taps<N, 1>(maps, height, width, o, strip, per_block, tables, begin, end);
}

// pictures (2, B, H, W, 3), the maps (B, h, w, 9·O) -> fused (B, H, W, 3), and image, floats of its shape, or null.
// weights: (54, O), where 54 is (ky, kx, stream, colour), the bias (O), the last layer (3, O) and its bias (3).
// Grid: columns of a row, blockDim.x / (groups of channels) to a block; strips of rows; images. Shared memory: the
// weights and 3 floats for each thread, both rounded up to 16 bytes, then what `walk_taps` needs.
template <class X, class T>
__device__ void fuse(const X* pictures, const Map<T> (&maps)[kMaps], const float* weights, unsigned char* fused,
                     float* image, int height, int width, int o, int strip, int vector) {
    if (vector) {
        fuse_strip<kGroup>(pictures, maps, weights, fused, image, height, width, o, strip);
    } else {
        fuse_strip<1>(pictures, maps, weights, fused, image, height, width, o, strip);
    }
}

#define KERNEL(X, x, T, t)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128, 2) fuse_##x##_##t(                                             \
        const X* __restrict__ pictures, const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c,   \
        const T* __restrict__ d, const float* __restrict__ weights, unsigned char* fused, float* image, int ah,      \
        int aw, int bh, int bw, int ch, int cw, int dh, int dw, int height, int width, int o, int strip,             \
        int vector) {                                                                                                \
        const Map<T> maps[kMaps] = {{a, ah, aw}, {b, bh, bw}, {c, ch, cw}, {d, dh, dw}};                             \
        fuse(pictures, maps, weights, fused, image, height, width, o, strip, vector);                                \
    }
#define KERNELS(T, t) KERNEL(unsigned char, bytes, T, t) KERNEL(float, floats, T, t)
FOR_TYPES(KERNELS)
