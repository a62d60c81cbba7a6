// CPU bodies of guided_velocity, euler_step, branch_step and initial_noise.
#include "../noise.h"
#include "tensors.h"

namespace tempflow::cpu {
namespace {

// branch_step; with k = 0, euler_step.
SampleResult sample(const char* op, const Tensor& latents, const Tensor& velocity,
                    const OptionalTensor& velocity_uncond, double guidance_scale, const Tensor& coefficients,
                    int64_t step, int64_t k, uint64_t seed, const int64_t* trajectory_ids) {
  const Dtype dtype = dtype_of(op, latents);
  const int64_t n = latents.size(0), d = latents.size(1), chunks = chunks_of(d);
  Tensor latents_next = new_empty(latents, std::vector<int64_t>{n, d});
  Tensor branches = new_empty(latents, std::vector<int64_t>{n, k, d});
  Tensor log_prob = new_empty(latents, std::vector<int64_t>{n, k}, ScalarType::Float);
  std::vector<double> sum_squares(n * k * chunks);
  const SampleArgs args{rows(op, "latents", latents, latents), rows(op, "velocity", velocity, latents),
                        rows(op, "velocity_uncond", velocity_uncond, latents), static_cast<float>(guidance_scale),
                        known_step(op, coefficients, step, k > 0), static_cast<uint32_t>(step), seed, trajectory_ids,
                        latents_next.mutable_data_ptr(), branches.mutable_data_ptr(), sum_squares.data(), n, k, d};
  run(kernels().sample[dtype], args, 0, n * chunks, std::min(d, kChunk) * (k * kNormalWork + 1));
  const Step step_row(args.step_row);
  float* out = log_prob.mutable_data_ptr<float>();
  for (int64_t r = 0; r < n * k; ++r)
    out[r] = static_cast<float>(step_row.log_density(sum_of(&sum_squares[r * chunks], chunks) / static_cast<double>(d)));
  return {latents_next, branches, log_prob};
}

}  // namespace

SampleResult branch_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                         double guidance_scale, const Tensor coefficients, int64_t step, int64_t num_branches,
                         const Tensor seed, const Tensor trajectory_ids) {
  const char* op = "branch_step";
  check_num_branches(op, num_branches);
  const uint64_t key = static_cast<uint64_t>(*checked_integers(op, "seed", seed, 1, latents));
  const int64_t* ids = checked_integers(op, "trajectory_ids", trajectory_ids, latents.size(0), latents);
  return sample(op, latents, velocity, velocity_uncond, guidance_scale, coefficients, step, num_branches, key, ids);
}

Tensor euler_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                  double guidance_scale, const Tensor coefficients, int64_t step) {
  return std::get<0>(
      sample("euler_step", latents, velocity, velocity_uncond, guidance_scale, coefficients, step, 0, 0, nullptr));
}

Tensor initial_noise(const Tensor trajectory_ids, const Tensor seed, int64_t numel) {
  const int64_t n = trajectory_ids.numel();
  const int64_t* ids = checked_integers("initial_noise", "trajectory_ids", trajectory_ids, n, trajectory_ids);
  const uint64_t key = static_cast<uint64_t>(*checked_integers("initial_noise", "seed", seed, 1, trajectory_ids));
  Tensor out = new_empty(trajectory_ids, std::vector<int64_t>{n, numel}, ScalarType::Float);
  const NoiseArgs args{key, ids, out.mutable_data_ptr<float>(), numel};
  run(kernels().initial_noise, args, 0, n * chunks_of(numel), std::min(numel, kChunk) * kNormalWork);
  return out;
}

Tensor guided_velocity(const Tensor velocity, const Tensor velocity_uncond, double guidance_scale) {
  const char* op = "guided_velocity";
  const int64_t n = velocity.size(0), d = velocity.size(1);
  Tensor out = new_empty(velocity, std::vector<int64_t>{n, d});
  const GuideArgs args{rows(op, "velocity", velocity, velocity), rows(op, "velocity_uncond", velocity_uncond, velocity),
                       static_cast<float>(guidance_scale), out.mutable_data_ptr(), d};
  run(kernels().guided_velocity[dtype_of(op, velocity)], args, 0, n * chunks_of(d), std::min(d, kChunk));
  return out;
}

}  // namespace tempflow::cpu
