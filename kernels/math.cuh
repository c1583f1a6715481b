// Functions of one number, as in src/cpu/math.rs, and their derivatives.
#pragma once

// The division is good to 2 units in the last place; the exact one has a branch, and takes many registers.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// The derivative of σ from its value.
__device__ inline float sigmoid_derivative(float y) { return y * (1.0f - y); }

// x·Φ(x), exact.
__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// Φ(x) + x·φ(x).
__device__ inline float gelu_derivative(float x) {
    const float cdf = 0.5f * (1.0f + erff(x * 0.70710678f));
    return cdf + x * 0.39894228f * expf(-0.5f * x * x);
}
