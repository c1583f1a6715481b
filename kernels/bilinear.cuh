// Bilinear interpolation along one axis with half-pixel centres, the very numbers of `Axis` in src/cpu/resize.rs: a
// fused multiply-add would move some positions across a whole number.
#pragma once

// Numbers (…, h, w, C).
template <class T> struct Map {
    const T* data;
    int h, w;
};

struct Axis {
    int input, output;
    float scale;
    __device__ Axis(int input, int output)
        : input(input), output(output), scale(__fdiv_rn(static_cast<float>(input), static_cast<float>(output))) {}
};

// An output position is (1 − weight)·near + weight·far.
struct Tap {
    int near, far;
    float weight;
};

__device__ inline Tap tap_of(const Axis& axis, int i) {
    const float centre = static_cast<float>(i) + 0.5f;
    const float source = fmaxf(__fsub_rn(__fmul_rn(axis.scale, centre), 0.5f), 0.0f);
    const int near = min(static_cast<int>(source), axis.input - 1);
    const float weight = axis.input == axis.output ? 0.0f : fminf(source - static_cast<float>(near), 1.0f);
    return {near, min(near + 1, axis.input - 1), weight};
}

// The weight of input position j in output i; 0 where there is no such output.
__device__ inline float weight_of(const Axis& axis, int i, int j) {
    if (i < 0 || i >= axis.output) return 0.0f;
    const Tap tap = tap_of(axis, i);
    return (tap.near == j ? 1.0f - tap.weight : 0.0f) + (tap.far == j ? tap.weight : 0.0f);
}

// The first output whose near position is j or later: position j is read by the outputs from first_near(j − 1) up to
// but not including first_near(j + 1).
__device__ inline int first_near(const Axis& axis, int j) {
    int from = 0, end = axis.output;
    while (from < end) {
        const int middle = (from + end) / 2;
        if (tap_of(axis, middle).near < j) {
            from = middle + 1;
        } else {
            end = middle;
        }
    }
    return from;
}
