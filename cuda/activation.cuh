// The three forms of the Gaussian error linear unit (Hendrycks and Gimpel 2016) and their derivatives, computed in f32: to a few
// units in the last place where the result is stored in f32, and by approximate instructions where it is stored in bf16,
// whose rounding is 2^-9 of a value. An epilogue has one of them for each element of its tile, and to the last place they
// take longer than the products of a short k.
#pragma once
#include "elem.cuh"
#include "ptx/math.cuh"

// As src/engine/ops/linear/activation.rs numbers them.
enum Activation { kNoActivation, kGeluErf, kGeluTanh, kGeluQuick };

constexpr float kTanhScale = 0.7978845608028654f;  // √(2/π)
constexpr float kTanhCube = 0.044715f;
constexpr float kQuickScale = 1.702f;

// e^x. For bf16 to 2^-21 of it, which ex2.approx and the rounding of x·log2 e leave for |x| < 8, where the results matter.
template <class T>
DEVICE float exponential(float x) {
    if constexpr (sizeof(T) == 2)
        return exp2_approximate(x * kLog2E);
    else
        return expf(x);
}

// 1 / (1 + e^-x); 0 where e^-x overflows.
template <class T>
DEVICE float sigmoid(float x) {
    const float below = 1.0f + exponential<T>(-x);
    if constexpr (sizeof(T) == 2)
        return reciprocal_approximate(below);
    else
        return 1.0f / below;
}

// Φ(x) by the complementary error function, which keeps its relative accuracy in the left tail. For bf16 the tail Φ(-|x|) is
// ½·erfc(z) = e^(-z²)·t·p(t) with z = |x|/√2, t = 1/(1 + 0.45·z) and p of degree 5, fitted for z up to 9.3, where f32 ends:
// within 2^-16 of itself.
template <class T>
DEVICE float normal_distribution(float x) {
    if constexpr (sizeof(T) == 2) {
        const float z = fabsf(x) * 0.7071067811865476f;
        const float t = reciprocal_approximate(fmaf(0.45f, z, 1.0f));
        float p = fmaf(-0.06721661686f, t, 0.14387846947f);
        p = fmaf(p, t, 0.04742500395f);
        p = fmaf(p, t, 0.12270439507f);
        p = fmaf(p, t, 0.12626084504f);
        p = fmaf(p, t, 0.12694345376f);
        const float tail = p * t * exponential<T>(-0.5f * x * x);
        return x < 0.0f ? tail : 1.0f - tail;
    } else {
        return 0.5f * erfcf(x * -0.7071067811865476f);
    }
}

// f(x): x·Φ(x), x·σ(2√(2/π)(x + 0.044715x³)) = ½x(1 + tanh(...)), or x·σ(1.702x). Errors in f32: a few units in the last place
// of f(x), of erfcf (4) and expf (2); for bf16: below 2^-15 of f(x).
template <class T>
DEVICE float activate(int activation, float x) {
    if (activation == kGeluErf) return x * normal_distribution<T>(x);
    if (activation == kGeluTanh) return x * sigmoid<T>(2.0f * kTanhScale * (x + kTanhCube * x * x * x));
    return x * sigmoid<T>(kQuickScale * x);
}

// f′(x).
template <class T>
DEVICE float activation_derivative(int activation, float x) {
    if (activation == kGeluErf) return normal_distribution<T>(x) + x * 0.3989422804014327f * exponential<T>(-0.5f * x * x);
    if (activation == kGeluTanh) {
        const float s = sigmoid<T>(2.0f * kTanhScale * (x + kTanhCube * x * x * x));
        return s + x * s * (1.0f - s) * 2.0f * kTanhScale * (1.0f + 3.0f * kTanhCube * x * x);
    }
    const float s = sigmoid<T>(kQuickScale * x);
    return s * (1.0f + kQuickScale * x * (1.0f - s));
}
