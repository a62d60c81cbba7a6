// CPU bodies of log_prob, its backward and policy_loss. The partial sums of the tasks are added in order, in double.
#include "tensors.h"

namespace tempflow::cpu {
namespace {

// Elements of a group of rows that policy_loss finishes before it takes the next: 2 MiB of float32 (1 MiB of 16 bits),
// the L2 cache of a server core, so that the second pass over the group reads from the cache.
constexpr int64_t kGroupElements = 1 << 19;

// Rows that policy_loss reads in addition to the branches: velocity, latents, velocity_old, velocity_ref.
constexpr int64_t kOtherRows = 4;

LogProbArgs log_prob_args(const char* op, const Tensor& latents_next, const Tensor& latents, const Tensor& velocity,
                          const Tensor& coefficients, const Tensor& steps) {
  LogProbArgs args{};
  args.latents_next = rows(op, "latents_next", latents_next, latents);
  args.latents = rows(op, "latents", latents, latents);
  args.velocity = rows(op, "velocity", velocity, latents);
  args.coefficients = checked_coefficients(op, coefficients, latents);
  args.steps = known_steps(op, coefficients, steps, latents.size(0));
  args.d = latents.size(1);
  return args;
}

struct Statistics {
  double loss = 0, kl = 0;
  int64_t num_clipped = 0;
};

struct LossSums {                        // what one pass leaves for the other
  std::vector<double> products, sum_squares_ref;
  std::vector<float> log_ratio_grad;
  LossSums(int64_t num_rows, int64_t k, int64_t chunks, bool with_ref)
      : products(num_rows * k * chunks), sum_squares_ref(with_ref ? num_rows * chunks : 0), log_ratio_grad(num_rows * k) {}
};

// Whether the policy seems unchanged, as in the first update on a rollout: the first chunk of row r decides.
bool looks_unchanged(const LossArgs& args, int64_t r, Dtype dtype) {
  const int64_t chunks = chunks_of(args.d);
  kernels().loss_products[dtype](args, r * chunks, r * chunks + 1);
  for (int64_t k = 0; k < args.k; ++k)
    if (args.products[(r * args.k + k) * chunks] != 0) return false;
  return true;
}

// The derivatives of row r, assuming that its ratios are 1.
void assume_unchanged(const LossArgs& args, int64_t r, int64_t num_rows, const Clip& clip, const float* advantage,
                      float* log_ratio, LossSums& sums) {
  const Step step(args.coefficients + args.steps[r] * kColumns);
  const double weight = step.noise_weight / static_cast<double>(num_rows * args.k);
  for (int64_t i = r * args.k; i < (r + 1) * args.k; ++i) {
    log_ratio[i] = 0;
    sums.log_ratio_grad[i] = static_cast<float>(weight * Surrogate(0, advantage[i], clip).derivative);
  }
}

// Turns the sums of row r into its log-ratios, their derivatives and its part of the statistics. Returns whether the
// derivatives are the ones that were there before.
bool finish_row(const LossArgs& args, int64_t r, int64_t num_rows, const Clip& clip, const float* advantage,
                float* log_ratio, LossSums& sums, Statistics& statistics) {
  bool same = true;
  const int64_t chunks = chunks_of(args.d);
  const Step step(args.coefficients + args.steps[r] * kColumns);
  const double weight = step.noise_weight / static_cast<double>(num_rows * args.k);
  for (int64_t i = r * args.k; i < (r + 1) * args.k; ++i) {
    const double value = step.log_ratio(sum_of(&sums.products[i * chunks], chunks), args.d);
    const Surrogate surrogate(value, advantage[i], clip);
    log_ratio[i] = static_cast<float>(value);
    const float derivative = static_cast<float>(weight * surrogate.derivative);
    same &= derivative == sums.log_ratio_grad[i];
    sums.log_ratio_grad[i] = derivative;
    statistics.loss += weight * surrogate.value;
    statistics.num_clipped += surrogate.clipped;
  }
  if (args.velocity_ref.data)
    statistics.kl += step.kl(sum_of(&sums.sum_squares_ref[r * chunks], chunks), args.d) / static_cast<double>(num_rows);
  return same;
}

}  // namespace

Tensor log_prob(const Tensor latents_next, const Tensor latents, const Tensor velocity, const Tensor coefficients,
                const Tensor steps) {
  LogProbArgs args = log_prob_args("log_prob", latents_next, latents, velocity, coefficients, steps);
  const int64_t num_rows = latents.size(0), chunks = chunks_of(args.d);
  std::vector<double> sum_squares(num_rows * chunks);
  args.sum_squares = sum_squares.data();
  const auto kernel = kernels().log_prob[dtype_of("log_prob", latents)];
  run(kernel, args, 0, num_rows * chunks, std::min(args.d, kChunk));
  Tensor out = new_empty(latents, std::vector<int64_t>{num_rows}, ScalarType::Float);
  float* log_density = out.mutable_data_ptr<float>();
  for (int64_t r = 0; r < num_rows; ++r) {
    const Step step(args.coefficients + args.steps[r] * kColumns);
    const double mean_square = sum_of(&sum_squares[r * chunks], chunks) / static_cast<double>(args.d);
    log_density[r] = static_cast<float>(step.log_density(mean_square / (step.s * step.s)));
  }
  return out;
}

Tensor log_prob_backward(const Tensor grad, const Tensor latents_next, const Tensor latents, const Tensor velocity,
                         const Tensor coefficients, const Tensor steps) {
  const char* op = "log_prob_backward";
  LogProbArgs args = log_prob_args(op, latents_next, latents, velocity, coefficients, steps);
  const int64_t num_rows = latents.size(0);
  Tensor out = new_empty(velocity, std::vector<int64_t>{num_rows, args.d});
  args.grad = checked_floats(op, "grad", grad, num_rows, latents);
  args.grad_velocity = out.mutable_data_ptr();
  const auto kernel = kernels().log_prob_backward[dtype_of(op, latents)];
  run(kernel, args, 0, num_rows * chunks_of(args.d), std::min(args.d, kChunk));
  return out;
}

LossResult policy_loss(const Tensor velocity, const OptionalTensor velocity_uncond, const Tensor latents,
                       const Tensor branches, const Tensor velocity_old, const OptionalTensor velocity_ref,
                       const Tensor advantages, const Tensor coefficients, const Tensor steps, double guidance_scale,
                       double clip_range, double beta, bool with_gradient) {
  const char* op = "policy_loss";
  const Dtype dtype = dtype_of(op, velocity);
  check_branches(op, branches, velocity);
  const int64_t num_rows = velocity.size(0), d = velocity.size(1), k = branches.size(1), chunks = chunks_of(d);
  const float* advantage = checked_floats(op, "advantages", advantages, num_rows * k, velocity);
  Tensor gradient = new_empty(velocity, with_gradient ? std::vector<int64_t>{num_rows, d} : std::vector<int64_t>{0},
                              ScalarType::Float);
  Tensor log_ratios = new_empty(velocity, std::vector<int64_t>{num_rows, k}, ScalarType::Float);
  float* log_ratio = log_ratios.mutable_data_ptr<float>();
  LossSums sums(num_rows, k, chunks, velocity_ref.has_value());
  const LossArgs args{rows(op, "velocity", velocity, velocity), rows(op, "velocity_uncond", velocity_uncond, velocity),
                      rows(op, "latents", latents, velocity), rows(op, "velocity_old", velocity_old, velocity),
                      rows(op, "velocity_ref", velocity_ref, velocity), branches.const_data_ptr(), branches.stride(0),
                      branches.stride(1), static_cast<float>(guidance_scale),
                      checked_coefficients(op, coefficients, velocity), known_steps(op, coefficients, steps, num_rows),
                      sums.products.data(), sums.sum_squares_ref.data(), log_ratio,
                      sums.log_ratio_grad.data(), beta / static_cast<double>(std::max<int64_t>(num_rows, 1)),
                      gradient.mutable_data_ptr<float>(), k, d};
  const Clip clip(clip_range);
  Statistics statistics;
  // Both passes go over a group of rows that stays in the cache between them; an unchanged policy needs only one pass.
  const int64_t group = std::max<int64_t>(1, kGroupElements / std::max<int64_t>(d, 1) / (k + kOtherRows));
  const int64_t work = std::min(d, kChunk) * (k + 2);   // one operation per branch, two for the mean and the shift
  for (int64_t first = 0; first < num_rows; first += group) {
    const int64_t last = std::min(first + group, num_rows);
    const bool unchanged = with_gradient && looks_unchanged(args, first, dtype);
    if (unchanged)
      for (int64_t r = first; r < last; ++r) assume_unchanged(args, r, num_rows, clip, advantage, log_ratio, sums);
    const auto& kernel = unchanged ? kernels().loss_at_once : kernels().loss_products;
    run(kernel[dtype], args, first * chunks, last * chunks, work);
    bool done = unchanged;
    for (int64_t r = first; r < last; ++r)
      done &= finish_row(args, r, num_rows, clip, advantage, log_ratio, sums, statistics);
    if (with_gradient && !done) run(kernels().loss_gradient[dtype], args, first * chunks, last * chunks, work);
  }
  const double num_ratios = static_cast<double>(std::max<int64_t>(num_rows * k, 1));
  return {scalar(velocity, statistics.loss + beta * statistics.kl), log_ratios,
          scalar(velocity, static_cast<double>(statistics.num_clipped) / num_ratios), scalar(velocity, statistics.kl),
          gradient};
}

}  // namespace tempflow::cpu
