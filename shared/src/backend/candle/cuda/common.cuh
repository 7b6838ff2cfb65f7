// What all kernels share: values of either type, read several at once, computed with in f32.

#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

template <typename T> __device__ float wide(T x);
template <> __device__ inline float wide(float x) { return x; }
template <> __device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ T narrow(float x);
template <> __device__ inline float narrow(float x) { return x; }
template <> __device__ inline __nv_bfloat16 narrow(float x) { return __float2bfloat16(x); }

// N values that lie together and are read and written at once.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

template <typename T, int N> __device__ Pack<T, N> load(const T *x, uint32_t pack) {
    return reinterpret_cast<const Pack<T, N> *>(x)[pack];
}

template <typename T, int N> __device__ void store(T *y, uint32_t pack, const Pack<T, N> &values) {
    reinterpret_cast<Pack<T, N> *>(y)[pack] = values;
}

// The sum over a warp, in all of its lanes.
__device__ inline float warp_sum(float x) {
    for (int apart = 16; apart > 0; apart /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, apart);
    }
    return x;
}

__device__ inline float warp_max(float x) {
    for (int apart = 16; apart > 0; apart /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    }
    return x;
}

// The sum over a block of whole warps, in all of its threads.
__device__ inline float block_sum(float x) {
    __shared__ float sums[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = x;
    }
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

// A kernel for f32 and bf16, value by value and in packs of 16 bytes.
#define FOR_ALL_TYPES(KERNEL)                                                                                          \
    KERNEL(f32, float, 1)                                                                                              \
    KERNEL(f32_packed, float, 4)                                                                                       \
    KERNEL(bf16, __nv_bfloat16, 1)                                                                                     \
    KERNEL(bf16_packed, __nv_bfloat16, 8)
