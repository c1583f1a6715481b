// The walk over four maps whose nine groups of channels, one for each tap (ky, kx) of a 3×3 convolution, are resized
// bilinearly to H×W, shifted by their taps and added up; resized_taps.cu and fuse.cu say what for.
#pragma once
#include <bilinear.cuh>
#include <common.cuh>

constexpr int kMaps = 4;
// Channels of a thread where addresses allow it.
constexpr int kGroup = 4;

// keep·near + weight·far; near < 0 outside of the picture.
struct alignas(16) Blend {
    int near, far;
    float keep, weight;
};

__device__ inline Blend blend_of(const Axis& axis, int i) {
    if (i < 0 || i >= axis.output) return {-1, -1, 0.0f, 0.0f};
    const Tap tap = tap_of(axis, i);
    return {tap.near, tap.far, 1.0f - tap.weight, tap.weight};
}

// Row `row` of one map at the column whose taps are `columns`, for taps (ky, 0 .. 2): its streams blended and summed.
template <int N, int STREAMS, class T>
__device__ inline void across(const Map<T>& map, int row, int ky, const Blend* columns, int channel, int o,
                              float (&sum)[N]) {
    const size_t stream = static_cast<size_t>(gridDim.z) * map.h * map.w * 9 * o;
    const T* from = map.data + (static_cast<size_t>(blockIdx.z) * map.h + row) * map.w * 9 * o + channel;
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] = 0.0f;
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
        const Blend blend = columns[kx];
        if (blend.near < 0) continue;
        const T* near = from + static_cast<size_t>(blend.near * 9 + ky * 3 + kx) * o;
        const T* far = from + static_cast<size_t>(blend.far * 9 + ky * 3 + kx) * o;
        float a[N], c[N];
        load(near, a);
        load(far, c);
        if constexpr (STREAMS == 2) {
            float b[N], d[N];
            load(near + stream, b);
            load(far + stream, d);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                a[j] += b[j];
                c[j] += d[j];
            }
        }
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += blend.keep * a[j] + blend.weight * c[j];
    }
}

// A thread has one column and N channels and walks down a strip of rows. For each map and ky it holds two neighbouring
// rows of the map, already blended along the columns and summed over streams and kx; a row is read once for all rows of
// the strip that lie between it and the next. Where taps fall is in tables in shared memory, one for the strip's rows and
// one for the block's columns: 16 bytes for each map and each of these, two more of each.
//
// The maps are (STREAMS, B, h, w, 9·O). Grid: groups of channels of a row, `per_block` to a block; strips of rows;
// images. begin(line, column, channel, sum) sets what the taps are added to; end(line, column, channel, sum, inside) gets
// the result, and every thread of a block comes to it for each line of the strip, `inside` or not.
template <int N, int STREAMS, class T, class Begin, class End>
__device__ inline void walk_taps(const Map<T> (&maps)[kMaps], int height, int width, int o, int strip, int per_block,
                                 Blend* tables, Begin begin, End end) {
    const int groups = o / N, first = blockIdx.y * strip, last = min(height, first + strip);
    const int start = blockIdx.x * per_block, i = start + threadIdx.x;
    // Rows first − 1 .. last, then the block's columns with one more on each side; for each map.
    const int rows = last - first + 2, first_column = start / groups;
    const int last_column = (min(start + per_block, width * groups) - 1) / groups;
    const int columns = last_column - first_column + 3;
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
        const Axis down(maps[m].h, height), along(maps[m].w, width);
        Blend* table = tables + m * (rows + columns);
        for (int k = threadIdx.x; k < rows; k += blockDim.x) table[k] = blend_of(down, first - 1 + k);
        for (int k = threadIdx.x; k < columns; k += blockDim.x) {
            table[rows + k] = blend_of(along, first_column - 1 + k);
        }
    }
    __syncthreads();
    const bool inside = static_cast<int>(threadIdx.x) < per_block && i < width * groups;
    const int column = i / groups, channel = i % groups * N;
    // The rows of each map that the line before has blended.
    float near[kMaps][3][N] = {}, far[kMaps][3][N] = {};
    for (int line = first; line < last; ++line) {
        float sum[N];
        if (inside) {
            begin(line, column, channel, sum);
#pragma unroll
            for (int m = 0; m < kMaps; ++m) {
                const Blend* table = tables + m * (rows + columns);
#pragma unroll
                for (int ky = 0; ky < 3; ++ky) {
                    const Blend down = table[line - first + ky];
                    if (down.near < 0) continue;
                    const int before = line > first ? table[line - first + ky - 1].near : -1;
                    for (int row = max(before < 0 ? -2 : before, down.near - 2); row < down.near; ++row) {
#pragma unroll
                        for (int j = 0; j < N; ++j) near[m][ky][j] = far[m][ky][j];
                        across<N, STREAMS>(maps[m], min(row + 2, maps[m].h - 1), ky,
                                           table + rows + column - first_column, channel, o, far[m][ky]);
                    }
#pragma unroll
                    for (int j = 0; j < N; ++j) {
                        sum[j] += down.keep * near[m][ky][j] + down.weight * far[m][ky][j];
                    }
                }
            }
        }
        end(line, column, channel, sum, inside);
    }
}
