// Shared by the CUDA bodies: the device and stream of a call, and the arguments that many kernels take.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "../tensors.h"
#include "kernels.h"

namespace tempflow::cuda {

using torch::stable::new_empty;

// The current stream of a GPU. torch 2.10 to 2.12 have no stable function for it, so the C function behind the later one is
// looked up in the loaded libtorch_cuda: a binary built with any torch then runs on all of them.
inline void* current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const Get get = [] {
    void* cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return cuda ? reinterpret_cast<Get>(dlsym(cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get && get(device, &stream) == 0, "tempflow_fast: this torch does not tell its current CUDA stream");
  return stream;
}

// Makes the device of a tensor the current one during its lifetime.
struct OnDeviceOf {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;

  explicit OnDeviceOf(const Tensor& t)
      : guard(index_of(t)), stream(current_stream(index_of(t))) {}

 private:
  static int32_t index_of(const Tensor& t) {
    STD_TORCH_CHECK(t.is_cuda(), "tempflow_fast: the first tensor must be on the same GPU as the others");
    return t.get_device_index();
  }
};

inline void check_launch(const char* op, const char* error) { STD_TORCH_CHECK(!error, op, ": ", error); }

inline Guided guided(const char* op, const Tensor& velocity, const OptionalTensor& velocity_uncond,
                     double guidance_scale, const Tensor& like) {
  return {rows(op, "velocity", velocity, like), rows(op, "velocity_uncond", velocity_uncond, like),
          static_cast<float>(guidance_scale)};
}

inline StepOfRow step_of_row(const char* op, const Tensor& coefficients, const Tensor& steps, const Tensor& like) {
  return {checked_coefficients(op, coefficients, like), coefficients.size(0),
          checked_integers(op, "steps", steps, like.size(0), like)};
}

inline Noise noise(const char* op, const Tensor& seed, const Tensor& trajectory_ids, int64_t n, const Tensor& like) {
  return {checked_integers(op, "seed", seed, 1, like),
          checked_integers(op, "trajectory_ids", trajectory_ids, n, like)};
}

inline Tensor floats(const Tensor& like, std::vector<int64_t> shape) {
  return new_empty(like, shape, ScalarType::Float);
}

}  // namespace tempflow::cuda
