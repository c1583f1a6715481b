// Pictures and results in the layout of whoever asks, any number of numbers between rows and channels in any order, against
// the engine's (H, W, 3) without gaps.
//
// A thread has one pixel, or one number of a row. Each number is moved once, which is little beside the network.
#include <common.cuh>

// A number as the engine takes it: (v − black) / span, limited to 0 and 1; NaN becomes 0. Bytes stay as they are.
__device__ inline void convert(unsigned char v, unsigned char& to, float, float) { to = v; }
template <class F> __device__ inline void convert(F v, float& to, float black, float span) {
    to = fminf(fmaxf(__fdiv_rn(static_cast<float>(v) - black, span), 0.0f), 1.0f);
}

// from: rows `stride` numbers apart, of pixels of `channels` numbers; r, g, b: which of them are red, green and blue.
// -> to (H, W, 3). Grid: columns, blockDim.x to a block; rows.
template <class F, class T>
__device__ void read(const F* from, T* to, unsigned long long stride, int width, int channels, int r, int g, int b,
                     float black, float span) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= width) return;
    const F* const pixel = from + blockIdx.y * stride + static_cast<size_t>(x) * channels;
    T* const numbers = to + (static_cast<size_t>(blockIdx.y) * width + x) * 3;
    convert(pixel[r], numbers[0], black, span);
    convert(pixel[g], numbers[1], black, span);
    convert(pixel[b], numbers[2], black, span);
}

// from (H, W, 3) -> to, laid out as above; a fourth channel becomes `full`. Grid: as above.
template <class T>
__device__ void write(const T* from, T* to, unsigned long long stride, int width, int channels, int r, int g, int b,
                      T full) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= width) return;
    const T* const numbers = from + (static_cast<size_t>(blockIdx.y) * width + x) * 3;
    T* const pixel = to + blockIdx.y * stride + static_cast<size_t>(x) * channels;
    pixel[r] = numbers[0];
    pixel[g] = numbers[1];
    pixel[b] = numbers[2];
    if (channels == 4) pixel[3] = full;
}

// from (H, n) -> to: rows `stride` numbers apart. Grid: numbers of a row, blockDim.x to a block; rows.
template <class T> __device__ void rows(const T* from, T* to, unsigned long long stride, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[blockIdx.y * stride + i] = from[static_cast<size_t>(blockIdx.y) * n + i];
}

#define READ(F, f, T, t)                                                                                               \
    extern "C" __global__ void frame_read_##f##_##t(const F* from, T* to, unsigned long long stride, int width,        \
                                                    int channels, int r, int g, int b, float black, float span) {      \
        read(from, to, stride, width, channels, r, g, b, black, span);                                                 \
    }
READ(unsigned char, bytes, unsigned char, bytes)
READ(unsigned char, bytes, float, floats)
READ(unsigned short, words, float, floats)
READ(float, floats, float, floats)

#define WRITE(T, t, full)                                                                                              \
    extern "C" __global__ void frame_write_##t(const T* from, T* to, unsigned long long stride, int width,             \
                                               int channels, int r, int g, int b) {                                    \
        write<T>(from, to, stride, width, channels, r, g, b, full);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void frame_rows_##t(const T* from, T* to, unsigned long long stride, int n) {                \
        rows(from, to, stride, n);                                                                                     \
    }
WRITE(unsigned char, bytes, 255)
WRITE(float, floats, 1.0f)
