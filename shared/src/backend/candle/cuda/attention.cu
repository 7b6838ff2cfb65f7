// What stands around attention's products: rotations, the order of heads and tokens, softmax.

#include "common.cuh"

// x (B, T, heads, 2 half), cos and sin (T, half); a thread takes a pack of first halves with their second ones. sign -1
// turns back.
template <typename T, int N>
__device__ void rope_half(const T *x, const T *cos, const T *sin, T *y, uint32_t packs, uint32_t tokens, uint32_t heads, uint32_t half,
                          float sign) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    const uint32_t across = half / N, at = i % across, row = i / across, token = row / heads % tokens;
    const size_t first = (size_t)row * 2 * across + at;
    auto a = load<T, N>(x, first);
    auto b = load<T, N>(x, first + across);
    const auto c = load<T, N>(cos, token * across + at);
    const auto s = load<T, N>(sin, token * across + at);
    for (int j = 0; j < N; j++) {
        const float u = wide(a.values[j]), v = wide(b.values[j]), cj = wide(c.values[j]), sj = sign * wide(s.values[j]);
        a.values[j] = narrow<T>(u * cj - v * sj);
        b.values[j] = narrow<T>(v * cj + u * sj);
    }
    store<T, N>(y, first, a);
    store<T, N>(y, first + across, b);
}

// The same of pairs (2 i, 2 i + 1); a thread takes a pair.
template <typename T, int N>
__device__ void rope_interleaved(const T *x, const T *cos, const T *sin, T *y, uint32_t pairs, uint32_t tokens, uint32_t heads,
                                 uint32_t half, float sign) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) {
        return;
    }
    const uint32_t token = i / half / heads % tokens;
    auto pair = load<T, 2>(x, i);
    const float u = wide(pair.values[0]), v = wide(pair.values[1]);
    const float c = wide(cos[token * half + i % half]), s = sign * wide(sin[token * half + i % half]);
    pair.values[0] = narrow<T>(u * c - v * s);
    pair.values[1] = narrow<T>(v * c + u * s);
    store<T, 2>(y, i, pair);
}

// (B, M, N, K) -> (B, N, M, K), `across` packs of K.
template <typename T, int P>
__device__ void swap(const T *x, T *y, uint32_t packs, uint32_t m, uint32_t n, uint32_t across) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) {
        return;
    }
    // By where it is written.
    const uint32_t at = i % across, row = i / across;
    const uint32_t in_m = row % m, in_n = row / m % n, batch = row / m / n;
    store<T, P>(y, i, load<T, P>(x, ((batch * m + in_m) * n + in_n) * across + at));
}

// Softmax of rows of scores (N, rows, seen); a warp takes a row. `first` below 0: all keys are seen, else row r is the query at
// first + r % tokens.
template <typename T, int N>
__device__ void softmax(const T *x, T *y, uint32_t all, uint32_t rows, uint32_t seen, float scale, uint32_t tokens, int first) {
    const uint32_t row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= all) {
        return;
    }
    x += (size_t)row * seen;
    y += (size_t)row * seen;
    uint32_t visible = seen;
    if (first >= 0) {
        visible = min(seen, (uint32_t)first + row % rows % tokens + 1);
    }
    float largest = -INFINITY;
    for (uint32_t i = lane; i < visible; i += 32) {
        largest = fmaxf(largest, wide(x[i]) * scale);
    }
    largest = warp_max(largest);
    float total = 0.0f;
    for (uint32_t i = lane; i < visible; i += 32) {
        total += expf(wide(x[i]) * scale - largest);
    }
    const float inverse = 1.0f / warp_sum(total);
    for (uint32_t i = lane; i < seen; i += 32) {
        y[i] = narrow<T>(i < visible ? expf(wide(x[i]) * scale - largest) * inverse : 0.0f);
    }
}

// p (dp - sum(dp p)) scale, row by row.
template <typename T, int N>
__device__ void softmax_gradient(const T *p, const T *dp, T *ds, uint32_t all, uint32_t seen, float scale) {
    const uint32_t row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= all) {
        return;
    }
    p += (size_t)row * seen;
    dp += (size_t)row * seen;
    ds += (size_t)row * seen;
    float along = 0.0f;
    for (uint32_t i = lane; i < seen; i += 32) {
        along += wide(p[i]) * wide(dp[i]);
    }
    along = warp_sum(along);
    for (uint32_t i = lane; i < seen; i += 32) {
        ds[i] = narrow<T>(wide(p[i]) * (wide(dp[i]) - along) * scale);
    }
}

#define ATTENTION(NAME, T, N)                                                                                          \
    extern "C" __global__ void rope_half_##NAME(const T *x, const T *cos, const T *sin, T *y, uint32_t packs,          \
                                                uint32_t tokens, uint32_t heads, uint32_t half, float sign) {          \
        rope_half<T, N>(x, cos, sin, y, packs, tokens, heads, half, sign);                                             \
    }                                                                                                                  \
    extern "C" __global__ void rope_interleaved_##NAME(const T *x, const T *cos, const T *sin, T *y, uint32_t pairs,   \
                                                       uint32_t tokens, uint32_t heads, uint32_t half, float sign) {   \
        rope_interleaved<T, N>(x, cos, sin, y, pairs, tokens, heads, half, sign);                                      \
    }                                                                                                                  \
    extern "C" __global__ void swap_##NAME(const T *x, T *y, uint32_t packs, uint32_t m, uint32_t n, uint32_t across) { \
        swap<T, N>(x, y, packs, m, n, across);                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void softmax_##NAME(const T *x, T *y, uint32_t all, uint32_t rows, uint32_t seen,            \
                                              float scale, uint32_t tokens, int first) {                               \
        softmax<T, N>(x, y, all, rows, seen, scale, tokens, first);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void softmax_gradient_##NAME(const T *p, const T *dp, T *ds, uint32_t all, uint32_t seen,    \
                                                       float scale) {                                                  \
        softmax_gradient<T, N>(p, dp, ds, all, seen, scale);                                                           \
    }

FOR_ALL_TYPES(ATTENTION)
