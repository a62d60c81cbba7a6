// CUDA body of branch_step. Nothing here waits for the device.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <vector>

#include "../ops.h"
#include "kernels.h"

namespace tempflow::cuda {
namespace {

Rows rows(const char* name, const Tensor& t, const Tensor& like) {
  check_rows("branch_step", name, t, like);
  return {t.const_data_ptr(), t.stride(0)};
}

// Whether four elements can be moved at once: aligned rows of whole quads.
bool in_quads(const Rows& r, int64_t d, size_t element_size) {
  return d % 4 == 0 && r.stride % 4 == 0 && reinterpret_cast<uintptr_t>(r.data) % (4 * element_size) == 0;
}

Dtype dtype_of(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "branch_step: float32, bfloat16 or float16 expected");
  return type == ScalarType::Float ? kFloat : type == ScalarType::BFloat16 ? kBfloat16 : kHalf;
}

}  // namespace

SampleResult branch_step(const Tensor latents, const Tensor velocity, const OptionalTensor velocity_uncond,
                         double guidance_scale, const Tensor table, int64_t step, int64_t k, const Tensor seed,
                         const Tensor trajectory_ids) {
  STD_TORCH_CHECK(k >= 1 && k <= kMaxBranches, "branch_step: num_branches must be in 1..", kMaxBranches, " on CUDA, got ", k);
  STD_TORCH_CHECK(step >= 0 && step < table.size(0) && table.size(1) == 5 && table.is_contiguous() &&
                  table.scalar_type() == ScalarType::Double, "branch_step: step must be a row of float64 coefficients [T, 5]");
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && trajectory_ids.scalar_type() == ScalarType::Long &&
                  trajectory_ids.is_contiguous() && trajectory_ids.numel() == latents.size(0),
                  "branch_step: seed and trajectory_ids must be int64, one id per row");
  const Dtype dtype = dtype_of(latents);
  const size_t element_size = dtype == kFloat ? 4 : 2;
  const int64_t n = latents.size(0), d = latents.size(1);
  const int32_t device = latents.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = torch::stable::accelerator::getCurrentStream(device).nativeHandle();
  using torch::stable::new_empty;
  Tensor next = new_empty(latents, std::vector<int64_t>{n, d});
  Tensor branches = new_empty(latents, std::vector<int64_t>{n, k, d});
  Tensor log_prob = new_empty(latents, std::vector<int64_t>{n, k}, ScalarType::Float);
  if (n == 0) return {next, branches, log_prob};
  Tensor partial = new_empty(latents, std::vector<int64_t>{n, k, branch_blocks(d)}, ScalarType::Float);
  const Rows x = rows("latents", latents, latents), v = rows("velocity", velocity, latents);
  const Rows u = velocity_uncond ? rows("velocity_uncond", *velocity_uncond, latents) : Rows{nullptr, 0};
  const bool quads = in_quads(x, d, element_size) && in_quads(v, d, element_size) && in_quads(u, d, element_size);
  const BranchArgs args{x, v, u, static_cast<float>(guidance_scale), table.const_data_ptr<double>() + 5 * step,
                        static_cast<uint32_t>(step), seed.const_data_ptr<int64_t>(),
                        trajectory_ids.const_data_ptr<int64_t>(), next.mutable_data_ptr(), branches.mutable_data_ptr(),
                        partial.mutable_data_ptr<float>(), log_prob.mutable_data_ptr<float>(), n, k, d, quads};
  const char* error = cuda::branch_step(dtype, args, stream);
  STD_TORCH_CHECK(!error, "branch_step: ", error);
  return {next, branches, log_prob};
}

}  // namespace tempflow::cuda
