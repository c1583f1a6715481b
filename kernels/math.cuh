// Functions of one number, as in src/cpu/math.rs, and their derivatives.
#pragma once

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The derivative of σ from its value.
__device__ inline float sigmoid_derivative(float y) { return y * (1.0f - y); }

// x·Φ(x), exact.
__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// Φ(x) + x·φ(x).
__device__ inline float gelu_derivative(float x) {
    const float cdf = 0.5f * (1.0f + erff(x * 0.70710678f));
    return cdf + x * 0.39894228f * expf(-0.5f * x * x);
}
