// The loss of the fused image, and what its gradient needs, in one pass over tiles with a halo in shared memory.
//
// The loss is a sum of absolute values, so its gradient is made of signs alone. What is kept of them for backward is
// 32 bits for each pixel, exact, where the gradient itself would take more and be rounded: for each channel the sum of
// the intensity's sign and of what the Sobel terms say of their neighbours, from −17 to 17, and the signs of the two
// chroma terms.
//
// Signs have to be those of the CPU, above all where two colours are equal: what they depend on is computed in its
// order, without multiply-adds that round once where the CPU rounds twice.
#include <sums.cuh>

// Pixels of a tile, and of its halo: one for the Sobel responses of the neighbours, one for what those read.
constexpr int kTileWidth = 32;
constexpr int kTileHeight = 16;
constexpr int kHalo = 2;
// Numbers of a row of a plane, and its rows.
constexpr int kPitch = (kTileWidth + 2 * kHalo) * 3;
constexpr int kRows = kTileHeight + 2 * kHalo;
// The same for a plane of signs, whose halo is 1.
constexpr int kSignPitch = (kTileWidth + 2) * 3;
constexpr int kSignRows = kTileHeight + 2;

constexpr float kRed = 0.299f;
constexpr float kGreen = 0.587f;
constexpr float kBlue = 0.114f;
constexpr float kCr = 0.713f;
constexpr float kCb = 0.564f;

// x^0.8 on [0, 1], as the CPU computes it: x · x^(−1/5) by Newton's method on r⁻⁵ = x.
__device__ inline float gamma_curve(float x) {
    if (x > 1.0f) x = 1.0f;
    const float guess = __fsub_rn(1277920000.0f, __fmul_rn(static_cast<float>(__float_as_int(x)), 0.2f));
    float r = __int_as_float(static_cast<int>(guess));
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const float square = __fmul_rn(r, r), fifth = __fmul_rn(__fmul_rn(square, square), r);
        r = __fmul_rn(r, __fsub_rn(1.2f, __fmul_rn(__fmul_rn(0.2f, x), fifth)));
    }
    return x < 1e-30f ? 0.0f : __fmul_rn(x, r);
}

__device__ inline float larger(float a, float b) { return a > b ? a : b; }
__device__ inline int sign(float x) { return (x > 0.0f) - (x < 0.0f); }

// The responses at x[0] of a plane of three interleaved channels to [−1 0 1; −2 0 2; −1 0 1] and to
// [1 2 1; 0 0 0; −1 −2 −1]. A double is exact, so a multiply-add changes nothing.
template <int kWidth, class T> __device__ inline auto sobel_x(const T* x) {
    return (x[3 - kWidth] - x[-3 - kWidth]) + 2 * (x[3] - x[-3]) + (x[3 + kWidth] - x[-3 + kWidth]);
}
template <int kWidth, class T> __device__ inline auto sobel_y(const T* x) {
    return (x[-3 - kWidth] - x[-3 + kWidth]) + 2 * (x[-kWidth] - x[kWidth]) + (x[3 - kWidth] - x[3 + kWidth]);
}

__device__ inline float luma(const float* p) {
    return __fadd_rn(__fadd_rn(__fmul_rn(kRed, p[0]), __fmul_rn(kGreen, p[1])), __fmul_rn(kBlue, p[2]));
}
// Cr or Cb, of the channel x.
__device__ inline float chroma(float x, float luma, float factor) {
    return __fadd_rn(__fmul_rn(__fsub_rn(x, luma), factor), 0.5f);
}

// image, visible, infrared (B, H, W, 3), valid (B, H, W) -> partial (blocks): sums of which the mean is the loss; signs
// (B, H, W), if wanted. With `brighter`, the target is the gradient of the brighter source.
// Grid: tiles along x, tiles along y, samples; 256 threads. Shared memory: three planes of floats, two of signs.
template <class T>
__device__ void fusion_loss(const T* image, const float* visible, const float* infrared, const unsigned char* valid,
                            double* partial, unsigned* signs, int height, int width, int brighter) {
    float* p = shared_memory<float>();
    float* s = p + kRows * kPitch;
    float* d = s + kRows * kPitch;
    signed char* horizontal = reinterpret_cast<signed char*>(d + kRows * kPitch);
    signed char* vertical = horizontal + kSignRows * kSignPitch;
    const int left = blockIdx.x * kTileWidth, top = blockIdx.y * kTileHeight;
    const size_t sample = static_cast<size_t>(blockIdx.z) * height * width;
    const auto inside = [&](int y, int x) { return y >= 0 && y < height && x >= 0 && x < width; };

    for (int i = threadIdx.x; i < kRows * kPitch; i += blockDim.x) {
        const int y = top + i / kPitch - kHalo, x = left + i % kPitch / 3 - kHalo;
        float pixel = 0.0f, source = 0.0f, other = 0.0f;
        if (inside(y, x)) {
            const size_t at = sample + static_cast<size_t>(y) * width + x, number = 3 * at + i % 3;
            pixel = __fmul_rn(to_float(image[number]), static_cast<float>(valid[at]));
            source = gamma_curve(visible[number]);
            other = infrared[number];
        }
        p[i] = pixel;
        s[i] = source;
        d[i] = brighter ? __fsub_rn(pixel, larger(source, other)) : other;
    }
    __syncthreads();

    float edges = 0.0f;
    for (int i = threadIdx.x; i < kSignRows * kSignPitch; i += blockDim.x) {
        const int row = i / kSignPitch, column = i % kSignPitch;
        const int y = top + row - 1, x = left + column / 3 - 1;
        float along_x = 0.0f, along_y = 0.0f;
        if (inside(y, x)) {
            const int at = (row + 1) * kPitch + column + 3;
            along_x = sobel_x<kPitch>(d + at);
            along_y = sobel_y<kPitch>(d + at);
            if (!brighter) {
                along_x = sobel_x<kPitch>(p + at) - larger(sobel_x<kPitch>(s + at), along_x);
                along_y = sobel_y<kPitch>(p + at) - larger(sobel_y<kPitch>(s + at), along_y);
            }
            if (row > 0 && row <= kTileHeight && column >= 3 && column < 3 + 3 * kTileWidth) {
                edges += fabsf(along_x) + fabsf(along_y);
            }
        }
        horizontal[i] = static_cast<signed char>(sign(along_x));
        vertical[i] = static_cast<signed char>(sign(along_y));
    }
    __syncthreads();

    float colours = 0.0f;
    for (int i = threadIdx.x; i < kTileHeight * kTileWidth; i += blockDim.x) {
        const int row = i / kTileWidth, column = i % kTileWidth, y = top + row, x = left + column;
        if (!inside(y, x)) continue;
        const int at = (row + kHalo) * kPitch + 3 * (column + kHalo);
        const float luma_p = luma(p + at), luma_s = luma(s + at);
        const float red = chroma(p[at], luma_p, kCr) - chroma(s[at], luma_s, kCr);
        const float blue = chroma(p[at + 2], luma_p, kCb) - chroma(s[at + 2], luma_s, kCb);
        colours += fabsf(red) + fabsf(blue);
        unsigned word = (sign(red) & 3u) << 24 | (sign(blue) & 3u) << 26;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const int from = (row + 1) * kSignPitch + 3 * (column + 1) + c;
            // Turned by half a circle both kernels change sign: the transposed response is the negative response.
            int sum = -(sobel_x<kSignPitch>(horizontal + from) + sobel_y<kSignPitch>(vertical + from));
            if (!brighter) {
                const float difference = p[at + c] - larger(s[at + c], d[at + c]);
                edges += fabsf(difference);
                sum += sign(difference);
            }
            word |= (sum & 0xffu) << 8 * c;
        }
        const size_t pixel = sample + static_cast<size_t>(y) * width + x;
        if (signs) signs[pixel] = valid[pixel] ? word : 0u;
    }
    const double total = block_total(0.5 * edges + 3.0 * colours, shared_memory<double>());
    if (threadIdx.x == 0) {
        const size_t block = (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        partial[block] = total;
    }
}

// The number of `bits` bits of `word` from bit `first` on, with its sign.
__device__ inline int field(unsigned word, int first, int bits) {
    return static_cast<int>(word << (32 - first - bits)) >> (32 - bits);
}

// Number `i` of the gradient, times the number of numbers.
__device__ inline float gradient(const unsigned* signs, size_t i) {
    const unsigned word = signs[i / 3];
    const int c = static_cast<int>(i % 3);
    const float red = 3.0f * kCr * field(word, 24, 2), blue = 3.0f * kCb * field(word, 26, 2);
    const float own = c == 0 ? red : c == 1 ? 0.0f : blue;
    const float weight = c == 0 ? kRed : c == 1 ? kGreen : kBlue;
    return 0.5f * field(word, 8 * c, 8) + own - weight * (red + blue);
}

// signs (pixels) -> dx (pixels, 3): the gradient times dy. The first `groups` threads write 16 bytes each, the others
// a number.
template <class T>
__device__ void fusion_loss_backward(const float* dy, const unsigned* signs, T* dx, unsigned long long groups,
                                     unsigned long long len, float scale) {
    constexpr int N = kLanes<T>;
    const size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    scale *= *dy;
    if (thread < groups) {
        float g[N];
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] = gradient(signs, thread * N + j) * scale;
        store(dx + thread * N, g);
        return;
    }
    const size_t i = groups * N + (thread - groups);
    if (i < len) dx[i] = from_float<T>(gradient(signs, i) * scale);
}

// y = scale · Σ partial. A block; shared memory: a double for each thread.
extern "C" __global__ void __launch_bounds__(1024)
    fusion_loss_combine(const double* partial, float* y, int parts, float scale) {
    const double sum = total_of(partial, parts, 1, shared_memory<double>());
    if (threadIdx.x == 0) *y = static_cast<float>(sum * scale);
}

#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void fusion_loss_##t(const T* image, const float* visible, const float* infrared,         \
                                               const unsigned char* valid, double* partial, unsigned* signs,        \
                                               int height, int width, int brighter) {                               \
        fusion_loss(image, visible, infrared, valid, partial, signs, height, width, brighter);                      \
    }                                                                                                               \
    extern "C" __global__ void fusion_loss_backward_##t(const float* dy, const unsigned* signs, T* dx,              \
                                                        unsigned long long groups, unsigned long long len,          \
                                                        float scale) {                                              \
        fusion_loss_backward(dy, signs, dx, groups, len, scale);                                                    \
    }
FOR_TYPES(KERNELS)
