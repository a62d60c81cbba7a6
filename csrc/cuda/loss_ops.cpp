// CUDA bodies of log_prob, its backward and policy_loss. Nothing here waits for the device.
#include "device_of.h"

namespace tempflow::cuda {
namespace {

LogProbArgs log_prob_args(const char* op, const Tensor& latents_next, const Tensor& latents, const Tensor& velocity,
                          const Tensor& coefficients, const Tensor& steps) {
  LogProbArgs args{};
  args.latents_next = rows(op, "latents_next", latents_next, latents);
  args.latents = rows(op, "latents", latents, latents);
  args.velocity = rows(op, "velocity", velocity, latents);
  args.step = step_of_row(op, coefficients, steps, latents);
  args.n = latents.size(0);
  args.d = latents.size(1);
  return args;
}

}  // namespace

Tensor log_prob(const Tensor latents_next, const Tensor latents, const Tensor velocity, const Tensor coefficients,
                const Tensor steps) {
  const char* op = "log_prob";
  const OnDeviceOf here(latents);
  const Dtype dtype = dtype_of(op, latents);
  LogProbArgs args = log_prob_args(op, latents_next, latents, velocity, coefficients, steps);
  Tensor out = floats(latents, {args.n}), partial = floats(latents, {args.n, blocks_of(args.d, dtype)});
  args.partial = partial.mutable_data_ptr<float>();
  args.log_prob = out.mutable_data_ptr<float>();
  check_launch(op, log_prob(dtype, args, here.stream));
  return out;
}

Tensor log_prob_backward(const Tensor grad, const Tensor latents_next, const Tensor latents, const Tensor velocity,
                         const Tensor coefficients, const Tensor steps) {
  const char* op = "log_prob_backward";
  const OnDeviceOf here(latents);
  LogProbArgs args = log_prob_args(op, latents_next, latents, velocity, coefficients, steps);
  Tensor out = new_empty(velocity, std::vector<int64_t>{args.n, args.d});
  args.grad = checked_floats(op, "grad", grad, args.n, latents);
  args.grad_velocity = out.mutable_data_ptr();
  check_launch(op, log_prob_backward(dtype_of(op, latents), args, here.stream));
  return out;
}

LossResult policy_loss(const Tensor velocity, const OptionalTensor velocity_uncond, const Tensor latents,
                       const Tensor branches, const Tensor velocity_old, const OptionalTensor velocity_ref,
                       const Tensor advantages, const Tensor coefficients, const Tensor steps, double guidance_scale,
                       double clip_range, double beta, bool with_gradient) {
  const char* op = "policy_loss";
  const OnDeviceOf here(velocity);
  const Dtype dtype = dtype_of(op, velocity);
  check_branches(op, branches, velocity);
  const int64_t n = velocity.size(0), d = velocity.size(1), k = branches.size(1);
  // Without rows no kernel runs and the statistics are 0.
  const auto statistic = [&] {
    return n ? floats(velocity, {}) : torch::stable::new_zeros(velocity, std::vector<int64_t>{}, ScalarType::Float);
  };
  Tensor loss = statistic(), clip_fraction = statistic(), kl = statistic(), log_ratio = floats(velocity, {n, k});
  Tensor gradient = with_gradient ? floats(velocity, {n, d}) : floats(velocity, {0});
  Tensor partial = floats(velocity, {n, k + 2, blocks_of(d, dtype)});
  Tensor row_statistics = new_empty(velocity, std::vector<int64_t>{n, 3}, ScalarType::Double);
  Tensor finished = new_empty(velocity, std::vector<int64_t>{1}, ScalarType::Int);
  const LossArgs args{guided(op, velocity, velocity_uncond, guidance_scale, velocity),
                      rows(op, "latents", latents, velocity),
                      rows(op, "velocity_old", velocity_old, velocity),
                      rows(op, "velocity_ref", velocity_ref, velocity),
                      branches.const_data_ptr(), branches.stride(0), branches.stride(1),
                      checked_floats(op, "advantages", advantages, n * k, velocity),
                      step_of_row(op, coefficients, steps, velocity), Clip(clip_range), beta,
                      partial.mutable_data_ptr<float>(), static_cast<RowStatistics*>(row_statistics.mutable_data_ptr()),
                      static_cast<uint32_t*>(finished.mutable_data_ptr()), loss.mutable_data_ptr<float>(),
                      clip_fraction.mutable_data_ptr<float>(), kl.mutable_data_ptr<float>(),
                      log_ratio.mutable_data_ptr<float>(), with_gradient ? gradient.mutable_data_ptr<float>() : nullptr,
                      n, k, d};
  check_launch(op, policy_loss(dtype, args, here.stream));
  return {loss, log_ratio, clip_fraction, kl, gradient};
}

}  // namespace tempflow::cuda
