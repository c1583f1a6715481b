// Functions of one number, as in src/cpu/math.rs, and their derivatives.
#pragma once

#include <ptx.cuh>

// The division is good to 2 units in the last place; the exact one has a branch, and takes many registers.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// The derivative of σ from its value.
__device__ inline float sigmoid_derivative(float y) { return y * (1.0f - y); }

// Φ(x) to about 3e-7, and e^(−x²/2). The formula is 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical
// Functions: 1 − erf(z) = (a₁t + … + a₅t⁵)·e^(−z²) with t = 1/(1 + 0.3275911·z), to 1.5e-7; here z is |x|/√2, and the
// numbers a are halved. It is shorter than erff, and the derivative of GELU needs the exponential anyway.
struct Normal {
    float cdf, e;
};
__device__ inline Normal normal(float x) {
    const float t = reciprocal_approx(fmaf(fabsf(x), 0.231641888f, 1.0f));
    const float e = exp2_approx(x * x * -0.72134752f);
    float sum = 0.5307027145f;
    sum = fmaf(sum, t, -0.7265760135f);
    sum = fmaf(sum, t, 0.7107068705f);
    sum = fmaf(sum, t, -0.142248368f);
    sum = fmaf(sum, t, 0.127414796f);
    const float tail = sum * t * e;
    return {x < 0.0f ? tail : 1.0f - tail, e};
}

// x·Φ(x).
__device__ inline float gelu(float x) { return x * normal(x).cdf; }

// Φ(x) + x·φ(x).
__device__ inline float gelu_derivative(float x) {
    const Normal at = normal(x);
    return at.cdf + x * 0.39894228f * at.e;
}
