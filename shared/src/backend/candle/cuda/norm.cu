// Layer norm (CENTRED) and root-mean-square norm; a block takes a row.

#include "common.cuh"

// Mean (0 where it stays) and 1 / deviation of a row.
template <typename T, int N, bool CENTRED> __device__ void moments(const T *x, uint32_t d, float eps, float &mean, float &scale) {
    mean = 0.0f;
    if (CENTRED) {
        float sum = 0.0f;
        for (uint32_t i = threadIdx.x; i < d / N; i += blockDim.x) {
            const auto pack = load<T, N>(x, i);
            for (int j = 0; j < N; j++) {
                sum += wide(pack.values[j]);
            }
        }
        mean = block_sum(sum) / d;
    }
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < d / N; i += blockDim.x) {
        const auto pack = load<T, N>(x, i);
        for (int j = 0; j < N; j++) {
            const float v = wide(pack.values[j]) - mean;
            squares += v * v;
        }
    }
    scale = 1.0f / sqrtf(block_sum(squares) / d + eps);
}

// x (rows, d), w (d), b (d) if CENTRED -> y (rows, d).
template <typename T, int N, bool CENTRED>
__device__ void norm(const T *x, const T *w, const T *b, T *y, uint32_t d, float eps) {
    x += (size_t)blockIdx.x * d;
    y += (size_t)blockIdx.x * d;
    float mean, scale;
    moments<T, N, CENTRED>(x, d, eps, mean, scale);
    for (uint32_t i = threadIdx.x; i < d / N; i += blockDim.x) {
        const auto xs = load<T, N>(x, i);
        const auto ws = load<T, N>(w, i);
        Pack<T, N> shift, ys;
        if (CENTRED) {
            shift = load<T, N>(b, i);
        }
        for (int j = 0; j < N; j++) {
            const float v = (wide(xs.values[j]) - mean) * scale * wide(ws.values[j]);
            ys.values[j] = narrow<T>(CENTRED ? v + wide(shift.values[j]) : v);
        }
        store<T, N>(y, i, ys);
    }
}

// The gradient by x, added to `plus` if it is given, and each row's mean and scale (rows, 2) if there is room for them.
template <typename T, int N, bool CENTRED>
__device__ void norm_gradient(const T *x, const T *w, const T *grad, const T *plus, T *dx, float *stats, uint32_t d,
                              float eps) {
    x += (size_t)blockIdx.x * d;
    grad += (size_t)blockIdx.x * d;
    dx += (size_t)blockIdx.x * d;
    float mean, scale;
    moments<T, N, CENTRED>(x, d, eps, mean, scale);
    float sum = 0.0f, along = 0.0f;
    for (uint32_t i = threadIdx.x; i < d / N; i += blockDim.x) {
        const auto xs = load<T, N>(x, i);
        const auto ws = load<T, N>(w, i);
        const auto gs = load<T, N>(grad, i);
        for (int j = 0; j < N; j++) {
            const float g = wide(gs.values[j]) * wide(ws.values[j]);
            sum += g;
            along += g * (wide(xs.values[j]) - mean) * scale;
        }
    }
    along = block_sum(along) / d;
    sum = CENTRED ? block_sum(sum) / d : 0.0f;
    for (uint32_t i = threadIdx.x; i < d / N; i += blockDim.x) {
        const auto xs = load<T, N>(x, i);
        const auto ws = load<T, N>(w, i);
        const auto gs = load<T, N>(grad, i);
        Pack<T, N> more, ys;
        if (plus) {
            more = load<T, N>(plus + (size_t)blockIdx.x * d, i);
        }
        for (int j = 0; j < N; j++) {
            const float g = wide(gs.values[j]) * wide(ws.values[j]);
            const float by_x = (g - sum - (wide(xs.values[j]) - mean) * scale * along) * scale;
            ys.values[j] = narrow<T>(plus ? by_x + wide(more.values[j]) : by_x);
        }
        store<T, N>(dx, i, ys);
    }
    if (stats && threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = scale;
    }
}

// Sums over a share of the rows: the gradients by w and b (2, shares, d). A thread takes a column, a block's y a share.
template <typename T, int N>
__device__ void norm_weight_gradient(const T *x, const T *grad, const float *stats, float *sums, uint32_t rows, uint32_t d) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= d) {
        return;
    }
    float by_w = 0.0f, by_b = 0.0f;
    for (uint32_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const float g = wide(grad[(size_t)row * d + column]);
        by_w += g * (wide(x[(size_t)row * d + column]) - stats[2 * row]) * stats[2 * row + 1];
        by_b += g;
    }
    sums[(size_t)blockIdx.y * d + column] = by_w;
    sums[((size_t)gridDim.y + blockIdx.y) * d + column] = by_b;
}

#define NORMS(NAME, T, N)                                                                                              \
    extern "C" __global__ void rms_norm_##NAME(const T *x, const T *w, T *y, uint32_t d, float eps) {                  \
        norm<T, N, false>(x, w, nullptr, y, d, eps);                                                                   \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_##NAME(const T *x, const T *w, const T *b, T *y, uint32_t d, float eps) {    \
        norm<T, N, true>(x, w, b, y, d, eps);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_gradient_##NAME(const T *x, const T *w, const T *grad, T *dx, float *stats,    \
                                                        uint32_t d, float eps) {                                       \
        norm_gradient<T, N, false>(x, w, grad, nullptr, dx, stats, d, eps);                                            \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_gradient_and_##NAME(const T *x, const T *w, const T *grad, const T *plus,      \
                                                            T *sum, uint32_t d, float eps) {                           \
        norm_gradient<T, N, false>(x, w, grad, plus, sum, nullptr, d, eps);                                            \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_gradient_##NAME(const T *x, const T *w, const T *grad, T *dx, float *stats,  \
                                                          uint32_t d, float eps) {                                     \
        norm_gradient<T, N, true>(x, w, grad, nullptr, dx, stats, d, eps);                                             \
    }                                                                                                                  \
    extern "C" __global__ void norm_weight_gradient_##NAME(const T *x, const T *grad, const float *stats, float *sums, \
                                                           uint32_t rows, uint32_t d) {                                \
        norm_weight_gradient<T, N>(x, grad, stats, sums, rows, d);                                                     \
    }

FOR_ALL_TYPES(NORMS)
