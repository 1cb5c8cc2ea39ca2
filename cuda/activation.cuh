// The three forms of the Gaussian error linear unit (Hendrycks and Gimpel 2016) and their derivatives, in f32.
#pragma once
#include "kernel.cuh"

// As src/engine/ops/linear/activation.rs numbers them.
enum Activation { kNoActivation, kGeluErf, kGeluTanh, kGeluQuick };

constexpr float kTanhScale = 0.7978845608028654f;  // √(2/π)
constexpr float kTanhCube = 0.044715f;
constexpr float kQuickScale = 1.702f;

// 1 / (1 + e^-x); 0 where e^-x overflows.
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Φ(x) by the complementary error function, which keeps its relative accuracy in the left tail.
DEVICE float normal_distribution(float x) { return 0.5f * erfcf(x * -0.7071067811865476f); }

// f(x): x·Φ(x), x·σ(2√(2/π)(x + 0.044715x³)) = ½x(1 + tanh(...)), or x·σ(1.702x). Errors: a few units in the last place of
// f(x), of erfcf (4) and expf (2).
DEVICE float activate(int activation, float x) {
    if (activation == kGeluErf) return x * normal_distribution(x);
    if (activation == kGeluTanh) return x * sigmoid(2.0f * kTanhScale * (x + kTanhCube * x * x * x));
    return x * sigmoid(kQuickScale * x);
}

// f′(x).
DEVICE float activation_derivative(int activation, float x) {
    if (activation == kGeluErf) return normal_distribution(x) + x * 0.3989422804014327f * expf(-0.5f * x * x);
    if (activation == kGeluTanh) {
        const float s = sigmoid(2.0f * kTanhScale * (x + kTanhCube * x * x * x));
        return s + x * s * (1.0f - s) * 2.0f * kTanhScale * (1.0f + 3.0f * kTanhCube * x * x);
    }
    const float s = sigmoid(kQuickScale * x);
    return s * (1.0f + kQuickScale * x * (1.0f - s));
}
