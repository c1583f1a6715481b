// The weights of pixels in local alignment from the statistics of their channels: σ of two layers at each pixel
// ("release"), or of a 7×7 convolution ("paper"). A thread takes a pixel.
#include <math.cuh>
#include <common.cuh>

template <class T> __device__ inline void store_both(T* y, float a, float b) {
    const float both[2] = {sigmoid(a), sigmoid(b)};
    store(y, both);
}

// x (pixels, 4) -> y (pixels, 2); weights: (hidden, 4), (hidden), (2, hidden), (2). Grid: pixels.
template <class T> __device__ void pointwise(const T* x, const float* weights, T* y, int pixels, int hidden) {
    const int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= pixels) return;
    float v[4];
    load(x + 4 * static_cast<size_t>(pixel), v);
    const float* const bias = weights + 4 * hidden;
    const float* const second = bias + hidden;
    float a = second[2 * hidden], b = second[2 * hidden + 1];
    for (int h = 0; h < hidden; ++h) {
        float sum = bias[h];
#pragma unroll
        for (int j = 0; j < 4; ++j) sum += weights[4 * h + j] * v[j];
        sum = sum < 0.0f ? 0.0f : sum;
        a += second[h] * sum;
        b += second[hidden + h] * sum;
    }
    store_both(y + 2 * static_cast<size_t>(pixel), a, b);
}

// x (B, H, W, 4) -> y (B, H, W, 2); weights: (2, 7, 7, 4), (2). Grid: pixels of an image, images.
template <class T> __device__ void wide(const T* x, const float* weights, T* y, int height, int width) {
    constexpr int kSide = 7, kPadding = kSide / 2, kAll = kSide * kSide * 4;
    const int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= height * width) return;
    const int row = pixel / width, column = pixel % width;
    const size_t image = static_cast<size_t>(blockIdx.y) * height * width;
    float a = weights[2 * kAll], b = weights[2 * kAll + 1];
    for (int ky = 0; ky < kSide; ++ky) {
        const int iy = row + ky - kPadding;
        if (iy < 0 || iy >= height) continue;
        for (int kx = 0; kx < kSide; ++kx) {
            const int ix = column + kx - kPadding;
            if (ix < 0 || ix >= width) continue;
            float v[4];
            load(x + 4 * (image + static_cast<size_t>(iy) * width + ix), v);
            const float* const weight = weights + 4 * (ky * kSide + kx);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                a += weight[j] * v[j];
                b += weight[kAll + j] * v[j];
            }
        }
    }
    store_both(y + 2 * (image + pixel), a, b);
}

#define KERNELS(T, t)                                                                                                \
    extern "C" __global__ void spatial_pointwise_##t(const T* x, const float* weights, T* y, int pixels,             \
                                                     int hidden) {                                                   \
        pointwise(x, weights, y, pixels, hidden);                                                                    \
    }                                                                                                                \
    extern "C" __global__ void spatial_wide_##t(const T* x, const float* weights, T* y, int height, int width) {     \
        wide(x, weights, y, height, width);                                                                          \
    }
FOR_TYPES(KERNELS)
