// Activations and sums, element by element; a thread takes a pack.

#include "common.cuh"

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Activation::QuickGelu is 0, Activation::Gelu is 1.
__device__ inline float value(uint32_t kind, float x) {
    return kind == 0 ? x * sigmoid(1.702f * x) : 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

__device__ inline float slope(uint32_t kind, float x) {
    if (kind == 0) {
        const float s = sigmoid(1.702f * x);
        return s * (1.0f + 1.702f * x * (1.0f - s));
    }
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.3989423f * expf(-0.5f * x * x);
}

template <typename T, int N> __device__ void activation(const T *x, T *y, uint32_t packs, uint32_t kind) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    auto v = load<T, N>(x, i);
    for (int j = 0; j < N; j++) {
        v.values[j] = narrow<T>(value(kind, wide(v.values[j])));
    }
    store<T, N>(y, i, v);
}

template <typename T, int N>
__device__ void activation_gradient(const T *x, const T *grad, T *dx, uint32_t packs, uint32_t kind) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    auto v = load<T, N>(x, i);
    const auto g = load<T, N>(grad, i);
    for (int j = 0; j < N; j++) {
        v.values[j] = narrow<T>(wide(g.values[j]) * slope(kind, wide(v.values[j])));
    }
    store<T, N>(dx, i, v);
}

template <typename T, int N> __device__ void silu_mul(const T *gate, const T *up, T *y, uint32_t packs) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    const auto g = load<T, N>(gate, i);
    auto u = load<T, N>(up, i);
    for (int j = 0; j < N; j++) {
        const float v = wide(g.values[j]);
        u.values[j] = narrow<T>(v * sigmoid(v) * wide(u.values[j]));
    }
    store<T, N>(y, i, u);
}

template <typename T, int N>
__device__ void silu_mul_gradients(const T *gate, const T *up, const T *grad, T *dgate, T *dup, uint32_t packs) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    auto g = load<T, N>(gate, i);
    auto u = load<T, N>(up, i);
    const auto d = load<T, N>(grad, i);
    for (int j = 0; j < N; j++) {
        const float v = wide(g.values[j]), s = sigmoid(v), by = wide(d.values[j]);
        g.values[j] = narrow<T>(by * wide(u.values[j]) * s * (1.0f + v * (1.0f - s)));
        u.values[j] = narrow<T>(by * v * s);
    }
    store<T, N>(dgate, i, g);
    store<T, N>(dup, i, u);
}

// x + y, and z if it is given.
template <typename T, int N> __device__ void sum(const T *x, const T *y, const T *z, T *out, uint32_t packs) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    auto a = load<T, N>(x, i);
    const auto b = load<T, N>(y, i);
    Pack<T, N> c;
    if (z) {
        c = load<T, N>(z, i);
    }
    for (int j = 0; j < N; j++) {
        const float two = wide(a.values[j]) + wide(b.values[j]);
        a.values[j] = narrow<T>(z ? two + wide(c.values[j]) : two);
    }
    store<T, N>(out, i, a);
}

#define ACTIVATIONS(NAME, T, N)                                                                                        \
    extern "C" __global__ void activation_##NAME(const T *x, T *y, uint32_t packs, uint32_t kind) {                    \
        activation<T, N>(x, y, packs, kind);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void activation_gradient_##NAME(const T *x, const T *grad, T *dx, uint32_t packs,            \
                                                          uint32_t kind) {                                             \
        activation_gradient<T, N>(x, grad, dx, packs, kind);                                                           \
    }                                                                                                                  \
    extern "C" __global__ void sum_of_two_##NAME(const T *x, const T *y, T *out, uint32_t packs) {                     \
        sum<T, N>(x, y, nullptr, out, packs);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void sum_of_three_##NAME(const T *x, const T *y, const T *z, T *out, uint32_t packs) {       \
        sum<T, N>(x, y, z, out, packs);                                                                                \
    }                                                                                                                  \
    extern "C" __global__ void silu_mul_##NAME(const T *gate, const T *up, T *y, uint32_t packs) {                     \
        silu_mul<T, N>(gate, up, y, packs);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void silu_mul_gradients_##NAME(const T *gate, const T *up, const T *grad, T *dgate, T *dup,  \
                                                         uint32_t packs) {                                             \
        silu_mul_gradients<T, N>(gate, up, grad, dgate, dup, packs);                                                   \
    }

FOR_ALL_TYPES(ACTIVATIONS)
