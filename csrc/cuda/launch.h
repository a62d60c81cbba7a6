// launch(): runs a kernel on a stream. Only this file uses the CUDA runtime.
//
// With TF_EMULATE the same kernel source runs on the CPU (emulate.h), which is how it is tested where there is no GPU.
#pragma once
#include "kernels.h"
#if defined(TF_EMULATE)
#include "emulate.h"
#else
#include <cuda_runtime.h>
#endif

namespace tempflow::cuda {

constexpr int64_t kMaxBlocks = 0x7fffffff;   // CUDA's limit for the first dimension of a grid

template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t blocks, int threads, void* stream, A... args) {
  if (blocks == 0) return nullptr;
  if (blocks > kMaxBlocks) return "more elements than one launch can cover";
#if defined(TF_EMULATE)
  emulation::run_blocks(blocks, threads, [&] { kernel(args...); });
  (void)stream;
  return nullptr;
#else
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(args...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

// Calls launcher(T{}) with the type of a dtype.
template <class Launcher>
const char* by_dtype(Dtype dtype, Launcher launcher) {
  switch (dtype) {
    case kFloat: return launcher(float{});
    case kBfloat16: return launcher(bf16{});
    default: return launcher(fp16{});
  }
}

}  // namespace tempflow::cuda
