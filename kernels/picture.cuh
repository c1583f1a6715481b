// The numbers of pictures, as they come: bytes, of which 255 is 1, or numbers of any type.
#pragma once
#include <common.cuh>

__device__ inline float number(unsigned char x) { return static_cast<float>(x) / 255.0f; }
template <class T> __device__ inline float number(T x) { return to_float(x); }
