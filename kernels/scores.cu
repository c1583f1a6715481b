// Both ends of the segmentation head's last layer, which is a product on the finest grid: the sum of the levels' parts of
// its hidden layer with ReLU before it, and what is made of the scores after it at the size of the picture. Neither the
// resized hidden maps nor scores of full size are ever in memory, unless the latter are asked for.
//
// scores_sum: a thread takes 16 bytes of channels of a pixel. Reads the finest map once and the others, which are small,
// from the cache; writes once.
// scores_labels: a thread takes a pixel of the picture. Reads the scores, which are small, writes a byte.
#include <bilinear.cuh>
#include <common.cuh>

// (1 − weight)·near + weight·far
__device__ inline float blend(float near, float far, float weight) { return fmaf(weight, far - near, near); }

// The four pixels of a map of `stride` numbers that a pixel of a larger map lies between.
template <class T> struct Corners {
    const T *a, *b, *c, *d;
    float down, along;

    __device__ Corners(const Map<T>& map, int image, int stride, int y, int x, int height, int width) {
        const Tap rows = tap_of(Axis(map.h, height), y), columns = tap_of(Axis(map.w, width), x);
        const T* const from = map.data + static_cast<size_t>(image) * map.h * map.w * stride;
        a = from + (static_cast<size_t>(rows.near) * map.w + columns.near) * stride;
        b = from + (static_cast<size_t>(rows.near) * map.w + columns.far) * stride;
        c = from + (static_cast<size_t>(rows.far) * map.w + columns.near) * stride;
        d = from + (static_cast<size_t>(rows.far) * map.w + columns.far) * stride;
        down = rows.weight;
        along = columns.weight;
    }

    // N numbers from number `at` on.
    template <int N> __device__ void read(int at, float (&v)[N]) const {
        float p[N], q[N], r[N], s[N];
        load(a + at, p);
        load(b + at, q);
        load(c + at, r);
        load(d + at, s);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] = blend(blend(p[j], r[j], down), blend(q[j], s[j], down), along);
    }
};

template <int N, class T>
__device__ void sum_of(const T* fine, const Map<T> (&maps)[3], T* y, int height, int width, int c) {
    const int groups = c / N, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width * groups) return;
    const int column = i / groups, channel = i % groups * N, line = blockIdx.y, image = blockIdx.z;
    const size_t at = ((static_cast<size_t>(image) * height + line) * width + column) * c + channel;
    float sum[N];
    load(fine + at, sum);
#pragma unroll
    for (int m = 0; m < 3; ++m) {
        float v[N];
        Corners<T>(maps[m], image, c, line, column, height, width).read(channel, v);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += v[j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] = sum[j] < 0.0f ? 0.0f : sum[j];
    store(y + at, sum);
}

// fine, y (B, H, W, C), the maps (B, h, w, C) -> y = ReLU(fine + the maps resized). Grid: groups of channels of a row,
// rows, images.
template <class T>
__device__ void sum(const T* fine, const Map<T> (&maps)[3], T* y, int height, int width, int c) {
    if (aligned<T>(c, fine, maps[0].data, maps[1].data, maps[2].data, y)) {
        sum_of<kLanes<T>>(fine, maps, y, height, width, c);
    } else {
        sum_of<1>(fine, maps, y, height, width, c);
    }
}

// scores (B, h, w, stride), a multiple of 16 bytes, of which `classes` count -> the first class of largest score of each
// pixel (B, H, W), NaN never being the largest; the scores and their softmax (B, H, W, classes), or null. Grid: pixels of
// a row, rows, images.
template <class T>
__device__ void labels(const T* scores, unsigned char* labels, float* logits, float* probabilities, int h, int w,
                       int height, int width, int classes, int stride) {
    constexpr int N = kLanes<T>;
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= width) return;
    const Corners<T> corners({scores, h, w}, blockIdx.z, stride, blockIdx.y, x, height, width);
    const size_t pixel = (static_cast<size_t>(blockIdx.z) * height + blockIdx.y) * width + x;
    // f(class, score) for each class.
    const auto for_classes = [&](auto f) {
        for (int from = 0; from < classes; from += N) {
            float v[N];
            corners.read(from, v);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (from + j < classes) f(from + j, v[j]);
            }
        }
    };
    int best = 0;
    float most = -INFINITY;
    for_classes([&](int i, float v) {
        if (logits) logits[pixel * classes + i] = v;
        if (v > most) {
            best = i;
            most = v;
        }
    });
    labels[pixel] = static_cast<unsigned char>(best);
    if (!probabilities) return;
    float total = 0.0f;
    for_classes([&](int, float v) { total += expf(v - most); });
    const float factor = 1.0f / total;
    for_classes([&](int i, float v) { probabilities[pixel * classes + i] = expf(v - most) * factor; });
}

#define KERNELS(T, t)                                                                                                \
    extern "C" __global__ void scores_sum_##t(const T* fine, const T* __restrict__ a, const T* __restrict__ b,       \
                                              const T* __restrict__ c, T* y, int ah, int aw, int bh, int bw, int ch, \
                                              int cw, int height, int width, int channels) {                         \
        const Map<T> maps[3] = {{a, ah, aw}, {b, bh, bw}, {c, ch, cw}};                                              \
        sum(fine, maps, y, height, width, channels);                                                                 \
    }                                                                                                                \
    extern "C" __global__ void scores_labels_##t(const T* __restrict__ scores, unsigned char* classes_of,            \
                                                 float* logits, float* probabilities, int h, int w, int height,      \
                                                 int width, int classes, int stride) {                               \
        labels(scores, classes_of, logits, probabilities, h, w, height, width, classes, stride);                     \
    }
FOR_TYPES(KERNELS)
