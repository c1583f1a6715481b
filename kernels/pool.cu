// The pooled statistics of local alignment: of each channel over the pixels, and of each pixel over the channels, the
// mean, the maximum, and where the first maximum is.
//
// Forward walks once over x for both (pixels.cuh): blocks of pixels give the numbers of their pixels, and partial
// sums and maxima of the channels, which a second kernel puts together. Backward writes the gradient of both and needs
// no x, because the places of the maxima are kept.
//
// forward: reads x once; writes 4 numbers and 2 indices a pixel, and 3 numbers a channel for each block of pixels.
// combine: reads those 3 once.
// backward: reads the small gradients and indices; writes dx once.
#include <pixels.cuh>

// Packs of N numbers of x that a lane loads before it uses the first: as many as there are registers for.
template <int N> constexpr int kAhead = N == 8 ? 1 : N == 4 ? 2 : 4;

// Whether v becomes the maximum in the place of `most`: the first of equals stays, and so does NaN.
__device__ inline bool exceeds(float v, float most) { return !(v <= most) && most == most; }

// The sum of some numbers, their maximum, and its place.
struct Statistics {
    float sum, most;
    int at;

    // The next number, whose place is a later one.
    __device__ void add(float v, int place) {
        sum += v;
        const bool greater = exceeds(v, most);
        most = greater ? v : most;
        at = greater ? place : at;
    }
    // The statistics of numbers whose places may be earlier: of equals the first counts.
    __device__ void merge(const Statistics& other) {
        sum += other.sum;
        const bool wins = exceeds(other.most, most) || (!exceeds(most, other.most) && other.at < at);
        most = wins ? other.most : most;
        at = wins ? other.at : at;
    }
};

// A part of a map, x (rows, C), which begins at pixel `start` -> y (rows, 4), of which the first two numbers are the
// pixels' mean and maximum, spatial_at (rows), and the statistics of the part's channels.
template <int N, class T>
__device__ void forward_part(const T* x, T* y, int* spatial_at, Statistics* partial, int start, int rows, int c) {
    const Walk<N> walk(c);
    const int slots = walk.slots();
    // The lanes of the group before this one.
    const unsigned before = ((1u << walk.lane) - 1) << (walk.group * walk.width);
    Statistics* const pixels = shared_memory<Statistics>();
    Statistics* const channels = pixels + slots * rows;
    for (int tile = walk.team; tile < walk.tiles; tile += walk.teams) {
        const int channel = walk.channel(tile);
        const bool inside = channel < c;
        Statistics of_channel[N];
#pragma unroll
        for (int j = 0; j < N; ++j) of_channel[j] = {0.0f, -INFINITY, walk.first + walk.group};
#pragma unroll 1
        for (int base = walk.first; base < rows; base += kAhead<N> * walk.at_once) {
            Pack<T, N> ahead[kAhead<N>];
#pragma unroll
            for (int k = 0; k < kAhead<N>; ++k) {
                const int row = base + walk.group + k * walk.at_once;
                if (inside && row < rows) ahead[k] = load_pack<N>(x + static_cast<size_t>(row) * c + channel);
            }
#pragma unroll
            for (int k = 0; k < kAhead<N>; ++k) {
                const int row = base + walk.group + k * walk.at_once;
                Statistics of_pixel = {0.0f, -INFINITY, 0};
                if (inside && row < rows) {
#pragma unroll
                    for (int j = 0; j < N; ++j) {
                        const float v = to_float(ahead[k].v[j]);
                        of_pixel.add(v, j);
                        of_channel[j].add(v, row);
                    }
                }
                of_pixel.at += channel;
                const float mine = of_pixel.most;
                of_pixel.sum = group_sum(of_pixel.sum, walk.width);
                for (int lane = walk.width / 2; lane > 0; lane /= 2) {
                    const float other = __shfl_xor_sync(kAll, of_pixel.most, lane);
                    of_pixel.most = exceeds(other, of_pixel.most) ? other : of_pixel.most;
                }
                // Another lane may have written the slot; shuffles do not order accesses to memory.
                if (tile >= walk.teams) __syncwarp();
                // The first lane of the group that has the maximum has its first channel too.
                const bool has = !exceeds(of_pixel.most, mine);
                if ((__ballot_sync(kAll, has) & before) || !has || row >= rows) continue;
                Statistics& slot = pixels[walk.team * rows + row];
                if (tile >= walk.teams) of_pixel.merge(slot);
                slot = of_pixel;
            }
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            Statistics& mine = of_channel[j];
            for (int lane = walk.width; lane < kWarp; lane *= 2) {
                const float sum = __shfl_xor_sync(kAll, mine.sum, lane);
                const float most = __shfl_xor_sync(kAll, mine.most, lane);
                mine.merge({sum, most, __shfl_xor_sync(kAll, mine.at, lane)});
            }
            mine.at += start;
            if (walk.group > 0 || channel + j >= c) continue;
            (walk.walkers == 1 ? partial : channels + walk.walker * c)[channel + j] = mine;
        }
    }
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += kThreads) {
        Statistics sum = pixels[row];
        for (int slot = rows + row; slot < slots * rows; slot += rows) sum.merge(pixels[slot]);
        y[4 * static_cast<size_t>(row)] = from_float<T>(sum.sum / c);
        y[4 * static_cast<size_t>(row) + 1] = from_float<T>(sum.most);
        spatial_at[row] = sum.at;
    }
    if (walk.walkers == 1) return;
    for (int i = threadIdx.x; i < c; i += kThreads) {
        Statistics sum = channels[i];
        for (int walker = 1; walker < walk.walkers; ++walker) sum.merge(channels[walker * c + i]);
        partial[i] = sum;
    }
}

// x (2, B, pixels, C) -> y (B, pixels, 4): mean and maximum of stream 0, then of stream 1; spatial_at (2, B, pixels);
// partial (2·B, parts, C). Grid: parts of `per_part` pixels, maps. Shared memory: as the launcher's `shared`, of
// 12 bytes.
template <class T>
__device__ void forward(const T* x, T* y, int* spatial_at, Statistics* partial, int batch, int pixels, int per_part,
                        int c) {
    const int start = blockIdx.x * per_part, rows = min(per_part, pixels - start);
    const int map = blockIdx.y, stream = map / batch;
    const size_t image = map % batch, before = static_cast<size_t>(map) * pixels + start;
    x += before * c;
    y += 4 * (image * pixels + start) + 2 * stream;
    spatial_at += before;
    partial += (static_cast<size_t>(map) * gridDim.x + blockIdx.x) * c;
    if (aligned<T>(c, x)) {
        forward_part<kLanes<T>>(x, y, spatial_at, partial, start, rows, c);
    } else {
        forward_part<1>(x, y, spatial_at, partial, start, rows, c);
    }
}

// Channels of a block of `combine`; its other threads share the parts.
constexpr int kChannels = 32;

// partial of `forward` -> y (2, B, 2·C): means, then maxima, of stream 0 before stream 1; channel_at (B, 2·C): pixels.
// Grid: tiles of 32 channels, maps. Shared memory: 12 bytes for each thread.
template <class T>
__device__ void combine(const Statistics* partial, T* y, int* channel_at, int batch, int pixels, int parts, int c) {
    const int map = blockIdx.y, thread = threadIdx.x, threads = blockDim.x;
    const int channel = blockIdx.x * kChannels + thread % kChannels;
    partial += static_cast<size_t>(map) * parts * c + channel;
    Statistics sum = {0.0f, -INFINITY, INT_MAX};
    if (channel < c) {
#pragma unroll 4
        for (int part = thread / kChannels; part < parts; part += threads / kChannels) {
            sum.merge(partial[static_cast<size_t>(part) * c]);
        }
    }
    Statistics* const shared = shared_memory<Statistics>();
    shared[thread] = sum;
    __syncthreads();
    if (thread >= kChannels || channel >= c) return;
    for (int other = thread + kChannels; other < threads; other += kChannels) sum.merge(shared[other]);
    const int stream = map / batch, image = map % batch;
    const size_t to = static_cast<size_t>(2 * image + stream) * c + channel;
    y[to] = from_float<T>(sum.sum / pixels);
    y[2 * static_cast<size_t>(batch) * c + to] = from_float<T>(sum.most);
    channel_at[to] = sum.at;
}

// The gradients of one part of a map; the pointers are those of the map, and null where there is no such gradient.
template <int N, class T>
__device__ void backward_part(const T* d_mean, const T* d_most, const int* channel_at, const T* d_spatial,
                              const int* spatial_at, T* dx, int start, int end, int pixels, int c) {
    const Walk<N> walk(c);
    for (int tile = walk.team; tile < walk.tiles; tile += walk.teams) {
        const int channel = walk.channel(tile);
        if (channel >= c) continue;
        float mean[N], most[N];
        int at[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            mean[j] = d_mean ? to_float(d_mean[channel + j]) / pixels : 0.0f;
            most[j] = d_mean ? to_float(d_most[channel + j]) : 0.0f;
            at[j] = channel_at[channel + j];
        }
        for (int row = start + walk.first + walk.group; row < end; row += walk.at_once) {
            float of_pixel = 0.0f, of_most = 0.0f;
            if (d_spatial) {
                of_pixel = to_float(d_spatial[4 * static_cast<size_t>(row)]) / c;
                of_most = to_float(d_spatial[4 * static_cast<size_t>(row) + 1]);
            }
            const int place = spatial_at[row] - channel;
            float d[N];
#pragma unroll
            for (int j = 0; j < N; ++j) {
                d[j] = mean[j] + of_pixel;
                if (at[j] == row) d[j] += most[j];
                if (place == j) d[j] += of_most;
            }
            store(dx + static_cast<size_t>(row) * c + channel, d);
        }
    }
}

// d_channel (2, B, 2·C) and d_spatial (B, pixels, 4), either of which may be null, and the places of `forward`
// -> dx (2, B, pixels, C). Grid: parts of `per_part` pixels, maps.
template <class T>
__device__ void backward(const T* d_channel, const int* channel_at, const T* d_spatial, const int* spatial_at, T* dx,
                         int batch, int pixels, int per_part, int c) {
    const int start = blockIdx.x * per_part, end = min(pixels, start + per_part);
    const int map = blockIdx.y, stream = map / batch;
    const size_t image = map % batch, before = static_cast<size_t>(map) * pixels, row = (2 * image + stream) * c;
    const T* d_mean = d_channel ? d_channel + row : nullptr;
    const T* d_most = d_channel ? d_channel + 2 * static_cast<size_t>(batch) * c + row : nullptr;
    if (d_spatial) d_spatial += 4 * image * pixels + 2 * stream;
    channel_at += row;
    spatial_at += before;
    dx += before * c;
    if (aligned<T>(c, dx)) {
        backward_part<kLanes<T>>(d_mean, d_most, channel_at, d_spatial, spatial_at, dx, start, end, pixels, c);
    } else {
        backward_part<1>(d_mean, d_most, channel_at, d_spatial, spatial_at, dx, start, end, pixels, c);
    }
}

#define KERNELS(T, t)                                                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                     \
        pool_##t(const T* x, T* y, int* spatial_at, Statistics* partial, int batch, int pixels, int per_part, int c) { \
        forward(x, y, spatial_at, partial, batch, pixels, per_part, c);                                           \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024)                                                            \
        pool_combine_##t(const Statistics* partial, T* y, int* channel_at, int batch, int pixels, int parts, int c) { \
        combine(partial, y, channel_at, batch, pixels, parts, c);                                                 \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                     \
        pool_backward_##t(const T* d_channel, const int* channel_at, const T* d_spatial, const int* spatial_at,   \
                          T* dx, int batch, int pixels, int per_part, int c) {                                    \
        backward(d_channel, channel_at, d_spatial, spatial_at, dx, batch, pixels, per_part, c);                   \
    }
FOR_TYPES(KERNELS)
