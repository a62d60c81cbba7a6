// Shared by the CUDA bodies: the device and stream of a call, and the arguments that many kernels take.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "../tensors.h"
#include "kernels.h"

namespace tempflow::cuda {

using torch::stable::new_empty;

// Makes the device of a tensor the current one during its lifetime.
struct OnDeviceOf {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;

  explicit OnDeviceOf(const Tensor& t)
      : guard(index_of(t)), stream(torch::stable::accelerator::getCurrentStream(index_of(t)).nativeHandle()) {}

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
