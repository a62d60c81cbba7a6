// What kernels may use: launch(), dynamic_shared(), warp_sum() and four-wide accesses.
//
// With TF_EMULATE the same kernel source runs on the CPU (emulate.h), which is how it is tested where there is no GPU.
// Rules for kernels: every thread reaches every barrier (mask work, never return early); full-mask shuffles only.
#pragma once
#include "../noise.h"
#if defined(TF_EMULATE)
#include "emulate.h"
#else
#include <cuda_runtime.h>

namespace tempflow::cuda {

template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared, void* stream, A... args) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(args...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

__device__ __forceinline__ float* dynamic_shared() {
  extern __shared__ float memory[];
  return memory;
}

}  // namespace tempflow::cuda
#endif

namespace tempflow::cuda {

template <class T>
struct alignas(4 * sizeof(T)) Quad { T v[4]; };   // one 16- or 8-byte access

__device__ __forceinline__ float warp_sum(float v) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

}  // namespace tempflow::cuda
