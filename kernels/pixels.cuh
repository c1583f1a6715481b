// How the threads of a block share the pixels of a map (pixels, C), for kernels that need numbers of each pixel, over
// its channels, and numbers of each channel, over the pixels.
//
// A lane takes N channels, and keeps them: what a channel needs stays in registers while the lane walks along the
// pixels. As many lanes as the channels of a pixel need, rounded up to a power of two and at most a warp, are a group
// and take a pixel; the groups of a warp, and the warps of a team, take pixels side by side. Pixels of more than 32·N
// channels are cut into tiles of as many, and each team of warps takes another tile of the same pixels.
#pragma once

#include <common.cuh>

// Threads of a block.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

constexpr unsigned kAll = 0xffffffffu;

template <int N> struct Walk {
    int width;    // Lanes of a group.
    int tiles;    // Of a pixel.
    int walkers;  // Warps of a team.
    int teams;
    int team;     // Of this thread, and so on.
    int walker;
    int group;
    int lane;     // Within the group.
    int at_once;  // Pixels that a team takes side by side.
    int first;    // The first pixel of the warp; the group's own is `group` further on.

    __device__ explicit Walk(int c) {
        const int thread = threadIdx.x, lanes = (c + N - 1) / N, warp = thread / kWarp;
        width = 1;
        while (width < lanes && width < kWarp) width *= 2;
        tiles = (lanes + kWarp - 1) / kWarp;
        walkers = max(1, kWarps / tiles);
        teams = kWarps / walkers;
        team = warp / walkers;
        walker = warp % walkers;
        group = thread % kWarp / width;
        lane = thread % width;
        at_once = walkers * (kWarp / width);
        first = walker * (kWarp / width);
    }

    // The first channel of this lane in a tile; it may lie beyond the last.
    __device__ int channel(int tile) const { return (tile * kWarp + lane) * N; }

    // Slots for numbers of a pixel that several teams contribute to; none when a team has all of its channels.
    __device__ int slots() const { return min(tiles, teams); }
};

// The sum over the lanes of a group, the same in every lane.
__device__ inline float group_sum(float x, int width) {
    for (int lane = width / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(kAll, x, lane);
    return x;
}

// The sum over the groups of a warp, of the same lane of each.
__device__ inline float groups_sum(float x, int width) {
    for (int lane = width; lane < kWarp; lane *= 2) x += __shfl_xor_sync(kAll, x, lane);
    return x;
}

// N numbers as they are stored.
template <int N, class T> __device__ inline Pack<T, N> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T> __device__ inline void store_pack(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}
