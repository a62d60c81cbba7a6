// From tensors to what kernels take, with the checks that memory safety needs. Values on a device are not read.
#pragma once
#include "noise.h"
#include "ops.h"
#include "step.h"

namespace tempflow {

inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), op, ": ", name,
                  " must be on the device of the first argument");
}

inline Dtype dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return kFloat;
    case ScalarType::BFloat16: return kBfloat16;
    case ScalarType::Half: return kHalf;
    default: break;
  }
  STD_TORCH_CHECK(false, op, ": the first argument must be float32, bfloat16 or float16; "
                  "tempflow_fast_reference serves float64");
  return kFloat;
}

// Whether the elements along a tensor's last dimension, `d`, follow one another.
inline bool contiguous_rows(const Tensor& t, int64_t d) {
  return t.size(d) == 1 || t.stride(d) == 1 || t.numel() == 0;
}

// An argument [N, D] whose rows are contiguous; anything else is an error.
inline Rows rows(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  check_device(op, name, t, like);
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == like.size(0) && t.size(1) == like.size(1), op, ": ", name,
                  " must have the shape of the first argument");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " must have the dtype of the first argument");
  STD_TORCH_CHECK(contiguous_rows(t, 1), op, ": ", name, " must be contiguous within each row");
  return {t.const_data_ptr(), t.stride(0)};
}
inline Rows rows(const char* op, const char* name, const OptionalTensor& t, const Tensor& like) {
  return t ? rows(op, name, *t, like) : Rows{nullptr, 0};
}

inline const double* checked_coefficients(const char* op, const Tensor& coefficients, const Tensor& like) {
  check_device(op, "coefficients", coefficients, like);
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(1) == kColumns && coefficients.is_contiguous() &&
                  coefficients.scalar_type() == ScalarType::Double, op,
                  ": coefficients must be contiguous float64 [T, 5]");
  return coefficients.const_data_ptr<double>();
}

inline const double* checked_step(const char* op, const Tensor& coefficients, int64_t step, const Tensor& like) {
  const double* data = checked_coefficients(op, coefficients, like);
  STD_TORCH_CHECK(step >= 0 && step < coefficients.size(0), op, ": step must be in 0..", coefficients.size(0) - 1,
                  ", got ", step);
  return data + step * kColumns;
}

inline const int64_t* checked_integers(const char* op, const char* name, const Tensor& t, int64_t count,
                                       const Tensor& like) {
  check_device(op, name, t, like);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.numel() == count, op, ": ", name,
                  " must be contiguous int64 with ", count, " values");
  return t.const_data_ptr<int64_t>();
}

inline const float* checked_floats(const char* op, const char* name, const Tensor& t, int64_t count,
                                   const Tensor& like) {
  check_device(op, name, t, like);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == count, op, ": ", name,
                  " must be contiguous float32 with ", count, " values");
  return t.const_data_ptr<float>();
}

inline void check_num_branches(const char* op, int64_t num_branches) {
  STD_TORCH_CHECK(num_branches >= 1 && num_branches <= kMaxBranches, op, ": num_branches must be in 1..", kMaxBranches,
                  ", got ", num_branches);
}

inline void check_branches(const char* op, const Tensor& branches, const Tensor& velocity) {
  check_device(op, "branches", branches, velocity);
  STD_TORCH_CHECK(branches.dim() == 3 && branches.size(0) == velocity.size(0) && branches.size(2) == velocity.size(1) &&
                  contiguous_rows(branches, 2) && branches.scalar_type() == velocity.scalar_type(),
                  op, ": branches must be [R, K, D] like velocity, contiguous within each branch");
}

}  // namespace tempflow
