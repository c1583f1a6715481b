// The numbers of pictures, as they come: bytes, of which 255 is 1, or numbers of any type.
#pragma once
#include <common.cuh>

// Exactly x / 255 for every byte: the product with the rounded 1 / 255, then one step by what is left over. A division
// takes many more instructions.
__device__ inline float number(unsigned char x) {
    constexpr float kStep = 1.0f / 255.0f;
    const float near = static_cast<float>(x) * kStep;
    return fmaf(fmaf(-255.0f, near, static_cast<float>(x)), kStep, near);
}
template <class T> __device__ inline float number(T x) { return to_float(x); }
