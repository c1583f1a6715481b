// The end of local alignment: weights of channels and of pixels applied to both streams, as the published network does
// it ("release", with a gate G) or as equations 7 and 9 do ("paper"); see src/ops/realign.rs for the equations.
//
// Forward and backward are one pass each (pixels.cuh): a lane takes the same channels of both streams. In backward a
// lane adds up what the weights of its channels get from the pixels of a part, a group what the weights of a pixel get
// from its channels; `sum_partials` adds up the parts.
//
// forward: reads x and G once, writes y once.
// backward: reads dy, x and G once, writes dx and dG once, and 2·C floats for each part of the pixels.
// The weights, 2·C numbers an image and 2 a pixel, are small beside these.
#include <math.cuh>
#include <pixels.cuh>

// Numbers of each tensor that a lane takes at once: 8 bytes, because 16 are too many for its registers.
template <class T> constexpr int kNumbers = kLanes<T> / 2;

// A number of each stream.
struct Both {
    float a, b;
};

// y = σ(x·w − x)·x + x·w.
__device__ inline float finish(float x, float w) { return x * (sigmoid(x * (w - 1.0f)) + w); }

// The gradients of x and, added to dw, of w.
__device__ inline float finish_backward(float dy, float x, float w, float& dw) {
    const float sigma = sigmoid(x * (w - 1.0f)), inner = dy * x * sigmoid_derivative(sigma);
    dw += dy * x + inner * x;
    return dy * (sigma + w) + inner * (w - 1.0f);
}

// The gradients of x and w in y = σ(w·x − x)·x + x.
__device__ inline float paper_backward(float dy, float x, float w, float& dw) {
    const float sigma = sigmoid(x * (w - 1.0f)), inner = dy * x * sigmoid_derivative(sigma);
    dw = inner * x;
    return dy * (sigma + 1.0f) + inner * (w - 1.0f);
}

// One channel of one pixel, with the weights of the channel and of the pixel.
template <bool kGated> __device__ inline Both forward_one(Both x, float gate, Both channel, Both pixel) {
    if constexpr (kGated) {
        const Both w = {gate * channel.a * pixel.a, gate * channel.b * pixel.b};
        return {finish(fmaf(w.a, x.b, x.a), w.a), finish(fmaf(w.b, x.a, x.b), w.b)};
    } else {
        const auto one = [](float x, float w, float s) {
            return x * (sigmoid(x * (w - 1.0f)) + sigmoid(x * (s - 1.0f)) + 2.0f);
        };
        return {one(x.a, channel.a, pixel.a), one(x.b, channel.b, pixel.b)};
    }
}

// The gradient of x; d_gate is assigned, d_channel and d_pixel are added to.
template <bool kGated>
__device__ inline Both backward_one(Both dy, Both x, float gate, Both channel, Both pixel, float& d_gate,
                                    Both& d_channel, Both& d_pixel) {
    if constexpr (kGated) {
        const Both u = {channel.a * pixel.a, channel.b * pixel.b}, w = {gate * u.a, gate * u.b};
        Both dw = {0.0f, 0.0f};
        const float da = finish_backward(dy.a, fmaf(w.a, x.b, x.a), w.a, dw.a);
        const float db = finish_backward(dy.b, fmaf(w.b, x.a, x.b), w.b, dw.b);
        dw = {fmaf(da, x.b, dw.a), fmaf(db, x.a, dw.b)};
        d_gate = dw.a * u.a + dw.b * u.b;
        const Both t = {dw.a * gate, dw.b * gate};
        d_channel = {d_channel.a + pixel.a * t.a, d_channel.b + pixel.b * t.b};
        d_pixel = {d_pixel.a + t.a * channel.a, d_pixel.b + t.b * channel.b};
        return {fmaf(db, w.b, da), fmaf(da, w.a, db)};
    } else {
        Both dw, ds;
        const Both by_channel = {paper_backward(dy.a, x.a, channel.a, dw.a), paper_backward(dy.b, x.b, channel.b, dw.b)};
        const Both by_pixel = {paper_backward(dy.a, x.a, pixel.a, ds.a), paper_backward(dy.b, x.b, pixel.b, ds.b)};
        d_channel = {d_channel.a + dw.a, d_channel.b + dw.b};
        d_pixel = {d_pixel.a + ds.a, d_pixel.b + ds.b};
        return {by_channel.a + by_pixel.a, by_channel.b + by_pixel.b};
    }
}

template <class T> __device__ inline Both pixel_weights(const T* spatial, size_t pixel) {
    return {to_float(spatial[2 * pixel]), to_float(spatial[2 * pixel + 1])};
}

// The weight of a channel: a number, or with kRaw σ of the sum of it and of another, `other` numbers further on.
template <bool kRaw, class T> __device__ inline float channel_weight(const T* channel, size_t other) {
    if constexpr (kRaw) {
        return sigmoid(to_float(channel[0]) + to_float(channel[other]));
    } else {
        return to_float(channel[0]);
    }
}

// `rows` pixels, the first of which is `before` of the batch; `channel` is that of their image. Tensors of two streams
// have stream 1 `half` numbers further on. The other pointers are those of the launch, and not moved: they need no
// registers. With kRaw, the gate and the weights of the channels are still before their σ.
template <int N, bool kGated, bool kRaw, class T>
__device__ void forward_part(const T* x, const T* gate, const T* channel, const T* spatial, T* y, size_t before,
                             size_t half, size_t other, int rows, int c) {
    const Walk<N> walk(c);
    for (int tile = walk.team; tile < walk.tiles; tile += walk.teams) {
        const int i = walk.channel(tile);
        if (i >= c) continue;
        float wa[N], wb[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            wa[j] = channel_weight<kRaw>(channel + i + j, other);
            wb[j] = channel_weight<kRaw>(channel + c + i + j, other);
        }
#pragma unroll 1
        for (int row = walk.first + walk.group; row < rows; row += walk.at_once) {
            const size_t at = (before + row) * c + i;
            const Both pixel = pixel_weights(spatial, before + row);
            Pack<T, N> a = load_pack<N>(x + at), b = load_pack<N>(x + half + at), g;
            if constexpr (kGated) g = load_pack<N>(gate + at);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                float open = 0.0f;
                if constexpr (kGated) open = kRaw ? sigmoid(to_float(g.v[j])) : to_float(g.v[j]);
                const Both out = forward_one<kGated>({to_float(a.v[j]), to_float(b.v[j])}, open, {wa[j], wb[j]}, pixel);
                a.v[j] = from_float<T>(out.a);
                b.v[j] = from_float<T>(out.b);
            }
            store_pack(y + at, a);
            store_pack(y + half + at, b);
        }
    }
}

// x, y (2, B, pixels, C), gate (B, pixels, C) or null, channel (B, 2, C), with kRaw (2, B, 2, C), spatial (B, pixels, 2).
// Grid: parts of `per_part` pixels, images.
template <bool kGated, bool kRaw = false, class T>
__device__ void forward(const T* x, const T* gate, const T* channel, const T* spatial, T* y, int batch, int pixels,
                        int per_part, int c) {
    const int start = blockIdx.x * per_part, rows = min(per_part, pixels - start);
    const size_t image = blockIdx.y, before = image * pixels + start;
    const size_t half = static_cast<size_t>(batch) * pixels * c, other = static_cast<size_t>(batch) * 2 * c;
    channel += image * 2 * c;
    if (aligned<T>(c, x, y) && (!kGated || aligned<T>(c, gate))) {
        forward_part<kNumbers<T>, kGated, kRaw>(x, gate, channel, spatial, y, before, half, other, rows, c);
    } else {
        forward_part<1, kGated, kRaw>(x, gate, channel, spatial, y, before, half, other, rows, c);
    }
}

// The gradients of the pixels of `forward_part`; partial (2, C) for the weights of the channels.
template <int N, bool kGated, class T>
__device__ void backward_part(const T* dy, const T* x, const T* gate, const T* channel, const T* spatial, T* dx,
                              T* d_gate, T* d_spatial, float* partial, size_t before, size_t half, int rows, int c) {
    const Walk<N> walk(c);
    const int slots = walk.slots();
    Both* const of_pixels = shared_memory<Both>();
    Both* const of_channels = of_pixels + slots * rows;
    for (int tile = walk.team; tile < walk.tiles; tile += walk.teams) {
        const int i = walk.channel(tile);
        const bool inside = i < c;
        Pack<T, N> wa, wb;
        Both d_channel[N];
#pragma unroll
        for (int j = 0; j < N; ++j) d_channel[j] = {0.0f, 0.0f};
        if (inside) {
            wa = load_pack<N>(channel + i);
            wb = load_pack<N>(channel + c + i);
        }
#pragma unroll 1
        for (int base = walk.first; base < rows; base += walk.at_once) {
            const int row = base + walk.group;
            Both d_pixel = {0.0f, 0.0f};
            if (inside && row < rows) {
                const size_t at = (before + row) * c + i;
                const Both pixel = pixel_weights(spatial, before + row);
                Pack<T, N> da = load_pack<N>(dy + at), db = load_pack<N>(dy + half + at), g;
                const Pack<T, N> a = load_pack<N>(x + at), b = load_pack<N>(x + half + at);
                if constexpr (kGated) g = load_pack<N>(gate + at);
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    float of_gate = 0.0f;
                    const Both d = backward_one<kGated>(
                        {to_float(da.v[j]), to_float(db.v[j])}, {to_float(a.v[j]), to_float(b.v[j])},
                        kGated ? to_float(g.v[j]) : 0.0f, {to_float(wa.v[j]), to_float(wb.v[j])}, pixel, of_gate,
                        d_channel[j], d_pixel);
                    da.v[j] = from_float<T>(d.a);
                    db.v[j] = from_float<T>(d.b);
                    if constexpr (kGated) g.v[j] = from_float<T>(of_gate);
                }
                store_pack(dx + at, da);
                store_pack(dx + half + at, db);
                if constexpr (kGated) store_pack(d_gate + at, g);
            }
            d_pixel = {group_sum(d_pixel.a, walk.width), group_sum(d_pixel.b, walk.width)};
            if (walk.lane > 0 || row >= rows) continue;
            Both& slot = of_pixels[walk.team * rows + row];
            if (tile >= walk.teams) d_pixel = {slot.a + d_pixel.a, slot.b + d_pixel.b};
            slot = d_pixel;
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const Both sum = {groups_sum(d_channel[j].a, walk.width), groups_sum(d_channel[j].b, walk.width)};
            if (walk.group > 0 || i + j >= c) continue;
            if (walk.walkers == 1) {
                partial[i + j] = sum.a;
                partial[c + i + j] = sum.b;
            } else {
                of_channels[walk.walker * c + i + j] = sum;
            }
        }
    }
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += kThreads) {
        Both sum = of_pixels[row];
        for (int slot = rows + row; slot < slots * rows; slot += rows) {
            sum = {sum.a + of_pixels[slot].a, sum.b + of_pixels[slot].b};
        }
        d_spatial[2 * (before + row)] = from_float<T>(sum.a);
        d_spatial[2 * (before + row) + 1] = from_float<T>(sum.b);
    }
    if (walk.walkers == 1) return;
    for (int i = threadIdx.x; i < c; i += kThreads) {
        Both sum = of_channels[i];
        for (int walker = 1; walker < walk.walkers; ++walker) {
            const Both other = of_channels[walker * c + i];
            sum = {sum.a + other.a, sum.b + other.b};
        }
        partial[i] = sum.a;
        partial[c + i] = sum.b;
    }
}

// dy, x, dx (2, B, pixels, C), gate, d_gate (B, pixels, C) or null, channel (B, 2, C), spatial, d_spatial
// (B, pixels, 2), partial (B, parts, 2, C). Grid: parts of `per_part` pixels, images. Shared memory: 8 bytes for each
// slot of each pixel of a part, and for each walker and channel.
template <bool kGated, class T>
__device__ void backward(const T* dy, const T* x, const T* gate, const T* channel, const T* spatial, T* dx, T* d_gate,
                         T* d_spatial, float* partial, int batch, int pixels, int per_part, int c) {
    const int start = blockIdx.x * per_part, rows = min(per_part, pixels - start);
    const size_t image = blockIdx.y, before = image * pixels + start;
    const size_t half = static_cast<size_t>(batch) * pixels * c;
    channel += image * 2 * c;
    partial += (image * gridDim.x + blockIdx.x) * 2 * c;
    if (aligned<T>(c, dy, x, channel, dx) && (!kGated || aligned<T>(c, gate, d_gate))) {
        backward_part<kNumbers<T>, kGated>(dy, x, gate, channel, spatial, dx, d_gate, d_spatial, partial, before, half, rows, c);
    } else {
        backward_part<1, kGated>(dy, x, gate, channel, spatial, dx, d_gate, d_spatial, partial, before, half, rows, c);
    }
}

#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                       \
        realign_release_##t(const T* x, const T* gate, const T* channel, const T* spatial, T* y, int batch,         \
                            int pixels, int per_part, int c) {                                                      \
        forward<true>(x, gate, channel, spatial, y, batch, pixels, per_part, c);                                    \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                       \
        realign_paper_##t(const T* x, const T* channel, const T* spatial, T* y, int batch, int pixels,              \
                          int per_part, int c) {                                                                    \
        forward<false, false, T>(x, nullptr, channel, spatial, y, batch, pixels, per_part, c);                      \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                       \
        realign_release_raw_##t(const T* x, const T* gate, const T* channel, const T* spatial, T* y, int batch,     \
                                int pixels, int per_part, int c) {                                                  \
        forward<true, true>(x, gate, channel, spatial, y, batch, pixels, per_part, c);                              \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                       \
        realign_paper_raw_##t(const T* x, const T* channel, const T* spatial, T* y, int batch, int pixels,          \
                              int per_part, int c) {                                                                \
        forward<false, true, T>(x, nullptr, channel, spatial, y, batch, pixels, per_part, c);                       \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                       \
        realign_release_backward_##t(const T* dy, const T* x, const T* gate, const T* channel, const T* spatial,    \
                                     T* dx, T* d_gate, T* d_spatial, float* partial, int batch, int pixels,         \
                                     int per_part, int c) {                                                         \
        backward<true>(dy, x, gate, channel, spatial, dx, d_gate, d_spatial, partial, batch, pixels, per_part, c);  \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                       \
        realign_paper_backward_##t(const T* dy, const T* x, const T* channel, const T* spatial, T* dx,              \
                                   T* d_spatial, float* partial, int batch, int pixels, int per_part, int c) {      \
        backward<false, T>(dy, x, nullptr, channel, spatial, dx, nullptr, d_spatial, partial, batch, pixels,        \
                           per_part, c);                                                                            \
    }
FOR_TYPES(KERNELS)
