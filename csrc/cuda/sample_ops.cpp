// CUDA bodies of guided_velocity, euler_step, branch_step and initial_noise. Nothing here waits for the device.
#include "device_of.h"

namespace tempflow::cuda {

Tensor guided_velocity(const Tensor velocity, const Tensor velocity_uncond, double guidance_scale) {
  const char* op = "guided_velocity";
  const OnDeviceOf here(velocity);
  const int64_t n = velocity.size(0), d = velocity.size(1);
  Tensor out = new_empty(velocity, std::vector<int64_t>{n, d});
  const GuideArgs args{guided(op, velocity, velocity_uncond, guidance_scale, velocity), out.mutable_data_ptr(), n, d};
  check_launch(op, guided_velocity(dtype_of(op, velocity), args, here.stream));
  return out;
}

Tensor euler_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                  double guidance_scale, const Tensor coefficients, int64_t step) {
  const char* op = "euler_step";
  const OnDeviceOf here(latents);
  const int64_t n = latents.size(0), d = latents.size(1);
  Tensor latents_next = new_empty(latents, std::vector<int64_t>{n, d});
  const EulerArgs args{rows(op, "latents", latents, latents),
                       guided(op, velocity, velocity_uncond, guidance_scale, latents),
                       checked_step(op, coefficients, step, latents), latents_next.mutable_data_ptr(), n, d};
  check_launch(op, euler_step(dtype_of(op, latents), args, here.stream));
  return latents_next;
}

SampleResult branch_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                         double guidance_scale, const Tensor coefficients, int64_t step, int64_t num_branches,
                         const Tensor seed, const Tensor trajectory_ids) {
  const char* op = "branch_step";
  check_num_branches(op, num_branches);
  const OnDeviceOf here(latents);
  const Dtype dtype = dtype_of(op, latents);
  const int64_t n = latents.size(0), d = latents.size(1);
  Tensor latents_next = new_empty(latents, std::vector<int64_t>{n, d});
  Tensor branches = new_empty(latents, std::vector<int64_t>{n, num_branches, d});
  Tensor log_prob = floats(latents, {n, num_branches});
  Tensor partial = floats(latents, {n, num_branches, blocks_of(d, dtype)});
  const BranchArgs args{rows(op, "latents", latents, latents),
                        guided(op, velocity, velocity_uncond, guidance_scale, latents),
                        checked_step(op, coefficients, step, latents), static_cast<uint32_t>(step),
                        noise(op, seed, trajectory_ids, n, latents), latents_next.mutable_data_ptr(),
                        branches.mutable_data_ptr(), partial.mutable_data_ptr<float>(),
                        log_prob.mutable_data_ptr<float>(), n, num_branches, d};
  check_launch(op, branch_step(dtype, args, here.stream));
  return {latents_next, branches, log_prob};
}

Tensor initial_noise(const Tensor trajectory_ids, const Tensor seed, int64_t numel) {
  const char* op = "initial_noise";
  const OnDeviceOf here(trajectory_ids);
  const int64_t n = trajectory_ids.numel();
  Tensor out = floats(trajectory_ids, {n, numel});
  const NoiseArgs args{noise(op, seed, trajectory_ids, n, trajectory_ids), out.mutable_data_ptr<float>(), n, numel};
  check_launch(op, initial_noise(args, here.stream));
  return out;
}

}  // namespace tempflow::cuda
