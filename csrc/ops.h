// Bodies of the ops on tensors, written against LibTorch's stable ABI: one binary serves every torch >= the target.
// The arguments are those of the schemas in tempflow_fast/ops.py, which has checked them for callers of its functions.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>

namespace tempflow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using SampleResult = std::tuple<Tensor, Tensor, Tensor>;                     // latents_next, branches, log_prob
using LossResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;       // loss, log_ratio, clip_fraction, kl, gradient

// A [N, D] argument whose rows are contiguous; raises otherwise.
inline void check_rows(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == like.size(0) && t.size(1) == like.size(1), op, ": ", name,
                  " must have the shape of the first argument");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " must have the dtype of the first argument");
  STD_TORCH_CHECK(t.size(1) == 1 || t.stride(1) == 1, op, ": ", name, " must be contiguous within each row");
}

namespace cpu {
Tensor guided_velocity(const Tensor velocity, const Tensor velocity_uncond, double guidance_scale);
Tensor euler_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                  double guidance_scale, const Tensor table, int64_t step);
SampleResult branch_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                         double guidance_scale, const Tensor table, int64_t step, int64_t num_branches,
                         const Tensor seed, const Tensor trajectory_ids);
Tensor initial_noise(const Tensor trajectory_ids, const Tensor seed, int64_t numel);
Tensor log_prob(const Tensor latents_next, const Tensor latents, const Tensor velocity, const Tensor table,
                const Tensor steps);
Tensor log_prob_backward(const Tensor grad, const Tensor latents_next, const Tensor latents, const Tensor velocity,
                         const Tensor table, const Tensor steps);
LossResult policy_loss(const Tensor velocity, const OptionalTensor velocity_uncond, const Tensor latents,
                       const Tensor branches, const Tensor velocity_old, const OptionalTensor velocity_ref,
                       const Tensor advantages, const Tensor table, const Tensor steps, double guidance_scale,
                       double clip_range, double beta, bool with_gradient);
}  // namespace cpu

namespace cuda {
SampleResult branch_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                         double guidance_scale, const Tensor table, int64_t step, int64_t num_branches,
                         const Tensor seed, const Tensor trajectory_ids);
}  // namespace cuda

}  // namespace tempflow
